// One row a case, flat: stable columns with units in their names, no preamble, quoted as RFC 4180 says.
// New columns come at the end. Absent values are empty fields.
#include <cmath>

#include "report/format.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

std::string number(double d) { return csv_number(d); }
std::string number(int64_t i) { return std::to_string(i); }
std::string word(bool b) { return b ? "true" : "false"; }
/// Extents that the problem does not set are 0 and stay empty.
std::string extent(int64_t i) { return i ? std::to_string(i) : ""; }

template <class Map>
std::string pairs(const Map& m) {
  std::string s;
  for (const auto& [key, value] : m) s += (s.empty() ? "" : ";") + key + "=" + Value(value).str();
  return s;
}

std::string product(const std::vector<int64_t>& v) {
  std::string s;
  for (int64_t e : v) s += (s.empty() ? "" : "x") + std::to_string(e);
  return s;
}

struct Row {
  const RunResult& run;
  const CaseResult& c;
};

struct Column {
  const char* name;
  std::string (*text)(const Row&);
};

#define OF_CASE(expression) [](const Row& r) -> std::string { return expression; }
#define IF(optional, expression) \
  [](const Row& r) -> std::string { return r.c.optional ? expression : std::string(); }

const Column kColumns[] = {
    {"case", OF_CASE(r.c.spec.name)},
    {"base_name", OF_CASE(r.c.spec.base_name)},
    {"id", OF_CASE(r.c.id)},
    {"status", OF_CASE(std::string(name(r.c.status)))},
    {"reason", OF_CASE(r.c.reason)},
    {"method", OF_CASE(r.c.spec.method)},
    {"device", OF_CASE(r.c.spec.device)},
    {"dtype", OF_CASE(std::string(name(r.c.spec.problem.dtype)))},
    {"kind", OF_CASE(std::string(name(r.c.spec.problem.kind)))},
    {"batch", OF_CASE(number(r.c.spec.problem.batch))},
    {"causal", OF_CASE(word(r.c.spec.problem.causal))},
    {"heads", OF_CASE(extent(r.c.spec.problem.heads))},
    {"kv_heads", OF_CASE(extent(r.c.spec.problem.kv_heads))},
    {"length", OF_CASE(extent(r.c.spec.problem.length))},
    {"kv_length", OF_CASE(extent(r.c.spec.problem.kv_length))},
    {"head_dim", OF_CASE(extent(r.c.spec.problem.head_dim))},
    {"channels", OF_CASE(extent(r.c.spec.problem.channels))},
    {"grid", OF_CASE(product(r.c.spec.problem.grid))},
    {"size", OF_CASE(product(r.c.spec.problem.size))},
    {"samples", OF_CASE(extent(r.c.spec.problem.samples))},
    {"seed", OF_CASE(std::to_string(r.c.spec.problem.seed))},
    {"axes", OF_CASE(pairs(r.c.spec.axes))},
    {"params", OF_CASE(pairs(r.c.params.empty() ? r.c.spec.params : r.c.params))},
    {"verified", IF(verification, word(r.c.verification->passed))},
    {"verification", IF(verification, r.c.verification->how)},
    {"relative_l2_max", IF(verification,
                           [](const Verification& v) {
                             double most = 0;
                             for (const auto& [key, e] : v.relative_l2)
                               most = e > most || std::isnan(e) ? e : most;
                             return v.relative_l2.empty() ? std::string() : number(most);
                           }(*r.c.verification))},
    {"relative_l2_tolerance", IF(verification, number(r.c.verification->tolerance))},
    {"time_median_s", IF(time, number(r.c.time->median_s))},
    {"time_ci_low_s", IF(time, number(r.c.time->ci_low_s))},
    {"time_ci_high_s", IF(time, number(r.c.time->ci_high_s))},
    {"time_min_s", IF(time, number(r.c.time->min_s))},
    {"time_p5_s", IF(time, number(r.c.time->p5_s))},
    {"time_p95_s", IF(time, number(r.c.time->p95_s))},
    {"time_mad_s", IF(time, number(r.c.time->mad_s))},
    {"time_mean_s", IF(time, number(r.c.time->mean_s))},
    {"time_samples", IF(time, number(int64_t{r.c.time->samples}))},
    {"time_iterations_per_sample", IF(time, number(r.c.time->iterations_per_sample))},
    {"time_converged", IF(time, word(r.c.time->converged))},
    {"prepare_s", IF(prepare_s, number(*r.c.prepare_s))},
    {"stages_s", OF_CASE([](const std::vector<StageTime>& stages) {
       std::string s;
       for (const StageTime& t : stages) s += (s.empty() ? "" : ";") + t.stage + "=" + number(t.median_s);
       return s;
     }(r.c.stages))},
    {"flops_counted", OF_CASE(number(r.c.counted.flops()))},
    {"flops_counted_matmul", OF_CASE(number(r.c.counted.matmul))},
    {"flops_counted_elementwise", OF_CASE(number(r.c.counted.elementwise))},
    {"flops_counted_special", OF_CASE(number(r.c.counted.special))},
    {"flops_formula", OF_CASE(number(r.c.formula.flops()))},
    {"formula_matches", OF_CASE(word(r.c.formula_matches))},
    {"bytes_counted", OF_CASE(number(r.c.counted.bytes()))},
    {"macs_published", OF_CASE(number(r.c.published_macs))},
    {"parameters", OF_CASE(number(r.c.parameters))},
    {"memory_inputs_bytes", IF(memory, number(r.c.memory->inputs))},
    {"memory_weights_bytes", IF(memory, number(r.c.memory->weights))},
    {"memory_outputs_bytes", IF(memory, number(r.c.memory->outputs))},
    {"memory_workspace_peak_bytes", IF(memory, number(r.c.memory->workspace_peak))},
    {"memory_total_peak_bytes", IF(memory, number(r.c.memory->total_peak))},
    {"memory_rss_peak_bytes", IF(memory, number(r.c.memory->rss_peak))},
    {"achieved_gflops_per_s", IF(bound, number(r.c.bound->gflops))},
    {"achieved_gbytes_per_s", IF(bound, number(r.c.bound->gbytes_per_s))},
    {"intensity_flops_per_byte", IF(bound, number(r.c.bound->intensity))},
    {"bound_by", IF(bound, r.c.bound->bound_by)},
    {"ceiling_percent", IF(bound, number(r.c.bound->percent_of_ceiling))},
    {"baseline", IF(ratio, r.c.ratio->baseline)},
    {"speedup", IF(ratio, number(r.c.ratio->value))},
    {"speedup_ci_low", IF(ratio, number(r.c.ratio->ci_low))},
    {"speedup_ci_high", IF(ratio, number(r.c.ratio->ci_high))},
    {"speedup_pairs", IF(ratio, number(int64_t{r.c.ratio->pairs}))},
    {"analyses", OF_CASE([](const std::vector<AnalysisResult>& all) {
       std::string s;
       for (const AnalysisResult& a : all)
         for (const auto& [key, v] : a.scalars)
           s += (s.empty() ? "" : ";") + a.analysis + "." + key + "=" + number(v);
       return s;
     }(r.c.analyses))},
    {"warnings", OF_CASE([](const std::vector<std::string>& all) {
       std::string s;
       for (const std::string& w : all) s += (s.empty() ? "" : "\n") + w;
       return s;
     }(r.c.warnings))},
    {"suite", OF_CASE(r.run.suite.name)},
    {"suite_hash", OF_CASE(r.run.suite_hash)},
    {"machine_id", OF_CASE(r.run.environment.machine_id)},
    {"started_at", OF_CASE(r.run.started_at)},
};

#undef OF_CASE
#undef IF

class CsvFormat final : public Format {
 public:
  std::string id() const override { return "csv"; }
  std::string extension() const override { return ".csv"; }
  std::string summary() const override { return "one row a case, units in the column names"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    std::string out;
    for (const Column& c : kColumns) out += (out.empty() ? "" : ",") + std::string(c.name);
    out += "\n";
    for (const CaseResult& c : run.cases) {
      bool first = true;
      for (const Column& column : kColumns) {
        out += (first ? "" : ",") + csv_field(column.text({run, c}));
        first = false;
      }
      out += "\n";
    }
    return out;
  }
};
ATTNBENCH_FORMAT(CsvFormat);

}  // namespace

}  // namespace attnbench
