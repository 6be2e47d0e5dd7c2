#include "history/verdict.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "kernels/core/error.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

namespace {
constexpr double kTail = 0.025;          // of a 95% interval, each side
constexpr double kSameTail = 0.05;       // each of the two one-sided tests
constexpr double kNormal = 1.959963985;  // the normal quantile of it
// No clock resolves a case better between runs; keeps equal values from being infinitely certain.
constexpr double kLeastSigma = 1e-4;
constexpr size_t kLeastSide = 3;
constexpr double kStepErrors = 5;

/// Continued fraction of the incomplete beta function (Numerical analysis' standard form, Lentz's
/// evaluation).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  double c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::abs(d) < kTiny ? kTiny : d);
  double h = d;
  for (int m = 1; m <= 500; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 + even * d, c = 1 + even / c;
    d = 1 / (std::abs(d) < kTiny ? kTiny : d);
    if (std::abs(c) < kTiny) c = kTiny;
    h *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 + odd * d, c = 1 + odd / c;
    d = 1 / (std::abs(d) < kTiny ? kTiny : d);
    if (std::abs(c) < kTiny) c = kTiny;
    const double step = d * c;
    h *= step;
    if (std::abs(step - 1) < 1e-14) break;
  }
  return h;
}

double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a
                                   : 1 - front * beta_fraction(b, a, 1 - x) / b;
}

double median_between(const std::vector<double>& v, size_t begin, size_t end) {
  return median(
      {v.begin() + static_cast<std::ptrdiff_t>(begin), v.begin() + static_cast<std::ptrdiff_t>(end)});
}

/// Sum of distances from the median.
double deviations(const std::vector<double>& v, size_t begin, size_t end) {
  const double middle = median_between(v, begin, end);
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += std::abs(v[i] - middle);
  return sum;
}

}  // namespace

std::string_view name(Verdict v) {
  switch (v) {
    case Verdict::same:
      return "same";
    case Verdict::faster:
      return "faster";
    case Verdict::slower:
      return "slower";
    case Verdict::unsure:
      return "unsure";
  }
  return "?";
}

double student_tail(double t, double dof) {
  if (std::isinf(dof)) return 0.5 * std::erfc(t / std::sqrt(2.0));
  const double both = incomplete_beta(0.5 * dof, 0.5, dof / (dof + t * t));
  return t >= 0 ? 0.5 * both : 1 - 0.5 * both;
}

double student_quantile(double tail, double dof) {
  double low = -1e8, high = 1e8;
  for (int i = 0; i < 200 && high - low > 1e-12 * std::max(1.0, std::abs(low)); ++i) {
    const double t = 0.5 * (low + high);
    (student_tail(t, dof) > tail ? low : high) = t;
  }
  return 0.5 * (low + high);
}

Spread spread_of(const std::vector<double>& logs, std::string source) {
  Spread s{0, 0, std::move(source)};
  if (logs.size() < 2) return s;
  const double n = static_cast<double>(logs.size());
  const double mean = std::accumulate(logs.begin(), logs.end(), 0.0) / n;
  double sum = 0;
  for (const double x : logs) sum += (x - mean) * (x - mean);
  s.sigma = std::sqrt(sum / (n - 1));
  s.dof = n - 1;
  return s;
}

Spread pooled(const std::vector<Spread>& spreads) {
  Spread all;
  double sum = 0;
  for (const Spread& s : spreads) {
    if (s.dof <= 0) continue;
    sum += s.dof * s.sigma * s.sigma;
    all.dof += s.dof;
    all.source += (all.source.empty() ? "" : ", ") + s.source;
  }
  if (all.dof > 0) all.sigma = std::sqrt(sum / all.dof);
  return all;
}

Level current_level(const std::vector<double>& logs, double threshold) {
  Level level;
  const double least = std::log1p(threshold);
  for (;;) {
    const size_t n = logs.size() - level.begin;
    if (n < 2 * kLeastSide) break;
    // Differences of neighbours know nothing of steps, except the one at it.
    std::vector<double> jumps;
    for (size_t i = level.begin + 1; i < logs.size(); ++i) jumps.push_back(std::abs(logs[i] - logs[i - 1]));
    const double noise = std::max(1.4826 * median(jumps) / std::sqrt(2.0), kLeastSigma);
    // The split that leaves least of the scatter says where the step would be; then whether it is one.
    size_t best = 0;
    double least_left = std::numeric_limits<double>::infinity();
    for (size_t k = kLeastSide; k + kLeastSide <= n; ++k) {
      const double left =
          deviations(logs, level.begin, level.begin + k) + deviations(logs, level.begin + k, logs.size());
      if (left < least_left) least_left = left, best = k;
    }
    const double step = std::abs(median_between(logs, level.begin + best, logs.size()) -
                                 median_between(logs, level.begin, level.begin + best));
    const double error = noise * std::sqrt(static_cast<double>(n) / static_cast<double>(best * (n - best)));
    if (step <= least || step <= kStepErrors * error) break;
    level.begin += best;
  }
  const std::vector<double> newest(logs.begin() + static_cast<std::ptrdiff_t>(level.begin), logs.end());
  if (newest.empty()) return level;
  level.middle = median(newest);
  level.spread = spread_of(newest, std::to_string(newest.size()) + " earlier runs");
  return level;
}

