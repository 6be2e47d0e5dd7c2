// Unfused neighbourhood products on the CPU: row by row (naive), from a tile's keys in f32 (tiled), and as
// dense products of packed tiles (gemm). Every row is written by one thread in a fixed order.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/gemm/gemm_rows.hpp"
#include "kernels/neighborhood/neighborhood.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/neighborhood/neighborhood_body.hpp"

namespace attnbench {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Axes as three, those in front of the rule's own with one coordinate.
struct Grid {
  AxisExtents grid{1, 1, 1}, window{1, 1, 1}, dilation{1, 1, 1};
  const ElementRule& rule;
  size_t missing;
  explicit Grid(const ElementRule& r) : rule(r), missing(static_cast<size_t>(3 - r.rank)) {
    for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a)
      grid[missing + a] = r.grid[a], window[missing + a] = r.window[a], dilation[missing + a] = r.dilation[a];
  }
  AxisWindow at(size_t axis, int64_t x) const {
    if (axis < missing) return {0, 1, 1};
    return axis_window(rule, static_cast<int>(axis - missing), x);
  }
  AxisExtents place(int64_t token) const {
    return {token / (grid[1] * grid[2]), token / grid[2] % grid[1], token % grid[2]};
  }
  int64_t token(int64_t x, int64_t y, int64_t z) const { return (x * grid[1] + y) * grid[2] + z; }
  int64_t entries() const { return window[0] * window[1] * window[2]; }
};

/// Rows of a [B, heads, N, D] tensor.
struct Rows {
  char* base;
  int64_t batch, head, row;
  explicit Rows(const Tensor& t) {
    const auto size = static_cast<int64_t>(size_of(t.dtype()));
    base = static_cast<char*>(t.raw());
    batch = t.stride(0) * size, head = t.stride(1) * size, row = t.stride(2) * size;
  }
  char* at(int64_t b, int64_t h, int64_t i) const { return base + b * batch + h * head + i * row; }
  float* floats(int64_t b, int64_t h, int64_t i) const {
    return reinterpret_cast<float*>(base + b * batch + h * head + i * row);
  }
};

/// Calls f(entry, key token) for the neighbours of a query in the order of their entries.
template <class F>
void each_neighbor(const Grid& g, const AxisWindow (&w)[3], F&& f) {
  const int64_t n0 = w[0].count(), n1 = w[1].count(), n2 = w[2].count();
  for (int64_t x = 0; x < n0; ++x)
    for (int64_t y = 0; y < n1; ++y)
      for (int64_t z = 0; z < n2; ++z)
        f((x * g.window[1] + y) * g.window[2] + z,
          g.token(w[0].first + x * w[0].step, w[1].first + y * w[1].step, w[2].first + z * w[2].step));
}

/// Index of an entry in the bias table: on every axis the key's place less the query's, plus window - 1.
class BiasTable {
 public:
  BiasTable(const Tensor& table, const Grid& g, int64_t heads) : g_(g) {
    if (!table) return;
    values_.resize(static_cast<size_t>(table.numel()));
    convert(table.raw(), table.dtype(), values_.data(), DType::f32, table.numel());
    entries_ = table.numel() / std::max<int64_t>(heads, 1);
  }
  explicit operator bool() const { return !values_.empty(); }
  /// Adds the entries of query `at` to its row.
  void add(int64_t head, const AxisExtents& at, const AxisWindow (&w)[3], float* row) const {
    const float* table = values_.data() + head * entries_;
    AxisExtents origin;
    for (size_t a = 0; a < 3; ++a)
      origin[a] = w[a].first / g_.dilation[a] - at[a] / g_.dilation[a] + g_.window[a] - 1;
    for (int64_t x = 0; x < w[0].count(); ++x)
      for (int64_t y = 0; y < w[1].count(); ++y)
        for (int64_t z = 0; z < w[2].count(); ++z)
          row[(x * g_.window[1] + y) * g_.window[2] + z] +=
              table[((origin[0] + x) * (2 * g_.window[1] - 1) + origin[1] + y) * (2 * g_.window[2] - 1) +
                    origin[2] + z];
  }

 private:
  const Grid& g_;
  std::vector<float> values_;
  int64_t entries_ = 0;
};

