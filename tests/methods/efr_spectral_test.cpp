// Envelope following responses: the reference by hand, every option against it, the card's degenerate cases.
#include <cmath>
#include <complex>
#include <numbers>

#include "methods/filter_design.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const std::string kMethod = "efr_spectral";

Problem record(int64_t batch, int64_t channels, int64_t samples, double rate = 200) {
  Problem p;
  p.kind = ProblemKind::signal;
  p.batch = batch;
  p.channels = channels;
  p.samples = samples;
  p.sample_rate = rate;
  return p;
}

void make(const Problem& p, const ParamMap& given) { make_only(kMethod, p, given); }

double worst(const RefTensor& a, double want) {
  double w = 0;
  for (double v : a.data) w = std::max(w, std::abs(v - want));
  return w;
}

}  // namespace

TEST_CASE("the efr reference, by hand on two frames of two points") {
  // Boxcar of 2 points, no overlap: spectra (a + b, a - b) / 2.
  const Problem p = record(1, 2, 4, 10);
  const ParamMap given{{"nperseg", 2},       {"noverlap", 0},      {"nfft", 2},
                       {"window", "boxcar"}, {"boundary", "none"}, {"hist_bins", 2}};
  const RefMap out = find_reference(kMethod)(
      p, params_of(kMethod, p, given),
      {{"x", ref_tensor({1, 4}, {3, 1, 1, 3})}, {"y", ref_tensor({1, 2, 4}, {4, 0, 0, 4, 2, -2, 6, 2})}}, {});
  // X: (2, 1), (2, -1). Y1: (2, 2), (2, -2). Y2: (0, 2), (4, 2).
  CHECK(out.at("f").data == std::vector<double>{0, 5});
  CHECK(out.at("t").data[1] == Approx(0.2));
  const RefTensor& r = out.at("R");
  CHECK(r[0] == Approx(1));
  CHECK(r[1] == Approx(2));
  CHECK(r[2] == Approx(1));  // (0 + 2) / 2
  CHECK(r[3] == Approx(2));  // (|2| + |-2|) / 2
  const RefTensor& phi = out.at("Phi");
  CHECK(phi[1] == Approx(0));                          // both turn together
  CHECK(phi[3] == Approx(-std::numbers::pi / 2));      // 0 - 0, then 0 - pi, averaged
  CHECK(out.at("CSD")[0] == Approx(2));                // 1 * 0 + 1 * 2
  CHECK(out.at("CSD")[1] == Approx(0).margin(1e-12));  // 2 * 2 + 2 * -2
  CHECK(out.at("Coef")[0] == Approx(2 / std::sqrt(2.0 * 4.0)));
  CHECK(std::isnan(out.at("Delay")[0]));
  CHECK(out.at("Delay_pair")[1] == Approx(1000 * (std::numbers::pi / 2) / (2 * std::numbers::pi * 5)));
}

TEST_CASE("efr: every option against the reference") {
  const int option = GENERATE(range(0, 10));
  const std::vector<ParamMap> given = {
      {},
      {{"nperseg", 64}, {"noverlap", 48}, {"nfft", 128}, {"hist_bins", 6}},
      {{"nperseg", 33}, {"noverlap", 10}, {"nfft", 35}, {"window", "hamming"}},
      {{"window", "boxcar"}, {"boundary", "none"}},
      {{"eps", 0.05}},
      {{"phase_mode", "ratio"}},
      {{"csd_source", "response"}},
      {{"peak_distance", 3}, {"peak_height_tf", 0.9}, {"peak_height_csd", 0.1}},
      {{"accumulate", "f32"}},
      {{"nperseg", 50}, {"noverlap", 0}, {"nfft", 50}}};
  Trial t = make_trial(kMethod, record(2, option % 3 + 1, option == 1 ? 1130 : 700 + 37 * option),
                       given[static_cast<size_t>(option)]);
  INFO("option " << option);
  check_trial(t, 1);
}

