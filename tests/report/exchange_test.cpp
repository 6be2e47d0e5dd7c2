// The formats of other tools, held against the shape that each tool documents. The shapes are written down
// here in our own words: where a tool reads less strictly, the stricter rule is kept.
#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "report/format.hpp"
#include "report/json_schema.hpp"
#include "report/markdown.hpp"
#include "tests/catch.hpp"
#include "tests/report/junit_shape.hpp"
#include "tests/report/markup.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;
using Json = nlohmann::ordered_json;

namespace {

const std::string kHostile =
    "a \"b\" \\ </script><x y='z'>&amp; ]]> \x1b[31m \x07 \xe2\x80\xae \xd7\xa9\xd7\x9c \xf0\x9f\x9a\x80 "
    "\xff "
    "\xef\xbf\xbe\nnext} 1 | `x` [l](u) -->";

/// Times that a format can show; sample_run() has the extremes of doubles.
RunResult plain_run() {
  RunResult run = sample_run();
  for (CaseResult& c : run.cases)
    if (c.time) *c.time = Timing{0.3, 0.25, 0.375, 0.2, 0.21, 0.4, 0.01, 0.31, 20, 8, true, {}, ""};
  for (CaseResult& c : run.cases) c.counted = {600, 200, 100, 3000, 1000};
  return run;
}

RunResult hostile_run() {
  RunResult run = plain_run();
  run.suite.name = run.suite.title = run.suite_hash = run.started_at = run.environment.machine_id = kHostile;
  run.environment.values["cpu_model"] = kHostile;
  for (CaseResult& c : run.cases) {
    c.spec.name += kHostile;
    c.spec.method = c.id = c.reason = c.spec.device = kHostile;
    c.warnings = {kHostile};
    if (c.ratio) c.ratio->baseline = kHostile;
    if (c.verification) c.verification->worst = kHostile;
  }
  for (ClaimResult& c : run.claims) {
    c.claim.id = c.claim.where = c.claim.published_text = kHostile;
    c.claim.axes = {{"k", Value(kHostile)}};
    if (!c.reason.empty()) c.reason = kHostile;
  }
  return run;
}

/// Figures that no JSON has a word for, in every place.
RunResult broken_run() {
  RunResult run = plain_run();
  const double values[] = {NAN, INFINITY, -INFINITY, 0, 5e-324, 1.7976931348623157e308};
  run.cases.clear();
  for (double v : values)
    for (double w : values) {
      CaseResult c = sample_case_result("c" + std::to_string(run.cases.size()));
      c.time->median_s = v, c.time->ci_low_s = w, c.time->ci_high_s = v;
      c.time->raw_s = {v, w};
      c.ratio->value = v, c.ratio->ci_low = w, c.ratio->ci_high = v;
      c.bound->percent_of_ceiling = v;
      run.cases.push_back(c);
    }
  run.environment.values["load_1min"] = NAN;
  run.environment.values["cpu_mhz_max"] = INFINITY;
  for (ClaimResult& c : run.claims) c.measured = c.ci_low = c.ci_high = NAN;
  return run;
}

std::string write(const char* format, const RunResult& run) { return find_format(format).write(run); }

void require_valid(const char* schema, const std::string& text) {
  const auto problems = validate_json(schema, text);
  INFO((problems.empty() ? text : problems.front() + "\n" + text));
  REQUIRE(problems.empty());
}

// ---- shapes ----

const char* kGoogleBenchmark = R"({
  "type": "object", "required": ["context", "benchmarks"], "additionalProperties": false,
  "properties": {
    "context": {"type": "object",
      "required": ["date", "host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "caches",
                   "load_avg", "library_build_type"],
      "properties": {
        "num_cpus": {"type": "integer"}, "mhz_per_cpu": {"type": "number"}, "cpu_scaling_enabled": {"type": "boolean"},
        "load_avg": {"type": "array", "items": {"type": "number"}},
        "caches": {"type": "array", "items": {"type": "object", "required": ["type", "level", "size", "num_sharing"],
          "properties": {"type": {"enum": ["Data", "Instruction", "Unified"]}, "level": {"type": "integer"},
                         "size": {"type": "integer"}, "num_sharing": {"type": "integer"}}}}}},
    "benchmarks": {"type": "array", "items": {"type": "object",
      "required": ["name", "family_index", "per_family_instance_index", "run_name", "run_type", "repetitions",
                   "repetition_index", "threads", "iterations", "real_time", "cpu_time", "time_unit"],
      "properties": {
        "name": {"type": "string"}, "family_index": {"type": "integer"}, "per_family_instance_index": {"type": "integer"},
        "run_type": {"const": "iteration"}, "repetitions": {"type": "integer", "minimum": 1},
        "repetition_index": {"type": "integer", "minimum": 0}, "threads": {"type": "integer", "minimum": 1},
        "iterations": {"type": "integer", "minimum": 1}, "real_time": {"type": "number"},
        "cpu_time": {"type": "number"}, "time_unit": {"enum": ["ns", "us", "ms", "s"]}, "label": {"type": "string"},
        "FLOPS": {"type": "number"}, "bytes_per_second": {"type": "number"}, "max_bytes_used": {"type": "integer"}}}}}
})";