/// A tile of queries of one dilation group and the keys between their first and last neighbour.
struct DenseTile {
  AxisWindow queries[3], keys[3];
  int64_t query_count() const { return queries[0].count() * queries[1].count() * queries[2].count(); }
  int64_t key_count() const { return keys[0].count() * keys[1].count() * keys[2].count(); }
};
std::vector<DenseTile> dense_tiles(const Grid& g, int64_t side) {
  std::array<std::vector<std::pair<AxisWindow, AxisWindow>>, 3> axes;
  for (size_t a = 0; a < 3; ++a) {
    const int64_t d = g.dilation[a];
    for (int64_t group = 0; group < d; ++group) {
      const int64_t length = (g.grid[a] - group + d - 1) / d;
      for (int64_t first = 0; first < length; first += side) {
        const int64_t last = std::min(first + side, length) - 1;
        const AxisWindow low = g.at(a, first * d + group), high = g.at(a, last * d + group);
        axes[a].push_back({{first * d + group, last * d + group + 1, d}, {low.first, high.end, d}});
      }
    }
  }
  std::vector<DenseTile> tiles;
  for (const auto& x : axes[0])
    for (const auto& y : axes[1])
      for (const auto& z : axes[2])
        tiles.push_back({{x.first, y.first, z.first}, {x.second, y.second, z.second}});
  return tiles;
}
template <class F>
void each_token(const Grid& g, const AxisWindow (&w)[3], F&& f) {
  int64_t i = 0;
  for (int64_t x = w[0].first; x < w[0].end; x += w[0].step)
    for (int64_t y = w[1].first; y < w[1].end; y += w[1].step)
      for (int64_t z = w[2].first; z < w[2].end; z += w[2].step)
        f(i++, AxisExtents{x, y, z}, g.token(x, y, z));
}
/// Calls f(entry, column among the tile's keys) for the neighbours of a query.
template <class F>
void each_column(const Grid& g, const DenseTile& t, const AxisWindow (&w)[3], F&& f) {
  const int64_t k1 = t.keys[1].count(), k2 = t.keys[2].count();
  int64_t origin[3];
  for (size_t a = 0; a < 3; ++a) origin[a] = (w[a].first - t.keys[a].first) / t.keys[a].step;
  for (int64_t x = 0; x < w[0].count(); ++x)
    for (int64_t y = 0; y < w[1].count(); ++y)
      for (int64_t z = 0; z < w[2].count(); ++z)
        f((x * g.window[1] + y) * g.window[2] + z,
          ((origin[0] + x) * k1 + origin[1] + y) * k2 + origin[2] + z);
}

/// c [m, n] = alpha a b (b transposed or not), all packed f32 rows.
struct Product {
  int64_t m, n, k;
  bool b_transposed;
  float alpha;
  int64_t panels() const {
    const GemmTile tile = ATTNBENCH_BEST(gemm_tile)();
    return (n + tile.columns - 1) / tile.columns * tile.columns * k;
  }
  int64_t workspace() const { return ATTNBENCH_BEST(gemm_workspace)(m, k); }
  void operator()(const float* a, const float* b, float* c, float* panels, float* work) const {
    GemmProduct p{};
    p.dtype = DType::f32, p.m = m, p.n = n, p.k = k;
    p.a = a, p.b = b, p.c = c;
    p.lda = k, p.ldb = b_transposed ? k : n, p.ldc = n, p.tb = b_transposed;
    p.alpha = alpha, p.activation = Activation::none;
    ATTNBENCH_BEST(gemm_pack_b)(p, 0, n, panels);
    ATTNBENCH_BEST(gemm_block)(p, 0, m, 0, n, panels, work);
  }
};

/// Every thread's f32 memory for the largest tile: queries [Q, D], keys [K, D], a product [Q, K] and what
/// packing takes.
class TileSpace {
 public:
  TileSpace(Context& ctx, const std::vector<DenseTile>& tiles, int64_t d, bool product, bool values) {
    int64_t queries = 1, keys = 1;
    for (const DenseTile& t : tiles)
      queries = std::max(queries, t.query_count()), keys = std::max(keys, t.key_count());
    const Product largest = values ? Product{queries, d, keys, false, 1} : Product{queries, keys, d, true, 1};
    const auto room = [](int64_t floats) { return (floats + 15) / 16 * 16; };
    at_[1] = room(queries * d), at_[2] = at_[1] + room(keys * d);
    at_[3] = at_[2] + (product ? room(queries * keys) : 0);
    at_[4] = at_[3] + (product ? room(largest.panels()) : 0);
    stride_ = at_[4] + (product ? room(largest.workspace()) : 0) + 16;
    memory_ = ctx.allocate(DType::f32, {ctx.threads(), stride_});
  }
  float* queries() const { return part(0); }
  float* keys() const { return part(1); }
  float* product() const { return part(2); }
  float* panels() const { return part(3); }
  float* work() const { return part(4); }

