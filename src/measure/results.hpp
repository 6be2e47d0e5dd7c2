// What a run produces, in memory. src/report writes it; reports/schema/results.schema.json describes the
// file.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/cost.hpp"
#include "methods/method.hpp"
#include "methods/value.hpp"
#include "suite/suite.hpp"

namespace attnbench {

/// ok: measured. skipped: did not fit, was cut, or its device
/// is not here. unsupported: the method says no. failed: an error, or
/// verification failed. unverified: measured values exist but nothing checked them (never timed as a
/// headline). inconsistent: a figure above the machine's measured ceiling; its rates are withheld.
enum class CaseStatus : uint8_t { ok, skipped, unsupported, failed, unverified, inconsistent };
std::string_view name(CaseStatus s);
CaseStatus parse_case_status(std::string_view word);

/// Robust summary of one sampled quantity, seconds.
struct Timing {
  double median_s = 0, ci_low_s = 0, ci_high_s = 0;  ///< bootstrap 95% interval of the median
  double min_s = 0, p5_s = 0, p95_s = 0, mad_s = 0, mean_s = 0;
  int samples = 0;
  int64_t iterations_per_sample = 1;
  bool converged = false;
  std::vector<double> raw_s;  ///< kept on request
  /// How a device was given the work: "graph" (replays of a recorded run), "stream" (launch by launch); empty
  /// on the CPU.
  std::string submission;
};

/// A loop of about a second at the end of a device's measurement, back to back and with warm caches: limits
/// of power and temperature act in it that a short burst does not meet.
struct Sustained {
  double burst_s = 0;      ///< one execution, over the loop's first moments
  double sustained_s = 0;  ///< one execution, over its second half
  double loop_s = 0;
  /// Readings while it ran: sm_clock_first_mhz, sm_clock_last_mhz, sm_clock_max_mhz, memory_clock_mhz,
  /// temperature_c, power_w, power_limit_w, throttle; or `why` there are none.
  std::map<std::string, Value> state;
  bool operator==(const Sustained&) const = default;
  /// Worth a reader's attention: the rates differ by more than 3%.
  bool differs() const {
    return burst_s > 0 && (sustained_s > 1.03 * burst_s || burst_s > 1.03 * sustained_s);
  }
};

/// Output rows that were compared where the reference of all would have taken too long.
struct SampledRows {
  int64_t rows = 0, of = 0;
  bool operator==(const SampledRows&) const = default;
};

struct Verification {
  /// "own shape", "reduced shape: …", "sampled: 512 of 393216 rows at its own shape", or why there was none
  std::string how;
  bool passed = false;
  double tolerance = 0;
  std::map<std::string, double> relative_l2;  ///< per output tensor
  std::string worst;                          ///< "out[3, 17, 5]: 0.12 instead of 0.34" for failures
  std::optional<SampledRows> sampled = {};    ///< none: whole outputs were compared
};

struct Ratio {  ///< paired against the baseline: baseline time / this time (above 1: faster)
  std::string baseline;
  double value = 0, ci_low = 0, ci_high = 0;
  int pairs = 0;
};

struct MemoryBytes {
  int64_t inputs = 0, weights = 0, outputs = 0, workspace_peak = 0, total_peak = 0;
  int64_t rss_peak = 0;  ///< of the process after the case
  /// Device memory that the case took from the device in all, libraries and caches of the allocator included.
  int64_t device_peak = 0;
};

struct Bound {        ///< position against the machine's measured ceilings
  double gflops = 0;  ///< achieved: counted FLOPs / median time
  double gbytes_per_s = 0;
  double intensity = 0;  ///< counted FLOPs / bytes
  std::string bound_by;  ///< "compute" | "memory"
  double percent_of_ceiling = 0;
};

struct StageTime {
  std::string stage;
  double median_s = 0;
  Cost cost;
};

/// A property computed from a case. Scalars and curves by name; `text` for people.
struct AnalysisResult {
  std::string analysis;
  std::map<std::string, double> scalars;
  std::map<std::string, std::vector<double>> series;
  std::map<std::string, std::string> notes;
};

struct CaseResult {
  Case spec;
  std::string id;  ///< stable hash of problem, method, params, dtype, device kind, measuring configuration
  CaseStatus status = CaseStatus::ok;
  std::string reason;                   ///< why not ok; a full sentence
  std::map<std::string, Value> params;  ///< resolved
  std::vector<Decision> decisions;      ///< parameters that were settled while preparing
  std::optional<Verification> verification;
  std::optional<Timing> time;
  std::optional<Sustained> sustained;  ///< devices only
  std::optional<double> prepare_s;
  /// Wall seconds that the harness spent on the case, by phase: open (inputs, preparation), account, verify,
  /// profile, sample (shared with the cases sampled in turns; the one that ends carries it), sustain,
  /// analyze.
  std::map<std::string, double> elapsed_s;
  std::vector<StageTime> stages;
  Cost counted;  ///< by the ledger
  Cost formula;  ///< the card's closed form
  bool formula_matches = false;
  int64_t published_macs = 0;  ///< as the paper counts, one batch element
  int64_t parameters = 0;
  std::optional<MemoryBytes> memory;
  std::optional<Bound> bound;
  std::optional<Ratio> ratio;
  std::vector<AnalysisResult> analyses;
  std::vector<std::string> warnings;
};

struct ClaimResult {
  Claim claim;
  enum class Verdict : uint8_t { holds, exact, outside, not_evaluated } verdict = Verdict::not_evaluated;
  double measured = 0, ci_low = 0, ci_high = 0;
  std::string reason;  ///< for not_evaluated
};
std::string_view name(ClaimResult::Verdict v);

/// What this run ran on. Keys are stable, values plain text or numbers.
struct Environment {
  std::map<std::string, Value> values;  ///< cpu_model, cores, gpu, compiler, flags, git_revision, …
  std::string machine_id;               ///< hash of the non-volatile part
};

/// This machine's measured ceilings.
struct Roofline {
  /// By "cpu/dtype/threads" or "cuda/dtype": the peak; "…/gemm": the library's product.
  std::map<std::string, double> gflops;
  /// By "cpu/threads" or "cuda": copies; "…/read": reads alone; "…/l2", "…/l3": copies that fit that cache.
  std::map<std::string, double> gbytes_per_s;
  std::string measured_at;  ///< ISO 8601 UTC
  bool from_cache = false;
};

inline constexpr int kResultsSchemaVersion = 1;

struct RunResult {
  Suite suite;
  std::string suite_hash;
  Environment environment;
  Roofline roofline;
  std::string started_at, finished_at;  ///< ISO 8601 UTC
  std::vector<CaseResult> cases;
  std::vector<ClaimResult> claims;
  bool interrupted = false;
};

}  // namespace attnbench
