// Frequency shifting: the reference by hand, every network and option against it, the card's degenerate
// cases.
#include <cmath>
#include <complex>
#include <numbers>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem image(int64_t channels, int64_t h, int64_t w) {
  Problem p;
  p.kind = ProblemKind::image;
  p.channels = channels;
  p.size = {h, w};
  return p;
}

Value::List list(std::initializer_list<double> v) {
  Value::List l;
  for (double x : v) l.emplace_back(x);
  return l;
}

ParamMap small(const std::string& model, std::initializer_list<double> candidates, int64_t m) {
  return {{"model", model}, {"candidates", list(candidates)}, {"spectrum_size", m},
          {"repeats", 2},   {"hidden_features", 12},          {"hidden_layers", 2}};
}

void make(const Problem& p, const ParamMap& given) { make_only("fresh", p, given); }

/// cos of frequency (p, q) on s x s.
std::vector<double> wave(int64_t s, double p, double q) {
  std::vector<double> v;
  for (int64_t y = 0; y < s; ++y)
    for (int64_t x = 0; x < s; ++x)
      v.push_back(std::cos(2 * std::numbers::pi * (p * static_cast<double>(y) + q * static_cast<double>(x)) /
                           static_cast<double>(s)));
  return v;
}

/// Distances of external renders from a target.
Trial external(const std::vector<double>& target, const std::vector<std::vector<double>>& renders, int64_t s,
               int64_t m) {
  std::vector<double> all;
  Value::List candidates;
  for (const auto& r : renders) {
    all.insert(all.end(), r.begin(), r.end());
    candidates.emplace_back(static_cast<double>(candidates.size()));
  }
  Trial t =
      make_trial("fresh", image(1, s, s),
                 {{"model", "external"}, {"candidates", candidates}, {"repeats", 1}, {"spectrum_size", m}});
  rebind(t, {{"y", host_tensor(*t.ctx, {1, s, s}, target)},
             {"outputs", host_tensor(*t.ctx, {static_cast<int64_t>(renders.size()), 1, 1, s, s}, all)}});
  t.run();
  return t;
}

}  // namespace

TEST_CASE("the fresh reference, by hand on 2 x 2 pixels") {
  // |F|: 10, 2 (0, 1), 4 (1, 0), 0 (1, 1); s_1 = 6, s_2 = 0.
  const Problem p = image(1, 2, 2);
  const ParamMap given{
      {"model", "external"}, {"candidates", list({1, 2})}, {"repeats", 2}, {"spectrum_size", 2}};
  const RefMap out = find_reference("fresh")(
      p, params_of("fresh", p, given),
      {{"y", ref_tensor({1, 2, 2}, {1, 2, 3, 4})},
       {"outputs", ref_tensor({2, 2, 1, 2, 2}, {1, 2, 3, 4, 1, 0, 0, 1, 1, 0, 0, 1, 3, 1, 1, 3})}},
      {});
  CHECK(out.at("spectrum_target")[0] == Approx(6));
  CHECK(out.at("spectrum_target")[1] == Approx(0).margin(1e-12));
  // (1, 0, 0, 1): F = 2, 0, 0, 2: all at j = 2. Distances 0, 1, then 1, 1.
  CHECK(out.at("distance_each").data[0] == Approx(0).margin(1e-12));
  CHECK(out.at("distance_each").data[1] == Approx(1));
  CHECK(out.at("distance").data[0] == Approx(0.5));
  CHECK(out.at("distance").data[1] == Approx(1));
  CHECK(out.at("standard_error").data[0] == Approx(0.5 / std::sqrt(2.0)));
  CHECK(out.at("best").data[0] == 0);
}

