// Row softmax on CUDA: a few lanes, a warp or a block per row; exponentials stay in f32 registers until they
// are stored.
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
  void* clear;  ///< x where its hidden keys become 0
};

/// exp(x) for x <= 0. Results that are stored in 16 bits take the special function unit's exponential as it
/// is: rounding x log2 e errs by |x| 2^-24 of the result, which is below the storage's step for every x whose
/// exponential f32 holds.
template <class T>
__device__ float exponential(float x) {
  if constexpr (sizeof(T) == 4) return expf(x);
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

/// Zeros from `visible` on.
template <class T, int N>
__device__ void clear_hidden(T* x, int64_t c, int64_t visible) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (c + i >= visible) x[c + i] = narrow<T>(0.0f);
}

/// Sets what a causal row does not see; packs that it sees whole, or all of them, take no part.
template <int N>
__device__ void hide(float (&v)[N], int64_t c, int64_t visible, float value) {
  if (c + N <= visible) return;
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (c + i >= visible) v[i] = value;
}

template <class T, int N, int kGroup, int kValues>
__global__ void __launch_bounds__(kRowThreads<kGroup>, kValues > kRowValues ? 4 : kRowBlocks<kGroup>)
    softmax_kernel(SoftmaxWork w) {
  using Row = CachedRow<T, N, kGroup, kValues>;
  for_rows<kGroup>(w.x_rows.count, w.n, [&](int64_t r, int64_t length) {
    int64_t visible = w.n;
    if (w.causal) {
      const int64_t last = r - divide(r, w.queries) * w.queries + w.offset + 1;
      visible = last < 0 ? 0 : last < w.n ? last : w.n;
    }
    Row row(static_cast<const T*>(w.x) + w.x_rows.offset(r), length);
    T* y = static_cast<T*>(w.y) + w.y_rows.offset(r);
    float top = -INFINITY;
    row.pass([&](float(&v)[N], int64_t c) {
      hide(v, c, visible, -INFINITY);
#pragma unroll
      for (int i = 0; i < N; ++i) top = max_or_nan(top, v[i]);
    });
    top = group_reduce<kGroup>(top, Max{});
    // A row of -infinity sees nothing: its exponentials would be exp(-inf + inf).
    const bool nothing = top == -INFINITY;
    if (nothing) top = 0.0f;
    float sum = 0.0f;
    row.pass([&](float(&v)[N], int64_t c) {
      // What is kept becomes the exponential. Elements beyond the registers are evaluated again below.
      if (c >= Row::kTiles * kGroup * N) hide(v, c, visible, -INFINITY);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        v[i] = exponential<T>(v[i] - top);
        sum += v[i];
      }
    });
    const float total = group_reduce<kGroup>(sum, Add{});
    const float scale = nothing ? 0.0f : 1.0f / total;
    row.pass([&](float(&v)[N], int64_t c) {
      const bool kept = c < Row::kTiles * kGroup * N;
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = (kept ? v[i] : exponential<T>(v[i] - top)) * scale;
      hide(v, c, visible, 0.0f);  // also where the scale is NaN
      store_narrow(y + c, v);
      if (w.clear && c + N > visible)
        clear_hidden<T, N>(static_cast<T*>(w.clear) + w.x_rows.offset(r), c, visible);
    });
  });
}

}  // namespace

void CudaBackend::softmax(Context& ctx, const SoftmaxArgs& args) {
  SoftmaxWork w{};
  w.x = args.x.raw(), w.y = args.y.raw();
  w.x_rows = DeviceRows(args.x, 1), w.y_rows = DeviceRows(args.y, 1);
  w.n = args.x.dim(-1), w.causal = args.causal;
  w.clear = args.clear_hidden ? args.x.raw() : nullptr;
  w.queries = args.causal ? args.x.dim(-2) : 1;
  // Clamped before the addition, so that no offset overflows.
  w.offset = std::clamp<int64_t>(args.causal_offset, -w.queries - 1, w.n);
  const bool packs = packable(args.x, 16) && packable(args.y, 16);
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch = [&](auto pack, auto group, auto values) {
      constexpr int kGroup = decltype(group)::value, kBlock = kRowThreads<kGroup>;
      // As many blocks as there are rows, up to 2^17 or so: a grid of a few waves would end in a half-empty
      // one.
      const unsigned grid = grid_for(ctx, w.x_rows.count, kBlock / kGroup, 1024);
      softmax_kernel<T, decltype(pack)::value, kGroup, decltype(values)::value>
          <<<grid, kBlock, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    };
    // Twice the registers keep a row within a warp that would otherwise need a block and its barriers.
    constexpr int kWide = 2 * kRowValues;
    if (packs && w.n > 32 * kRowValues && w.n <= 32 * kWide)
      return launch(std::integral_constant<int, kVector<T>>{}, std::integral_constant<int, 32>{},
                    std::integral_constant<int, kWide>{});
    choose_row_kernel<T>(w.n, packs, [&](auto pack, auto group) {
      launch(pack, group, std::integral_constant<int, kRowValues>{});
    });
  });
}

}  // namespace attnbench
