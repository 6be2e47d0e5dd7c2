// How far away the weight of attention rows lies, along the sequence or on the grid of tokens.
#include <fmt/core.h>

#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/attention_rows_stream.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

/// Weights that a sample of rows looks at: a second or two of one core of the host.
constexpr int64_t kWeights = int64_t{1} << 27;

/// Distance between tokens: Euclidean on a grid, |i - j| along a sequence. Leading tokens have no place on a
/// grid: queries and keys are counted from the first that has.
class Distance {
 public:
  Distance(std::vector<int64_t> grid, int64_t leading, int64_t tokens) {
    int64_t product = 1;
    for (const int64_t g : grid) product *= g;
    if (!grid.empty() && leading + product == tokens) grid_ = std::move(grid), leading_ = leading;
  }
  bool on_grid() const { return !grid_.empty(); }
  /// Tokens without a place, at the front; 0 along a sequence.
  int64_t leading() const { return leading_; }
  /// Of query i, counted from the first with a place, to every key that has one.
  void from(int64_t i, int64_t offset, std::vector<double>& out) const {
    const auto n = static_cast<int64_t>(out.size());
    if (!on_grid()) {
      for (int64_t j = 0; j < n; ++j)
        out[static_cast<size_t>(j)] = std::abs(static_cast<double>(i + offset - j));
      return;
    }
    std::vector<int64_t> at(grid_.size()), to(grid_.size(), 0);
    for (size_t k = grid_.size(), rest = static_cast<size_t>(i); k-- > 0;) {
      at[k] = static_cast<int64_t>(rest % static_cast<size_t>(grid_[k]));
      rest /= static_cast<size_t>(grid_[k]);
    }
    for (int64_t j = 0; j < n; ++j) {
      double square = 0;
      for (size_t k = 0; k < grid_.size(); ++k) {
        const auto d = static_cast<double>(at[k] - to[k]);
        square += d * d;
      }
      out[static_cast<size_t>(j)] = std::sqrt(square);
      for (size_t k = grid_.size(); k-- > 0;) {
        if (++to[k] < grid_[k]) break;
        to[k] = 0;
      }
    }
  }

 private:
  std::vector<int64_t> grid_;
  int64_t leading_ = 0;
};

