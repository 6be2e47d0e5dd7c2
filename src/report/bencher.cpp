// Bencher Metric Format: {benchmark: {measure: {value, lower_value, upper_value}}}, bounds from the 95%
// interval. Measures: latency in nanoseconds, as Bencher's own adapters have it; flops-per-second; speed-up;
// peak-memory in bytes.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "report/exchange.hpp"
#include "report/format.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostNameBytes = 1024;  // of a benchmark's name in Bencher

/// Bencher refuses bounds on the wrong side of the value.
void add(Json& measures, const char* measure, double value, double low, double high) {
  if (!std::isfinite(value)) return;
  Json j{{"value", value}};
  if (std::isfinite(low)) j["lower_value"] = std::min(low, value);
  if (std::isfinite(high)) j["upper_value"] = std::max(high, value);
  measures[measure] = std::move(j);
}

std::string name_of(const CaseResult& c) {
  const std::string s = printable(c.spec.name);
  return s.size() <= kMostNameBytes ? s : cut_to(s, kMostNameBytes / 4 - 20) + " #" + c.id;
}

class BencherFormat final : public Format {
 public:
  std::string id() const override { return "bencher"; }
  std::string extension() const override { return ".bmf.json"; }
  std::string summary() const override { return "Bencher Metric Format, with lower and upper values"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    Json all = Json::object();
    for (const CaseResult* c : timed_cases(run)) {
      const Timing& t = *c->time;
      Json measures = Json::object();
      add(measures, "latency", t.median_s * 1e9, t.ci_low_s * 1e9, t.ci_high_s * 1e9);
      if (c->counted.flops() > 0)
        add(measures, "flops-per-second", flops_per_second(*c, t.median_s), flops_per_second(*c, t.ci_high_s),
            flops_per_second(*c, t.ci_low_s));
      if (c->ratio) add(measures, "speed-up", c->ratio->value, c->ratio->ci_low, c->ratio->ci_high);
      if (c->memory) add(measures, "peak-memory", static_cast<double>(c->memory->total_peak), NAN, NAN);
      all[name_of(*c)] = std::move(measures);
    }
    return json_text(all);
  }
};
ATTNBENCH_FORMAT(BencherFormat);

}  // namespace

}  // namespace attnbench
