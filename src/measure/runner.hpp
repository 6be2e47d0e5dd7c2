// Runs a suite: plans, verifies, accounts, samples, places under the ceilings, analyses; case by case, each
// failure kept to its case. Prints and writes nothing: an observer hears of everything as it happens.
#pragma once
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "measure/executor.hpp"
#include "measure/results.hpp"
#include "measure/roofline.hpp"

namespace attnbench {

/// What a run tells while it goes on. Called from the thread that runs the suite.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  /// Before the first case; `run` has suite, environment and roofline, and the reused cases.
  virtual void run_started(const RunResult& /*run*/) {}
  /// `index` of `count` in suite order. `eta_s`: for the rest of the run, once anything is known about it.
  virtual void case_started(size_t /*index*/, size_t /*count*/, const Case&,
                            std::optional<double> /*eta_s*/) {}
  /// The case is final: journal it. Cases of an interleaved group finish in any order. Not called for reused
  /// ones.
  virtual void case_finished(const CaseResult&) {}
  /// Something about the run as a whole, a full sentence. What concerns one case stands in its warnings.
  virtual void warning(const std::string& /*text*/) {}
};

struct RunOptions {
  std::optional<int> threads;  ///< instead of the suite's; part of the case ids
  int64_t memory_limit = 0;    ///< bytes for the cases alive together; 0: usable_memory() of their device
  bool verify = true;          ///< false: every case ends as `unverified`
  double verify_budget_s = 1.0;
  std::string weights_file;
  /// Results of an interrupted run. A case whose id and name are among them is not run again, unless it
  /// failed.
  std::vector<CaseResult> finished;
  const std::atomic<bool>* stop = nullptr;  ///< set: end after the sample in flight

  enum class RooflinePolicy : uint8_t { off, cached, remeasure } roofline = RooflinePolicy::cached;
  PeakProbe* probe = nullptr;         ///< of the CPU's ceilings; null: this CPU
  PeakProbe* device_probe = nullptr;  ///< of the device's; null: through its backend
  std::optional<std::string>
      roofline_file;  ///< of the CPU; none: roofline_cache_file(); empty: nothing is kept

  /// The backend of a device besides the CPU; empty: find_backend().
  std::function<Backend*(const std::string& device)> backend;

  Clock* clock = nullptr;    ///< null: the steady clock
  ExecutorFactory executor;  ///< empty: make_executor
  /// Evaluates each claim when all cases are final; empty: they are left to the caller.
  std::function<ClaimResult(const Claim&, const RunResult&)> evaluate_claim;
};

/// Never throws for what happens to a case; its status and reason say it. Throws UsageError for options that
/// make no sense, and whatever the observer throws.
RunResult run_suite(const Suite& suite, const RunOptions& options, RunObserver& observer);

}  // namespace attnbench
