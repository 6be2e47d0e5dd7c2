// Attention rows of an instance as probabilities that were looked at: refused where they are none, left out
// where they are no numbers. Not an analysis; for_rows hands rows on as they are.
#pragma once
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "analysis/analysis.hpp"

namespace attnbench {

class RowStream {
 public:
  /// Throws Unsupported{why} in the name of `analysis` when the instance has no rows.
  RowStream(Context& ctx, Instance& instance, const Problem& problem, std::string analysis);

  int64_t batch() const { return batch_; }
  int64_t heads() const { return heads_; }
  int64_t queries() const { return queries_; }
  int64_t keys(int64_t h) const { return instance_.keys(h); }
  /// Whether the keys are tokens of the sequence itself, in order, so that places mean something.
  bool self_attention() const;
  /// M - N: key i + offset stands where query i does.
  int64_t offset() const { return keys(0) - queries_; }

  /// Calls f(query, weights) for every query of a head; rows that are NaN or infinite are counted and left
  /// out.
  void each_row(int64_t b, int64_t h, const std::function<void(int64_t i, const float* p)>& f);
  /// Rows of at most `count` queries spread evenly over all, as given: [queries][keys].
  std::vector<std::vector<float>> sample(int64_t b, int64_t h, int64_t count);
  int64_t sampled(int64_t count) const { return std::min(count, queries_); }
  /// Writes what was left out into the result.
  void note(AnalysisResult& r) const;

 private:
  /// Throws Unsupported naming the first weight below 0.
  void check(const float* p, int64_t b, int64_t h, int64_t i) const;
  Context& ctx_;
  Instance& instance_;
  std::string analysis_;
  int64_t batch_ = 1, heads_ = 1, queries_ = 0, tokens_ = 0, not_finite_ = 0;
};

}  // namespace attnbench
