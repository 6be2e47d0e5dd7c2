// Moves probability mass off a set of keys of softmax attention, and shares it out among the other keys.
//
// S: the set, by batch and head. With s_i = sum of p_ij over j in S, the weights of S are multiplied by beta
// and all others by c_i = 1 + (1 - beta) s_i / (1 - s_i), so that a row still sums to 1. A row with s_i = 1
// stays as it is, and so do rows of heads whose `apply` is 0. Two forms of the same:
//   reweigh_attention  from what attention found over all keys (o, lse) and over S alone (o_s, lse_s):
//                      s_i = e^(lse_s - lse),  y_i = c_i o_i - (c_i - beta) s_i o_s_i
//   reweigh_map        on the probabilities in memory: y_ij = beta p_ij for j in S, else c_i p_ij
// Source: the attention calibration of arXiv 2406.15765. Cost: special 2 (attention) or 1 (map) a row;
// elementwise 4 E a row, or 2 M a row (the sum and the product).
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// o, o_s, y [B, H, N, E] of one dtype (f32, bf16, f16), any strides with a contiguous last axis; y may be o,
/// or be left out where the shares alone are wanted. lse, lse_s f32 [B, H, N] (lse finite; lse_s may be -inf:
/// s = 0, and o_s is not read). apply f32 [B, H]; absent: every head. share, share_after f32 [B, H, N],
/// packed, on request: s_i, and the mass of S afterwards. The f32 tensors but share are packed too.
struct ReweighAttentionArgs {
  Tensor o, lse, o_s, lse_s, apply;
  float beta = 1.0f;
  Tensor y, share, share_after;
};
void reweigh_attention(Context& ctx, const ReweighAttentionArgs& args);

/// p, y f32 [B, H, N, M], packed; y may be p. members i32 [B, H, M], packed: non-zero for keys of S.
struct ReweighMapArgs {
  Tensor p, members, apply;
  float beta = 1.0f;
  Tensor y, share, share_after;
};
void reweigh_map(Context& ctx, const ReweighMapArgs& args);

}  // namespace attnbench
