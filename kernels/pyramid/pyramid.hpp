// Image pyramids with separable filters, and the two small computations of critical-band masking (arXiv
// 2309.13190) around them: bringing noisy images back into [0, 1], and fitting a Gaussian channel to
// thresholds.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// One step of a pyramid. x [B, H, W], y [B, H', W'], taps [K] (K odd), f32, packed; filtered along rows,
/// then along columns, borders reflected about the edge sample without repeating it.
///   reduce (expand false): filter, keep even samples: H' = ceil(H / 2), W' = ceil(W / 2)
///   expand:                x at even places of an H' x W' grid of zeros, filter: H = ceil(H' / 2), W =
///   ceil(W' / 2)
/// subtract_from [B, H', W'] (optional): y = it - result (a Laplacian level); y may be it. Cost: matmul 2 K
/// (H W' + H' W') per image for reduce, K (H W' + H' W') for expand (zeros are skipped); elementwise H' W'
/// for subtract_from.
struct PyramidArgs {
  Tensor x, taps, y, subtract_from;
  bool expand = false;
};
void pyramid_level(Context& ctx, const PyramidArgs& args);
/// What pyramid_level charges for `images` images of h x w on the finer side, without bytes.
Cost pyramid_cost(bool expand, bool subtract, int64_t images, int64_t h, int64_t w, int64_t taps);

/// y = v + s, and where that is outside of [0, 1] the image, not the noise, is moved: below 0, v becomes gap
/// - s, above 1, (1 - gap) - s. Where the new v would leave [0, 1] on the other side, the pixel keeps v and
/// draws new noise sigma[b] redraw[b, i], consuming redraw in row-major order of the pixels, until v + noise
/// is in [0, 1]; when redraw is used up, y = v, clamped. v, s, y [B, P], redraw [B, R], sigma [B], f32,
/// packed rows; y may be s. A row whose sigma is 0 is copied from v. Cost: elementwise 3 per pixel.
struct RepairRangeArgs {
  Tensor v, s, redraw, sigma, y;
  float gap = 0.1f;
};
void repair_range(Context& ctx, const RepairRangeArgs& args);

/// accuracy [B, L, F] f32, levels in ascending order of noise -> threshold [B, F] i32: the number of levels,
/// from the last, skipped before accuracy is strictly above `pass`, at most L - 1; fit [7, B] f64: A, mu, s,
/// bandwidth, centre, peak noise sensitivity of the least-squares Gaussian A exp(-(f - mu)^2 / (2 s^2)), 0 <=
/// A
/// <= L - 1, and 1 where s is not in (0, 7], which is nothing to rely on: bandwidth 2 sqrt(ln 4) s, centre
/// lowest_center 2^mu, sensitivity 2^(A - (L - 1)).
/// Vectors that do not determine a Gaussian: all equal c > 0: A = c, mu in the middle, s infinite; one
/// threshold that is not 0: A is it, mu its place, s = 0; all 0: A = 0, the other numbers NaN. Found on a
/// grid of (mu, s) with A in closed form, then by damped Gauss-Newton steps, in f64. Cost: special 181 * 160
/// * F per row (the grid's exponentials).
struct ChannelFitArgs {
  Tensor accuracy, threshold, fit;
  double pass = 50.0, lowest_center = 1.75;
};
void channel_fit(Context& ctx, const ChannelFitArgs& args);

}  // namespace attnbench
