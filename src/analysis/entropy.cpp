// Entropy of attention rows: how widely each query spreads its weight.
//
// Taken from inside the fused pass where the method has statistics (memory linear in N), else from rows(), a
// block of queries at a time: the N x M matrix never exists.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/summary.hpp"

namespace attnbench {

namespace {

/// What is known of one query's row.
struct Row {
  double entropy = 0;  ///< nats
  double visible = 0;  ///< keys; 0: the row saw nothing
};

/// Rows in flight when streaming: enough for the operator to work on, small beside any case.
constexpr int64_t kStreamedFloats = int64_t{1} << 20;  // 4 MiB
// Rows of f32 probabilities sum to 1 within rounding: M eps / 2 at the very worst; what is off by more has
// mass elsewhere (a sink) or is not normalised.
constexpr double kMassTolerance = 1e-3;

/// A host tensor of f32 holding `t`, which is on any device and of any floating type.
std::vector<float> on_host(Context& ctx, const Tensor& t) {
  std::vector<char> raw(static_cast<size_t>(t.nbytes()));
  const Tensor host = Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), raw.data());
  copy(ctx, t, host);
  ctx.backend().synchronize();
  std::vector<float> values(static_cast<size_t>(t.numel()));
  convert(raw.data(), t.dtype(), values.data(), DType::f32, t.numel());
  return values;
}

/// Collects the rows of a head and turns them into the figures of the result.
class Heads {
 public:
  void begin_head() { entropy_.clear(), normalised_.clear(), support_.clear(); }
  void add(const Row& row) {
    if (row.visible < 0.5) {
      ++empty_;
      return;
    }
    if (!std::isfinite(row.entropy)) {
      ++not_finite_;
      return;
    }
    entropy_.push_back(row.entropy);
    support_.push_back(std::exp(row.entropy));
    // One visible key leaves nothing to spread over: 0/0, left out.
    if (row.visible > 1.5) normalised_.push_back(row.entropy / std::log(row.visible));
  }
  void end_head(AnalysisResult& r) {
    append(all_entropy_, entropy_), append(all_normalised_, normalised_), append(all_support_, support_);
    const Summary e = summarize(entropy_), n = summarize(normalised_), s = summarize(support_);
    r.series["head_mean_nats"].push_back(e.mean);
    r.series["head_p5_nats"].push_back(e.p5);
    r.series["head_p50_nats"].push_back(e.p50);
    r.series["head_p95_nats"].push_back(e.p95);
    r.series["head_mean_normalised"].push_back(n.mean);
    r.series["head_mean_support"].push_back(s.mean);
  }
  void finish(AnalysisResult& r) {
    const Summary e = summarize(all_entropy_), n = summarize(all_normalised_), s = summarize(all_support_);
    r.scalars["mean_nats"] = e.mean;
    r.scalars["min_nats"] = e.min;
    r.scalars["p5_nats"] = e.p5;
    r.scalars["p25_nats"] = e.p25;
    r.scalars["p50_nats"] = e.p50;
    r.scalars["p75_nats"] = e.p75;
    r.scalars["p95_nats"] = e.p95;
    r.scalars["max_nats"] = e.max;
    r.scalars["mean_normalised"] = n.mean;
    r.scalars["p50_normalised"] = n.p50;
    r.scalars["mean_support"] = s.mean;
    r.scalars["p50_support"] = s.p50;
    r.scalars["rows"] = static_cast<double>(all_entropy_.size());
    if (empty_ > 0) {
      r.scalars["rows_empty"] = static_cast<double>(empty_);
      r.notes["rows_empty"] = fmt::format("{} rows see no key and are left out", empty_);
    }
    if (not_finite_ > 0) {
      r.scalars["rows_not_finite"] = static_cast<double>(not_finite_);
      r.notes["rows_not_finite"] = fmt::format("{} rows are NaN or infinite and are left out", not_finite_);
    }
  }

