// A thread per channel runs along time with its states in registers; recursive filters take a thread per
// signal.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/scan/scan.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 128;

struct ScanWork {
  const void *u, *delta, *b, *c, *z;
  void* y;
  const float *a, *skip, *bias;
  bool softplus;
  DeviceRows u_at, delta_at, b_at, c_at, z_at, y_at;           // of sequences
  int64_t u_step, delta_step, b_step, c_step, z_step, y_step;  // between tokens in the direction of the scan
  int64_t sequences, length, channels, states, blocks;
};

/// kStates registers of state and of A: more would spill, fewer waste lanes of the exponential unit.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads) scan_kernel(ScanWork w) {
  const int64_t items = w.sequences * w.blocks;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sequence = divide(item, w.blocks),
                  d = (item - sequence * w.blocks) * kThreads + threadIdx.x;
    if (d >= w.channels) continue;
    const T* u = static_cast<const T*>(w.u) + w.u_at.offset(sequence) + d;
    const T* delta = static_cast<const T*>(w.delta) + w.delta_at.offset(sequence) + d;
    const T* b = static_cast<const T*>(w.b) + w.b_at.offset(sequence);
    const T* c = static_cast<const T*>(w.c) + w.c_at.offset(sequence);
    const T* z = w.z ? static_cast<const T*>(w.z) + w.z_at.offset(sequence) + d : nullptr;
    T* y = static_cast<T*>(w.y) + w.y_at.offset(sequence) + d;
    float a[kStates], h[kStates];
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      a[s] = s < w.states ? w.a[d * w.states + s] : 0.0f;
      h[s] = 0.0f;
    }
    const float skip = w.skip ? w.skip[d] : 0.0f, bias = w.bias ? w.bias[d] : 0.0f;
    for (int64_t t = 0; t < w.length; ++t) {
      const float x = widen(*u);
      float dt = widen(*delta);
      if (w.softplus) {
        dt += bias;
        dt = fmaxf(dt, 0.0f) + log1pf(expf(-fabsf(dt))) + (isnan(dt) ? dt : 0.0f);
      }
      const float du = dt * x;
      float sum = skip * x;
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        if (s >= w.states) break;
        h[s] = expf(dt * a[s]) * h[s] + du * widen(b[s]);
        sum = fmaf(widen(c[s]), h[s], sum);
      }
      if (z) {
        const float g = widen(*z);
        sum *= g * sigmoid(g);
        z += w.z_step;
      }
      *y = narrow<T>(sum);
      u += w.u_step, delta += w.delta_step, b += w.b_step, c += w.c_step, y += w.y_step;
    }
  }
}

constexpr int kMostSections = 16;
struct FilterWork {
  const void* x;
  void* y;
  DeviceRows x_at, y_at;
  int64_t signals, n;
  int sections;
  bool steady, reverse;
  Biquad section[kMostSections];
};

/// State of kSections sections in registers or, for many, in local memory.
template <class T, int kSections>
__global__ void __launch_bounds__(kThreads) filter_kernel(FilterWork w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < w.signals; i += step) {
    const T* x = static_cast<const T*>(w.x) + w.x_at.offset(i);
    T* y = static_cast<T*>(w.y) + w.y_at.offset(i);
    const int64_t along = w.reverse ? -1 : 1, begin = w.reverse ? w.n - 1 : 0;
    double z1[kSections] = {}, z2[kSections] = {};
    double level = static_cast<double>(x[begin]);
#pragma unroll
    for (int s = 0; s < kSections; ++s) {
      if (!w.steady || s >= w.sections) break;
      const Biquad q = w.section[s];
      const double poles = 1.0 + q.a1 + q.a2, gain = poles == 0.0 ? 0.0 : (q.b0 + q.b1 + q.b2) / poles;
      if (poles != 0.0) {
        z1[s] = (gain - q.b0) * level;
        z2[s] = (q.b2 - q.a2 * gain) * level;
      }
      level *= gain;
    }
    for (int64_t k = 0, t = begin; k < w.n; ++k, t += along) {
      double v = static_cast<double>(x[t]);
#pragma unroll
      for (int s = 0; s < kSections; ++s) {
        if (s >= w.sections) break;
        const Biquad& q = w.section[s];
        const double out = q.b0 * v + z1[s];
        z1[s] = q.b1 * v - q.a1 * out + z2[s];
        z2[s] = q.b2 * v - q.a2 * out;
        v = out;
      }
      y[t] = static_cast<T>(v);
    }
  }
}

struct ExtendWork {
  const void* x;
  void* y;
  DeviceRows x_at, y_at;
  int64_t signals, n, before, total;
  ExtendArgs::Mode mode;
};

