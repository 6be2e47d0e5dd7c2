// attnbench devices: what can run here, and why something cannot.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/text.hpp"
#include "kernels/core/cuda_loader.hpp"

namespace attnbench {

namespace {

struct Device {
  std::string name, description, reason;  ///< reason: why it is not usable
  int threads = 0;
  int64_t memory_bytes = 0;
  DeviceFacts facts;
  DeviceMemory memory;  ///< of a device; 0 on the CPU
  DeviceState state;
};

std::vector<Device> find_devices() {
  Device cpu;
  cpu.name = "cpu";
  cpu.description = cpu_backend().description();
  cpu.threads = Context(cpu_backend()).threads();
  cpu.memory_bytes = sysconf(_SC_PHYS_PAGES) * static_cast<int64_t>(sysconf(_SC_PAGE_SIZE));
  Device cuda;
  cuda.name = "cuda";
  if (Backend* backend = cuda_backend(cuda.reason)) {
    cuda.description = backend->description();
    cuda.facts = backend->facts();
    cuda.memory = backend->memory_info();
    cuda.memory_bytes = cuda.memory.total;
    cuda.state = backend->read_state();
  }
  return {cpu, cuda};
}

int devices(const GlobalOptions& global) {
  const std::vector<Device> all = find_devices();
  if (global.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Device& d : all) {
      nlohmann::ordered_json j{{"device", d.name}, {"usable", d.reason.empty()}};
      if (d.reason.empty())
        j["description"] = d.description;
      else
        j["reason"] = d.reason;
      if (d.threads) j["threads"] = d.threads;
      if (d.memory_bytes) j["memory_bytes"] = d.memory_bytes;
      if (d.memory.total) {
        j["memory_free_bytes"] = d.memory.free;
        j["multiprocessors"] = d.facts.multiprocessors;
        j["cache_bytes"] = d.facts.cache_bytes;
        j["cuda_driver"] = d.facts.driver;
        j["cuda_runtime"] = d.facts.runtime;
        if (d.state.driver) j["driver"] = *d.state.driver;
        if (d.state.sm_clock_mhz) j["sm_clock_mhz"] = *d.state.sm_clock_mhz;
        if (d.state.temperature_c) j["temperature_c"] = *d.state.temperature_c;
        if (d.state.power_w) j["power_w"] = *d.state.power_w;
        if (!d.state.why.empty()) j["sensors"] = d.state.why;
      }
      list.push_back(std::move(j));
    }
    print_json({{"devices", std::move(list)}});
    return kDone;
  }
  for (const Device& d : all) {
    std::string text = d.reason.empty() ? d.description : "not usable: " + d.reason;
    if (d.threads) text += fmt::format("; {} threads, {}", d.threads, bytes_text(d.memory_bytes));
    if (d.memory.total)
      text += fmt::format("; {} multiprocessors, {} of {} free, driver {}", d.facts.multiprocessors,
                          bytes_text(d.memory.free), bytes_text(d.memory.total),
                          d.state.driver.value_or("for CUDA " + d.facts.driver));
    print_data(
        fmt::format("{}  {}\n", styled(fmt::format("{:<4}", d.name), Style::bold, global.color), text));
  }
  return kDone;
}

const bool registered = register_command({.name = "devices",
                                          .order = 50,
                                          .add =
                                              [](CLI::App& sub, const GlobalOptions& global) {
                                                sub.footer("Examples:\n  attnbench devices --json");
                                                return [&global] { return devices(global); };
                                              },
                                          .summary = "what can run here, and why something cannot"});

}  // namespace

}  // namespace attnbench
