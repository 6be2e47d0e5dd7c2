// attnbench roofline: this machine's measured ceilings.
#include "measure/roofline.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "kernels/core/context.hpp"
#include "measure/environment.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  bool refresh = false;
  int threads = 0;
  std::string device = "cpu";
};

/// Whether everything that this command shows is kept already.
bool known(const Ceilings& ceilings, const std::string& key_of_f32, const std::string& key_of_copy) {
  const Roofline& r = ceilings.roofline();
  return r.gflops.contains(key_of_f32) && r.gflops.contains(key_of_f32 + "/gemm") &&
         r.gbytes_per_s.contains(key_of_copy);
}

int show_roofline(const Options& o, const GlobalOptions& global) {
  Backend& backend = backend_of(o.device);
  const bool on_cpu = backend.device() == DeviceKind::cpu;
  const int threads = o.threads ? o.threads : Context(cpu_backend()).threads();
  const Environment environment = collect_environment(threads, &backend);
  const std::string machine = environment.machine_id;
  const std::string file = roofline_cache_file(roofline_id(environment, o.device));
  std::unique_ptr<PeakProbe> device_probe;
  if (!on_cpu) device_probe = device_peak_probe(backend);
  Ceilings ceilings(on_cpu ? cpu_peak_probe() : *device_probe, file);
  const std::vector<DType> dtypes{DType::f64, DType::f32, DType::bf16, DType::f16};
  const std::string suffix = on_cpu ? fmt::format("/{}", threads) : "";
  const bool measure = o.refresh || !known(ceilings, o.device + "/f32" + suffix, o.device + suffix);
  if (measure) {
    note(global.quiet, "measuring the ceilings of this machine, some seconds");
    ceilings.measure_all(dtypes, threads);
  }
  for (const std::string& w : ceilings.take_warnings()) note(global.quiet, w);
  const Roofline& r = ceilings.roofline();
  if (global.json) {
    print_json({{"machine_id", machine},
                {"measured_at", r.measured_at},
                {"device", o.device},
                {"from_cache", !measure},
                {"cache_file", file},
                {"gflops", r.gflops},
                {"gbytes_per_s", r.gbytes_per_s}});
    return kDone;
  }
  TextTable t(
      {{"ceiling", TextTable::Align::left}, {"rate", TextTable::Align::right}, {"", TextTable::Align::left}});
  for (const auto& [key, rate] : r.gflops) t.add({key, fmt::format("{:.1f}", rate), "GFLOP/s"});
  for (const auto& [key, rate] : r.gbytes_per_s) t.add({"copy " + key, fmt::format("{:.1f}", rate), "GB/s"});
  print_data(backend.description() + "\n" + t.str(global.color, "  ") +
             fmt::format("\nKeys: {0} is the peak, .../gemm the library's large product; copy\n"
                         "{1}[/cache level] counts reads and writes{2}. Measured {3}{4}.\n",
                         on_cpu ? "device/dtype/threads" : "device/dtype",
                         on_cpu ? "device/threads" : "device", on_cpu ? "" : ", copy device/read reads alone",
                         r.measured_at, file.empty() ? "" : ", kept in " + file));
  return kDone;
}

const bool registered = register_command(
    {.name = "roofline",
     .order = 51,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_flag("--refresh", o->refresh, "measure again, even when ceilings are kept");
           sub.add_option("-d,--device", o->device, "whose ceilings; default cpu")->type_name("{cpu,cuda}");
           sub.add_option("-t,--threads", o->threads, "CPU threads; default all")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           sub.footer(
               "Examples:\n  attnbench roofline --refresh\n  attnbench roofline --device cuda\n  attnbench "
               "roofline --json");
           return [o, &global] { return show_roofline(*o, global); };
         },
     .summary = "this machine's measured ceilings: FMA and GEMM rates, copy bandwidth"});

}  // namespace

}  // namespace attnbench
