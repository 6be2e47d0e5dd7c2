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
};

std::vector<Device> find_devices() {
  Device cpu{"cpu", cpu_backend().description(), "", Context(cpu_backend()).threads(),
             sysconf(_SC_PHYS_PAGES) * static_cast<int64_t>(sysconf(_SC_PAGE_SIZE))};
  Device cuda;
  cuda.name = "cuda";
  if (Backend* backend = cuda_backend(cuda.reason)) cuda.description = backend->description();
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
      if (d.threads) j["threads"] = d.threads, j["memory_bytes"] = d.memory_bytes;
      list.push_back(std::move(j));
    }
    print_json({{"devices", std::move(list)}});
    return kDone;
  }
  for (const Device& d : all) {
    std::string text = d.reason.empty() ? d.description : "not usable: " + d.reason;
    if (d.threads) text += fmt::format("; {} threads, {}", d.threads, bytes_text(d.memory_bytes));
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
