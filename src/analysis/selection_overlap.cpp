// How much the selections of heads, and of the layers of a host model, have in common.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/attention_rows_stream.hpp"
#include "analysis/dense_side.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

class SelectionOverlap final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "selection_overlap";
      i.title = "Overlap of selections between heads and layers";
      i.summary =
          "The Jaccard index of the pairs that two heads attend to, over sampled queries, for every two "
          "heads of a "
          "layer, and, where heads belong to layers (a host model), for the same head of every two layers "
          "and for "
          "layers whose heads are united: whether one selection could serve several. Beside it what "
          "independent "
          "choices of the same sizes would share.";
      i.formula =
          "J(a, b) = sum_i |S_a(i) and S_b(i)| / sum_i |S_a(i) or S_b(i)|\n"
          "chance: sum_i x_i / sum_i (|S_a(i)| + |S_b(i)| - x_i), x_i = |S_a(i)| |S_b(i)| / T_i, T_i: tokens "
          "up to the "
          "last one that any head sees for query i";
      i.unit = "Jaccard index";
      i.headline = {"heads_mean", "heads_min", "chance", "layers_mean"};
      i.params = {spec::integer("queries", 256, 0, "queries, in runs of 16 spread evenly; 0: all"),
                  spec::integer("batch", 0, 0, "batch element")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context&, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    const std::optional<PairSet> found = instance.pairs();
    if (!found) throw Unsupported("selection_overlap: the method has no pairs of tokens");
    const PairSet& pairs = *found;
    const int64_t batch = params.integer("batch");
    if (batch >= pairs.batch)
      throw UsageError("selection_overlap.batch: " + std::to_string(batch) + " is beyond the " +
                       std::to_string(pairs.batch) + " of the problem");
    const int64_t each = problem.heads > 0 && pairs.heads % problem.heads == 0 ? problem.heads : pairs.heads;
    const int64_t layers = pairs.heads / each;
    if (pairs.heads < 2) throw Unsupported("selection_overlap: there is one head only");

    const auto h = static_cast<size_t>(pairs.heads), l = static_cast<size_t>(layers);
    Table heads(h), united(l), chance(h);
    std::vector<Intervals> rows(h), layer(l);
    for_runs(1, pairs.queries, RowSample{params.integer("queries")},
             [&](int64_t, int64_t begin, int64_t end) {
               for (int64_t i = begin; i < end; ++i) {
                 int64_t reach = 0;
                 for (auto& u : layer) u.clear();
                 for (size_t x = 0; x < h; ++x) {
                   pairs.row(batch, static_cast<int64_t>(x), i, rows[x]);
                   if (!rows[x].empty()) reach = std::max(reach, rows[x].back().end);
                   Intervals& u = layer[x / static_cast<size_t>(each)];
                   u.insert(u.end(), rows[x].begin(), rows[x].end());
                 }
                 for (size_t x = 0; x < h; ++x)
                   for (size_t y = x + 1; y < h; ++y) {
                     const auto a = static_cast<double>(tokens_in(rows[x])),
                                b = static_cast<double>(tokens_in(rows[y]));
                     const auto both = static_cast<double>(tokens_in(common(rows[x], rows[y])));
                     heads.add(x, y, both, a + b - both);
                     if (reach > 0)
                       chance.add(x, y, a * b / static_cast<double>(reach),
                                  a + b - a * b / static_cast<double>(reach));
                   }
                 for (auto& u : layer) unite(u);
                 for (size_t x = 0; x < l; ++x)
                   for (size_t y = x + 1; y < l; ++y) {
                     const auto both = static_cast<double>(tokens_in(common(layer[x], layer[y])));
                     united.add(x, y, both,
                                static_cast<double>(tokens_in(layer[x])) +
                                    static_cast<double>(tokens_in(layer[y])) - both);
                   }
               }
               return true;
             });

    AnalysisResult r;
    r.analysis = info().id;
    std::vector<double> within, between, by_chance;
    std::vector<double> nearest(h, 0.0);
    for (size_t x = 0; x < h; ++x)
      for (size_t y = x + 1; y < h; ++y) {
        const bool same_layer = x / static_cast<size_t>(each) == y / static_cast<size_t>(each);
        if (same_layer) {
          within.push_back(heads.at(x, y)), by_chance.push_back(chance.at(x, y));
          for (size_t z : {x, y}) nearest[z] = std::max(nearest[z], heads.at(x, y));
        } else if (x % static_cast<size_t>(each) == y % static_cast<size_t>(each)) {
          between.push_back(heads.at(x, y));
        }
      }
    if (each > 1) {
      r.series["head_nearest"] = nearest;
      r.scalars["chance"] = summarize(by_chance).mean;
      const Summary s = summarize(within);
      r.scalars["heads_mean"] = s.mean, r.scalars["heads_min"] = s.min, r.scalars["heads_max"] = s.max;
    }
    if (layers > 1) {
      r.scalars["layers"] = static_cast<double>(layers);
      r.scalars["same_head_between_layers"] = summarize(between).mean;
      std::vector<double> all;
      for (size_t x = 0; x < l; ++x)
        for (size_t y = x + 1; y < l; ++y) {
          all.push_back(united.at(x, y));
          if (y == x + 1) r.series["next_layer"].push_back(united.at(x, y));
        }
      r.scalars["layers_mean"] = summarize(all).mean;
    }
    return r;
  }

 private:
  /// Sums of intersections and unions of two of `n`.
  struct Table {
    explicit Table(size_t n) : n(n), both(n * n, 0.0), any(n * n, 0.0) {}
    void add(size_t x, size_t y, double b, double a) { both[x * n + y] += b, any[x * n + y] += a; }
    /// Two empty selections are the same one.
    double at(size_t x, size_t y) const { return any[x * n + y] > 0 ? both[x * n + y] / any[x * n + y] : 1; }
    size_t n;
    std::vector<double> both, any;
  };
};
ATTNBENCH_ANALYSIS(SelectionOverlap);

}  // namespace

}  // namespace attnbench