 private:
  float* part(int i) const { return memory_.data<float>() + thread_index() * stride_ + at_[i]; }
  Tensor memory_;
  int64_t at_[5] = {}, stride_ = 0;
};

void naive_scores(Context& ctx, const NeighborhoodScoresArgs& args) {
  const Grid g(args.rule);
  const Rows q(args.q), k(args.k);
  const int64_t heads = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3), w = g.entries();
  const int64_t group = heads / args.k.dim(1);
  const BiasTable bias(args.bias, g, heads);
  const auto dots = ATTNBENCH_BEST(neighborhood_dots);
  const Rows out(args.a);
  parallel_range(ctx.threads(), args.q.dim(0) * heads * n, std::max<int64_t>(1, kParallelBytes / (w * d * 4)),
                 [&](int64_t begin, int64_t end) {
                   std::vector<const void*> rows(static_cast<size_t>(w));
                   std::vector<int64_t> entry(static_cast<size_t>(w));
                   std::vector<float> score(static_cast<size_t>(w));
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t i = r % n, h = r / n % heads, b = r / n / heads;
                     const AxisExtents at = g.place(i);
                     const AxisWindow window[3] = {g.at(0, at[0]), g.at(1, at[1]), g.at(2, at[2])};
                     int64_t count = 0;
                     each_neighbor(g, window, [&](int64_t t, int64_t token) {
                       rows[static_cast<size_t>(count)] = k.at(b, h / group, token);
                       entry[static_cast<size_t>(count++)] = t;
                     });
                     float* row = out.floats(b, h, i);
                     if (count == w) {
                       dots(args.q.dtype(), q.at(b, h, i), rows.data(), count, d, args.scale, row);
                     } else {
                       dots(args.q.dtype(), q.at(b, h, i), rows.data(), count, d, args.scale, score.data());
                       std::fill(row, row + w, -kInfinity);
                       for (int64_t x = 0; x < count; ++x)
                         row[entry[static_cast<size_t>(x)]] = score[static_cast<size_t>(x)];
                     }
                     if (bias) bias.add(h, at, window, row);
                   }
                 });
}

/// Scores from tiles: as a dense product, or dot by dot from keys kept in f32.
void tile_scores(Context& ctx, const NeighborhoodScoresArgs& args, int64_t side, bool dense) {
  const Grid g(args.rule);
  const Rows q(args.q), k(args.k);
  const DType dtype = args.q.dtype();
  const int64_t heads = args.q.dim(1), d = args.q.dim(3), w = g.entries();
  const int64_t group = heads / args.k.dim(1);
  const BiasTable bias(args.bias, g, heads);
  const auto dots = ATTNBENCH_BEST(neighborhood_dots);
  const auto widen = ATTNBENCH_BEST(neighborhood_widen);
  const std::vector<DenseTile> tiles = dense_tiles(g, side);
  const auto count = static_cast<int64_t>(tiles.size());
  const Rows out(args.a);
  const TileSpace space(ctx, tiles, d, dense, false);
  parallel_items(ctx.threads(), args.q.dim(0) * heads * count, [&](int64_t item) {
    const DenseTile& t = tiles[static_cast<size_t>(item % count)];
    const int64_t h = item / count % heads, b = item / count / heads;
    const int64_t queries = t.query_count(), keys = t.key_count();
    float *kq = space.queries(), *kk = space.keys(), *s = space.product();
    each_token(g, t.queries, [&](int64_t i, const AxisExtents&, int64_t token) {
      widen(dtype, q.at(b, h, token), d, kq + i * d);
    });
    each_token(g, t.keys, [&](int64_t j, const AxisExtents&, int64_t token) {
      widen(dtype, k.at(b, h / group, token), d, kk + j * d);
    });
    if (dense) Product{queries, keys, d, true, args.scale}(kq, kk, s, space.panels(), space.work());
    std::vector<const void*> rows(static_cast<size_t>(w));
    each_token(g, t.queries, [&](int64_t i, const AxisExtents& at, int64_t token) {
      const AxisWindow window[3] = {g.at(0, at[0]), g.at(1, at[1]), g.at(2, at[2])};
      float* row = out.floats(b, h, token);
      each_column(g, t, window, [&](int64_t entry, int64_t column) {
        if (dense)
          row[entry] = s[i * keys + column];
        else
          rows[static_cast<size_t>(entry)] = kk + column * d;
      });
      if (!dense) dots(DType::f32, kq + i * d, rows.data(), w, d, args.scale, row);
      if (bias) bias.add(h, at, window, row);
    });
  });
}

