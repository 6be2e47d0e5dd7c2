#include "measure/stopping.hpp"

#include <algorithm>

#include "measure/statistics.hpp"

namespace attnbench {

void MedianIntervalCriterion::do_start() {
  samples_.clear();
  spent_s_ = 0;
  next_check_ = static_cast<size_t>(std::max(config_.min_samples, kLeastSamples));
  converged_ = false;
}

void MedianIntervalCriterion::do_add(double seconds, double spent_s) {
  samples_.push_back(seconds);
  spent_s_ += spent_s;
}

bool MedianIntervalCriterion::do_finished() {
  if (converged_) return true;
  const size_t n = samples_.size();
  // Checks at geometrically growing counts: sorting stays a vanishing share of the time, and a rule that
  // looks after every sample would stop at the first lucky one.
  if (n >= next_check_ && spent_s_ >= kLeastShare * config_.max_time_s) {
    next_check_ = std::max(n + 1, n + n / 8);
    const double m = median(samples_);
    const ConfidenceInterval ci = median_interval(samples_);
    converged_ = std::max(ci.high - m, m - ci.low) <= config_.precision * m;
    if (converged_) return true;
  }
  if (n >= static_cast<size_t>(config_.max_samples)) return true;
  return n >= kLeastSamples && spent_s_ >= config_.max_time_s;
}

}  // namespace attnbench
