// The sparsity that a method delivered, counted from what it attended to, not from what its parameters ask
// for.
#include <algorithm>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"

namespace attnbench {

namespace {

constexpr int64_t kBins = 16;

class DeliveredSparsity final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "delivered_sparsity";
      i.title = "Sparsity delivered";
      i.summary =
          "The share of the dense attention's pairs that the method left out in its last run: by pairs that "
          "carry "
          "weight, and by pairs that its kernel computed (listed blocks in full, future keys of diagonal "
          "blocks "
          "included). By head, and along the sequence in 16 bins of queries.";
      i.formula =
          "sparsity = 1 - sum_i |S_i| / sum_i |M_i|      S, M: keys attended to, keys of the dense "
          "attention\n"
          "visited_sparsity = 1 - computed pairs / sum_i |M_i|      below 0: more computed than dense "
          "attention has\n"
          "used_share = sum_i |S_i| / computed pairs;  bound = 1 / (1 - visited_sparsity), the speed-up at "
          "equal rate";
      i.unit = "share of pairs";
      i.headline = {"sparsity", "visited_sparsity", "used_share", "bound"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&, const Params&) const override {
    DenseSide side(ctx, instance, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t n = side.queries(), bins = std::min(kBins, std::max<int64_t>(n, 1));
    std::vector<double> kept_in(static_cast<size_t>(bins), 0.0), allowed_in(kept_in.size(), 0.0);
    double kept = 0, allowed = 0;
    for (int64_t h = 0; h < side.heads(); ++h) {
      double head_kept = 0, head_allowed = 0;
      for (int64_t b = 0; b < side.batch(); ++b)
      // Sums of whole numbers: the split over threads does not show.
#pragma omp parallel num_threads(ctx.threads()) reduction(+ : head_kept, head_allowed)
      {
        Intervals dense, chosen;
        std::vector<double> own_kept(kept_in.size(), 0.0), own_allowed(kept_in.size(), 0.0);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
          side.dense().pairs.row(b, h, i, dense);
          side.chosen().row(b, h, i, chosen);
          const auto s = static_cast<double>(tokens_in(common(dense, chosen))),
                     m = static_cast<double>(tokens_in(dense));
          const auto bin = static_cast<size_t>(i * bins / n);
          own_kept[bin] += s, own_allowed[bin] += m, head_kept += s, head_allowed += m;
        }
#pragma omp critical
        for (size_t k = 0; k < own_kept.size(); ++k)
          kept_in[k] += own_kept[k], allowed_in[k] += own_allowed[k];
      }
      r.series["head_sparsity"].push_back(head_allowed > 0 ? 1 - head_kept / head_allowed : 0);
      kept += head_kept, allowed += head_allowed;
    }
    if (!(allowed > 0)) throw Unsupported("delivered_sparsity: the dense attention has no pairs");
    for (size_t k = 0; k < kept_in.size(); ++k)
      r.series["sparsity_along"].push_back(allowed_in[k] > 0 ? 1 - kept_in[k] / allowed_in[k] : 0);
    r.scalars["sparsity"] = 1 - kept / allowed;
    r.scalars["pairs"] = kept;
    r.scalars["dense_pairs"] = allowed;
    if (const auto visited = static_cast<double>(side.dense().visited); visited > 0) {
      r.scalars["visited_pairs"] = visited;
      r.scalars["visited_sparsity"] = 1 - visited / allowed;
      r.scalars["used_share"] = kept / visited;
      r.scalars["bound"] = allowed / visited;
    } else {
      r.notes["visited"] = "the method does not tell how many pairs its kernels computed";
    }
    return r;
  }
};
ATTNBENCH_ANALYSIS(DeliveredSparsity);

}  // namespace

}  // namespace attnbench
