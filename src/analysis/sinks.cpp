// Keys that collect attention whatever the query: attention sinks.
#include <algorithm>
#include <cmath>

#include "analysis/row_stream.hpp"

namespace attnbench {

namespace {

constexpr int64_t kBins = 32;  // columns of the map

class Sinks final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "sinks";
      i.title = "Attention sinks";
      i.summary =
          "The mean weight that each key gets from the queries that can see it, the keys where it exceeds a "
          "threshold "
          "(ACT's sinks), and the share of all mass that lies on the first keys and on sinks.";
      i.formula =
          "c[j] = sum_i p_ij / (queries that see j)     a key is seen where its weight is above 0\n"
          "sink: c[j] > threshold, or > alpha / M with threshold 0        (ACT, arXiv 2406.15765)\n"
          "first_mass = sum_i sum_{j < first} p_ij / sum_ij p_ij;  sink_mass: the same over sinks other than "
          "key 0\n"
          "sink_map: by head, the largest c[j], a mean over the batch, in each of up to 32 equal ranges of "
          "keys";
      i.unit = "share of mass; keys";
      const auto number = [](const char* name, double value, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::number;
        s.default_value = value;
        s.min = 0;
        s.meaning = meaning;
        return s;
      };
      ParamSpec first;
      first.name = "first";
      first.default_value = 4;
      first.min = 1;
      first.meaning = "leading keys of first_mass";
      i.params = {number("threshold", 0.0, "absolute threshold; 0: alpha / M"),
                  number("alpha", 5.0, "of the relative threshold"), first};
      i.headline = {"mean_sinks", "sink_mass", "first_mass"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    double sinks = 0, sink_mass = 0, first_mass = 0, key0 = 0, total = 0, most = 0;
    std::vector<double> mean_score;
    int64_t bins = kBins;
    for (int64_t h = 0; h < rows.heads(); ++h) bins = std::min(bins, rows.keys(h));
    std::vector<double>& map = r.series["sink_map"];
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t m = rows.keys(h), first = std::min(params.integer("first"), m);
      const double threshold = params.number("threshold") > 0
                                   ? params.number("threshold")
                                   : params.number("alpha") / static_cast<double>(m);
      double head_sinks = 0, head_mass = 0, head_sink_mass = 0, head_first = 0;
      std::vector<double> score(static_cast<size_t>(m), 0.0);
      for (int64_t b = 0; b < rows.batch(); ++b) {
        std::vector<double> mass(static_cast<size_t>(m), 0.0), seen(static_cast<size_t>(m), 0.0);
        rows.each_row(b, h, [&](int64_t, const float* p) {
          for (int64_t j = 0; j < m; ++j)
            if (p[j] > 0)
              mass[static_cast<size_t>(j)] += static_cast<double>(p[j]), seen[static_cast<size_t>(j)] += 1;
        });
        if (static_cast<int64_t>(mean_score.size()) < m) mean_score.resize(static_cast<size_t>(m), 0.0);
        for (int64_t j = 0; j < m; ++j) {
          const auto at = static_cast<size_t>(j);
          const double c = seen[at] > 0 ? mass[at] / seen[at] : 0.0;
          mean_score[at] += c / static_cast<double>(rows.heads() * rows.batch());
          score[at] += c / static_cast<double>(rows.batch());
          most = std::max(most, c);
          head_mass += mass[at];
          if (j < first) head_first += mass[at];
          if (j == 0) key0 += mass[at];
          if (!(c > threshold)) continue;
          head_sinks += 1 / static_cast<double>(rows.batch());
          if (j > 0) head_sink_mass += mass[at];
        }
      }
      for (int64_t k = 0; k < bins; ++k)
        map.push_back(*std::max_element(score.begin() + k * m / bins, score.begin() + (k + 1) * m / bins));
      r.series["head_sinks"].push_back(head_sinks);
      r.series["head_sink_mass"].push_back(head_mass > 0 ? head_sink_mass / head_mass : 0.0);
      r.series["head_first_mass"].push_back(head_mass > 0 ? head_first / head_mass : 0.0);
      sinks += head_sinks / static_cast<double>(rows.heads());
      sink_mass += head_sink_mass, first_mass += head_first, total += head_mass;
    }
    r.series["key_score"] = mean_score;
    r.scalars["mean_sinks"] = sinks;
    r.scalars["sink_mass"] = total > 0 ? sink_mass / total : 0.0;
    r.scalars["first_mass"] = total > 0 ? first_mass / total : 0.0;
    r.scalars["key0_mass"] = total > 0 ? key0 / total : 0.0;
    r.scalars["max_score"] = most;
    rows.note(r);
    return r;
  }
};
ATTNBENCH_ANALYSIS(Sinks);

}  // namespace

}  // namespace attnbench
