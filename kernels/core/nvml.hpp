// Reads the sensors of an NVIDIA card through NVML, which is opened at run time because it comes with the
// driver. Read-only: it changes no clock, limit or mode.
#pragma once
#include <string>

#include "kernels/core/device.hpp"

namespace attnbench {

/// The state of the card at a PCI address ("0000:0f:00.0"). Without NVML, or when it refuses: an empty state
/// whose `why` says so. What a card does not tell (a virtual one tells little) stays empty.
DeviceState read_nvml_state(const std::string& pci_address);

/// The words for NVML's bit mask of clock event reasons, "idle" (bit 0) and unknown bits left out.
std::vector<std::string> throttle_words(uint64_t reasons);

}  // namespace attnbench
