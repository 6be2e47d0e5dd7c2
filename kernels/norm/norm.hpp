// Normalisation over the last axis: y = (x - mean) / sqrt(var + eps) * gain + offset and its root-mean-square
// forms.
//
// x, y [..., C] contiguous in C, same dtype; y may be x. gain, offset [C] or none.
//   layer_norm: mean and biased variance of the row.      rms_norm: mean 0, var = mean of squares.
//   srms_norm:  rms_norm without gain (TransNormer, arXiv 2405.17381): pass no gain.
// Statistics in f32 (two passes), result rounded once. Cost: elementwise 5 C per row (layer) or 4 C (rms),
// special 2 per row.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct NormArgs {
  enum class Kind : uint8_t { layer_norm, rms_norm };
  Kind kind = Kind::layer_norm;
  Tensor x, y;
  Tensor gain, offset;  ///< optional
  float eps = 1e-5f;
};
void normalize(Context& ctx, const NormArgs& args);

}  // namespace attnbench