template <class T>
__global__ void __launch_bounds__(kThreads) extend_kernel(ExtendWork w) {
  using Mode = ExtendArgs::Mode;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = w.signals * w.total;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t signal = divide(i, w.total), j = i - signal * w.total, at = j - w.before;
    const T* x = static_cast<const T*>(w.x) + w.x_at.offset(signal);
    T v;
    if (at >= 0 && at < w.n) {
      v = x[at];
    } else if (w.mode == Mode::zeros) {
      v = T(0);
    } else {
      const int64_t end = at < 0 ? 0 : w.n - 1, mirror = 2 * end - at;
      v = w.mode == Mode::edge ? x[end] : w.mode == Mode::reflect ? x[mirror] : T(2) * x[end] - x[mirror];
    }
    static_cast<T*>(w.y)[w.y_at.offset(signal) + j] = v;
  }
}

}  // namespace

void CudaBackend::selective_scan(Context& ctx, const SelectiveScanArgs& args) {
  ScanWork w{};
  w.u = args.u.raw(), w.delta = args.delta.raw(), w.b = args.b.raw(), w.c = args.c.raw(), w.y = args.y.raw();
  w.a = static_cast<const float*>(args.a.raw());
  w.skip = args.skip ? static_cast<const float*>(args.skip.raw()) : nullptr;
  w.bias = args.bias ? static_cast<const float*>(args.bias.raw()) : nullptr;
  w.softplus = args.softplus;
  w.length = args.u.dim(-2), w.channels = args.u.dim(-1), w.states = args.b.dim(-1);
  if (w.states > 64)
    throw Unsupported("selective_scan: " + std::to_string(w.states) +
                      " states do not fit a thread's registers; 64 do on CUDA");
  const int64_t sign = args.reverse ? -1 : 1, first = args.reverse ? w.length - 1 : 0;
  const auto start = [&](const Tensor& t, DeviceRows& rows, int64_t& step, const void*& base) {
    rows = DeviceRows(t, 2);
    step = sign * t.stride(-2);
    base =
        static_cast<const char*>(t.raw()) + first * t.stride(-2) * static_cast<int64_t>(size_of(t.dtype()));
  };
  start(args.u, w.u_at, w.u_step, w.u);
  start(args.delta, w.delta_at, w.delta_step, w.delta);
  start(args.b, w.b_at, w.b_step, w.b);
  start(args.c, w.c_at, w.c_step, w.c);
  if (args.z) start(args.z, w.z_at, w.z_step, w.z);
  const void* y = nullptr;
  start(args.y, w.y_at, w.y_step, y);
  w.y = const_cast<void*>(y);
  w.sequences = w.u_at.count;
  w.blocks = (w.channels + kThreads - 1) / kThreads;
  const unsigned grid = grid_for(ctx, w.sequences * w.blocks * kThreads, kThreads);
  by_float_type(args.u.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (w.states <= 16)
      scan_kernel<T, 16><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    else
      scan_kernel<T, 64><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::iir(Context& ctx, const IirArgs& args) {
  FilterWork w{};
  w.x = args.x.raw(), w.y = args.y.raw();
  w.x_at = DeviceRows(args.x, 1), w.y_at = DeviceRows(args.y, 1);
  w.signals = w.x_at.count, w.n = args.x.dim(-1);
  w.sections = static_cast<int>(args.sections.size());
  w.steady = args.steady, w.reverse = args.reverse;
  for (int s = 0; s < w.sections; ++s) w.section[s] = args.sections[static_cast<size_t>(s)];
  const unsigned grid = grid_for(ctx, w.signals, kThreads);
  const auto launch = [&](auto value) {
    using T = decltype(value);
    if (w.sections <= 4)
      filter_kernel<T, 4><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    else
      filter_kernel<T, kMostSections><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  };
  args.x.dtype() == DType::f64 ? launch(0.0) : launch(0.0f);
}

void CudaBackend::extend(Context& ctx, const ExtendArgs& args) {
  ExtendWork w{};
  w.x = args.x.raw(), w.y = args.y.raw();
  w.x_at = DeviceRows(args.x, 1), w.y_at = DeviceRows(args.y, 1);
  w.signals = w.x_at.count, w.n = args.x.dim(-1), w.before = args.before, w.total = args.y.dim(-1);
  w.mode = args.mode;
  const unsigned grid = grid_for(ctx, w.signals * w.total, kThreads);
  if (args.x.dtype() == DType::f64)
    extend_kernel<double><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  else
    extend_kernel<float><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
