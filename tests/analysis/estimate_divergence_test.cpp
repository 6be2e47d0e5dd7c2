// Estimated against true block maps: by hand, FlexPrefill's own decision, the target that SeerAttention
// trains for.
#include <cmath>

#include "methods/dense_counterpart.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

AnalysisResult analyse_trial(Trial& t, const ParamMap& given) {
  const Analysis& a = find_analysis("estimate_divergence");
  return a.compute(*t.ctx, *t.instance, t.problem,
                   resolve_params(a.info().id, a.info().params, given, t.problem));
}

double entropy(const std::vector<double>& p) {
  double h = 0;
  for (const double x : p)
    if (x > 0) h -= x * std::log(x);
  return h;
}
double js(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> m;
  for (size_t i = 0; i < a.size(); ++i) m.push_back((a[i] + b[i]) / 2);
  return entropy(m) - (entropy(a) + entropy(b)) / 2;
}

/// Four queries and keys, blocks of two; row i of the dense map is w[i], the estimate is given.
class FakeEstimate final : public FakeInstance, public DenseCounterpart {
 public:
  FakeEstimate(const std::vector<double>& w, const std::vector<double>& estimate) : ctx_(cpu_backend(), 1) {
    std::vector<double> q, k;
    for (int64_t i = 0; i < 16; ++i) q.push_back(i / 4 == i % 4);
    for (size_t j = 0; j < 4; ++j)
      for (size_t i = 0; i < 4; ++i) k.push_back(std::log(w[i * 4 + j]));
    dense_.call.q = host_tensor(ctx_, {1, 1, 4, 4}, q);
    dense_.call.k = host_tensor(ctx_, {1, 1, 4, 4}, k);
    dense_.call.scale = 1;
    dense_.pairs = square(4, 1, [](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, 4}}; });
    pair_set = dense_.pairs;
    estimate_ = BlockEstimate{host_tensor(ctx_, {1, 1, 2, 2}, estimate), 2, 2, 4, 4};
  }
  std::optional<DenseEquivalent> dense_equivalent(Context&) override { return dense_; }
  std::optional<BlockEstimate> block_estimate(Context&) override { return estimate_; }

 private:
  Context ctx_;
  DenseEquivalent dense_;
  std::optional<BlockEstimate> estimate_;
};

}  // namespace

TEST_CASE("estimate_divergence by hand") {
  FakeEstimate f({0.4, 0.4, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.05, 0.05, 0.2, 0.7, 0.1, 0.1, 0.1, 0.7},
                 {3, 1, 0.15, 0.85});
  // Blocks: 0.6 / 0.4 and 0.15 / 0.85; the first estimate is 0.75 / 0.25, the second is right.
  const double first = js({0.6, 0.4}, {0.75, 0.25});
  const AnalysisResult r = analyse("estimate_divergence", f);
  CHECK(r.scalars.at("rows") == 2);
  CHECK(r.scalars.at("max_js") == Approx(first).epsilon(1e-5));
  CHECK(r.scalars.at("mean_js") == Approx(first / 2).epsilon(1e-5));
  CHECK(r.scalars.at("mean_distance") == Approx(std::sqrt(first) / 2).epsilon(1e-3));
  CHECK(r.scalars.at("mean_tv") == Approx(0.075).epsilon(1e-5));
  CHECK(r.scalars.at("share_below_tau") == 0.5);
  // Largest weights 0.4 / 0.3 and 0.1 / 0.7.
  const AnalysisResult most = analyse("estimate_divergence", f, {}, {{"truth", "max"}});
  CHECK(most.scalars.at("mean_js") ==
        Approx((js({4.0 / 7, 3.0 / 7}, {0.75, 0.25}) + js({0.125, 0.875}, {0.15, 0.85})) / 2).epsilon(1e-4));
  // One block: the last.
  CHECK(analyse("estimate_divergence", f, {}, {{"blocks", 1}}).scalars.at("mean_js") < 1e-6);
}

TEST_CASE(
    "estimate_divergence: disjoint maps are ln 2 apart; a row of zeros is left out; no map, no answer") {
  FakeEstimate f(
      {0.5, 0.5, 1e-30, 1e-30, 0.5, 0.5, 1e-30, 1e-30, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25},
      {0, 1, 0, 0});
  const AnalysisResult r = analyse("estimate_divergence", f);
  CHECK(r.scalars.at("rows") == 1);
  CHECK(r.scalars.at("mean_js") == Approx(std::log(2.0)));
  CHECK(r.scalars.at("mean_tv") == Approx(1));
  Trial t = make_trial("sliding_window", heads_problem(1, 1, 1, 9, 9, 4, true), {{"window", 3}});
  t.run();
  CHECK_THROWS_AS(analyse_trial(t, {}), Unsupported);
}

