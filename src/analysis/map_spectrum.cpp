// Rank and spectrum of attention maps: how many directions a map needs.
#include <Eigen/Core>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>

#include "analysis/row_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

class MapSpectrum final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "map_spectrum";
      i.title = "Rank and spectrum of attention maps";
      i.summary =
          "Singular values of each head's map, of sampled queries and all keys of the first batch element: "
          "stable rank, "
          "entropy rank, the number of values that hold a share of the energy, and the numerical rank.";
      i.formula =
          "s_1 >= s_2 >= ..: singular values of A [queries, M]\n"
          "stable_rank = sum s^2 / s_1^2;  entropy_rank = exp(- sum q ln q), q = s / sum s\n"
          "energy_rank = least r with sum_{i <= r} s_i^2 >= energy sum s^2;  rank: s_i > tolerance s_1";
      i.unit = "directions";
      const auto number = [](const char* name, double value, double most, const char* meaning) {
        ParamSpec s;
        s.name = name;
        s.type = ParamSpec::Type::number;
        s.default_value = value;
        s.min = 0;
        s.max = most;
        s.meaning = meaning;
        return s;
      };
      ParamSpec q;
      q.name = "queries";
      q.default_value = 96;
      q.min = 1;
      q.meaning = "queries of the map, spread evenly";
      i.params = {q, number("energy", 0.99, 1, "share of the energy"),
                  number("tolerance", 1e-5, 1, "of the numerical rank; f32 rows carry about 1e-7")};
      i.headline = {"mean_stable_rank", "mean_entropy_rank", "mean_energy_rank"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params& params) const override {
    RowStream rows(ctx, instance, problem, info().id);
    AnalysisResult r;
    r.analysis = info().id;
    const char* const names[] = {"stable_rank", "entropy_rank", "energy_rank", "rank"};
    std::vector<double> all[4];
    std::vector<double>& spectrum = r.series["mean_spectrum"];
    double counted = 0;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const std::vector<std::vector<float>> map = rows.sample(0, h, params.integer("queries"));
      const auto n = static_cast<Eigen::Index>(map.size()), m = static_cast<Eigen::Index>(rows.keys(h));
      Eigen::MatrixXd a(n, m);
      for (Eigen::Index i = 0; i < n; ++i)
        for (Eigen::Index j = 0; j < m; ++j)
          a(i, j) = static_cast<double>(map[static_cast<size_t>(i)][static_cast<size_t>(j)]);
      if (!a.allFinite()) {
        r.notes["heads_not_finite"] = "maps with NaN or infinite weights are left out";
        continue;
      }
      const Eigen::VectorXd s = Eigen::BDCSVD<Eigen::MatrixXd>(a).singularValues();
      const double total = s.squaredNorm(), sum = s.sum();
      double entropy = 0, kept = 0;
      int64_t energy = 0, rank = 0;
      for (Eigen::Index i = 0; i < s.size() && total > 0; ++i) {
        const double q = s(i) / sum;
        if (q > 0) entropy -= q * std::log(q);
        // A rounding of the sum must not ask for one more value.
        if (kept < params.number("energy") * total * (1 - 1e-12)) kept += s(i) * s(i), ++energy;
        rank += s(i) > params.number("tolerance") * s(0);
      }
      const double values[] = {total > 0 ? total / (s(0) * s(0)) : 0.0, total > 0 ? std::exp(entropy) : 0.0,
                               static_cast<double>(energy), static_cast<double>(rank)};
      for (int k = 0; k < 4; ++k) {
        all[k].push_back(values[k]);
        r.series[std::string("head_") + names[k]].push_back(values[k]);
      }
      if (static_cast<Eigen::Index>(spectrum.size()) < s.size())
        spectrum.resize(static_cast<size_t>(s.size()), 0.0);
      for (Eigen::Index i = 0; i < s.size() && total > 0; ++i)
        spectrum[static_cast<size_t>(i)] += s(i) / s(0);
      counted += 1;
    }
    for (double& v : spectrum) v /= std::max(counted, 1.0);
    for (int k = 0; k < 4; ++k) {
      const Summary u = summarize(all[k]);
      r.scalars[std::string("mean_") + names[k]] = u.mean;
      r.scalars[std::string("max_") + names[k]] = u.max;
    }
    r.notes["queries"] = std::to_string(rows.sampled(params.integer("queries"))) + " of " +
                         std::to_string(rows.queries());
    return r;
  }
};
ATTNBENCH_ANALYSIS(MapSpectrum);

}  // namespace

}  // namespace attnbench
