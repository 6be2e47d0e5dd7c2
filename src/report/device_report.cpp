#include "report/device_report.hpp"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

/// null for what JSON has no word for.
Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json json_of(const Value& v) {
  if (v.is_bool()) return v.as_bool();
  if (v.is_int()) return v.as_int();
  if (v.is_double()) return number(v.as_double());
  return v.str();
}

std::string text_of(const Environment& e, const char* key) {
  const auto it = e.values.find(key);
  return it == e.values.end() ? "" : it->second.str();
}

Json run_of(const std::string& file, const RunResult& run) {
  Json ratios = Json::array(), claims = Json::array();
  for (const CaseResult& c : run.cases) {
    if (!c.time) continue;
    Json j{{"case", c.spec.name},
           {"method", c.spec.method},
           {"device", c.spec.device},
           {"dtype", std::string(name(c.spec.problem.dtype))},
           {"status", std::string(name(c.status))},
           {"median_s", number(c.time->median_s)}};
    if (c.bound) {
      j["gflops"] = number(c.bound->gflops);
      j["gbytes_per_s"] = number(c.bound->gbytes_per_s);
      j["percent_of_ceiling"] = number(c.bound->percent_of_ceiling);
    }
    if (c.sustained) j["sustained_s"] = number(c.sustained->sustained_s);
    if (c.ratio)
      j["ratio"] = {{"baseline", c.ratio->baseline},
                    {"value", number(c.ratio->value)},
                    {"ci_low", number(c.ratio->ci_low)},
                    {"ci_high", number(c.ratio->ci_high)}};
    ratios.push_back(std::move(j));
  }
  for (const ClaimResult& c : run.claims)
    claims.push_back({{"id", c.claim.id},
                      {"published", number(c.claim.published)},
                      {"measured", number(c.measured)},
                      {"verdict", std::string(name(c.verdict))}});
  // The name alone: its folder means nothing on another machine.
  return {{"file", std::filesystem::path(file).filename().string()},
          {"suite", run.suite.name},
          {"suite_hash", run.suite_hash},
          {"started_at", run.started_at},
          {"git_revision", text_of(run.environment, "git_revision")},
          {"gpu", text_of(run.environment, "gpu")},
          {"cases", std::move(ratios)},
          {"claims", std::move(claims)}};
}

}  // namespace

std::string to_json(const DeviceReport& r) {
  Json methods = Json::array();
  int passed = 0, failed = 0, unsupported = 0;
  for (const DeviceReport::Line& l : r.lines) {
    passed += l.passed, failed += l.failed, unsupported += l.unsupported;
    Json j{{"method", l.method},
           {"dtype", l.dtype},
           {"passed", l.passed},
           {"failed", l.failed},
           {"unsupported", l.unsupported},
           {"tolerance", number(l.tolerance)},
           {"worst_relative_l2", number(l.worst_relative_l2)},
           {"failures", l.failures}};
    if (!l.unsupported_reason.empty()) j["unsupported_reason"] = l.unsupported_reason;
    methods.push_back(std::move(j));
  }
  Json values = Json::object();
  for (const auto& [key, v] : r.environment.values) values[key] = json_of(v);
  Json j{{"format", "attnbench-device-report"},
         {"schema_version", kDeviceReportVersion},
         {"written_at", r.written_at},
         {"git_revision", text_of(r.environment, "git_revision")},
         {"device", r.device},
         {"card", r.description},
         {"driver", text_of(r.environment, "gpu_driver")},
         {"machine_id", r.environment.machine_id},
         {"environment", std::move(values)},
         {"passed", passed},
         {"failed", failed},
         {"unsupported", unsupported},
         {"methods", std::move(methods)}};
  if (!r.runs.empty()) j["runs"] = Json::array();
  for (const auto& [file, run] : r.runs) j["runs"].push_back(run_of(file, run));
  return j.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace attnbench
