// Kernelized attention with relative positions: the reference by hand, every option against it, the card's
// degenerate cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "kernelized_rpe";

Problem sequence(int64_t batch, int64_t heads, int64_t n, int64_t m, int64_t d, bool causal,
                 DType dtype = DType::f32) {
  return heads_problem(batch, heads, heads, n, m, d, causal, dtype);
}

Problem image(int64_t heads, int64_t h, int64_t w, int64_t d, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = 2;
  p.heads = heads;
  p.head_dim = d;
  p.grid = {h, w};
  p.dtype = dtype;
  return p;
}

void make(const Problem& p, const ParamMap& given) { make_only(kMethod, p, given); }

/// b of std 0.7, so that distances matter.
void strong_bias(Trial& t) {
  const Tensor b = t.instance->weights().at("b");
  std::vector<double> values;
  for (int64_t i = 0; i < b.numel(); ++i) values.push_back(std::sin(1.7 * static_cast<double>(i)) * 0.9);
  rebind(t, {}, {{"b", host_tensor(*t.ctx, b.shape(), values)}});
}

/// Results in f32 whatever is stored: one rounding, and an FFT's error relative to the largest weights of a
/// row. The weights of one row differ by at most e^(2 + 1.8) = 45, which bounds what the transform's rounding
/// is magnified by.
void check_all(Trial& t) { check_trial(t, 2); }

}  // namespace

TEST_CASE("the kernelized reference, by hand") {
  // D = 1: unit rows are signs; W = 0: all features 1, so o is the Toeplitz average of v.
  const Problem p = sequence(1, 1, 2, 2, 1, false);
  const RefMap inputs{{"q", ref_tensor({1, 1, 2, 1}, {3, -1})},
                      {"k", ref_tensor({1, 1, 2, 1}, {2, 5})},
                      {"v", ref_tensor({1, 1, 2, 1}, {1, 4})}};
  RefMap weights{{"b", ref_tensor({1, 3}, {std::log(2.0), 0, std::log(3.0)})},
                 {"W", ref_tensor({1, 1, 1}, {0})}};
  const ReferenceFn reference = find_reference(kMethod);
  RefTensor o = reference(p, params_of(kMethod, p, {{"num_features", 1}}), inputs, weights).at("o");
  CHECK(o[0] == Approx((1 * 1 + 3 * 4) / 4.0));
  CHECK(o[1] == Approx((2 * 1 + 1 * 4) / 3.0));
  // w = 1: phi = e^(-1/2) e^(+-1) by the sign, so query 0 weighs both keys by e^2 e^-1, query 1 by e^-1.
  weights["W"] = ref_tensor({1, 1, 1}, {1});
  o = reference(p, params_of(kMethod, p, {{"num_features", 1}, {"use_rpe", false}}), inputs, weights).at("o");
  CHECK(o[0] == Approx(2.5));
  const RefTensor k = ref_tensor({1, 1, 2, 1}, {2, -5});
  RefMap signs = inputs;
  signs["k"] = k;
  o = reference(p, params_of(kMethod, p, {{"num_features", 1}, {"use_rpe", false}}), signs, weights).at("o");
  CHECK(o[0] == Approx((std::exp(1.0) * 1 + std::exp(-1.0) * 4) / (std::exp(1.0) + std::exp(-1.0))));
  Problem causal = p;
  causal.causal = true;
  o = reference(causal, params_of(kMethod, causal, {{"num_features", 1}}), inputs, weights).at("o");
  CHECK(o[0] == 1);
}

TEST_CASE("kernelized_rpe: every evaluation, map and storage type against the reference") {
  const std::string evaluation = GENERATE(as<std::string>{}, "fft", "direct");
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(false, true);
  for (const char* map : {"prf", "relu"})
    for (int64_t n : {1, 24, 37}) {
      Trial t = make_trial(
          kMethod, sequence(2, 3, n, n, 8, causal, dtype),
          {{"evaluation", evaluation}, {"feature_map", map}, {"num_features", 5}, {"value_dim", 3}});
      strong_bias(t);
      check_all(t);
    }
  SECTION("own features of each head, clipped distances, plain PRF, orthogonal rows") {
    Trial t = make_trial(kMethod, sequence(2, 2, 19, 19, 4, causal, dtype),
                         {{"evaluation", evaluation},
                          {"share_features", false},
                          {"max_relative_position", 3},
                          {"normalize", false},
                          {"orthogonal", true},
                          {"num_features", 10}});
    strong_bias(t);
    check_all(t);
  }
  SECTION("no bias of the distance") {
    Trial t = make_trial(kMethod, sequence(2, 2, 70, 70, 8, causal, dtype),
                         {{"evaluation", evaluation}, {"use_rpe", false}, {"num_features", 6}});
    check_all(t);
  }
  if (!causal) {
    SECTION("other keys than queries") {
      Trial t = make_trial(kMethod, sequence(1, 2, 9, 21, 8, false, dtype),
                           {{"evaluation", evaluation}, {"num_features", 6}});
      strong_bias(t);
      check_all(t);
    }
    SECTION("an image grid") {
      Trial t = make_trial(kMethod, image(2, 3, 5, 8, dtype),
                           {{"evaluation", evaluation},
                            {"rpe", "2d"},
                            {"num_features", 4},
                            {"max_relative_position", GENERATE(1, 4)}});
      strong_bias(t);
      check_all(t);
    }
  }
}

