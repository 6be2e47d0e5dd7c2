#include "measure/environment.hpp"

#include <dlfcn.h>
#include <sched.h>
#include <sys/utsname.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels/core/cuda_loader.hpp"
#include "measure/build_info.hpp"
#include "measure/case_id.hpp"

namespace attnbench {

namespace {

std::string read_line(const std::string& path) {
  std::ifstream f(path);
  std::string s;
  std::getline(f, s);
  return s;
}

/// Value of the first "key : value" line.
std::string field(const std::string& path, const std::string& key) {
  std::ifstream f(path);
  std::string line;
  while (std::getline(f, line)) {
    if (!line.starts_with(key)) continue;
    size_t at = key.size();
    while (at < line.size() && (line[at] == ' ' || line[at] == '\t')) ++at;
    if (at >= line.size() || line[at] != ':') continue;
    at = line.find_first_not_of(" \t", at + 1);
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

int64_t parse_size(const std::string& text) {
  int64_t n = 0;
  std::istringstream s(text);
  if (!(s >> n)) return 0;
  char unit = 0;
  if (s >> unit) n *= unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : unit == 'G' ? int64_t{1} << 30 : 1;
  return n;
}

template <class T>
T symbol(const char* name) {
  return reinterpret_cast<T>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

int64_t proc_kib(const std::string& path, const std::string& key) {
  const std::string s = field(path, key);
  return s.empty() ? 0 : std::strtoll(s.c_str(), nullptr, 10);
}

int64_t rss_peak() { return proc_kib("/proc/self/status", "VmHWM") * 1024; }

bool reset_rss_peak() {
  // 5 resets the high-water mark (proc(5), clear_refs); refused in some containers.
  std::ofstream f("/proc/self/clear_refs");
  f << "5" << std::flush;
  return f.good();
}

int allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int64_t cache_bytes(int level) {
  int64_t most = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string base = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
    if (read_line(base + "level") != std::to_string(level) || read_line(base + "type") == "Instruction")
      continue;
    most = std::max(most, parse_size(read_line(base + "size")));
  }
  return most;
}

std::string machine_id(const std::map<std::string, Value>& values) {
  std::string t = "attnbench-machine-1\n";
  for (const char* key : {"cpu_model", "architecture", "cores", "cpus_online", "cpus_allowed",
                          "cache_l1d_bytes", "cache_l2_bytes", "cache_l3_bytes", "memory_gib", "gpu"}) {
    const auto it = values.find(key);
    if (it != values.end()) t += std::string(key) + "=" + it->second.str() + "\n";
  }
  return hash_text(t);
}

Backend* find_backend(const std::string& device, std::string& why) {
  if (device == "cpu") return &cpu_backend();
  if (device == "cuda") return cuda_backend(why);
  why = "only cpu and cuda can be used";
  return nullptr;
}

Backend* device_of(const Suite& suite) {
  std::string why;
  for (const Case& c : suite.cases)
    if (c.device != "cpu")
      if (Backend* b = find_backend(c.device, why)) return b;
  return nullptr;
}

namespace {

void add_device(std::map<std::string, Value>& v, Backend& device) {
  const DeviceFacts f = device.facts();
  const auto text = [&v](const char* key, const std::string& s) {
    if (!s.empty()) v[key] = s;
  };
  const auto count = [&v](const char* key, int64_t n) {
    if (n > 0) v[key] = n;
  };
  text("gpu", f.name);
  text("gpu_architecture", f.architecture);
  text("cuda_driver", f.driver);
  text("cuda_runtime", f.runtime);
  count("gpu_multiprocessors", f.multiprocessors);
  count("gpu_cache_bytes", f.cache_bytes);
  count("gpu_memory_bytes", f.memory_bytes);
  const DeviceMemory m = device.memory_info();
  count("gpu_memory_free_bytes", m.free);
  const DeviceState s = device.read_state();
  if (s.driver) v["gpu_driver"] = *s.driver;
  if (s.sm_clock_mhz) v["gpu_sm_clock_mhz"] = *s.sm_clock_mhz;
  if (s.sm_clock_max_mhz) v["gpu_sm_clock_max_mhz"] = *s.sm_clock_max_mhz;
  if (s.memory_clock_mhz) v["gpu_memory_clock_mhz"] = *s.memory_clock_mhz;
  if (s.temperature_c) v["gpu_temperature_c"] = *s.temperature_c;
  if (s.power_w) v["gpu_power_w"] = *s.power_w;
  if (s.power_limit_w) v["gpu_power_limit_w"] = *s.power_limit_w;
  text("gpu_sensors", s.why);
}

}  // namespace

Environment collect_environment(int threads, Backend* device) {
  Environment e;
  auto& v = e.values;
  const auto text = [&v](const char* key, std::string s) {
    if (!s.empty()) v[key] = std::move(s);
  };
  // The processor. Physical cores are distinct (package, core) pairs; ARM's cpuinfo has neither.
  std::set<std::pair<std::string, std::string>> cores;
  int online = 0;
  for (int i = 0; i < 4096; ++i) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/";
    const std::string core = read_line(base + "core_id");
    if (core.empty()) {
      if (i > 0 && online == 0) break;
      if (i > 2 * online + 8) break;
      continue;
    }
    ++online;
    cores.emplace(read_line(base + "physical_package_id"), core);
  }
  text("cpu_model", field("/proc/cpuinfo", "model name"));
  text("cpu_backend", cpu_backend().description());
  if (!cores.empty()) v["cores"] = static_cast<int64_t>(cores.size());
  if (online) v["cpus_online"] = online;
  v["cpus_allowed"] = allowed_cpus();
  for (const auto& [level, key] :
       {std::pair{1, "cache_l1d_bytes"}, {2, "cache_l2_bytes"}, {3, "cache_l3_bytes"}})
    if (const int64_t bytes = cache_bytes(level)) v[key] = bytes;
  const int64_t memory = proc_kib("/proc/meminfo", "MemTotal") * 1024;
  if (memory) {
    v["memory_bytes"] = memory;
    v["memory_gib"] = (memory + (int64_t{1} << 29)) >> 30;
  }
  // Clocks and load: they say how far to trust the numbers, and stay out of the machine's id.
  text("governor", read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
  const std::string no_turbo = read_line("/sys/devices/system/cpu/intel_pstate/no_turbo");
  const std::string boost = read_line("/sys/devices/system/cpu/cpufreq/boost");
  if (!no_turbo.empty())
    v["turbo"] = no_turbo == "0";
  else if (!boost.empty())
    v["turbo"] = boost == "1";
  double load = 0;
  if (std::ifstream("/proc/loadavg") >> load) v["load_1min"] = load;
  if (field("/proc/cpuinfo", "flags").find("hypervisor") != std::string::npos) v["virtual_machine"] = true;
  text("transparent_hugepages", [] {
    const std::string s = read_line("/sys/kernel/mm/transparent_hugepage/enabled");
    const size_t a = s.find('['), b = s.find(']');
    return a == std::string::npos || b == std::string::npos ? "" : s.substr(a + 1, b - a - 1);
  }());

  utsname u{};
  if (uname(&u) == 0) {
    text("architecture", u.machine);
    text("kernel", std::string(u.sysname) + " " + u.release);
  }
  std::ifstream os("/etc/os-release");
  for (std::string line; std::getline(os, line);)
    if (line.starts_with("PRETTY_NAME=")) {
      line = line.substr(12);
      if (line.size() >= 2 && line.front() == '"') line = line.substr(1, line.size() - 2);
      text("os", line);
    }

  const BuildInfo& b = build_info();
  text("attnbench_version", b.version);
  text("git_revision", b.revision);
  text("compiler", b.compiler);
  text("build_type", b.build_type);
  text("flags", b.flags);
  text("sanitize", b.sanitize);

  // Libraries are asked at run time: what is loaded may differ from what was built against.
  if (const auto config = symbol<char* (*)()>("openblas_get_config")) text("openblas", config());
  if (const auto core = symbol<char* (*)()>("openblas_get_corename")) text("openblas_core", core());
  if (const auto fftw = symbol<const char*>("fftwf_version")) text("fftw", fftw);
#if defined(_OPENMP)
  v["openmp"] = static_cast<int64_t>(_OPENMP);
  v["threads"] = threads > 0 ? threads : omp_get_num_procs();
#else
  v["threads"] = threads > 0 ? threads : 1;
#endif
  for (const char* key : {"OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY",
                          "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS"})
    if (const char* set = std::getenv(key)) v[std::string("env_") + key] = std::string(set);
  if (device && device->device() != DeviceKind::cpu) add_device(v, *device);
  e.machine_id = machine_id(v);
  return e;
}

}  // namespace attnbench
