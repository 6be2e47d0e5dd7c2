// Whether a span search can reach every key: the exact check of structural non-exclusion, query by query.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"
#include "methods/attention_rows.hpp"
#include "methods/span_candidates.hpp"

namespace attnbench {

namespace {

constexpr int64_t kBins = 16;

class Coverage final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "coverage";
      i.title = "Keys that a span search can reach";
      i.summary =
          "Structural non-exclusion (Superlinear Multi-Step Attention, arXiv 2601.18401): whether every key "
          "that "
          "dense attention would see lies in what a query always sees or in one of its candidate spans, "
          "whatever "
          "the scores. The check is exact, key by key; redundancy is in how many candidates a key lies on "
          "average. "
          "Beside it what the last run chose: how far its anchors were and how evenly the gate spread.";
      i.formula =
          "M_t: keys of the dense attention, W_t: keys always seen, C_t,1 .. C_t,n: candidate spans of query "
          "t\n"
          "uncovered = sum_t |M_t minus (W_t or C_t,1 or .. C_t,n)|;  open_queries: those with an uncovered "
          "key\n"
          "coverage = 1 - uncovered / sum_t |M_t|\n"
          "redundancy = sum_t sum_i |M_t and C_t,i| / sum_t |M_t and (C_t,1 or .. C_t,n)|\n"
          "gate_entropy = mean -sum_k g_k ln g_k over the spans found, in nats;  anchor_distance = mean of t "
          "- c";
      i.unit = "keys";
      i.headline = {"uncovered", "open_queries", "coverage", "redundancy"};
      i.params = {spec::integer("queries", 0, 0, "queries, in runs of 16 spread evenly; 0: all")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    const auto* search = dynamic_cast<const SpanCandidates*>(&instance);
    if (!search) throw Unsupported("coverage: the method searches for no spans");
    DenseSide side(ctx, instance, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t n = side.queries(), bins = std::min(kBins, std::max<int64_t>(n, 1));
    const int64_t batches = side.dense().pairs.same_for_all_batches ? 1 : side.batch();
    std::vector<double> by_bin(static_cast<size_t>(bins), 0.0);
    double all = 0, missed = 0, open = 0, worst = 0, times = 0, once = 0, queries = 0;
    int64_t first_open = -1;
    for_runs(batches, n, RowSample{params.integer("queries")}, [&](int64_t b, int64_t begin, int64_t end) {
    // Sums of whole numbers: the split over threads does not show.
#pragma omp parallel num_threads(ctx.threads()) reduction(+ : queries, all, missed, times, once, open) \
    reduction(max : worst) if (end - begin > 64)
      {
        Intervals dense, spans;
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = begin; i < end; ++i) {
          side.dense().pairs.row(b, 0, i, dense);
          const Candidates c = search->candidates_of(b, i);
          for (const Interval& v : c.spans)
            for (const Interval& seen : dense)
              times += static_cast<double>(
                  std::max<int64_t>(std::min(v.end, seen.end) - std::max(v.begin, seen.begin), 0));
          spans = c.spans;
          unite(spans);
          once += static_cast<double>(tokens_in(common(dense, spans)));
          if (c.always.begin < c.always.end) spans.push_back(c.always), unite(spans);
          const int64_t seen = tokens_in(dense), missing = seen - tokens_in(common(dense, spans));
          queries += 1, all += static_cast<double>(seen);
          if (missing == 0) continue;
          missed += static_cast<double>(missing), open += 1;
          worst = std::max(worst, static_cast<double>(missing));
#pragma omp critical
          {
            by_bin[static_cast<size_t>(i * bins / n)] += static_cast<double>(missing);
            if (first_open < 0 || c.position < first_open) first_open = c.position;
          }
        }
      }
      return true;
    });
    r.scalars["uncovered"] = missed, r.scalars["open_queries"] = open;
    r.scalars["most_uncovered"] = worst;
    r.scalars["queries"] = queries;
    r.scalars["coverage"] = all > 0 ? 1 - missed / all : 1;
    if (once > 0) r.scalars["redundancy"] = times / once;
    r.series["uncovered_along"] = by_bin;
    if (first_open >= 0) r.notes["first open query"] = "at position " + std::to_string(first_open);
    chosen(ctx, *search, r);
    return r;
  }

 private:
  /// Of the last run's anchors and gates.
  static void chosen(Context& ctx, const SpanCandidates& search, AnalysisResult& r) {
    const ChosenSpans c = search.chosen();
    const Tensor anchors = on_host(ctx, c.anchors), scores = on_host(ctx, c.scores),
                 places = on_host(ctx, c.positions);
    const int64_t slots = anchors.dim(3), n = anchors.dim(2);
    double entropy = 0, rows = 0, distance = 0, found = 0;
    std::vector<double> octaves;
    for (int64_t row = 0; row < anchors.numel() / slots; ++row) {
      const int32_t* a = anchors.data<int32_t>() + row * slots;
      const float* z = scores.data<float>() + row * slots;
      double most = -INFINITY, sum = 0, weighted = 0;
      for (int64_t k = 0; k < slots; ++k) {
        if (a[k] < 0) continue;
        most = std::max(most, static_cast<double>(z[k]));
        const int64_t away = places.data<int32_t>()[row % n] - a[k];
        distance += static_cast<double>(away), found += 1;
        const auto octave = static_cast<size_t>(away < 1 ? 0 : 1 + std::ilogb(static_cast<double>(away)));
        if (octaves.size() <= octave) octaves.resize(octave + 1, 0.0);
        octaves[octave] += 1;
      }
      if (!std::isfinite(most)) continue;
      for (int64_t k = 0; k < slots; ++k) {
        if (a[k] < 0) continue;
        const double e = static_cast<double>(z[k]) - most;
        sum += std::exp(e), weighted += e * std::exp(e);
      }
      entropy += std::log(sum) - weighted / sum, rows += 1;
    }
    if (!(found > 0)) return;
    r.scalars["gate_entropy"] = entropy / rows;
    r.scalars["anchor_distance"] = distance / found;
    for (double& x : octaves) x /= found;
    r.series["anchors_by_octave"] = std::move(octaves);  // distance 0, 1, 2 to 3, 4 to 7, ...
  }
};
ATTNBENCH_ANALYSIS(Coverage);

}  // namespace

}  // namespace attnbench
