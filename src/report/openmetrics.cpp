// OpenMetrics 1.0 text, for Prometheus and what reads it: gauges by case, a state set of the status, an info
// of the machine. Seconds, bytes and ratios as the standard wants its base units; no time stamps, which would
// be those of the scrape.
#include <fmt/core.h>

#include <cmath>
#include <functional>

#include "report/exchange.hpp"
#include "report/format.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

/// \, " and line breaks have escapes in label values; other control characters become visible text.
std::string label_value(const std::string& raw) {
  std::string out;
  std::string piece;
  const auto flush = [&] {
    for (char c : printable(piece)) {
      if (c == '\\' || c == '"') out += '\\';
      out += c;
    }
    piece.clear();
  };
  for (char c : raw) {
    if (c == '\n') {
      flush();
      out += "\\n";
    } else {
      piece += c;
    }
  }
  flush();
  return out;
}

std::string number(double v) {
  if (std::isnan(v)) return "NaN";
  if (std::isinf(v)) return v < 0 ? "-Inf" : "+Inf";
  return Value(v).str();
}

using Labels = std::vector<std::pair<std::string, std::string>>;

std::string label_set(const Labels& labels) {
  std::string out;
  for (const auto& [key, value] : labels)
    out += (out.empty() ? "" : ",") + key + "=\"" + label_value(value) + "\"";
  return "{" + out + "}";
}

std::string head(const std::string& metric, const char* type, const char* unit, const char* help) {
  std::string out = fmt::format("# TYPE {} {}\n", metric, type);
  if (*unit) out += fmt::format("# UNIT {} {}\n", metric, unit);
  return out + fmt::format("# HELP {} {}\n", metric, help);
}

class OpenMetricsFormat final : public Format {
 public:
  std::string id() const override { return "openmetrics"; }
  std::string extension() const override { return ".prom"; }
  std::string summary() const override { return "OpenMetrics text, for Prometheus"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    const auto labels = [&run](const CaseResult& c) {
      return Labels{{"suite", run.suite.name},
                    {"case", c.spec.name},
                    {"case_id", c.id},
                    {"method", c.spec.method},
                    {"device", c.spec.device},
                    {"dtype", std::string(name(c.spec.problem.dtype))},
                    {"machine", run.environment.machine_id}};
    };
    std::string out;
    const auto gauge = [&](const char* metric, const char* unit, const char* help,
                           const std::function<double(const CaseResult&)>& value) {
      std::string samples;
      for (const CaseResult* c : timed_cases(run)) {
        const double v = value(*c);
        if (!std::isnan(v)) samples += fmt::format("{}{} {}\n", metric, label_set(labels(*c)), number(v));
      }
      // A family without samples is allowed and says nothing.
      if (!samples.empty()) out += head(metric, "gauge", unit, help) + samples;
    };
    Labels machine{
        {"machine", run.environment.machine_id}, {"suite", run.suite.name}, {"suite_hash", run.suite_hash}};
    for (const char* key : {"cpu_model", "cores", "gpu", "git_revision", "attnbench_version", "compiler"})
      if (const auto it = run.environment.values.find(key); it != run.environment.values.end())
        machine.emplace_back(key, it->second.str());
    out += head("attnbench_run", "info", "", "The machine and the revision that the figures are of.");
    out += "attnbench_run_info" + label_set(machine) + " 1\n";

    if (!run.cases.empty()) {
      out += head("attnbench_case_status", "stateset", "", "What became of a case.");
      for (const CaseResult& c : run.cases)
        for (CaseStatus s : {CaseStatus::ok, CaseStatus::skipped, CaseStatus::unsupported, CaseStatus::failed,
                             CaseStatus::unverified, CaseStatus::inconsistent}) {
          Labels l = labels(c);
          l.emplace_back("attnbench_case_status", std::string(name(s)));
          out += fmt::format("attnbench_case_status{} {}\n", label_set(l), s == c.status ? 1 : 0);
        }
    }
    using C = const CaseResult&;
    gauge("attnbench_case_time_seconds", "seconds", "Median time of one execution.",
          [](C c) { return c.time->median_s; });
    gauge("attnbench_case_time_low_seconds", "seconds", "Lower end of the 95% interval of the median.",
          [](C c) { return c.time->ci_low_s; });
    gauge("attnbench_case_time_high_seconds", "seconds", "Upper end of the 95% interval of the median.",
          [](C c) { return c.time->ci_high_s; });
    gauge("attnbench_case_flops_per_second", "", "Counted floating-point operations over the median time.",
          [](C c) { return c.counted.flops() > 0 ? flops_per_second(c, c.time->median_s) : NAN; });
    gauge("attnbench_case_ceiling_ratio", "ratio",
          "Share of the machine's measured ceiling that binds the case.",
          [](C c) { return c.bound ? c.bound->percent_of_ceiling / 100 : NAN; });
    gauge("attnbench_case_speedup_ratio", "ratio", "Time of the baseline over time of the case.",
          [](C c) { return c.ratio ? c.ratio->value : NAN; });
    gauge("attnbench_case_speedup_low_ratio", "ratio", "Lower end of its 95% interval.",
          [](C c) { return c.ratio ? c.ratio->ci_low : NAN; });
    gauge("attnbench_case_speedup_high_ratio", "ratio", "Upper end of its 95% interval.",
          [](C c) { return c.ratio ? c.ratio->ci_high : NAN; });
    gauge("attnbench_case_memory_peak_bytes", "bytes", "Exact peak of the allocator.",
          [](C c) { return c.memory ? static_cast<double>(c.memory->total_peak) : NAN; });

    std::string claims;
    for (const ClaimResult& r : run.claims) {
      using V = ClaimResult::Verdict;
      if (r.verdict == V::not_evaluated) continue;
      Labels l{{"suite", run.suite.name}, {"claim", r.claim.id}, {"machine", run.environment.machine_id}};
      for (const auto& [key, value] : r.claim.axes) l[1].second += " " + key + "=" + value.str();
      claims += fmt::format("attnbench_claim_holds{} {}\n", label_set(l), r.verdict == V::outside ? 0 : 1);
    }
    if (!claims.empty())
      out += head("attnbench_claim_holds", "gauge", "",
                  "1 where the measured figure agrees with the published one.") +
             claims;
    return out + "# EOF\n";
  }
};
ATTNBENCH_FORMAT(OpenMetricsFormat);

}  // namespace

}  // namespace attnbench
