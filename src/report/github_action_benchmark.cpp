// The custom inputs of github-action-benchmark: an array of {name, unit, value, range, extra}. Its steps know
// one direction a file, so there are two formats: times and memory (smaller is better), rates and speed-ups
// (bigger is better). `range` is "± half the 95% interval" as a plain number in the value's unit, the one
// form that the action can calculate with.
#include <fmt/core.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "report/exchange.hpp"
#include "report/format.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

/// Always with decimals: the action overlooks a range of a single digit. Never an exponent.
std::string range_text(double half) { return fmt::format("± {:.6f}", half); }

void add(Json& list, const std::string& name, const char* unit, double value, double low, double high,
         const std::string& extra) {
  if (!std::isfinite(value)) return;
  Json j{{"name", printable(name)}, {"unit", unit}, {"value", value}};
  if (std::isfinite(low) && std::isfinite(high) && high >= low) j["range"] = range_text((high - low) / 2);
  j["extra"] = printable(extra);
  list.push_back(std::move(j));
}

std::string extra_of(const CaseResult& c) {
  return fmt::format("{}, {}, {}\n{} samples{}", c.spec.method, c.spec.problem.str(), c.spec.device,
                     c.time->samples, c.time->converged ? "" : ", not converged");
}

class SmallerIsBetterFormat final : public Format {
 public:
  std::string id() const override { return "github-smaller"; }
  std::string extension() const override { return ".smaller.json"; }
  std::string summary() const override {
    return "github-action-benchmark, customSmallerIsBetter: times, memory";
  }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    Json list = Json::array();
    for (const CaseResult* c : timed_cases(run)) {
      const Timing& t = *c->time;
      add(list, c->spec.name, "us", t.median_s * 1e6, t.ci_low_s * 1e6, t.ci_high_s * 1e6, extra_of(*c));
      if (c->memory)
        add(list, c->spec.name + ": peak memory", "bytes", static_cast<double>(c->memory->total_peak), NAN,
            NAN, extra_of(*c));
    }
    return json_text(list);
  }
};
ATTNBENCH_FORMAT(SmallerIsBetterFormat);

class BiggerIsBetterFormat final : public Format {
 public:
  std::string id() const override { return "github-bigger"; }
  std::string extension() const override { return ".bigger.json"; }
  std::string summary() const override {
    return "github-action-benchmark, customBiggerIsBetter: rates, speed-ups";
  }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    Json list = Json::array();
    for (const CaseResult* c : timed_cases(run)) {
      const Timing& t = *c->time;
      if (c->counted.flops() > 0)
        add(list, c->spec.name + ": rate", "GFLOP/s", flops_per_second(*c, t.median_s) * 1e-9,
            flops_per_second(*c, t.ci_high_s) * 1e-9, flops_per_second(*c, t.ci_low_s) * 1e-9, extra_of(*c));
      if (c->ratio)
        add(list, c->spec.name + ": speed-up against " + c->ratio->baseline, "x", c->ratio->value,
            c->ratio->ci_low, c->ratio->ci_high, extra_of(*c));
    }
    return json_text(list);
  }
};
ATTNBENCH_FORMAT(BiggerIsBetterFormat);

}  // namespace

}  // namespace attnbench
