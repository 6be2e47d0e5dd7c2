// attnbench roofline: this machine's measured ceilings.
#include "measure/roofline.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

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
};

int show_roofline(const Options& o, const GlobalOptions& global) {
  const int threads = o.threads ? o.threads : Context(cpu_backend()).threads();
  const std::string machine = collect_environment(threads).machine_id;
  const std::string file = roofline_cache_file(machine);
  Ceilings ceilings(cpu_peak_probe(), file);
  const std::vector<DType> dtypes{DType::f64, DType::f32, DType::bf16, DType::f16};
  const std::string wanted = fmt::format("cpu/f32/{}", threads);
  const bool known = ceilings.roofline().gflops.contains(wanted) &&
                     ceilings.roofline().gflops.contains(wanted + "/gemm") &&
                     ceilings.roofline().gbytes_per_s.contains(fmt::format("cpu/{}", threads));
  if (o.refresh || !known) {
    note(global.quiet, "measuring the ceilings of this machine, some seconds");
    ceilings.measure_all(dtypes, threads);
  }
  for (const std::string& w : ceilings.take_warnings()) note(global.quiet, w);
  const Roofline& r = ceilings.roofline();
  if (global.json) {
    print_json({{"machine_id", machine},
                {"measured_at", r.measured_at},
                {"from_cache", !(o.refresh || !known)},
                {"cache_file", file},
                {"gflops", r.gflops},
                {"gbytes_per_s", r.gbytes_per_s}});
    return kDone;
  }
  TextTable t(
      {{"ceiling", TextTable::Align::left}, {"rate", TextTable::Align::right}, {"", TextTable::Align::left}});
  for (const auto& [key, rate] : r.gflops) t.add({key, fmt::format("{:.1f}", rate), "GFLOP/s"});
  for (const auto& [key, rate] : r.gbytes_per_s) t.add({"copy " + key, fmt::format("{:.1f}", rate), "GB/s"});
  print_data(
      cpu_backend().description() + "\n" + t.str(global.color, "  ") +
      fmt::format("\nKeys: device/dtype/threads is the FMA peak, .../gemm the library's large product; copy\n"
                  "device/threads[/cache level] counts reads and writes. Measured {}{}.\n",
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
           sub.add_option("-t,--threads", o->threads, "CPU threads; default all")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           sub.footer("Examples:\n  attnbench roofline --refresh\n  attnbench roofline --json");
           return [o, &global] { return show_roofline(*o, global); };
         },
     .summary = "this machine's measured ceilings: FMA and GEMM rates, copy bandwidth"});

}  // namespace

}  // namespace attnbench
