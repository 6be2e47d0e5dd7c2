// Linear attention on Hopper, as cuda.cu calls it: the chunk form of bf16 and f16 in one kernel. Calls that
// it does not take stay with cuda_sm80.cu.
#pragma once
#include "kernels/linear_attention/linear_attention.hpp"

namespace attnbench::cuda_linear {

/// Runs the chunk form with causality and returns true; false, with nothing done, when the call is not for
/// this kernel: another card or type, D > 128, blocks over 128 rows, rows that tensor maps cannot describe,
/// or too few heads to fill the card by carrying states from segment to segment.
bool chunk_on_hopper(Context& ctx, const LinearAttentionArgs& args);

}  // namespace attnbench::cuda_linear
