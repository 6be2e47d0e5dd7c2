// The f32 instances of the mma.sync kernel, apart from the others so that they compile side by side.
#include "kernels/attention/sm80_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_tensor_f32(Context& ctx, const Params& p, const TensorPlan& plan) {
  launch_type<float>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
