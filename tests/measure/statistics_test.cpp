#include "measure/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/core/error.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {
// The interval by resampling, as the textbook does it: the oracle of the closed form.
ConfidenceInterval resampled(const std::vector<double>& v, int resamples) {
  std::mt19937_64 rng(7);
  std::uniform_int_distribution<size_t> pick(0, v.size() - 1);
  std::vector<double> medians(static_cast<size_t>(resamples)), draw(v.size());
  for (double& m : medians) {
    for (double& d : draw) d = v[pick(rng)];
    m = median(draw);
  }
  return {percentile(medians, 0.025), percentile(medians, 0.975)};
}

std::vector<double> noisy(size_t n, double centre, double spread, unsigned seed) {
  std::mt19937_64 rng(seed);
  std::lognormal_distribution<double> d(0, spread);
  std::vector<double> v(n);
  for (double& x : v) x = centre * d(rng);
  return v;
}
}  // namespace

TEST_CASE("medians and percentiles of small samples") {
  CHECK(median({3, 1, 2}) == 2);
  CHECK(median({4, 1, 3, 2}) == 2.5);
  CHECK(median({5}) == 5);
  CHECK(percentile({10, 20, 30, 40, 50}, 0.5) == 30);
  CHECK(percentile({10, 20}, 0.25) == Approx(12.5));
  CHECK(percentile({1, 2, 3}, 1.0) == 3);
  CHECK(percentile({1, 2, 3}, 0.0) == 1);
  CHECK(median_absolute_deviation({1, 1, 2, 2, 4, 6, 9}) == 1);
  CHECK_THROWS_AS(median({}), UsageError);
}

TEST_CASE("binomial tails") {
  CHECK(binomial_tail(10, 0.5, 0) == 1.0);
  CHECK(binomial_tail(10, 0.5, 11) == 0.0);
  CHECK(binomial_tail(10, 0.5, 5) == Approx(638.0 / 1024).epsilon(1e-12));
  CHECK(binomial_tail(3, 0.2, 3) == Approx(0.008).epsilon(1e-12));
  CHECK(binomial_tail(3, 0.2, 1) == Approx(1 - 0.512).epsilon(1e-12));
  // Far from underflow even for many samples: symmetric around the middle.
  CHECK(binomial_tail(100001, 0.5, 50001) == Approx(0.5).epsilon(1e-9));
  CHECK(binomial_tail(100000, 0.5, 50310) == Approx(0.025).epsilon(0.03));
}

TEST_CASE("the median's interval is the bootstrap's limit") {
  for (const size_t n : {11, 31, 101, 401}) {
    const std::vector<double> v = noisy(n, 1.0, 0.1, static_cast<unsigned>(n));
    const ConfidenceInterval exact = median_interval(v), drawn = resampled(v, 20000);
    // Resampled percentiles may fall one order statistic beside the limit.
    std::vector<double> s = v;
    std::sort(s.begin(), s.end());
    const auto rank = [&s](double x) { return std::lower_bound(s.begin(), s.end(), x) - s.begin(); };
    CHECK(std::abs(rank(exact.low) - rank(drawn.low)) <= 1);
    CHECK(std::abs(rank(exact.high) - rank(drawn.high)) <= 1);
    CHECK(exact.low < exact.high);
  }
}

TEST_CASE("for even counts the interval contains the bootstrap's") {
  const std::vector<double> v = noisy(40, 1.0, 0.2, 5);
  const ConfidenceInterval exact = median_interval(v), drawn = resampled(v, 20000);
  CHECK(exact.low <= drawn.low);
  CHECK(exact.high >= drawn.high);
}

TEST_CASE("the interval covers the true median about 19 times in 20") {
  int covered = 0;
  constexpr int kTrials = 1000;
  for (int i = 0; i < kTrials; ++i) {
    const ConfidenceInterval ci = median_interval(noisy(50, 2.0, 0.3, static_cast<unsigned>(100 + i)));
    covered += ci.low <= 2.0 && 2.0 <= ci.high;
  }
  // Five standard deviations of a binomial count around 95%.
  CHECK(covered >= 0.95 * kTrials - 5 * std::sqrt(kTrials * 0.95 * 0.05));
  CHECK(covered < kTrials);
}

TEST_CASE("one sample and equal samples have a point interval") {
  CHECK(median_interval({3.0}).low == 3.0);
  CHECK(median_interval({3.0}).high == 3.0);
  const ConfidenceInterval same = median_interval(std::vector<double>(100, 1.5));
  CHECK(same.low == 1.5);
  CHECK(same.high == 1.5);
}

TEST_CASE("a summary is robust against a single outlier") {
  std::vector<double> v(99, 1.0);
  v.push_back(1000.0);
  const Timing t = summarize(v, 7, true);
  CHECK(t.median_s == 1.0);
  CHECK(t.ci_high_s == 1.0);
  CHECK(t.min_s == 1.0);
  CHECK(t.mean_s == Approx(10.99));
  CHECK(t.samples == 100);
  CHECK(t.iterations_per_sample == 7);
  CHECK(t.raw_s == v);
  CHECK(summarize(v, 7, false).raw_s.empty());
}

TEST_CASE("a paired ratio sees 5% through 20% of common drift") {
  // Both sides wander together; each has 1% noise of its own.
  const std::vector<double> own_a = noisy(60, 1.0, 0.01, 1), own_b = noisy(60, 1.0, 0.01, 2);
  std::vector<double> baseline, subject;
  for (size_t i = 0; i < own_a.size(); ++i) {
    const double drift = 1.0 + 0.2 * static_cast<double>(i) / 60.0;
    baseline.push_back(1.05 * drift * own_a[i]);
    subject.push_back(drift * own_b[i]);
  }
  const Ratio r = paired_ratio(baseline, subject);
  CHECK(r.pairs == 60);
  CHECK(r.ci_low <= 1.05);
  CHECK(r.ci_high >= 1.05);
  CHECK(r.ci_low > 1.03);
  CHECK(r.ci_high < 1.07);
  // Without pairs the same samples cannot tell 5% from nothing.
  const Ratio u = unpaired_ratio(summarize(baseline, 1, false), summarize(subject, 1, false));
  CHECK(u.pairs == 0);
  CHECK(u.ci_high - u.ci_low > 2 * (r.ci_high - r.ci_low));
  CHECK_THROWS_AS(paired_ratio({1, 2}, {1}), UsageError);
}

TEST_CASE("A/A reads 1 within its interval about 19 times in 20") {
  int missed = 0;
  for (unsigned i = 0; i < 400; ++i) {
    const Ratio r = paired_ratio(noisy(40, 1.0, 0.05, 2 * i), noisy(40, 1.0, 0.05, 2 * i + 1));
    missed += r.ci_low > 1.0 || r.ci_high < 1.0;
  }
  CHECK(missed <= 20 + 5 * std::sqrt(400 * 0.05 * 0.95));
  CHECK(missed > 0);
}
