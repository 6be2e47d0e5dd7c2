// attnbench doctor: what would make this machine's numbers worse or less sure, and what to do about it.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "cli/noise.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "kernels/core/cuda_loader.hpp"
#include "measure/build_info.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

/// good: nothing to do. note: worth knowing. warn: numbers suffer. bad: numbers are worthless.
enum class Level : uint8_t { good, note, warn, bad };
const char* word(Level l) {
  static const char* const words[] = {"ok", "note", "warn", "bad"};
  return words[static_cast<int>(l)];
}

struct Finding {
  std::string topic;
  Level level;
  std::string found, advice;
};

std::string text_of(const Environment& e, const char* key) {
  const auto it = e.values.find(key);
  return it == e.values.end() ? "" : it->second.str();
}
int64_t int_of(const Environment& e, const char* key) {
  const auto it = e.values.find(key);
  return it != e.values.end() && it->second.is_int() ? it->second.as_int() : 0;
}

Finding build() {
  const BuildInfo& b = build_info();
  const std::string what = fmt::format("{} {}, {}{}", b.version, b.revision, b.build_type,
                                       *b.sanitize ? fmt::format(" with sanitizers ({})", b.sanitize) : "");
  if (*b.sanitize)
    return {"build", Level::bad, what, "measure with `cmake --preset release`: sanitizers cost 2x to 20x"};
  if (std::string(b.build_type) != "Release")
    return {"build", Level::bad, what, "measure with `cmake --preset release`"};
  return {"build", Level::good, what, ""};
}

Finding governor(const Environment& e) {
  const std::string g = text_of(e, "governor");
  if (g.empty())
    return {"governor", Level::note, "not told by the system (virtual machine or fixed clock)", ""};
  if (g == "performance") return {"governor", Level::good, g, ""};
  return {"governor", Level::warn, g,
          "the clock follows the load: sudo cpupower frequency-set -g performance"};
}

Finding turbo(const Environment& e) {
  const std::string t = text_of(e, "turbo");
  if (t.empty()) return {"turbo", Level::note, "not told by the system", ""};
  if (t == "false") return {"turbo", Level::good, "off", ""};
  return {"turbo", Level::warn, "on",
          "the clock follows temperature and neighbours; for steady numbers: echo 0 | sudo tee "
          "/sys/devices/system/cpu/cpufreq/boost (Intel: echo 1 into intel_pstate/no_turbo)"};
}

Finding load(const Environment& e) {
  const auto it = e.values.find("load_1min");
  if (it == e.values.end()) return {"load", Level::note, "unknown", ""};
  const double cpus = static_cast<double>(std::max<int64_t>(1, int_of(e, "cpus_online")));
  const std::string found =
      fmt::format("{:.2f} in the last minute on {:.0f} CPUs", it->second.as_double(), cpus);
  // A tenth of a core is what a quiet system's own services take.
  if (it->second.as_double() <= 0.1 * cpus) return {"load", Level::good, found, ""};
  return {"load", Level::warn, found, "other programs are running: wait for them, or end them"};
}

Finding threads(const Environment& e) {
  const int64_t cores = int_of(e, "cores"), allowed = int_of(e, "cpus_allowed"), used = int_of(e, "threads");
  const std::string found = fmt::format("{} threads, {} allowed CPUs, {} cores", used, allowed, cores);
  if (allowed && used > allowed)
    return {"threads", Level::warn, found,
            fmt::format("threads take turns: set OMP_NUM_THREADS={} or --threads", allowed)};
  if (cores && used > cores)
    return {
        "threads", Level::warn, found,
        fmt::format("two threads share a core's units: --threads {} is often faster and steadier", cores)};
  if (allowed && used < allowed && !text_of(e, "env_OMP_NUM_THREADS").empty())
    return {"threads", Level::note, found, "OMP_NUM_THREADS leaves CPUs idle"};
  return {"threads", Level::good, found, ""};
}

Finding quota(const Environment& e) {
  std::string allowance, period;
  std::ifstream("/sys/fs/cgroup/cpu.max") >> allowance >> period;
  if (allowance.empty() || allowance == "max" || period.empty())
    return {"CPU quota", Level::good, "none", ""};
  const double cpus = std::strtod(allowance.c_str(), nullptr) / std::strtod(period.c_str(), nullptr);
  const std::string found = fmt::format("{:.2f} CPUs", cpus);
  if (cpus >= static_cast<double>(int_of(e, "threads"))) return {"CPU quota", Level::good, found, ""};
  return {"CPU quota", Level::warn, found,
          fmt::format("the container is paused when it is spent: --threads {:.0f}, or raise it",
                      std::max(1.0, std::floor(cpus)))};
}

