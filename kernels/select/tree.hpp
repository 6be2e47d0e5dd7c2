// Tree search for the best key blocks of every block of queries (HiP, arXiv 2406.09827), and the token lists
// that a selection of key blocks, a window and sinks make. Selection of whole score rows is in select.hpp.
#pragma once
#include "kernels/attention/block_mask.hpp"
#include "kernels/core/context.hpp"

namespace attnbench {

/// For query block m of [B, H] (rows m block_q .. , the last one short; row r stands at key position M - N +
/// r):
///   t = position of its last row + 1 (M when not causal), T = max(0, t - window), nb = ceil(T / block_k)
///   T <= keep tokens: all nb blocks. Otherwise Kb = ceil(keep / block_k) cells of blocks, cell i from
///   floor(nb i / Kb) on, are halved ceil(log2(nb / Kb)) times: every cell splits into its first floor(size /
///   2) blocks and the rest, and the Kb best children stay (equal scores: the lower start; a child without
///   blocks never).
/// Score of a child: the largest q . k over the sampled queries of m (rows stride_q - 1, 2 stride_q - 1, ...
/// of it; its last row when there are fewer than stride_q) and the sampled keys (likewise by stride_k, below
/// T) of one block of the child: the first, the middle one (start + size / 2), the last, one by a hash of
/// (seed, head, m, round, start), or the best of all (oracle). Causal: pairs with the key behind the query do
/// not count; -inf when none is left. q [B, H, N, D], k [B, Hkv, M, D] of one float dtype, D packed; dots in
/// f32. selected i32 [B, H, NQ, Kb]: block numbers, ascending, -1 behind the count; count i32 [B, H, NQ];
/// both contiguous. Kb at most 2048 on CUDA. Cost: matmul 2 D for each sampled pair of 2 Kb children a round
/// (`tree_search_dots`).
struct TreeSearchArgs {
  enum class Representative : uint8_t { first, center, last, random, oracle };
  Tensor q, k, selected, count;
  int64_t block_q = 64, stride_q = 1, block_k = 2, stride_k = 1, keep = 512, window = 0;
  bool causal = true;
  Representative representative = Representative::first;
  uint32_t seed = 0;
  /// The selection's token lists as well, as token_lists makes them with `sinks`, at its cost; absent: none.
  BlockList lists;
  int64_t sinks = 0;
};
void tree_search(Context& ctx, const TreeSearchArgs& args);
/// Dot products charged for one head: sum over query blocks of rounds x 2 Kb x sampled queries x sampled
/// keys.
int64_t tree_search_dots(const TreeSearchArgs& args);

/// Which block a `random` child is scored by; the same everywhere.
constexpr uint32_t tree_hash(uint32_t seed, uint32_t head, uint32_t block, uint32_t round, uint32_t start) {
  uint32_t x = seed * 0x9e3779b1u + head;
  for (const uint32_t v : {block, round, start}) {
    x = (x ^ (x >> 16)) * 0x7feb352du + v;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
  }
  return x ^ (x >> 16);
}

/// Gather lists for attention: for each query block the sinks [0, sinks), the tokens of its selected key
/// blocks, and the last `window` tokens before t (as above), each once and ascending, cut to [0, t).
/// selected, count as above; lists: begin, count i32 [B, H, NQ] and index with Kb block_k + window + sinks
/// entries a row. Cost: bytes.
struct TokenListsArgs {
  Tensor selected, count;
  BlockList lists;
  int64_t n = 0, m = 0, block_q = 64, block_k = 2, window = 0, sinks = 0;
  bool causal = true;
};
void token_lists(Context& ctx, const TokenListsArgs& args);
/// What a tree search with lists hands to token_lists.
TokenListsArgs token_lists_of(const TreeSearchArgs& args);

}  // namespace attnbench
