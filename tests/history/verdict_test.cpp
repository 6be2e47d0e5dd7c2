#include "history/verdict.hpp"

#include <cmath>
#include <limits>

#include "../catch.hpp"
#include "inputs/inputs.hpp"
#include "kernels/core/error.hpp"

using namespace attnbench;

namespace {
const double kInfinity = std::numeric_limits<double>::infinity();
double normal(uint64_t stream, uint64_t i) { return random_normal(42, stream, i); }
}  // namespace

TEST_CASE("Student's t against tabulated quantiles") {
  // Upper 2.5% and 0.5% points of the table in any textbook.
  CHECK(student_quantile(0.025, 1) == Approx(12.7062).epsilon(1e-5));
  CHECK(student_quantile(0.025, 4) == Approx(2.77645).epsilon(1e-5));
  CHECK(student_quantile(0.005, 10) == Approx(3.16927).epsilon(1e-5));
  CHECK(student_quantile(0.025, 120) == Approx(1.97993).epsilon(1e-5));
  CHECK(student_quantile(0.025, kInfinity) == Approx(1.959964).epsilon(1e-6));
  CHECK(student_tail(0, 3) == Approx(0.5));
  CHECK(student_tail(-2, 5) == Approx(1 - student_tail(2, 5)));
  // Three degrees have a closed form: 1/2 - (atan(t/sqrt 3) + (t/sqrt 3) / (1 + t^2/3)) / pi.
  const double x = 1.7 / std::sqrt(3.0);
  CHECK(student_tail(1.7, 3) ==
        Approx(0.5 - (std::atan(x) + x / (1 + x * x)) / std::acos(-1.0)).epsilon(1e-10));
}

TEST_CASE("Benjamini-Hochberg rejects up to the last that lies under the line") {
  // With 5 hypotheses at 5% the line is 1%, 2%, 3%, 4%, 5%: the third saves the second.
  CHECK(benjamini_hochberg({0.025, 0.5, 0.009, 0.022, 0.9}, 0.05) ==
        std::vector<bool>{true, false, true, true, false});
  CHECK(benjamini_hochberg({0.02, 0.5, 0.011, 0.8, 0.9}, 0.05) ==
        std::vector<bool>{true, false, true, false, false});
  CHECK(benjamini_hochberg({0.03, 0.5, 0.011, 0.8, 0.9}, 0.05) ==
        std::vector<bool>{false, false, false, false, false});
  CHECK(benjamini_hochberg({}, 0.05).empty());
}

TEST_CASE("verdicts follow the place of the interval") {
  const GateRules rules;
  const auto verdict = [&](double change, double sigma, double dof = kInfinity) {
    return judge_alone({std::log1p(change), sigma, dof, 1}, rules);
  };
  CHECK(verdict(0.05, 0.005).verdict == Verdict::slower);
  CHECK(verdict(-0.05, 0.005).verdict == Verdict::faster);
  CHECK(verdict(0.001, 0.005).verdict == Verdict::same);
  CHECK(verdict(0.03, 0.005).verdict == Verdict::unsure);  // at the threshold itself
  CHECK(verdict(0.05, 0.02).verdict == Verdict::unsure);
  CHECK(verdict(0.2, 0.02).verdict == Verdict::slower);
  // The same standard error from three runs is worth less.
  CHECK(verdict(0.05, 0.005, 2).verdict == Verdict::unsure);
  // What may be slower by more than 4% is a suspect, whatever the verdict.
  CHECK(verdict(0.05, 0.005).suspect);
  CHECK(verdict(0.0, 0.021).suspect);
  CHECK_FALSE(verdict(0.0, 0.019).suspect);
  CHECK_FALSE(verdict(0.0, 0.01).suspect);
  CHECK_FALSE(verdict(-0.05, 0.02).suspect);
  const Judgement j = verdict(0.05, 0.01);
  CHECK(j.change == Approx(0.05));
  CHECK(j.low == Approx(std::expm1(std::log1p(0.05) - 1.959964 * 0.01)));
  CHECK(j.high == Approx(std::expm1(std::log1p(0.05) + 1.959964 * 0.01)));
  // Five looks cost: the same data are less sure.
  CHECK(judge_alone({std::log1p(0.05), 0.0085, 1e9, 1}, rules).verdict == Verdict::slower);
  CHECK(judge_alone({std::log1p(0.05), 0.0085, 1e9, 5}, rules).verdict == Verdict::unsure);
}

TEST_CASE("among many cases, one that is just beyond doubt by itself is unsure") {
  const GateRules rules;
  std::vector<Difference> cases(200, {0.0, 0.005, kInfinity, 1});
  cases[7] = {std::log1p(0.0405), 0.005, kInfinity, 1};
  CHECK(judge_alone(cases[7], rules).verdict == Verdict::slower);
  CHECK(judge(cases, rules)[7].verdict == Verdict::unsure);
  cases[7].log_ratio = std::log1p(0.06);
  CHECK(judge(cases, rules)[7].verdict == Verdict::slower);
}

