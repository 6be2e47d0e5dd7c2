#include "measure/roofline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "inputs/atomic_file.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/peak.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"

namespace attnbench {

namespace {

using nlohmann::json;

constexpr int kCacheFormat = 2;  // 2: bf16 multiply-adds and products may be those of AMX tiles

class CpuPeakProbe final : public PeakProbe {
 public:
  double fma_gflops(DType dtype, int threads) override { return measure_fma_peak(dtype, threads) * 1e-9; }
  double gemm_gflops(DType dtype, int threads) override {
    Context ctx(cpu_backend(), threads);
    // Large enough that packing does not show, small enough for a third of a second: 2 x 1536^3 = 7 GFLOP.
    return measure_gemm_rate(ctx, dtype, 1536) * 1e-9;
  }
  double copy_gbytes_per_s(int threads, int64_t bytes) override {
    return measure_copy_bandwidth(threads, bytes) * 1e-9;
  }
};

class DevicePeakProbe final : public PeakProbe {
 public:
  explicit DevicePeakProbe(Backend& backend) : backend_(backend), facts_(backend.facts()) {}

  double fma_gflops(DType dtype, int threads) override {
    const double rate = backend_.measure_peak(DevicePeak::multiply_add, dtype, 0) * 1e-9;
    if (dtype != DType::f32) return rate;
    // Matrix units multiply f32 as three products of tf32 parts, and take tf32 at half the rate of bf16: a
    // sixth of its rate is within reach, whoever's kernel it is.
    try {
      return std::max(rate, gemm_gflops(DType::bf16, threads) / 6);
    } catch (const Unsupported&) {
      return rate;
    }
  }
  double gemm_gflops(DType dtype, int) override {
    Context ctx(backend_, 1);
    // Matrix units are full from 4096 on; twice that at 16 bits, where a product of 4096 takes 0.2 ms.
    return measure_gemm_rate(ctx, dtype, size_of(dtype) == 2 ? 8192 : 4096) * 1e-9;
  }
  double copy_gbytes_per_s(int, int64_t bytes) override {
    return backend_.measure_peak(DevicePeak::copy, DType::u8, bytes) * 1e-9;
  }
  double read_gbytes_per_s(int, int64_t bytes) override {
    return backend_.measure_peak(DevicePeak::read, DType::u8, bytes) * 1e-9;
  }
  std::string device() const override { return std::string(name(backend_.device())); }
  bool threaded() const override { return false; }
  std::vector<std::string> levels() const override { return {"", "read", "l2"}; }
  int64_t level_capacity(const std::string& level, int) const override {
    return level == "l2" ? facts_.cache_bytes : 0;
  }
  int64_t memory_copy_bytes() const override {
    // 1 GiB is twenty times the largest cache; less where a quarter of the free memory is less.
    const int64_t free = backend_.memory_info().free;
    return std::max<int64_t>(8 * facts_.cache_bytes,
                             std::min<int64_t>(int64_t{1} << 30, free > 0 ? free / 4 : int64_t{1} << 30));
  }

 private:
  Backend& backend_;
  DeviceFacts facts_;
};

}  // namespace

double PeakProbe::read_gbytes_per_s(int, int64_t) {
  throw Unsupported("reads alone are no ceiling of their own on " + device());
}

// Copies within a first-level cache end before the threads are started: what they read is the cost of
// starting, so the second level stands for both.
std::vector<std::string> PeakProbe::levels() const { return {"", "l3", "l2"}; }

int64_t PeakProbe::level_capacity(const std::string& level, int threads) const {
  // Inner levels are one per core.
  return level == "l3" ? cache_bytes(3) : level == "l2" ? cache_bytes(2) * threads : 0;
}

int64_t PeakProbe::memory_copy_bytes() const {
  // Source and destination together: four times the outermost cache.
  return std::max<int64_t>(int64_t{64} << 20, 2 * std::max(cache_bytes(3), cache_bytes(2)));
}

PeakProbe& cpu_peak_probe() {
  static CpuPeakProbe probe;
  return probe;
}

std::unique_ptr<PeakProbe> device_peak_probe(Backend& device) {
  return std::make_unique<DevicePeakProbe>(device);
}

std::string roofline_id(const Environment& environment, const std::string& device) {
  if (device != "cpu") return environment.machine_id + "-" + device;
  std::map<std::string, Value> values = environment.values;
  values.erase("gpu");
  return machine_id(values);
}

std::string roofline_cache_file(const std::string& machine_id) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  std::filesystem::path base;
  if (cache && *cache)
    base = cache;
  else if (home && *home)
    base = std::filesystem::path(home) / ".cache";
  else
    return "";
  return (base / "attnbench" / ("roofline-" + machine_id + ".json")).string();
}

