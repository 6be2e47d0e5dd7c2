// The spatial-reduction attention layer behind sra, sra_linear and twins_gsa: every token attends to a
// reduced grid.
#pragma once
#include "methods/vision_layer.hpp"

namespace attnbench::vision {

struct ReductionOptions {
  int64_t ratio = 1;  ///< side of the reducing convolution's patch; 1: no reduction
  int64_t pool =
      0;  ///< above 0: adaptive average pooling to pool x pool, a 1x1 convolution, norm and GELU instead
  bool qkv_bias = true;
};

std::unique_ptr<Instance> make_reduction_layer(Context& ctx, const MethodInfo& info, const LayerShape& shape,
                                               const ReductionOptions& options);

}  // namespace attnbench::vision