TEST_CASE("repeated differences: the trimmed mean and its error") {
  // Ten values, two cut on each side.
  const Difference d = trimmed_difference({8, 1, 2, 3, 4, 5, 6, 7, 1000, -50});
  // Sorted: -50 1 | 2 3 4 5 6 7 | 8 1000.
  CHECK(d.log_ratio == Approx(4.5));
  // Winsorized 2 2 2 3 4 5 6 7 7 7: mean 4.5, sum of squares about it 42.5.
  CHECK(d.sigma == Approx(std::sqrt(42.5 / 9) * std::sqrt(10.0) / 6));
  CHECK(d.dof == 5);
  const Difference few = trimmed_difference({1, 2, 3, 6});
  CHECK(few.log_ratio == Approx(3));
  CHECK(few.sigma == Approx(spread_of({1, 2, 3, 6}, "").sigma / 2));
  CHECK(few.dof == 3);
  CHECK_THROWS_AS(trimmed_difference({1}), UsageError);
  // Its interval covers the truth as often as it says: 95% of normal samples of each of the looks' sizes.
  for (const size_t n : {size_t{4}, size_t{9}, size_t{21}}) {
    int covered = 0;
    for (uint64_t t = 0; t < 2000; ++t) {
      std::vector<double> v;
      for (uint64_t i = 0; i < n; ++i) v.push_back(normal(1000 + t, i));
      const Difference x = trimmed_difference(v);
      covered += std::abs(x.log_ratio) <= student_quantile(0.025, x.dof) * x.sigma;
    }
    CHECK(covered >= 1860);
    CHECK(covered <= 1940);
  }
}

TEST_CASE("the spread of runs, and pooling by degrees of freedom") {
  const Spread s = spread_of({1.0, 2.0, 4.0}, "x");
  CHECK(s.sigma == Approx(std::sqrt(7.0 / 3)));
  CHECK(s.dof == 2);
  CHECK(spread_of({1.0}, "").dof == 0);
  const Spread p = pooled({{0.01, 4, "a"}, {0.03, 12, "b"}, {9.0, 0, "nothing"}});
  CHECK(p.dof == 16);
  CHECK(p.sigma == Approx(std::sqrt((4 * 0.0001 + 12 * 0.0009) / 16)));
  CHECK(p.source == "a, b");
}

TEST_CASE("the current level begins after the last step") {
  std::vector<double> v;
  for (int i = 0; i < 12; ++i) v.push_back(0.005 * normal(1, static_cast<uint64_t>(i)));
  CHECK(current_level(v, 0.03).begin == 0);
  for (int i = 0; i < 8; ++i) v.push_back(-0.2 + 0.005 * normal(2, static_cast<uint64_t>(i)));
  CHECK(current_level(v, 0.03).begin == 12);
  CHECK(current_level(v, 0.03).middle == Approx(-0.2).margin(0.01));
  for (int i = 0; i < 4; ++i) v.push_back(0.1 + 0.005 * normal(3, static_cast<uint64_t>(i)));
  CHECK(current_level(v, 0.03).begin == 20);
  // A single outlier is no level, and neither is a step below the threshold.
  v.push_back(0.8);
  CHECK(current_level(v, 0.03).begin == 20);
  std::vector<double> small(20, 0.0);
  for (size_t i = 10; i < 20; ++i) small[i] = 0.02;
  CHECK(current_level(small, 0.03).begin == 0);
  CHECK(current_level({}, 0.03).middle == 0);
}

TEST_CASE("noise alone makes no levels") {
  int stepped = 0;
  for (uint64_t s = 0; s < 500; ++s) {
    std::vector<double> v;
    for (uint64_t i = 0; i < 32; ++i) v.push_back(0.02 * normal(100 + s, i));
    stepped += current_level(v, 0.03).begin > 0;
  }
  CHECK(stepped <= 10);
}

TEST_CASE("the bootstrap's error of a ratio of medians is that of theory") {
  // The median of n normal values has variance pi/2 sigma^2/n; two of them add.
  std::vector<double> a, b;
  for (uint64_t i = 0; i < 400; ++i) a.push_back(1 + 0.1 * normal(7, i)), b.push_back(2 + 0.2 * normal(8, i));
  const double theory = std::sqrt(2 * std::acos(-1.0) / 2 * 0.01 / 400);
  CHECK(bootstrap_log_ratio_error(a, b) == Approx(theory).epsilon(0.3));
  CHECK(bootstrap_log_ratio_error(a, b) == bootstrap_log_ratio_error(a, b));
  CHECK_THROWS_AS(bootstrap_log_ratio_error({}, b), UsageError);
  CHECK(log_error(1.0, std::exp(2 * 1.959964 * 0.01)) == Approx(0.01));
}
