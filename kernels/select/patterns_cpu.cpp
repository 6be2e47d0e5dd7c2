#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/select/pattern_steps.hpp"

namespace attnbench {

namespace {

int64_t grain_for(int64_t bytes) {
  return std::max<int64_t>(1, kParallelBytes / std::max<int64_t>(bytes, 1));
}

bool is_set(const Tensor& t, int64_t i) {
  return t.dtype() == DType::u8 ? t.data<uint8_t>()[i] != 0 : t.data<int32_t>()[i] != 0;
}

}  // namespace

void CpuBackend::line_sums(Context& ctx, const LineSumsArgs& args) {
  if (!args.x) return line_sums_in_steps(ctx, args);
  const RowOffsets maps(args.x, 2);
  const int64_t rows = args.x.dim(-2), n = args.x.dim(-1), stride = args.x.stride(-2);
  const float* x = args.x.data<float>();
  float *vertical = args.vertical.data<float>(), *slash = args.slash.data<float>();
  // Strips of columns, so that the sums stay in the first-level cache and few maps still use every thread.
  constexpr int64_t kStrip = 1024;
  const int64_t strips = (n + kStrip - 1) / kStrip;
  const double by = static_cast<double>(rows);
  parallel_range(ctx.threads(), maps.count() * strips, grain_for(rows * kStrip * 8),
                 [&](int64_t begin, int64_t end) {
                   double sum[kStrip];
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t map = item / strips, first = item % strips * kStrip,
                                   last = std::min(n, first + kStrip);
                     const float* from = x + maps.offset(map);
                     std::fill(sum, sum + kStrip, 0.0);
                     for (int64_t i = 0; i < rows; ++i)
                       for (int64_t j = first; j < last; ++j)
                         sum[j - first] += static_cast<double>(from[i * stride + j]);
                     for (int64_t j = first; j < last; ++j)
                       vertical[map * n + j] = static_cast<float>(sum[j - first] / by);
                     std::fill(sum, sum + kStrip, 0.0);
                     for (int64_t i = 0; i < rows; ++i) {
                       const int64_t shift = i - (rows - 1);
                       for (int64_t c = std::max(first, -shift); c < last; ++c)
                         sum[c - first] += static_cast<double>(from[i * stride + c + shift]);
                     }
                     for (int64_t c = first; c < last; ++c)
                       slash[map * n + c] = static_cast<float>(sum[c - first] / by);
                   }
                 });
}

void CpuBackend::cell_sums(Context& ctx, const CellSumsArgs& args) {
  if (args.softmax) return cell_sums_in_steps(ctx, args);
  const RowOffsets maps(args.x, 2), rows_of_y(args.y, 1);
  const int64_t rows = args.x.dim(-2), columns = args.x.dim(-1), stride = args.x.stride(-2);
  const int64_t down = args.y.dim(-2), across = args.y.dim(-1);
  parallel_range(ctx.threads(), maps.count() * down, grain_for(args.rows * columns * 4),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t item = begin; item < end; ++item) {
                     const int64_t r = item % down;
                     const float* from = args.x.data<float>() + maps.offset(item / down);
                     float* to = args.y.data<float>() + rows_of_y.offset(item);
                     for (int64_t c = 0; c < across; ++c) {
                       double sum = 0;
                       if (!args.causal_cells || c <= r)
                         for (int64_t i = r * args.rows; i < std::min(rows, (r + 1) * args.rows); ++i)
                           for (int64_t j = c * args.columns; j < std::min(columns, (c + 1) * args.columns);
                                ++j)
                             sum += static_cast<double>(from[i * stride + j]);
                       to[c] = static_cast<float>(sum);
                     }
                   }
                 });
}

void CpuBackend::js_distance(Context& ctx, const DistanceArgs& args) {
  const RowOffsets as(args.a, 1), bs(args.b, 1);
  const int64_t n = args.a.dim(-1);
  parallel_range(ctx.threads(), as.count(), grain_for(64 * n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *a = args.a.data<float>() + as.offset(row), *b = args.b.data<float>() + bs.offset(row);
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        const double p = static_cast<double>(a[j]), q = static_cast<double>(b[j]), m = 0.5 * (p + q);
        if (p > 0) sum += p * std::log(p / m);
        if (q > 0) sum += q * std::log(q / m);
      }
      const auto distance = static_cast<float>(std::sqrt(std::max(0.5 * sum, 0.0)));
      args.distance.data<float>()[row] = distance;
      if (args.below) args.below.data<int32_t>()[row] = static_cast<double>(distance) < args.threshold;
    }
  });
}

void CpuBackend::count_rule(Context& ctx, const CountRuleArgs& args) {
  const int64_t n = args.y.numel();
  parallel_range(ctx.threads(), n, grain_for(12), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x = args.x ? args.x.data<int32_t>()[i] : 0;
      const int64_t y =
          std::clamp<int64_t>((x + args.before) / args.divisor + args.after, args.low, args.high);
      args.y.data<int32_t>()[i] =
          args.flag && args.flag.data<int32_t>()[i] != 0 ? args.when_set : static_cast<int32_t>(y);
    }
  });
}

void CpuBackend::mask_values(Context& ctx, const MaskValuesArgs& args) {
  parallel_range(ctx.threads(), args.y.numel(), grain_for(16), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bool kept = is_set(args.first, i) == args.first_set &&
                        (!args.second || is_set(args.second, i) == args.second_set);
      args.y.data<float>()[i] = kept ? args.x.data<float>()[i] : 0.0f;
    }
  });
}

void CpuBackend::block_affine(Context& ctx, const BlockAffineArgs& args) {
  const int64_t heads = args.x.dim(1), n = args.x.dim(2), d = args.x.dim(3);
  const DType type = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(type));
  std::vector<std::vector<float>> rows(static_cast<size_t>(ctx.threads()),
                                       std::vector<float>(static_cast<size_t>(d)));
  parallel_range(
      ctx.threads(), args.x.dim(0) * heads * n, grain_for(2 * d * size), [&](int64_t begin, int64_t end) {
        float* row = rows[static_cast<size_t>(thread_index())].data();
        for (int64_t item = begin; item < end; ++item) {
          const int64_t t = item % n, h = item / n % heads, b = item / n / heads, s = t / args.block;
          const float factor =
              args.factor.data<float>()[b * args.factor.stride(0) + h * args.factor.stride(1) + s];
          const float* add = args.add.data<float>() + b * args.add.stride(0) + h * args.add.stride(1) +
                             s * args.add.stride(2);
          convert(static_cast<const char*>(args.x.raw()) +
                      (b * args.x.stride(0) + h * args.x.stride(1) + t * args.x.stride(2)) * size,
                  type, row, DType::f32, d);
          for (int64_t c = 0; c < d; ++c) row[c] = factor * row[c] + add[c];
          convert(row, DType::f32,
                  static_cast<char*>(args.y.raw()) +
                      (b * args.y.stride(0) + h * args.y.stride(1) + t * args.y.stride(2)) * size,
                  type, d);
        }
      });
}

}  // namespace attnbench
