// Values between grid points: resizing of images, and bilinear samples at arbitrary points. Not pooling, and
// not resampling of signals by filters.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Bicubic resizing of images, a = -0.75, align_corners false, no antialias (PyTorch's interpolate), edge
/// clamped.
///
/// x [B, C, H, W] -> y [B, C, Ho, Wo], contiguous. Each axis must shrink or grow by an integer factor or any
/// ratio > 0. `clamp01` clamps the result to [0, 1]. Cost: elementwise 2 * 16 per output, +2 with clamp.
struct ResizeArgs {
  Tensor x, y;
  bool clamp01 = false;
};
void resize_bicubic(Context& ctx, const ResizeArgs& args);

/// Resizing by a separable filter in either layout: x [B, H, W, C] or [B, C, H, W], y in x's layout.
///
/// Output i of an axis of n -> m positions is centred at u = (i + 0.5) n / m - 0.5, or i (n - 1) / (m - 1)
/// with `align_corners` (0 when m = 1):
///   nearest: position floor(i n / m), whatever align_corners says (PyTorch's `nearest`).
///   bilinear: a + t (b - a) of the two neighbours, positions clamped to the edge, t = 0 before the first.
///   bicubic: Keys' kernel with a = -0.75, positions clamped (resize_bicubic without its integer ratios).
///   lanczos: sinc(x) sinc(x / 3), |x| < 3, over the positions inside, weights divided by their sum.
/// `antialias` stretches the kernel by n / m where that is above 1 (triangle, Keys' with a = -0.5, lanczos),
/// takes the positions inside only and divides by the sum of weights: Pillow's filters; without
/// align_corners. lanczos requires it. Arithmetic in f32, taps tabulated in f64. Packed x and y; f32, bf16,
/// f16. Cost: elementwise per output 0 (nearest), 7 (bilinear), else 2 k_h k_w, k = 2 ceil(radius max(n / m,
/// 1)) taps.
struct ResampleArgs {
  enum class Kind : uint8_t { nearest, bilinear, bicubic, lanczos };
  Kind kind = Kind::bilinear;
  Tensor x, y;
  bool channels_last = true, antialias = false, align_corners = false;
};
void resize(Context& ctx, const ResampleArgs& args);

/// Bilinear samples of planes: y[b, g, p, :] = sum over the four neighbours of point p of weight times
/// x[b, g, iy, ix, :] (grid_sample, align_corners true, in positions instead of [-1, 1]).
///
/// x [B, G, H, W, D], y [B, G, P, D] of one dtype (f32, bf16, f16), D packed, other strides free: heads of a
/// projection's output are views. points f32 [B, G, P, 2] = (column, row), packed; x may have one group for
/// all (Gx = 1). Neighbours outside the grid are 0, or the nearest inside with `clamp` (border). A point
/// with a NaN gives NaN; an infinite one is as far outside as any. Arithmetic in f32. Cost: elementwise 8 D +
/// 8 a point.
struct SamplePointsArgs {
  Tensor x, points, y;
  bool clamp = false;
};
void sample_points(Context& ctx, const SamplePointsArgs& args);

}  // namespace attnbench
