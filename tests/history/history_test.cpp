#include "history/history.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>

#include "../catch.hpp"
#include "../cli/drive.hpp"
#include "history/migrations.hpp"
#include "history/sqlite.hpp"
#include "kernels/core/error.hpp"
#include "sample_history.hpp"

using namespace attnbench;

namespace {

AddOptions on(const std::string& branch, const std::string& revision = {}) {
  AddOptions o;
  o.branch = branch;
  o.revision = revision;
  return o;
}

std::string error_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("times are read and written as ISO 8601 UTC") {
  CHECK(time_text(0) == "1970-01-01T00:00:00Z");
  CHECK(parse_time("2026-01-31T12:00:01Z") == 1769860801);
  CHECK(parse_time("2026-01-31") == 1769817600);
  CHECK(time_text(parse_time("2024-02-29T23:59:59Z")) == "2024-02-29T23:59:59Z");
  for (const char* bad :
       {"", "yesterday", "2026-13-01", "2026-01-31T12:00", "2026-01-31x", "2026-01-31T25:00:00Z"})
    CHECK_THROWS_AS(parse_time(bad), UsageError);
}

TEST_CASE("what was added is read back, once, by case, machine, branch and time") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db";
  {
    History h(file, History::Mode::create);
    CHECK(h.add(sample_history_run(2000, {{"a", 0.02}, {"b", 0.5}}, "r2"), on("main")).second);
    CHECK(h.add(sample_history_run(1000, {{"a", 0.01}}, "r1"), on("main")).second);
    CHECK(h.add(sample_history_run(3000, {{"a", 0.03}}, "r3"), on("topic")).second);
    CHECK(h.add(sample_history_run(4000, {{"a", 0.04}}, "r3", "m2"), on("main")).second);
    // The same run again, as when a CI job is started anew.
    const auto again = h.add(sample_history_run(2000, {{"a", 0.02}, {"b", 0.5}}, "r2"), on("main"));
    CHECK_FALSE(again.second);
    CHECK(h.runs().size() == 4);
  }
  const History h(file);
  CHECK(h.schema_version() == History::kSchemaVersion);
  REQUIRE(h.suites().size() == 1);
  CHECK(h.suites()[0].name == "ci");
  CHECK(h.suites()[0].title == "Continuous integration");
  CHECK(h.suites()[0].runs == 4);
  CHECK(h.suites()[0].first == 1000);
  CHECK(h.suites()[0].last == 4000);
  const auto cases = h.cases("ci");
  REQUIRE(cases.size() == 2);
  CHECK(cases[0].id == "id-a");
  CHECK(cases[0].method == "dense");
  CHECK(cases[0].dtype == "f32");
  CHECK(cases[0].params == "impl=auto");
  CHECK(contains(cases[0].problem, "64"));
  CHECK(h.cases("other").empty());

  const auto series = h.series({.case_id = "id-a", .fingerprint = "m1", .branch = "main"});
  REQUIRE(series.size() == 1);
  CHECK(series[0].points == 2);
  const auto points = h.points(series[0].id);
  REQUIRE(points.size() == 2);
  CHECK(points[0].time == 1000);
  CHECK(points[0].revision == "r1");
  CHECK(points[0].median_s == 0.01);
  CHECK(points[1].median_s == 0.02);
  CHECK(points[1].ci_low_s == 0.02 * (1 - 0.002));
  CHECK(points[1].ci_high_s == 0.02 * (1 + 0.002));
  CHECK(points[1].flops == 1000030);
  CHECK(points[1].bytes == 5120);
  CHECK(points[1].memory_peak == 4242);
  CHECK(points[1].verdict.empty());
  CHECK(h.points(series[0].id, 1001).size() == 1);
  CHECK(h.points(series[0].id, 0, 1)[0].time == 2000);
  CHECK(h.points(series[0].id, 0, 0, 1999).size() == 1);

  const auto run = h.runs({.branch = "topic"});
  REQUIRE(run.size() == 1);
  CHECK(run[0].revision == "r3");
  CHECK(run[0].environment.at("cpu_model") == "EPYC");
  CHECK(run[0].environment.count("load_1min") == 0);
  CHECK(h.runs({.since = 3500}).size() == 1);
  CHECK(h.runs({}, 1)[0].time == 4000);
}

TEST_CASE("cases that were not timed are points without a time") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  RunResult run = sample_history_run(1000, {{"a"}});
  run.cases[0].time.reset();
  run.cases[0].status = CaseStatus::failed;
  h.add(run, on("main"));
  const auto points = h.points_of_case("id-a", "m1", "main");
  REQUIRE(points.size() == 1);
  CHECK(points[0].status == CaseStatus::failed);
  CHECK(std::isnan(points[0].median_s));
}

