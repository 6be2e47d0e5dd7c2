// A block per row for norms of rows of any length; features and quotients a thread per value.
#include <cmath>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/features/features.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 128;

struct UnitWork {
  const void *x, *like;
  const float* gain;
  void* y;
  DeviceRows x_at, like_at, gain_at, y_at;
  int64_t n;
  UnitRowsArgs::Kind kind;
  float floor, alpha, beta;
};

template <class T>
__device__ double power_of(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const double v = widen(x[i]);
    sum += v * v;
  }
  return block_reduce<kThreads>(sum, Add{});
}

template <class T>
__device__ double mean_of(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(widen(x[i]));
  return block_reduce<kThreads>(sum, Add{}) / static_cast<double>(n);
}

template <class X, class Y>
__global__ void __launch_bounds__(kThreads) unit_kernel(UnitWork w) {
  for (int64_t r = blockIdx.x; r < w.x_at.count; r += gridDim.x) {
    const X* x = static_cast<const X*>(w.x) + w.x_at.offset(r);
    Y* y = static_cast<Y*>(w.y) + w.y_at.offset(r);
    double factor = w.gain ? static_cast<double>(w.gain[w.gain_at.offset(r)]) : 1.0;
    float shift = 0.0f, added = 0.0f;
    if (w.kind == UnitRowsArgs::Kind::norm) {
      if (w.like) factor *= sqrt(power_of(static_cast<const X*>(w.like) + w.like_at.offset(r), w.n));
      const double norm = sqrt(power_of(x, w.n)), floor = w.floor;
      factor /= norm > floor || isnan(norm) ? norm : floor;
    } else if (w.kind == UnitRowsArgs::Kind::mean) {
      shift = static_cast<float>(mean_of(x, w.n));
      factor *= static_cast<double>(w.alpha);
      added = w.beta;
    }
    const float scale = static_cast<float>(factor);
    __syncthreads();  // y may be like, which all threads have read now
    for (int64_t i = threadIdx.x; i < w.n; i += kThreads)
      y[i] = narrow<Y>((widen(x[i]) - shift) * scale + added);
  }
}

struct FeatureWork {
  const float *x, *p;
  float* y;
  DeviceRows x_at, p_at, y_at;
  int64_t d, m;
  float unit;
};

/// A warp per row: the squares are summed once for its features.
template <FeatureMapArgs::Kind kKind>
__global__ void __launch_bounds__(kThreads) feature_kernel(FeatureWork w) {
  using Kind = FeatureMapArgs::Kind;
  constexpr int kWarps = kThreads / 32;
  const int lane = threadIdx.x % 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < w.p_at.count;
       r += step) {
    const float* p = w.p + w.p_at.offset(r);
    float* y = w.y + w.y_at.offset(r);
    double half = 0;
    if constexpr (kKind != Kind::relu) {
      const float* x = w.x + w.x_at.offset(r);
      for (int64_t i = lane; i < w.d; i += 32) half += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      half = 0.5 * warp_reduce(half, Add{});
    }
    const float shift = static_cast<float>(half);
    const float scale = kKind == Kind::trigonometric ? static_cast<float>(exp(half)) * w.unit : w.unit;
    for (int64_t i = lane; i < w.m; i += 32) {
      const float v = p[i];
      if constexpr (kKind == Kind::relu) {
        y[i] = (v > 0.0f || isnan(v) ? v : 0.0f) * scale + 1e-3f;
      } else if constexpr (kKind == Kind::exponential) {
        y[i] = expf(v - shift) * scale;
      } else {
        float sine, cosine;
        sincosf(v, &sine, &cosine);
        y[i] = sine * scale;
        y[w.m + i] = cosine * scale;
      }
    }
  }
}

/// A warp per row: every lane has the denominator before any writes, as y may lie in x.
__global__ void __launch_bounds__(kThreads)
    divide_kernel(const float* x0, float* y0, DeviceRows x_at, DeviceRows y_at, int64_t e) {
  constexpr int kWarps = kThreads / 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < x_at.count; r += step) {
    const float* x = x0 + x_at.offset(r);
    float* y = y0 + y_at.offset(r);
    const float last = x[e], d = last > 0.0f || isnan(last) ? last : 1.0f;
    for (int64_t i = threadIdx.x % 32; i < e; i += 32) y[i] = x[i] / d;
  }
}

}  // namespace

void CudaBackend::unit_rows(Context& ctx, const UnitRowsArgs& args) {
  UnitWork w{};
  w.x = args.x.raw(), w.like = args.like ? args.like.raw() : nullptr, w.y = args.y.raw();
  w.x_at = DeviceRows(args.x, 1), w.y_at = DeviceRows(args.y, 1);
  if (args.like) w.like_at = DeviceRows(args.like, 1);
  if (args.gain) w.gain = static_cast<const float*>(args.gain.raw()), w.gain_at = DeviceRows(args.gain, 0);
  w.n = args.x.dim(-1), w.floor = args.floor, w.alpha = args.alpha, w.beta = args.beta, w.kind = args.kind;
  const unsigned grid = grid_for(ctx, w.x_at.count * kThreads, kThreads);
  by_float_type(args.x.dtype(), [&](auto from) {
    using X = typename decltype(from)::type;
    if (args.y.dtype() == DType::f32)
      unit_kernel<X, float><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    else
      unit_kernel<X, X><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::feature_map(Context& ctx, const FeatureMapArgs& args) {
  using Kind = FeatureMapArgs::Kind;
  FeatureWork w{};
  w.x = static_cast<const float*>(args.x.raw()), w.p = static_cast<const float*>(args.p.raw());
  w.y = static_cast<float*>(args.y.raw());
  w.x_at = DeviceRows(args.x, 1), w.p_at = DeviceRows(args.p, 1), w.y_at = DeviceRows(args.y, 1);
  w.d = args.x.dim(-1), w.m = args.p.dim(-1);
  w.unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(w.m)));
  const unsigned grid = grid_for(ctx, w.p_at.count * 32, kThreads);
  if (args.kind == Kind::exponential)
    feature_kernel<Kind::exponential><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  else if (args.kind == Kind::trigonometric)
    feature_kernel<Kind::trigonometric><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  else
    feature_kernel<Kind::relu><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::divide_by_last(Context& ctx, const DivideByLastArgs& args) {
  const DeviceRows x_at(args.x, 1), y_at(args.y, 1);
  divide_kernel<<<grid_for(ctx, x_at.count * 32, kThreads), kThreads, 0, stream_of(ctx)>>>(
      static_cast<const float*>(args.x.raw()), static_cast<float*>(args.y.raw()), x_at, y_at, args.y.dim(-1));
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