TEST_CASE("kernelized_rpe: trigonometric features") {
  // Their weights may be negative; many features keep the sums away from 0.
  for (const char* evaluation : {"fft", "direct"}) {
    Trial t = make_trial(kMethod, sequence(1, 2, 30, 30, 8, false),
                         {{"evaluation", evaluation}, {"feature_map", "trf"}, {"num_features", 256}});
    check_all(t);
  }
}

TEST_CASE("kernelized_rpe: recurrent equals fft for geometric weights, and refuses others") {
  const double lambda = 0.8;
  std::vector<double> b;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t o = -39; o < 40; ++o)
      b.push_back(o <= 0 ? static_cast<double>(-o) * std::log(h ? lambda : 1.0) : -1e9);
  Trial t = make_trial(kMethod, sequence(1, 2, 40, 40, 8, true),
                       {{"evaluation", "recurrent"}, {"num_features", 7}});
  rebind(t, {}, {{"b", host_tensor(*t.ctx, {2, 79}, b)}});
  check_all(t);
  b[39 - 5] += 1e-3;
  rebind(t, {}, {{"b", host_tensor(*t.ctx, {2, 79}, b)}});
  CHECK_THROWS_AS(t.instance->prepare(*t.ctx), Unsupported);
  Trial plain = make_trial(kMethod, sequence(1, 2, 40, 40, 8, true),
                           {{"evaluation", "recurrent"}, {"use_rpe", false}, {"num_features", 7}});
  check_all(plain);
}

TEST_CASE("kernelized_rpe degenerate cases") {
  const Problem p = sequence(1, 2, 33, 33, 8, false);
  Trial t = make_trial(kMethod, p, {{"num_features", 6}});
  const auto bias = [&](double value) {
    return host_tensor(*t.ctx, {2, 65}, std::vector<double>(130, value));
  };
  SECTION("a constant b cancels") {
    rebind(t, {}, {{"b", bias(1.5)}});
    t.run();
    Trial plain = make_trial(kMethod, p, {{"num_features", 6}, {"use_rpe", false}});
    plain.run();
    CHECK(compare(t.output("o"), plain.output("o")).relative_l2 < 4 * tolerance(DType::f32, 0));
  }
  SECTION("only distance 0: o = v") {
    std::vector<double> b(130, -1e9);
    b[32] = b[65 + 32] = 0;
    rebind(t, {}, {{"b", host_tensor(*t.ctx, {2, 65}, b)}});
    t.run();
    CHECK(compare(t.output("o"), to_reference(t.instance->inputs().at("v"))).relative_l2 <
          4 * tolerance(DType::f32, 0));
  }
  SECTION("constant values stay") {
    rebind(t, {{"v", host_tensor(*t.ctx, {1, 2, 33, 8}, std::vector<double>(528, 0.75))}},
           {{"b", bias(0.0)}});
    t.run();
    for (double o : t.output("o").data) CHECK(o == Approx(0.75).epsilon(1e-5));
  }
  SECTION("W = 0: the Toeplitz average of v, whatever q and k") {
    strong_bias(t);
    rebind(t, {}, {{"W", host_tensor(*t.ctx, {1, 6, 8}, std::vector<double>(48, 0.0))}});
    t.run();
    const RefTensor o = t.output("o"), v = to_reference(t.instance->inputs().at("v")),
                    b = to_reference(t.instance->weights().at("b"));
    double sum = 0, total = 0;
    for (int64_t j = 0; j < 33; ++j)
      sum += std::exp(b[65 + j - 4 + 32]) * v[(33 + j) * 8 + 2], total += std::exp(b[65 + j - 4 + 32]);
    CHECK(o[(33 + 4) * 8 + 2] == Approx(sum / total).epsilon(1e-4));
  }
  SECTION("zero rows of q and k are divided by the floor") {
    rebind(t, {{"q", host_tensor(*t.ctx, {1, 2, 33, 8}, std::vector<double>(528, 0.0))}});
    check_all(t);
  }
}

