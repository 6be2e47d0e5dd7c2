// How much of a row's weight its largest entries hold.
#include <algorithm>
#include <cmath>
#include <functional>

#include "analysis/row_stream.hpp"

namespace attnbench {

namespace {

class TopKMass final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "top_k_mass";
      i.title = "Mass of the largest weights";
      i.summary =
          "The share of a row's weight that its k largest keys hold, by head and over all, for several k.";
      i.formula = "mass_k = mean over rows of (sum of the k largest p_ij) / sum_j p_ij";
      i.unit = "share of mass";
      ParamSpec k;
      k.name = "k";
      k.type = ParamSpec::Type::list;
      k.default_value = Value(Value::List{1, 4, 16, 64});
      k.min = 1;
      k.meaning = "numbers of keys";
      i.params = {k};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    std::vector<int64_t> ks;
    for (const Value& v : params.value("k").as_list()) {
      if (!v.is_int()) throw UsageError("top_k_mass.k: " + v.str() + " is no number of keys");
      ks.push_back(v.as_int());
    }
    if (ks.empty()) throw UsageError("top_k_mass.k: the list is empty");
    std::sort(ks.begin(), ks.end());
    std::vector<double> all(ks.size(), 0.0);
    double count = 0;
    std::vector<float> best;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t m = rows.keys(h);
      std::vector<double> head(ks.size(), 0.0);
      double n = 0;
      for (int64_t b = 0; b < rows.batch(); ++b)
        rows.each_row(b, h, [&](int64_t, const float* p) {
          best.assign(p, p + m);
          const auto most = best.begin() + std::min(ks.back(), m);
          std::partial_sort(best.begin(), most, best.end(), std::greater<>());
          double sum = 0;
          for (int64_t j = 0; j < m; ++j) sum += static_cast<double>(p[j]);
          if (!(sum > 0)) return;
          n += 1;
          double kept = 0;
          int64_t at = 0;
          for (size_t i = 0; i < ks.size(); ++i) {
            for (; at < std::min(ks[i], m); ++at) kept += static_cast<double>(best[static_cast<size_t>(at)]);
            head[i] += kept / sum;
          }
        });
      for (size_t i = 0; i < ks.size(); ++i) {
        all[i] += head[i];
        r.series["head_mass_" + std::to_string(ks[i])].push_back(n > 0 ? head[i] / n : NAN);
      }
      count += n;
    }
    for (size_t i = 0; i < ks.size(); ++i)
      r.scalars["mass_" + std::to_string(ks[i])] = count > 0 ? all[i] / count : NAN;
    r.scalars["rows"] = count;
    rows.note(r);
    return r;
  }
};
ATTNBENCH_ANALYSIS(TopKMass);

}  // namespace

}  // namespace attnbench
