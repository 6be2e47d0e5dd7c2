// Critical-band masking: the reference by hand, stages and options against it, the card's degenerate cases.
#include <cmath>
#include <cstdio>
#include <fstream>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "critical_band_masking";

Problem image(int64_t batch, int64_t side) {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = batch;
  p.size = {side, side};
  p.channels = 1;
  return p;
}

void make(const Problem& p, const ParamMap& given) { make_only(kMethod, p, given); }

Value::List list(std::initializer_list<double> v) {
  Value::List l;
  for (double x : v) l.emplace_back(x);
  return l;
}

double rms(const RefTensor& t, int64_t sample, int64_t pixels) {
  double sum = 0;
  for (int64_t i = 0; i < pixels; ++i) sum += t[sample * pixels + i] * t[sample * pixels + i];
  return std::sqrt(sum / static_cast<double>(pixels));
}

/// accuracy whose thresholds are `t`.
std::vector<double> accuracy_of(const std::vector<int>& t) {
  std::vector<double> a;
  for (int level = 0; level < 5; ++level)
    for (int skipped : t) a.push_back(level < 5 - skipped || level == 0 ? 80.0 : 20.0);
  return a;
}

}  // namespace

TEST_CASE("the masking reference, by hand") {
  // One tap of 1: reduce keeps even samples, expand puts them back between zeros. 10 x 10 has levels of 10, 5
  // and 3.
  const Problem p = image(1, 10);
  std::vector<double> noise(100);
  for (size_t i = 0; i < 100; ++i) noise[i] = static_cast<double>(i % 7) - 3;
  const RefMap inputs{{"I", ref_tensor({1, 10, 10}, std::vector<double>(100, 77.0))},
                      {"noise", ref_tensor({1, 10, 10}, noise)},
                      {"redraw", ref_tensor({1, 1}, {0})}};
  const ParamMap given{{"stage", "stimulus"}, {"filter_taps", list({1})}, {"num_bands", 3},
                       {"band", list({1})},   {"sigma", list({0.01})},    {"equalise_rms", false}};
  const RefMap out = find_reference(kMethod)(p, params_of(kMethod, p, given), inputs, {});
  // Level 1 of a 5 x 5 grid without its even samples: places (2i, 2j) where i or j is odd.
  for (int64_t y = 0; y < 10; ++y)
    for (int64_t x = 0; x < 10; ++x) {
      const bool kept = y % 2 == 0 && x % 2 == 0 && (y / 2 % 2 == 1 || x / 2 % 2 == 1);
      CHECK(out.at("s")[y * 10 + x] ==
            Approx(kept ? 0.01 * noise[static_cast<size_t>(y * 10 + x)] : 0).margin(1e-15));
      CHECK(out.at("v")[y * 10 + x] == Approx(0.449));
    }
}

TEST_CASE("masking stimulus: sizes, bands, options against the reference") {
  const int64_t side = GENERATE(10, 41, 64);
  int64_t levels = 1;
  for (int64_t s = side; s >= 5; s /= 2) ++levels;
  SECTION("bands in turn, one per sample") {
    check_trial(*std::make_unique<Trial>(make_trial(kMethod, image(2 * levels - 1, side),
                                                    {{"stage", "stimulus"}, {"num_bands", levels}})),
                1);
  }
  SECTION("no equal power, fewer bands, other taps") {
    Trial t = make_trial(kMethod, image(3, side),
                         {{"stage", "stimulus"},
                          {"num_bands", 2},
                          {"band", list({1, 0, 1})},
                          {"sigma", list({0.02, 0, 0.3})},
                          {"equalise_rms", false},
                          {"filter_taps", list({0.25, 0.5, 0.25})},
                          {"contrast", 0.9},
                          {"mean_luminance", 0.6}});
    check_trial(t, 1);
  }
}

TEST_CASE("masking repairs pixels that leave [0, 1]") {
  // Strong noise: many pixels are moved, some drawn again. Images of full contrast make both happen.
  Trial t = make_trial(kMethod, image(2, 24),
                       {{"stage", "stimulus"},
                        {"num_bands", 3},
                        {"sigma", list({0.6, 1.2})},
                        {"contrast", 1.0},
                        {"mean_luminance", 0.5}});
  t.run();
  const RefTensor y = t.output("y"), v = t.output("v"), s = t.output("s"), want = t.reference().at("y");
  int64_t moved = 0, drawn = 0, differ = 0;
  for (int64_t i = 0; i < y.numel(); ++i) {
    CHECK((y[i] >= 0 && y[i] <= 1));
    const double sum = v[i] + s[i];
    if (sum >= 0 && sum <= 1) continue;
    const double side = sum < 0 ? 0.1 : 0.9;
    (std::abs(y[i] - side) < 1e-5 ? moved : drawn)++;
    differ += std::abs(y[i] - want[i]) > 1e-5;
  }
  CHECK(moved > 20);
  CHECK(drawn > 5);
  CHECK(differ == 0);
}

