// The clock that samples are taken with, as an interface: tests drive the sampler with one that stands still.
#pragma once
#include <string>

namespace attnbench {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual double now_s() = 0;  ///< seconds since an arbitrary origin, never going back
  /// Smallest step that two readings can differ by, and what one reading costs; both in seconds.
  virtual double resolution_s() const = 0;
  virtual double overhead_s() const = 0;
};

/// std::chrono::steady_clock; resolution and overhead are measured once, when it is made.
class SteadyClock final : public Clock {
 public:
  SteadyClock();
  double now_s() override;
  double resolution_s() const override { return resolution_s_; }
  double overhead_s() const override { return overhead_s_; }

 private:
  double resolution_s_ = 0, overhead_s_ = 0;
};

/// Wall-clock time of now as ISO 8601 UTC: "2026-01-31T12:00:00Z".
std::string utc_now();

}  // namespace attnbench
