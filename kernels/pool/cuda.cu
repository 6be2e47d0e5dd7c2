// Average pooling on CUDA: a thread per cell and 16 bytes of channels, summed in the order of the CPU.
#include "kernels/core/cuda_kernel.cuh"
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

}  // namespace attnbench
