#include "analysis/summary.hpp"

#include <algorithm>
#include <cmath>

namespace attnbench {

namespace {

/// Sorted parts, merged in pairs: the rows of a large case are millions.
void sort_all(std::vector<double>& values) {
  constexpr size_t kAlone = size_t{1} << 16, kParts = 32;
  const size_t n = values.size();
  if (n < kAlone) return std::sort(values.begin(), values.end());
  const auto at = [&](size_t part) {
    return values.begin() + static_cast<std::ptrdiff_t>(part * n / kParts);
  };
#pragma omp parallel for schedule(dynamic)
  for (size_t part = 0; part < kParts; ++part) std::sort(at(part), at(part + 1));
  for (size_t width = 1; width < kParts; width *= 2) {
#pragma omp parallel for schedule(dynamic)
    for (size_t part = 0; part < kParts; part += 2 * width)
      std::inplace_merge(at(part), at(part + width), at(part + 2 * width));
  }
}

}  // namespace

double percentile_of_sorted(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return NAN;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const size_t below = std::min(static_cast<size_t>(at), sorted.size() - 1);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Summary summarize(std::vector<double>& values) {
  if (values.empty()) return {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  sort_all(values);
  double sum = 0;
  for (double v : values) sum += v;
  return {sum / static_cast<double>(values.size()), values.front(),
          percentile_of_sorted(values, 0.05),       percentile_of_sorted(values, 0.25),
          percentile_of_sorted(values, 0.5),        percentile_of_sorted(values, 0.75),
          percentile_of_sorted(values, 0.95),       values.back()};
}

}  // namespace attnbench
