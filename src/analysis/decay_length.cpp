// How attention falls with the distance along a sequence, head by head: the window that holds a share of the
// weight, and the length of an exponential decay. For decayed linear attention the latter is -1 / ln(lambda).
#include <fmt/core.h>

#include <cmath>
#include <limits>

#include "analysis/analysis.hpp"
#include "analysis/attention_rows_stream.hpp"

namespace attnbench {

namespace {

class DecayLength final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "decay_length";
      i.title = "Decay length of attention";
      i.summary =
          "Mean weight by the distance of key and query, and for each head the distance within which 50, 90 "
          "and 99% of "
          "the weight lies, and the length L of the exponential exp(-distance / L) that fits the weights "
          "best. A head "
          "that does not fall off has an infinite length.";
      i.formula =
          "y(d) = mean of p_ij over pairs with |i - j| = d\n"
          "ln y(d) = c - d / L by least squares, weighted by y(d), over the distances that hold 99% of the "
          "sum\n"
          "window_50: least d with sum_{d' <= d} y(d') >= half of the sum";
      i.unit = "tokens";
      i.headline = {"shortest", "longest", "window_90"};
      ParamSpec queries;
      queries.name = "queries";
      queries.type = ParamSpec::Type::integer;
      queries.default_value = 1024;
      queries.min = 0;
      queries.meaning = "queries a head, in runs of 16 spread evenly; 0: all";
      i.params = {queries};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    const std::optional<PairSet> pairs = instance.pairs();
    if (!pairs) throw Unsupported("decay_length: the method has no pairs of tokens");
    const int64_t n = pairs->queries, m = pairs->tokens, heads = pairs->heads;
    if (n < 1 || m < 1) throw Unsupported("decay_length: there are no tokens");
    AnalysisResult r;
    r.analysis = info().id;
    const RowSample sample{params.integer("queries")};
    const auto far = static_cast<size_t>(std::max(n, m));
    std::vector<double> all(far, 0.0);
    double shortest = std::numeric_limits<double>::infinity(), longest = 0;
    bool any = false, endless = false;
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> sum(far, 0.0), count(far, 0.0);
      const bool there = for_rows(ctx, instance, pairs->batch, h, n, m, sample,
                                  [&](int64_t, int64_t, int64_t i, const float* row) {
                                    for (int64_t j = 0; j < m; ++j) {
                                      if (!(row[j] > 0)) continue;
                                      // Where they differ in number, the last query stands at the last key.
                                      const auto d = static_cast<size_t>(std::abs(i + m - n - j));
                                      if (d >= far) continue;
                                      sum[d] += static_cast<double>(row[j]);
                                      count[d] += 1;
                                    }
                                  });
      if (!there) throw Unsupported("decay_length: the method has no attention rows over tokens");
      double total = 0;
      for (size_t d = 0; d < far; ++d) {
        if (count[d] > 0) sum[d] /= count[d];
        total += sum[d];
        all[d] += sum[d] / static_cast<double>(heads);
      }
      if (!(total > 0)) continue;
      any = true;
      double below = 0, w = 0, x = 0, y = 0, xx = 0, xy = 0;
      double windows[3] = {-1, -1, -1};
      const double shares[3] = {0.5, 0.9, 0.99};
      for (size_t d = 0; d < far && windows[2] < 0; ++d) {
        below += sum[d];
        for (size_t s = 0; s < 3; ++s)
          if (windows[s] < 0 && below >= shares[s] * total) windows[s] = static_cast<double>(d);
        if (!(sum[d] > 0)) continue;
        const double at = static_cast<double>(d), ln = std::log(sum[d]), weight = sum[d];
        w += weight, x += weight * at, y += weight * ln, xx += weight * at * at, xy += weight * at * ln;
      }
      const double spread = xx - x * x / w, slope = spread > 0 ? (xy - x * y / w) / spread : 0;
      // A slope that would not halve the weight over the whole sequence is none.
      const bool falls = slope < -std::log(2.0) / static_cast<double>(far);
      const double length = falls ? -1 / slope : 0;
      r.series["head_decay_length"].push_back(length);
      for (size_t s = 0; s < 3; ++s)
        r.series[fmt::format("head_window_{:.0f}", 100 * shares[s])].push_back(windows[s]);
      endless = endless || !falls;
      if (falls) shortest = std::min(shortest, length), longest = std::max(longest, length);
    }
    if (!any) throw Unsupported("decay_length: no row has a weight above 0");
    if (std::isfinite(shortest)) r.scalars["shortest"] = shortest, r.scalars["longest"] = longest;
    if (endless)
      r.notes["length"] = "heads that do not halve over the sequence have length 0 in head_decay_length";
    double total = 0, below = 0;
    for (double v : all) total += v;
    for (size_t d = 0; d < far; ++d) {
      below += all[d];
      if (below >= 0.9 * total) {
        r.scalars["window_90"] = static_cast<double>(d);
        break;
      }
    }
    r.series["mean_weight"] =
        std::vector<double>(all.begin(), all.begin() + static_cast<int64_t>(std::min<size_t>(far, 512)));
    if (sample.queries > 0 && sample.queries < n)
      r.notes["queries"] = fmt::format("{} of {} queries a head, in runs spread evenly", sample.queries, n);
    return r;
  }
};
ATTNBENCH_ANALYSIS(DecayLength);

}  // namespace

}  // namespace attnbench
