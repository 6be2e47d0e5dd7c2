// Attention over spans that each query finds for itself: the search along stripes of keys, the spans' rows
// put in order for the attention operator, and their results joined. Not the attention: that is attention's.
//
// Shapes are known beforehand and nothing is read back: what depends on the data are places in tensors of
// fixed size. -1 stands for no key.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// For each query at place t the K anchors with the largest product, among keys at distances that grow.
///
/// Candidates are the keys c = t - e + 1 in [0, M) for e in `stripes`, valid ones only; z = scale q . k_c in
/// f32. The K largest are kept, best first; equal ones: the lower key (the farther one) first; NaN above
/// everything. With `first` the first valid key of the sequence and L = clamp(t + 1 - first, 0, M) the span
/// of anchor c is, inclusive,
///     start = max(c - before[L], first),   end = min(c + after[L], t, M - 1, max(t - window + 1, 0) - 1)
/// the last limit only with `apart`: nothing of a span stands among the `window` keys up to t.
///
/// q [B, H, N, D], k [B, Hkv, M, D], f32, bf16, f16, D packed. position i32 [N], each in [0, 2^31 - 1).
/// stripes i32 [S], ascending, >= 1. before, after i32 [M + 1]. Optional: key_valid u8 [B, M], first i32 [B]
/// (0). Outputs, packed: anchor, start, end i32 [B, H, N, K], -1 in empty slots; score f32 [B, H, N, K], -1e9
/// there. K <= 32 on CUDA. Cost: matmul 2 D and elementwise 1 a candidate below t + 1, valid or not
/// (`candidates`: their number over all N queries, when the caller knows it; else counted, in exact passes
/// only).
struct SearchSpansArgs {
  Tensor q, k, position, stripes, before, after;
  Tensor key_valid, first;
  float scale = 1.0f;
  int64_t window = 0;
  bool apart = false;
  int64_t candidates = -1;
  Tensor anchor, start, end, score;
};
void search_spans(Context& ctx, const SearchSpansArgs& args);

/// Rows of attention in another order: row r of a head is span order[r] of its P = N K ones.
///   query i32 [B, H, P]               order[r] / K: the query to gather
///   row_begin, row_end i32 [B, H, P]  the span's keys [start, end + 1); none (0, 0) where start is -1
///   place i32 [B, H, P]               where span p went: place[order[r]] = r
///   first_block, blocks i32 [B, H, ceil(P / block_q)]  the key blocks of block_k from the least key of a
///                                     block of rows to its last one; none: 0, 0
/// order, start, end i32 [B, H, P], order a permutation of each row. All packed. Cost: bytes.
struct PackSpansArgs {
  Tensor order, start, end;
  Tensor query, row_begin, row_end, place, first_block, blocks;
  int64_t per_query = 1;  ///< K
  int64_t block_q = 64, block_k = 64;
};
void pack_spans(Context& ctx, const PackSpansArgs& args);

/// o_n = sum_s g_s (e^lse_s o_s + e^lse_w o_w) / (e^lse_s + e^lse_w),  g = softmax over the K scores of n
///
/// One branch a span: its own result joined with that of the keys all branches share. A branch with neither
/// is 0.
/// spans [B, H, P, E] with lse f32 [B, H, P], span (n, s) in row place[n K + s], i32 [B, H, P]; score f32 [B,
/// H, N, K]; shared [B, H, N, E] with shared_lse f32 [B, H, N], both or neither. o [B, H, N, E]. spans,
/// shared and o of one dtype (f32, bf16, f16), E packed; the rest packed. Sums in f32, rounded once. Cost:
/// special 4 a span, elementwise (2 E + 4) a span.
struct MergeSpansArgs {
  Tensor spans, lse, place, score, shared, shared_lse, o;
};
void merge_spans(Context& ctx, const MergeSpansArgs& args);

}  // namespace attnbench
