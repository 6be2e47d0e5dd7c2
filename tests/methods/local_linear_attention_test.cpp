// Local linear attention: the reference by hand, every solver against it, the card's degenerate cases,
// decoding.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kId = "local_linear_attention";
const char* const kSolvers[] = {"cg", "cg_jacobi", "cholesky"};

Problem problem(int64_t batch, int64_t heads, int64_t n, int64_t d, DType dtype = DType::f32, int64_t m = 0) {
  return heads_problem(batch, heads, heads, n, m ? m : n, d, true, dtype);
}
RefTensor reference(const Problem& p, ParamMap given, const RefMap& in) {
  return find_reference(kId)(p, params_of(kId, p, given), in, {}).at("o");
}

}  // namespace

TEST_CASE("the local_linear_attention reference, by hand") {
  // D = 1, scale 0: query 2 sees keys 0, 1, 3 with weights 1; q = 1. z = -1, 0, 2: mu = 1, Sigma = 5 + 3
  // lambda. With lambda = 1/3: rho = 1/6, delta = 3 - 1/6 = 17/6, weights (1 + 1/6, 1, 1 - 1/3) / delta = (7,
  // 6, 4) / 17.
  const Problem p = problem(1, 1, 3, 1);
  const RefMap in{{"q", ref_tensor({1, 1, 3, 1}, {5, 5, 1})},
                  {"k", ref_tensor({1, 1, 3, 1}, {0, 1, 3})},
                  {"v", ref_tensor({1, 1, 3, 1}, {1, 10, 100})}};
  for (const char* solver : kSolvers) {
    const RefTensor o =
        reference(p, {{"scale", 0.0}, {"ridge_lambda", 1.0 / 3}, {"delta_eps", 0.0}, {"solver", solver}}, in);
    // The iteration's guard, 1e-10 beside p . Sigma p, moves alpha in the tenth digit.
    CHECK(std::abs(o[2] - (7 * 1 + 6 * 10 + 4 * 100) / 17.0) < 1e-7);
    // One key: its value, whatever the ridge.
    CHECK(std::abs(o[0] - 1) < 1e-9);
  }
  // absolute: lambda itself, as the largest weight is 1: Sigma = 5 + 1, rho = 1/6 again.
  CHECK(std::abs(reference(
                     p,
                     {{"scale", 0.0}, {"ridge_lambda", 1.0}, {"delta_eps", 0.0}, {"ridge_scale", "absolute"}},
                     in)[2] -
                 467 / 17.0) < 1e-7);
  // No iteration: softmax.
  CHECK(std::abs(reference(p, {{"scale", 0.0}, {"cg_max_iters", 0}}, in)[2] - 37) < 1e-9);
  // The first row of a denominator with an offset: v_0 / (1 + eps (|k - q|^2 + lambda) / lambda).
  CHECK(std::abs(reference(p, {{"ridge_lambda", 0.5}, {"delta_eps", 1e-3}, {"solver", "cholesky"}}, in)[0] -
                 1 / (1 + 1e-3 * (25 + 0.5) / 0.5)) < 1e-9);
}

