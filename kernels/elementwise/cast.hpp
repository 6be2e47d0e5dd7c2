// Conversion between floating storage types: one read, one write, one rounding. No scaling, no layout change.
//
// x, y of equal shape, both contiguous, each f64, f32, bf16 or f16 (equal dtypes copy). Rounds to nearest
// even; NaN stays NaN, values beyond the range of y become infinite. x and y do not overlap. Cost: bytes, no
// FLOPs.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct CastArgs {
  Tensor x, y;
};
void cast(Context& ctx, const CastArgs& args);

}  // namespace attnbench
