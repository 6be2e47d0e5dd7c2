// Which tokens each output token depends on in one layer of a method: exact, by row, memory bounded.
//
// Analyses (receptive field, density, distance) read methods through this; it is not how kernels mask.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace attnbench {

struct Interval {
  int64_t begin = 0, end = 0;  ///< half open
  bool operator==(const Interval&) const = default;
};
using Intervals = std::vector<Interval>;

struct PairSet {
  int64_t batch = 1, heads = 1;
  /// Heads are those of so many layers of a stack, layer by layer: head l heads / layers + h is head h of
  /// layer l.
  int64_t layers = 1;
  int64_t queries = 0;  ///< output tokens
  int64_t tokens = 0;   ///< input tokens
  bool same_for_all_batches = true;
  bool same_for_all_heads = false;
  /// Grid of the tokens (image, video) for distances; empty: a sequence.
  std::vector<int64_t> grid;
  /// Tokens before the grid's first that have no place on it: [CLS], registers. Distances leave them out.
  int64_t leading = 0;
  /// Fills `out` with the input tokens that output token i of head h depends on: sorted, disjoint, non-empty
  /// intervals. Pooled keys count as the tokens they pool. Answers several threads at once.
  std::function<void(int64_t b, int64_t h, int64_t i, Intervals& out)> row;
};

}  // namespace attnbench
