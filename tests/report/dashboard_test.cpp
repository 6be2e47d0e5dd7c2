// The dashboard as files: pages are well-formed, linked, complete, replaced and removed; and a large history
// is drawn in time. What a browser makes of them: browser_test.cpp.
#include "report/dashboard.hpp"

#include <chrono>
#include <cstdio>
#include <regex>

#include "history/sqlite.hpp"
#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"
#include "tests/report/markup.hpp"
#include "tests/report/sample_history.hpp"

using namespace attnbench;
namespace fs = std::filesystem;

namespace {

std::vector<fs::path> pages_of(const fs::path& folder) {
  std::vector<fs::path> pages;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".html") pages.push_back(entry.path());
  return pages;
}

void check_pages(const fs::path& folder) {
  for (const fs::path& page : pages_of(folder)) {
    if (page.filename() == "mine.html") continue;
    const std::string text = drive::read(page);
    const auto problems = markup::problems(text);
    INFO(page << (problems.empty() ? "" : ": " + problems.front()));
    REQUIRE(problems.empty());
    CHECK(markup::count(text, "<script") == 1);
    CHECK(text.find("http://") == std::string::npos);
    CHECK(text.find("https://") == std::string::npos);
    static const std::regex link("href=\"([^\"#:]+)\"");
    for (std::sregex_iterator it(text.begin(), text.end(), link), end; it != end; ++it)
      REQUIRE(fs::exists(folder / (*it)[1].str()));
    static const std::regex anchor("href=\"#([^\"]+)\"");
    for (std::sregex_iterator it(text.begin(), text.end(), anchor), end; it != end; ++it)
      REQUIRE(text.find("id=\"" + (*it)[1].str() + "\"") != std::string::npos);
  }
}

std::string page_with(const fs::path& folder, const std::string& prefix) {
  for (const fs::path& p : pages_of(folder))
    if (p.filename().string().starts_with(prefix)) return drive::read(p);
  return "";
}

}  // namespace

TEST_CASE("overview, suites and cases are pages that link each other") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db", site = folder / "site";
  fill_history(file, 120, false);
  const DashboardSummary s = write_dashboard(History(file), site, {});
  CHECK(s.pages == 1 + 2 + 4);
  CHECK(s.suites == 2);
  CHECK(s.cases == 4);
  CHECK(s.points == 4 * 120 + 2);
  CHECK(s.changes == 2);
  check_pages(site);
  const std::string index = drive::read(fs::path(site) / "index.html");
  CHECK_THAT(index, ContainsSubstring("2 suites, 4 cases, 482 measured points"));
  CHECK_THAT(index, ContainsSubstring("data-kind=\"slower\""));
  CHECK_THAT(index, ContainsSubstring("rev1000060"));
  CHECK_THAT(index, ContainsSubstring("R-FPOP"));
  const std::string page = page_with(site, "case-steps-");
  CHECK_THAT(page, ContainsSubstring("+10."));
  CHECK_THAT(page, ContainsSubstring("2026-03-02"));  // run 60
  CHECK_THAT(page, ContainsSubstring("kernel: 6.1 -&gt; 6.2"));
  CHECK(page.find("load_1min") == std::string::npos);  // a reading, no change of the machine
  CHECK(markup::count(page, "class=\"change\"") >= 2);
  CHECK(markup::count(page, "class=\"moved\"") >= 2);
  CHECK_THAT(page, ContainsSubstring("Branch try on machine m1"));
  CHECK_THAT(page, ContainsSubstring("Time of the last 90 runs"));
  CHECK_THAT(page, ContainsSubstring("Time, whole history"));
  CHECK_THAT(page, ContainsSubstring("GFLOP/s"));
  CHECK_THAT(page, ContainsSubstring("Peak memory"));
  // Every recent run is there with its interval, and the failed one of the other case is marked.
  CHECK(markup::count(page, "class=\"whisker\"") >= 90 + 30);
  CHECK_THAT(page_with(site, "case-steady-"), ContainsSubstring("rev1000040: failed"));
}

