// Causal linear attention with a fixed decay per head, in four exactly equal forms (Lightning Attention,
// arXiv 2405.17381, Algorithms 3 and 5): o_t = sum_{s <= t} lambda^(t-s) (q_t . k_s) v_s. No softmax, no
// scale.
//
// q, k [B, H, N, D], v, o [B, H, N, E], any strides with contiguous last axis; f32, bf16, f16 (states and
// sums in f32). log_decay [H] f32: ln(lambda_h) <= 0 (0: no decay). chunk = block_size rows.
//   chunk:      blocks in order, D x E state carried per head
//   parallel:   all intra-block products, all block sums, a decayed exclusive scan, all inter-block products
//   recurrent:  one state update and one matvec per token (decode form)
//   quadratic:  (Q K^T had M) V, tile by tile; no N x N buffer
// state_in, state_out [B, H, D, E] f32, optional: the carried KV before and after (with lambda^L for a ragged
// last block). causal = false: o_t = q_t sum_s k_s v_s^T, which needs log_decay = 0. Cost per head as
// executed with full Bk x Bk tiles: chunk and parallel N (2 Bk D + 2 Bk E + 4 D E) matmul FLOPs with N
// counted as given (the card's formula), N Bk elementwise; recurrent 4 N D E matmul + N D E elementwise;
// quadratic 2 N^2 (D + E) matmul when tiles above the diagonal are executed, which this operator does not do:
// it charges the tiles it runs (see linear_attention_cost).
// A log_decay that breaks the rules throws UsageError on the CPU. A device cannot refuse what it reads
// without stopping for the host, so on CUDA such a head's outputs and states are NaN.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct LinearAttentionArgs {
  enum class Form : uint8_t { chunk, parallel, recurrent, quadratic };
  Form form = Form::chunk;
  Tensor q, k, v, o;
  Tensor log_decay;
  Tensor state_in, state_out;  ///< optional
  int64_t block_size = 64;
  bool causal = true;
};
void linear_attention(Context& ctx, const LinearAttentionArgs& args);
/// What linear_attention charges for these arguments.
Cost linear_attention_cost(const LinearAttentionArgs& args);

}  // namespace attnbench