Finding huge_pages(const Environment& e) {
  const std::string t = text_of(e, "transparent_hugepages");
  if (t.empty()) return {"huge pages", Level::note, "not told by the system", ""};
  if (t != "never") return {"huge pages", Level::good, t, ""};
  return {"huge pages", Level::warn, t,
          "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"};
}

bool cpu_has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

std::vector<Finding> openblas(const Environment& e) {
  const std::string core = text_of(e, "openblas_core"), config = text_of(e, "openblas");
  const std::string forced = text_of(e, "env_OPENBLAS_CORETYPE");
  if (config.empty()) return {{"OpenBLAS", Level::note, "not loaded", ""}};
  std::vector<Finding> out;
  const bool avx512_kernels =
      core == "SkylakeX" || core == "Cooperlake" || core == "Sapphirerapids" || core == "Skylakex";
  const std::string found =
      core + " kernels" + (forced.empty() ? "" : ", forced by OPENBLAS_CORETYPE=" + forced);
  if (cpu_has_avx512() && !avx512_kernels)
    out.push_back({"OpenBLAS", Level::warn, found,
                   "this CPU has AVX-512, which these kernels do not use: try OPENBLAS_CORETYPE=SkylakeX"});
  else
    out.push_back({"OpenBLAS", Level::good, found, ""});
  if (config.find("OPENMP") == std::string::npos)
    out.push_back({"OpenBLAS threads", Level::warn, config,
                   "this build brings its own threads beside OpenMP's: install libopenblas0-openmp"});
  return out;
}

Finding memory() {
  const int64_t available = proc_kib("/proc/meminfo", "MemAvailable") * 1024;
  const int64_t total = proc_kib("/proc/meminfo", "MemTotal") * 1024;
  const std::string found = fmt::format("{} of {} available", bytes_text(available), bytes_text(total));
  if (available < (int64_t{1} << 30))
    return {"memory", Level::warn, found, "larger cases will be skipped: free some memory"};
  return {"memory", Level::good, found, ""};
}

Finding clock_source() {
  const SteadyClock clock;
  std::string source;
  std::ifstream("/sys/devices/system/clocksource/clocksource0/current_clocksource") >> source;
  const std::string found =
      fmt::format("{}, resolution {}, a reading costs {}", source.empty() ? "steady clock" : source,
                  seconds_text(clock.resolution_s()), seconds_text(clock.overhead_s()));
  // Samples last a millisecond at least; a microsecond per reading is a thousandth of that.
  if (clock.resolution_s() > 1e-6 || clock.overhead_s() > 1e-6)
    return {"clock", Level::warn, found,
            "slow: boot with clocksource=tsc where the machine permits, or raise measure.min_sample"};
  return {"clock", Level::good, found, ""};
}

Finding machine(const Environment& e) {
  if (text_of(e, "virtual_machine") == "true")
    return {"machine", Level::note, text_of(e, "cpu_model") + ", virtual",
            "neighbours on the same host show up as noise that nothing here can see"};
  return {"machine", Level::good, text_of(e, "cpu_model"), ""};
}

std::vector<Finding> cuda() {
  std::string why;
  Backend* b = cuda_backend(why);
  if (!b) return {{"CUDA", Level::note, "not usable", why}};
  const DeviceFacts f = b->facts();
  std::vector<Finding> out{
      {"CUDA", Level::good,
       fmt::format("{}; driver for CUDA {}, built with {}", b->description(), f.driver, f.runtime), ""}};
  const DeviceMemory m = b->memory_info();
  const std::string memory = fmt::format("{} of {} free", bytes_text(m.free), bytes_text(m.total));
  // The context of this program itself takes some hundred MiB.
  if (m.total - m.free > (int64_t{2} << 30))
    out.push_back(
        {"GPU memory", Level::warn, memory,
         "another program is using the card: its work is in the samples, too (nvidia-smi shows it)"});
  else
    out.push_back({"GPU memory", Level::good, memory, ""});
  const DeviceState s = b->read_state();
  if (!s.why.empty()) {
    out.push_back({"GPU sensors", Level::note, "not read: " + s.why,
                   "clocks and throttling will not be in the results"});
    return out;
  }
  std::string found;
  const auto add = [&found](const std::string& text) { found += (found.empty() ? "" : ", ") + text; };
  if (s.sm_clock_mhz && s.sm_clock_max_mhz)
    add(fmt::format("SM clock {} of {} MHz", *s.sm_clock_mhz, *s.sm_clock_max_mhz));
  if (s.temperature_c) add(fmt::format("{} °C", *s.temperature_c));
  if (s.power_w && s.power_limit_w) add(fmt::format("{:.0f} of {:.0f} W", *s.power_w, *s.power_limit_w));
  if (s.driver) add("driver " + *s.driver);
  if (s.throttle.empty()) {
    out.push_back({"GPU sensors", Level::good, found.empty() ? "nothing told" : found, ""});
    return out;
  }
  std::string reasons;
  for (const std::string& r : s.throttle) reasons += (reasons.empty() ? "" : ", ") + r;
  out.push_back({"GPU sensors", Level::warn, found + "; held back by " + reasons,
                 "wait until the card is idle and cool; a clock that somebody set stays as it is"});
  return out;
}

