// Instances that are only what an analysis sees of them: pairs, rows or statistics given by the test.
#pragma once
#include <functional>

#include "analysis/analysis.hpp"
#include "kernels/core/backend.hpp"

namespace attnbench {

class FakeInstance : public Instance {
 public:
  std::optional<PairSet> pair_set;
  std::optional<RowStats> stats;
  std::function<void(int64_t b, int64_t h, int64_t i, float* row)> row;
  int64_t key_count = 0;
  int64_t most_values = 0;  ///< asked for at once
  bool short_rows = false;

  void run(Context&) override {}
  TensorMap outputs() const override { return {}; }
  ClosedForm cost() const override { return {}; }
  std::optional<PairSet> pairs() const override { return pair_set; }
  std::optional<RowStats> row_stats(Context&) override { return stats; }
  int64_t keys(int64_t) const override { return key_count; }
  bool rows(Context&, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    if (!row) return false;
    out.assign(static_cast<size_t>((q_end - q_begin) * key_count), 0.0f);
    most_values = std::max(most_values, static_cast<int64_t>(out.size()));
    for (int64_t i = q_begin; i < q_end; ++i) row(b, h, i, out.data() + (i - q_begin) * key_count);
    if (short_rows) out.pop_back();
    return true;
  }
};

inline AnalysisResult analyse(const char* id, FakeInstance& instance, const Problem& problem = {},
                              const std::map<std::string, Value>& given = {}) {
  Context ctx(cpu_backend(), 2);
  const Analysis& a = find_analysis(id);
  return a.compute(ctx, instance, problem, resolve_params(id, a.info().params, given, problem));
}

using RowFunction = std::function<void(int64_t b, int64_t h, int64_t i, Intervals& out)>;

inline PairSet square(int64_t n, int64_t heads, RowFunction row) {
  PairSet p;
  p.heads = heads;
  p.queries = p.tokens = n;
  p.row = std::move(row);
  return p;
}

/// Tokens i - left to i + right, cut at the ends.
inline PairSet band(int64_t n, int64_t left, int64_t right, int64_t heads = 1) {
  return square(n, heads, [=](int64_t, int64_t, int64_t i, Intervals& out) {
    out = {{std::max<int64_t>(0, i - left), std::min(n, i + right + 1)}};
  });
}

}  // namespace attnbench
