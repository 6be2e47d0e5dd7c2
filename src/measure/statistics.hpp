// Robust summaries of samples: medians, percentiles and bootstrap intervals. No assumption of normality.
#pragma once
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

struct ConfidenceInterval {
  double low = 0, high = 0;
};

/// Middle value, or the mean of the two middle ones. Throws UsageError when there are no values.
double median(std::vector<double> values);
/// Linear interpolation between order statistics; `share` in [0, 1].
double percentile(std::vector<double> values, double share);
/// Median absolute deviation from the median, unscaled.
double median_absolute_deviation(const std::vector<double>& values);

/// The 95% percentile-bootstrap interval of the median in the limit of infinitely many resamples.
///
/// No random numbers are needed: with n values sorted, the k-th of them bounds the median of a resample from
/// above exactly when at least half of the n draws fall on the first k, which is a binomial tail
/// (Efron, Annals of Statistics 7 (1979), section 3). So the interval is deterministic and costs a sort.
/// For even n the lower bound is taken from the lower and the upper bound from the upper middle value, which
/// can only widen it.
ConfidenceInterval median_interval(std::vector<double> values, double confidence = 0.95);
/// The same for values that are already sorted.
ConfidenceInterval median_interval_sorted(const std::vector<double>& sorted, double confidence = 0.95);

/// Everything but `converged` of a Timing.
Timing summarize(const std::vector<double>& seconds, int64_t iterations_per_sample, bool keep_samples);

/// Ratio baseline / subject from pairs of samples taken next to each other: the median of the per-pair ratios
/// and its bootstrap interval. Drift that both saw cancels within a pair.
Ratio paired_ratio(const std::vector<double>& baseline_s, const std::vector<double>& subject_s);
/// The same from two summaries that were not interleaved (pairs = 0): the relative half-widths of both
/// intervals add in quadrature. Blind to drift between the two.
Ratio unpaired_ratio(const Timing& baseline, const Timing& subject);

/// Pr(X >= m) for X ~ Binomial(n, p).
double binomial_tail(int64_t n, double p, int64_t m);

}  // namespace attnbench