TEST_CASE("fresh: every network against the reference, square and resized, chunks of coordinates") {
  // Sines of sines: an argument of some hundred radians is off by some 1e-5 in f32, and hidden layers
  // multiply by 30.
  const auto check = [](const Problem& p, ParamMap given, double roundings) {
    given["eval_batch"] = 100;
    Trial t = make_trial("fresh", p, given);
    t.run();
    const RefMap want = t.reference();
    const TensorMap outputs = t.instance->outputs();
    for (const auto& item : outputs) {
      const std::string& key = item.first;
      const Tensor& tensor = item.second;
      const Comparison c = compare(to_reference(tensor), want.at(key));
      INFO(key << ": " << c.relative_l2 << " " << c.worst);
      CHECK(c.relative_l2 <=
            (is_float(tensor.dtype()) ? roundings * epsilon_of(DType::f32) * t.instance->condition(key) : 0));
    }
    const Cost counted = t.ctx->cost().total(), formula = t.instance->cost().cost;
    CHECK(counted == formula);
  };
  for (const Problem& p : {image(3, 16, 16), image(1, 24, 13), image(2, 11, 26)}) {
    INFO(p.str());
    check(p, small("siren", {5, 20, 60}, 8), 1000);
    check(p, small("fourier", {1, 4}, 8), 400);
    check(p, small("finer_omega", {10, 30}, 8), 1000);
    check(p, small("finer_bias", {0, 1.5}, 8), 1000);
    check(p, small("wire", {5, 10}, 8), 1000);
    ParamMap given = small("external", {1, 2, 3}, 12);
    given["drop_dc"] = false;
    given["max_side"] = 9;
    check(p, given, 60);
  }
  ParamMap beta = small("siren", {5, 20}, 8);
  beta["beta_values"] = list({0.25, 1, 8});
  check(image(1, 12, 12), beta, 1000);
}

TEST_CASE("fresh degenerate cases: multiples and offsets, plane waves, constants, transposes, shifts") {
  const int64_t s = 16;
  std::vector<double> target(256), scaled(256), transposed(256), shifted(256);
  for (int64_t y = 0; y < s; ++y)
    for (int64_t x = 0; x < s; ++x)
      target[static_cast<size_t>(y * s + x)] = std::sin(static_cast<double>(7 * y * y + 3 * x));
  for (int64_t y = 0; y < s; ++y)
    for (int64_t x = 0; x < s; ++x) {
      scaled[static_cast<size_t>(y * s + x)] = 3 * target[static_cast<size_t>(y * s + x)] + 2;
      transposed[static_cast<size_t>(x * s + y)] = target[static_cast<size_t>(y * s + x)];
      shifted[static_cast<size_t>((y + 5) % s * s + (x + 3) % s)] = target[static_cast<size_t>(y * s + x)];
    }
  const Trial same = external(target, {scaled, transposed, shifted, target}, s, 7);
  for (double d : same.output("distance").data) CHECK(std::abs(d) < 1e-5);
  const Trial waves =
      external(wave(s, 2, 1), {wave(s, 3, 4), wave(s, 2, 1), wave(s, 1, 0), wave(s, 3, -1)}, s, 7);
  const RefTensor d = waves.output("distance");
  CHECK(d[0] == Approx(4).epsilon(1e-5));  // L1 indices 7 and 3
  CHECK(d[1] == Approx(0).margin(1e-4));
  CHECK(d[2] == Approx(2).epsilon(1e-4));
  CHECK(waves.output("best")[0] == 1);
  // The wave (3, -1) has no bin in a short spectrum but rounding; a constant has none at all.
  CHECK(waves.output("spectrum_output")[3 * 7 + 3] < 1e-3);
  const Trial constant = external(std::vector<double>(256, 0.0), {target}, s, 7);
  CHECK(constant.output("distance")[0] == 7);
  const Trial dark = external(target, {std::vector<double>(256, 0.0), target}, s, 7);
  CHECK(dark.output("distance")[0] == 7);
  CHECK(dark.output("best")[0] == 1);
  const Trial one = external(target, {scaled, shifted}, s, 1);
  CHECK(one.output("distance").data == std::vector<double>{0, 0});
  CHECK(one.output("best")[0] == 0);
}