Judgement judge_alone(const Difference& d, const GateRules& rules) {
  Judgement j;
  const double sigma = std::max(d.sigma, kLeastSigma);
  const double bound = std::log1p(rules.threshold);
  const double half = student_quantile(kTail / d.looks, d.dof) * sigma + d.allowance;
  j.change = std::expm1(d.log_ratio);
  j.low = std::expm1(d.log_ratio - half);
  j.high = std::expm1(d.log_ratio + half);
  j.p_slower = std::min(1.0, d.looks * student_tail((d.log_ratio - bound - d.allowance) / sigma, d.dof));
  j.p_faster = std::min(1.0, d.looks * student_tail((-d.log_ratio - bound - d.allowance) / sigma, d.dof));
  if (j.p_slower <= kTail)
    j.verdict = Verdict::slower;
  else if (j.p_faster <= kTail)
    j.verdict = Verdict::faster;
  else if (student_tail((bound - d.allowance - std::abs(d.log_ratio)) / sigma, d.dof) <= kSameTail / d.looks)
    j.verdict = Verdict::same;
  j.suspect = j.verdict == Verdict::slower || d.log_ratio + half >= std::log1p(kSuspect * rules.threshold);
  return j;
}

std::vector<bool> benjamini_hochberg(const std::vector<double>& p, double rate) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&p](size_t a, size_t b) { return p[a] < p[b]; });
  size_t rejected = 0;
  for (size_t k = 0; k < order.size(); ++k)
    if (p[order[k]] <= rate * static_cast<double>(k + 1) / static_cast<double>(p.size())) rejected = k + 1;
  std::vector<bool> reject(p.size());
  for (size_t k = 0; k < rejected; ++k) reject[order[k]] = true;
  return reject;
}

std::vector<Judgement> judge(const std::vector<Difference>& cases, const GateRules& rules) {
  std::vector<Judgement> out;
  std::vector<double> slower, faster;
  for (const Difference& d : cases) {
    out.push_back(judge_alone(d, rules));
    slower.push_back(out.back().p_slower);
    faster.push_back(out.back().p_faster);
  }
  const std::vector<bool> down = benjamini_hochberg(slower, rules.false_discovery_rate);
  const std::vector<bool> up = benjamini_hochberg(faster, rules.false_discovery_rate);
  for (size_t i = 0; i < out.size(); ++i)
    if ((out[i].verdict == Verdict::slower && !down[i]) || (out[i].verdict == Verdict::faster && !up[i]))
      out[i].verdict = Verdict::unsure;
  return out;
}

Difference trimmed_difference(std::vector<double> v) {
  if (v.size() < 2) throw UsageError("a difference is repeated at least once to know its error");
  std::sort(v.begin(), v.end());
  const size_t n = v.size(), cut = n / 5, kept = n - 2 * cut;
  double sum = 0;
  for (size_t i = cut; i < n - cut; ++i) sum += v[i];
  Difference d;
  d.log_ratio = sum / static_cast<double>(kept);
  for (size_t i = 0; i < cut; ++i) v[i] = v[cut], v[n - 1 - i] = v[n - 1 - cut];
  const double winsorized = spread_of(v, "").sigma;
  // (1 - 2 cut / n) sqrt(n) = kept / sqrt(n).
  d.sigma = winsorized * std::sqrt(static_cast<double>(n)) / static_cast<double>(kept);
  d.dof = static_cast<double>(kept) - 1;
  return d;
}

double log_error(double ci_low, double ci_high) {
  if (!(ci_low > 0) || !(ci_high >= ci_low)) return 0;
  return std::log(ci_high / ci_low) / (2 * kNormal);
}

double bootstrap_log_ratio_error(const std::vector<double>& now, const std::vector<double>& before) {
  if (now.empty() || before.empty()) throw UsageError("a bootstrap of no samples was asked for");
  constexpr int kResamples = 1000;
  // SplitMix64: a counter and a mixing function, the same everywhere (Steele, Lea, Flood, 2014).
  uint64_t state = 0;
  const auto random = [&state] {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  };
  std::vector<double> draw;
  const auto resampled_median = [&](const std::vector<double>& v) {
    draw.resize(v.size());
    for (double& x : draw) x = v[random() % v.size()];
    const auto middle = draw.begin() + static_cast<std::ptrdiff_t>(draw.size() / 2);
    std::nth_element(draw.begin(), middle, draw.end());
    return *middle;
  };
  std::vector<double> logs(kResamples);
  for (double& x : logs) x = std::log(resampled_median(now) / resampled_median(before));
  return (percentile(logs, 1 - kTail) - percentile(logs, kTail)) / (2 * kNormal);
}

}  // namespace attnbench
