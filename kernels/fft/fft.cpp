#include "kernels/fft/fft.hpp"

#include <cmath>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

int64_t fft2_flops(Fft2Args::Kind kind, int64_t batch, int64_t height, int64_t width) {
  using Kind = Fft2Args::Kind;
  const double n = static_cast<double>(height) * static_cast<double>(width);
  if (n <= 1.0) return 0;
  const double complex = 5.0 * n * std::log2(n);
  const bool half = kind == Kind::real_to_half || kind == Kind::half_to_real;
  return batch * std::llround(half ? complex / 2.0 : complex);
}

void fft2(Context& ctx, const Fft2Args& args) {
  using Kind = Fft2Args::Kind;
  const ArgumentCheck check(ctx, "fft2");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  if (args.height < 0 || args.width < 0)
    check.fail("the grid is " + std::to_string(args.height) + " x " + std::to_string(args.width) +
               "; extents must not be negative");
  const int64_t half = args.width / 2 + 1;
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const bool full = !real_x && !real_y;
  const int inner_x = real_x ? 2 : 3, inner_y = real_y ? 2 : 3;
  check.rank({"x", args.x}, inner_x, Shape::kMaxRank);
  check.rank({"y", args.y}, inner_y, Shape::kMaxRank);
  if (args.x.rank() - inner_x != args.y.rank() - inner_y)
    check.fail("'x' " + args.x.shape().str() + " and 'y' " + args.y.shape().str() +
               " differ in their batch axes");
  const auto expected = [&](bool real) {
    Shape s = real ? Shape{args.height, args.width} : Shape{args.height, full ? args.width : half, 2};
    Shape batched = args.x.shape();
    const int outer = args.x.rank() - inner_x;
    int64_t dims[Shape::kMaxRank];
    if (outer + s.rank() > Shape::kMaxRank) check.fail("too many batch axes in 'x' " + batched.str());
    for (int i = 0; i < outer; ++i) dims[i] = batched[i];
    for (int i = 0; i < s.rank(); ++i) dims[outer + i] = s[i];
    return Shape(std::span<const int64_t>(dims, static_cast<size_t>(outer + s.rank())));
  };
  check.shape({"x", args.x}, expected(real_x));
  check.shape({"y", args.y}, expected(real_y));
  check.packed({"x", args.x}, inner_x);
  check.packed({"y", args.y}, inner_y);
  if (full)
    check.same_or_disjoint({"x", args.x}, {"y", args.y});
  else
    check.disjoint({"x", args.x}, {"y", args.y});
  int64_t batch = 1;
  for (int i = 0; i < args.x.rank() - inner_x; ++i) batch *= args.x.dim(i);
  Cost cost;
  cost.matmul = fft2_flops(args.kind, batch, args.height, args.width);
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  // A half spectrum of width 0 still has a column (0 / 2 + 1), but there is nothing to transform.
  if (batch > 0 && args.height > 0 && args.width > 0) ctx.backend().fft2(ctx, args);
}

void spectral_mask(Context& ctx, const SpectralMaskArgs& args) {
  const ArgumentCheck check(ctx, "spectral_mask");
  check.present({{"spectrum", args.spectrum}, {"mask", args.mask}});
  check.dtype({"spectrum", args.spectrum}, {DType::f32});
  check.dtype({"mask", args.mask}, {DType::f32, DType::u8});
  check.rank({"spectrum", args.spectrum}, 5, 5);
  check.rank({"mask", args.mask}, 3, 3);
  if (args.width < 0) check.fail("the width is " + std::to_string(args.width) + "; it must not be negative");
  const int64_t batch = args.spectrum.dim(0), channels = args.spectrum.dim(1), height = args.spectrum.dim(2);
  check.shape({"spectrum", args.spectrum}, {batch, channels, height, args.width / 2 + 1, 2});
  check.shape({"mask", args.mask}, {batch, height, args.width});
  check.packed({"spectrum", args.spectrum}, 3);
  check.packed({"mask", args.mask});
  check.disjoint({"spectrum", args.spectrum}, {"mask", args.mask});
  const int64_t n = args.spectrum.numel() / 2;
  Cost cost;
  cost.elementwise = 2 * n;
  cost.bytes_read = args.spectrum.nbytes() + args.mask.nbytes();
  cost.bytes_written = args.spectrum.nbytes();
  ctx.cost().charge(cost);
  if (n > 0 && args.width > 0) ctx.backend().spectral_mask(ctx, args);
}

}  // namespace attnbench