namespace {
bool has_level(const PeakProbe& probe, const std::string& level, int threads) {
  return level.empty() || level == "read" || probe.level_capacity(level, threads) > 0;
}
/// ", 2 threads" where a ceiling depends on them.
std::string threads_text(const PeakProbe& probe, int threads) {
  return probe.threaded() ? fmt::format(", {} threads", threads) : ", " + probe.device();
}
}  // namespace

Ceilings::Ceilings(PeakProbe& probe, std::string cache_file) : probe_(probe), file_(std::move(cache_file)) {
  load();
}

void Ceilings::load() {
  if (file_.empty()) return;
  std::ifstream f(file_);
  if (!f) return;
  try {
    const json j = json::parse(f);
    if (j.at("format").get<int>() != kCacheFormat) throw DataError("an unknown format number");
    Roofline r;
    const auto read = [&j](const char* key, std::map<std::string, double>& into) {
      for (const auto& [k, v] : j.at(key).items()) {
        const double x = v.get<double>();
        if (!(x > 0) || !std::isfinite(x)) throw DataError(fmt::format("{} is {}", k, v.dump()));
        into[k] = x;
      }
    };
    read("gflops", r.gflops);
    read("gbytes_per_s", r.gbytes_per_s);
    r.measured_at = j.at("measured_at").get<std::string>();
    r.from_cache = true;
    roofline_ = r;
  } catch (const std::exception& e) {
    warnings_.push_back(fmt::format(
        "{} does not hold ceilings ({}); it is ignored and they are measured again", file_, e.what()));
  }
}

void Ceilings::store() {
  if (file_.empty()) return;
  const json j{{"format", kCacheFormat},
               {"gflops", roofline_.gflops},
               {"gbytes_per_s", roofline_.gbytes_per_s},
               {"measured_at", roofline_.measured_at}};
  try {
    std::filesystem::create_directories(std::filesystem::path(file_).parent_path());
    write_file_atomically(file_, j.dump(1) + "\n");
  } catch (const std::exception& e) {
    warnings_.push_back(fmt::format("the ceilings could not be kept for the next run: {}", e.what()));
    file_.clear();
  }
}

std::string Ceilings::compute_key(DType dtype, int threads) const {
  const std::string key = probe_.device() + "/" + std::string(name(dtype));
  return probe_.threaded() ? key + "/" + std::to_string(threads) : key;
}

std::string Ceilings::copy_key(int threads, const std::string& level) const {
  const std::string key = probe_.device() + (probe_.threaded() ? "/" + std::to_string(threads) : "");
  return level.empty() ? key : key + "/" + level;
}

double Ceilings::measure_fma(DType dtype, int threads) {
  // 16-bit types may also be widened and computed in f32: the highest of all is what cannot be beaten. A
  // product that runs faster than the bare multiply-adds shows that those did not fill the pipes.
  double rate = 0;
  const auto raise = [&rate](auto&& measure) {
    try {
      rate = std::max(rate, measure());
    } catch (const Unsupported&) {
    }
  };
  if (dtype == DType::f64) {
    rate = probe_.fma_gflops(dtype, threads);
  } else {
    rate = probe_.fma_gflops(DType::f32, threads);
    raise([&] { return probe_.gemm_gflops(DType::f32, threads); });
    if (dtype != DType::f32) raise([&] { return probe_.fma_gflops(dtype, threads); });
  }
  if (dtype != DType::f32) raise([&] { return probe_.gemm_gflops(dtype, threads); });
  return rate;
}

double Ceilings::measure_copy(int threads, const std::string& level) {
  const int64_t memory = probe_.memory_copy_bytes();
  if (level == "read") return probe_.read_gbytes_per_s(threads, memory);
  // Within a cache, source and destination together fill half of it.
  const int64_t capacity = probe_.level_capacity(level, threads);
  const int64_t bytes = level.empty() ? memory : std::max<int64_t>(capacity / 4, 4096 * std::max(threads, 1));
  return probe_.copy_gbytes_per_s(threads, bytes);
}

double Ceilings::fma_gflops(DType dtype, int threads) {
  const std::string key = compute_key(dtype, threads);
  const auto it = roofline_.gflops.find(key);
  if (it != roofline_.gflops.end()) return it->second;
  const double rate = measure_fma(dtype, threads);
  roofline_.gflops[key] = rate;
  roofline_.measured_at = utc_now();
  roofline_.from_cache = false;
  store();
  return rate;
}

std::optional<double> Ceilings::gemm_gflops(DType dtype, int threads) {
  const std::string key = compute_key(dtype, threads) + "/gemm";
  const auto it = roofline_.gflops.find(key);
  if (it != roofline_.gflops.end()) return it->second;
  try {
    const double rate = probe_.gemm_gflops(dtype, threads);
    roofline_.gflops[key] = rate;
    store();
    return rate;
  } catch (const Unsupported&) {
    return std::nullopt;
  }
}

