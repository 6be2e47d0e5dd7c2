// How attention weight falls with distance in time and in space: radial attention's premise, measured.
#include <fmt/core.h>

#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/attention_rows_stream.hpp"

namespace attnbench {

namespace {

/// Sums of weights by distance.
struct Decay {
  std::vector<double> sum, count;
  explicit Decay(int64_t n) : sum(static_cast<size_t>(n), 0.0), count(static_cast<size_t>(n), 0.0) {}
  void add(int64_t distance, double p) {
    sum[static_cast<size_t>(distance)] += p;
    count[static_cast<size_t>(distance)] += 1;
  }
  std::vector<double> mean() const {
    std::vector<double> m;
    for (size_t d = 0; d < sum.size(); ++d) m.push_back(count[d] > 0 ? sum[d] / count[d] : 0);
    return m;
  }
};

/// Least squares of ln y = -rate x + level over the distances with y > 0.
struct Fit {
  double rate = NAN, level = NAN, r2 = NAN;
  int64_t points = 0;
};
Fit fit(const std::vector<double>& y) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0, syy = 0;
  for (size_t x = 0; x < y.size(); ++x) {
    if (!(y[x] > 0)) continue;
    const double at = static_cast<double>(x), v = std::log(y[x]);
    n += 1, sx += at, sy += v, sxx += at * at, sxy += at * v, syy += v * v;
  }
  Fit f;
  f.points = static_cast<int64_t>(n);
  const double vx = sxx - sx * sx / n, vy = syy - sy * sy / n, vxy = sxy - sx * sy / n;
  if (n < 3 || vx <= 0) return f;
  f.rate = -vxy / vx;
  f.level = (sy + f.rate * sx) / n;
  // A constant curve is fitted exactly and explains nothing.
  f.r2 = vy > 1e-24 * std::abs(syy) ? vxy * vxy / (vx * vy) : NAN;
  return f;
}

class EnergyDecay final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "energy_decay";
      i.title = "Decay of attention over time and space";
      i.summary =
          "Mean attention weight of videos at the same place by the distance in frames, and within a frame "
          "by "
          "the distance of positions in raster order, each with an exponential fit: the energy decay that "
          "radial masks rest on. A head whose temporal rate is high is a spatial head, and the reverse.";
      i.formula =
          "temporal(d) = mean of p_ij over frames d apart, same position\n"
          "spatial(d)  = mean of p_ij within a frame, positions d apart\n"
          "fit: ln y = -rate d + level by least squares over y > 0; r2 of that line";
      i.unit = "weight";
      i.headline = {"temporal_rate", "temporal_r2", "spatial_rate", "spatial_r2"};
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
    if (!pairs || pairs->grid.size() != 3 || pairs->queries != pairs->tokens || pairs->leading > 0)
      throw Unsupported("energy_decay: wants tokens on a video grid [T, Hg, Wg], and no others");
    const int64_t frames = pairs->grid[0], s = pairs->grid[1] * pairs->grid[2], n = pairs->tokens;
    AnalysisResult r;
    r.analysis = info().id;
    Decay temporal(frames), spatial(s);
    const RowSample sample{params.integer("queries")};
    for (int64_t h = 0; h < pairs->heads; ++h) {
      Decay t(frames), x(s);
      const bool there = for_rows(ctx, instance, pairs->batch, h, n, n, sample,
                                  [&](int64_t, int64_t, int64_t i, const float* row) {
                                    const int64_t frame = i / s, place = i % s;
                                    for (int64_t f = 0; f < frames; ++f)
                                      t.add(std::abs(f - frame), static_cast<double>(row[f * s + place]));
                                    for (int64_t k = 0; k < s; ++k)
                                      x.add(std::abs(k - place), static_cast<double>(row[frame * s + k]));
                                  });
      if (!there) throw Unsupported("energy_decay: the method has no attention rows over tokens");
      const Fit ft = fit(t.mean()), fx = fit(x.mean());
      r.series["head_temporal_rate"].push_back(std::isfinite(ft.rate) ? ft.rate : 0);
      r.series["head_spatial_rate"].push_back(std::isfinite(fx.rate) ? fx.rate : 0);
      for (size_t d = 0; d < t.sum.size(); ++d) temporal.sum[d] += t.sum[d], temporal.count[d] += t.count[d];
      for (size_t d = 0; d < x.sum.size(); ++d) spatial.sum[d] += x.sum[d], spatial.count[d] += x.count[d];
    }
    const auto put = [&r](const std::string& key, const std::vector<double>& mean) {
      r.series[key] = mean;
      const Fit f = fit(mean);
      if (std::isfinite(f.rate)) {
        r.scalars[key + "_rate"] = f.rate;
        r.scalars[key + "_level"] = f.level;
      } else {
        r.notes[key] = fmt::format("{} distances with weight: too few for a fit", f.points);
      }
      if (std::isfinite(f.r2)) r.scalars[key + "_r2"] = f.r2;
    };
    put("temporal", temporal.mean());
    put("spatial", spatial.mean());
    return r;
  }
};
ATTNBENCH_ANALYSIS(EnergyDecay);

}  // namespace

}  // namespace attnbench
