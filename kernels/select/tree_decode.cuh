// Tree search for a decoding step, one query a head. The kernel: tree_decode.cu; everything else:
// tree_cuda.cu.
#pragma once
#include "kernels/core/cuda_backend.cuh"
#include "kernels/select/tree.hpp"

namespace attnbench::tree {

/// False when the call is not for this kernel: 16-bit rows of 64 or 128 elements and single queries are.
bool launch_decode(Context& ctx, const TreeSearchArgs& args, int sms, int compute_capability);

}  // namespace attnbench::tree