void naive_values(Context& ctx, const NeighborhoodValuesArgs& args) {
  const Grid g(args.rule);
  const Rows v(args.v), o(args.o);
  const int64_t heads = args.o.dim(1), n = args.o.dim(2), e = args.o.dim(3), w = g.entries();
  const int64_t group = heads / args.v.dim(1);
  const auto sum = ATTNBENCH_BEST(neighborhood_sum);
  const Rows weights(args.a);
  parallel_range(ctx.threads(), args.o.dim(0) * heads * n, std::max<int64_t>(1, kParallelBytes / (w * e * 4)),
                 [&](int64_t begin, int64_t end) {
                   std::vector<const void*> rows(static_cast<size_t>(w));
                   std::vector<float> some(static_cast<size_t>(w));
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t i = r % n, h = r / n % heads, b = r / n / heads;
                     const AxisExtents at = g.place(i);
                     const AxisWindow window[3] = {g.at(0, at[0]), g.at(1, at[1]), g.at(2, at[2])};
                     const float* row = weights.floats(b, h, i);
                     int64_t count = 0;
                     each_neighbor(g, window, [&](int64_t t, int64_t token) {
                       rows[static_cast<size_t>(count)] = v.at(b, h / group, token);
                       some[static_cast<size_t>(count++)] = row[t];
                     });
                     sum(args.v.dtype(), some.data(), rows.data(), count, e, o.at(b, h, i));
                   }
                 });
}

void dense_values(Context& ctx, const NeighborhoodValuesArgs& args) {
  const Grid g(args.rule);
  const Rows v(args.v), o(args.o);
  const DType dtype = args.v.dtype();
  const int64_t heads = args.o.dim(1), e = args.o.dim(3);
  const int64_t group = heads / args.v.dim(1);
  const auto widen = ATTNBENCH_BEST(neighborhood_widen);
  const std::vector<DenseTile> tiles =
      dense_tiles(g, neighborhood_gemm_tile(args.rule.rank, args.rule.window[0]));
  const auto count = static_cast<int64_t>(tiles.size());
  const Rows weights(args.a);
  const TileSpace space(ctx, tiles, e, true, true);
  parallel_items(ctx.threads(), args.o.dim(0) * heads * count, [&](int64_t item) {
    const DenseTile& t = tiles[static_cast<size_t>(item % count)];
    const int64_t h = item / count % heads, b = item / count / heads;
    const int64_t queries = t.query_count(), keys = t.key_count();
    float *y = space.queries(), *vv = space.keys(), *p = space.product();
    std::fill(p, p + queries * keys, 0.0f);
    each_token(g, t.keys, [&](int64_t j, const AxisExtents&, int64_t token) {
      widen(dtype, v.at(b, h / group, token), e, vv + j * e);
    });
    each_token(g, t.queries, [&](int64_t i, const AxisExtents& at, int64_t token) {
      const AxisWindow window[3] = {g.at(0, at[0]), g.at(1, at[1]), g.at(2, at[2])};
      const float* row = weights.floats(b, h, token);
      each_column(g, t, window, [&](int64_t entry, int64_t column) { p[i * keys + column] = row[entry]; });
    });
    Product{queries, e, keys, false, 1.0f}(p, vv, y, space.panels(), space.work());
    each_token(g, t.queries, [&](int64_t i, const AxisExtents&, int64_t token) {
      convert(y + i * e, DType::f32, o.at(b, h, token), dtype, e);
    });
  });
}

}  // namespace

// Side of the query tiles whose keys the tiled form keeps: of the original's two-dimensional kernels.
constexpr int64_t kTiledSide = 8;

void CpuBackend::neighborhood_scores(Context& ctx, const NeighborhoodScoresArgs& args) {
  if (args.kernel == NeighborhoodKernel::naive) return naive_scores(ctx, args);
  const bool dense = args.kernel == NeighborhoodKernel::gemm;
  tile_scores(ctx, args, dense ? neighborhood_gemm_tile(args.rule.rank, args.rule.window[0]) : kTiledSide,
              dense);
}

void CpuBackend::neighborhood_values(Context& ctx, const NeighborhoodValuesArgs& args) {
  if (args.kernel == NeighborhoodKernel::gemm) return dense_values(ctx, args);
  naive_values(ctx, args);
}

}  // namespace attnbench
