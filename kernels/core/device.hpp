// What measuring needs of a device beyond its operators: a clock, graphs, memory figures, state. Not a
// runtime: a backend offers these through Backend, and everything has an answer on the CPU too.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace attnbench {

/// Times what is submitted between start() and stop() on the device's own clock.
class DeviceTimer {
 public:
  virtual ~DeviceTimer() = default;
  virtual void start() = 0;
  virtual void stop() = 0;
  /// Waits until stop() is reached; the seconds between the two marks.
  virtual double seconds() = 0;
  /// Smallest difference that two marks can have.
  virtual double resolution_s() const = 0;
};

/// Work that was recorded once and can be submitted again as a whole.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  /// Submits the work `times` times, back to back; does not wait.
  virtual void replay(int64_t times) = 0;
};

/// Bytes of the device's memory; 0: not told.
struct DeviceMemory {
  int64_t free = 0, total = 0;
};

/// What the device is and what drives it: all that does not change while the program runs.
struct DeviceFacts {
  std::string name;             ///< "NVIDIA H200"
  std::string driver, runtime;  ///< versions, "13.0"
  std::string id;               ///< PCI address
  std::string architecture;     ///< "sm_90"
  int multiprocessors = 0;
  int64_t cache_bytes = 0;  ///< last level
  int64_t memory_bytes = 0;
};

/// One reading of the device's sensors; what it does not tell stays empty. Reading changes nothing on it.
struct DeviceState {
  std::optional<int64_t> sm_clock_mhz, memory_clock_mhz, sm_clock_max_mhz, temperature_c;
  std::optional<double> power_w, power_limit_w;
  std::optional<std::string> driver;  ///< of the kernel module: "580.65.06"
  /// Why the clocks are below their highest, in words: "power cap", "thermal slowdown"; "idle" is left out.
  std::vector<std::string> throttle;
  std::string why;  ///< why nothing was read; empty: something was
};

/// Ceilings that a device measures itself.
enum class DevicePeak : uint8_t {
  multiply_add,  ///< FLOP/s of multiply-adds from registers, outside matrix units
  copy,          ///< bytes/s of copying `bytes` bytes to another buffer, read plus written
  read           ///< bytes/s of reading `bytes` bytes
};

}  // namespace attnbench
