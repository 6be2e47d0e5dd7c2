// The Hopper attention kernels for f16.
#include "kernels/attention/sm90_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_hopper_f16(Context& ctx, const Params& p, const HopperPlan& plan) {
  launch_hopper_type<__half>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
