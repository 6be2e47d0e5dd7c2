// How well the map that a method selects by agrees with the attention it estimates.
#include <algorithm>
#include <cmath>

#include "analysis/analysis.hpp"
#include "analysis/dense_side.hpp"
#include "analysis/summary.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench {

namespace {

class EstimateDivergence final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo info = [] {
      AnalysisInfo i;
      i.id = "estimate_divergence";
      i.title = "Estimated against true block maps";
      i.summary =
          "Methods that choose blocks estimate how a block of queries spreads its weight over blocks of "
          "keys. Here that "
          "estimate is held against the dense attention, row of blocks by row: Jensen-Shannon divergence and "
          "its root, "
          "which FlexPrefill decides by, and total variation. `truth: max` takes the largest weight of a "
          "block, the "
          "target that SeerAttention trains for, instead of the sum.";
      i.formula =
          "A_rc = sum over queries i of block r and keys j of block c of p_ij, divided by its sum over c\n"
          "truth max: A_rc = max_ij p_ij, divided by its sum over c;  E: the estimate, likewise divided\n"
          "js = H((A + E) / 2) - (H(A) + H(E)) / 2, 0 to ln 2;  distance = sqrt(js);  tv = sum_c |A - E| / 2";
      i.unit = "nats";
      i.headline = {"mean_js", "mean_distance", "p95_distance", "mean_tv"};
      ParamSpec truth =
          spec::choice("truth", {"sum", "max"}, "how weights within a block are taken together");
      i.params = {spec::integer("blocks", 16, 0, "query blocks a head, spread evenly; 0: all"), truth,
                  spec::number("tau", 0.1, 0, "threshold of the share of rows whose distance is below it")};
      return i;
    }();
    return info;
  }

  AnalysisResult compute(Context& ctx, Instance& instance, const Problem&,
                         const Params& params) const override {
    DenseSide side(ctx, instance, info().id);
    const std::optional<BlockEstimate> found = dynamic_cast<DenseCounterpart&>(instance).block_estimate(ctx);
    if (!found) throw Unsupported("estimate_divergence: the method selects by no map of blocks");
    const BlockEstimate& e = *found;
    Tensor map = e.map;
    const Tensor host = on_host(ctx, map);
    const int64_t rows = map.dim(2), columns = map.dim(3), wanted = params.integer("blocks");
    const int64_t count = wanted == 0 ? rows : std::min(wanted, rows);
    const bool largest = params.choice("truth") == "max";
    const double tau = params.number("tau");
    AnalysisResult r;
    r.analysis = info().id;
    std::vector<double> js, distance, tv;
    std::vector<float> p;
    double below = 0;
    for (int64_t h = 0; h < side.heads(); ++h) {
      double sum = 0, n = 0;
      for (int64_t b = 0; b < side.batch(); ++b)
        for (int64_t k = 0; k < count; ++k) {
          // The last block too: it sees the most.
          const int64_t row = count == 1 ? rows - 1 : k * (rows - 1) / (count - 1);
          std::vector<double> estimate, truth(static_cast<size_t>(columns), 0.0);
          for (int64_t c = 0; c < columns; ++c)
            estimate.push_back(
                static_cast<double>(host.data<float>()[b * host.stride(0) + h * host.stride(1) +
                                                       row * host.stride(2) + c * host.stride(3)]));
          const int64_t first = row * e.block_q, last = std::min(e.queries, first + e.block_q);
          const int64_t step = std::max<int64_t>(1, DenseSide::kFloats / side.keys());
          for (int64_t q = first; q < last; q += step) {
            const int64_t end = std::min(last, q + step);
            side.rows(b, h, q, end, p);
#pragma omp parallel for num_threads(ctx.threads()) schedule(static)
            for (int64_t c = 0; c < columns; ++c)
              for (int64_t i = 0; i < end - q; ++i)
                for (int64_t j = c * e.block_k; j < std::min(e.keys, (c + 1) * e.block_k); ++j) {
                  double& to = truth[static_cast<size_t>(c)];
                  const auto x = static_cast<double>(p[static_cast<size_t>(i * side.keys() + j)]);
                  to = largest ? std::max(to, x) : to + x;
                }
          }
          if (!normalise(truth) || !normalise(estimate)) continue;
          double between = 0, divergence = 0;
          for (size_t c = 0; c < truth.size(); ++c) {
            const double x = truth[c], y = estimate[c], middle = 0.5 * (x + y);
            between += 0.5 * std::abs(x - y);
            if (x > 0) divergence += 0.5 * x * std::log(x / middle);
            if (y > 0) divergence += 0.5 * y * std::log(y / middle);
          }
          divergence = std::max(divergence, 0.0);
          js.push_back(divergence), distance.push_back(std::sqrt(divergence)), tv.push_back(between);
          below += distance.back() < tau;
          sum += distance.back(), n += 1;
        }
      r.series["head_distance"].push_back(n > 0 ? sum / n : NAN);
    }
    r.scalars["rows"] = static_cast<double>(js.size());
    if (!js.empty()) r.scalars["share_below_tau"] = below / static_cast<double>(js.size());
    const Summary j = summarize(js), d = summarize(distance), t = summarize(tv);
    r.scalars["mean_js"] = j.mean, r.scalars["max_js"] = j.max;
    r.scalars["mean_distance"] = d.mean, r.scalars["p95_distance"] = d.p95;
    r.scalars["mean_tv"] = t.mean;
    r.notes["blocks"] = std::to_string(count) + " of " + std::to_string(rows) + " query blocks, " +
                        std::to_string(e.block_q) + " x " + std::to_string(e.block_k) + " tokens";
    return r;
  }

 private:
  static bool normalise(std::vector<double>& v) {
    double sum = 0;
    for (const double x : v) sum += x;
    if (!(sum > 0) || !std::isfinite(sum)) return false;
    for (double& x : v) x /= sum;
    return true;
  }
};
ATTNBENCH_ANALYSIS(EstimateDivergence);

}  // namespace

}  // namespace attnbench
