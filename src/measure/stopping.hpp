// When a case has been sampled enough. A stopping rule sees samples only; it knows no clock and no device.
#pragma once
#include <memory>
#include <vector>

#include "suite/suite.hpp"

namespace attnbench {

/// Three verbs: start, add a sample, finished?
class StoppingCriterion {
 public:
  virtual ~StoppingCriterion() = default;
  void start() { do_start(); }
  /// `seconds`: one execution. `spent_s`: everything that taking this sample cost, cache flushes included.
  void add(double seconds, double spent_s) { do_add(seconds, spent_s); }
  [[nodiscard]] bool finished() { return do_finished(); }
  /// Whether the wanted precision was reached, as opposed to a limit. Meaningful once finished.
  [[nodiscard]] virtual bool converged() const = 0;

 private:
  virtual void do_start() = 0;
  virtual void do_add(double seconds, double spent_s) = 0;
  virtual bool do_finished() = 0;
};

/// The default: the bootstrap 95% interval of the median lies within `precision` of the median, after at
/// least `min_samples`; or `max_time_s` is spent or `max_samples` are taken. A case so slow that its time is
/// up early still gets kLeastSamples, because fewer have no interval.
class MedianIntervalCriterion final : public StoppingCriterion {
 public:
  static constexpr int kLeastSamples = 3;
  /// Half a second of the default ten: shorter, the samples see one mood of the machine and call it the
  /// median.
  static constexpr double kLeastShare = 0.05;
  explicit MedianIntervalCriterion(const MeasureConfig& config) : config_(config) { do_start(); }
  bool converged() const override { return converged_; }

 private:
  void do_start() override;
  void do_add(double seconds, double spent_s) override;
  bool do_finished() override;

  MeasureConfig config_;
  std::vector<double> samples_;
  double spent_s_ = 0;
  size_t next_check_ = 0;
  bool converged_ = false;
};

}  // namespace attnbench
