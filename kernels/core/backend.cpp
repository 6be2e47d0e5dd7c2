#include "kernels/core/backend.hpp"

#include <chrono>

namespace attnbench {

namespace {

class HostTimer final : public DeviceTimer {
 public:
  void start() override { begin_ = Clock::now(); }
  void stop() override { end_ = Clock::now(); }
  double seconds() override { return std::chrono::duration<double>(end_ - begin_).count(); }
  double resolution_s() const override {
    return static_cast<double>(Clock::period::num) / static_cast<double>(Clock::period::den);
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_, end_;
};

}  // namespace

void Backend::not_implemented(std::string_view op) const {
  throw Unsupported("the operator '" + std::string(op) + "' has no implementation on the " +
                    std::string(name(device())) + " backend");
}

std::unique_ptr<DeviceTimer> Backend::make_timer() { return std::make_unique<HostTimer>(); }

std::unique_ptr<DeviceGraph> Backend::capture(const std::function<void()>&) {
  throw Unsupported("the " + std::string(name(device())) + " backend records no graphs");
}

DeviceState Backend::read_state() {
  DeviceState s;
  s.why = "the " + std::string(name(device())) + " backend reads no sensors";
  return s;
}

double Backend::measure_peak(DevicePeak, DType, int64_t) {
  throw Unsupported("the " + std::string(name(device())) + " backend measures no ceilings of its own");
}

}  // namespace attnbench
