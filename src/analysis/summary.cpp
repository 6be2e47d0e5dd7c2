#include "analysis/summary.hpp"

#include <algorithm>
#include <cmath>

namespace attnbench {

double percentile_of_sorted(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return NAN;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const size_t below = std::min(static_cast<size_t>(at), sorted.size() - 1);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Summary summarize(std::vector<double>& values) {
  if (values.empty()) return {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (double v : values) sum += v;
  return {sum / static_cast<double>(values.size()), values.front(),
          percentile_of_sorted(values, 0.05),       percentile_of_sorted(values, 0.25),
          percentile_of_sorted(values, 0.5),        percentile_of_sorted(values, 0.75),
          percentile_of_sorted(values, 0.95),       values.back()};
}

}  // namespace attnbench
