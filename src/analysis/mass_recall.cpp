// How much of the dense attention's weight lies on the keys that a sparse method kept.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

class MassRecall final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "mass_recall";
      i.title = "Dense attention mass that the selection keeps";
      i.summary =
          "The share of the dense softmax's weight on the keys that the method attends to, by head and over "
          "all rows; "
          "beside it the largest share that any choice of as many keys could keep, and the share of the keys "
          "that were "
          "kept, which is what a choice at random keeps on average.";
      i.formula =
          "p_i = softmax(scale q_i k^T) over the keys M_i that the problem allows;  S_i: those that the "
          "method kept\n"
          "mass_recall = mean_i sum_{j in S_i} p_ij\n"
          "best = mean_i (sum of the |S_i| largest p_ij);  kept = mean_i |S_i| / |M_i|\n"
          "gain = (mass_recall - kept) / (best - kept)      1: the best choice, 0: no better than one at "
          "random";
      i.unit = "share of mass";
      i.headline = {"mass_recall", "p5", "best", "kept", "gain"};
      i.params = {spec::integer("queries", 1024, 0, "queries a head, in runs of 16 spread evenly; 0: all")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    DenseSide side(ctx, instance, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const RowSample sample{params.integer("queries")};
    std::vector<double> all;
    std::vector<Shares> found;
    double best_sum = 0, kept_sum = 0;
    for (int64_t h = 0; h < side.heads(); ++h) {
      double recall = 0, share = 0, n = 0, best = 0;
      found.assign(static_cast<size_t>(side.slots(sample)), {});
      side.each_row(h, sample,
                    [&](int64_t slot, const float* p, const Intervals& allowed, const Intervals& kept) {
                      found[static_cast<size_t>(slot)] = shares_of(p, allowed, kept);
                    });
      for (const Shares& row : found) {
        if (!(row.kept >= 0)) continue;
        all.push_back(row.recall);
        recall += row.recall, best += row.best, share += row.kept;
        n += 1;
      }
      r.series["head_mass_recall"].push_back(n > 0 ? recall / n : NAN);
      r.series["head_best"].push_back(n > 0 ? best / n : NAN);
      r.series["head_kept"].push_back(n > 0 ? share / n : NAN);
      best_sum += best, kept_sum += share;
    }
    const auto rows = static_cast<double>(all.size());
    const Summary s = summarize(all);
    const double best = best_sum / rows, kept = kept_sum / rows;
    r.scalars["mass_recall"] = s.mean;
    r.scalars["min"] = s.min, r.scalars["p5"] = s.p5, r.scalars["p50"] = s.p50;
    r.scalars["best"] = best;
    r.scalars["kept"] = kept;
    // Everything kept, or even weights: nothing to gain.
    if (best - kept > 1e-6) r.scalars["gain"] = (s.mean - kept) / (best - kept);
    r.scalars["rows"] = rows;
    r.notes["queries"] =
        std::to_string(side.sampled(sample)) + " of " + std::to_string(side.queries()) + " a head";
    return r;
  }

 private:
  /// Of one row; `kept` below 0: it has no weights, or none that are numbers.
  struct Shares {
    double recall = 0, best = 0, kept = -1;
  };

  static Shares shares_of(const float* p, const Intervals& allowed, const Intervals& kept) {
    if (!p) return {1, 1, 1};
    const int64_t size = tokens_in(kept), seen = tokens_in(allowed);
    double mass = 0, total = 0, most = 0;
    std::vector<float> sorted;
    sorted.reserve(static_cast<size_t>(seen));
    for (const Interval& v : allowed) sorted.insert(sorted.end(), p + v.begin, p + v.end);
    for (const float x : sorted) total += static_cast<double>(x);
    if (!(total > 0)) return {};  // no number, or nothing but -inf
    for (const Interval& v : kept)
      for (int64_t j = v.begin; j < v.end; ++j) mass += static_cast<double>(p[j]);
    if (size < seen) std::nth_element(sorted.begin(), sorted.begin() + size, sorted.end(), std::greater<>());
    for (int64_t j = 0; j < size; ++j) most += static_cast<double>(sorted[static_cast<size_t>(j)]);
    return {mass / total, most / total, static_cast<double>(size) / static_cast<double>(seen)};
  }
};
ATTNBENCH_ANALYSIS(MassRecall);

}  // namespace

}  // namespace attnbench
