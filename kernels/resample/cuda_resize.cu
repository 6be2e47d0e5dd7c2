// resize and sample_points on CUDA: taps tabulated once per axis in double, then a thread per output.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/resample/taps.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

struct Table {
  TapAxis axis;
  int64_t taps;
  double stretched;
  int32_t* at;  // [out, taps]
  float* weight;
};

__global__ void __launch_bounds__(kThreads) table_kernel(Table rows, Table columns) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, all = rows.axis.out + columns.axis.out;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const bool row = i < rows.axis.out;
    const Table& t = row ? rows : columns;
    const int64_t o = row ? i : i - rows.axis.out;
    t.axis.fill(o, t.taps, t.stretched, t.at + o * t.taps, t.weight + o * t.taps);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    resample_kernel(const T* x, T* y, Table rows, Table columns, int64_t planes, Divisor inner, Divisor wo,
                    Divisor ho, bool lerp) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = planes * ho.n * wo.n * inner.n;
  const int64_t line = columns.axis.in * inner.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t pixel = inner.of(i), c = i - pixel * inner.n, row = wo.of(pixel), ox = pixel - row * wo.n;
    const int64_t plane = ho.of(row), oy = row - plane * ho.n;
    const T* image = x + plane * rows.axis.in * line + c;
    const int32_t *v_at = rows.at + oy * rows.taps, *h_at = columns.at + ox * columns.taps;
    const float *v = rows.weight + oy * rows.taps, *h = columns.weight + ox * columns.taps;
    float sum = 0.0f;
    if (lerp) {  // keeps a constant exact
      const T *a = image + v_at[0] * line, *b = image + v_at[1] * line;
      const int64_t l = h_at[0] * inner.n, r = h_at[1] * inner.n;
      const float left = widen(a[l]) + v[1] * (widen(b[l]) - widen(a[l]));
      const float right = widen(a[r]) + v[1] * (widen(b[r]) - widen(a[r]));
      sum = left + h[1] * (right - left);
    } else {
      for (int64_t j = 0; j < columns.taps; ++j) {
        const T* column = image + h_at[j] * inner.n;
        float blended = 0.0f;
        for (int64_t k = 0; k < rows.taps; ++k) blended += v[k] * widen(column[v_at[k] * line]);
        sum += h[j] * blended;
      }
    }
    y[i] = narrow<T>(sum);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const T* x, const float* points, T* y, int64_t xb, int64_t xg, int64_t xh, int64_t xw,
                  int64_t yb, int64_t yg, int64_t yp, int64_t height, int64_t width, int64_t items,
                  Divisor packs, Divisor per_group, Divisor groups, bool clamp) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t point = packs.of(i), d = (i - point * packs.n) * N;
    const int64_t group = per_group.of(point), p = point - group * per_group.n;
    const int64_t b = groups.of(group), g = group - b * groups.n;
    const T* plane = x + b * xb + g * xg + d;
    T* to = y + b * yb + g * yg + p * yp + d;
    float u = points[2 * point], v = points[2 * point + 1];
    float sum[N] = {};
    if (isnan(u) || isnan(v)) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = u + v;
      store_narrow(to, sum);
      continue;
    }
    // Beyond one position outside nothing changes; the bounds keep the integers small.
    const float right = static_cast<float>(width), bottom = static_cast<float>(height);
    u = fminf(fmaxf(u, clamp ? 0.0f : -1.0f), clamp ? right - 1.0f : right);
    v = fminf(fmaxf(v, clamp ? 0.0f : -1.0f), clamp ? bottom - 1.0f : bottom);
    const float left = floorf(u), top = floorf(v), fu = u - left, fv = v - top;
    const int64_t ix = static_cast<int64_t>(left), iy = static_cast<int64_t>(top);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t cx = ix + k % 2, cy = iy + k / 2;
      if (cx < 0 || cx >= width || cy < 0 || cy >= height) continue;
      const float weight = (k % 2 ? fu : 1.0f - fu) * (k / 2 ? fv : 1.0f - fv);
      float in[N];
      load_wide(plane + cy * xh + cx * xw, in);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += weight * in[j];
    }
    store_narrow(to, sum);
  }
}

}  // namespace

void CudaBackend::resize(Context& ctx, const ResampleArgs& args) {
  const TapAxis rows(args, 0), columns(args, 1);
  Table v{rows, rows.count(), rows.stretch(), nullptr, nullptr};
  Table h{columns, columns.count(), columns.stretch(), nullptr, nullptr};
  const int64_t entries = v.taps * rows.out + h.taps * columns.out;
  const Tensor at = ctx.allocate(DType::i32, {entries}), weight = ctx.allocate(DType::f32, {entries});
  v.at = at.data<int32_t>(), v.weight = weight.data<float>();
  h.at = v.at + v.taps * rows.out, h.weight = v.weight + v.taps * rows.out;
  table_kernel<<<grid_for(ctx, rows.out + columns.out, kThreads), kThreads, 0, stream_of(ctx)>>>(v, h);
  CUDA_CHECK_LAUNCH();
  const int64_t inner = args.channels_last ? args.x.dim(3) : 1;
  const int64_t planes = args.channels_last ? args.x.dim(0) : args.x.dim(0) * args.x.dim(1);
  const bool lerp = args.kind == ResampleArgs::Kind::bilinear && !args.antialias;
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    resample_kernel<T><<<grid_for(ctx, args.y.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const T*>(args.x.raw()), static_cast<T*>(args.y.raw()), v, h, planes, Divisor(inner),
        Divisor(columns.out), Divisor(rows.out), lerp);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::sample_points(Context& ctx, const SamplePointsArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  const int64_t group_step = x.dim(1) == 1 ? 0 : x.stride(1), points = y.dim(0) * y.dim(1) * y.dim(2);
  by_float_type(x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      const int64_t packs = y.dim(3) / N;
      sample_kernel<T, N><<<grid_for(ctx, points * packs, kThreads), kThreads, 0, stream_of(ctx)>>>(
          static_cast<const T*>(x.raw()), args.points.data<float>(), static_cast<T*>(y.raw()), x.stride(0),
          group_step, x.stride(2), x.stride(3), y.stride(0), y.stride(1), y.stride(2), x.dim(2), x.dim(3),
          points * packs, Divisor(packs), Divisor(y.dim(2)), Divisor(y.dim(1)), args.clamp);
      CUDA_CHECK_LAUNCH();
    };
    if (packable(x, 16) && packable(y, 16))
      launch(std::integral_constant<int, kVector<T>>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace attnbench