TEST_CASE("a verdict is decided from the points before the run in time, whatever was added first") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  AddOptions o = on("main");
  std::vector<size_t> seen;
  std::vector<bool> calibrated;
  o.verdict = [&](const CaseResult&, const std::vector<HistoryPoint>& before,
                  const std::optional<Calibration>& c) {
    seen.push_back(before.size());
    calibrated.push_back(c.has_value());
    return std::string("same");
  };
  h.add(sample_history_run(3000, {{"a", 0.02}}), o);
  h.set_calibration("id-a", "m1", {0.01, 8, 100, "r1"});
  h.add(sample_history_run(2000, {{"a", 0.02}}), o);
  h.add(sample_history_run(4000, {{"a", 0.02}}), o);
  CHECK(seen == std::vector<size_t>{0, 0, 2});
  CHECK(calibrated == std::vector<bool>{false, true, true});
  CHECK(h.points_of_case("id-a", "m1", "main").back().verdict == "same");
  const auto c = h.calibration("id-a", "m1");
  REQUIRE(c);
  CHECK(c->sigma == 0.01);
  CHECK(c->runs == 8);
  CHECK_FALSE(h.calibration("id-a", "m2"));
}

TEST_CASE("removing runs removes what only they used") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  for (int i = 0; i < 10; ++i) h.add(sample_history_run(1000 + i, {{"a"}, {"b"}}), on("main"));
  h.add(sample_history_run(5000, {{"c"}}, "r9", "m2"), on("topic"));
  CHECK(h.keep_newest(4, {.branch = "main"}) == 6);
  CHECK(h.points_of_case("id-a", "m1", "main").size() == 4);
  CHECK(h.points_of_case("id-a", "m1", "main").front().time == 1006);
  CHECK(h.remove_runs({.branch = "topic"}) == 1);
  CHECK(h.cases().size() == 2);
  CHECK(h.series().size() == 2);
  CHECK(h.remove_runs({.until = 1007}) == 2);
  CHECK(h.runs().size() == 2);
  h.vacuum();
  CHECK(h.check().empty());
  // A removed run may be added again.
  CHECK(h.add(sample_history_run(1000, {{"a"}, {"b"}}), on("main")).second);
}

TEST_CASE("processes that add at the same time lose nothing") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db";
  constexpr int kWriters = 4, kRuns = 15;
  std::vector<pid_t> children;
  for (int w = 0; w < kWriters; ++w) {
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 0;
      try {
        // Each run opens the file anew, the first ones while others make it.
        for (int i = 0; i < kRuns; ++i) {
          History h(file, History::Mode::create);
          if (!h.add(sample_history_run(1000 + 100 * w + i, {{"a"}, {"b"}, {"c"}}), on("main")).second)
            code = 2;
        }
      } catch (const std::exception& e) {
        std::fprintf(stderr, "writer %d: %s\n", w, e.what());
        code = 1;
      }
      _exit(code);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
  const History h(file);
  CHECK(h.runs().size() == kWriters * kRuns);
  CHECK(h.points_of_case("id-b", "m1", "main").size() == kWriters * kRuns);
  CHECK(h.check().empty());
  CHECK(h.cases().size() == 3);
}

TEST_CASE("a history of the first version is read as it is and brought up to date by a writer") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db";
  {
    const sqlite::Connection db(file, sqlite::Connection::Mode::create);
    db.execute(std::string(history_migrations()[0]));
    db.execute("PRAGMA user_version = 1");
    db.execute("PRAGMA application_id = " + std::to_string(History::kApplicationId));
    db.execute(
        "INSERT INTO suites VALUES (1, 'ci', 'CI'); INSERT INTO machines VALUES (1, 'm1');"
        "INSERT INTO cases VALUES (1, 'id-a', 'a', 'a', 'dense', 'cpu', 'f32', 'p', '');"
        "INSERT INTO environments VALUES (1, '{}');"
        "INSERT INTO runs VALUES (1, 1, 1, 'main', 'r1', 500, 'h1', 1, 1, 'x');"
        "INSERT INTO series VALUES (1, 1, 1, 'main', 1);"
        "INSERT INTO points VALUES (1, 500, 1, 'ok', 0.25, 0.2, 0.3, 1, 2, 3);");
  }
  const std::string before = drive::read(file);
  {
    const History h(file);
    CHECK(h.schema_version() == 1);
    CHECK(h.points_of_case("id-a", "m1", "main").at(0).median_s == 0.25);
    CHECK_FALSE(h.calibration("id-a", "m1"));
  }
  CHECK(drive::read(file) == before);
  {
    History h(file, History::Mode::write);
    CHECK(h.schema_version() == History::kSchemaVersion);
    h.add(sample_history_run(1000, {{"a"}}), on("main"));
    h.set_calibration("id-a", "m1", {0.02, 5, 1, "r1"});
  }
  const History h(file);
  CHECK(h.points_of_case("id-a", "m1", "main").size() == 2);
  CHECK(h.points_of_case("id-a", "m1", "main")[0].verdict.empty());
  CHECK(h.check().empty());
}

