// What a query of a span-search method may be routed to: every span that some search score could choose. The
// structure behind the choice; what was chosen is in the instance's outputs and pairs().
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/core/tensor.hpp"
#include "methods/pair_set.hpp"

namespace attnbench {

struct Candidates {
  int64_t position = 0;          ///< of the query among the keys; it sees keys up to its own
  int64_t first_key = 0;         ///< the first one that exists (padding before it)
  Interval always;               ///< keys seen whatever the search finds; empty: none
  std::vector<int64_t> anchors;  ///< nearest first
  Intervals spans;               ///< one an anchor; they overlap
};

/// What the last run chose.
struct ChosenSpans {
  Tensor anchors;    ///< i32 [B, H, N, K], -1: no span in that slot
  Tensor scores;     ///< f32 [B, H, N, K], the gate's logits
  Tensor positions;  ///< i32 [N]
};

class SpanCandidates {
 public:
  virtual ~SpanCandidates() = default;
  /// Of query i of batch element b, the same for all heads; after prepare().
  virtual Candidates candidates_of(int64_t b, int64_t i) const = 0;
  virtual ChosenSpans chosen() const = 0;  ///< after run()
};

}  // namespace attnbench
