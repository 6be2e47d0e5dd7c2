// compare, check, history, merge and sample as a user drives them: first run, same code, slower code, faster
// code.
#include <nlohmann/json.hpp>

#include "../catch.hpp"
#include "../history/sample_history.hpp"
#include "drive.hpp"
#include "report/results_json.hpp"
#include "tests/report/junit_shape.hpp"

using namespace attnbench;
using Json = nlohmann::json;

namespace {

std::string put(const drive::TempFolder& folder, const std::string& name, const RunResult& run) {
  drive::write(folder / name, to_json(run));
  return (folder / name).string();
}

/// Code that is twice as slow is confirmed to be slower, with exit status 1, or the gate is unsure, where
/// other work holds the machine: never the same or faster. How often it is sure is tested by a simulated
/// clock (history/trust).
void check_slower_or_unsure(const drive::Result& r) {
  CHECK_THAT(r.out, !ContainsSubstring("same") && !ContainsSubstring("faster"));
  const bool sure = r.out.find("slower (confirmed)") != std::string::npos;
  if (sure) CHECK(r.code == 1);
  if (!sure) CHECK_THAT(r.out, ContainsSubstring("unsure"));
  if (!sure) WARN("unsure, since this machine was too restless: " << r.out << r.err);
}

const char* kSuite =
    "suite: tiny\n"
    "defaults: { precision: 20%, max_time: 60ms, threads: 1, keep_samples: true }\n"
    "problem: { kind: sequence, heads: 2, head_dim: 32, length: 128 }\n"
    "cases:\n"
    "  - { name: a, method: dense }\n"
    "  - { name: b, method: naive }\n"
    "  - { name: c, method: dense, problem: { causal: true } }\n";

}  // namespace

TEST_CASE("the four situations of a gate in CI") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string();
  const auto run = [&](int day, double a, double b) {
    return put(folder, "r" + std::to_string(day) + ".json",
               sample_history_run(86400 * day, {{"a", a}, {"b", b}}, "rev" + std::to_string(day)));
  };
  const std::string first = run(1, 0.01, 0.02);

  // First run: there is no history yet.
  drive::Result r = drive::program({"check", first, "--against", db});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("there is no history"));
  CHECK(drive::program({"check", first, "--against", db, "--allow-empty"}).code == 0);
  r = drive::program({"history", "add", db, first, "--branch", "main"});
  CHECK(r.code == 0);
  r = drive::program({"check", first, "--against", db});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("compared nothing"));
  CHECK(drive::program({"check", first, "--against", db, "--allow-empty"}).code == 0);

  for (int day = 2; day <= 8; ++day)
    CHECK(drive::program({"history", "add", db, run(day, 0.01 + 2e-5 * (day % 3), 0.02), "--branch", "main"})
              .code == 0);

  // Same code.
  r = drive::program({"check", run(20, 0.01003, 0.02), "--against", db});
  CHECK(r.code == 0);
  CHECK_THAT(r.out, ContainsSubstring("2 same"));
  // Slower code: one case.
  const std::string report = (folder / "report.md").string();
  r = drive::program({"check", run(21, 0.0125, 0.02), "--against", db, "-o", report, "--json"});
  CHECK(r.code == 1);
  const Json j = Json::parse(r.out);
  CHECK(j["checks"][0]["answer"] == "regression");
  CHECK(j["checks"][0]["cases"][0]["verdict"] == "slower");
  CHECK(j["checks"][0]["cases"][1]["verdict"] == "same");
  CHECK_THAT(drive::read(report), ContainsSubstring("| a |"));
  CHECK_THAT(drive::read(report), ContainsSubstring("regression"));
  CHECK_THAT(r.err, ContainsSubstring("1 of 2 cases became slower"));
  // The same for tools that read JUnit.
  const std::string junit = (folder / "gate.xml").string();
  CHECK(drive::program({"check", run(21, 0.0125, 0.02), "--against", db, "-o", junit}).code == 1);
  std::string xml = drive::read(junit);
  require_junit(xml);
  CHECK_THAT(xml,
             ContainsSubstring("<testsuite name=\"ci.regressions\" tests=\"2\" failures=\"1\" errors=\"0\""));
  CHECK_THAT(xml, ContainsSubstring("<failure type=\"slower\" message=\"slower: +24."));
  CHECK_THAT(xml, ContainsSubstring("same: "));
  // Faster code passes.
  r = drive::program({"check", run(22, 0.007, 0.02), "--against", db});
  CHECK(r.code == 0);
  CHECK_THAT(r.out, ContainsSubstring("1 faster"));
  // A missing case does not.
  r = drive::program(
      {"check", put(folder, "one.json", sample_history_run(86400 * 23, {{"a", 0.01}})), "--against", db});
  CHECK(r.code == 2);
  CHECK_THAT(r.out, ContainsSubstring("missing"));
  CHECK(drive::program({"check", (folder / "one.json").string(), "--against", db, "--allow-missing"}).code ==
        0);
  // Nor does it in JUnit, where a hostile name is text.
  const std::string odd = put(folder, "odd.json", sample_history_run(86400 * 24, {{"<a> & \"b\"", 0.01}}));
  CHECK(drive::program({"check", odd, "--against", db, "-o", junit}).code == 2);
  xml = drive::read(junit);
  require_junit(xml);
  CHECK(markup::count(xml, "<error type=\"missing\"") == 2);
  CHECK(markup::count(xml, "<error type=\"empty\"") == 1);
  CHECK(markup::count(xml, "<skipped>") == 1);
  CHECK_THAT(xml, ContainsSubstring("errors=\"3\""));
}

