#include "kernels/select/pattern_steps.hpp"

#include <algorithm>

#include "kernels/core/backend.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/softmax/softmax.hpp"

namespace attnbench {

namespace {

/// The maps of 32 heads at R = 128 and N = 128K would take 2 GiB.
constexpr int64_t kMapBytes = int64_t{512} << 20;

}  // namespace

void line_sums_in_steps(Context& ctx, const LineSumsArgs& args) {
  const int64_t heads = args.q.dim(1), kv = args.k.dim(1), group = heads / kv, R = args.q.dim(2),
                N = args.k.dim(2), D = args.q.dim(3);
  const Shape lines{args.q.dim(0), kv, group, N};
  const Tensor vertical = args.vertical.reshape(lines), slash = args.slash.reshape(lines);
  const int64_t together = std::clamp<int64_t>(kMapBytes / (4 * group * R * N), 1, kv);
  for (int64_t b = 0; b < args.q.dim(0); ++b)
    for (int64_t first = 0; first < kv; first += together) {
      const int64_t last = std::min(kv, first + together);
      const Tensor q = args.q.select(0, b), k = args.k.select(0, b).slice(0, first, last);
      GemmArgs product;
      product.a = q.strided({last - first, group, R, D}, {group * q.stride(0), q.stride(0), q.stride(1), 1},
                            first * group * q.stride(0));
      product.b = k.strided({last - first, group, N, D}, {k.stride(0), 0, k.stride(1), 1});
      product.b_transposed = true;
      product.c = ctx.allocate(DType::f32, {last - first, group, R, N});
      product.alpha = args.scale;
      ctx.backend().gemm(ctx, product);
      ctx.backend().softmax(ctx, {product.c, product.c, true, N - R});
      LineSumsArgs sums;
      sums.x = product.c;
      sums.vertical = vertical.select(0, b).slice(0, first, last);
      sums.slash = slash.select(0, b).slice(0, first, last);
      ctx.backend().line_sums(ctx, sums);
    }
}

void cell_sums_in_steps(Context& ctx, const CellSumsArgs& args) {
  ctx.backend().softmax(ctx, {args.x, args.x, args.causal, args.causal_offset});
  CellSumsArgs sums = args;
  sums.softmax = false;
  ctx.backend().cell_sums(ctx, sums);
}

}  // namespace attnbench
