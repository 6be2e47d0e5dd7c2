// Average pooling of channel-last grids.
//
// x [B, Hg, Wg, C] -> y [B, Ho, Wo, C], contiguous C. With `adaptive` false the kernel is (Hg / Ho) x (Wg /
// Wo), which must divide evenly (hilo's Lo-Fi pooling, arXiv 2205.13213). With `adaptive` true, cell i covers
// rows floor(i Hg / Ho) .. ceil((i + 1) Hg / Ho) - 1, so cells may overlap or repeat, also for Ho > Hg. Cost:
// elementwise: one addition per element read and one multiplication per output.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct AvgPool2dArgs {
  Tensor x, y;
  bool adaptive = false;
};
void avg_pool2d(Context& ctx, const AvgPool2dArgs& args);

}  // namespace attnbench
