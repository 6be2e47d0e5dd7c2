// Bicubic resizing of images, a = -0.75, align_corners false, no antialias (PyTorch's interpolate), edge
// clamped.
//
// x [B, C, H, W] -> y [B, C, Ho, Wo], contiguous. Each axis must shrink or grow by an integer factor or any
// ratio > 0. `clamp01` clamps the result to [0, 1]. Cost: elementwise 2 * 16 per output, +2 with clamp.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct ResizeArgs {
  Tensor x, y;
  bool clamp01 = false;
};
void resize_bicubic(Context& ctx, const ResizeArgs& args);

}  // namespace attnbench