TEST_CASE("efr preprocess: envelope of the audio, cleaned responses") {
  // 2400 Hz: 793 and 397 taps.
  const std::string window = GENERATE(as<std::string>{}, "kaiser", "hamming");
  Trial t = make_trial(kMethod, record(2, 2, 250),
                       {{"preprocess", "full"},
                        {"audio_rate", 2400},
                        {"nperseg", 100},
                        {"noverlap", 50},
                        {"nfft", 100},
                        {"fir_window", window}});
  CHECK(t.instance->input_specs()[0].shape == Shape{2, 3000});
  check_trial(t, 200);
}

TEST_CASE("efr filters have the published lengths and shapes") {
  CHECK(filter::odd_taps(3.3 * 22050 / 10) == 7277);
  CHECK(filter::odd_taps(3.3 * 22050 / 20) == 3639);
  const auto response = [](const std::vector<double>& h, double f, double rate) {
    double re = 0, im = 0;
    for (size_t i = 0; i < h.size(); ++i) {
      re += h[i] * std::cos(2 * std::numbers::pi * f / rate * static_cast<double>(i));
      im += h[i] * std::sin(2 * std::numbers::pi * f / rate * static_cast<double>(i));
    }
    return std::hypot(re, im);
  };
  const std::vector<double> band = filter::windowed_sinc(7277, 1, 1000, 22050, true, 10);
  CHECK(response(band, 500.5, 22050) == Approx(1));
  CHECK(response(band, 1000, 22050) == Approx(0.5).margin(0.01));
  CHECK(response(band, 1020, 22050) < 2e-3);  // 55 dB
  const std::vector<double> low = filter::windowed_sinc(3639, 0, 100, 22050, true, 20);
  CHECK(response(low, 0, 22050) == Approx(1));
  CHECK(response(low, 130, 22050) < 2e-3);
  // The Butterworth's edges lie at -3 dB, the notch at 0.
  const auto gain = [](const std::vector<Biquad>& sections, double f, double rate) {
    const std::complex<double> z = std::polar(1.0, -2 * std::numbers::pi * f / rate);
    std::complex<double> g = 1;
    for (const Biquad& q : sections) g *= (q.b0 + q.b1 * z + q.b2 * z * z) / (1.0 + q.a1 * z + q.a2 * z * z);
    return std::abs(g);
  };
  const std::vector<Biquad> sections = filter::butterworth_band(5, 1, 95, 200);
  CHECK(sections.size() == 5);
  CHECK(gain(sections, 1, 200) == Approx(std::sqrt(0.5)));
  CHECK(gain(sections, 95, 200) == Approx(std::sqrt(0.5)));
  CHECK(gain(sections, 20, 200) == Approx(1).margin(1e-4));
  CHECK(gain({filter::notch(50, 30, 200)}, 50, 200) < 1e-12);
  CHECK(gain({filter::notch(50, 30, 200)}, 50 + 50 / 60.0, 200) == Approx(std::sqrt(0.5)).margin(0.01));
}