TEST_CASE("masking degenerate cases") {
  SECTION("sigma 0: v, bit for bit") {
    Trial t = make_trial(kMethod, image(3, 32),
                         {{"stage", "stimulus"}, {"num_bands", 3}, {"sigma", list({0, 0, 0})}});
    t.run();
    CHECK(t.output("y").data == t.output("v").data);
  }
  SECTION("all raw bands together are the noise") {
    Trial t = make_trial(kMethod, image(4, 40),
                         {{"stage", "stimulus"},
                          {"num_bands", 5},
                          {"equalise_rms", false},
                          {"sigma", list({1, 1, 1, 1})},
                          {"band", list({0, 1, 2, 3})}});
    Trial last = make_trial(kMethod, image(4, 40),
                            {{"stage", "stimulus"},
                             {"num_bands", 5},
                             {"equalise_rms", false},
                             {"sigma", list({1, 1, 1, 1})},
                             {"band", list({4, 4, 4, 4})}});
    const std::vector<double> one = to_reference(t.instance->inputs().at("noise")).data;
    std::vector<double> same;
    for (int b = 0; b < 4; ++b) same.insert(same.end(), one.begin(), one.begin() + 1600);
    rebind(t, {{"noise", host_tensor(*t.ctx, {4, 40, 40}, same)}});
    rebind(last, {{"noise", host_tensor(*last.ctx, {4, 40, 40}, same)}});
    t.run();
    last.run();
    const RefTensor s = t.output("s"), finest = last.output("s");
    double worst = 0;
    for (int64_t i = 0; i < 1600; ++i)
      worst = std::max(worst, std::abs(s[i] + s[1600 + i] + s[3200 + i] + s[4800 + i] + finest[i] -
                                       one[static_cast<size_t>(i)]));
    CHECK(worst < 1e-5);
  }
  SECTION("every band has the power of the finest, 0.943 sigma of white noise") {
    Trial t =
        make_trial(kMethod, image(7, 224),
                   {{"stage", "stimulus"}, {"sigma", list({0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02})}});
    rebind(t, {{"I", host_tensor(*t.ctx, {7, 224, 224}, std::vector<double>(7 * 224 * 224, 100.0))}});
    t.run();
    const RefTensor y = t.output("y"), v = t.output("v"), s = t.output("s");
    for (int64_t b = 0; b < 7; ++b) {
      CHECK(rms(s, b, 224 * 224) / 0.02 == Approx(0.9429).epsilon(0.01));
      RefTensor difference = y;
      for (int64_t i = 0; i < y.numel(); ++i) difference[i] -= v[i];
      CHECK(rms(difference, b, 224 * 224) == Approx(rms(s, b, 224 * 224)).epsilon(1e-5));
    }
  }
}

TEST_CASE("masking channel fits against the reference, published channels among them") {
  const std::vector<std::vector<int>> rows = {
      {0, 0, 0, 0, 2, 2, 0}, {0, 0, 2, 2, 3, 4, 2}, {0, 0, 1, 2, 2, 3, 1},
      {0, 0, 0, 2, 3, 3, 0}, {0, 1, 1, 2, 3, 4, 4}, {0, 0, 0, 0, 0, 0, 0},
      {4, 4, 4, 4, 4, 4, 4}, {0, 0, 0, 1, 0, 0, 0}, {3, 2, 1, 0, 0, 0, 0}};
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = static_cast<int64_t>(rows.size());
  Trial t = make_trial(kMethod, p, {{"stage", "channel_fit"}});
  std::vector<double> accuracy;
  for (const auto& row : rows)
    for (double a : accuracy_of(row)) accuracy.push_back(a);
  rebind(t, {{"accuracy", host_tensor(*t.ctx, {p.batch, 5, 7}, accuracy)}});
  t.run();
  const RefMap want = t.reference();
  for (const char* name : {"t", "A", "mu", "s", "BW", "CF", "PNS", "degenerate"}) {
    const RefTensor got = t.output(name);
    REQUIRE(got.shape == want.at(name).shape);
    for (int64_t i = 0; i < got.numel(); ++i) {
      INFO(name << " " << i << ": " << got[i] << " instead of " << want.at(name)[i]);
      // A minimum is known to about the square root of what its sum of squares is.
      if (std::isfinite(want.at(name)[i]))
        CHECK(got[i] == Approx(want.at(name)[i]).epsilon(2e-6).margin(1e-7));
      else
        CHECK((std::isnan(got[i]) == std::isnan(want.at(name)[i]) &&
               std::isinf(got[i]) == std::isinf(want.at(name)[i])));
    }
  }
  CHECK(t.output("BW")[0] == Approx(1.0).margin(5e-3));
  CHECK(t.output("CF")[0] == Approx(39.60).margin(5e-3));
  CHECK(t.output("BW")[1] == Approx(3.99).margin(5.1e-3));
  CHECK(t.output("PNS")[2] == Approx(0.386).margin(5.1e-4));
}

