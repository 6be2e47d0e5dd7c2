// The plan of a decoding step over gather lists: one query of each head and a list of keys of its own. The
// kernel: gather.cu.
#pragma once
#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {

struct GatherPlan {
  int units = 0;  ///< batch * heads
  int parts = 1;  ///< blocks of a cluster, which share a list
};
/// Fills the plan; false, with the reason, when the call is not for this kernel.
bool plan_gather(const CudaBackend& backend, const AttentionArgs& args, const Params& p, GatherPlan& plan,
                 const char*& why);
void launch_gather(Context& ctx, const Params& p, const GatherPlan& plan, DType dtype);

}  // namespace attnbench::cuda_attention
