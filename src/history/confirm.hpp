// Measuring suspects again, pair by pair, until it is clear whether they are slower. Where the pairs come
// from is not its matter: two processes (measure/sample_process.hpp) or a test's random numbers.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "history/gate.hpp"
#include "measure/clock.hpp"

namespace attnbench {

/// One pair: both programs started afresh, their samples taken in turn. Seconds of one execution.
struct PairedTimes {
  double before_s = 0, now_s = 0;
  double log_ratio = 0;  ///< median of the logarithms of now / before, sample by sample
};
/// The next pair of a case. Throws Error when the case cannot be measured again: the row's note says it.
using PairSource = std::function<PairedTimes(const GateRow& row)>;

struct ConfirmLimits {
  /// Numbers of pairs after which the verdict is looked at. Four are the least with a usable Student's t;
  /// each further look has half as many again. Every suspect has its look before any has the next one: the
  /// time goes to all of them, not to the first that cannot be decided.
  std::vector<int> looks{4, 6, 9, 14, 21, 32};
  double max_seconds = 300;  ///< for all suspects together
};

/// Measures `rows` of the report again, in order, and judges them by the pairs alone: the spread between
/// processes is in them. Rows that had no baseline are compared after it. Ends a case as soon as it is slower
/// beyond doubt or shown not to be. Returns how many rows were measured.
size_t confirm(GateReport& report, const std::vector<size_t>& rows, const PairSource& source,
               const ConfirmLimits& limits, Clock& clock,
               const std::function<void(const GateRow&, int pairs)>& progress = {});

}  // namespace attnbench
