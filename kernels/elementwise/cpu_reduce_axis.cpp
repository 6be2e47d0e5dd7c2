// reduce_axis on the CPU: lines along an outer axis side by side, in tiles of columns that stay in the cache.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/norm/norm_rows.hpp"

namespace attnbench {
namespace {

using Op = ReduceAxisArgs::Op;

/// Columns of a tile: their sums are 8 KiB.
constexpr int64_t kTile = 512;

double finish(Op op, double sum, double squares, int64_t n) {
  const auto count = static_cast<double>(n);
  switch (op) {
    case Op::sum:
      return sum;
    case Op::mean:
      return sum / count;
    case Op::squares:
      return squares;
    case Op::norm:
      return std::sqrt(squares);
    default: {
      const double mean = sum / count, variance = squares / count - mean * mean;
      const double positive = variance < 0 ? 0.0 : variance;  // NaN passes
      return op == Op::variance ? positive : std::sqrt(positive);
    }
  }
}

}  // namespace

void CpuBackend::reduce_axis(Context& ctx, const ReduceAxisArgs& args) {
  const int axis = args.axis < 0 ? args.axis + args.x.rank() : args.axis;
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < args.x.rank(); ++i) (i < axis ? outer : inner) *= i == axis ? 1 : args.x.dim(i);
  const int64_t n = args.x.dim(axis);
  const DType t = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(t)),
             out_size = static_cast<int64_t>(size_of(args.y.dtype()));
  const auto each = ATTNBENCH_BEST(add_moments);
  const auto one = ATTNBENCH_BEST(add_moments_one);
  const bool extreme = args.op == Op::max || args.op == Op::min;
  const float sign = args.op == Op::min ? -1.0f : 1.0f;
  const auto* x = static_cast<const char*>(args.x.raw());
  auto* y = static_cast<char*>(args.y.raw());
  const int64_t tiles = (inner + kTile - 1) / kTile;
  const int64_t item_bytes = std::max<int64_t>(n * std::min(inner, kTile) * size, 1);
  parallel_range(ctx.threads(), outer * tiles, std::max<int64_t>(kParallelBytes / item_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   double sum[kTile], squares[kTile];
                   float values[kTile], result[kTile];
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t o = item / tiles, first = item % tiles * kTile,
                                   count = std::min(kTile, inner - first);
                     const char* from = x + (o * n * inner + first) * size;
                     if (extreme) {
                       std::fill(result, result + count, -std::numeric_limits<float>::infinity());
                       for (int64_t i = 0; i < n; ++i) {
                         convert(from + i * inner * size, t, values, DType::f32, count);
                         for (int64_t c = 0; c < count; ++c) {
                           const float v = sign * values[c];
                           result[c] = result[c] > v || result[c] != result[c] ? result[c] : v;
                         }
                       }
                       for (int64_t c = 0; c < count; ++c) result[c] *= sign;
                     } else {
                       std::fill(sum, sum + count, 0.0);
                       std::fill(squares, squares + count, 0.0);
                       if (inner == 1)
                         one(t, from, n, sum, squares);
                       else
                         for (int64_t i = 0; i < n; ++i)
                           each(t, from + i * inner * size, count, sum, squares);
                       for (int64_t c = 0; c < count; ++c)
                         result[c] = static_cast<float>(finish(args.op, sum[c], squares[c], n));
                     }
                     convert(result, DType::f32, y + (o * inner + first) * out_size, args.y.dtype(), count);
                   }
                 });
}

}  // namespace attnbench