// A range is what the action's own expression for it takes: ± and a plain number of at least two characters.
const char* kGithub = R"({
  "type": "array", "items": {"type": "object", "required": ["name", "unit", "value"], "additionalProperties": false,
    "properties": {"name": {"type": "string", "minLength": 1}, "unit": {"type": "string", "minLength": 1},
      "value": {"type": "number"}, "range": {"type": "string", "pattern": "^± [0-9]+[.][0-9]+$"},
      "extra": {"type": "string"}}}
})";

const char* kBencher = R"({
  "type": "object", "propertyNames": {"minLength": 1, "maxLength": 1024},
  "additionalProperties": {"type": "object", "minProperties": 1, "propertyNames": {"pattern": "^[a-z0-9-]{1,64}$"},
    "additionalProperties": {"type": "object", "required": ["value"], "additionalProperties": false,
      "properties": {"value": {"type": "number"}, "lower_value": {"type": "number"}, "upper_value": {"type": "number"}}}}
})";

struct Sample {
  std::map<std::string, std::string> labels;
  double value = 0;
};
struct Family {
  std::string type, unit, help;
  std::vector<Sample> samples;
};

/// The text format of OpenMetrics 1.0, strictly: families together and once, metadata first, names, escapes,
/// EOF.
std::map<std::string, Family> parse_openmetrics(const std::string& text) {
  std::map<std::string, Family> families;
  std::string current;
  REQUIRE(text.ends_with("# EOF\n"));
  std::istringstream in(text);
  bool ended = false;
  for (std::string line; std::getline(in, line);) {
    INFO(line);
    REQUIRE(!ended);
    REQUIRE(!line.empty());
    std::smatch m;
    if (line == "# EOF") {
      ended = true;
    } else if (std::regex_match(line, m, std::regex("# (TYPE|UNIT|HELP) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)"))) {
      if (m[2] != current) {
        REQUIRE(!families.contains(m[2]));
        current = m[2];
      }
      Family& f = families[current];
      REQUIRE(f.samples.empty());
      std::string& member = m[1] == "TYPE" ? f.type : m[1] == "UNIT" ? f.unit : f.help;
      REQUIRE(member.empty());
      member = m[3];
      if (m[1] == "UNIT") REQUIRE(current.ends_with("_" + f.unit));
    } else {
      size_t i = line.find('{');
      REQUIRE(i != std::string::npos);
      const std::string name = line.substr(0, i);
      Family& f = families.at(current);
      REQUIRE(name == current + (f.type == "info" ? "_info" : ""));
      Sample s;
      ++i;
      while (line[i] != '}') {
        if (!s.labels.empty()) REQUIRE(line[i++] == ',');
        std::string key, value;
        while (std::isalnum(static_cast<unsigned char>(line[i])) || line[i] == '_') key += line[i++];
        REQUIRE(!key.empty());
        REQUIRE(line[i++] == '=');
        REQUIRE(line[i++] == '"');
        while (line[i] != '"') {
          REQUIRE(static_cast<unsigned char>(line[i]) >= 0x20);
          if (line[i] == '\\') {
            ++i;
            REQUIRE((line[i] == '\\' || line[i] == '"' || line[i] == 'n'));
            value += line[i] == 'n' ? '\n' : line[i];
            ++i;
          } else {
            value += line[i++];
          }
        }
        ++i;
        REQUIRE(s.labels.emplace(key, value).second);
      }
      REQUIRE(line[++i] == ' ');
      const std::string number = line.substr(i + 1);
      REQUIRE(std::regex_match(number, std::regex("NaN|[+-]Inf|-?[0-9]+([.][0-9]+)?(e[+-]?[0-9]+)?")));
      s.value = number == "NaN"           ? NAN
                : number.ends_with("Inf") ? INFINITY
                                          : std::strtod(number.c_str(), nullptr);
      f.samples.push_back(s);
    }
  }
  REQUIRE(ended);
  for (const auto& [name, f] : families) {
    REQUIRE((f.type == "gauge" || f.type == "info" || f.type == "stateset"));
    std::set<std::map<std::string, std::string>> seen;
    for (const Sample& s : f.samples) REQUIRE(seen.insert(s.labels).second);
  }
  return families;
}

}  // namespace

