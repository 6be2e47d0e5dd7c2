// `attnbench report` and `attnbench dashboard` as a user calls them: where texts go, what is refused. The
// texts themselves are tested in tests/report/.
#include <nlohmann/json.hpp>

#include "report/results_json.hpp"
#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"
#include "tests/report/sample_history.hpp"

using namespace attnbench;
namespace fs = std::filesystem;
using drive::program;

TEST_CASE("report writes what the name of its output or --format says") {
  const drive::TempFolder folder;
  const std::string results = folder / "r.json";
  drive::write(results, to_json(sample_run()));

  auto r = program({"report", results});
  CHECK(r.code == 0);
  CHECK(r.err.empty());
  CHECK_THAT(r.out, ContainsSubstring("1.449x"));
  r = program({"report", results, "--format", "comment"});
  CHECK(r.out.starts_with("<!-- attnbench:hilo_cpu -->\n"));
  r = program({"report", results, "--json"});
  CHECK(r.out == to_json(sample_run()));

  r = program({"report", results, "-o", folder / "page.html"});
  CHECK(r.code == 0);
  CHECK(r.out.empty());
  CHECK(drive::read(folder / "page.html").starts_with("<!doctype html>"));
  r = program({"report", results, "-o", folder / "r.bmf.json", "-q"});
  CHECK(r.err.empty());
  CHECK(nlohmann::json::parse(drive::read(folder / "r.bmf.json")).contains("hilo"));

  // A folder takes every format of every results file.
  drive::write(folder / "second.json", to_json(sample_run()));
  r = program({"report", results, folder / "second.json", "--format", "junit,md", "-o",
               (folder / "out").string() + "/"});
  CHECK(r.code == 0);
  for (const char* name : {"r.xml", "r.md", "second.xml", "second.md"})
    CHECK(fs::exists(folder / "out" / name));
}

TEST_CASE("report refuses what would lose or mix up something, and writes nothing then") {
  const drive::TempFolder folder;
  const std::string results = folder / "r.json";
  drive::write(results, to_json(sample_run()));
  const auto refused = [&](std::vector<std::string> words, const std::string& why) {
    words.insert(words.begin(), "report");
    const auto r = program(words);
    INFO(r.err);
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, ContainsSubstring(why));
  };
  refused({results, "-o", results}, "is one of the results themselves");
  refused({results, "--format", "json", "-o", folder.path().string()}, "is one of the results themselves");
  refused({results, "-o", folder / "page.htm"}, "tells no format");
  refused({results, "--format", "htlm"}, "did you mean 'html'?");
  refused({results, "--format", "csv,html"}, "cannot share stdout");
  refused({results, results, "-o", folder / "one.html"}, "need a folder");
  refused({results, results, "-o", folder.path().string()}, "would both write");
  refused({results, "-o", folder / "missing/page.html"}, "No such file");
  CHECK(drive::read(results) == to_json(sample_run()));
  drive::write(folder / "broken.json", "{\"format\": 3");
  CHECK(program({"report", folder / "broken.json", "-o", folder / "page.html"}).code != 0);
  CHECK(!fs::exists(folder / "page.html"));
}

TEST_CASE("report --book joins results of many suites and machines, and refuses what it cannot read") {
  const drive::TempFolder folder;
  RunResult first = sample_run(), second = sample_run(), other = sample_run();
  second.environment.values["cpu_model"] = "Other CPU";
  other.suite.name = "a_second_suite";
  drive::write(folder / "1.json", to_json(first));
  drive::write(folder / "2.json", to_json(second));
  drive::write(folder / "3.json", to_json(other));
  auto r = program({"report", folder / "1.json", folder / "2.json", folder / "3.json", "--book",
                    folder / "b.html", "--book", folder / "b.md"});
  INFO(r.err);
  CHECK(r.code == 0);
  CHECK(drive::read(folder / "b.html").starts_with("<!doctype html>"));
  CHECK_THAT(drive::read(folder / "b.md"),
             ContainsSubstring("B: Other CPU") && ContainsSubstring("## a_second_suite"));
  const auto refused = [&](std::vector<std::string> words, int code, const std::string& why) {
    words.insert(words.begin(), "report");
    r = program(words);
    INFO(r.err);
    CHECK(r.code == code);
    CHECK_THAT(r.err, ContainsSubstring(why));
    CHECK(!fs::exists(folder / "no.html"));
  };
  refused({folder / "1.json", "--book", folder / "no.txt"}, 2, "must end in .html or .md");
  refused({folder / "1.json", "--book", folder / "no.html", "-o", folder / "x.md"}, 2, "do not go with it");
  refused({folder / "1.json", "--book", folder / "missing/no.html"}, 2, "No such file");
  refused({folder / "none.json", "--book", folder / "no.html"}, 2, "none.json");
  drive::write(folder / "broken.json", to_json(first).substr(0, 300));
  refused({folder / "1.json", folder / "broken.json", "--book", folder / "no.html"}, 2, "broken.json");
  std::string newer = to_json(first);
  const std::string version = "\"schema_version\":";
  newer.replace(newer.find(version), version.size() + 2, version + "99");
  drive::write(folder / "newer.json", newer);
  refused({folder / "newer.json", "--book", folder / "no.html"}, 2, "schema version 99");
}

TEST_CASE("dashboard draws a history and says what it made") {
  const drive::TempFolder folder;
  fill_history(folder / "h.db", 6, false);
  auto r = program({"dashboard", folder / "h.db", "-o", folder / "site", "--json"});
  CHECK(r.code == 0);
  const auto j = nlohmann::json::parse(r.out);
  CHECK(j["pages"] == 7);
  CHECK(j["points"] == 4 * 6 + 2);
  CHECK(fs::exists(folder / "site" / "index.html"));
  r = program({"dashboard", folder / "h.db", "-o", folder / "site", "--branch", "nowhere"});
  CHECK(r.code == 2);
  CHECK_THAT(r.err, ContainsSubstring("no points of branch 'nowhere'"));
  r = program({"dashboard", folder / "missing.db", "-o", folder / "none"});
  CHECK(r.code != 0);
  CHECK(!fs::exists(folder / "none"));
  drive::write(folder / "mine" / "notes.txt", "x");
  r = program({"dashboard", folder / "h.db", "-o", folder / "mine"});
  CHECK(r.code == 2);
  CHECK(!fs::exists(folder / "mine" / "index.html"));
}
