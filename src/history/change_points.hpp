// Where a series of measurements moved to another level. Not the gate: it decides about one new run, this
// looks back over a finished series, for people.
//
// R-FPOP of Fearnhead and Rigaill (Journal of the American Statistical Association 114, 2019): the split into
// levels that minimises the sum of a loss bounded for outliers (the biweight, min((y - level)^2, K^2)) and a
// penalty for each change, exactly, by functional pruning. One lucky or disturbed run is an outlier, not two
// changes. Series are compared in logarithms: a change is a ratio.
#pragma once
#include <cstddef>
#include <vector>

namespace attnbench {

/// Named on the pages that show its outcome.
inline constexpr const char* kChangePointMethod =
    "R-FPOP with the biweight loss (Fearnhead and Rigaill, JASA 2019)";

/// Begins of the levels of the optimal split, the first is 0; empty of no values. `penalty` a change, losses
/// of more than `k` from the level count k^2.
std::vector<size_t> robust_fpop(const std::vector<double>& values, double penalty, double k);

struct ChangePointRules {
  double least_change = 0.02;  ///< relative; smaller steps are not reported
  size_t least_length = 3;     ///< shorter levels are not reported: more runs must confirm them
  double penalty = 3;          ///< times variance times ln n; 2 is the paper's for independent noise
};

struct SeriesLevel {
  size_t begin = 0, end = 0;  ///< values [begin, end)
  double value = 0;           ///< median
};
/// The levels of positive values, in order; what is not finite or not positive belongs to the level it is in.
/// One level: nothing changed.
std::vector<SeriesLevel> find_levels(const std::vector<double>& values, const ChangePointRules& rules = {});

/// Standard deviation of the noise around slowly moving levels, from differences at several distances, the
/// largest of them: neighbours that resemble each other hide noise from the shortest distance.
double noise_of(const std::vector<double>& values);

}  // namespace attnbench
