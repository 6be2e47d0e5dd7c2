#include "kernels/neighborhood/neighborhood.hpp"

#include <algorithm>
#include <string>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

int64_t window_size(const ElementRule& r) {
  int64_t w = 1;
  for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a) w *= r.window[a];
  return w;
}

void check_rule(const ArgumentCheck& check, const char* op, const ElementRule& r, int64_t n,
                NeighborhoodKernel kernel, int64_t dim) {
  if (r.rank < 1 || r.rank > 3) check.fail("the rule has rank " + std::to_string(r.rank) + ", not 1 to 3");
  if (r.causal || r.band || r.segment_q || r.bitmap || is_tiled(r.q_tile) || is_tiled(r.k_tile))
    check.fail("the rule is a neighbourhood of row-major tokens and nothing else");
  int64_t tokens = 1;
  for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a) {
    if (r.cut_axis[a])
      check.fail("axis " + std::to_string(a) + ": windows are shifted inward at the ends, not cut");
    if (r.grid[a] < 1 || r.window[a] < 1 || r.dilation[a] < 1 || r.window[a] * r.dilation[a] > r.grid[a])
      check.fail("axis " + std::to_string(a) + ": window " + std::to_string(r.window[a]) +
                 " times dilation " + std::to_string(r.dilation[a]) + " must lie in 1.." +
                 std::to_string(r.grid[a]));
    if (r.stride[a] < 1 || r.stride[a] > r.window[a])
      check.fail("axis " + std::to_string(a) + ": stride " + std::to_string(r.stride[a]) +
                 " must lie in 1.." + std::to_string(r.window[a]));
    tokens *= r.grid[a];
  }
  if (tokens != n)
    check.fail("the grid has " + std::to_string(tokens) + " tokens, but N = " + std::to_string(n));
  if (kernel == NeighborhoodKernel::naive) return;
  const auto no = [op, kernel](const std::string& why) {
    throw Unsupported(std::string(op) + ", " + (kernel == NeighborhoodKernel::gemm ? "gemm" : "tiled") +
                      " form: " + why);
  };
  bool equal = true, causal = false;
  for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a) {
    equal = equal && r.window[a] == r.window[0] && r.dilation[a] == r.dilation[0];
    causal = causal || r.causal_axis[a];
  }
  if (causal) no("there is none with causal axes");
  if (!equal) no("windows and dilations must be equal on all axes");
  if (kernel == NeighborhoodKernel::tiled) {
    const int64_t w = r.window[0];
    if (r.rank != 2 || dim != 32 || w % 2 == 0 || w < 3 || w > 13)
      no("it is for grids of two axes, 32 dims a head and odd windows of 3 to 13, not rank " +
         std::to_string(r.rank) + ", " + std::to_string(dim) + " dims, window " + std::to_string(w));
  } else {
    if (r.rank == 3) no("there is none for three axes");
    if (r.rank == 2 && r.window[0] > 63) no("windows are at most 63, not " + std::to_string(r.window[0]));
  }
}

/// Pairs of one head: of all windows, and of the dense tiles that gemm multiplies.
int64_t window_pairs(const ElementRule& r) {
  int64_t pairs = 1;
  for (int a = 0; a < r.rank; ++a) {
    int64_t axis = 0;
    for (int64_t x = 0; x < r.grid[static_cast<size_t>(a)]; ++x) axis += axis_window(r, a, x).count();
    pairs *= axis;
  }
  return pairs;
}
int64_t tile_pairs(const ElementRule& r) {
  const int64_t tile = neighborhood_gemm_tile(r.rank, r.window[0]);
  int64_t pairs = 1;
  for (int a = 0; a < r.rank; ++a) {
    const auto i = static_cast<size_t>(a);
    const int64_t d = r.dilation[i];
    int64_t axis = 0;
    for (int64_t g = 0; g < d; ++g) {
      const int64_t length = (r.grid[i] - g + d - 1) / d;
      for (int64_t first = 0; first < length; first += tile) {
        const int64_t last = std::min(first + tile, length) - 1;
        const AxisWindow low = axis_window(r, a, first * d + g), high = axis_window(r, a, last * d + g);
        axis += (last - first + 1) * ((high.end - 1 - low.first) / d + 1);
      }
    }
    pairs *= axis;
  }
  return pairs;
}
int64_t computed_pairs(const ElementRule& r, NeighborhoodKernel kernel) {
  return kernel == NeighborhoodKernel::gemm ? tile_pairs(r) : window_pairs(r);
}

}  // namespace

