// The spectrum loss of masked frequency modelling (arXiv 2206.07706): distance of two images per frequency,
// from one transform of their difference, and its average over the masked frequencies. Not a transform: see
// fft.hpp.
//
//   d = sqrt(re^2 + im^2 + 1e-12)      l = d^gamma      re + i im = spectrum of the difference
//   focal: w = (re^2 + im^2)^(focal_gamma / 2), ln(1 + w) with focal_log, divided by its maximum over (H, W)
//   of
//          the plane (with focal_batch_max: over everything), NaN -> 0, clamped to [0, 1];  l = w d^gamma
//   loss = sum (1 - mask) l / (C sum (1 - mask)), 0 when nothing is masked; without a mask the mean of l
//
// spectrum f32 [B, C, H, W/2+1, 2] of a real difference (the caller scales the transform, 1/sqrt(HW) for the
// orthonormal one); mask f32 [B, H, W] of kept shares in [0, 1], centred order (DC at floor(N/2)), shared by
// the channels; map f32 [B, C, H, W], centred order, l before the mask weighting; loss f32 [1]. All
// contiguous. Sums are f64 over fixed rows, so the result does not depend on the number of threads. Nothing
// may overlap. Cost per element of the full grid: elementwise 4 (power, + 1e-12), 3 for the masked sum or 1
// for the mean, 4 with focal (maximum, clamp, product); special 1 (root), 1 for gamma != 1; with focal 1
// (division), 1 for a focal_gamma other than 2 and 1 for focal_log.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct SpectralLossArgs {
  Tensor spectrum;
  Tensor mask;  ///< optional
  Tensor map;   ///< optional
  Tensor loss;
  int64_t width = 0;  ///< W of the full grid
  float gamma = 1.0f;
  bool focal = false, focal_log = false, focal_batch_max = false;
  float focal_gamma = 1.0f;
};
void spectral_loss(Context& ctx, const SpectralLossArgs& args);
/// What spectral_loss charges for these arguments.
Cost spectral_loss_cost(const SpectralLossArgs& args);

}  // namespace attnbench
