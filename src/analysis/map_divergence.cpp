// How different the attention maps of heads are: Jensen-Shannon and Kullback-Leibler divergence between rows.
#include <algorithm>
#include <cmath>

#include "analysis/row_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

double entropy(const std::vector<double>& p) {
  double h = 0;
  for (double v : p)
    if (v > 0) h -= v * std::log(v);
  return h;
}

std::vector<double> normalised(const std::vector<float>& row) {
  double sum = 0;
  for (float v : row) sum += static_cast<double>(v);
  std::vector<double> p(row.size(), 0.0);
  for (size_t j = 0; j < row.size() && sum > 0; ++j) p[j] = static_cast<double>(row[j]) / sum;
  return p;
}

class MapDivergence final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "map_divergence";
      i.title = "Divergence between the maps of heads";
      i.summary =
          "Jensen-Shannon divergence of the rows of every two heads with equally many keys, and "
          "Kullback-Leibler "
          "divergence of each row from even attention over the keys it sees. Sampled queries of the first "
          "batch element.";
      i.formula =
          "JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2        0 to ln 2\n"
          "KL(p || even) = ln M_i - H(p)                        M_i: keys with a weight above 0\n"
          "KL(p || q) = sum_j p_j ln(p_j / q_j), over pairs of heads where q_j > 0 wherever p_j > 0";
      i.unit = "nats";
      ParamSpec q;
      q.name = "queries";
      q.default_value = 32;
      q.min = 1;
      q.meaning = "queries compared, spread evenly";
      i.params = {q};
      i.headline = {"mean_js", "max_js", "mean_kl_even"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const int64_t heads = rows.heads(), count = params.integer("queries");
    std::vector<std::vector<std::vector<double>>> p;  // [head][query][key]
    std::vector<double> even;
    for (int64_t h = 0; h < heads; ++h) {
      p.emplace_back();
      double sum = 0, n = 0;
      for (const std::vector<float>& row : rows.sample(0, h, count)) {
        p.back().push_back(normalised(row));
        const auto seen =
            static_cast<double>(std::count_if(row.begin(), row.end(), [](float v) { return v > 0; }));
        if (seen == 0) continue;
        // Even rows have ln M to rounding.
        even.push_back(std::max(std::log(seen) - entropy(p.back().back()), 0.0));
        sum += even.back(), n += 1;
      }
      r.series["head_mean_kl_even"].push_back(n > 0 ? sum / n : NAN);
    }
    std::vector<double> js, kl;
    std::vector<double> nearest(static_cast<size_t>(heads), INFINITY);
    for (int64_t a = 0; a < heads; ++a)
      for (int64_t b = a + 1; b < heads; ++b) {
        if (rows.keys(a) != rows.keys(b)) continue;
        double sum = 0, forward = 0;
        const auto &x = p[static_cast<size_t>(a)], &y = p[static_cast<size_t>(b)];
        for (size_t i = 0; i < x.size(); ++i) {
          std::vector<double> middle(x[i].size());
          for (size_t j = 0; j < middle.size(); ++j) {
            middle[j] = 0.5 * (x[i][j] + y[i][j]);
            if (x[i][j] > 0) forward += y[i][j] > 0 ? x[i][j] * std::log(x[i][j] / y[i][j]) : INFINITY;
          }
          sum += std::max(entropy(middle) - 0.5 * (entropy(x[i]) + entropy(y[i])), 0.0);
        }
        const double mean = sum / static_cast<double>(x.size());
        js.push_back(mean);
        if (std::isfinite(forward)) kl.push_back(forward / static_cast<double>(x.size()));
        for (int64_t h : {a, b})
          nearest[static_cast<size_t>(h)] = std::min(nearest[static_cast<size_t>(h)], mean);
      }
    const Summary k = summarize(even);
    r.scalars["mean_kl_even"] = k.mean;
    r.scalars["max_kl_even"] = k.max;
    if (!js.empty()) {
      r.scalars["pairs"] = static_cast<double>(js.size());
      const Summary s = summarize(js);
      r.scalars["mean_js"] = s.mean;
      r.scalars["min_js"] = s.min;
      r.scalars["p50_js"] = s.p50;
      r.scalars["max_js"] = s.max;
      r.series["head_nearest_js"] = nearest;
    } else {
      r.notes["pairs"] = "no two heads have equally many keys";
    }
    if (!kl.empty()) r.scalars["mean_kl_heads"] = summarize(kl).mean;
    return r;
  }
};
ATTNBENCH_ANALYSIS(MapDivergence);

}  // namespace

}  // namespace attnbench
