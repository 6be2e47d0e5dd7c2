// Takes the samples of one case, or of several cases in turn. Knows no method and no device: it drives Timed.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "measure/clock.hpp"
#include "measure/stopping.hpp"

namespace attnbench {

/// What can be timed: the sampler's whole view of a case.
class Timed {
 public:
  virtual ~Timed() = default;
  /// Executes `iterations` times back to back and returns the seconds they took together, on the device's
  /// own clock (host clock on the CPU, events on a GPU).
  virtual double run(int64_t iterations) = 0;
  /// Evicts what earlier runs left in the caches.
  virtual void flush_caches() = 0;
  /// Smallest difference that run() can tell; 0: the sampler's clock says.
  virtual double resolution_s() const { return 0; }
};

/// The samples of one case. `seconds` are per execution; `round` says when each was taken.
struct Samples {
  std::vector<double> seconds;
  std::vector<int64_t> round;
  int64_t iterations = 1;
  bool converged = false;
  std::exception_ptr failure;  ///< what stopped it, when a run threw
  std::vector<std::string> warnings;
};

/// Samples that two cases took in the same rounds, in order.
struct Pairs {
  std::vector<double> baseline_s, subject_s;
};
Pairs pair_samples(const Samples& baseline, const Samples& subject);

class Sampler {
 public:
  struct Member {
    std::string name;
    Timed* timed = nullptr;
    std::optional<bool> cold = std::nullopt;  ///< none: as the configuration's `cache` says
  };
  /// Called as soon as a member takes no more samples; `all` holds everything taken so far by every member.
  using Finished = std::function<void(size_t member, const std::vector<Samples>& all)>;

  Sampler(const MeasureConfig& config, Clock& clock, const std::atomic<bool>* stop = nullptr);
  /// Replaces the stopping rule; called once per member.
  void set_criterion(std::function<std::unique_ptr<StoppingCriterion>()> make) {
    criterion_ = std::move(make);
  }

  /// Warms every member up, then takes rounds: one sample of each member that is not finished, in an order
  /// that starts one member later in every round, so that drift within a round favours nobody. A `baseline`
  /// stays in the rounds after it has converged while others still need its half of their pairs, until its
  /// own time is spent. Returns what was taken; cut short when the stop flag is set.
  std::vector<Samples> run(const std::vector<Member>& members, std::optional<size_t> baseline,
                           const Finished& finished);

 private:
  struct State;
  void warm_up(State& s);
  void sample(State& s, int64_t round, bool interleaved);
  bool stopped() const { return stop_ && stop_->load(std::memory_order_relaxed); }

  MeasureConfig config_;
  Clock& clock_;
  const std::atomic<bool>* stop_;
  std::function<std::unique_ptr<StoppingCriterion>()> criterion_;
};

}  // namespace attnbench