int64_t neighborhood_gemm_tile(int rank, int64_t window) {
  if (rank == 1) return 64;
  // Sides for which a tile and its halo fill the published kernel's 64 x 64 or 128 x 128 product, by radius.
  static constexpr int64_t kSides[] = {7,  7,  6,  5,  7,  6,  10, 9,  11, 13, 12, 14,
                                       13, 14, 17, 17, 17, 22, 22, 23, 22, 22, 23};
  const auto radius = static_cast<size_t>((window - 1) / 2);
  return radius < std::size(kSides) ? kSides[radius] : 33;
}

void neighborhood_scores(Context& ctx, const NeighborhoodScoresArgs& args) {
  const ArgumentCheck check(ctx, "neighborhood_scores");
  check.present({{"q", args.q}, {"k", args.k}, {"a", args.a}});
  check.rank({"q", args.q}, 4, 4), check.rank({"k", args.k}, 4, 4);
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"k", args.k}, {"q", args.q});
  const int64_t batch = args.q.dim(0), heads = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3);
  check_rule(check, "neighborhood_scores", args.rule, n, args.kernel, d);
  check.shape({"k", args.k}, {batch, args.k.dim(1), n, d});
  if (args.k.dim(1) < 1 || heads % args.k.dim(1) != 0)
    check.fail(std::to_string(heads) + " heads are no multiple of " + std::to_string(args.k.dim(1)) +
               " key heads");
  check.packed({"q", args.q}), check.packed({"k", args.k});
  check.dtype({"a", args.a}, {DType::f32});
  check.shape({"a", args.a}, {batch, heads, n, window_size(args.rule)});
  check.packed({"a", args.a});
  check.disjoint({"a", args.a}, {"q", args.q}), check.disjoint({"a", args.a}, {"k", args.k});
  const int64_t pairs = batch * heads * computed_pairs(args.rule, args.kernel);
  Cost cost;
  if (args.bias) {
    int64_t entries = 1;
    for (size_t a = 0; a < static_cast<size_t>(args.rule.rank); ++a) {
      entries *= 2 * args.rule.window[a] - 1;
      if (args.rule.causal_axis[a])
        throw Unsupported("neighborhood_scores: the bias table has no causal axes");
    }
    check.present({{"bias", args.bias}});
    check.same_dtype({"bias", args.bias}, {"q", args.q});
    check.shape({"bias", args.bias}, {heads, entries});
    check.packed({"bias", args.bias}, 2);
    cost.elementwise += batch * heads * window_pairs(args.rule);
    cost.bytes_read += args.bias.nbytes();
  }
  cost.matmul = 2 * d * pairs;
  cost.elementwise += pairs;
  cost.bytes_read += args.q.nbytes() + args.k.nbytes();
  cost.bytes_written = args.a.nbytes();
  ctx.cost().charge(cost);
  if (args.a.numel() > 0) ctx.backend().neighborhood_scores(ctx, args);
}

void neighborhood_values(Context& ctx, const NeighborhoodValuesArgs& args) {
  const ArgumentCheck check(ctx, "neighborhood_values");
  check.present({{"a", args.a}, {"v", args.v}, {"o", args.o}});
  check.rank({"v", args.v}, 4, 4), check.rank({"o", args.o}, 4, 4);
  check.dtype({"v", args.v}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"o", args.o}, {"v", args.v});
  const int64_t batch = args.o.dim(0), heads = args.o.dim(1), n = args.o.dim(2), e = args.o.dim(3);
  check_rule(check, "neighborhood_values", args.rule, n, args.kernel, e);
  check.shape({"v", args.v}, {batch, args.v.dim(1), n, e});
  if (args.v.dim(1) < 1 || heads % args.v.dim(1) != 0)
    check.fail(std::to_string(heads) + " heads are no multiple of " + std::to_string(args.v.dim(1)) +
               " key heads");
  check.packed({"v", args.v}), check.packed({"o", args.o});
  check.dtype({"a", args.a}, {DType::f32});
  check.shape({"a", args.a}, {batch, heads, n, window_size(args.rule)});
  check.packed({"a", args.a});
  check.disjoint({"o", args.o}, {"a", args.a}), check.disjoint({"o", args.o}, {"v", args.v});
  Cost cost;
  cost.matmul = 2 * e * batch * heads * computed_pairs(args.rule, args.kernel);
  cost.bytes_read = args.a.nbytes() + args.v.nbytes();
  cost.bytes_written = args.o.nbytes();
  ctx.cost().charge(cost);
  if (args.o.numel() > 0) ctx.backend().neighborhood_values(ctx, args);
}

}  // namespace attnbench
