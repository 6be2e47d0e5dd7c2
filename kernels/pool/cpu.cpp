#include <cmath>
#include <limits>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/pool/geometry.hpp"
#include "kernels/pool/pool.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/pool/pool_body.hpp"

namespace attnbench {

void CpuBackend::avg_pool2d(Context& ctx, const AvgPool2dArgs& args) {
  const auto run = ATTNBENCH_BEST(pool_cell);
  const Tensor &x = args.x, &y = args.y;
  const auto size = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t height = x.dim(1), width = x.dim(2), channels = x.dim(3), ho = y.dim(1), wo = y.dim(2);
  // Cells that do not overlap are the adaptive ones whose borders divide evenly.
  const auto first = [](int64_t i, int64_t in, int64_t out) { return i * in / out; };
  const auto last = [](int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; };
  const int64_t cell_bytes = channels * size * (1 + std::max<int64_t>(height * width / (ho * wo), 1));
  parallel_range(
      ctx.threads(), y.dim(0) * ho * wo, std::max<int64_t>(kParallelBytes / cell_bytes, 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / (ho * wo), oy = i / wo % ho, ox = i % wo;
          const int64_t h0 = first(oy, height, ho), h1 = last(oy, height, ho);
          const int64_t w0 = first(ox, width, wo), w1 = last(ox, width, wo);
          run(x.dtype(),
              static_cast<const char*>(x.raw()) +
                  (b * x.stride(0) + h0 * x.stride(1) + w0 * x.stride(2)) * size,
              x.stride(1), x.stride(2), h1 - h0, w1 - w0,
              static_cast<char*>(y.raw()) + (b * y.stride(0) + oy * y.stride(1) + ox * y.stride(2)) * size,
              channels, 1.0f / static_cast<float>((h1 - h0) * (w1 - w0)));
        }
      });
}

namespace {

/// Channel-first planes, one output at a time: windows are small and their rows short.
template <class T>
void pool_planes(Context& ctx, const Pool2dArgs& args, const PoolAxis& rows, const PoolAxis& columns) {
  const Tensor &x = args.x, &y = args.y;
  const int64_t channels = x.dim(1);
  const bool max = args.kind == Pool2dArgs::Kind::max;
  const int64_t plane_bytes =
      (rows.in * columns.in + rows.out * columns.out) * static_cast<int64_t>(sizeof(T));
  parallel_range(ctx.threads(), x.dim(0) * channels, std::max<int64_t>(kParallelBytes / plane_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / channels, c = i % channels;
                     const T* from = static_cast<const T*>(x.raw()) + b * x.stride(0) + c * x.stride(1);
                     T* to = static_cast<T*>(y.raw()) + b * y.stride(0) + c * y.stride(1);
                     for (int64_t oy = 0; oy < rows.out; ++oy)
                       for (int64_t ox = 0; ox < columns.out; ++ox) {
                         float sum = max ? -std::numeric_limits<float>::infinity() : 0.0f;
                         for (int64_t h = rows.begin(oy); h < rows.end(oy); ++h)
                           for (int64_t w = columns.begin(ox); w < columns.end(ox); ++w) {
                             const auto v = static_cast<float>(from[h * x.stride(2) + w]);
                             sum = !max ? sum + v : (sum > v || std::isnan(sum) ? sum : v);
                           }
                         if (!max)
                           sum *= 1.0f / static_cast<float>(rows.counted(oy, args.count_padding) *
                                                            columns.counted(ox, args.count_padding));
                         to[oy * y.stride(2) + ox] = T(sum);
                       }
                   }
                 });
}

}  // namespace

void CpuBackend::pool2d(Context& ctx, const Pool2dArgs& args) {
  const PoolAxis rows(args, 0), columns(args, 1);
  const Tensor &x = args.x, &y = args.y;
  if (!args.channels_last) {
    if (x.dtype() == DType::f32) return pool_planes<float>(ctx, args, rows, columns);
    if (x.dtype() == DType::bf16) return pool_planes<bf16>(ctx, args, rows, columns);
    return pool_planes<f16>(ctx, args, rows, columns);
  }
  const auto average = ATTNBENCH_BEST(pool_cell);
  const auto max = ATTNBENCH_BEST(pool_cell_max);
  const auto size = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t channels = x.dim(3), ho = rows.out, wo = columns.out;
  const int64_t cell_bytes = channels * size * (1 + rows.counted(0, true) * columns.counted(0, true));
  parallel_range(ctx.threads(), y.dim(0) * ho * wo, std::max<int64_t>(kParallelBytes / cell_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / (ho * wo), oy = i / wo % ho, ox = i % wo;
                     const int64_t h0 = rows.begin(oy), h1 = rows.end(oy), w0 = columns.begin(ox),
                                   w1 = columns.end(ox);
                     const void* from = static_cast<const char*>(x.raw()) +
                                        (b * x.stride(0) + h0 * x.stride(1) + w0 * x.stride(2)) * size;
                     void* to = static_cast<char*>(y.raw()) +
                                (b * y.stride(0) + oy * y.stride(1) + ox * y.stride(2)) * size;
                     if (args.kind == Pool2dArgs::Kind::max)
                       max(x.dtype(), from, x.stride(1), x.stride(2), h1 - h0, w1 - w0, to, channels);
                     else
                       average(x.dtype(), from, x.stride(1), x.stride(2), h1 - h0, w1 - w0, to, channels,
                               1.0f / static_cast<float>(rows.counted(oy, args.count_padding) *
                                                         columns.counted(ox, args.count_padding)));
                   }
                 });
}

}  // namespace attnbench
