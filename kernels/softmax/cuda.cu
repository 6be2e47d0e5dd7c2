// Row softmax on CUDA: a warp or a block per row; exponentials stay in f32 registers until they are stored.
#include <algorithm>

#include "kernels/core/cuda_row.cuh"
#include "kernels/softmax/softmax.hpp"

namespace attnbench {
namespace {

struct SoftmaxWork {
  const void* x;
  void* y;
  DeviceRows x_rows, y_rows;
  int64_t n, queries, offset;
  bool causal;
};

template <class T, int N, int kGroup>
__global__ void __launch_bounds__(kRowThreads<kGroup>, kRowBlocks<kGroup>) softmax_kernel(SoftmaxWork w) {
  for_rows<kGroup>(w.x_rows.count, w.n, [&](int64_t r, int64_t length) {
    int64_t visible = w.n;
    if (w.causal) {
      const int64_t last = r - divide(r, w.queries) * w.queries + w.offset + 1;
      visible = last < 0 ? 0 : last < w.n ? last : w.n;
    }
    CachedRow<T, N, kGroup> row(static_cast<const T*>(w.x) + w.x_rows.offset(r), length);
    T* y = static_cast<T*>(w.y) + w.y_rows.offset(r);
    float top = -INFINITY;
    row.pass([&](const float(&v)[N], int64_t c) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (c + i < visible) top = max_or_nan(top, v[i]);
    });
    top = group_reduce<kGroup>(top, Max{});
    // A row of -infinity sees nothing: its exponentials would be exp(-inf + inf).
    const bool nothing = top == -INFINITY;
    float sum = 0.0f;
    row.pass([&](float(&v)[N], int64_t c) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        // What is kept becomes the exponential. Elements beyond the registers are evaluated again below.
        v[i] = nothing || c + i >= visible ? 0.0f : expf(v[i] - top);
        sum += v[i];
      }
    });
    const float total = group_reduce<kGroup>(sum, Add{});
    const float scale = nothing ? 0.0f : 1.0f / total;
    row.pass([&](float(&v)[N], int64_t c) {
      const bool kept = c < CachedRow<T, N, kGroup>::kTiles * kGroup * N;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (!kept) v[i] = nothing || c + i >= visible ? 0.0f : expf(v[i] - top);
        v[i] *= scale;
        if (c + i >= visible) v[i] = 0.0f;  // also where the scale is NaN
      }
      store_narrow(y + c, v);
    });
  });
}

}  // namespace

void CudaBackend::softmax(Context& ctx, const SoftmaxArgs& args) {
  SoftmaxWork w{};
  w.x = args.x.raw(), w.y = args.y.raw();
  w.x_rows = DeviceRows(args.x, 1), w.y_rows = DeviceRows(args.y, 1);
  w.n = args.x.dim(-1), w.causal = args.causal;
  w.queries = args.causal ? args.x.dim(-2) : 1;
  // Clamped before the addition, so that no offset overflows.
  w.offset = std::clamp<int64_t>(args.causal_offset, -w.queries - 1, w.n);
  const bool packs = packable(args.x, 16) && packable(args.y, 16);
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    choose_row_kernel<T>(w.n, packs, [&](auto pack, auto group) {
      constexpr int kGroup = decltype(group)::value, kBlock = kRowThreads<kGroup>;
      const unsigned grid = grid_for(ctx, w.x_rows.count, kBlock / kGroup);
      softmax_kernel<T, decltype(pack)::value, kGroup><<<grid, kBlock, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  });
}

}  // namespace attnbench
