// Row normalisation on CUDA: a warp or a block per row, statistics in f32 from registers.
#include "kernels/core/cuda_row.cuh"
#include "kernels/norm/norm.hpp"

namespace attnbench {
namespace {

struct NormWork {
  const void *x, *gain, *offset;
  void* y;
  DeviceRows x_rows, y_rows;
  int64_t n;
  float eps;
  bool centred;
};

template <class T, int N, int kGroup>
__global__ void __launch_bounds__(kRowThreads<kGroup>, kRowBlocks<kGroup>) norm_kernel(NormWork w) {
  const T* gain = static_cast<const T*>(w.gain);
  const T* offset = static_cast<const T*>(w.offset);
  const float n = static_cast<float>(w.n);
  for_rows<kGroup>(w.x_rows.count, w.n, [&](int64_t r, int64_t length) {
    CachedRow<T, N, kGroup> row(static_cast<const T*>(w.x) + w.x_rows.offset(r), length);
    float mean = 0.0f;
    if (w.centred) {
      float sum = 0.0f;
      row.pass([&](const float(&v)[N], int64_t) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum += v[i];
      });
      mean = group_reduce<kGroup>(sum, Add{}) / n;
    }
    // The second pass subtracts the mean first: a sum of squares minus n mean^2 would cancel.
    float squares = 0.0f;
    row.pass([&](const float(&v)[N], int64_t) {
#pragma unroll
      for (int i = 0; i < N; ++i) squares += (v[i] - mean) * (v[i] - mean);
    });
    const float inverse = 1.0f / sqrtf(group_reduce<kGroup>(squares, Add{}) / n + w.eps);
    T* y = static_cast<T*>(w.y) + w.y_rows.offset(r);
    row.pass([&](const float(&v)[N], int64_t c) {
      float out[N], factor[N];
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = (v[i] - mean) * inverse;
      if (gain) {
        load_wide(gain + c, factor);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] *= factor[i];
      }
      if (offset) {
        load_wide(offset + c, factor);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] += factor[i];
      }
      store_narrow(y + c, out);
    });
  });
}

}  // namespace

void CudaBackend::normalize(Context& ctx, const NormArgs& args) {
  NormWork w{};
  w.x = args.x.raw(), w.gain = args.gain.raw(), w.offset = args.offset.raw(), w.y = args.y.raw();
  w.x_rows = DeviceRows(args.x, 1), w.y_rows = DeviceRows(args.y, 1);
  w.n = args.x.dim(-1), w.eps = args.eps;
  w.centred = args.kind == NormArgs::Kind::layer_norm;
  const bool packs = packable(args.x, 16) && packable(args.y, 16) &&
                     (!args.gain || packable(args.gain, 16)) && (!args.offset || packable(args.offset, 16));
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    choose_row_kernel<T>(w.n, packs, [&](auto pack, auto group) {
      constexpr int kGroup = decltype(group)::value, kBlock = kRowThreads<kGroup>;
      const unsigned grid = grid_for(ctx, w.x_rows.count, kBlock / kGroup);
      norm_kernel<T, decltype(pack)::value, kGroup><<<grid, kBlock, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  });
}

}  // namespace attnbench
