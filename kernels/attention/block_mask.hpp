// Which (query, key) pairs an attention call visits: block lists, element rules, gather lists, token order.
//
// A pair is attended when every condition that is present allows it:
//   1. lists: its key block stands in the `full` or `partial` list of its query block (no lists: all blocks);
//   2. rule: only inside `partial` blocks when there are lists (full blocks meet no mask code), everywhere
//   otherwise;
//   3. ranges, key padding.
// Rows and columns of blocks are *slots*: slot s holds token q_order[s] / k_order[s] (identity without an
// order). Rules and ranges speak of tokens; lists speak of slots.
#pragma once
#include <array>

#include "kernels/core/context.hpp"

namespace attnbench {

/// Which tokens may see each other. Every set part must hold (and); the default allows everything.
struct ElementRule {
  /// key j visible to query i iff j <= i + offset. kAlignEnds: offset = M - N (the last query sees the last
  /// key).
  bool causal = false;
  static constexpr int64_t kAlignEnds = INT64_MIN;
  int64_t offset = kAlignEnds;

  /// band: i + offset - left <= j <= i + offset + right; -1: open on that side. Keys j < sinks stay visible
  /// (subject to `causal`).
  bool band = false;
  int64_t left = -1, right = -1;
  int64_t sinks = 0;

  /// n-D neighbourhood on a row-major grid of `rank` axes (1..3), N = M = product(grid). Per axis: window w
  /// centred and shifted inward at the edges within the dilation group (NATTEN's definition), dilation d,
  /// stride s (queries of one stride group share the window of the group's leader: min(floor(x / s) * s + s /
  /// 2, L - 1)), or causal (the window ends at the query).
  int rank = 0;
  std::array<int64_t, 3> grid{1, 1, 1}, window{1, 1, 1}, dilation{1, 1, 1}, stride{1, 1, 1};
  std::array<bool, 3> causal_axis{false, false, false};
  /// The window is cut at the ends of the axis (of the dilation group) instead of shifted inward: queries
  /// near them see fewer keys.
  std::array<bool, 3> cut_axis{false, false, false};
  /// Tokens of a neighbourhood that stand tile by tile in memory: extents of the tiles, or 0 on every axis
  /// for row-major. Axis x of the grid is padded to whole tiles of each of its `dilation` groups,
  /// x = (tile number * tile + place) * dilation + group, and tokens are numbered (groups..., tile
  /// numbers..., places...), last fastest: a tile is contiguous. N and M count padded tokens; those beyond
  /// the grid are seen by none, and the rows of such queries mean nothing. Not together with causal, band or
  /// orders.
  std::array<int64_t, 3> q_tile{0, 0, 0}, k_tile{0, 0, 0};

  /// segments: i32 [B or 1, N] and [B or 1, M]; only equal ids see each other.
  Tensor segment_q, segment_k;

  /// explicit bits, u8 [Gb, Gh, N, ceil(M / 8)] in slot order, least significant bit first; Gb in {1, B}, Gh
  /// in {1, H}.
  Tensor bitmap;

  bool allows_all() const { return !causal && !band && rank == 0 && !segment_q && !bitmap; }
};

/// Block lists. For group (gb, gh) and query block r the entries are index[begin[r] .. begin[r] + count[r]);
/// the order within a list is free, entries are unique and a block stands in one list only. begin and count
/// are i32 [Gb, Gh, ceil(N / block_q)], begin counted from the start of `index` (i32), so one mask holds at
/// most 2^31 - 1 entries; builders throw UsageError beyond that. Gb in {1, B}, Gh in {1, Hkv, H}.
struct BlockList {
  Tensor begin, count, index;
  explicit operator bool() const { return static_cast<bool>(count); }
};

struct BlockMask {
  int64_t block_q = 64, block_k = 64;  ///< tokens a block; any >= 1 on the CPU, 64 or 128 on tensor cores
  BlockList full, partial;             ///< both absent: all blocks, refined by `rule`
  ElementRule rule;
  /// Token-level gather lists: key tokens (slots) of each query block, instead of `full`/`partial`; index
  /// entries may be any keys in any order, unique. `rule` applies to every pair.
  BlockList gather;
  /// Per-row visible range of key tokens [begin, end), i32 [Gb, Gh, N]; absent: everything.
  Tensor row_begin, row_end;
  /// Valid keys: i32 [B] lengths (keys j < length), and/or u8 [B, M] flags (non-zero: valid).
  Tensor key_length, key_valid;
  /// Token order, i32 [N] and [M]: slot -> token. q, k, v and o stay in token order in memory; the engine
  /// reads and writes through the order.
  Tensor q_order, k_order;
};

/// True when rule lets query token i see key token j (segments and bitmaps included; b, h choose their row).
bool rule_allows(const ElementRule& rule, int64_t b, int64_t h, int64_t i, int64_t j, int64_t n, int64_t m);

/// Smallest range [begin, end) that contains every key slot visible to query i by causal and band parts alone
/// (sinks excluded); no order. Engines use it to skip blocks without lists.
struct KeyRange {
  int64_t begin = 0, end = 0;
};
KeyRange band_range(const ElementRule& rule, int64_t i, int64_t n, int64_t m);

/// Builds full/partial lists of a rule (no bitmap, no segments) for an N x M problem on the context's device:
/// exact at block granularity, memory linear in the number of listed blocks; so is the time for causal and
/// band rules, and for neighbourhoods whose blocks are their tiles (otherwise it is linear in the keys that
/// the blocks' windows cover). Orders are honoured when given.
BlockMask make_block_mask(Context& ctx, const ElementRule& rule, int64_t n, int64_t m, int64_t block_q,
                          int64_t block_k, const Tensor& q_order = {}, const Tensor& k_order = {});

/// Number of visited pairs at block granularity (block_q * block_k each, edges cut) and of attended pairs,
/// summed over all batches and heads. Reads lists back: accounting only. Attended pairs of partial blocks are
/// looked at one by one; without `with_attended` those of lists stay 0.
struct PairCount {
  int64_t visited = 0, attended = 0;
};
PairCount count_pairs(const BlockMask& mask, int64_t batch, int64_t heads, int64_t n, int64_t m,
                      bool with_attended = true);

}  // namespace attnbench