TEST_CASE("a file's name picks the longest ending that fits") {
  CHECK(format_of_file("r.json").id() == "json");
  CHECK(format_of_file("r.gbench.json").id() == "gbench");
  CHECK(format_of_file("r.bmf.json").id() == "bencher");
  CHECK(format_of_file("r.smaller.json").id() == "github-smaller");
  CHECK(format_of_file("r.bigger.json").id() == "github-bigger");
  CHECK(format_of_file("r.comment.md").id() == "comment");
  CHECK(format_of_file("r.md").id() == "markdown");
  CHECK(format_of_file("r.xml").id() == "junit");
  CHECK(format_of_file("r.prom").id() == "openmetrics");
  CHECK(format_of_file("r.html").id() == "html");
}

TEST_CASE("Google Benchmark: an iteration entry a case, or one a sample, in nanoseconds") {
  RunResult run = plain_run();
  std::string text = write("gbench", run);
  require_valid(kGoogleBenchmark, text);
  Json j = Json::parse(text);
  REQUIRE(j["benchmarks"].size() == 2);
  CHECK(j["benchmarks"][0]["name"] == "hilo");
  CHECK(j["benchmarks"][0]["real_time"].get<double>() == Approx(0.3e9));
  CHECK(j["benchmarks"][0]["FLOPS"].get<double>() == Approx(900 / 0.3));
  CHECK(j["benchmarks"][1]["family_index"] == 1);
  CHECK(j["context"]["not_measured"] == "sra (unsupported)");
  CHECK(j["context"]["cpu_model"] == "EPYC");
  run.cases[0].time->raw_s = {0.25, 0.5, 0.125};
  text = write("gbench", run);
  require_valid(kGoogleBenchmark, text);
  j = Json::parse(text);
  REQUIRE(j["benchmarks"].size() == 4);
  for (int i = 0; i < 3; ++i) {
    CHECK(j["benchmarks"][i]["repetitions"] == 3);
    CHECK(j["benchmarks"][i]["repetition_index"] == i);
  }
  CHECK(j["benchmarks"][2]["real_time"].get<double>() == Approx(0.125e9));
}

TEST_CASE("github-action-benchmark: one direction a file, range from the interval") {
  const RunResult run = plain_run();
  const std::string smaller = write("github-smaller", run), bigger = write("github-bigger", run);
  require_valid(kGithub, smaller);
  require_valid(kGithub, bigger);
  const Json s = Json::parse(smaller), b = Json::parse(bigger);
  REQUIRE(s.size() == 4);
  CHECK(s[0]["name"] == "hilo");
  CHECK(s[0]["unit"] == "us");
  CHECK(s[0]["value"].get<double>() == Approx(0.3e6));
  CHECK(s[0]["range"] == "± 62500.000000");
  CHECK(s[1]["name"] == "hilo: peak memory");
  CHECK(!s[1].contains("range"));
  REQUIRE(b.size() == 4);
  CHECK(b[0]["unit"] == "GFLOP/s");
  // 900 FLOPs between 0.25 and 0.375 s.
  CHECK(b[0]["range"] == "± 0.000001");
  CHECK(b[1]["name"] == "hilo: speed-up against sra");
  CHECK(b[1]["range"] == "± 0.050000");
  std::set<std::string> names;
  for (const Json& j : s) CHECK(names.insert(j["name"]).second);
  for (const Json& j : b) CHECK(names.insert(j["name"]).second);  // no name in both directions
}