TEST_CASE("kernelized_rpe approaches softmax with a bias as features grow") {
  const Problem p = sequence(1, 1, 12, 12, 4, false);
  const auto error = [&](int64_t m) {
    Trial t = make_trial(kMethod, p, {{"num_features", m}, {"orthogonal", true}});
    strong_bias(t);
    t.run();
    const RefTensor q = to_reference(t.instance->inputs().at("q")),
                    k = to_reference(t.instance->inputs().at("k")),
                    v = to_reference(t.instance->inputs().at("v")),
                    b = to_reference(t.instance->weights().at("b"));
    RefTensor want({1, 1, 12, 4});
    for (int64_t i = 0; i < 12; ++i) {
      double total = 0;
      for (int64_t j = 0; j < 12; ++j) {
        double dot = 0, nq = 0, nk = 0;
        for (int64_t c = 0; c < 4; ++c)
          dot += q[i * 4 + c] * k[j * 4 + c], nq += q[i * 4 + c] * q[i * 4 + c],
              nk += k[j * 4 + c] * k[j * 4 + c];
        const double a = std::exp(dot / std::sqrt(nq * nk) + b[j - i + 11]);
        total += a;
        for (int64_t c = 0; c < 4; ++c) want[i * 4 + c] += a * v[j * 4 + c];
      }
      for (int64_t c = 0; c < 4; ++c) want[i * 4 + c] /= total;
    }
    return compare(t.output("o"), want).relative_l2;
  };
  const double few = error(16), many = error(4096);
  CHECK(many < 0.05);  // 1 / sqrt(m) = 0.016, times exp of unit norms
  CHECK(many < few / 4);
}

TEST_CASE("kernelized_rpe: costs are the card's, rows sum to 1, threads do not matter") {
  Trial t = make_trial(kMethod, sequence(1, 2, 64, 64, 64, false), {});
  const auto log2 = [](double x) { return std::log2(x); };
  const double lf = 128, f = 64, e = 64, n = 64;
  CHECK(static_cast<double>(t.instance->cost().cost.matmul) ==
        Approx(2 * (4 * n * f * 64 + 5 * lf * log2(lf) * f * (e + 1) + 2.5 * lf * log2(lf))));
  CHECK(t.instance->cost().parameters == 2 * 127);
  Trial small = make_trial(kMethod, sequence(1, 2, 20, 20, 8, true), {{"num_features", 5}}, 1),
        more = make_trial(kMethod, sequence(1, 2, 20, 20, 8, true), {{"num_features", 5}}, 3);
  small.run();
  more.run();
  CHECK(small.output("o").data == more.output("o").data);
  std::vector<float> rows;
  REQUIRE(small.instance->rows(*small.ctx, 0, 1, 3, 20, rows));
  const RefTensor v = to_reference(small.instance->inputs().at("v")), o = small.output("o");
  for (int64_t i = 3; i < 20; ++i) {
    double sum = 0, first = 0;
    for (int64_t j = 0; j < 20; ++j) {
      const double a = static_cast<double>(rows[static_cast<size_t>((i - 3) * 20 + j)]);
      CHECK((j > i ? a == 0 : a > 0));
      sum += a;
      first += a * v[(20 + j) * 8];
    }
    CHECK(sum == Approx(1).epsilon(1e-5));
    CHECK(first == Approx(o[(20 + i) * 8]).margin(1e-5));
  }
}

TEST_CASE("kernelized_rpe says what it cannot do") {
  const Problem p = sequence(1, 4, 16, 16, 8, false);
  CHECK_NOTHROW(make(p, {}));
  Problem grouped = p;
  grouped.kv_heads = 2;
  CHECK_THROWS_AS(make(grouped, {}), Unsupported);
  CHECK_THROWS_WITH(make(p, {{"rpe", "2d"}}), ContainsSubstring("image"));
  CHECK_THROWS_AS(make(p, {{"evaluation", "recurrent"}}), Unsupported);
  CHECK_THROWS_AS(make(sequence(1, 4, 16, 20, 8, false), {{"use_rpe", false}}), Unsupported);
  Problem causal = image(2, 3, 4, 8);
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {{"rpe", "2d"}}), Unsupported);
  CHECK_THROWS_AS(make(p, {{"causal", true}}), UsageError);
  CHECK_THROWS_AS(make(p, {{"num_features", 0}}), UsageError);
}
