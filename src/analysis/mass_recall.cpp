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
    std::vector<float> sorted;
    double best_sum = 0, kept_sum = 0;
    for (int64_t h = 0; h < side.heads(); ++h) {
      double recall = 0, share = 0, n = 0, best = 0;
      side.each_row(
          h, sample, [&](int64_t, int64_t, const float* p, const Intervals& allowed, const Intervals& kept) {
            const int64_t size = tokens_in(kept), seen = tokens_in(allowed);
            double mass = 0, total = 0, most = 0;
            sorted.clear();
            for (const Interval& v : allowed) sorted.insert(sorted.end(), p + v.begin, p + v.end);
            for (const float x : sorted) total += static_cast<double>(x);
            if (!(total > 0)) return;  // no number, or nothing but -inf
            for (const Interval& v : kept)
              for (int64_t j = v.begin; j < v.end; ++j) mass += static_cast<double>(p[j]);
            if (size < seen)
              std::nth_element(sorted.begin(), sorted.begin() + size, sorted.end(), std::greater<>());
            for (int64_t j = 0; j < size; ++j) most += static_cast<double>(sorted[static_cast<size_t>(j)]);
            all.push_back(mass / total);
            recall += mass / total, best += most / total,
                share += static_cast<double>(size) / static_cast<double>(seen);
            n += 1;
          });
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
};
ATTNBENCH_ANALYSIS(MassRecall);

}  // namespace

}  // namespace attnbench