TEST_CASE("Bencher: values between their bounds") {
  RunResult run = plain_run();
  run.cases[1].spec.name = std::string(5000, 'n');
  const std::string text = write("bencher", run);
  require_valid(kBencher, text);
  const Json j = Json::parse(text);
  REQUIRE(j.size() == 2);
  CHECK(j["hilo"]["latency"]["value"].get<double>() == Approx(0.3e9));
  CHECK(j["hilo"]["latency"]["lower_value"].get<double>() == Approx(0.25e9));
  CHECK(j["hilo"]["latency"]["upper_value"].get<double>() == Approx(0.375e9));
  CHECK(j["hilo"]["flops-per-second"]["lower_value"].get<double>() == Approx(900 / 0.375));
  CHECK(j["hilo"]["peak-memory"]["value"] == 5);
  run.cases[0].ratio->ci_high = 1;  // below the value of 1.449
  for (const RunResult& r : {run, broken_run()})
    for (const Json& bench : Json::parse(write("bencher", r)))
      for (const Json& m : bench) {
        const double v = m["value"];
        if (m.contains("lower_value")) CHECK(m["lower_value"].get<double>() <= v);
        if (m.contains("upper_value")) CHECK(m["upper_value"].get<double>() >= v);
      }
}

TEST_CASE("JUnit: outcomes, counts and reasons") {
  RunResult run = plain_run();
  CaseResult wrong = run.cases[0];
  wrong.spec.name = "wrong", wrong.status = CaseStatus::failed, wrong.time.reset();
  wrong.reason = "out differs from the reference";
  wrong.verification->passed = false, wrong.verification->worst = "out[3]: 1 instead of 2";
  CaseResult crashed = wrong;
  crashed.spec.name = "crashed", crashed.verification.reset(), crashed.reason = "out of memory";
  CaseResult impossible = run.cases[0];
  impossible.spec.name = "impossible", impossible.status = CaseStatus::inconsistent;
  for (const CaseResult& c : {wrong, crashed, impossible}) run.cases.push_back(c);
  ClaimResult outside = run.claims[0];
  outside.verdict = ClaimResult::Verdict::outside, outside.claim.id = "too-slow";
  run.claims.push_back(outside);
  const std::string text = write("junit", run);
  INFO(text);
  require_junit(text);
  CHECK_THAT(text,
             ContainsSubstring("<testsuites name=\"hilo_cpu\" tests=\"9\" failures=\"3\" errors=\"1\""));
  CHECK_THAT(text,
             ContainsSubstring("<testsuite name=\"hilo_cpu.cases\" tests=\"6\" failures=\"2\" errors=\"1\" "
                               "skipped=\"1\" time=\"0.900000000\" timestamp=\"2026-01-01T00:00:00\">"));
  CHECK_THAT(text,
             ContainsSubstring("<testsuite name=\"hilo_cpu.claims\" tests=\"3\" failures=\"1\" errors=\"0\" "
                               "skipped=\"1\""));
  CHECK_THAT(text,
             ContainsSubstring("<testcase name=\"hilo\" classname=\"hilo_cpu.cases\" time=\"0.300000000\">"));
  CHECK_THAT(text, ContainsSubstring("<skipped>method &#39;sra&#39; does not run in bf16</skipped>"));
  CHECK_THAT(text,
             ContainsSubstring("<failure type=\"verification\" message=\"out differs from the reference\">"));
  CHECK_THAT(text, ContainsSubstring("<error type=\"failed\" message=\"out of memory\">"));
  CHECK_THAT(text, ContainsSubstring("<failure type=\"inconsistent\""));
  CHECK_THAT(text, ContainsSubstring("published at least 1.450"));
  CHECK(markup::count(text, "<testcase ") == 9);
  CHECK(markup::count(text, "<skipped>") == 2);
  require_junit(write("junit", RunResult{}));
}

