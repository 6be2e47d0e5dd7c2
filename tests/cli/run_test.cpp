// run from the outside: files, exit codes, interruption, resumption, full disks.
#include <nlohmann/json.hpp>
#include <set>

#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::Process;
using drive::program;
using nlohmann::json;

namespace {

/// Several cases of one quick method, each measured apart for about `seconds`.
std::string suite_text(int cases, double seconds) {
  std::string batches;
  for (int i = 1; i <= cases; ++i) batches += (i > 1 ? ", " : "") + std::to_string(i);
  return "suite: small\n"
         "title: One method at several batches\n"
         "defaults: { dtype: f32, devices: [cpu], precision: 0.0001%, max_time: " +
         std::to_string(static_cast<int>(1000 * seconds)) +
         "ms }\n"
         "problem: { kind: image, size: [48, 40], channels: 3 }\n"
         "axes: { problem.batch: [" +
         batches +
         "] }\n"
         "cases:\n"
         "  - { name: freq, method: mfm }\n";
}

/// Ceilings take seconds to measure and are kept per user: every test shares what the first one measured.
Process::Setup in(const drive::TempFolder& folder) { return {.folder = folder.path()}; }

std::map<std::string, json> cases_of(const json& results) {
  std::map<std::string, json> out;
  for (const json& c : results.at("cases")) out[c.at("case").at("name")] = c;
  return out;
}

/// Complete case lines of a journal.
int journaled(const drive::fs::path& p) {
  std::istringstream lines(drive::read(p));
  int n = 0;
  for (std::string line; std::getline(lines, line) && !lines.eof();)
    n += line.find("case_result") != std::string::npos;
  return n;
}

}  // namespace

TEST_CASE("a run prints its table and writes what was asked for") {
  drive::TempFolder folder;
  drive::write(folder / "s u.yaml", suite_text(2, 0.02));  // paths with spaces are paths
  const auto r = program({"run", "s u.yaml", "-o", "x.json", "--format", "csv,md"}, in(folder));
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK_THAT(r.out, ContainsSubstring("freq/"));
  CHECK_THAT(r.err, ContainsSubstring("[1/2] freq"));
  CHECK_THAT(r.err, ContainsSubstring("results: x.json"));
  CHECK(r.err.find('\r') == std::string::npos);  // plain lines where there is no terminal
  const json results = json::parse(drive::read(folder / "x.json"));
  CHECK(results.at("interrupted") == false);
  REQUIRE(results.at("cases").size() == 2);
  for (const json& c : results.at("cases")) CHECK(c.at("status") == "ok");
  CHECK(drive::fs::exists(folder / "x.csv"));
  CHECK(drive::fs::exists(folder / "x.md"));
  CHECK_FALSE(drive::fs::exists(folder / "x.json.journal"));
  CHECK(program({"validate", "x.json", "s u.yaml"}, in(folder)).code == 0);

  SECTION("existing results are not overwritten") {
    const std::string before = drive::read(folder / "x.json");
    const auto again = program({"run", "s u.yaml", "-o", "x.json"}, in(folder));
    CHECK(again.code == 2);
    CHECK_THAT(again.err, ContainsSubstring("'x.json' exists; --force replaces it"));
    CHECK(drive::read(folder / "x.json") == before);
    CHECK(program({"run", "s u.yaml", "-o", "x.json", "--force", "-q"}, in(folder)).code == 0);
    CHECK(drive::read(folder / "x.json") != before);
  }
  SECTION("resuming a complete run measures nothing") {
    const std::string before = drive::read(folder / "x.json");
    const auto again = program({"run", "s u.yaml", "-o", "x.json", "--resume"}, in(folder));
    CHECK(again.code == 0);
    CHECK_THAT(again.err, ContainsSubstring("complete"));
    CHECK(drive::read(folder / "x.json") == before);
    const auto other =
        program({"run", "s u.yaml", "-o", "x.json", "--resume", "--set", "defaults.seed=7"}, in(folder));
    CHECK(other.code == 2);
    CHECK(drive::read(folder / "x.json") == before);
  }
}

TEST_CASE("--json prints the results and keeps stdout clean") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(1, 0.02));
  const auto r = program({"run", "s.yaml", "--json", "--keep-samples"}, in(folder));
  REQUIRE(r.code == 0);
  const json results = json::parse(r.out);
  REQUIRE(results.at("cases").size() == 1);
  // Every sample is kept; how many fit into 20 ms is the machine's affair.
  const json& time = results.at("cases").at(0).at("time");
  CHECK(time.at("samples").get<size_t>() >= 1);
  CHECK(time.at("raw_s").size() == time.at("samples").get<size_t>());
  // Without -o the results have a place of their own.
  int files = 0;
  for (const auto& e : drive::fs::directory_iterator(folder / "results"))
    files += e.path().extension() == ".json";
  CHECK(files == 1);
  const auto quiet = program({"run", "s.yaml", "--quiet"}, in(folder));
  CHECK(quiet.err.empty());
}

