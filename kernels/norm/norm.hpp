// Normalisation: y = (x - mean) / sqrt(var + eps) * gain + offset with statistics of rows, or of channel
// groups over a grid.
//
// normalize, over the last axis:
// x, y [..., C] contiguous in C, same dtype; y may be x. gain, offset [C] or none.
//   layer_norm: mean and biased variance of the row.      rms_norm: mean 0, var = mean of squares.
//   srms_norm:  rms_norm without gain (TransNormer, arXiv 2405.17381): pass no gain.
//   l2_norm: y = x / max(|x|, eps), |x| the Euclidean norm of the row.
// Statistics in f32 (two passes), result rounded once. Cost: elementwise 5 C per row (layer) or 4 C (rms,
// l2), special 2 per row.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct NormArgs {
  enum class Kind : uint8_t { layer_norm, rms_norm, l2_norm };
  Kind kind = Kind::layer_norm;
  Tensor x, y;
  Tensor gain, offset;  ///< optional
  float eps = 1e-5f;
};
void normalize(Context& ctx, const NormArgs& args);

/// Group normalisation (instance: groups = C; one group: groups = 1) and batch normalisation by running
/// statistics: x, y [B, ..., C] channel-last or [B, C, ...], rank 2 or more, packed; y may be x.
///
/// Without `mean` the statistics are those of each image's `groups` equal runs of channels over all positions
/// (biased variance). With `mean` and `variance` [C], f32 or x's dtype, they are given: batch normalisation
/// in evaluation mode; groups is then ignored. gain, offset [C] or none, x's dtype. Sums in f64, result
/// rounded once. dtypes f32, bf16, f16. Cost: elementwise 5 per element (2 when given), special 2 per group
/// (per channel).
struct GroupNormArgs {
  Tensor x, y, gain, offset;
  Tensor mean, variance;  ///< optional
  int64_t groups = 1;
  float eps = 1e-5f;
  bool channels_last = true;
};
void group_norm(Context& ctx, const GroupNormArgs& args);

}  // namespace attnbench
