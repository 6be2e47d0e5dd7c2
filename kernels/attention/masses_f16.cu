// The f16 instances of the mass kernel, apart from the others so that they compile side by side.
#include "kernels/attention/masses_kernel.cuh"

namespace attnbench::cuda_attention {

void launch_masses_f16(Context& ctx, const Params& p, const MassPlan& plan) {
  launch_mass_type<__half>(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
