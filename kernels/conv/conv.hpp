// Convolution with stride = kernel and no padding ("patch" convolution): patch embeddings, spatial reduction.
//
// x [B, Hg, Wg, C] channel-last (channels_last = true) or [B, C, Hg, Wg]; weight [O, C, r, r] (PyTorch's
// order); bias [O] or none; y [B, floor(Hg/r), floor(Wg/r), O] channel-last. Left-over rows and columns are
// dropped. Done as a patch gather and one gemm. Cost: matmul 2 B Ho Wo r^2 C O, elementwise B Ho Wo O for a
// bias.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct PatchConv2dArgs {
  Tensor x, weight, bias, y;
  int64_t kernel = 1;
  bool channels_last = true;
};
void patch_conv2d(Context& ctx, const PatchConv2dArgs& args);

}  // namespace attnbench
