// The bf16 instances of the mass kernel, apart from the others so that they compile side by side.
#include "kernels/attention/masses_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_masses_bf16(Context& ctx, const Params& p, const MassPlan& plan) {
  launch_mass_type<__nv_bfloat16>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