TEST_CASE("efr degenerate cases") {
  const Problem p = record(1, 3, 1200);
  Trial t = make_trial(kMethod, p);
  const std::vector<double> x = to_reference(t.instance->inputs().at("x")).data;
  std::vector<double> y = to_reference(t.instance->inputs().at("y")).data;
  SECTION("scaled excitations: H = g, no phase, Coef 1") {
    for (size_t c = 0; c < 3; ++c)
      for (size_t i = 0; i < 1200; ++i) y[c * 1200 + i] = 2 * x[i];
    rebind(t, {{"y", host_tensor(*t.ctx, {1, 3, 1200}, y)}});
    t.run();
    const auto frames = static_cast<double>(t.output("t").numel());
    CHECK(worst(t.output("R"), 2) < 1e-4);
    CHECK(worst(t.output("Phi"), 0) < 1e-4);
    CHECK(worst(t.output("CSD"), 4 * frames) < 1e-2);
    CHECK(worst(t.output("Coef"), 1) < 1e-6);
  }
  SECTION("one response a multiple of another: Coef 1; and it stays in [0, 1] otherwise") {
    for (size_t i = 0; i < 1200; ++i) y[1200 + i] = -3 * y[i];
    rebind(t, {{"y", host_tensor(*t.ctx, {1, 3, 1200}, y)}});
    t.run();
    const RefTensor coef = t.output("Coef"), r = t.output("R");
    const int64_t bins = coef.dim(2);
    for (int64_t k = 0; k < bins; ++k) {
      CHECK(coef[k] == Approx(1).epsilon(1e-6));
      CHECK(r[bins + k] == Approx(3 * r[k]).epsilon(1e-4));
      CHECK((coef[bins + k] >= 0 && coef[bins + k] <= 1));
    }
  }
  SECTION("one frame: Coef 1, CSD = |H_c| |H_d|") {
    Trial one = make_trial(kMethod, record(1, 2, 200), {{"boundary", "none"}});
    one.run();
    CHECK(one.output("t").numel() == 1);
    CHECK(worst(one.output("Coef"), 1) < 1e-6);
    const RefTensor r = one.output("R"), csd = one.output("CSD");
    for (int64_t k = 0; k < csd.dim(2); ++k) CHECK(csd[k] == Approx(r[k] * r[csd.dim(2) + k]).epsilon(1e-5));
  }
  SECTION("scaling the excitation leaves Coef and Phi") {
    t.run();
    const RefTensor coef = t.output("Coef"), phi = t.output("Phi"), r = t.output("R");
    std::vector<double> scaled = x;
    for (double& v : scaled) v *= 4;
    rebind(t, {{"x", host_tensor(*t.ctx, {1, 1200}, scaled)}});
    t.run();
    CHECK(t.output("Coef").data == coef.data);
    CHECK(t.output("Phi").data == phi.data);
    for (int64_t i = 0; i < r.numel(); ++i) CHECK(t.output("R")[i] == r[i] / 4);
  }
  SECTION("no excitation in a frame: H = 0 there") {
    rebind(t, {{"x", host_tensor(*t.ctx, {1, 1200}, std::vector<double>(1200, 0.0))}});
    t.run();
    CHECK(worst(t.output("H"), 0) == 0);
    CHECK(worst(t.output("Coef"), 0) == 0);
  }
}

TEST_CASE("efr costs are the card's, shapes too, threads do not matter") {
  Trial t = make_trial(kMethod, record(1, 4, 24000));
  CHECK(t.instance->outputs().at("H").shape() == Shape{1, 4, 101, 241, 2});
  const ClosedForm f = t.instance->cost();
  CHECK(f.parameters == 0);
  // 4.85 MFLOP of transforms (their rounding is per frame), 3.31 MFLOP of cells.
  CHECK(f.cost.matmul == 5 * 241 * std::llround(2.5 * 200 * std::log2(200.0)));
  CHECK(static_cast<double>(f.cost.matmul + 5 * 241 * 200) / 1e6 == Approx(4.85).margin(0.005));
  CHECK(static_cast<double>(101 * 241 * (4 * 22 + 8 * 6)) / 1e6 == Approx(3.31).margin(0.005));
  Trial one = make_trial(kMethod, record(2, 3, 900), {}, 1),
        three = make_trial(kMethod, record(2, 3, 900), {}, 3);
  one.run();
  three.run();
  for (const char* name : {"R", "Phi", "CSD", "Coef", "peaks_R", "hist_R"})
    CHECK(one.output(name).data == three.output(name).data);
}

TEST_CASE("efr says what it cannot do") {
  const Problem p = record(1, 2, 1000);
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"noverlap", 200}}), ContainsSubstring("noverlap"));
  CHECK_THROWS_WITH(make(p, {{"nfft", 100}}), ContainsSubstring("nfft"));
  CHECK_THROWS_WITH(make(record(1, 2, 100), {{"boundary", "none"}}),
                    ContainsSubstring("fewer than a window"));
  CHECK_THROWS_WITH(make(p, {{"fs", 100.0}}), ContainsSubstring("sample_rate"));
  CHECK_THROWS_AS(make(record(1, 2, 1000, 128), {{"preprocess", "full"}}), Unsupported);
  CHECK_THROWS_AS(make(p, {{"preprocess", "full"}, {"audio_rate", 2000}}), Unsupported);
  CHECK_THROWS_AS(make(record(1, 2, 60), {{"preprocess", "full"}, {"nperseg", 20}, {"noverlap", 10}}),
                  Unsupported);
  CHECK_THROWS_AS(make(p, {{"peak_height_tf", 0.0}}), UsageError);
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
}
