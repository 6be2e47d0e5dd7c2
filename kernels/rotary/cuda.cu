// Rotary position embedding on CUDA: 16 bytes a thread where rows allow it, a pair a thread elsewhere, then
// the copied tail.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/rotary/rotary.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

/// Items of a row: its pairs, then its channels from 2 pairs on. Both elements of a pair are read before
/// either is written and no other thread touches them, so y may be x.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const T* x, const float* cosine, const float* sine, T* y, DeviceRows x_rows,
                  DeviceRows y_rows, Divisor tokens, Divisor items, int64_t pairs, int64_t cosine_row,
                  int64_t sine_row, bool interleaved) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, all = x_rows.count * items.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const int64_t row = items.of(i), c = i - row * items.n;
    const T* from = x + x_rows.offset(row);
    T* to = y + y_rows.offset(row);
    if (c >= pairs) {
      if (to != from) to[c + pairs] = from[c + pairs];
      continue;
    }
    const int64_t n = row - tokens.of(row) * tokens.n;
    const float cs = cosine[n * cosine_row + c], sn = sine[n * sine_row + c];
    const int64_t first = interleaved ? 2 * c : c, second = interleaved ? 2 * c + 1 : c + pairs;
    const float a = widen(from[first]), b = widen(from[second]);
    to[first] = narrow<T>(a * cs - b * sn);
    to[second] = narrow<T>(b * cs + a * sn);
  }
}

template <int N>
__device__ void load_angles(const float* p, float (&v)[N]) {
  constexpr int kEach = N < 4 ? N : 4;
#pragma unroll
  for (int i = 0; i < N; i += kEach) {
    float part[kEach];
    load_pack(p + i, part);
#pragma unroll
    for (int j = 0; j < kEach; ++j) v[i + j] = part[j];
  }
}

/// The same by packs: `rotated` items of a row rotate one pack (interleaved) or two that are `pairs` apart,
/// the others copy one.
template <class T, bool Interleaved>
__global__ void __launch_bounds__(kThreads)
    rotary_packs_kernel(const T* x, const float* cosine, const float* sine, T* y, DeviceRows x_rows,
                        DeviceRows y_rows, Divisor tokens, Divisor items, int64_t pairs, int64_t rotated,
                        int64_t cosine_row, int64_t sine_row) {
  constexpr int N = kVector<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, all = x_rows.count * items.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const int64_t row = items.of(i), c = i - row * items.n;
    const T* from = x + x_rows.offset(row);
    T* to = y + y_rows.offset(row);
    if (c >= rotated) {
      if (to == from) continue;
      const int64_t at = 2 * pairs + (c - rotated) * N;
      T same[N];
      load_pack(from + at, same);
      store_pack(to + at, same);
      continue;
    }
    const int64_t n = row - tokens.of(row) * tokens.n;
    if constexpr (Interleaved) {
      float cs[N / 2], sn[N / 2], a[N], b[N];
      load_wide(from + c * N, a);
      load_angles(cosine + n * cosine_row + c * (N / 2), cs);
      load_angles(sine + n * sine_row + c * (N / 2), sn);
#pragma unroll
      for (int j = 0; j < N / 2; ++j) {
        b[2 * j] = a[2 * j] * cs[j] - a[2 * j + 1] * sn[j];
        b[2 * j + 1] = a[2 * j + 1] * cs[j] + a[2 * j] * sn[j];
      }
      store_narrow(to + c * N, b);
    } else {
      float cs[N], sn[N], a[N], b[N];
      load_wide(from + c * N, a);
      load_wide(from + pairs + c * N, b);
      load_angles(cosine + n * cosine_row + c * N, cs);
      load_angles(sine + n * sine_row + c * N, sn);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float first = a[j] * cs[j] - b[j] * sn[j];
        b[j] = b[j] * cs[j] + a[j] * sn[j];
        a[j] = first;
      }
      store_narrow(to + c * N, a);
      store_narrow(to + pairs + c * N, b);
    }
  }
}

}  // namespace

void CudaBackend::rotary(Context& ctx, const RotaryArgs& args) {
  const DeviceRows x(args.x, 1), y(args.y, 1);
  const int64_t pairs = args.cosine.dim(1), items = args.x.dim(-1) - pairs;
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int N = kVector<T>;
    const int64_t channels = args.interleaved ? 2 * pairs : pairs;  // that packs must divide
    if (channels % N == 0 && packable(args.x, 16) && packable(args.y, 16) && packable(args.cosine, 16) &&
        packable(args.sine, 16)) {
      const auto kernel = args.interleaved ? rotary_packs_kernel<T, true> : rotary_packs_kernel<T, false>;
      const int64_t rotated = channels / N, packs = rotated + (args.x.dim(-1) - 2 * pairs) / N;
      kernel<<<grid_for(ctx, x.count * packs, kThreads), kThreads, 0, stream_of(ctx)>>>(
          static_cast<const T*>(args.x.raw()), args.cosine.data<float>(), args.sine.data<float>(),
          static_cast<T*>(args.y.raw()), x, y, Divisor(args.x.dim(-2)), Divisor(packs), pairs, rotated,
          args.cosine.stride(0), args.sine.stride(0));
      CUDA_CHECK_LAUNCH();
      return;
    }
    rotary_kernel<T><<<grid_for(ctx, x.count * items, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const T*>(args.x.raw()), args.cosine.data<float>(), args.sine.data<float>(),
        static_cast<T*>(args.y.raw()), x, y, Divisor(args.x.dim(-2)), Divisor(items), pairs,
        args.cosine.stride(0), args.sine.stride(0), args.interleaved);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
