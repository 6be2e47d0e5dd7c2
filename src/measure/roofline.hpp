// This machine's ceilings as the runner uses them: measured once, cached per machine, asked by result.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/backend.hpp"
#include "measure/results.hpp"

namespace attnbench {

/// Measures one ceiling. The real ones are kernels/core/peak.hpp and Backend::measure_peak; tests put their
/// own machine here. What is not pure describes the CPU.
class PeakProbe {
 public:
  virtual ~PeakProbe() = default;
  virtual double fma_gflops(DType dtype, int threads) = 0;   ///< throws Unsupported where there is none
  virtual double gemm_gflops(DType dtype, int threads) = 0;  ///< throws Unsupported where there is none
  virtual double copy_gbytes_per_s(int threads, int64_t bytes) = 0;
  /// Reads alone, where they are faster than copies and a ceiling of their own; throws Unsupported elsewhere.
  virtual double read_gbytes_per_s(int threads, int64_t bytes);

  virtual std::string device() const { return "cpu"; }
  virtual bool threaded() const { return true; }  ///< ceilings depend on a number of threads
  /// From memory ("") inwards; "read" is memory read only.
  virtual std::vector<std::string> levels() const;
  /// Bytes that a cache level holds for `threads` threads; 0: there is none, or it is no cache.
  virtual int64_t level_capacity(const std::string& level, int threads) const;
  /// Bytes whose copies never fit any cache.
  virtual int64_t memory_copy_bytes() const;
};
PeakProbe& cpu_peak_probe();
/// Ceilings of a device through its backend: multiply-adds, products of the gemm operator, copies and reads.
std::unique_ptr<PeakProbe> device_peak_probe(Backend& device);

/// Rates may be read this much above a ceiling before they are accused: ceilings wander by a few percent from
/// run to run on a shared machine.
inline constexpr double kCeilingTolerance = 0.05;

/// The ceilings of one device, measured when first asked for and kept in
/// $XDG_CACHE_HOME/attnbench/roofline-<machine id>.json (or ~/.cache/attnbench/…).
///
/// Keys: gflops "cpu/f32/2" (FMA peak, or the product's rate where that is higher) and "cpu/f32/2/gemm";
/// gbytes_per_s "cpu/2" (copies that do not fit any cache), "cpu/2/l3", "cpu/2/l2" (copies that fit the
/// level). Types without instructions of their own (f16; bf16 before AVX512-BF16) compute in f32 and carry
/// its peak. On a device without the number of threads: "cuda/bf16", "cuda/bf16/gemm", "cuda", "cuda/read",
/// "cuda/l2"; its 16-bit types have the product's rate, f32 the higher of multiply-adds and product.
class Ceilings {
 public:
  /// An empty `cache_file` keeps nothing on disk. A file that cannot be read as ceilings is ignored with a
  /// warning and written anew.
  Ceilings(PeakProbe& probe, std::string cache_file);

  double fma_gflops(DType dtype, int threads);
  std::optional<double> gemm_gflops(DType dtype, int threads);
  double gbytes_per_s(int threads, const std::string& level);  ///< level: one of the probe's
  /// Measures again and keeps the higher reading of each: disturbances only ever lower a ceiling.
  void remeasure_compute(DType dtype, int threads);
  void remeasure_bandwidth(int threads);
  /// Measures everything for `attnbench roofline`, whether cached or not.
  void measure_all(const std::vector<DType>& dtypes, int threads);

  const Roofline& roofline() const { return roofline_; }
  PeakProbe& probe() { return probe_; }
  std::vector<std::string> take_warnings() { return std::exchange(warnings_, {}); }

 private:
  double measure_fma(DType dtype, int threads);
  double measure_copy(int threads, const std::string& level);
  std::string compute_key(DType dtype, int threads) const;
  std::string copy_key(int threads, const std::string& level) const;
  void load();
  void store();

  PeakProbe& probe_;
  std::string file_;
  Roofline roofline_;
  std::vector<std::string> warnings_;
};

/// Where ceilings are kept for this machine; empty when neither XDG_CACHE_HOME nor HOME is set.
std::string roofline_cache_file(const std::string& machine_id);
/// The id to keep a device's ceilings under: the CPU's do not depend on which GPU is there, and a GPU's have
/// their own file.
std::string roofline_id(const Environment& environment, const std::string& device);

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
