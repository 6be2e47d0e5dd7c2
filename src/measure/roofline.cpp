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

constexpr int kCacheFormat = 1;

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

/// Cache levels from memory inwards. Copies within a first-level cache end before the threads are started:
/// what they read is the cost of starting, so the second level stands for both.
const std::vector<std::string> kLevels{"", "l3", "l2"};

int64_t level_bytes(const std::string& level) { return level.empty() ? 0 : cache_bytes(level[1] - '0'); }

/// What one level holds in total for `threads` threads: inner levels are one per core.
int64_t level_capacity(const std::string& level, int threads) {
  return level == "l3" ? level_bytes(level) : level_bytes(level) * threads;
}

/// Bytes to copy so that source and destination together fill half of the level, or, for memory, four times
/// the outermost cache.
int64_t copy_bytes_for(const std::string& level, int threads) {
  if (level.empty())
    return std::max<int64_t>(int64_t{64} << 20, 2 * std::max(cache_bytes(3), cache_bytes(2)));
  return std::max<int64_t>(level_capacity(level, threads) / 4, 4096 * threads);
}

std::string compute_key(DType dtype, int threads) { return fmt::format("cpu/{}/{}", name(dtype), threads); }
std::string copy_key(int threads, const std::string& level) {
  return level.empty() ? fmt::format("cpu/{}", threads) : fmt::format("cpu/{}/{}", threads, level);
}

}  // namespace

PeakProbe& cpu_peak_probe() {
  static CpuPeakProbe probe;
  return probe;
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
  return probe_.copy_gbytes_per_s(threads, copy_bytes_for(level, threads));
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
  for (const std::string& level : kLevels) {
    if (!level.empty() && level_bytes(level) == 0) continue;
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
  for (const std::string& level : kLevels) roofline_.gbytes_per_s.erase(copy_key(threads, level));
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
        "{:.4g} GFLOP/s would be {:.0f}% of this machine's measured peak of {:.4g} GFLOP/s ({}, {} threads): "
        "the "
        "counted FLOPs or the time must be wrong",
        o.bound.gflops, 100 * o.bound.gflops / compute, compute, name(dtype), threads);
    return o;
  }
  double memory = 0;
  for (int attempt = 0; attempt < 2; ++attempt) {
    // Start at the outermost level that does not hold everything and go inwards while the rate is above it.
    for (const std::string& level : kLevels) {
      const size_t inner = static_cast<size_t>(&level - kLevels.data()) + 1;
      const bool last = inner == kLevels.size();
      if (!level.empty() && level_bytes(level) == 0) continue;
      if (!last && level_bytes(kLevels[inner]) > 0 &&
          level_capacity(kLevels[inner], threads) >= resident_bytes)
        continue;
      memory = std::max(memory, ceilings.gbytes_per_s(threads, level));
      if (o.bound.gbytes_per_s <= memory * above) break;
    }
    if (o.bound.gbytes_per_s <= memory * above) break;
    if (attempt == 0) ceilings.remeasure_bandwidth(threads);
  }
  if (o.bound.gbytes_per_s > memory * above) {
    o.inconsistent = fmt::format(
        "{:.4g} GB/s would be {:.0f}% of the {:.4g} GB/s that this machine's innermost cache copies ({} "
        "threads): the "
        "counted bytes or the time must be wrong",
        o.bound.gbytes_per_s, 100 * o.bound.gbytes_per_s / memory, memory, threads);
    return o;
  }
  const double of_compute = o.bound.gflops / compute,
               of_memory = memory > 0 ? o.bound.gbytes_per_s / memory : 0;
  o.bound.bound_by = of_compute >= of_memory ? "compute" : "memory";
  o.bound.percent_of_ceiling = 100 * std::max(of_compute, of_memory);
  return o;
}

}  // namespace attnbench