TEST_CASE("local_linear_attention agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string solver = GENERATE(as<std::string>{}, "cg", "cg_jacobi", "cholesky");
  SECTION("sizes that divide nothing, batch 2") {
    Trial t = make_trial(kId, problem(2, 3, 101, 12, dtype),
                         {{"solver", solver}, {"row_tile", 32}, {"col_tile", 24}, {"value_dim", 7}});
    check_trial(t, 1);
  }
  SECTION("few iterations and a small ridge") {
    Trial t = make_trial(kId, problem(1, 2, 40, 8, dtype),
                         {{"solver", solver}, {"cg_max_iters", GENERATE(0, 1, 3)}, {"ridge_lambda", 2.0}});
    check_trial(t, 1);
  }
  SECTION("diagonal blocks") {
    Trial t = make_trial(kId, problem(1, 2, 50, 12, dtype),
                         {{"solver", solver}, {"lla_block_size", GENERATE(1, 4)}, {"ridge_lambda", 3.0}});
    check_trial(t, 1);
  }
  SECTION("absolute ridge, uniform weights, both sides") {
    Trial t = make_trial(kId, problem(1, 2, 45, 8, dtype), {{"solver", solver}, {"ridge_scale", "absolute"}});
    check_trial(t, 1);
    Trial uniform = make_trial(kId, problem(1, 1, 45, 8, dtype), {{"solver", solver}, {"scale", 0.0}});
    check_trial(uniform, 1);
    Problem p = problem(1, 2, 33, 8, dtype, 21);
    p.causal = false;
    Trial both = make_trial(kId, p, {{"solver", solver}, {"causal", false}});
    check_trial(both, 1);
  }
  SECTION("decoding: the last queries of a longer sequence") {
    Trial t = make_trial(kId, problem(2, 2, GENERATE(1, 5), 16, dtype, 130), {{"solver", solver}});
    check_trial(t, 1);
  }
  SECTION("one token") {
    Trial t = make_trial(kId, problem(1, 1, 1, 8, dtype), {{"solver", solver}});
    check_trial(t, 1);
    CHECK(compare(t.output("o"), to_reference(t.instance->inputs().at("v"))).relative_l2 <=
          tolerance(dtype, 1));
  }
}

TEST_CASE("decoding gives the last row of the whole") {
  const Problem whole = problem(1, 2, 60, 8), last = problem(1, 2, 1, 8, DType::f32, 60);
  for (const char* solver : kSolvers) {
    Trial a = make_trial(kId, whole, {{"solver", solver}}), b = make_trial(kId, last, {{"solver", solver}});
    const TensorMap in = a.instance->inputs();
    Context ctx(cpu_backend(), 1);
    const RefTensor q = to_reference(in.at("q"));
    std::vector<double> rows;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t c = 0; c < 8; ++c) rows.push_back(q[(h * 60 + 59) * 8 + c]);
    rebind(b, {{"q", host_tensor(ctx, {1, 2, 1, 8}, rows)}, {"k", in.at("k")}, {"v", in.at("v")}});
    a.run(), b.run();
    const RefTensor all = a.output("o"), one = b.output("o");
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t c = 0; c < 8; ++c) CHECK(std::abs(all[(h * 60 + 59) * 8 + c] - one[h * 8 + c]) < 1e-5);
  }
}

TEST_CASE("local_linear_attention: limits") {
  const Problem p = problem(1, 2, 64, 8);
  Trial dense = make_trial("dense", p);
  dense.run();
  // A ridge without bound, or no iteration: softmax attention.
  for (const ParamMap& given : {ParamMap{{"ridge_lambda", 1e12}}, ParamMap{{"cg_max_iters", 0}},
                                ParamMap{{"ridge_lambda", 1e12}, {"solver", "cholesky"}}}) {
    Trial t = make_trial(kId, p, given);
    t.run();
    CHECK(compare(t.output("o"), dense.output("o")).relative_l2 < tolerance(DType::f32, 0));
  }
  Context ctx(cpu_backend(), 1);
  for (const char* solver : kSolvers) {
    // Equal values.
    Trial t = make_trial(kId, p, {{"solver", solver}, {"ridge_lambda", 0.1}});
    rebind(t, {{"v", host_tensor(ctx, {1, 2, 64, 8}, std::vector<double>(1024, -2.5))}});
    t.run();
    for (double x : t.output("o").data) CHECK(std::abs(x + 2.5) < 1e-4);
    // All keys at the query: uniform mean.
    Trial same = make_trial(kId, problem(1, 1, 9, 4), {{"solver", solver}});
    const Tensor ones = host_tensor(ctx, {1, 1, 9, 4}, std::vector<double>(36, 1.0));
    rebind(same, {{"q", ones}, {"k", ones}});
    same.run();
    const RefTensor o = same.output("o"), v = to_reference(same.instance->inputs().at("v"));
    double mean = 0;
    for (int64_t j = 0; j < 9; ++j) mean += v[j * 4] / 9;
    CHECK(std::abs(o[8 * 4] - mean) < 1e-5);
  }
}

