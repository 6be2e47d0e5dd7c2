#include "measure/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.hpp"

namespace attnbench {

namespace {
double median_of_sorted(const std::vector<double>& v) {
  const size_t n = v.size();
  return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

double percentile_of_sorted(const std::vector<double>& v, double share) {
  const double at = share * static_cast<double>(v.size() - 1);
  const size_t i = static_cast<size_t>(at);
  if (i + 1 >= v.size()) return v.back();
  return v[i] + (at - static_cast<double>(i)) * (v[i + 1] - v[i]);
}

void require_some(const std::vector<double>& v) {
  if (v.empty()) throw UsageError("a summary of no samples was asked for");
}

double mad_of_sorted(const std::vector<double>& v) {
  const double m = median_of_sorted(v);
  std::vector<double> d(v.size());
  std::transform(v.begin(), v.end(), d.begin(), [m](double x) { return std::abs(x - m); });
  std::sort(d.begin(), d.end());
  return median_of_sorted(d);
}
}  // namespace

double median(std::vector<double> v) {
  require_some(v);
  std::sort(v.begin(), v.end());
  return median_of_sorted(v);
}

double percentile(std::vector<double> v, double share) {
  require_some(v);
  std::sort(v.begin(), v.end());
  return percentile_of_sorted(v, std::clamp(share, 0.0, 1.0));
}

double median_absolute_deviation(const std::vector<double>& values) {
  require_some(values);
  std::vector<double> v = values;
  std::sort(v.begin(), v.end());
  return mad_of_sorted(v);
}

double binomial_tail(int64_t n, double p, int64_t m) {
  if (m <= 0) return 1.0;
  if (m > n || p <= 0.0) return 0.0;
  if (p >= 1.0) return 1.0;
  const double mean = static_cast<double>(n) * p;
  const double odds = p / (1.0 - p);
  const auto log_term = [&](int64_t i) {
    const double x = static_cast<double>(i), size = static_cast<double>(n);
    return std::lgamma(size + 1) - std::lgamma(x + 1) - std::lgamma(size - x + 1) + x * std::log(p) +
           (size - x) * std::log1p(-p);
  };
  // Terms shrink away from the mean, so the shorter tail is summed from m outwards until nothing is added.
  double sum = 0;
  if (static_cast<double>(m) > mean) {
    double term = std::exp(log_term(m));
    for (int64_t i = m; i <= n && term > 1e-18; ++i) {
      sum += term;
      term *= odds * static_cast<double>(n - i) / static_cast<double>(i + 1);
    }
    return std::min(sum, 1.0);
  }
  double term = std::exp(log_term(m - 1));
  for (int64_t i = m - 1; i >= 0 && term > 1e-18; --i) {
    sum += term;
    term *= static_cast<double>(i) / (odds * static_cast<double>(n - i + 1));
  }
  return std::max(0.0, 1.0 - sum);
}

ConfidenceInterval median_interval_sorted(const std::vector<double>& v, double confidence) {
  require_some(v);
  const int64_t n = static_cast<int64_t>(v.size());
  const double tail = 0.5 * (1.0 - confidence);
  // Smallest k with Pr(the `rank`-th of a resample <= k-th value) >= share. Monotone in k: bisection.
  const auto value_at = [&](int64_t rank, double share) {
    int64_t low = 1, high = n;
    while (low < high) {
      const int64_t k = low + (high - low) / 2;
      if (binomial_tail(n, static_cast<double>(k) / static_cast<double>(n), rank) >= share)
        high = k;
      else
        low = k + 1;
    }
    return v[static_cast<size_t>(low - 1)];
  };
  return {value_at((n + 1) / 2, tail), value_at(n / 2 + 1, 1.0 - tail)};
}

ConfidenceInterval median_interval(std::vector<double> v, double confidence) {
  std::sort(v.begin(), v.end());
  return median_interval_sorted(v, confidence);
}

Timing summarize(const std::vector<double>& seconds, int64_t iterations_per_sample, bool keep_samples) {
  require_some(seconds);
  std::vector<double> v = seconds;
  std::sort(v.begin(), v.end());
  Timing t;
  const ConfidenceInterval ci = median_interval_sorted(v);
  t.median_s = median_of_sorted(v);
  t.ci_low_s = ci.low;
  t.ci_high_s = ci.high;
  t.min_s = v.front();
  t.p5_s = percentile_of_sorted(v, 0.05);
  t.p95_s = percentile_of_sorted(v, 0.95);
  t.mad_s = mad_of_sorted(v);
  t.mean_s = std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
  t.samples = static_cast<int>(v.size());
  t.iterations_per_sample = iterations_per_sample;
  if (keep_samples) t.raw_s = seconds;
  return t;
}

Ratio paired_ratio(const std::vector<double>& baseline_s, const std::vector<double>& subject_s) {
  if (baseline_s.size() != subject_s.size())
    throw UsageError("paired samples are wanted, but there are " + std::to_string(baseline_s.size()) +
                     " and " + std::to_string(subject_s.size()));
  require_some(subject_s);
  std::vector<double> r(subject_s.size());
  for (size_t i = 0; i < r.size(); ++i) r[i] = baseline_s[i] / subject_s[i];
  std::sort(r.begin(), r.end());
  const ConfidenceInterval ci = median_interval_sorted(r);
  Ratio ratio;
  ratio.value = median_of_sorted(r);
  ratio.ci_low = ci.low;
  ratio.ci_high = ci.high;
  ratio.pairs = static_cast<int>(r.size());
  return ratio;
}

Ratio unpaired_ratio(const Timing& baseline, const Timing& subject) {
  const auto half = [](double a, double b, double m) { return std::abs(a - b) / m; };
  // The ratio is low when the baseline is at its low end and the subject at its high end.
  const double down = std::hypot(half(baseline.median_s, baseline.ci_low_s, baseline.median_s),
                                 half(subject.ci_high_s, subject.median_s, subject.median_s));
  const double up = std::hypot(half(baseline.ci_high_s, baseline.median_s, baseline.median_s),
                               half(subject.median_s, subject.ci_low_s, subject.median_s));
  Ratio r;
  r.value = baseline.median_s / subject.median_s;
  r.ci_low = r.value * (1.0 - std::min(down, 1.0));
  r.ci_high = r.value * (1.0 + up);
  r.pairs = 0;
  return r;
}

}  // namespace attnbench
