// The f16 instances of the mma.sync kernel with relative embeddings, apart so that they compile side by side.
#include "kernels/attention/sm80_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_relative_f16(Context& ctx, const Params& p, const TensorPlan& plan) {
  launch_relative_type<__half>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