TEST_CASE("everything is checked before the first measurement") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(2, 0.02));
  drive::write(folder / "broken.yaml", "suite: [\n");
  drive::write(
      folder / "wrong.yaml",
      "suite: w\nproblm: {}\ncases:\n  - { name: a, method: desne }\n  - { name: a, method: mfm }\n");
  const auto refused = [&](std::vector<std::string> words, std::vector<std::string> messages) {
    words.insert(words.begin(), "run");
    const auto r = program(words, in(folder));
    CAPTURE(words, r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    for (const std::string& m : messages) CHECK_THAT(r.err, ContainsSubstring(m));
    CHECK(r.err.find("[1/") == std::string::npos);
  };
  refused({"none.yaml"}, {"there is no suite file 'none.yaml'"});
  refused({"."}, {"is a folder"});
  refused({"broken.yaml"}, {"broken.yaml:"});
  refused({"wrong.yaml"}, {"wrong.yaml:2:1", "did you mean 'problem'?",
                           "wrong.yaml:4:", "did you mean 'dense'?", "wrong.yaml:5:"});
  refused({"s.yaml", "wrong.yaml", "none.yaml"}, {"wrong.yaml:2:1", "none.yaml"});
  refused({"s.yaml", "--set", "problem.bacth=2"}, {"did you mean 'batch'?"});
  refused({"s.yaml", "--set", "problem.size=[0, 4]"}, {"size"});
  refused({"s.yaml", "--set", "problem.size=[9223372036854775807, 9223372036854775807]"}, {"s.yaml"});
  refused({"s.yaml", "--filter", "nothing*"}, {"nothing*"});
  refused({"s.yaml", "-o", "no/such/x.json"}, {"no/such"});
  refused({"s.yaml", "-o", "x.csv"}, {"results are JSON"});
  refused({"s.yaml", "s.yaml", "-o", "x.json"}, {"several suites need a folder"});
  refused({"s.yaml", "s.yaml", "-o", "out/"}, {"would both write"});
  refused({"s.yaml", "--format", "cvs"}, {"did you mean 'csv'?"});
  refused({"s.yaml", "--resume", "--force"}, {"contradict"});
  refused({"s.yaml", "--device", "gpu"}, {"unknown device 'gpu'"});
  CHECK_FALSE(drive::fs::exists(folder / "results"));
  CHECK_FALSE(drive::fs::exists(folder / "out"));
}

TEST_CASE("a dry run lists the cases with what they need and measures nothing") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(3, 0.02));
  const auto r = program({"run", "s.yaml", "--dry-run", "--json"}, in(folder));
  REQUIRE(r.code == 0);
  const json cases = json::parse(r.out).at("suites").at(0).at("cases");
  REQUIRE(cases.size() == 3);
  // FLOPs grow with the batch exactly.
  const auto flops = [&](size_t i) { return cases.at(i).at("flops_formula").get<int64_t>(); };
  CHECK(flops(0) > 0);
  CHECK(flops(2) == 3 * flops(0));
  CHECK(cases.at(0).at("memory").at("total").get<int64_t>() > 0);
  CHECK_FALSE(drive::fs::exists(folder / "results"));
}

TEST_CASE("a claim that does not hold makes the answer no") {
  drive::TempFolder folder;
  const std::string text =
      suite_text(1, 0.02) +
      "claims:\n  - { id: c, ratio: flops(freq), published: 1, tolerance: 1%, where: nowhere }\n";
  drive::write(folder / "s.yaml", text);
  const auto r = program({"run", "s.yaml", "-o", "x.json", "-q"}, in(folder));
  CHECK(r.code == 1);
  CHECK(json::parse(drive::read(folder / "x.json")).at("claims").at(0).at("verdict") == "outside");
}

TEST_CASE("the first SIGINT keeps what was measured, and --resume goes on") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(8, 0.3));
  const auto journal = folder / "x.json.journal";
  json first;
  {
    Process p(drive::command({"run", "s.yaml", "-o", "x.json"}), in(folder));
    REQUIRE(drive::wait_until(p, 60, [&] { return journaled(journal) >= 2; }));
    p.signal(SIGINT);
    const auto r = p.wait();
    CAPTURE(r.err);
    CHECK(r.code == 130);
    CHECK_THAT(r.err, ContainsSubstring("interrupted"));
    first = json::parse(drive::read(folder / "x.json"));
  }
  CHECK(first.at("interrupted") == true);
  CHECK(program({"validate", "x.json"}, in(folder)).code == 0);
  std::set<std::string> kept;
  for (const auto& [name, c] : cases_of(first))
    if (c.at("status") == "ok") kept.insert(name);
  CHECK(kept.size() >= 2);
  CHECK(kept.size() < 8);

  const auto r = program({"run", "s.yaml", "-o", "x.json", "--resume"}, in(folder));
  CAPTURE(r.err);
  CHECK(r.code == 0);
  const json last = json::parse(drive::read(folder / "x.json"));
  CHECK(last.at("interrupted") == false);
  CHECK(last.at("cases").size() == 8);
  CHECK_FALSE(drive::fs::exists(journal));
  const auto before = cases_of(first), after = cases_of(last);
  for (const auto& [name, c] : after) CHECK(c.at("status") == "ok");
  // A case that had been measured kept its figures to the last digit: it did not run again.
  for (const std::string& name : kept) CHECK(after.at(name).at("time") == before.at(name).at("time"));
}

