// What goes wrong around a history while CI jobs use it: damage, many writers, a full disk, a user who gives
// up. The programs are real, the results made up; the store itself is tested in tests/history.
#include <nlohmann/json.hpp>

#include "../catch.hpp"
#include "../history/sample_history.hpp"
#include "drive.hpp"
#include "history/history.hpp"
#include "report/results_json.hpp"

using namespace attnbench;
using Json = nlohmann::json;

namespace {

std::string put(const drive::TempFolder& folder, int day, int cases) {
  std::vector<SampleCase> list;
  for (int c = 0; c < cases; ++c) list.push_back({"case" + std::to_string(c), 0.01});
  const auto file = folder / ("r" + std::to_string(day) + ".json");
  drive::write(file, to_json(sample_history_run(Time{86400} * day, list, "rev" + std::to_string(day))));
  return file.string();
}

/// Processes that have `text` in their command line.
int processes_with(const std::string& text) {
  int n = 0;
  for (const auto& entry : drive::fs::directory_iterator("/proc")) {
    const std::string line = drive::read(entry.path() / "cmdline");
    n += line.find(text) != std::string::npos;
  }
  return n;
}

bool within(double seconds, const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

size_t files_in(const drive::fs::path& folder) {
  return static_cast<size_t>(std::distance(drive::fs::directory_iterator(folder), {}));
}

const char* kSuite =
    "suite: tiny\n"
    "defaults: { precision: 0.0001%, max_time: 300ms, threads: 1 }\n"
    "problem: { kind: sequence, heads: 2, head_dim: 32, length: 128 }\n"
    "cases:\n"
    "  - { name: a, method: dense }\n"
    "  - { name: b, method: naive }\n";

}  // namespace

TEST_CASE("a damaged history is refused by every command and left as it is") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string(), run = put(folder, 90, 8);
  for (int day = 1; day <= 40; ++day)
    REQUIRE(drive::program({"history", "add", db, put(folder, day, 8), "--branch", "main"}).code == 0);
  std::string bytes = drive::read(db);
  REQUIRE(bytes.size() > 8 * 4096);
  SECTION("pages") {
    for (size_t i = 4096; i < bytes.size(); i += 64) bytes[i] = static_cast<char>(bytes[i] ^ 0x5a);
  }
  SECTION("cut") { bytes.resize(bytes.size() / 2 + 100); }
  drive::write(db, bytes);
  const std::string pages = (folder / "pages").string();
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"check", run, "--against", db},
           {"check", run, "--against", db, "--allow-empty", "--allow-missing"},
           {"compare", put(folder, 91, 8), run, "--history", db},
           {"history", "add", db, run, "--branch", "main"},
           {"history", "verify", db},
           {"dashboard", db, "-o", pages}}) {
    const drive::Result r = drive::program(command);
    INFO(command[0] << " " << command[1] << ": " << r.out << r.err);
    CHECK(r.code == 2);
    CHECK_THAT(r.err, ContainsSubstring("damaged") || ContainsSubstring("malformed"));
    CHECK(drive::read(db) == bytes);
  }
}

TEST_CASE("jobs that end together all get into one history, while others read it") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string();
  constexpr int kJobs = 12;
  std::vector<std::string> files;
  for (int i = 0; i < kJobs; ++i) files.push_back(put(folder, 10 + i, 30));
  const std::string last = put(folder, 90, 30);
  std::vector<std::unique_ptr<drive::Process>> writers, readers;
  for (int i = 0; i < kJobs; ++i)
    writers.push_back(std::make_unique<drive::Process>(
        drive::command({"history", "add", db, files[static_cast<size_t>(i)], "--branch", "main"}),
        drive::Process::Setup{}));
  // A reader may come before the first writer; then there is nothing to compare with, which it is told to
  // allow.
  for (int i = 0; i < 4; ++i)
    readers.push_back(std::make_unique<drive::Process>(
        drive::command({"check", last, "--against", db, "--allow-empty", "--allow-missing"}),
        drive::Process::Setup{}));
  for (auto& p : writers) {
    const drive::Result r = p->wait();
    INFO(r.out << r.err);
    CHECK(r.code == 0);
  }
  for (auto& p : readers) {
    const drive::Result r = p->wait();
    INFO(r.out << r.err);
    CHECK(r.code == 0);
  }
  CHECK(drive::program({"history", "verify", db}).code == 0);
  CHECK(Json::parse(drive::program({"history", "list", db, "--json"}).out)["runs"].size() == kJobs);
  CHECK(drive::program({"check", last, "--against", db}).code == 0);
}