TEST_CASE("OpenMetrics: every family once, base units, escaped labels") {
  const auto families = parse_openmetrics(write("openmetrics", plain_run()));
  const Family& time = families.at("attnbench_case_time_seconds");
  CHECK(time.unit == "seconds");
  REQUIRE(time.samples.size() == 2);
  CHECK(time.samples[0].value == 0.3);
  CHECK(time.samples[0].labels.at("case") == "hilo");
  CHECK(families.at("attnbench_case_memory_peak_bytes").samples[0].value == 5);
  CHECK(families.at("attnbench_case_ceiling_ratio").samples[0].value == Approx(0.645));
  CHECK(families.at("attnbench_run").samples.at(0).labels.at("cpu_model") == "EPYC");
  const Family& status = families.at("attnbench_case_status");
  CHECK(status.samples.size() == 3 * 6);
  double set = 0;
  for (const Sample& s : status.samples) {
    set += s.value;
    if (s.labels.at("case") == "sra")
      CHECK(s.value == (s.labels.at("attnbench_case_status") == "unsupported"));
  }
  CHECK(set == 3);
  REQUIRE(families.at("attnbench_claim_holds").samples.size() == 1);
  CHECK(families.at("attnbench_claim_holds").samples[0].value == 1);
  parse_openmetrics(write("openmetrics", RunResult{}));
  // Line breaks and quotes of a name come back; what has no escape is visible text.
  const auto hostile = parse_openmetrics(write("openmetrics", hostile_run()));
  const std::string name = hostile.at("attnbench_case_time_seconds").samples[0].labels.at("case");
  CHECK_THAT(name, ContainsSubstring("hiloa \"b\" \\ </script>"));
  CHECK_THAT(name, ContainsSubstring("\nnext} 1"));
}

TEST_CASE("figures that JSON cannot say leave no trace in any JSON") {
  const RunResult run = broken_run();
  require_valid(kGoogleBenchmark, write("gbench", run));
  require_valid(kGithub, write("github-smaller", run));
  require_valid(kGithub, write("github-bigger", run));
  require_valid(kBencher, write("bencher", run));
  parse_openmetrics(write("openmetrics", run));
  require_junit(write("junit", run));
  for (const char* id : {"gbench", "github-smaller", "github-bigger", "bencher", "json"}) {
    const std::string text = write(id, run);
    CHECK(Json::accept(text));
    // Parsers that forgive would take these; none may stand outside a string.
    CHECK(!std::regex_search(text, std::regex("[:\\[,] ?-?(nan|NaN|inf|Infinity)")));
  }
}

TEST_CASE("no text of a suite breaks a format") {
  const RunResult run = hostile_run();
  require_valid(kGoogleBenchmark, write("gbench", run));
  require_valid(kGithub, write("github-smaller", run));
  require_valid(kGithub, write("github-bigger", run));
  require_valid(kBencher, write("bencher", run));
  require_junit(write("junit", run));
  for (const char* id : {"gbench", "github-smaller", "github-bigger", "bencher", "openmetrics", "junit"}) {
    const std::string text = write(id, run);
    for (char c : text) REQUIRE((static_cast<unsigned char>(c) >= 0x20 || c == '\n'));
    CHECK(text.find("\xff") == std::string::npos);
    CHECK(text.find("\xe2\x80\xae") == std::string::npos);
  }
}

TEST_CASE("a pull-request comment: outcome first, found again by its marker, within the limit") {
  RunResult run = plain_run();
  std::string text = write("comment", run);
  INFO(text);
  CHECK(text.starts_with(
      "<!-- attnbench:hilo_cpu -->\n### ✅ hilo_cpu: HiLo against others\n\n2 ok, 1 unsupported;"));
  CHECK_THAT(text, ContainsSubstring("**To be looked at**"));
  CHECK_THAT(text, ContainsSubstring("<details><summary>All 3 cases</summary>\n\n| case |"));
  CHECK(markup::count(text, "<details>") == markup::count(text, "</details>"));
  run.claims[0].verdict = ClaimResult::Verdict::outside;
  CHECK_THAT(write("comment", run), ContainsSubstring("### ⚠️ "));
  run.cases[0].status = CaseStatus::failed;
  CHECK_THAT(write("comment", run), ContainsSubstring("### ❌ "));
  for (int i = 0; i < 2000; ++i) run.cases.push_back(run.cases[1]);
  text = write("comment", run);
  CHECK(text.size() < 65536);
  CHECK_THAT(text, ContainsSubstring("did not fit into a comment"));
  CHECK(markup::count(text, "<details>") == markup::count(text, "</details>"));
  CHECK(markdown_marker("a--b-->c d") == "a-_b-__c_d");
  text = write("comment", hostile_run());
  CHECK(text.find("<x") == std::string::npos);
  CHECK(text.find("</script>") == std::string::npos);
  CHECK(text.substr(0, text.find('\n')).find("-->") == text.find('\n') - 3);
}
