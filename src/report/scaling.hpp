// How time grows with the size of the problem: cases that differ in size only, and the exponent of a power
// law through them. Not an analysis of a method: it reads finished results.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// time = c N^exponent, least squares in logarithms; the 95% interval is Student's, of what the points say
/// about the line.
struct PowerFit {
  double exponent = 0, low = 0, high = 0;
  double factor = 0;  ///< c
  double at(double n) const;
};
/// Needs three different sizes; values must be positive.
std::optional<PowerFit> fit_power(const std::vector<double>& n, const std::vector<double>& time);

/// The size that time is drawn over: tokens (keys where there is one query), pixels, or samples.
int64_t size_of(const Problem& p);

struct ScalingSeries {
  std::string name;                      ///< "dense", "dense batch=64"
  std::string base_name;                 ///< for the colour
  std::vector<const CaseResult*> cases;  ///< timed ones, by growing size
  std::optional<PowerFit> fit;
};
/// Groups of cases that differ in nothing but size; groups of one size are left out.
std::vector<ScalingSeries> scaling_series(const RunResult& run);

/// "length=256" of {"problem.length": 256}: axis values as case names show them.
std::string axes_text(const std::map<std::string, Value>& axes, bool with_size = true);

}  // namespace attnbench