TEST_CASE("masking: shifting the matrix doubles CF and leaves the rest; the synthetic observer comes back") {
  Problem p;
  p.kind = ProblemKind::image;
  p.batch = 2;
  Trial t = make_trial(kMethod, p, {{"stage", "channel_fit"}, {"num_bands", 9}});
  std::vector<double> accuracy;
  for (const std::vector<int>& row :
       {std::vector<int>{0, 0, 1, 3, 4, 2, 0, 0, 0}, {0, 0, 0, 1, 3, 4, 2, 0, 0}})
    for (double a : accuracy_of(row)) accuracy.push_back(a);
  rebind(t, {{"accuracy", host_tensor(*t.ctx, {2, 5, 9}, accuracy)}});
  t.run();
  CHECK(t.output("CF")[1] == Approx(2 * t.output("CF")[0]).epsilon(1e-4));
  CHECK(t.output("BW")[1] == Approx(t.output("BW")[0]).epsilon(1e-4));
  CHECK(t.output("PNS")[1] == Approx(t.output("PNS")[0]).epsilon(1e-4));
  Trial synthetic =
      make_trial(kMethod, image(1, 64), {{"num_bands", 5}, {"noise_sds", list({0, 0.02, 0.04, 0.08, 0.16})}});
  check_trial(synthetic, 1);
  Trial seven = make_trial(kMethod, image(2, 160), {{"num_bands", 6}});
  seven.run();
  // A0 4, mu0 4.5, s0 1.7 up to the rounding of thresholds, seen through six bands.
  CHECK(seven.output("A")[0] == Approx(4).margin(0.3));
  CHECK(seven.output("mu")[0] == Approx(4.5).margin(0.5));
  CHECK(seven.output("s")[0] == Approx(1.7).margin(0.4));
}

TEST_CASE("masking reads an accuracy matrix") {
  const std::string path = "masking_matrix.txt";
  {
    std::ofstream f(path);
    for (double a : accuracy_of({0, 0, 0, 0, 2})) f << a << ", ";
  }
  Trial t =
      make_trial(kMethod, image(1, 40), {{"num_bands", 5}, {"observer", "file"}, {"matrix_file", path}});
  t.run();
  CHECK(t.output("t").data == std::vector<double>{0, 0, 0, 0, 2});
  CHECK(t.output("mu")[0] == 4);
  {
    std::ofstream f(path);
    f << "1 2 x";
  }
  CHECK_THROWS_WITH(make(image(1, 40), {{"num_bands", 5}, {"matrix_file", path}}), ContainsSubstring("'x'"));
  std::remove(path.c_str());
  CHECK_THROWS_AS(make(image(1, 40), {{"num_bands", 5}, {"matrix_file", path}}), DataError);
}

TEST_CASE("masking says what it cannot do") {
  CHECK_NOTHROW(make(image(1, 64), {{"num_bands", 5}}));
  CHECK_THROWS_WITH(make(image(1, 40), {}), ContainsSubstring("levels"));
  Problem wide = image(1, 40);
  wide.size = {40, 50};
  CHECK_THROWS_AS(make(wide, {{"num_bands", 5}}), Unsupported);
  CHECK_THROWS_AS(make(image(1, 40), {{"num_bands", 5}, {"observer", "callback"}}), Unsupported);
  CHECK_THROWS_WITH(make(image(2, 40), {{"num_bands", 5}, {"sigma", list({0.1})}}),
                    ContainsSubstring("1 values for a batch of 2"));
  CHECK_THROWS_WITH(make(image(1, 40), {{"num_bands", 5}, {"band", list({5})}}),
                    ContainsSubstring("not below"));
  CHECK_THROWS_WITH(make(image(1, 40), {{"num_bands", 5}, {"filter_taps", list({1, 1})}}),
                    ContainsSubstring("odd"));
  CHECK_THROWS_WITH(make(image(1, 40), {{"num_bands", 5}, {"noise_sds", list({0.1, 0.2})}}),
                    ContainsSubstring("from 0"));
  CHECK_THROWS_AS(make(image(1, 40), {{"num_bands", 5}, {"observer", "file"}}), UsageError);
}
