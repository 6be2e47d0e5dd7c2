// Which share of all query-token pairs a method attends to.
#include <algorithm>

#include "analysis/analysis.hpp"

namespace attnbench {

namespace {

int64_t size_of(const Intervals& row) {
  int64_t n = 0;
  for (const Interval& v : row) n += v.end - v.begin;
  return n;
}

class Density final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "density";
      i.title = "Density of the attention pattern";
      i.summary =
          "The share of query-token pairs that the method attends to, by head and over all heads. Pooled "
          "keys "
          "count as the tokens they pool.";
      i.formula =
          "density_h = sum_i |S_h(i)| / (N M)    S_h(i): tokens that output token i of head h depends on\n"
          "density   = mean of density_h over heads (and batch, where patterns differ)";
      i.unit = "share of pairs";
      i.headline = {"density", "mean_tokens_per_query", "max_tokens_per_query"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&, const Params&) const override {
    const std::optional<PairSet> pairs = instance.pairs();
    if (!pairs) throw Unsupported("density: the method has no pairs of tokens");
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t batch = pairs->same_for_all_batches ? 1 : pairs->batch;
    const double all = static_cast<double>(pairs->queries) * static_cast<double>(pairs->tokens);
    std::vector<double>& by_head = r.series["head_density"];
    int64_t least = INT64_MAX, most = 0;
    double total = 0;
    for (int64_t h = 0; h < pairs->heads; ++h) {
      if (h > 0 && pairs->same_for_all_heads) {
        total += total / static_cast<double>(h);
        by_head.push_back(by_head.front());
        continue;
      }
      double attended = 0;
      for (int64_t b = 0; b < batch; ++b)
      // Sums of whole numbers: the split over threads does not show.
#pragma omp parallel num_threads(ctx.threads()) reduction(+ : attended) reduction(min : least) \
    reduction(max : most)
      {
        Intervals row;
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = 0; i < pairs->queries; ++i) {
          pairs->row(b, h, i, row);
          const int64_t n = size_of(row);
          attended += static_cast<double>(n);
          least = std::min(least, n);
          most = std::max(most, n);
        }
      }
      attended /= static_cast<double>(batch);
      total += attended;
      by_head.push_back(all > 0 ? attended / all : 0);
    }
    const double rows = static_cast<double>(pairs->heads) * static_cast<double>(pairs->queries);
    r.scalars["density"] =
        all > 0 && pairs->heads > 0 ? total / (all * static_cast<double>(pairs->heads)) : 0;
    r.scalars["pairs"] = total;
    r.scalars["mean_tokens_per_query"] = rows > 0 ? total / rows : 0;
    r.scalars["min_tokens_per_query"] = rows > 0 ? static_cast<double>(least) : 0;
    r.scalars["max_tokens_per_query"] = static_cast<double>(most);
    r.notes["pairs"] = "of one batch element, all heads";
    return r;
  }
};
ATTNBENCH_ANALYSIS(Density);

}  // namespace

}  // namespace attnbench
