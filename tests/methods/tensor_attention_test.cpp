// Tensor attention: the reference by hand, every mode and order against it, the card's degenerate cases, the
// error bound of the polynomial.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem problem(int64_t batch, int64_t heads, int64_t n, int64_t d, DType dtype = DType::f32, int64_t m = 0) {
  return heads_problem(batch, heads, heads, n, m ? m : n, d, false, dtype);
}
RefTensor output(Trial& t, const TensorMap& inputs = {}) {
  rebind(t, inputs);
  t.run();
  return t.output("o");
}
Tensor constant(Context& ctx, const Shape& shape, double value) {
  return host_tensor(ctx, shape, std::vector<double>(static_cast<size_t>(shape.numel()), value));
}
const char* const kModes[] = {"exact", "poly", "poly_direct"};

}  // namespace

TEST_CASE("the tensor_attention reference, by hand") {
  // D = 1, scale 1, q = 1: weights exp(k1_a k2_b).
  const Problem p = problem(1, 1, 1, 1, DType::f32, 2);
  const double l2 = std::log(2.0);
  const RefMap in{{"q", ref_tensor({1, 1, 1, 1}, {1})},
                  {"k1", ref_tensor({1, 1, 2, 1}, {1, 2})},
                  {"v1", ref_tensor({1, 1, 2, 1}, {1, 10})},
                  {"k2", ref_tensor({1, 1, 2, 1}, {l2, 0})},
                  {"v2", ref_tensor({1, 1, 2, 1}, {1, 100})}};
  const auto run = [&](ParamMap given) {
    given["scale"] = 1.0;
    return find_reference("tensor_attention")(p, params_of("tensor_attention", p, given), in, {}).at("o")[0];
  };
  // Weights 2, 1 for k1 = 1 and 4, 1 for k1 = 2; values 1, 100 and 10, 1000.
  CHECK(std::abs(run({}) - (2 * 1 + 1 * 100 + 4 * 10 + 1 * 1000) / 8.0) < 1e-12);
  // Token 0 alone is visible.
  CHECK(std::abs(run({{"causal", true}}) - 1) < 1e-12);
  // A window restricts its own key only.
  CHECK(std::abs(run({{"window1", 1}}) - (2 * 1 + 1 * 100) / 3.0) < 1e-12);
  // 1 + s + s^2 / 2.
  const auto w = [](double s) { return 1 + s + s * s / 2; };
  CHECK(std::abs(run({{"mode", "poly"}, {"degree", 2}}) -
                 (w(l2) + 100 + 10 * w(2 * l2) + 1000) / (w(l2) + w(2 * l2) + 2)) < 1e-12);
  // The interpolant of degree 0 is a constant: uniform weights.
  CHECK(std::abs(run({{"mode", "poly"}, {"degree", 0}, {"poly", "chebyshev"}}) -
                 (1 + 100 + 10 + 1000) / 4.0) < 1e-12);
}

