// This machine's ceilings as the runner uses them: measured once, cached per machine, asked by result.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// Measures one ceiling. The real one is kernels/core/peak.hpp; tests put their own machine here.
class PeakProbe {
 public:
  virtual ~PeakProbe() = default;
  virtual double fma_gflops(DType dtype, int threads) = 0;   ///< throws Unsupported where the CPU has none
  virtual double gemm_gflops(DType dtype, int threads) = 0;  ///< throws Unsupported where there is none
  virtual double copy_gbytes_per_s(int threads, int64_t bytes) = 0;
};
PeakProbe& cpu_peak_probe();

/// Rates may be read this much above a ceiling before they are accused: ceilings wander by a few percent from
/// run to run on a shared machine.
inline constexpr double kCeilingTolerance = 0.05;

/// The ceilings of the CPU, measured when first asked for and kept in
/// $XDG_CACHE_HOME/attnbench/roofline-<machine id>.json (or ~/.cache/attnbench/…).
///
/// Keys: gflops "cpu/f32/2" (FMA peak, or the product's rate where that is higher) and "cpu/f32/2/gemm";
/// gbytes_per_s "cpu/2" (copies that do not fit any cache), "cpu/2/l3", "cpu/2/l2" (copies that fit the
/// level). Types without instructions of their own (f16; bf16 before AVX512-BF16) compute in f32 and carry
/// its peak.
class Ceilings {
 public:
  /// An empty `cache_file` keeps nothing on disk. A file that cannot be read as ceilings is ignored with a
  /// warning and written anew.
  Ceilings(PeakProbe& probe, std::string cache_file);

  double fma_gflops(DType dtype, int threads);
  std::optional<double> gemm_gflops(DType dtype, int threads);
  double gbytes_per_s(int threads, const std::string& level);  ///< level: "", "l3", "l2"
  /// Measures again and keeps the higher reading of each: disturbances only ever lower a ceiling.
  void remeasure_compute(DType dtype, int threads);
  void remeasure_bandwidth(int threads);
  /// Measures everything for `attnbench roofline`, whether cached or not.
  void measure_all(const std::vector<DType>& dtypes, int threads);

  const Roofline& roofline() const { return roofline_; }
  std::vector<std::string> take_warnings() { return std::exchange(warnings_, {}); }

 private:
  double measure_fma(DType dtype, int threads);
  double measure_copy(int threads, const std::string& level);
  void load();
  void store();

  PeakProbe& probe_;
  std::string file_;
  Roofline roofline_;
  std::vector<std::string> warnings_;
};

/// Where ceilings are kept for this machine; empty when neither XDG_CACHE_HOME nor HOME is set.
std::string roofline_cache_file(const std::string& machine_id);

/// Places a result against the ceilings. `resident_bytes`: what the case keeps alive, which tells the cache
/// level that feeds it. When the bytes moved are more than that level delivers, the next inner level is the
/// ceiling: operators may find each other's results there.
struct BoundOutcome {
  Bound bound;
  std::string inconsistent;  ///< empty, or the sentence that accuses the figure
};
BoundOutcome place_under_ceilings(Ceilings& ceilings, const Cost& counted, double seconds, DType dtype,
                                  int threads, int64_t resident_bytes);

}  // namespace attnbench
