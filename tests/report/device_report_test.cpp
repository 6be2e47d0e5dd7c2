// The report of a device is valid by its schema, and says what it was given.
#include "report/device_report.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "report/json_schema.hpp"
#include "report/schemas.hpp"
#include "tests/catch.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;
using nlohmann::json;

namespace {
DeviceReport sample() {
  DeviceReport r;
  r.written_at = "2026-01-01T00:00:00Z";
  r.device = "cuda";
  r.description = "NVIDIA H100, sm_90";
  r.environment.machine_id = "m1";
  r.environment.values = {{"git_revision", "abc"}, {"gpu_driver", "580.1"}, {"load", NAN}, {"cores", 2}};
  DeviceReport::Line good, bad;
  good.method = bad.method = "dense";
  good.dtype = "bf16", bad.dtype = "f16";
  good.passed = 7, good.unsupported = 2, good.tolerance = 2e-2, good.worst_relative_l2 = 3e-3;
  bad.failed = 1, bad.worst_relative_l2 = NAN, bad.failures = {"odd sizes: o[1]: nan instead of 1"};
  r.lines = {good, bad};
  return r;
}
std::vector<std::string> violations(const DeviceReport& r) {
  return validate_json(schemas().at("device_report"), to_json(r));
}
}  // namespace

TEST_CASE("a device report is valid and counts what it lists") {
  DeviceReport r = sample();
  for (const std::string& v : violations(r)) FAIL_CHECK(v);
  json j = json::parse(to_json(r));
  CHECK(j["passed"] == 7);
  CHECK(j["failed"] == 1);
  CHECK(j["unsupported"] == 2);
  CHECK(j["driver"] == "580.1");
  CHECK(j["git_revision"] == "abc");
  CHECK(j["methods"][1]["worst_relative_l2"].is_null());
  CHECK(j["environment"]["load"].is_null());
  CHECK_FALSE(j.contains("runs"));

  r.runs = {{"/home/somebody/results/run.json", sample_run()}, {"again.json", sample_run()}};
  for (const std::string& v : violations(r)) FAIL_CHECK(v);
  j = json::parse(to_json(r));
  CHECK(j["runs"][0]["file"] == "run.json");  // not where it lay
  CHECK(j["runs"][1]["cases"].size() == 2);   // the third was not timed
  CHECK(j["runs"][0]["cases"][0]["ratio"]["value"] == 1.449);
  CHECK(j["runs"][0]["claims"][0]["verdict"] == "holds");

  r.written_at = "yesterday";
  CHECK_FALSE(violations(r).empty());
}