TEST_CASE("a dashboard replaces itself and nothing else") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db", site = folder / "site";
  fill_history(file, 8, false);
  fs::create_directories(site);
  drive::write(fs::path(site) / "mine.html", "mine");
  CHECK_THROWS_AS(write_dashboard(History(file), site, {}), UsageError);
  CHECK(pages_of(site).size() == 1);
  write_dashboard(History(file), site, {.force = true});
  CHECK(pages_of(site).size() == 1 + 7);
  { History(file, History::Mode::write).remove_runs({.suite = "second"}); }
  const DashboardSummary s = write_dashboard(History(file), site, {});
  CHECK(s.removed == 3);
  CHECK(s.pages == 4);
  CHECK(drive::read(fs::path(site) / "mine.html") == "mine");
  check_pages(fs::path(site));
  // One branch alone.
  CHECK(write_dashboard(History(file), site, {.branch = "try"}).points == 2);
  CHECK_THROWS_AS(write_dashboard(History(file), site, {.branch = "none"}), UsageError);
  CHECK_THROWS_AS(write_dashboard(History(file), fs::path(site) / "mine.html", {}), UsageError);
  { History empty(folder / "empty.db", History::Mode::create); }
  CHECK_THROWS_AS(write_dashboard(History(folder / "empty.db"), folder / "none", {}), UsageError);
}

TEST_CASE("no text of a history becomes markup or a path") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db", site = folder / "site";
  fill_history(file, 70, true);
  write_dashboard(History(file), site, {.title = kAttack});
  check_pages(site);
  CHECK(pages_of(site).size() == 7);
  for (const fs::path& p : pages_of(site)) {
    const std::string text = drive::read(p);
    CHECK(text.find("<img") == std::string::npos);
    CHECK(text.find("\xe2\x80\xae") == std::string::npos);
    CHECK(text.find("\xff") == std::string::npos);
    CHECK_THAT(text, ContainsSubstring("\xf0\x9f\x9a\x80"));
  }
  CHECK(page_file("case", "../../etc/passwd", "x").find('/') == std::string::npos);
  CHECK(page_file("case", "../..", "x").starts_with("case-"));
  CHECK(page_file("case", "a b", "1") != page_file("case", "a b", "2"));
  CHECK(page_file("case", std::string(5000, 'a'), "1").size() < 100);
}

TEST_CASE("ten years of daily runs of 500 cases are drawn in 20 seconds") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db", site = folder / "site";
  { History h(file, History::Mode::create); }
  {
    const sqlite::Connection db(file, sqlite::Connection::Mode::write);
    // Noise of 2% by a multiplicative hash, a step every 1000 runs.
    db.execute(
        "PRAGMA synchronous = OFF; BEGIN; INSERT INTO suites VALUES (1, 'ci', ''); INSERT INTO machines "
        "VALUES (1, 'm1');"
        "INSERT INTO environments VALUES (1, '{}');"
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 499) INSERT INTO cases "
        "SELECT i, 'id-' || i, 'case' || i, 'case' || i, 'dense', 'cpu', 'f32', 'p', '' FROM n;"
        "INSERT INTO series SELECT \"case\", \"case\", 1, 'main', 1 FROM cases;"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3650) INSERT INTO runs "
        "SELECT i, 1, 1, 'main', 'r' || i, 86400 * i, 'h', 1, 500, 'c' || i FROM n;"
        "INSERT INTO points SELECT series, time, run, 'ok', t, t * 0.99, t * 1.01, 1000, 1000, 4096, 'same' "
        "FROM "
        "(SELECT s.series, r.time, r.run, 0.01 * (1 + 0.1 * (r.run / 1000 % 2)) * (0.98 + 0.04 * "
        "((r.run * 2654435761 + s.series * 40503) % 65536) / 65536.0) AS t FROM series s CROSS JOIN runs r) "
        "ORDER BY series, time; COMMIT;");
  }
  const History history(file);
  const auto begin = std::chrono::steady_clock::now();
  const DashboardSummary s = write_dashboard(history, site, {});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  CHECK(s.points == 500 * 3650);
  CHECK(s.pages == 502);
  CHECK(s.changes == 500 * 3);
  std::printf("1.8 M points: dashboard %.2f s, %zu pages, %.0f MB\n", seconds, s.pages,
              static_cast<double>(s.bytes) * 1e-6);
}
