// Joins two attention results over disjoint sets of keys: what each found alone, weighted by its sum of
// exponentials.
//
//   o = (e^lse_a o_a + e^lse_b o_b) / (e^lse_a + e^lse_b)        lse = ln(e^lse_a + e^lse_b)
//
// o_a, o_b, o [B, H, N, E] of one dtype (f32, bf16, f16), any strides with a contiguous last axis; o may be
// o_a or o_b. lse_a, lse_b, lse f32 [B, H, N], any strides; lse may be left out or be one of the others. A
// row with lse_a = lse_b = -inf: o = 0, lse = -inf; a row with one of them -inf is the other one. Cost:
// special 3 a row (two exponentials, a division), elementwise 3 E a row.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct MergeAttentionArgs {
  Tensor o_a, lse_a, o_b, lse_b, o;
  Tensor lse;  ///< on request
};
void merge_attention(Context& ctx, const MergeAttentionArgs& args);

}  // namespace attnbench
