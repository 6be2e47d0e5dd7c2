#include "measure/clock.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>

namespace attnbench {

namespace {
int64_t ticks() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}
}  // namespace

SteadyClock::SteadyClock() {
  // 1000 readings take tens of microseconds: enough to see the smallest step and to average the cost of one.
  constexpr int kReadings = 1000;
  std::array<int64_t, kReadings> t;
  for (int64_t& x : t) x = ticks();
  int64_t step = 0;
  for (int i = 1; i < kReadings; ++i) {
    const int64_t d = t[static_cast<size_t>(i)] - t[static_cast<size_t>(i) - 1];
    if (d > 0 && (step == 0 || d < step)) step = d;
  }
  resolution_s_ = static_cast<double>(std::max<int64_t>(step, 1)) * 1e-9;
  overhead_s_ = static_cast<double>(t.back() - t.front()) * 1e-9 / (kReadings - 1);
}

double SteadyClock::now_s() { return static_cast<double>(ticks()) * 1e-9; }

std::string utc_now() {
  const std::time_t t = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&t, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace attnbench
