// Bicubic resizing on CUDA: taps tabulated once per axis in double, then a thread per column of a few
// outputs, which keeps the rows it has blended horizontally.
#include <limits>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/resample/resample.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

struct Taps {
  int32_t at[4];
  float weight[4];
};

/// Keys' cubic with a = -0.75 around source = (i + 0.5) * in / out - 0.5, positions clamped to the edge.
__device__ Taps taps_of(int64_t i, int64_t in, int64_t out) {
  constexpr double a = -0.75;
  const auto near = [](double t) { return ((a + 2) * t - (a + 3)) * t * t + 1; };       // |t| <= 1
  const auto far = [](double t) { return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a; };  // 1 < |t| < 2
  const double source =
      (static_cast<double>(i) + 0.5) * (static_cast<double>(in) / static_cast<double>(out)) - 0.5;
  const double low = floor(source), t = source - low;
  Taps tap;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t at = static_cast<int64_t>(low) - 1 + j;
    tap.at[j] = static_cast<int32_t>(at < 0 ? 0 : at >= in ? in - 1 : at);
  }
  tap.weight[0] = static_cast<float>(far(t + 1));
  tap.weight[1] = static_cast<float>(near(t));
  tap.weight[2] = static_cast<float>(near(1 - t));
  tap.weight[3] = static_cast<float>(far(2 - t));
  return tap;
}

/// taps[0, ho) are those of rows, taps[ho, ho + wo) those of columns.
__global__ void __launch_bounds__(kThreads)
    taps_kernel(Taps* taps, int64_t height, int64_t ho, int64_t width, int64_t wo) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < ho + wo; i += step)
    taps[i] = i < ho ? taps_of(i, height, ho) : taps_of(i - ho, width, wo);
}

constexpr int kColumnRows = 8;  // outputs of a thread, one below the other

template <class T>
__global__ void __launch_bounds__(kThreads)
    resize_kernel(const T* x, T* y, const Taps* taps, int64_t planes, int64_t height, int64_t width,
                  int64_t ho, Divisor wo, Divisor strips, bool clamp01) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = planes * strips.n * wo.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t strip_line = wo.of(i), column = i - strip_line * wo.n;
    const int64_t plane = strips.of(strip_line), first = (strip_line - plane * strips.n) * kColumnRows;
    const Taps h = taps[ho + column];
    const T* image = x + plane * height * width;
    T* out = y + plane * ho * wo.n + column;
    // blended[k] belongs to input row at[k]; -1: none yet.
    float blended[4] = {};
    int32_t at[4] = {-1, -1, -1, -1};
    const int64_t end = min(first + kColumnRows, ho);
    for (int64_t row = first; row < end; ++row) {
      const Taps v = taps[row];
      float next[4], s = 0.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // Rows advance, so a row that is known is the same tap of the last output or a later one. The whole
        // warp takes the same way except where it spans strips.
        int known = -1;
        float value = 0.0f;
#pragma unroll
        for (int j = 3; j >= 0; --j)
          if (at[j] == v.at[k]) known = j, value = blended[j];
        if (known < 0) {
          const T* line = image + v.at[k] * width;
#pragma unroll
          for (int j = 0; j < 4; ++j) value += h.weight[j] * widen(line[h.at[j]]);
        }
        next[k] = value;
        s += v.weight[k] * value;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) blended[k] = next[k], at[k] = v.at[k];
      if (clamp01) s = s < 0.0f ? 0.0f : (s > 1.0f ? 1.0f : s);  // NaN passes
      out[row * wo.n] = narrow<T>(s);
    }
  }
}

}  // namespace

void CudaBackend::resize_bicubic(Context& ctx, const ResizeArgs& args) {
  const int64_t height = args.x.dim(2), width = args.x.dim(3), ho = args.y.dim(2), wo = args.y.dim(3);
  if (height > std::numeric_limits<int32_t>::max() || width > std::numeric_limits<int32_t>::max())
    throw Unsupported("resize_bicubic: the image " + args.x.shape().str() +
                      " has an axis beyond 2^31 - 1 pixels");
  const int64_t planes = args.x.dim(0) * args.x.dim(1);
  const Tensor table = ctx.allocate(DType::u8, {(ho + wo) * static_cast<int64_t>(sizeof(Taps))});
  auto* taps = static_cast<Taps*>(table.raw());
  taps_kernel<<<grid_for(ctx, ho + wo, kThreads), kThreads, 0, stream_of(ctx)>>>(taps, height, ho, width, wo);
  CUDA_CHECK_LAUNCH();
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t strips = (ho + kColumnRows - 1) / kColumnRows;
    resize_kernel<T><<<grid_for(ctx, planes * strips * wo, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const T*>(args.x.raw()), static_cast<T*>(args.y.raw()), taps, planes, height, width, ho,
        Divisor(wo), Divisor(strips), args.clamp01);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