Finding noise_finding(const Noise& n) {
  const std::string found = fmt::format("{}: {:.1f}% spread (p5 to p95), {:.1f}% drift, {} samples",
                                        word(n.verdict()), 100 * n.spread, 100 * n.drift, n.samples);
  switch (n.verdict()) {
    case Noise::Verdict::quiet:
      return {"noise", Level::good, found, ""};
    case Noise::Verdict::moderate:
      return {"noise", Level::note, found, "cases take more samples to reach 1%"};
    case Noise::Verdict::noisy:
      break;
  }
  return {"noise", Level::warn, found,
          "many cases will stop at max_time before they reach 1%; read the intervals"};
}

struct Options {
  double noise_s = 2;
};

int doctor(const Options& o, const GlobalOptions& global) {
  const Environment e = collect_environment(0);
  std::vector<Finding> findings{build(), machine(e), governor(e), turbo(e),
                                load(e), threads(e), quota(e),    huge_pages(e)};
  for (Finding& f : openblas(e)) findings.push_back(std::move(f));
  findings.insert(findings.end(), {memory(), clock_source()});
  for (Finding& f : cuda()) findings.push_back(std::move(f));
  note(global.quiet || o.noise_s <= 0, fmt::format("measuring noise for {}", duration_text(o.noise_s)));
  std::optional<Noise> noise;
  if (o.noise_s > 0) {
    SteadyClock clock;
    noise = measure_noise(clock, o.noise_s, static_cast<int>(int_of(e, "threads")));
    findings.push_back(noise_finding(*noise));
  }
  bool bad = false;
  for (const Finding& f : findings) bad |= f.level == Level::bad;
  if (global.json) {
    Json list = Json::array();
    for (const Finding& f : findings)
      list.push_back(
          {{"topic", f.topic}, {"level", word(f.level)}, {"found", f.found}, {"advice", f.advice}});
    Json j{{"machine_id", e.machine_id}, {"findings", std::move(list)}};
    if (noise)
      j["noise"] = {{"verdict", word(noise->verdict())},
                    {"spread", noise->spread},
                    {"drift", noise->drift},
                    {"samples", noise->samples}};
    print_json(j);
    return bad ? kAnswerIsNo : kDone;
  }
  for (const Finding& f : findings) {
    const Style style = f.level == Level::bad    ? Style::red
                        : f.level == Level::warn ? Style::yellow
                        : f.level == Level::good ? Style::green
                                                 : Style::dim;
    print_data(fmt::format("{}  {:<16}  {}\n",
                           styled(fmt::format("{:<4}", word(f.level)), style, global.color), f.topic,
                           f.found));
    if (!f.advice.empty()) print_data("      " + wrap(f.advice, 92, "      ") + "\n");
  }
  return bad ? kAnswerIsNo : kDone;
}

const bool registered = register_command(
    {.name = "doctor",
     .order = 52,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("--noise", o->noise_s, "seconds to measure noise for; 0: not at all; default 2")
               ->check(CLI::Range(0.0, 600.0))
               ->type_name("S");
           sub.footer(
               "Examples:\n"
               "  attnbench doctor\n"
               "  attnbench doctor --noise 20 --json\n"
               "\n"
               "Exit status 1 when something makes numbers worthless (a debug or sanitizer build).");
           return [o, &global] { return doctor(*o, global); };
         },
     .summary = "what is missing or mis-set on this machine, and how to fix it"});

}  // namespace

}  // namespace attnbench
