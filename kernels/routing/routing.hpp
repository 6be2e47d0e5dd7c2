// Routing tokens to attention heads: gates from router scores, and the queries of every head packed so that
// attention computes those alone. Not the attention and not the router's products: those are gemm's.
//
// Shapes are known beforehand and nothing is read back: what depends on the data are gates, indices and
// counts in tensors of fixed size.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Gates of one token over H = Hs + E heads, the first Hs of them shared (always on), of the other E the
/// `keep` with the largest score (ties: lower index; NaN above everything). With p = softmax(routed),
/// u = softmax(shared), a = softmax(balance), m = 1 on the kept heads:
///   renormalised   g = [2 a_0] Hs u  |  [2 a_1] keep p m / max(sum p m, 2^-23)
///   plain          g = [a_0] u  |  [a_1] p m
///   binary         g = 1  |  m
/// Factors in brackets only with `balance`. Without `shared` scores u = 1 / Hs in `renormalised` (a gate of
/// 1) and 1 in `plain`.
/// routed f32 [R, E] (absent: keep = 0), shared f32 [R, Hs], balance f32 [R, 2]; gates f32 [R, H]; selected
/// i32 [R, H]: gate != 0; optional. Row strides free. Cost: special 1 per score (not in binary), elementwise
/// E
/// + 6 H a row.
struct HeadGatesArgs {
  enum class Norm : uint8_t { renormalised, plain, binary };
  Norm norm = Norm::renormalised;
  int64_t shared_heads = 0, keep = 0;
  Tensor routed, shared, balance;
  Tensor gates, selected;
};
void head_gates(Context& ctx, const HeadGatesArgs& args);

/// For each batch element and head the tokens whose gate is not 0, in order, as rows of packed queries, and
/// the block lists under which attention on them costs what is there.
/// gates f32 [B, N, H], any strides. Outputs, packed:
///   index i32 [B, H, N]    token of each packed row; -1 behind the last one (gather_tokens: zeros)
///   weight f32 [B, H, N]   its gate; 0 behind the last one
///   row_begin, row_end i32 [B, H, N]   keys it sees: [0, keys), or up to token + offset with `causal`; none
///                                      behind the last one (cut to [0, keys])
///   count i32 [B, H, ceil(N / block_q)]  key blocks of block_k that some row of the query block sees: the
///                                        blocks 0 .. count - 1
///   total i32 [B, H]       packed rows; optional
/// Cost: bytes.
struct PackQueriesArgs {
  Tensor gates;
  Tensor index, weight, row_begin, row_end, count, total;
  int64_t keys = 0, block_q = 64, block_k = 64;
  bool causal = false;
  int64_t offset = 0;
};
void pack_queries(Context& ctx, const PackQueriesArgs& args);

/// What the members of a cluster see of each other. index_q i32 [B, L, Wq], index_k i32 [B, L, Wk]: token
/// places, ascending in each list; places from `tokens` on are padding. `memory` keys stand before those of
/// index_k and are seen by all. Of the others query i sees the real ones, with `causal` those at its own
/// place or before: always the first so many.
///   row_begin, row_end i32 [B, L, Wq]   the keys seen, [0, memory + so many)
///   weight f32 [B, L, Wq]               1 for a real query that sees a key, else 0
///   bias f32 [B, L, Wq, memory + Wk]    0 where seen, -1e9 elsewhere; optional
/// All packed. Cost: bytes.
struct MemberRangesArgs {
  Tensor index_q, index_k;
  Tensor row_begin, row_end, weight, bias;
  int64_t tokens = 0, memory = 0;
  bool causal = false;
};
void member_ranges(Context& ctx, const MemberRangesArgs& args);

}  // namespace attnbench