TEST_CASE("estimate_divergence of the last block is what FlexPrefill decides by") {
  Trial t = make_trial("flexprefill", heads_problem(2, 4, 2, 192, 192, 16, true),
                       {{"block_size", 16}, {"min_budget", 16}, {"budget_unit", 16}, {"tau", 0.3}});
  t.run();
  const RefTensor d = t.output("d");  // [B, H]
  const AnalysisResult r = analyse_trial(t, {{"blocks", 1}, {"tau", 0.3}});
  double aware = 0;
  for (int64_t h = 0; h < 4; ++h) {
    CHECK(r.series.at("head_distance")[static_cast<size_t>(h)] ==
          Approx((d[h] + d[4 + h]) / 2).epsilon(1e-4));
    aware += t.output("query_aware")[h] + t.output("query_aware")[4 + h];
  }
  CHECK(r.scalars.at("share_below_tau") == aware / 8);
}

TEST_CASE("estimate_divergence of SeerAttention's gate against its training target") {
  Trial t = make_trial(
      "seer_attention", heads_problem(1, 4, 2, 133, 133, 16, true),
      {{"block_size", 16}, {"gate_hidden", 16}, {"sparsity_method", "nz_ratio"}, {"nz_ratio", 0.3}});
  t.run();
  const RefTensor gate = t.output("gate"),
                  truth = to_reference(t.instance->extra_output(*t.ctx, "ground_truth"));
  REQUIRE(gate.shape == truth.shape);
  const int64_t n = gate.dim(3), rows = gate.numel() / n;
  double mean = 0;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> a, b;
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += gate[r * n + c];
    for (int64_t c = 0; c < n; ++c) a.push_back(truth[r * n + c]), b.push_back(gate[r * n + c] / sum);
    mean += js(a, b) / static_cast<double>(rows);
  }
  REQUIRE(mean > 1e-3);
  CHECK(analyse_trial(t, {{"blocks", 0}, {"truth", "max"}}).scalars.at("mean_js") ==
        Approx(mean).epsilon(1e-4));
}

TEST_CASE("estimate_divergence of rectified maps, against double-precision block sums") {
  Problem p;
  p.kind = ProblemKind::video;
  p.batch = 1, p.heads = 2, p.head_dim = 8, p.grid = {2, 6, 8};
  Trial t = make_trial("rectified_spaattn", p, {{"block_size", 16}, {"text_tokens", 7}, {"text_valid", 5}});
  t.run();
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k"));
  const int64_t n = 103, video = 96, seen = 101, blocks = 6;
  const auto score = [&](int64_t h, int64_t i, int64_t j) {
    double dot = 0;
    for (int64_t c = 0; c < 8; ++c) dot += q[(h * n + i) * 8 + c] * k[(h * n + j) * 8 + c];
    return dot / std::sqrt(8.0);
  };
  double mean = 0;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t r = 0; r < blocks; ++r) {
      std::vector<double> truth(6, 0.0), estimate;
      for (int64_t i = r * 16; i < (r + 1) * 16; ++i) {
        double total = 0;
        for (int64_t j = 0; j < seen; ++j) total += std::exp(score(h, i, j));
        for (int64_t j = 0; j < video; ++j)
          truth[static_cast<size_t>(j / 16)] += std::exp(score(h, i, j)) / total;
      }
      // The card's implicit map: scores of block means.
      for (int64_t c = 0; c < blocks; ++c) {
        double dot = 0;
        for (int64_t x = 0; x < 8; ++x) {
          double a = 0, b = 0;
          for (int64_t e = 0; e < 16; ++e)
            a += q[(h * n + r * 16 + e) * 8 + x] / 16, b += k[(h * n + c * 16 + e) * 8 + x] / 16;
          dot += a * b;
        }
        estimate.push_back(std::exp(dot / std::sqrt(8.0)));
      }
      for (std::vector<double>* v : {&truth, &estimate}) {
        double sum = 0;
        for (const double x : *v) sum += x;
        for (double& x : *v) x /= sum;
      }
      mean += js(truth, estimate) / 12;
    }
  CHECK(analyse_trial(t, {{"blocks", 0}}).scalars.at("mean_js") == Approx(mean).epsilon(1e-4));
}