TEST_CASE("affine values are reproduced where softmax attention fails") {
  const int64_t n = 80, d = 4;
  const Problem p = problem(1, 1, n, d);
  Trial t = make_trial(kId, p,
                       {{"ridge_lambda", 1e-5},
                        {"solver", GENERATE(as<std::string>{}, "cg", "cholesky")},
                        {"cg_max_iters", 40}});
  Trial dense = make_trial("dense", p);
  const TensorMap in = t.instance->inputs();
  const RefTensor q = to_reference(in.at("q")), k = to_reference(in.at("k"));
  const double a[4][4] = {{1, -2, 0.5, 0}, {0, 1, 1, -1}, {2, 0, 0, 1}, {-1, 0.25, 1, 1}},
               c[4] = {3, -1, 0, 2};
  const auto map = [&](const RefTensor& x, int64_t row, int64_t i) {
    double y = c[i];
    for (int64_t j = 0; j < d; ++j) y += a[i][j] * x[row * d + j];
    return y;
  };
  std::vector<double> v;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < d; ++i) v.push_back(map(k, j, i));
  Context ctx(cpu_backend(), 1);
  const Tensor values = host_tensor(ctx, {1, 1, n, d}, v);
  rebind(t, {{"v", values}}), rebind(dense, {{"q", in.at("q")}, {"k", in.at("k")}, {"v", values}});
  t.run(), dense.run();
  const RefTensor o = t.output("o"), s = dense.output("o");
  double worst = 0, softmax = 0;
  for (int64_t row = 40; row < n; ++row)
    for (int64_t i = 0; i < d; ++i) {
      worst = std::max(worst, std::abs(o[row * d + i] - map(q, row, i)));
      softmax = std::max(softmax, std::abs(s[row * d + i] - map(q, row, i)));
    }
  CHECK(worst < 5e-3);
  CHECK(softmax > 0.5);
}

TEST_CASE("local_linear_attention rows are the weights without their signs") {
  Trial t = make_trial(kId, problem(1, 2, 30, 6), {{"ridge_lambda", 0.5}});
  t.run();
  std::vector<float> rows;
  REQUIRE(t.instance->rows(*t.ctx, 0, 1, 0, 30, rows));
  // The outputs for unit vectors of values are the weights themselves.
  Trial unit = make_trial(kId, problem(1, 2, 30, 6), {{"ridge_lambda", 0.5}, {"value_dim", 30}});
  std::vector<double> identity(2 * 30 * 30, 0.0);
  for (size_t h = 0; h < 2; ++h)
    for (size_t j = 0; j < 30; ++j)
      for (size_t c = 0; c < 30; ++c) identity[(h * 30 + j) * 30 + c] = j == c;
  Context ctx(cpu_backend(), 1);
  rebind(unit, {{"q", t.instance->inputs().at("q")},
                {"k", t.instance->inputs().at("k")},
                {"v", host_tensor(ctx, {1, 2, 30, 30}, identity)}});
  unit.run();
  const RefTensor w = unit.output("o");
  double worst = 0;
  for (int64_t i = 0; i < 30; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < 30; ++j) sum += std::abs(w[(30 + i) * 30 + j]);
    for (int64_t j = 0; j < 30; ++j)
      worst = std::max(worst, std::abs(std::abs(w[(30 + i) * 30 + j]) / sum -
                                       static_cast<double>(rows[static_cast<size_t>(i * 30 + j)])));
  }
  CHECK(worst < 1e-4);
}

TEST_CASE("local_linear_attention refuses what it cannot do") {
  const Problem p = problem(1, 1, 8, 6);
  CHECK_THROWS_WITH(make_trial(kId, p, {{"ridge_lambda", 0.0}}), ContainsSubstring("ridge"));
  CHECK_THROWS_WITH(make_trial(kId, p, {{"lla_block_size", 4}}), ContainsSubstring("divide"));
  CHECK_THROWS_AS(make_trial(kId, p, {{"causal", false}}), UsageError);
  CHECK_THROWS_AS(make_trial(kId, problem(1, 1, 9, 4, DType::f32, 5)), Unsupported);
  CHECK_THROWS_AS(make_trial(kId, heads_problem(1, 4, 2, 8, 8, 4, true)), Unsupported);
}
