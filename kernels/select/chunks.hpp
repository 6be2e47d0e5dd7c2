// Chunks of tokens whose length the data decide (DHSA, arXiv 2510.24606): scores of the gaps between tokens,
// a greedy choice of gaps that keep their distance, and token lists that whole chunks fill up to a budget.
// Not pooling over chunks: pool_tokens takes their bounds; blocks of equal length are in select.hpp.
#pragma once
#include "kernels/attention/block_mask.hpp"
#include "kernels/core/context.hpp"

namespace attnbench {

/// How unevenly later rows look at the two sides of each gap t (between tokens t and t + 1):
///   A_rj = mean over heads of exp(scale q_r . k_j - lse_r) over visible pairs: j <= r, and j >= r - window
///   past = sum of A over columns t - w + 1 .. t,  future = over columns t + 1 .. t + w, both over rows t + w
///          .. N - 1, at most `reach` of them
///   score_t = (max(past, future) + 1e-6) / (min(past, future) + 1e-6)
/// and 0 for t < 2 w - 1 and t >= N - 2 w. q [B, H, N, D], k [B, Hkv, N, D] of one float dtype, D packed; lse
/// f32 [B, H, N] (attention's), score f32 [B, N], both contiguous. window -1 and reach 0: no limit; reach
/// must be 2 w at least. Dots in f32, sums in f64, in row order on every device. Cost: matmul 2 D, special 1,
/// elementwise 2 a visible pair of each head; elementwise 4 w a gap.
struct GapRatiosArgs {
  Tensor q, k, lse, score;
  int64_t w = 4, window = -1, reach = 0;
  float scale = 1.0f;
};
void gap_ratios(Context& ctx, const GapRatiosArgs& args);

/// Greedy one-dimensional non-maximum suppression. Columns of each row are visited in `order` (argsort,
/// descending): one is chosen when its score is above `threshold`, it is not above `last`, and it differs by
/// more than `spacing` from every one chosen so far. `forced` is chosen first, whatever its score. A row ends
/// once `limit` are chosen, looked at after a choice: one visited column may be chosen in any case. score f32
/// and order i32 [..., M], flag u8 [..., M]: 1 where chosen, else 0; rows packed. NaN scores are never
/// chosen. Cost: elementwise 1 a column.
struct PickSpacedArgs {
  Tensor score, order, flag;
  float threshold = 0.0f;
  int64_t spacing = 0;
  int64_t limit = INT64_MAX;
  int64_t forced = -1;  ///< -1: none
  int64_t last = INT64_MAX;
};
void pick_spaced(Context& ctx, const PickSpacedArgs& args);

/// Tokens for each block of queries, by chunks in falling order of score until a budget of K is full.
///
/// Query block m holds the positions [first + m block_q, first + (m + 1) block_q), of which rows exist below
/// first + rows. It may list keys [lo, hi): hi = min(n, end), lo = end - window (0 without window), end being
/// the end of its positions. The newest min(recent, K, hi - lo) of them are listed; the other slots take the
/// remaining keys of whole chunks in `order`, of the last one its first keys; slots still free name key n -
/// 1. In ascending order, the first min(leading, K) entries are then replaced by the keys s, s + 1, ... cut
/// at hi - 1, where s = max(0, first + m block_q - window) (0 without window).
/// order i32 [B, Q, C]: chunks by falling score; bounds i32 [1 or B, C + 1], -1 behind the last chunk; tokens
/// i32 [B, Q, K]. lists: the entries of tokens that some row of the block can see, each once: begin, count
/// i32 [B, 1, Q], index i32 [B Q K]. All contiguous. Cost: bytes.
struct ChunkListsArgs {
  Tensor order, bounds, tokens;
  BlockList lists;
  int64_t n = 0, first = 0, rows = 0, block_q = 64;
  int64_t window = 0;  ///< 0: none
  int64_t recent = 0, leading = 0;
};
void chunk_lists(Context& ctx, const ChunkListsArgs& args);

}  // namespace attnbench