TEST_CASE("tensor_attention agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("pairs of keys, exactly, causal, in windows, of two lengths") {
    const bool causal = GENERATE(false, true);
    const int64_t window1 = GENERATE(0, 5), window2 = GENERATE(0, 9);
    Trial t =
        make_trial("tensor_attention", problem(2, 2, 23, 9, dtype),
                   {{"causal", causal}, {"window1", window1}, {"window2", window2}, {"entry_bound", 2.0}});
    check_trial(t, 5);
    if (window1 + window2 == 0) {
      Trial other = make_trial("tensor_attention", problem(1, 2, 13, 6, dtype),
                               {{"causal", causal}, {"kv_lengths", Value::List{Value(7), Value(20)}}});
      check_trial(other, 5);
    }
  }
  SECTION("orders 2, 4 and 5") {
    const bool causal = GENERATE(false, true);
    const int64_t order = GENERATE(2, 4, 5);
    const int64_t window = GENERATE(0, 3);
    Trial t = make_trial("tensor_attention", problem(1, 2, order == 5 ? 6 : 11, 7, dtype),
                         {{"order", order},
                          {"causal", causal},
                          {"window1", window},
                          {"window2", order > 2 ? window : 0},
                          {"entry_bound", 1.5}});
    check_trial(t, 5);
  }
  SECTION("the polynomial, by features and tuple by tuple") {
    const std::string mode = GENERATE(as<std::string>{}, "poly", "poly_direct"),
                      poly = GENERATE(as<std::string>{}, "taylor", "chebyshev");
    const bool causal = GENERATE(false, true);
    const int64_t degree = GENERATE(0, 2, 4), order = GENERATE(2, 3, 4);
    Trial t = make_trial("tensor_attention", problem(2, 1, 13, 5, dtype),
                         {{"mode", mode},
                          {"poly", poly},
                          {"degree", degree},
                          {"order", order},
                          {"causal", causal},
                          // Small scores for the interpolant, whose normalisers stay above 0 then.
                          {"entry_bound", poly == "taylor" ? 0.9 : 0.5},
                          {"scale", poly == "taylor" ? 1.0 : 0.2},
                          {"feature_chunk", 17}});
    check_trial(t, 2);
  }
  SECTION("polynomial over keys of two lengths") {
    Trial t = make_trial("tensor_attention", problem(1, 2, 9, 4, dtype),
                         {{"mode", GENERATE(as<std::string>{}, "poly", "poly_direct")},
                          {"kv_lengths", Value::List{Value(5), Value(17)}}});
    check_trial(t, 2);
  }
  SECTION("one token") {
    for (const char* mode : kModes) {
      Trial t = make_trial("tensor_attention", problem(1, 1, 1, 3, dtype), {{"mode", mode}});
      check_trial(t, 3);
    }
  }
}

TEST_CASE("many queries are worked on in chunks") {
  // 70 x 70 pseudo-queries of 150 channels in 12 heads are more than one chunk.
  Trial t = make_trial("tensor_attention", problem(2, 6, 70, 150), {{"causal", GENERATE(false, true)}});
  check_trial(t, 3);
}

