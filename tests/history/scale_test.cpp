// Ten years of daily runs of 500 cases: 1.8 million points. All of them are found, and a gate reads few;
// how long either takes is printed (a gate: some milliseconds), not judged: the machine may be busy.
#include <chrono>
#include <cstdio>

#include "../catch.hpp"
#include "../cli/drive.hpp"
#include "history/history.hpp"
#include "history/sqlite.hpp"

using namespace attnbench;

namespace {
double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
}  // namespace

TEST_CASE("ten years of daily runs of 500 cases") {
  const drive::TempFolder folder;
  const std::string file = folder / "h.db";
  { History h(file, History::Mode::create); }
  constexpr int kCases = 500, kDays = 3650;
  {
    const sqlite::Connection db(file, sqlite::Connection::Mode::write);
    db.execute(
        "PRAGMA synchronous = OFF; BEGIN; INSERT INTO suites VALUES (1, 'ci', ''); INSERT INTO machines "
        "VALUES (1, "
        "'m1'); INSERT INTO environments VALUES (1, '{}');"
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 499) INSERT INTO cases "
        "SELECT i, "
        "'id-' || i, 'case' || i, 'case' || i, 'dense', 'cpu', 'f32', 'p', '' FROM n;"
        "INSERT INTO series SELECT \"case\", \"case\", 1, 'main', 1 FROM cases;"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3650) INSERT INTO runs "
        "SELECT i, 1, 1, "
        "'main', 'r' || i, 86400 * i, 'h', 1, 500, 'c' || i FROM n;"
        "INSERT INTO points SELECT s.series, r.time, r.run, 'ok', 0.01 + 1e-5 * (r.run % 7), 0.0099, 0.0101, "
        "1000, "
        "1000, 4096, 'same' FROM series s CROSS JOIN runs r ORDER BY s.series, r.time; COMMIT;");
  }
  auto begin = std::chrono::steady_clock::now();
  const History h(file);
  size_t read = 0;
  for (int c = 0; c < kCases; ++c)
    read += h.points_of_case("id-" + std::to_string(c), "m1", "main", kPointsForVerdict).size();
  const double gate = seconds_since(begin);
  CHECK(read == kCases * kPointsForVerdict);

  begin = std::chrono::steady_clock::now();
  size_t all = 0;
  for (const HistorySeries& s : h.series({.suite = "ci"})) all += h.points(s.id).size();
  const double everything = seconds_since(begin);
  CHECK(all == size_t{kCases} * kDays);

  begin = std::chrono::steady_clock::now();
  { const History writer(file, History::Mode::write); }
  std::printf("1.8 M points: gate reads %.3f s, everything %.2f s, opening to write %.2f s, file %.0f MB\n",
              gate, everything, seconds_since(begin), static_cast<double>(drive::fs::file_size(file)) * 1e-6);
}