TEST_CASE("fresh: the distance is that of transporting one histogram into the other") {
  // Greedy transport on a line is optimal: move from left to right.
  Trial t = make_trial("fresh", image(1, 16, 16), small("external", {1, 2}, 8));
  t.run();
  const RefTensor a = t.output("spectrum_output"), b = t.output("spectrum_target"),
                  d = t.output("distance_each");
  for (int64_t r = 0; r < 4; ++r) {
    double sa = 0, sb = 0, cost = 0;
    for (int64_t i = 0; i < 8; ++i) sa += a[r * 8 + i], sb += b[i];
    std::vector<double> left, right;
    for (int64_t i = 0; i < 8; ++i) left.push_back(a[r * 8 + i] / sa), right.push_back(b[i] / sb);
    for (size_t i = 0, j = 0; i < 8 && j < 8;) {
      const double moved = std::min(left[i], right[j]);
      cost += moved * std::abs(static_cast<double>(i) - static_cast<double>(j));
      left[i] -= moved, right[j] -= moved;
      (left[i] <= right[j] ? i : j)++;
    }
    CHECK(d[r] == Approx(cost).epsilon(1e-4));
  }
}

TEST_CASE("fresh counts: bins, parameters, FLOPs of the card") {
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("fresh");
  const auto form = [&](const Problem& p, const ParamMap& given) {
    return m.make(ctx, p, params_of("fresh", p, given))->cost();
  };
  const Problem p = image(3, 8, 8);
  const ParamMap siren{{"model", "siren"}, {"candidates", list({30})}, {"repeats", 1}, {"spectrum_size", 4}};
  CHECK(form(p, siren).parameters == 198915);
  ParamMap fourier = siren;
  fourier["model"] = "fourier";
  CHECK(form(p, fourier).parameters == 198147);
  ParamMap external = siren;
  external["model"] = "external";
  const Cost rendered = form(p, siren).cost, given = form(p, external).cost;
  CHECK(rendered.matmul - given.matmul == 64 * 395776);
  // Sum over a full even spectrum: (all - DC + the three other real bins) / 2.
  Trial t =
      make_trial("fresh", image(1, 8, 8),
                 {{"model", "external"}, {"candidates", list({1})}, {"repeats", 1}, {"spectrum_size", 14}});
  t.run();
  const RefTensor y = to_reference(t.instance->inputs().at("y")), s = t.output("spectrum_target");
  double all = 0, real = 0, dc = 0, sum = 0;
  for (int u = 0; u < 8; ++u)
    for (int v = 0; v < 8; ++v) {
      std::complex<double> z = 0;
      for (int64_t i = 0; i < 64; ++i)
        z += y[i] *
             std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(u * (i / 8) + v * (i % 8)) / 8);
      all += std::abs(z);
      if (u == 0 && v == 0)
        dc = std::abs(z);
      else if (u % 4 == 0 && v % 4 == 0)
        real += std::abs(z);
    }
  for (double x : s.data) sum += x;
  CHECK(sum == Approx((all - dc + real) / 2).epsilon(1e-5));
}

TEST_CASE("fresh says what it cannot do") {
  const Problem p = image(3, 16, 20);
  CHECK_NOTHROW(make(p, small("siren", {1}, 8)));
  CHECK_THROWS_WITH(make(p, small("siren", {1}, 31)), ContainsSubstring("2 S - 2 = 30"));
  CHECK_THROWS_WITH(make(p, {{"model", "external"}, {"spectrum_size", 8}}), ContainsSubstring("no grid"));
  ParamMap odd = small("fourier", {1}, 8);
  odd["hidden_features"] = 13;
  CHECK_THROWS_AS(make(p, odd), UsageError);
  ParamMap volume = small("siren", {1}, 8);
  volume["in_dim"] = 3;
  CHECK_THROWS_AS(make(p, volume), Unsupported);
  Problem two = p;
  two.batch = 2;
  CHECK_THROWS_AS(make(two, small("siren", {1}, 8)), Unsupported);
  CHECK_THROWS_AS(make(p, small("finer_bias", {-1}, 8)), UsageError);
}
