// Linear attention on tensor cores, as cuda.cu calls it: sums over segments and walks over their blocks. What
// it cannot run (f32, odd sizes, unaligned rows) stays with the kernels of cuda.cu.
#pragma once
#include "kernels/linear_attention/linear_attention.hpp"

namespace attnbench::cuda_linear {

/// Whether the kernels take these sizes, strides and addresses on this card: bf16 or f16, D <= 256, D and E
/// multiples of 8, rows at multiples of 16 bytes.
bool usable(Context& ctx, const LinearAttentionArgs& args);

/// How many times the heads' walks would fill the card if each were cut in as many segments: 1 when there are
/// enough heads, or too few blocks to cut.
int64_t useful_segments(Context& ctx, const LinearAttentionArgs& args, int64_t block);

/// sums[head][s] = sum over the rows of segment s of lambda^(rows after it) k v^T, all f32 [D, E].
void segment_sums(Context& ctx, const LinearAttentionArgs& args, int64_t segment, float* sums);

struct Walk {
  int64_t segment = 0;            ///< rows of one walk, a multiple of `block` unless it is all of them
  int64_t block = 0;              ///< rows of a block
  const float* states = nullptr;  ///< what segments inherit, or null: state_in, or nothing
  int64_t head_step = 0, segment_step = 0;  ///< elements between two states
  bool whole = false;                       ///< every segment sees all rows before it as one block
  bool last_state = false;                  ///< writes state_out; one segment then
};
/// The outputs of all rows.
void walk(Context& ctx, const LinearAttentionArgs& args, const Walk& plan);

}  // namespace attnbench::cuda_linear
