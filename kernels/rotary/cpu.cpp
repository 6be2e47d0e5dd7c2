#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/rotary/rotary.hpp"

namespace attnbench {
namespace {

/// One row; a and b of a pair are read before either is written, so y may be x.
template <class T>
void rotate_row(const T* x, const float* cosine, const float* sine, T* y, int64_t width, int64_t pairs,
                bool interleaved) {
  const auto turn = [&](int64_t i, int64_t first, int64_t second) {
    const float a = static_cast<float>(x[first]), b = static_cast<float>(x[second]);
    y[first] = T(a * cosine[i] - b * sine[i]);
    y[second] = T(b * cosine[i] + a * sine[i]);
  };
  if (interleaved)
    for (int64_t i = 0; i < pairs; ++i) turn(i, 2 * i, 2 * i + 1);
  else
    for (int64_t i = 0; i < pairs; ++i) turn(i, i, i + pairs);
  if (y != x)
    for (int64_t i = 2 * pairs; i < width; ++i) y[i] = x[i];
}

template <class T>
void rotate(Context& ctx, const RotaryArgs& args) {
  const RowOffsets x(args.x, 1), y(args.y, 1);
  const int64_t tokens = args.x.dim(-2), width = args.x.dim(-1), pairs = args.cosine.dim(1);
  const int64_t bytes = std::max<int64_t>(2 * width * static_cast<int64_t>(sizeof(T)), 1);
  parallel_range(ctx.threads(), x.count(), std::max<int64_t>(kParallelBytes / bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t n = r % tokens;
                     rotate_row(static_cast<const T*>(args.x.raw()) + x.offset(r),
                                args.cosine.data<float>() + n * args.cosine.stride(0),
                                args.sine.data<float>() + n * args.sine.stride(0),
                                static_cast<T*>(args.y.raw()) + y.offset(r), width, pairs, args.interleaved);
                   }
                 });
}

}  // namespace

void CpuBackend::rotary(Context& ctx, const RotaryArgs& args) {
  switch (args.x.dtype()) {
    case DType::f32:
      return rotate<float>(ctx, args);
    case DType::bf16:
      return rotate<bf16>(ctx, args);
    default:
      return rotate<f16>(ctx, args);
  }
}

}  // namespace attnbench
