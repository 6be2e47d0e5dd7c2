// Pooling on CUDA: a thread per window and 16 bytes of channels (or one output of a plane), summed in the
// order of the CPU.
#include <limits>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/pool/geometry.hpp"
#include "kernels/pool/pool.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

struct PoolWork {
  const void* x;
  void* y;
  int64_t xb, xh, xw, yb, yh, yw;  // strides
  int64_t batch, height, width, ho, wo, packs;
  Divisor by_packs, by_ho, by_wo;
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads) pool_kernel(PoolWork w) {
  const int64_t items = w.batch * w.ho * w.wo * w.packs, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t cell = w.by_packs.of(i), c = (i - cell * w.packs) * N;
    const int64_t line = w.by_wo.of(cell), ox = cell - line * w.wo;
    const int64_t b = w.by_ho.of(line), oy = line - b * w.ho;
    const int64_t h0 = w.by_ho.of(oy * w.height), h1 = w.by_ho.of((oy + 1) * w.height + w.ho - 1);
    const int64_t w0 = w.by_wo.of(ox * w.width), w1 = w.by_wo.of((ox + 1) * w.width + w.wo - 1);
    const T* x = static_cast<const T*>(w.x) + b * w.xb + c;
    const int64_t points = (h1 - h0) * (w1 - w0);
    float sum[N] = {};
    int64_t h = h0, v = w0;
    for (int64_t first = 0; first < points; first += kBatch) {
      T in[kBatch][N];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (first + u >= points) break;
        load_pack(x + h * w.xh + v * w.xw, in[u]);
        if (++v == w1) v = w0, ++h;
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (first + u >= points) break;
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += widen(in[u][j]);
      }
    }
    const float scale = 1.0f / static_cast<float>(points);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] *= scale;
    store_narrow(static_cast<T*>(w.y) + b * w.yb + oy * w.yh + ox * w.yw + c, sum);
  }
}

}  // namespace

void CudaBackend::avg_pool2d(Context& ctx, const AvgPool2dArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  PoolWork w{};
  w.x = x.raw(), w.y = y.raw();
  w.xb = x.stride(0), w.xh = x.stride(1), w.xw = x.stride(2);
  w.yb = y.stride(0), w.yh = y.stride(1), w.yw = y.stride(2);
  w.batch = x.dim(0), w.height = x.dim(1), w.width = x.dim(2), w.ho = y.dim(1), w.wo = y.dim(2);
  const bool packs = packable(x, 16) && packable(y, 16);
  by_float_type(x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    w.packs = packs ? x.dim(3) / kVector<T> : x.dim(3);
    w.by_packs = Divisor(w.packs), w.by_ho = Divisor(w.ho), w.by_wo = Divisor(w.wo);
    const unsigned grid = grid_for(ctx, w.batch * w.ho * w.wo * w.packs, kThreads);
    if (packs)
      pool_kernel<T, kVector<T>><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    else
      pool_kernel<T, 1><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

namespace {

struct WindowWork {
  PoolAxis rows, columns;
  int64_t batch, channels, xb, xc, xh, xw, yb, yc, yh, yw;  // strides
  bool max, count_padding;
};

/// N channels of a window; items run (b, oy, ox, c) with N > 1 or channel-last, (b, c, oy, ox) otherwise.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    window_kernel(WindowWork w, const T* x, T* y, bool last, Divisor inner, Divisor middle, Divisor outer) {
  const int64_t items = w.batch * inner.n * middle.n * outer.n,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t r1 = inner.of(i), i0 = i - r1 * inner.n, r2 = middle.of(r1), i1 = r1 - r2 * middle.n;
    const int64_t b = outer.of(r2), i2 = r2 - b * outer.n;
    const int64_t c = (last ? i0 : i2) * N, ox = last ? i1 : i0, oy = last ? i2 : i1;
    const T* from = x + b * w.xb + c * w.xc;
    float sum[N];
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] = w.max ? -INFINITY : 0.0f;
    const int64_t h1 = w.rows.end(oy), w0 = w.columns.begin(ox), w1 = w.columns.end(ox);
    for (int64_t h = w.rows.begin(oy); h < h1; ++h)
      for (int64_t v = w0; v < w1; ++v) {
        float in[N];
        load_wide(from + h * w.xh + v * w.xw, in);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] = w.max ? max_or_nan(sum[j], in[j]) : sum[j] + in[j];
      }
    if (!w.max) {
      const float scale = 1.0f / static_cast<float>(w.rows.counted(oy, w.count_padding) *
                                                    w.columns.counted(ox, w.count_padding));
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] *= scale;
    }
    store_narrow(y + b * w.yb + c * w.yc + oy * w.yh + ox * w.yw, sum);
  }
}

}  // namespace

void CudaBackend::pool2d(Context& ctx, const Pool2dArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  const bool last = args.channels_last;
  const int channel = last ? 3 : 1, row = last ? 1 : 2, column = last ? 2 : 3;
  WindowWork w{};
  w.rows = PoolAxis(args, 0), w.columns = PoolAxis(args, 1);
  w.batch = x.dim(0), w.channels = x.dim(channel);
  w.xb = x.stride(0), w.xc = x.stride(channel), w.xh = x.stride(row), w.xw = x.stride(column);
  w.yb = y.stride(0), w.yc = y.stride(channel), w.yh = y.stride(row), w.yw = y.stride(column);
  w.max = args.kind == Pool2dArgs::Kind::max, w.count_padding = args.count_padding;
  const bool packs = last && packable(x, 16) && packable(y, 16);
  by_float_type(x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      const int64_t per = w.channels / N;
      const unsigned grid = grid_for(ctx, y.numel() / N, kThreads);
      window_kernel<T, N><<<grid, kThreads, 0, stream_of(ctx)>>>(
          w, static_cast<const T*>(x.raw()), static_cast<T*>(y.raw()), last,
          Divisor(last ? per : w.columns.out), Divisor(last ? w.columns.out : w.rows.out),
          Divisor(last ? w.rows.out : per));
      CUDA_CHECK_LAUNCH();
    };
    if (packs)
      launch(std::integral_constant<int, kVector<T>>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace attnbench
