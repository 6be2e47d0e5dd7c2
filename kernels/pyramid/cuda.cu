// A thread per value of a pyramid's level; a warp per image walks the pixels that need the redraw stream in
// order.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/pyramid/channel.hpp"
#include "kernels/pyramid/pyramid.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

__device__ int64_t mirrored(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

struct FilterWork {
  const float *x, *taps, *minuend;
  float* y;
  int64_t outer, from, to, inner, count;  // lines of `from` values, `inner` apart; `to` of the result
  bool expand;
};

/// One axis: y[outer][to][inner] from x[outer][from][inner].
__global__ void __launch_bounds__(kThreads) filter_kernel(FilterWork w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = w.outer * w.to * w.inner;
  const int64_t reach = w.count / 2;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t line = divide(i, w.inner), c = i - line * w.inner, o = divide(line, w.to),
                  j = line - o * w.to;
    const float* x = w.x + o * w.from * w.inner + c;
    float sum = 0.0f;
    for (int64_t k = 0; k < w.count; ++k) {
      int64_t at = w.expand ? mirrored(j + k - reach, w.to) : mirrored(2 * j + k - reach, w.from);
      if (w.expand) {
        if (at % 2 != 0) continue;
        at /= 2;
      }
      sum += w.taps[k] * x[at * w.inner];
    }
    w.y[i] = w.minuend ? w.minuend[i] - sum : sum;
  }
}

struct RepairWork {
  const float *v, *s, *redraw, *sigma;
  float* y;
  int64_t images, pixels, stream, v_row, s_row, redraw_row, y_row;
  float gap;
};

/// One warp per image: 32 pixels at a time, and the rare ones that redraw one after the other, by lane 0.
__global__ void __launch_bounds__(32) repair_kernel(RepairWork w) {
  for (int64_t b = blockIdx.x; b < w.images; b += gridDim.x) {
    const float *v = w.v + b * w.v_row, *s = w.s + b * w.s_row, *redraw = w.redraw + b * w.redraw_row;
    float* y = w.y + b * w.y_row;
    const float sigma = w.sigma[b];
    int64_t used = 0;  // the same in all lanes
    for (int64_t i0 = 0; i0 < w.pixels; i0 += 32) {
      const int64_t i = i0 + threadIdx.x;
      const bool inside = i < w.pixels;
      const float vi = inside ? v[i] : 0.0f, si = inside ? s[i] : 0.0f;
      const bool redraws = inside && sigma != 0.0f && needs_redraw(vi, si, w.gap);
      float result = sigma == 0.0f ? vi : moved_pixel(vi, si, w.gap);
      unsigned waiting = __ballot_sync(0xffffffffu, redraws);
      while (waiting != 0) {
        const int lane = __ffs(static_cast<int>(waiting)) - 1;
        waiting &= waiting - 1;
        const float value = __shfl_sync(0xffffffffu, vi, lane);
        const float drawn =
            redrawn_pixel(value, redraw, w.stream, sigma, &used);  // all lanes: the stream stays common
        if (static_cast<int>(threadIdx.x) == lane) result = drawn;
      }
      if (inside) y[i] = result;
    }
  }
}

struct FitWork {
  const float* accuracy;
  int32_t* threshold;
  double* fit;
  int64_t rows, levels, bands;
  double pass, lowest_center;
};

__global__ void __launch_bounds__(32) fit_kernel(FitWork w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * 32;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x; b < w.rows; b += step)
    channel_of_row(w.accuracy + b * w.levels * w.bands, w.levels, w.bands, w.pass, w.lowest_center,
                   w.threshold + b * w.bands, w.fit + b, w.rows);
}

}  // namespace

void CudaBackend::pyramid_level(Context& ctx, const PyramidArgs& args) {
  const int64_t images = args.x.dim(0), h = args.x.dim(1), w = args.x.dim(2), to_h = args.y.dim(1),
                to_w = args.y.dim(2);
  const Tensor rows = ctx.allocate(DType::f32, {images, h, to_w});
  const auto* taps = static_cast<const float*>(args.taps.raw());
  const auto* minuend = args.subtract_from ? static_cast<const float*>(args.subtract_from.raw()) : nullptr;
  const FilterWork along{static_cast<const float*>(args.x.raw()),
                         taps,
                         nullptr,
                         static_cast<float*>(rows.raw()),
                         images * h,
                         w,
                         to_w,
                         1,
                         args.taps.dim(0),
                         args.expand};
  filter_kernel<<<grid_for(ctx, rows.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(along);
  CUDA_CHECK_LAUNCH();
  const FilterWork down{static_cast<const float*>(rows.raw()),
                        taps,
                        minuend,
                        static_cast<float*>(args.y.raw()),
                        images,
                        h,
                        to_h,
                        to_w,
                        args.taps.dim(0),
                        args.expand};
  filter_kernel<<<grid_for(ctx, args.y.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(down);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::repair_range(Context& ctx, const RepairRangeArgs& args) {
  const RepairWork w{static_cast<const float*>(args.v.raw()),
                     static_cast<const float*>(args.s.raw()),
                     static_cast<const float*>(args.redraw.raw()),
                     static_cast<const float*>(args.sigma.raw()),
                     static_cast<float*>(args.y.raw()),
                     args.v.dim(0),
                     args.v.dim(1),
                     args.redraw.dim(1),
                     args.v.stride(0),
                     args.s.stride(0),
                     args.redraw.stride(0),
                     args.y.stride(0),
                     args.gap};
  repair_kernel<<<grid_for(ctx, w.images * 32, 32), 32, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::channel_fit(Context& ctx, const ChannelFitArgs& args) {
  const FitWork w{static_cast<const float*>(args.accuracy.raw()),
                  static_cast<int32_t*>(args.threshold.raw()),
                  static_cast<double*>(args.fit.raw()),
                  args.accuracy.dim(0),
                  args.accuracy.dim(1),
                  args.accuracy.dim(2),
                  args.pass,
                  args.lowest_center};
  fit_kernel<<<grid_for(ctx, w.rows, 32), 32, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
