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
