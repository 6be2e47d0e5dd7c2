// One case on one device, from resolved parameters to analyses: what the runner drives. The real one holds a
// method's instance on a context; tests drive the runner with one whose times come from a script.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inputs/input_cache.hpp"
#include "kernels/core/error.hpp"
#include "measure/estimate.hpp"
#include "measure/results.hpp"
#include "measure/sampler.hpp"
#include "measure/verify.hpp"

namespace attnbench {

/// What one accounted execution found.
struct Accounting {
  Cost counted;
  std::map<std::string, Cost> by_stage;  ///< "": outside every stage
  ClosedForm form;
  MemoryBytes memory;
  std::vector<Decision> decisions;
  double seconds = 0;       ///< of this one run, unwarmed
  int64_t nan_outputs = 0;  ///< elements still NaN after the run, whether poison or result
};

/// Calls come in the order of declaration; after open() threw, only close().
class Executor : public Timed {
 public:
  /// Resolved parameters; throws UsageError for an unknown method or bad parameters.
  virtual std::map<std::string, Value> params() = 0;
  /// Sizes without memory; never throws for what the method refuses.
  virtual CaseEstimate estimate() = 0;
  /// Makes the instance, fills and binds its tensors within `memory_limit` bytes (0: none) and prepares it.
  /// Returns the seconds that prepare took.
  virtual double open(int64_t memory_limit) = 0;
  /// Runs once over poisoned outputs with exact accounting.
  virtual Accounting account() = 0;
  /// Compares the outputs of account() with the reference.
  virtual VerifyOutcome verify(double budget_s) = 0;
  /// Runs `runs` times with stage marks on; the median of each stage, without its inner stages. The last
  /// element, named "", is what no stage covers.
  virtual std::vector<StageTime> profile(int runs) = 0;
  /// Throws Unsupported when the method has no such property, UsageError for arguments it does not take.
  virtual AnalysisResult analyze(const std::string& analysis,
                                 const std::map<std::string, Value>& arguments) = 0;
  /// How run() gives the device its work: Timing::submission.
  virtual std::string submission() const { return ""; }
  /// A loop of about `loop_s` at the end of the measurement, or until `stop`; none where bursts and long
  /// loops do not differ (the CPU, whose samples are long).
  virtual std::optional<Sustained> sustain(double /*loop_s*/, const std::function<bool()>& /*stop*/) {
    return std::nullopt;
  }
  /// What is worth knowing about how the case was run; emptied by reading.
  virtual std::vector<std::string> take_warnings() { return {}; }
  /// Gives everything back. Harmless when nothing is open.
  virtual void close() = 0;
};

/// What an executor is made with.
struct ExecutorSetup {
  Clock* clock = nullptr;
  int threads = 0;
  std::string weights_file;
  Backend* backend = nullptr;    ///< of the case's device; null: the one that its name stands for
  InputCache* inputs = nullptr;  ///< of the run; null: every case draws its own
};
using ExecutorFactory = std::function<std::unique_ptr<Executor>(const Case&, const ExecutorSetup&)>;

/// A device that is not usable here: its cases are skipped, whatever the method could do there.
class DeviceAbsent : public Error {
 public:
  using Error::Error;
};

/// The executor of the case's device. Throws DeviceAbsent for one that is not usable here.
std::unique_ptr<Executor> make_executor(const Case& c, const ExecutorSetup& setup);

/// Stage times by a clock: exclusive of inner stages, summed over the repetitions of a stage within a run.
class StageTimer final : public StageSink {
 public:
  StageTimer(Clock& clock, std::function<void()> synchronize)
      : clock_(clock), synchronize_(std::move(synchronize)) {}
  void begin_run();
  void end_run();
  void enter(std::string_view stage) override;
  void leave(std::string_view stage) override;
  /// Median over the runs, in order of first entry; "" is what no stage covers.
  std::vector<std::pair<std::string, double>> medians() const;

 private:
  void account();
  Clock& clock_;
  std::function<void()> synchronize_;
  double last_ = 0;
  std::vector<std::string> stack_;
  std::vector<std::string> order_;
  std::map<std::string, double> current_;
  std::map<std::string, std::vector<double>> runs_;
};

}  // namespace attnbench