TEST_CASE("a second key of ones leaves softmax attention, and order 2 is it") {
  const Problem p = problem(1, 2, 40, 8);
  Context ctx(cpu_backend(), 1);
  Trial pairs = make_trial("tensor_attention", p, {{"entry_bound", 2.0}});
  const Tensor ones = constant(ctx, {1, 2, 40, 8}, 1.0);
  const int64_t which = GENERATE(1, 2);
  const std::string gone = std::to_string(which), left = std::to_string(3 - which);
  const RefTensor o = output(pairs, {{"k" + gone, ones}, {"v" + gone, ones}});
  const TensorMap in = pairs.instance->inputs();
  Trial dense = make_trial("dense", p, {{"scale", 0.125}});
  CHECK(compare(o, output(dense, {{"q", in.at("q")}, {"k", in.at("k" + left)}, {"v", in.at("v" + left)}}))
            .relative_l2 < tolerance(DType::f32, 0));
  Trial two = make_trial("tensor_attention", p, {{"order", 2}});
  CHECK(compare(o, output(two, {{"q", in.at("q")}, {"k1", in.at("k" + left)}, {"v1", in.at("v" + left)}}))
            .relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("tensor_attention: degenerate inputs") {
  const Problem p = problem(1, 1, 17, 6);
  Context ctx(cpu_backend(), 1);
  const Shape shape{1, 1, 17, 6};
  for (const char* mode : kModes) {
    // No score: the product of the means.
    for (const char* zero : {"q", "k1", "k2"}) {
      Trial t = make_trial("tensor_attention", p, {{"mode", mode}});
      const RefTensor o = output(t, {{zero, constant(ctx, shape, 0.0)}});
      const RefTensor v1 = to_reference(t.instance->inputs().at("v1")),
                      v2 = to_reference(t.instance->inputs().at("v2"));
      double worst = 0;
      for (int64_t c = 0; c < 6; ++c) {
        double a = 0, b = 0;
        for (int64_t j = 0; j < 17; ++j) a += v1[j * 6 + c] / 17, b += v2[j * 6 + c] / 17;
        for (int64_t i = 0; i < 17; ++i) worst = std::max(worst, std::abs(o[i * 6 + c] - a * b));
      }
      CHECK(worst < 1e-6);
    }
    // Values of ones, and degree 0.
    Trial t = make_trial("tensor_attention", p, {{"mode", mode}});
    const RefTensor o = output(t, {{"v1", constant(ctx, shape, 1.0)}, {"v2", constant(ctx, shape, 1.0)}});
    for (double x : o.data) CHECK(std::abs(x - 1) < 1e-6);
    // Swapping the two keys with their values.
    Trial a = make_trial("tensor_attention", p, {{"mode", mode}});
    const RefTensor first = output(a);
    const TensorMap in = a.instance->inputs();
    Trial b = make_trial("tensor_attention", p, {{"mode", mode}});
    CHECK(
        largest_difference(
            first,
            output(b, {{"k1", in.at("k2")}, {"k2", in.at("k1")}, {"v1", in.at("v2")}, {"v2", in.at("v1")}})) <
        1e-6);
  }
}

TEST_CASE("three tokens whose angles add up to nothing are found in one layer") {
  // Card: s = c scale cos(x + y + z).
  const int64_t n = 8;
  const Problem p = problem(1, 1, n, 4);
  std::vector<double> q, k1, k2, v1, v2;
  const double step = 2 * 3.14159265358979323846 / static_cast<double>(n), c = 400;
  for (int64_t t = 0; t < n; ++t) {
    const double x = step * static_cast<double>(t), co = std::cos(x), si = std::sin(x);
    for (double y : {c * co, -c * co, -c * si, -c * si}) q.push_back(y);
    for (double y : {co, si, co, si}) k1.push_back(y);
    for (double y : {co, si, si, co}) k2.push_back(y);
    for (int64_t i = 0; i < 4; ++i) v1.push_back(i == 0 ? static_cast<double>(t) : 1), v2.push_back(1);
  }
  Context ctx(cpu_backend(), 1);
  const Shape shape{1, 1, n, 4};
  Trial t = make_trial("tensor_attention", p);
  rebind(t, {{"q", host_tensor(ctx, shape, q)},
             {"k1", host_tensor(ctx, shape, k1)},
             {"k2", host_tensor(ctx, shape, k2)},
             {"v1", host_tensor(ctx, shape, v1)},
             {"v2", host_tensor(ctx, shape, v2)}});
  std::vector<float> rows;
  t.run();
  REQUIRE(t.instance->rows(*t.ctx, 0, 0, 0, n, rows));
  // Every first key has its one partner, so the marginals are uniform and the mean of v1 is (n - 1) / 2.
  for (float x : rows) CHECK(std::abs(x - 1.0f / static_cast<float>(n)) < 1e-4f);
  CHECK(std::abs(t.output("o")[0] - 3.5) < 1e-3);
}

TEST_CASE("the polynomial's error stays within the card's bound and falls with the degree") {
  const double entries = GENERATE(0.5, 0.8);
  const Problem p = problem(1, 2, 48, 3);
  Trial exact = make_trial("tensor_attention", p, {{"entry_bound", entries}});
  const RefTensor want = exact.reference().at("o");
  double most = 0;
  {
    const RefTensor v1 = to_reference(exact.instance->inputs().at("v1")),
                    v2 = to_reference(exact.instance->inputs().at("v2"));
    double a = 0, b = 0;
    for (double x : v1.data) a = std::max(a, std::abs(x));
    for (double x : v2.data) b = std::max(b, std::abs(x));
    most = a * b;
  }
  const double s = entries * entries * entries;  // D times scale is 1
  double before = 1e9;
  for (const int64_t degree : {0, 2, 4}) {
    Trial t =
        make_trial("tensor_attention", p, {{"mode", "poly"}, {"degree", degree}, {"entry_bound", entries}});
    const double error = largest_difference(t.reference().at("o"), want);
    double remainder = std::exp(2 * s);
    for (int64_t m = 1; m <= degree + 1; ++m) remainder *= s / static_cast<double>(m);
    INFO("entries " << entries << ", degree " << degree << ": error " << error);
    CHECK(error <= 2 * remainder * most);
    CHECK(error < before / 4);
    before = error;
    // The interpolant is better than the remainder of Taylor's.
    Trial c =
        make_trial("tensor_attention", p,
                   {{"mode", "poly"}, {"degree", degree}, {"poly", "chebyshev"}, {"entry_bound", entries}});
    CHECK(largest_difference(c.reference().at("o"), want) <= 2 * remainder * most);
  }
}

TEST_CASE("a polynomial with a negative normaliser falls back to Taylor's") {
  // The interpolant of degree 2 on [-8, 8] is far below 0 at -4: scores of -4 alone fail it.
  const Problem p = problem(1, 1, 3, 1);
  Context ctx(cpu_backend(), 1);
  const Shape shape{1, 1, 3, 1};
  for (const char* mode : {"poly", "poly_direct"}) {
    const ParamMap given{
        {"mode", mode}, {"degree", 2}, {"poly", "chebyshev"}, {"logit_bound", 8.0}, {"scale", 1.0}};
    Trial t = make_trial("tensor_attention", p, given);
    ParamMap other = given;
    other["poly"] = "taylor";
    Trial taylor = make_trial("tensor_attention", p, other);
    const TensorMap in{{"q", constant(ctx, shape, -4.0)},
                       {"k1", constant(ctx, shape, 1.0)},
                       {"k2", constant(ctx, shape, 1.0)}};
    CHECK(largest_difference(output(t, in), output(taylor, in)) < 1e-6);
    CHECK(compare(t.output("o"), t.reference().at("o")).relative_l2 < 1e-5);
  }
}

TEST_CASE("tensor_attention costs: the card's leading terms") {
  const auto cost = [](const ParamMap& given) {
    return make_trial("tensor_attention", problem(1, 1, 32, 8), given).instance->cost().cost;
  };
  const int64_t n = 32, d = 8;
  CHECK(cost({}).matmul == 4 * n * n * n * d + 2 * n * n * d);
  CHECK(cost({{"order", 2}}).matmul == 4 * n * n * d);
  CHECK(cost({{"mode", "poly"}, {"degree", 4}}).matmul == 6 * n * 495 * (d + 1));
  CHECK(cost({{"mode", "poly"}, {"degree", 2}, {"order", 4}}).matmul == 8 * n * 45 * (d + 1));
  // Causal: sum of squares of tuples, exactly.
  CHECK(cost({{"causal", true}}).special == n * (n + 1) * (2 * n + 1) / 6 + n * n);
}

TEST_CASE("tensor_attention refuses what it cannot do") {
  const Problem p = problem(1, 1, 8, 4);
  CHECK_THROWS_WITH(make_trial("tensor_attention", p, {{"degree", 3}}), ContainsSubstring("odd"));
  CHECK_THROWS_AS(make_trial("tensor_attention", p, {{"mode", "poly"}, {"window1", 2}}), Unsupported);
  CHECK_THROWS_AS(make_trial("tensor_attention", problem(1, 1, 8, 200), {{"mode", "poly"}, {"degree", 8}}),
                  Unsupported);
  CHECK_THROWS_AS(make_trial("tensor_attention", p, {{"order", 2}, {"window2", 3}}), UsageError);
  CHECK_THROWS_WITH(make_trial("tensor_attention", p, {{"kv_lengths", Value::List{Value(3)}}}),
                    ContainsSubstring("lengths"));
  CHECK_THROWS_AS(make_trial("tensor_attention", problem(1, 1, 9, 4, DType::f32, 5),
                             {{"mode", "poly"}, {"causal", true}}),
                  Unsupported);
  CHECK_THROWS_AS(make_trial("tensor_attention", heads_problem(1, 4, 2, 8, 8, 4, false)), Unsupported);
}
