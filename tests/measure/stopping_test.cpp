#include "measure/stopping.hpp"

#include <random>

#include "tests/catch.hpp"

using namespace attnbench;

namespace {
/// Number of samples until the rule is finished.
template <class F>
int samples_until_finished(MedianIntervalCriterion& rule, F seconds, double spent_s) {
  rule.start();
  int n = 0;
  while (!rule.finished()) {
    if (n > 2000000) return -1;
    rule.add(seconds(n++), spent_s);
  }
  return n;
}
}  // namespace

TEST_CASE("equal samples stop at the least count, converged") {
  MeasureConfig c;
  c.max_time_s = 1e-4;
  MedianIntervalCriterion rule(c);
  CHECK(samples_until_finished(
            rule, [](int) { return 0.5; }, 1e-6) == 10);
  CHECK(rule.converged());
  c.min_samples = 25;
  MedianIntervalCriterion more(c);
  CHECK(samples_until_finished(
            more, [](int) { return 0.5; }, 1e-6) == 25);
}

TEST_CASE("noise needs samples as precision asks") {
  const auto needed = [](double precision, double spent_s) {
    MeasureConfig c;
    c.precision = precision;
    c.max_time_s = 1;
    MedianIntervalCriterion rule(c);
    std::mt19937_64 rng(11);
    std::normal_distribution<double> d(1.0, 0.05);
    const int n = samples_until_finished(
        rule, [&](int) { return d(rng); }, spent_s);
    CHECK(rule.converged());
    return n;
  };
  const int coarse = needed(0.02, 0.005), fine = needed(0.005, 0.0005);
  // The interval's half-width is 1.96 * 1.253 * sigma / sqrt(n): 38 and 603 samples; checks are 1/8 apart.
  CHECK(coarse >= 15);
  CHECK(coarse <= 90);
  CHECK(fine >= 300);
  CHECK(fine <= 1200);
}

TEST_CASE("time that is up stops it unconverged, but not before three samples") {
  MeasureConfig c;
  c.max_time_s = 1.0;
  MedianIntervalCriterion rule(c);
  const auto wild = [](int n) { return n % 2 ? 1.0 : 2.0; };
  CHECK(samples_until_finished(rule, wild, 0.25) == 4);
  CHECK_FALSE(rule.converged());
  CHECK(samples_until_finished(rule, wild, 30.0) == 3);
  CHECK_FALSE(rule.converged());
}

TEST_CASE("the count has a limit") {
  MeasureConfig c;
  c.max_samples = 77;
  MedianIntervalCriterion rule(c);
  CHECK(samples_until_finished(
            rule, [](int n) { return n % 2 ? 1.0 : 2.0; }, 1e-9) == 77);
  CHECK_FALSE(rule.converged());
}

TEST_CASE("start forgets everything") {
  MeasureConfig c;
  c.max_time_s = 1.0;
  MedianIntervalCriterion rule(c);
  CHECK(samples_until_finished(
            rule, [](int) { return 1.0; }, 0.01) == 10);
  CHECK(rule.converged());
  rule.start();
  CHECK_FALSE(rule.converged());
  CHECK_FALSE(rule.finished());
}

TEST_CASE("short samples go on for a twentieth of the time") {
  MeasureConfig c;
  c.max_time_s = 10;
  MedianIntervalCriterion rule(c);
  const int n = samples_until_finished(
      rule, [](int) { return 1e-3; }, 1e-3);
  CHECK(n >= 500);
  CHECK(n <= 501);
  CHECK(rule.converged());
}
