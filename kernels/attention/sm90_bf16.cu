// The Hopper attention kernels for bf16.
#include "kernels/attention/sm90_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_hopper_bf16(Context& ctx, const Params& p, const HopperPlan& plan) {
  launch_hopper_type<__nv_bfloat16>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