class AttentionDistance final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "attention_distance";
      i.title = "Distance of attention";
      i.summary =
          "How far away queries look: the mean distance of the attended tokens, weighted by attention, by "
          "head "
          "and over all; Euclidean on the grid of images and videos, along the sequence elsewhere. And the "
          "share of the weight in each octave of distance.";
      i.formula =
          "D_i = sum_j p_ij |i - j| / sum_j p_ij            rows without weight left out\n"
          "tokens before a grid ([CLS], registers) have no place: neither i nor j is one of them\n"
          "relative = mean of D_i over mean over i and all j of |i - j|      1: as a uniform row\n"
          "octave 1: distance below 1; octave k: [2^(k - 2), 2^(k - 1))\n"
          "octave_map: the share of the weight in each octave by head, as many octaves a head as "
          "mass_by_octave";
      i.unit = "tokens";
      i.headline = {"mean_distance", "p5_distance", "p95_distance", "relative_distance"};
      ParamSpec queries;
      queries.name = "queries";
      queries.type = ParamSpec::Type::integer;
      queries.default_value = 1024;
      queries.min = 0;
      queries.meaning =
          "queries a head, in runs of 16 spread evenly; fewer, but 16, where all heads' rows would hold more "
          "than "
          "2^27 weights; 0: all";
      i.params = {queries};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    const std::optional<PairSet> pairs = instance.pairs();
    if (!pairs) throw Unsupported("attention_distance: the method has no pairs of tokens");
    const int64_t n = pairs->queries, m = pairs->tokens, heads = pairs->heads;
    if (n < 1 || m < 1) throw Unsupported("attention_distance: there are no tokens");
    AnalysisResult r;
    r.analysis = info().id;
    RowSample sample{params.integer("queries")};
    if (sample.queries > 0) {
      const int64_t fit = kWeights / (pairs->batch * heads * m) / RowSample::kRun * RowSample::kRun;
      sample.queries = std::min(sample.queries, std::max(fit, RowSample::kRun));
    }
    const Distance distance(n == m ? pairs->grid : std::vector<int64_t>{}, pairs->leading, m);
    const int64_t leading = distance.leading(), placed = m - leading;
    std::vector<double> all, own;
    std::vector<Row> found;
    std::vector<std::vector<double>> octaves(static_cast<size_t>(heads));  // summed over rows
    std::vector<double> rows_of(static_cast<size_t>(heads), 0.0);
    double uniform = 0;
    int64_t rows = 0, empty = 0, pooled = 0, not_finite = 0;
    for (int64_t h = 0; h < heads; ++h) {
      own.clear();
      std::vector<double>& shares = octaves[static_cast<size_t>(h)];
      const bool there = for_row_blocks(
          ctx, instance, pairs->batch, h, n, m, sample,
          [&](int64_t, int64_t begin, int64_t end, const float* block) {
            const int64_t first = begin;
            begin = std::max(begin, leading);
            found.resize(static_cast<size_t>(std::max<int64_t>(end - begin, 0)));
#pragma omp parallel num_threads(ctx.threads())
            {
              std::vector<double> away(static_cast<size_t>(placed));
#pragma omp for schedule(dynamic)
              for (int64_t i = begin; i < end; ++i) {
                // Where they differ in number, the last query stands at the last key.
                distance.from(i - leading, m - n, away);
                found[static_cast<size_t>(i - begin)] = row_of(block + (i - first) * m + leading, away);
              }
            }
            for (const Row& row : found) {
              not_finite += row.kind == Row::not_finite, empty += row.kind == Row::empty;
              if (row.kind != Row::good) continue;
              if (shares.size() < row.octaves.size()) shares.resize(row.octaves.size(), 0.0);
              for (size_t o = 0; o < row.octaves.size(); ++o) shares[o] += row.octaves[o];
              own.push_back(row.distance);
              uniform += row.uniform;
              ++rows;
              ++rows_of[static_cast<size_t>(h)];
            }
          });
      if (!there) {
        ++pooled;
        r.series["head_mean_distance"].push_back(0);
        continue;
      }
      all.insert(all.end(), own.begin(), own.end());
      r.series["head_mean_distance"].push_back(own.empty() ? 0 : summarize(own).mean);
    }
    if (pooled == heads)
      throw Unsupported(
          "attention_distance: the method has no attention rows over tokens (pooled keys have no one place)");
    if (pooled > 0)
      r.notes["heads"] = fmt::format(
          "{} of {} heads have keys that are not tokens (pooled or padded); they count as 0 in "
          "head_mean_distance and nowhere else",
          pooled, heads);
    if (rows == 0) throw Unsupported("attention_distance: no row has a finite weight");
    const Summary s = summarize(all);
    r.scalars["mean_distance"] = s.mean;
    r.scalars["min_distance"] = s.min;
    r.scalars["p5_distance"] = s.p5;
    r.scalars["p50_distance"] = s.p50;
    r.scalars["p95_distance"] = s.p95;
    r.scalars["max_distance"] = s.max;
    r.scalars["relative_distance"] = uniform > 0 ? s.mean * static_cast<double>(rows) / uniform : 0;
    r.scalars["rows"] = static_cast<double>(rows);
    size_t most = 0;
    for (const auto& head : octaves) most = std::max(most, head.size());
    std::vector<double>&mass = r.series["mass_by_octave"], &map = r.series["octave_map"];
    mass.assign(most, 0.0);
    for (size_t h = 0; h < octaves.size(); ++h) {
      octaves[h].resize(most, 0.0);
      for (size_t o = 0; o < most; ++o) {
        mass[o] += octaves[h][o] / static_cast<double>(rows);
        map.push_back(rows_of[h] > 0 ? octaves[h][o] / rows_of[h] : 0);
      }
    }
    r.notes["distance"] = distance.on_grid() ? "Euclidean on the grid of tokens" : "along the sequence";
    if (leading > 0)
      r.notes["leading"] = fmt::format(
          "the first {} tokens have no place on the grid: left out as queries, and as keys with their weight",
          leading);
    if (sample.queries > 0 && sample.queries < n)
      r.notes["queries"] = fmt::format("{} of {} queries a head, in runs spread evenly", sample.queries, n);
    if (empty > 0) r.notes["rows_empty"] = fmt::format("{} rows see no key and are left out", empty);
    if (not_finite > 0)
      r.notes["rows_not_finite"] = fmt::format("{} rows are NaN or infinite and are left out", not_finite);
    return r;
  }

 private:
  struct Row {
    enum Kind : uint8_t { good, empty, not_finite } kind = good;
    double distance = 0, uniform = 0;  ///< mean distance by weight, and of all keys alike
    std::vector<double> octaves;       ///< share of the weight in each
  };

  static Row row_of(const float* p, const std::vector<double>& away) {
    Row row;
    double mass = 0, sum = 0, mean = 0;
    for (size_t j = 0; j < away.size(); ++j) {
      const double d = away[j], x = static_cast<double>(p[j]);
      mean += d;
      mass += x;
      sum += x * d;
    }
    row.kind = !std::isfinite(sum) ? Row::not_finite : mass <= 0 ? Row::empty : Row::good;
    if (row.kind != Row::good) return row;
    for (size_t j = 0; j < away.size(); ++j) {
      if (p[j] <= 0) continue;
      const double d = away[j];
      const size_t octave = d < 1 ? 0 : static_cast<size_t>(std::ilogb(d)) + 1;
      if (row.octaves.size() <= octave) row.octaves.resize(octave + 1, 0.0);
      row.octaves[octave] += static_cast<double>(p[j]) / mass;
    }
    row.distance = sum / mass;
    row.uniform = mean / static_cast<double>(away.size());
    return row;
  }
};
ATTNBENCH_ANALYSIS(AttentionDistance);

}  // namespace

}  // namespace attnbench
