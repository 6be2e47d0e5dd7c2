// Rotary position embedding on CUDA: a thread for each pair, then the copied tail.
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

}  // namespace

void CudaBackend::rotary(Context& ctx, const RotaryArgs& args) {
  const DeviceRows x(args.x, 1), y(args.y, 1);
  const int64_t pairs = args.cosine.dim(1), items = args.x.dim(-1) - pairs;
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    rotary_kernel<T><<<grid_for(ctx, x.count * items, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const T*>(args.x.raw()), args.cosine.data<float>(), args.sine.data<float>(),
        static_cast<T*>(args.y.raw()), x, y, Divisor(args.x.dim(-2)), Divisor(items), pairs,
        args.cosine.stride(0), args.sine.stride(0), args.interleaved);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
