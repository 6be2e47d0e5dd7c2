#include "kernels/core/nvml.hpp"

#include <dlfcn.h>

#include <mutex>

namespace attnbench {

namespace {

// NVML's C interface, as its documentation gives it; its header is not needed to build. Every function
// returns 0 for success.
using Handle = void*;
enum ClockKind : int { kClockSm = 1, kClockMemory = 2 };
constexpr int kSensorGpu = 0;
constexpr unsigned kVersionBytes = 96;

struct Nvml {
  int (*init)() = nullptr;
  const char* (*error_text)(int) = nullptr;
  int (*handle_by_pci)(const char*, Handle*) = nullptr;
  int (*clock)(Handle, int, unsigned*) = nullptr;
  int (*max_clock)(Handle, int, unsigned*) = nullptr;
  int (*temperature)(Handle, int, unsigned*) = nullptr;
  int (*power)(Handle, unsigned*) = nullptr;
  int (*power_limit)(Handle, unsigned*) = nullptr;
  int (*reasons)(Handle, unsigned long long*) = nullptr;  // NOLINT: NVML's own type
  int (*driver)(char*, unsigned) = nullptr;
  std::string why;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* text = dlerror();
      why = std::string("NVML is not there: ") + (text ? text : "libnvidia-ml.so.1 cannot be opened");
      return;
    }
    const auto find = [library](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    };
    find(init, "nvmlInit_v2");
    find(error_text, "nvmlErrorString");
    find(handle_by_pci, "nvmlDeviceGetHandleByPciBusId_v2");
    find(clock, "nvmlDeviceGetClockInfo");
    find(max_clock, "nvmlDeviceGetMaxClockInfo");
    find(temperature, "nvmlDeviceGetTemperature");
    find(power, "nvmlDeviceGetPowerUsage");
    find(power_limit, "nvmlDeviceGetEnforcedPowerLimit");
    find(reasons, "nvmlDeviceGetCurrentClocksEventReasons");
    if (!reasons) find(reasons, "nvmlDeviceGetCurrentClocksThrottleReasons");  // before driver 535
    find(driver, "nvmlSystemGetDriverVersion");
    if (!init || !handle_by_pci) {
      why = "libnvidia-ml.so.1 is not NVML: it lacks nvmlInit_v2";
      return;
    }
    if (const int status = init(); status != 0) why = "NVML cannot start: " + text(status);
  }
  std::string text(int status) const {
    return error_text ? error_text(status) : "error " + std::to_string(status);
  }
};

const Nvml& nvml() {
  static const Nvml library;
  return library;
}

}  // namespace

std::vector<std::string> throttle_words(uint64_t reasons) {
  static const struct {
    uint64_t bit;
    const char* word;
  } words[] = {{0x2, "application clocks"},    {0x4, "power cap"},
               {0x8, "hardware slowdown"},     {0x10, "sync boost"},
               {0x20, "thermal slowdown"},     {0x40, "hardware thermal slowdown"},
               {0x80, "hardware power brake"}, {0x100, "display clocks"}};
  std::vector<std::string> out;
  for (const auto& w : words)
    if (reasons & w.bit) out.emplace_back(w.word);
  return out;
}

DeviceState read_nvml_state(const std::string& pci_address) {
  DeviceState s;
  const Nvml& n = nvml();
  if (!n.why.empty()) {
    s.why = n.why;
    return s;
  }
  Handle card = nullptr;
  if (const int status = n.handle_by_pci(pci_address.c_str(), &card); status != 0) {
    s.why = "NVML does not know the card at " + pci_address + ": " + n.text(status);
    return s;
  }
  unsigned value = 0;
  const auto got = [&value](auto function, auto... arguments) {
    return function && function(arguments..., &value) == 0;
  };
  if (got(n.clock, card, static_cast<int>(kClockSm))) s.sm_clock_mhz = value;
  if (got(n.clock, card, static_cast<int>(kClockMemory))) s.memory_clock_mhz = value;
  if (got(n.max_clock, card, static_cast<int>(kClockSm))) s.sm_clock_max_mhz = value;
  if (got(n.temperature, card, kSensorGpu)) s.temperature_c = value;
  if (got(n.power, card)) s.power_w = 1e-3 * value;
  if (got(n.power_limit, card)) s.power_limit_w = 1e-3 * value;
  unsigned long long reasons = 0;  // NOLINT: NVML's own type
  if (n.reasons && n.reasons(card, &reasons) == 0) s.throttle = throttle_words(reasons);
  char version[kVersionBytes] = "";
  if (n.driver && n.driver(version, kVersionBytes) == 0) s.driver = version;
  return s;
}

}  // namespace attnbench
