// How many keys a row really uses, by three definitions.
#include <algorithm>
#include <cmath>
#include <functional>

#include "analysis/row_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

class EffectiveSupport final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "effective_support";
      i.title = "Effective support of the attention rows";
      i.summary =
          "The number of keys that carry a row: by its entropy, by its participation ratio, and as the least "
          "number of "
          "keys that hold a share of its mass.";
      i.formula =
          "perplexity = exp(- sum_j p_j ln p_j)\n"
          "participation = (sum_j p_j)^2 / sum_j p_j^2\n"
          "keys_for_mass = least k with sum of the k largest p_j >= mass sum_j p_j";
      i.unit = "keys";
      ParamSpec mass;
      mass.name = "mass";
      mass.type = ParamSpec::Type::number;
      mass.default_value = 0.9;
      mass.min = 0;
      mass.max = 1;
      mass.meaning = "share of a row's weight that keys_for_mass collects";
      i.params = {mass};
      i.headline = {"mean_perplexity", "mean_participation", "mean_keys_for_mass"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const double share = params.number("mass");
    const char* const names[] = {"perplexity", "participation", "keys_for_mass"};
    std::vector<double> all[3];
    std::vector<float> sorted;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      std::vector<double> head[3];
      const int64_t m = rows.keys(h);
      for (int64_t b = 0; b < rows.batch(); ++b)
        rows.each_row(b, h, [&](int64_t, const float* p) {
          double sum = 0, squares = 0, plogp = 0;
          for (int64_t j = 0; j < m; ++j) {
            const auto v = static_cast<double>(p[j]);
            sum += v;
            squares += v * v;
            if (v > 0) plogp += v * std::log(v);
          }
          if (!(sum > 0)) return;  // sees nothing
          sorted.assign(p, p + m);
          std::sort(sorted.begin(), sorted.end(), std::greater<>());
          double kept = 0;
          int64_t k = 0;
          // A rounding of the sum must not ask for one more key.
          while (k < m && kept < share * sum * (1 - 1e-7))
            kept += static_cast<double>(sorted[static_cast<size_t>(k++)]);
          head[0].push_back(std::exp(std::log(sum) - plogp / sum));
          head[1].push_back(sum * sum / squares);
          head[2].push_back(static_cast<double>(k));
        });
      for (int i = 0; i < 3; ++i) {
        all[i].insert(all[i].end(), head[i].begin(), head[i].end());
        r.series[std::string("head_mean_") + names[i]].push_back(summarize(head[i]).mean);
      }
    }
    for (int i = 0; i < 3; ++i) {
      const Summary s = summarize(all[i]);
      r.scalars[std::string("mean_") + names[i]] = s.mean;
      r.scalars[std::string("p50_") + names[i]] = s.p50;
      r.scalars[std::string("p95_") + names[i]] = s.p95;
    }
    r.scalars["rows"] = static_cast<double>(all[0].size());
    rows.note(r);
    return r;
  }
};
ATTNBENCH_ANALYSIS(EffectiveSupport);

}  // namespace

}  // namespace attnbench