TEST_CASE(
    "a full disk loses no run that is in the history, and the run that did not fit can be added later") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string();
  for (int day = 1; day <= 3; ++day)
    REQUIRE(drive::program({"history", "add", db, put(folder, day, 40), "--branch", "main"}).code == 0);
  const std::string run = put(folder, 9, 400);
  drive::Process::Setup full;
  SECTION("on the history, at once") { full.max_file_bytes = 4096; }
  SECTION("on the history, in the midst of a run") { full.max_file_bytes = 64 * 1024; }
  drive::Result r = drive::program({"history", "add", db, run, "--branch", "main"}, full);
  INFO(r.out << r.err);
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring(db));
  CHECK(drive::program({"history", "verify", db}).code == 0);
  CHECK(Json::parse(drive::program({"history", "list", db, "--json"}).out)["runs"].size() == 3);
  CHECK(drive::program({"history", "add", db, run, "--branch", "main"}).code == 0);
  CHECK(Json::parse(drive::program({"history", "list", db, "--json"}).out)["runs"].size() == 4);
}

TEST_CASE("a full disk keeps the gate's report and the pages from being half written") {
  const drive::TempFolder folder;
  const std::string db = (folder / "h.db").string(), report = (folder / "report.json").string();
  for (int day = 1; day <= 5; ++day)
    REQUIRE(drive::program({"history", "add", db, put(folder, day, 200), "--branch", "main"}).code == 0);
  const std::string run = put(folder, 9, 200);
  REQUIRE(drive::program({"check", run, "--against", db, "-o", report}).code == 0);
  const std::string before = drive::read(report);
  drive::Process::Setup full;
  // Enough for the memory that readers of a history share: a file of 32 KiB.
  full.max_file_bytes = 33 * 1024;
  REQUIRE(before.size() > 33 * 1024);
  drive::Result r = drive::program({"check", run, "--against", db, "-o", report, "--threshold", "4%"}, full);
  INFO(r.out << r.err);
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring(report));
  CHECK(drive::read(report) == before);
  r = drive::program({"dashboard", db, "-o", (folder / "pages").string()}, full);
  INFO(r.out << r.err);
  CHECK(r.code == 3);
  CHECK_THAT(r.err, ContainsSubstring("pages"));
  CHECK(drive::program({"history", "verify", db}).code == 0);
}

TEST_CASE("calibrate that is interrupted leaves no process, no temporary file and the history as it was") {
  const drive::TempFolder folder;
  drive::write(folder / "s.yaml", kSuite);
  drive::write(folder / "tmp" / "mark", "");
  const std::string db = (folder / "h.db").string(), suite = (folder / "s.yaml").string();
  REQUIRE(drive::program({"history", "add", db, put(folder, 1, 2), "--branch", "main"}).code == 0);
  const std::string before = drive::read(db);
  drive::Process::Setup setup;
  setup.environment = {{"TMPDIR", (folder / "tmp").string()}};
  const int signal = GENERATE(SIGINT, SIGTERM);
  drive::Process p(drive::command({"calibrate", suite, "--runs", "50", "--history", db}), setup);
  // The command itself and the run that it started.
  REQUIRE(drive::wait_until(p, 30, [&] { return processes_with(suite) == 2; }));
  p.signal(signal);
  const drive::Result r = p.wait();
  INFO(r.out << r.err);
  CHECK(r.code == 130);
  CHECK_THAT(r.err, ContainsSubstring("interrupted"));
  CHECK(within(5, [&] { return processes_with(suite) == 0; }));
  CHECK(files_in(folder / "tmp") == 1);
  CHECK(drive::read(db) == before);
}

TEST_CASE("check --confirm that is interrupted leaves no process and writes no report") {
  const drive::TempFolder folder;
  drive::write(folder / "s.yaml", kSuite);
  const std::string run = (folder / "new.json").string(), report = (folder / "report.md").string();
  REQUIRE(drive::program({"run", (folder / "s.yaml").string(), "-o", run}).code == 0);
  drive::Process p(drive::command({"check", run, "--confirm", "--baseline-binary", ATTNBENCH_PROGRAM,
                                   "--threshold", "0.0001%", "-o", report}),
                   {});
  // Itself and a pair of programs that are sampled in turn.
  REQUIRE(drive::wait_until(p, 30, [&] { return processes_with(run) == 3; }));
  p.signal(SIGINT);
  CHECK(p.wait().code == 130);
  CHECK(within(5, [&] { return processes_with(run) == 0; }));
  CHECK_FALSE(drive::fs::exists(report));
}
