// Mean, extremes and percentiles of many values, for analyses. Not for timings: measure/statistics.hpp.
#pragma once
#include <vector>

namespace attnbench {

/// The value below which the share `p` (0 to 1) of the sorted values lies, linear between neighbours; NaN
/// when empty.
double percentile_of_sorted(const std::vector<double>& sorted, double p);

struct Summary {
  double mean = 0, min = 0, p5 = 0, p25 = 0, p50 = 0, p75 = 0, p95 = 0, max = 0;  ///< NaN of no values
};
/// Sorts `values`.
Summary summarize(std::vector<double>& values);

}  // namespace attnbench
