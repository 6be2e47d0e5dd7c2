// Analyses of linear and regressing methods against what is known: decay lengths of heads, errors of
// polynomials, bias and variance of estimators.
#include <cmath>
#include <memory>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"
#include "tests/analysis/fakes.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

struct Run {
  std::unique_ptr<Context> ctx;
  std::unique_ptr<Instance> instance;
  Problem problem;
};
Run run(const std::string& method, const Problem& p, const std::map<std::string, Value>& given = {}) {
  Run r{std::make_unique<Context>(cpu_backend(), 2), nullptr, p};
  const Method& m = find_method(method);
  r.instance = m.make(*r.ctx, p, resolve_params(method, m.info().params, given, p));
  fill_instance(*r.ctx, *r.instance, p);
  r.instance->prepare(*r.ctx);
  r.instance->run(*r.ctx);
  return r;
}
AnalysisResult analyse_run(const char* id, Run& r, const std::map<std::string, Value>& given = {}) {
  const Analysis& a = find_analysis(id);
  return a.compute(*r.ctx, *r.instance, r.problem, resolve_params(id, a.info().params, given, r.problem));
}
Problem sequence(int64_t heads, int64_t n, int64_t d) {
  Problem p;
  p.heads = heads, p.length = n, p.head_dim = d, p.causal = true;
  return p;
}

}  // namespace

TEST_CASE("the decay length of an exponential row is its own, a flat row has none") {
  FakeInstance f;
  const int64_t n = 400;
  f.key_count = n;
  f.pair_set = square(n, 3, [](int64_t, int64_t, int64_t i, Intervals& out) { out = {{0, i + 1}}; });
  const double lengths[2] = {3, 20};
  f.row = [&](int64_t, int64_t h, int64_t i, float* row) {
    for (int64_t j = 0; j <= i; ++j)
      row[j] = h == 2 ? 0.01f : static_cast<float>(std::exp(-static_cast<double>(i - j) / lengths[h]));
  };
  const AnalysisResult r = analyse("decay_length", f);
  CHECK(r.series.at("head_decay_length")[0] == Approx(3).epsilon(1e-3));
  CHECK(r.series.at("head_decay_length")[1] == Approx(20).epsilon(1e-3));
  CHECK(r.series.at("head_decay_length")[2] == 0);
  CHECK(r.notes.contains("length"));
  CHECK(r.scalars.at("longest") == Approx(20).epsilon(1e-3));
  // 1 - exp(-(d + 1) / 3) >= 0.9 from d = 6 on.
  CHECK(r.series.at("head_window_90")[0] == 6);
  CHECK(r.series.at("head_window_50")[2] == Approx(199).margin(1));
}

TEST_CASE("heads of lightning attention decay as their lambdas say") {
  Run r = run("lightning_attention", sequence(2, 600, 32),
              {{"decay", "list"}, {"decay_values", Value::List{Value(0.8), Value(0.95)}}});
  const AnalysisResult a = analyse_run("decay_length", r, {{"queries", 0}});
  // |q . k| of each pair is random; means over hundreds of rows stay within some per cent.
  CHECK(a.series.at("head_decay_length")[0] == Approx(-1 / std::log(0.8)).epsilon(0.1));
  CHECK(a.series.at("head_decay_length")[1] == Approx(-1 / std::log(0.95)).epsilon(0.1));
}

TEST_CASE("polynomials of tensor attention converge below their bound") {
  Problem p = sequence(1, 40, 3);
  p.causal = false;
  Run r = run("tensor_attention", p, {{"entry_bound", 0.9}});
  const AnalysisResult a =
      analyse_run("approximation_error", r, {{"degrees", Value::List{Value(0), Value(2), Value(4)}}});
  CHECK(a.scalars.at("largest_entry") <= 0.9);
  CHECK(a.scalars.at("largest_score") == Approx(std::pow(a.scalars.at("largest_entry"), 3)));
  const auto& taylor = a.series.at("taylor_error");
  REQUIRE(taylor.size() == 3);
  CHECK(taylor[0] > 10 * taylor[1]);
  CHECK(taylor[1] > 10 * taylor[2]);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(taylor[i] <= a.series.at("bound")[i] + 1e-6);
    CHECK(a.series.at("chebyshev_error")[i] <= a.series.at("bound")[i] + 1e-6);
  }
  CHECK_THROWS_AS(analyse_run("approximation_error", r, {{"degrees", Value::List{Value(3)}}}), UsageError);
  Run other = run("dense", sequence(1, 8, 4));
  CHECK_THROWS_AS(analyse_run("approximation_error", other), Unsupported);
}

TEST_CASE("test-time regression: softmax has the bias that local linear attention has not") {
  const Problem p = sequence(4, 256, 4);
  const std::map<std::string, Value> given{{"segment", 64}, {"noise", 0.05}, {"repeats", 3}};
  Run lla = run("local_linear_attention", p, {{"ridge_lambda", 0.02}}), softmax = run("dense", p);
  const RefTensor before = to_reference(softmax.instance->outputs().at("o"));
  const AnalysisResult a = analyse_run("test_time_regression", lla, given),
                       b = analyse_run("test_time_regression", softmax, given);
  CHECK(a.scalars.at("mse") < b.scalars.at("mse"));
  CHECK(a.scalars.at("bias2") < b.scalars.at("bias2"));
  CHECK(a.scalars.at("bias2") + a.scalars.at("variance") == Approx(a.scalars.at("mse")).epsilon(1e-9));
  CHECK(b.scalars.at("mse_rescaled") <= b.scalars.at("mse") * (1 + 1e-9));
  CHECK(a.series.at("mse_by_position").size() == 64);
  // The case's own inputs are back.
  CHECK(to_reference(softmax.instance->outputs().at("o")).data == before.data);
}

TEST_CASE(
    "test-time regression without noise: one map for all and enough keys leave nothing of an affine fit") {
  const Problem p = sequence(1, 200, 3);
  Run r = run("local_linear_attention", p, {{"ridge_lambda", 1e-4}, {"solver", "cholesky"}});
  const AnalysisResult a = analyse_run("test_time_regression", r,
                                       {{"segment", 1000}, {"noise", 0.0}, {"repeats", 2}, {"spread", 3.0}});
  CHECK(a.scalars.at("variance") < 1e-12);
  const auto& by_position = a.series.at("mse_by_position");
  CHECK(by_position[150] < 1e-4);
  CHECK(by_position[1] > 1e-3);
}