TEST_CASE("kill -9 loses at most the case in flight") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(6, 0.2));
  const auto journal = folder / "x.json.journal";
  {
    Process p(drive::command({"run", "s.yaml", "-o", "x.json"}), in(folder));
    REQUIRE(drive::wait_until(p, 60, [&] { return journaled(journal) >= 2; }));
    p.signal(SIGKILL);
    CHECK(p.wait().code == 128 + SIGKILL);
  }
  CHECK_FALSE(drive::fs::exists(folder / "x.json"));
  std::map<std::string, json> measured;
  std::istringstream lines(drive::read(journal));
  for (std::string line; std::getline(lines, line);) {
    const json j = json::parse(line, nullptr, false);
    if (!j.is_discarded() && j.contains("case_result"))
      measured[j.at("case_result").at("case").at("name")] = j.at("case_result").at("time");
  }
  REQUIRE(measured.size() >= 2);

  // A run that is not told to resume does not throw the kept cases away.
  CHECK(program({"run", "s.yaml", "-o", "x.json"}, in(folder)).code == 2);
  const auto r = program({"run", "s.yaml", "-o", "x.json", "--resume"}, in(folder));
  CAPTURE(r.err);
  CHECK(r.code == 0);
  const auto after = cases_of(json::parse(drive::read(folder / "x.json")));
  CHECK(after.size() == 6);
  for (const auto& [name, time] : measured) CHECK(after.at(name).at("time") == time);
  for (const auto& [name, c] : after) CHECK(c.at("status") == "ok");
}

TEST_CASE("a full disk is an error that loses nothing") {
  drive::TempFolder folder;
  drive::write(folder / "s.yaml", suite_text(2, 0.02));
  REQUIRE(program({"run", "s.yaml", "-o", "whole.json", "-q"}, in(folder)).code == 0);
  const auto size = static_cast<long>(drive::fs::file_size(folder / "whole.json"));

  SECTION("on the results file: the journal stays and is enough") {
    Process::Setup setup = in(folder);
    // The journal holds less than the results: no environment, no suite.
    setup.max_file_bytes = size - 1024;
    const auto r = program({"run", "s.yaml", "-o", "x.json"}, setup);
    CAPTURE(r.err);
    CHECK(r.code == 3);
    CHECK_THAT(r.err, ContainsSubstring("x.json"));
    CHECK_THAT(r.err, ContainsSubstring("--resume"));
    CHECK_FALSE(drive::fs::exists(folder / "x.json"));
    REQUIRE(journaled(folder / "x.json.journal") == 2);
    const auto again = program({"run", "s.yaml", "-o", "x.json", "--resume"}, in(folder));
    CHECK(again.code == 0);
    CHECK_THAT(again.err, ContainsSubstring("going on after 2 of 2 cases"));
    CHECK(json::parse(drive::read(folder / "x.json")).at("cases").size() == 2);
  }
  SECTION("on the journal: the run ends at once") {
    Process::Setup setup = in(folder);
    setup.max_file_bytes = 1024;
    const auto r = program({"run", "s.yaml", "-o", "x.json"}, setup);
    CAPTURE(r.err);
    CHECK(r.code == 3);
    CHECK_THAT(r.err, ContainsSubstring("x.json.journal"));
    CHECK_FALSE(drive::fs::exists(folder / "x.json"));
  }
}

TEST_CASE("validate tells suites and results by their content and prints every error") {
  drive::TempFolder folder;
  drive::write(folder / "good.yaml", suite_text(2, 0.02));
  drive::write(folder / "bad.yaml", "suite: x\nfoo: 1\nbar: 2\n");
  drive::write(folder / "bad.json", "{\"format\": \"attnbench-results\", \"schema_version\": 1}");
  drive::write(folder / "cut.json", "{\"format\": ");
  CHECK(program({"validate", "good.yaml"}, in(folder)).code == 0);
  const auto r =
      program({"validate", "good.yaml", "bad.yaml", "bad.json", "cut.json", "none.json"}, in(folder));
  CHECK(r.code == 2);
  for (const char* m :
       {"bad.yaml:2:1", "bad.yaml:3:1", "bad.json", "cut.json", "there is no file 'none.json'"})
    CHECK_THAT(r.err, ContainsSubstring(m));
  const auto j = program({"validate", "--json", "good.yaml", "bad.yaml"}, in(folder));
  CHECK(j.code == 2);
  CHECK(j.err.empty());
  const json files = json::parse(j.out).at("files");
  CHECK(files.at(0).at("valid") == true);
  CHECK(files.at(1).at("valid") == false);
  CHECK(files.at(1).at("errors").size() >= 2);
}
