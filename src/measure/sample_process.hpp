// One case in a process of its own that takes samples on demand, so that two programs can be measured in turn
// although each has its own build of everything. The other end is the command `attnbench sample`.
//
// The protocol is lines of text. The child says `ready RUN_S` once the case is open, verified and warm. The
// parent writes a number of executions; the child runs them and answers with the seconds of one. End of input
// ends the child. `error TEXT` at any time says why it gives up.
#pragma once
#include <sys/types.h>

#include <string>
#include <vector>

namespace attnbench {

class SampleProcess {
 public:
  /// Starts `command`. Throws Error when it cannot be started.
  explicit SampleProcess(const std::vector<std::string>& command);
  ~SampleProcess();  ///< ends the child
  SampleProcess(const SampleProcess&) = delete;
  SampleProcess& operator=(const SampleProcess&) = delete;

  /// Waits until the case is ready; seconds of one warm run. Throws Error with the child's reason.
  double ready();
  /// Seconds of one of `iterations` executions.
  double sample(long iterations);
  /// Stops every thread of the child, and lets them go on. The thread pool of a program that has just
  /// finished a sample spins for milliseconds, on the cores that the other program's sample needs.
  void pause();
  void resume();

 private:
  std::string line();
  [[noreturn]] void gone();
  std::string program_;
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1, errors_ = -1;
  std::string buffer_;
  bool paused_ = false;
};

struct PairedSamples {
  std::vector<double> before_s, now_s;
};
/// How a pair of processes is sampled: A B B A A B …, so that drift favours nobody.
struct PairPlan {
  double sample_s = 0.005;  ///< length of a sample; a hundred thousand steps of the clock
  /// The spread between pairs of processes is what limits the verdict, so more pairs tell more than more
  /// samples.
  int least = 6, most = 20;
  double seconds = 1.0;  ///< of sampling, unless `least` takes longer
};
/// Starts both, waits for both, takes samples in turn.
PairedSamples sample_pair(const std::vector<std::string>& before, const std::vector<std::string>& now,
                          const PairPlan& plan);

}  // namespace attnbench
