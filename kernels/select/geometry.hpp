// What a causal or band rule lets through of one block of queries and keys, for host and device code. Closed
// forms of the same ranges as band_range; not for neighbourhoods, segments and bitmaps.
#pragma once
#include <cstdint>

#include "kernels/attention/block_mask.hpp"

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH __host__ __device__
#else
#define ATTNBENCH_BOTH
#endif

namespace attnbench {

struct BlockGeometry {
  int64_t n = 0, m = 0, block_q = 1, block_k = 1, offset = 0;
  bool causal = false, band = false;
  int64_t left = -1, right = -1, sinks = 0;

  BlockGeometry() = default;
  BlockGeometry(const ElementRule& r, int64_t n_, int64_t m_, int64_t bq, int64_t bk)
      : n(n_),
        m(m_),
        block_q(bq),
        block_k(bk),
        offset(r.offset == ElementRule::kAlignEnds ? m_ - n_ : r.offset),
        causal(r.causal),
        band(r.band),
        left(r.left),
        right(r.right),
        sinks(r.band ? r.sinks : 0) {}

  enum Kind : int { none, partial, full };

  ATTNBENCH_BOTH static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  ATTNBENCH_BOTH static int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }
  /// Keys [low, high) of query i by causal and band parts, not cut to [0, m); never empty. [0, sink) on top.
  ATTNBENCH_BOTH int64_t low(int64_t i) const { return band && left >= 0 ? i + offset - left : INT64_MIN; }
  ATTNBENCH_BOTH int64_t high(int64_t i) const {
    int64_t end = INT64_MAX;
    if (causal) end = i + offset + 1;
    if (band && right >= 0) end = least(end, i + offset + right + 1);
    return end;
  }
  ATTNBENCH_BOTH int64_t sink(int64_t i) const { return causal ? least(sinks, i + offset + 1) : sinks; }

  /// Both ends of the range and the sinks grow with the query, so a block's first and last query decide.
  ATTNBENCH_BOTH Kind classify(int64_t r, int64_t c) const {
    const int64_t first = r * block_q, last = least(n, first + block_q) - 1;
    const int64_t k0 = c * block_k, k1 = least(m, k0 + block_k);
    if (most(low(first), k0) >= least(high(last), k1) && sink(last) <= k0) return none;
    if (k1 <= sink(first) || (k1 <= high(first) && low(last) <= most(k0, sink(last)))) return full;
    return partial;
  }
  /// Block of the key at the position of r's last query; negative: before the keys.
  ATTNBENCH_BOTH int64_t diagonal(int64_t r) const {
    const int64_t key = least(least(n, (r + 1) * block_q) - 1 + offset, m - 1);
    return key < 0 ? -1 : key / block_k;
  }
  /// The most partial blocks that a row of blocks can have: those that an end of the queries' ranges crosses.
  /// An end moves by block_q - 1 keys from the first query to the last.
  int64_t partial_bound() const {
    const int64_t ends = (causal || (band && right >= 0) ? 1 : 0) + (band && left >= 0 ? 1 : 0);
    return ends * ((block_q - 1) / block_k + 2) + (sinks > 0 ? 2 : 0);
  }
};

}  // namespace attnbench