 private:
  static void append(std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  std::vector<double> entropy_, normalised_, support_, all_entropy_, all_normalised_, all_support_;
  int64_t empty_ = 0, not_finite_ = 0;
};

class Entropy final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "entropy";
      i.title = "Entropy of the attention rows";
      i.summary =
          "How widely queries spread their weight: by head, mean and percentiles over queries and batch, in "
          "nats, normalised by the log of the keys a query sees, and as the effective number of keys.";
      i.formula =
          "H_i = - sum_j p_ij ln p_ij            in nats\n"
          "normalised H_i = H_i / ln M_i         M_i: keys that query i sees; rows with M_i = 1 left out\n"
          "effective support = exp(H_i)          keys that a uniform row of this entropy would use";
      i.unit = "nats";
      i.headline = {"mean_nats", "p5_nats", "p95_nats", "mean_normalised", "mean_support"};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem& problem,
                         const Params&) const override {
    AnalysisResult r;
    r.analysis = info().id;
    if (const auto stats = instance.row_stats(ctx)) {
      from_stats(ctx, *stats, r);
      r.notes["source"] = "statistics of the fused pass";
    } else {
      from_rows(ctx, instance, problem, r);
    }
    return r;
  }

 private:
  static void from_stats(Context& ctx, const RowStats& stats, AnalysisResult& r) {
    if (stats.entropy.rank() != 3 || !(stats.entropy.shape() == stats.visible_keys.shape()))
      throw Error("entropy: row statistics must be [B, H, N], not " + stats.entropy.shape().str() + " and " +
                  stats.visible_keys.shape().str());
    const int64_t batch = stats.entropy.dim(0), heads = stats.entropy.dim(1), n = stats.entropy.dim(2);
    const std::vector<float> entropy = on_host(ctx, stats.entropy),
                             visible = on_host(ctx, stats.visible_keys);
    Heads all;
    for (int64_t h = 0; h < heads; ++h) {
      all.begin_head();
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>((b * heads + h) * n + i);
          all.add({static_cast<double>(entropy[at]), static_cast<double>(visible[at])});
        }
      all.end_head(r);
    }
    all.finish(r);
  }

  static void from_rows(Context& ctx, Instance& instance, const Problem& problem, AnalysisResult& r) {
    const std::optional<PairSet> pairs = instance.pairs();
    const int64_t batch = pairs ? pairs->batch : problem.batch;
    const int64_t heads = pairs ? pairs->heads : std::max<int64_t>(problem.heads, 1);
    const int64_t queries = pairs ? pairs->queries : problem.tokens();
    Heads all;
    std::vector<float> block;
    double worst_mass = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t keys = instance.keys(h);
      if (keys <= 0) throw Unsupported("entropy: the method has no attention rows");
      const int64_t step = std::clamp<int64_t>(kStreamedFloats / keys, 1, std::max<int64_t>(queries, 1));
      all.begin_head();
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t q = 0; q < queries; q += step) {
          const int64_t end = std::min(q + step, queries);
          if (!instance.rows(ctx, b, h, q, end, block))
            throw Unsupported("entropy: the method has no attention rows");
          if (static_cast<int64_t>(block.size()) != (end - q) * keys)
            throw Error(fmt::format("entropy: rows() gave {} values for {} queries of {} keys", block.size(),
                                    end - q, keys));
          for (int64_t i = q; i < end; ++i) {
            const Place at{b, h, i};
            all.add(row_of(block.data() + (i - q) * keys, keys, at, worst_mass));
          }
        }
      all.end_head(r);
    }
    all.finish(r);
    r.notes["source"] = "rows streamed in blocks; a key counts as seen when its weight is above 0";
    if (worst_mass > kMassTolerance)
      r.notes["mass"] = fmt::format(
          "weights of a row sum to 1 within {:.3g} only; each row is divided by its sum", worst_mass);
  }

  struct Place {
    int64_t b, h, i;
  };

  /// -sum p/S ln(p/S) = ln S - (1/S) sum p ln p, in one pass over the row.
  static Row row_of(const float* p, int64_t keys, const Place& at, double& worst_mass) {
    double sum = 0, plogp = 0;
    int64_t seen = 0;
    for (int64_t j = 0; j < keys; ++j) {
      const double v = static_cast<double>(p[j]);
      if (v < 0)
        throw Unsupported(
            fmt::format("entropy: the rows are no probabilities: weight {} of key {} in batch {}, head {}, "
                        "query {}",
                        p[j], j, at.b, at.h, at.i));
      if (v == 0) continue;
      ++seen;  // NaN too: the row is reported as not finite
      sum += v;
      plogp += v * std::log(v);
    }
    if (seen == 0) return {};
    worst_mass = std::max(worst_mass, std::fabs(sum - 1));
    // Rounding may leave -1e-17 where a row has one key.
    const double h = std::log(sum) - plogp / sum;
    return {h < 0 ? 0 : h, static_cast<double>(seen)};
  }
};
ATTNBENCH_ANALYSIS(Entropy);

}  // namespace

}  // namespace attnbench
