// A sparse method beside the dense attention it stands for: rows of the dense weights with the keys that the
// method chose for the same query. What analyses of selections share; not an analysis.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "analysis/attention_rows_stream.hpp"
#include "methods/attention_rows.hpp"
#include "methods/dense_counterpart.hpp"

namespace attnbench {

class DenseSide {
 public:
  /// Weights in flight, 64 MiB: a call widens all keys of a head, which takes as long as a few rows of it.
  static constexpr int64_t kFloats = int64_t{1} << 24;
  /// Throws Unsupported in the name of `analysis` when the method has no dense counterpart or no pairs.
  DenseSide(Context& ctx, Instance& instance, std::string analysis);

  const DenseEquivalent& dense() const { return dense_; }
  const PairSet& chosen() const { return chosen_; }
  int64_t batch() const { return dense_.pairs.batch; }
  int64_t heads() const { return dense_.pairs.heads; }
  int64_t queries() const { return dense_.pairs.queries; }
  int64_t keys() const { return dense_.pairs.tokens; }
  int64_t sampled(const RowSample& s) const {
    return s.queries == 0 ? queries() : std::min(s.queries, queries());
  }
  /// The slots of each_row.
  int64_t slots(const RowSample& s) const { return batch() * sampled(s); }

  /// Dense weights of queries [begin, end) of a head, row-major by key token.
  void rows(int64_t b, int64_t h, int64_t begin, int64_t end, std::vector<float>& out);
  /// Calls f(slot, p, allowed, kept) for sampled queries of head h that may attend to something: dense
  /// weights of all keys, the keys that the dense attention may see, and those of them that the method kept.
  /// All threads call f, each for rows of its own; `slot` counts the rows of the head from 0 on, so that f
  /// can leave what it found where the caller adds it up in order. Where the method kept every key of a block
  /// of rows, their weights are not computed and p is null.
  using Visit =
      std::function<void(int64_t slot, const float* p, const Intervals& allowed, const Intervals& kept)>;
  void each_row(int64_t h, const RowSample& sample, const Visit& f);

 private:
  Context& ctx_;
  std::string analysis_;
  DenseEquivalent dense_;
  PairSet chosen_;
  std::unique_ptr<AttentionRows> rows_;
};

inline int64_t tokens_in(const Intervals& row) {
  int64_t n = 0;
  for (const Interval& v : row) n += v.end - v.begin;
  return n;
}
/// Tokens of both: sorted, disjoint.
Intervals common(const Intervals& a, const Intervals& b);
/// Makes intervals of any order, overlapping or empty, sorted, disjoint and non-empty.
void unite(Intervals& v);

}  // namespace attnbench