TEST_CASE("compare two files") {
  const drive::TempFolder folder;
  const std::string a = put(folder, "a.json", sample_history_run(1, {{"x", 0.01}, {"y", 0.02}, {"z", 1}}));
  const std::string b = put(folder, "b.json", sample_history_run(2, {{"x", 0.013}, {"y", 0.02}, {"w", 1}}));
  drive::Result r = drive::program({"compare", a, b});
  CHECK(r.code == 0);
  CHECK_THAT(r.out, ContainsSubstring("slower"));
  CHECK_THAT(r.out, ContainsSubstring("+30.00%"));
  r = drive::program({"compare", a, b, "--json"});
  const Json j = Json::parse(r.out);
  CHECK(j["cases"].size() == 3);
  CHECK(j["slower"] == 1);
  const std::string other = put(folder, "o.json", sample_history_run(2, {{"q", 0.01}}));
  r = drive::program({"compare", a, other});
  CHECK(r.code == 2);
  CHECK_THAT(r.out, ContainsSubstring("no case in common"));
  r = drive::program({"compare", a, b, "--threshold", "lots"});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("lots"));
}

TEST_CASE("history: list, show, prune, export, and refusals") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string();
  const std::string a = put(folder, "a.json", sample_history_run(86400, {{"x,\"y", 0.01}}, "r1"));
  const std::string b = put(folder, "b.json", sample_history_run(2 * 86400, {{"x,\"y", 0.01}}, "r2"));
  CHECK(drive::program({"history", "add", db, a, b, "--branch", "main"}).code == 0);
  drive::Result r = drive::program({"history", "add", db, a, "--branch", "main", "--json"});
  CHECK(Json::parse(r.out)["added"][0]["new"] == false);
  r = drive::program({"history", "list", db, "--json"});
  CHECK(Json::parse(r.out)["runs"].size() == 2);
  r = drive::program({"history", "show", db, "id-x,\"y", "--json"});
  CHECK(Json::parse(r.out)["series"][0]["points"][1]["verdict"] == "unsure");  // one run before
  r = drive::program({"history", "export", db});
  CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 3);
  CHECK_THAT(r.out, ContainsSubstring(
                        "ci,\"x,\"\"y\",\"id-x,\"\"y\",dense,cpu,f32,m1,main,1970-01-02T00:00:00Z,r1"));
  r = drive::program({"history", "prune", db});
  CHECK(r.code == 2);
  r = drive::program({"history", "prune", db, "--keep", "1", "--json"});
  CHECK(Json::parse(r.out)["removed"] == 1);
  CHECK(drive::program({"history", "verify", db}).code == 0);
  CHECK_THAT(drive::program({"history", "lst", db}).err, ContainsSubstring("did you mean 'list'"));
  CHECK(drive::program({"history", "show", db, "nobody"}).code == 2);
  // A file of somebody else is refused and stays.
  drive::write(folder / "letter.txt", "Dear reader\n");
  r = drive::program({"history", "add", (folder / "letter.txt").string(), a, "--branch", "main"});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("is no history"));
  CHECK(drive::read(folder / "letter.txt") == "Dear reader\n");
  // Damaged results change nothing.
  drive::write(folder / "cut.json", drive::read(a).substr(0, 300));
  CHECK(drive::program({"history", "add", (folder / "new.db").string(), a, (folder / "cut.json").string(),
                        "--branch", "main"})
            .code == 2);
  CHECK_FALSE(drive::fs::exists(folder / "new.db"));
}