TEST_CASE("what is no history is refused and left as it is") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db";
  const auto both = [&](const std::string& part) {
    const std::string before = drive::read(file);
    for (const auto mode : {History::Mode::read, History::Mode::write, History::Mode::create}) {
      const std::string e = error_of([&] {
        History h(file, mode);
        if (mode != History::Mode::read) h.add(sample_history_run(1, {{"a"}}), on("main"));
        h.runs();
        h.points_of_case("id-a", "m1", "main");
        for (const std::string& w : h.check()) throw DataError(w);
      });
      INFO(e);
      CHECK(contains(e, part));
      CHECK(contains(e, file));
      CHECK(drive::read(file) == before);
    }
  };
  SECTION("a text") {
    drive::write(
        file,
        "this is a text of more than a hundred characters, which is the size of the header of a file "
        "that SQLite writes; nothing of it is one.\n");
    both("is no history of attnbench");
  }
  SECTION("a short text") {
    drive::write(file, "x");
    both("is no history of attnbench");
  }
  SECTION("another program's database") {
    {
      const sqlite::Connection db(file, sqlite::Connection::Mode::create);
      db.execute("CREATE TABLE bookmarks(url TEXT)");
    }
    both("another program's SQLite file");
  }
  SECTION("a history of a newer program") {
    {
      History h(file, History::Mode::create);
      h.add(sample_history_run(5, {{"a"}}), on("main"));
    }
    {
      const sqlite::Connection db(file, sqlite::Connection::Mode::write);
      db.execute("PRAGMA user_version = 99");
    }
    both("newer attnbench");
  }
  SECTION("damaged pages") {
    {
      History h(file, History::Mode::create);
      for (int i = 0; i < 60; ++i) h.add(sample_history_run(5 + i, {{"a"}, {"b"}, {"c"}, {"d"}}), on("main"));
    }
    std::string bytes = drive::read(file);
    REQUIRE(bytes.size() > 8 * 4096);
    // From the second page on: every table's root is hit, the first page with its schema is whole.
    for (size_t i = 4096; i < bytes.size(); i += 64) bytes[i] = static_cast<char>(bytes[i] ^ 0x5a);
    drive::write(file, bytes);
    both("damaged");
  }
  SECTION("a cut file") {
    {
      History h(file, History::Mode::create);
      for (int i = 0; i < 60; ++i) h.add(sample_history_run(5 + i, {{"a"}, {"b"}, {"c"}, {"d"}}), on("main"));
    }
    const std::string bytes = drive::read(file);
    drive::write(file, bytes.substr(0, bytes.size() / 2 + 100));
    both("damaged");
  }
}

TEST_CASE("missing and empty files say so, and only create makes one") {
  const drive::TempFolder folder;
  CHECK(contains(error_of([&] { History h(folder / "no.db"); }), "there is no history"));
  CHECK(
      contains(error_of([&] { History h(folder / "no.db", History::Mode::write); }), "there is no history"));
  CHECK_FALSE(drive::fs::exists(folder / "no.db"));
  drive::write(folder / "empty.db", "");
  CHECK(contains(error_of([&] { History h(folder / "empty.db"); }), "empty"));
  History h(folder / "empty.db", History::Mode::create);  // as `mktemp` makes it
  CHECK(h.add(sample_history_run(1, {{"a"}}), on("main")).second);
  CHECK(contains(error_of([&] { History x(folder.path().string()); }), "is a folder"));
}

TEST_CASE("a failed addition leaves nothing of the run behind") {
  const drive::TempFolder folder;
  History h(folder / "h.db", History::Mode::create);
  AddOptions o = on("main");
  int calls = 0;
  o.verdict = [&](const auto&, const auto&, const auto&) -> std::string {
    if (++calls == 2) throw Error("broken");
    return "same";
  };
  CHECK_THROWS_AS(h.add(sample_history_run(1, {{"a"}, {"b"}}), o), Error);
  CHECK(h.runs().empty());
  CHECK(h.series().empty());
  CHECK(h.add(sample_history_run(1, {{"a"}, {"b"}}), on("main")).second);
  CHECK_THROWS_AS(h.add(sample_history_run(1, {}), on("main")), DataError);
  CHECK_THROWS_AS(h.add(sample_history_run(1, {{"a"}}), on("")), UsageError);
}