double Ceilings::gbytes_per_s(int threads, const std::string& level) {
  const std::string key = copy_key(threads, level);
  const auto it = roofline_.gbytes_per_s.find(key);
  if (it != roofline_.gbytes_per_s.end()) return it->second;
  const double rate = measure_copy(threads, level);
  roofline_.gbytes_per_s[key] = rate;
  roofline_.measured_at = utc_now();
  roofline_.from_cache = false;
  store();
  return rate;
}

void Ceilings::remeasure_compute(DType dtype, int threads) {
  double& rate = roofline_.gflops[compute_key(dtype, threads)];
  rate = std::max(rate, measure_fma(dtype, threads));
  roofline_.measured_at = utc_now();
  roofline_.from_cache = false;
  store();
}

void Ceilings::remeasure_bandwidth(int threads) {
  for (const std::string& level : probe_.levels()) {
    if (!has_level(probe_, level, threads)) continue;
    double& rate = roofline_.gbytes_per_s[copy_key(threads, level)];
    rate = std::max(rate, measure_copy(threads, level));
  }
  roofline_.measured_at = utc_now();
  roofline_.from_cache = false;
  store();
}

void Ceilings::measure_all(const std::vector<DType>& dtypes, int threads) {
  for (const DType t : dtypes) {
    roofline_.gflops.erase(compute_key(t, threads));
    roofline_.gflops.erase(compute_key(t, threads) + "/gemm");
    fma_gflops(t, threads);
    gemm_gflops(t, threads);
  }
  for (const std::string& level : probe_.levels()) roofline_.gbytes_per_s.erase(copy_key(threads, level));
  remeasure_bandwidth(threads);
}

BoundOutcome place_under_ceilings(Ceilings& ceilings, const Cost& counted, double seconds, DType dtype,
                                  int threads, int64_t resident_bytes) {
  BoundOutcome o;
  if (!(seconds > 0)) {
    o.inconsistent = fmt::format("the time of one execution reads {} s, which nothing takes", seconds);
    return o;
  }
  const double flops = static_cast<double>(counted.flops()), bytes = static_cast<double>(counted.bytes());
  o.bound.gflops = flops / seconds * 1e-9;
  o.bound.gbytes_per_s = bytes / seconds * 1e-9;
  o.bound.intensity = bytes > 0 ? flops / bytes : 0;

  const double above = 1 + kCeilingTolerance;
  double compute = ceilings.fma_gflops(dtype, threads);
  if (o.bound.gflops > compute * above) {
    ceilings.remeasure_compute(dtype, threads);
    compute = ceilings.fma_gflops(dtype, threads);
  }
  if (o.bound.gflops > compute * above) {
    o.inconsistent = fmt::format(
        "{:.4g} GFLOP/s would be {:.0f}% of this machine's measured peak of {:.4g} GFLOP/s ({}{}): the "
        "counted FLOPs or the time must be wrong",
        o.bound.gflops, 100 * o.bound.gflops / compute, compute, name(dtype),
        threads_text(ceilings.probe(), threads));
    return o;
  }
  PeakProbe& probe = ceilings.probe();
  const std::vector<std::string> levels = probe.levels();
  double memory = 0;
  for (int attempt = 0; attempt < 2; ++attempt) {
    // Start at the outermost level that does not hold everything and go inwards while the rate is above it.
    for (size_t at = 0; at < levels.size(); ++at) {
      if (!has_level(probe, levels[at], threads)) continue;
      const bool held_further_in = std::any_of(
          levels.begin() + static_cast<std::ptrdiff_t>(at) + 1, levels.end(), [&](const std::string& inner) {
            const int64_t capacity = probe.level_capacity(inner, threads);
            return capacity > 0 && capacity >= resident_bytes;
          });
      if (held_further_in) continue;
      memory = std::max(memory, ceilings.gbytes_per_s(threads, levels[at]));
      if (o.bound.gbytes_per_s <= memory * above) break;
    }
    if (o.bound.gbytes_per_s <= memory * above) break;
    if (attempt == 0) ceilings.remeasure_bandwidth(threads);
  }
  if (o.bound.gbytes_per_s > memory * above) {
    o.inconsistent = fmt::format(
        "{:.4g} GB/s would be {:.0f}% of the {:.4g} GB/s that this machine's innermost cache copies{}: the "
        "counted bytes or the time must be wrong",
        o.bound.gbytes_per_s, 100 * o.bound.gbytes_per_s / memory, memory, threads_text(probe, threads));
    return o;
  }
  const double of_compute = o.bound.gflops / compute,
               of_memory = memory > 0 ? o.bound.gbytes_per_s / memory : 0;
  o.bound.bound_by = of_compute >= of_memory ? "compute" : "memory";
  o.bound.percent_of_ceiling = 100 * std::max(of_compute, of_memory);
  return o;
}

}  // namespace attnbench