TEST_CASE("real programs: shards merge, an injected slowdown is confirmed, identical programs pass") {
  const drive::TempFolder folder;
  drive::write(folder / "s.yaml", kSuite);
  const std::string suite = (folder / "s.yaml").string();
  const auto file = [&](const char* name) { return (folder / name).string(); };
  CHECK(drive::program({"run", suite, "--shard", "1/2", "-o", file("1.json")}).code == 0);
  CHECK(drive::program({"run", suite, "--shard", "2/2", "-o", file("2.json")}).code == 0);
  CHECK(drive::program({"run", suite, "--shard", "2/9", "--dry-run"}).code == 0);
  drive::Result r = drive::program({"run", suite, "--shard", "9/9", "--dry-run"});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("fewer groups"));
  r = drive::program({"merge", file("2.json"), file("1.json"), "-o", file("all.json")});
  CHECK(r.code == 0);
  const RunResult all = run_from_json(drive::read(file("all.json")), "all.json");
  REQUIRE(all.cases.size() == 3);
  CHECK(all.cases[0].spec.name == "a");
  CHECK(all.cases[2].spec.name == "c");
  CHECK(drive::program({"merge", file("1.json")}).code == 2);

  // What is left of a file that was cut.
  const std::string text = drive::read(file("all.json"));
  drive::write(file("cut.json"), text.substr(0, text.rfind("\"id\"") + 40));
  r = drive::program({"merge", "--salvage", file("cut.json"), "-o", file("rest.json")});
  CHECK(r.code == 0);
  CHECK_THAT(r.err, ContainsSubstring("saved"));

  // Without any history: both programs in turn. The same program twice is no regression; one that takes twice
  // the time is. What the time for confirming does not suffice for stays new.
  r = drive::program({"check", file("all.json"), "--confirm", "--baseline-binary", ATTNBENCH_PROGRAM,
                      "--threshold", "20%", "--confirm-time", "3"});
  INFO(r.out << r.err);
  CHECK(r.code != 1);
  if (r.code != 0) CHECK_THAT(r.out, ContainsSubstring("new"));
  CHECK_THAT(r.out, ContainsSubstring("pairs"));
  r = drive::program({"check", file("all.json"), "--confirm", "--baseline-binary", ATTNBENCH_PROGRAM,
                      "--threshold", "20%", "--confirm-time", "5", "--inject-slowdown", "100%"});
  INFO(r.out << r.err);
  check_slower_or_unsure(r);
  // A program that does not know the protocol is told so.
  r = drive::program({"check", file("all.json"), "--confirm", "--baseline-binary", "/bin/false"});
  CHECK(r.code == 2);
  CHECK_THAT(r.out, ContainsSubstring("/bin/false"));
}

TEST_CASE("without the old program suspects are repeated; calibrate fills a history") {
  const drive::TempFolder folder;
  drive::write(folder / "s.yaml", kSuite);
  const std::string suite = (folder / "s.yaml").string(), db = (folder / "h.db").string();
  const auto file = [&](const char* name) { return (folder / name).string(); };
  drive::Result r = drive::program({"calibrate", suite, "--runs", "2", "--history", db, "--json"});
  REQUIRE(r.code == 0);
  CHECK(Json::parse(r.out)["cases"].size() == 3);
  REQUIRE(drive::program({"run", suite, "-o", file("new.json")}).code == 0);
  // The baseline claims half the time: every case is a suspect and stays slower when repeated.
  RunResult before = run_from_json(drive::read(file("new.json")), "new.json");
  before.started_at = "2020-01-01T00:00:00Z";
  for (CaseResult& c : before.cases) {
    c.time->median_s /= 3, c.time->ci_low_s /= 3, c.time->ci_high_s /= 3;
    c.time->raw_s.clear();
  }
  drive::write(file("old.json"), to_json(before));
  r = drive::program({"check", file("new.json"), "--against", file("old.json"), "--confirm"});
  INFO(r.out << r.err);
  check_slower_or_unsure(r);
}
