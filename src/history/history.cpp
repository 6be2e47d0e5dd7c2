#include "history/history.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "history/migrations.hpp"
#include "history/sqlite.hpp"
#include "kernels/core/error.hpp"
#include "measure/case_id.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;
using sqlite::Connection;
using sqlite::Statement;
using sqlite::Transaction;

std::string shown(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace); }

/// What a file says of itself, before SQLite touches it: opening a database for writing may already change
/// it.
struct Head {
  bool exists = false, empty = true, sqlite = false;
  int64_t application_id = 0, user_version = 0;
};

Head head_of(const std::string& path) {
  Head h;
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return h;
  h.exists = true;
  if (S_ISDIR(info.st_mode)) throw DataError("'" + path + "' is a folder, not a history");
  std::ifstream in(path, std::ios::binary);
  if (!in) throw DataError("cannot read the history '" + path + "'");
  char bytes[100];
  in.read(bytes, sizeof bytes);
  const auto n = in.gcount();
  h.empty = n == 0;
  // "SQLite format 3\0"; user version at byte 60, application id at byte 68, big-endian
  // (sqlite.org/fileformat2).
  h.sqlite = n == 100 && std::string_view(bytes, 16) == std::string_view("SQLite format 3\0", 16);
  const auto big_endian = [&bytes](int at) {
    uint32_t v = 0;
    for (int i = 0; i < 4; ++i) v = v << 8 | static_cast<unsigned char>(bytes[at + i]);
    return static_cast<int64_t>(v);
  };
  if (h.sqlite) h.user_version = big_endian(60), h.application_id = big_endian(68);
  return h;
}

std::string problem_text(const Case& c) { return c.problem.str(); }

std::string params_text(const std::map<std::string, Value>& params) {
  std::string s;
  for (const auto& [key, value] : params) s += (s.empty() ? "" : ", ") + key + "=" + value.str();
  return s;
}

}  // namespace

std::string time_text(Time t) {
  const std::time_t s = t;
  std::tm utc{};
  if (!gmtime_r(&s, &utc)) return std::to_string(t);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

Time parse_time(const std::string& text) {
  std::tm utc{};
  int n = 0, year = 0, month = 0;
  const auto whole = [&] { return n == static_cast<int>(text.size()); };
  bool ok = std::sscanf(text.c_str(), "%4d-%2d-%2d%n", &year, &month, &utc.tm_mday, &n) == 3 && whole();
  if (!ok) {
    n = 0;
    ok = std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2dZ%n", &year, &month, &utc.tm_mday, &utc.tm_hour,
                     &utc.tm_min, &utc.tm_sec, &n) == 6 &&
         whole();
  }
  if (!ok || month < 1 || month > 12 || utc.tm_mday < 1 || utc.tm_mday > 31 || utc.tm_hour > 23 ||
      utc.tm_min > 59 || utc.tm_sec > 60)
    throw UsageError("'" + text + "' is no time; 2026-01-31 or 2026-01-31T12:00:00Z is wanted");
  utc.tm_year = year - 1900;
  utc.tm_mon = month - 1;
  return timegm(&utc);
}

struct History::Impl {
  Impl(const std::string& path, Mode mode)
      : db(path, mode == Mode::read    ? Connection::Mode::read
                 : mode == Mode::write ? Connection::Mode::write
                                       : Connection::Mode::create) {}

  /// Row id of `key` in a table of names, made when it is missing.
  int64_t key_of(const char* select, const char* insert, const std::string& key) {
    Statement s = db.prepare(select);
    s.bind(key);
    if (s.row()) return s.integer(0);
    db.prepare(insert).bind(key).run();
    return db.last_row();
  }

  int version() const { return static_cast<int>(db.pragma("user_version")); }

  void migrate() {
    if (version() == kSchemaVersion) return;
    {
      Transaction t(db);
      for (int v = version(); v < kSchemaVersion; ++v) db.execute(std::string(history_migrations()[v]));
      db.execute(fmt::format("PRAGMA application_id = {}", kApplicationId));
      db.execute(fmt::format("PRAGMA user_version = {}", kSchemaVersion));
      t.commit();
    }
    // Readers go on while a writer adds a run. The switch needs the file for itself for a moment; without it
    // the file works as well, with readers waiting.
    for (int i = 0; i < 50; ++i) {
      Statement s = db.prepare("PRAGMA journal_mode = WAL");
      try {
        if (s.row() && s.text(0) == "wal") return;
      } catch (const Error&) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  /// The statement that selects points, with columns in the order of read_point.
  std::string point_columns() const {
    return std::string(
               "p.run, p.time, r.revision, p.status, p.median, p.ci_low, p.ci_high, p.flops, p.bytes, ") +
           "p.memory_peak, " + (version_ >= 2 ? "p.verdict" : "''");
  }
  static HistoryPoint read_point(const Statement& s, const std::string& path) {
    HistoryPoint p;
    p.run = s.integer(0);
    p.time = s.integer(1);
    p.revision = s.text(2);
    try {
      p.status = parse_case_status(s.text(3));
    } catch (const UsageError& e) {
      throw DataError("the history '" + path + "' is damaged: run " + std::to_string(p.run) + ": " +
                      e.what());
    }
    p.median_s = s.real(4), p.ci_low_s = s.real(5), p.ci_high_s = s.real(6);
    p.flops = s.integer(7), p.bytes = s.integer(8), p.memory_peak = s.integer(9);
    p.verdict = s.text(10);
    return p;
  }

  Connection db;
  int version_ = 0;
};

History::History(const std::string& path, Mode mode) {
  const Head head = head_of(path);
  if (!head.exists && mode != Mode::create)
    throw DataError("there is no history '" + path + "'; `attnbench history add` makes one");
  if (head.exists && head.empty && mode == Mode::read)
    throw DataError("the history '" + path + "' is empty: nothing was added to it yet");
  if (head.exists && !head.empty) {
    if (!head.sqlite || head.application_id != kApplicationId)
      throw DataError("'" + path + "' is no history of attnbench" +
                      (head.sqlite ? " but another program's SQLite file" : "") + "; it was left as it is");
    if (head.user_version > kSchemaVersion)
      throw UsageError(fmt::format(
          "the history '{}' has schema version {}, written by a newer attnbench; this program reads up to {}",
          path, head.user_version, kSchemaVersion));
  }
  impl_ = std::make_unique<Impl>(path, mode);
  if (mode != Mode::read) {
    impl_->db.execute("PRAGMA foreign_keys = ON");
    impl_->db.execute("PRAGMA synchronous = FULL");  // a run that was added survives a power cut
    if (!head.empty) {
      // A damaged file is not written to: the damage would spread into pages that could still be saved.
      Statement s = impl_->db.prepare("PRAGMA quick_check(1)");
      if (s.row() && s.text(0) != "ok") impl_->db.fail(11 /* SQLITE_CORRUPT */, "cannot use");
    }
    impl_->migrate();
  }
  impl_->version_ = impl_->version();
  if (impl_->version_ < 1)
    throw DataError("the history '" + path + "' is empty: nothing was added to it yet");
}

History::~History() = default;
const std::string& History::path() const { return impl_->db.path(); }
int History::schema_version() const { return impl_->version_; }

std::vector<HistorySuite> History::suites() const {
  Statement s = impl_->db.prepare(
      "SELECT s.name, s.title, count(*), min(r.time), max(r.time) FROM suites s JOIN runs r USING (suite) "
      "GROUP BY s.suite ORDER BY s.name");
  std::vector<HistorySuite> out;
  while (s.row()) out.push_back({s.text(0), s.text(1), s.integer(2), s.integer(3), s.integer(4)});
  return out;
}

std::vector<HistoryCase> History::cases(const std::string& suite) const {
  Statement s = impl_->db.prepare(
      "SELECT c.id, c.name, c.base_name, c.method, c.device, c.dtype, c.problem, c.params FROM cases c "
      "WHERE ?1 = '' OR c.\"case\" IN (SELECT \"case\" FROM series JOIN suites USING (suite) WHERE "
      "suites.name = ?1) ORDER BY c.name, c.id");
  s.bind(suite);
  std::vector<HistoryCase> out;
  while (s.row())
    out.push_back({s.text(0), s.text(1), s.text(2), s.text(3), s.text(4), s.text(5), s.text(6), s.text(7)});
  return out;
}

std::vector<HistorySeries> History::series(const HistoryQuery& q) const {
  Statement s = impl_->db.prepare(
      "SELECT x.series, s.name, c.id, m.fingerprint, x.branch, "
      "(SELECT count(*) FROM points p WHERE p.series = x.series AND p.time BETWEEN ?5 AND ?6), "
      "(SELECT min(p.time) FROM points p WHERE p.series = x.series), "
      "(SELECT max(p.time) FROM points p WHERE p.series = x.series) "
      "FROM series x JOIN suites s USING (suite) JOIN cases c USING (\"case\") JOIN machines m USING "
      "(machine) "
      "WHERE (?1 = '' OR s.name = ?1) AND (?2 = '' OR c.id = ?2) AND (?3 = '' OR m.fingerprint = ?3) AND "
      "(?4 = '' OR x.branch = ?4) ORDER BY s.name, c.name, c.id, m.fingerprint, x.branch");
  s.bind(q.suite).bind(q.case_id).bind(q.fingerprint).bind(q.branch).bind(q.since).bind(q.until);
  std::vector<HistorySeries> out;
  while (s.row()) {
    HistorySeries h{s.integer(0), s.text(1),    s.text(2),    s.text(3),
                    s.text(4),    s.integer(5), s.integer(6), s.integer(7)};
    if (h.points > 0) out.push_back(std::move(h));
  }
  return out;
}

std::vector<HistoryPoint> History::points(int64_t series, Time since, size_t newest, Time until) const {
  Statement s = impl_->db.prepare(
      "SELECT " + impl_->point_columns() +
      " FROM points p JOIN runs r USING (run) WHERE p.series = ? AND p.time BETWEEN ? AND ? "
      "ORDER BY p.time DESC, p.run DESC LIMIT ?");
  s.bind(series).bind(since).bind(until).bind(newest ? static_cast<int64_t>(newest) : int64_t{-1});
  std::vector<HistoryPoint> out;
  while (s.row()) out.push_back(Impl::read_point(s, path()));
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<HistoryPoint> History::points_of_case(const std::string& case_id, const std::string& fingerprint,
                                                  const std::string& branch, size_t newest,
                                                  Time until) const {
  Statement s = impl_->db.prepare(
      "SELECT x.series FROM series x JOIN cases c USING (\"case\") JOIN machines m USING (machine) "
      "WHERE c.id = ? AND m.fingerprint = ? AND x.branch = ?");
  s.bind(case_id).bind(fingerprint).bind(branch);
  std::vector<HistoryPoint> out;
  int found = 0;
  while (s.row()) {
    ++found;
    const std::vector<HistoryPoint> more =
        points(s.integer(0), std::numeric_limits<Time>::min(), newest, until);
    out.insert(out.end(), more.begin(), more.end());
  }
  if (found > 1) {
    std::stable_sort(out.begin(), out.end(),
                     [](const HistoryPoint& a, const HistoryPoint& b) { return a.time < b.time; });
    if (newest && out.size() > newest)
      out.erase(out.begin(), out.end() - static_cast<std::ptrdiff_t>(newest));
  }
  return out;
}

std::vector<HistoryRun> History::runs(const HistoryQuery& q, size_t newest) const {
  Statement s = impl_->db.prepare(
      "SELECT r.run, r.time, s.name, r.suite_hash, r.revision, r.branch, m.fingerprint, r.cases, e.json "
      "FROM runs r JOIN suites s USING (suite) JOIN machines m USING (machine) JOIN environments e USING "
      "(environment) WHERE (?1 = '' OR s.name = ?1) AND (?2 = '' OR m.fingerprint = ?2) AND (?3 = '' OR "
      "r.branch = "
      "?3) AND (?4 = '' OR r.revision = ?4) AND r.time BETWEEN ?5 AND ?6 ORDER BY r.time DESC, r.run DESC "
      "LIMIT ?7");
  s.bind(q.suite).bind(q.fingerprint).bind(q.branch).bind(q.revision).bind(q.since).bind(q.until);
  s.bind(newest ? static_cast<int64_t>(newest) : int64_t{-1});
  std::vector<HistoryRun> out;
  while (s.row()) {
    HistoryRun r{s.integer(0), s.integer(1), s.text(2),    s.text(3), s.text(4),
                 s.text(5),    s.text(6),    s.integer(7), {}};
    const Json j = Json::parse(s.text(8), nullptr, false);
    if (!j.is_object())
      throw DataError(
          fmt::format("the history '{}' is damaged: the environment of run {} is not JSON", path(), r.id));
    for (auto it = j.begin(); it != j.end(); ++it)
      if (it->is_string()) r.environment[it.key()] = it->get<std::string>();
    out.push_back(std::move(r));
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::optional<Calibration> History::calibration(const std::string& case_id,
                                                const std::string& fingerprint) const {
  if (impl_->version_ < 2) return std::nullopt;
  Statement s = impl_->db.prepare(
      "SELECT sigma, runs, time, revision FROM calibrations WHERE case_id = ? AND fingerprint = ?");
  s.bind(case_id).bind(fingerprint);
  if (!s.row()) return std::nullopt;
  return Calibration{s.real(0), static_cast<int>(s.integer(1)), s.integer(2), s.text(3)};
}

std::pair<int64_t, bool> History::add(const RunResult& run, const AddOptions& options) {
  if (options.branch.empty()) throw UsageError("a run is added to a branch, and none was named");
  if (run.environment.machine_id.empty())
    throw DataError("the results do not say which machine they are from: no machine_id");
  if (run.cases.empty()) throw DataError("the results hold no case");
  const Time when = parse_time(run.started_at);
  std::string revision = options.revision;
  if (const auto it = run.environment.values.find("git_revision");
      revision.empty() && it != run.environment.values.end())
    revision = it->second.str();
  if (revision.empty()) revision = "unknown";

  // What makes it the same run: adding a file twice, or after a CI job was started again, changes nothing.
  std::string content = run.suite.name + "\n" + run.suite_hash + "\n" + run.environment.machine_id + "\n" +
                        options.branch + "\n" + revision + "\n" + run.started_at + "\n";
  Json environment = Json::object();
  for (const auto& [key, value] : run.environment.values) environment[key] = value.str();
  // Readings that differ in every run would store every environment anew.
  for (const char* key : {"load_1min", "gpu_memory_free_bytes", "gpu_sm_clock_mhz", "gpu_memory_clock_mhz",
                          "gpu_temperature_c", "gpu_power_w"})
    environment.erase(key);
  for (const CaseResult& c : run.cases)
    content += c.id + (c.time ? fmt::format(" {:a}", c.time->median_s) : "") + "\n";
  const std::string key = hash_text(content);

  Impl& i = *impl_;
  Transaction t(i.db);
  {
    Statement s = i.db.prepare("SELECT run FROM runs WHERE content = ?");
    s.bind(key);
    if (s.row()) return {s.integer(0), false};
  }
  const int64_t suite = i.key_of("SELECT suite FROM suites WHERE name = ?",
                                 "INSERT INTO suites(name, title) VALUES (?, '')", run.suite.name);
  i.db.prepare("UPDATE suites SET title = ? WHERE suite = ?").bind(run.suite.title).bind(suite).run();
  const int64_t machine =
      i.key_of("SELECT machine FROM machines WHERE fingerprint = ?",
               "INSERT INTO machines(fingerprint) VALUES (?)", run.environment.machine_id);
  const int64_t env = i.key_of("SELECT environment FROM environments WHERE json = ?",
                               "INSERT INTO environments(json) VALUES (?)", shown(environment));
  i.db.prepare(
          "INSERT INTO runs(suite, machine, branch, revision, time, suite_hash, environment, cases, content) "
          "VALUES "
          "(?,?,?,?,?,?,?,?,?)")
      .bind(suite)
      .bind(machine)
      .bind(options.branch)
      .bind(revision)
      .bind(when)
      .bind(run.suite_hash)
      .bind(env)
      .bind(static_cast<int64_t>(run.cases.size()))
      .bind(key)
      .run();
  const int64_t run_key = i.db.last_row();

  Statement put_case = i.db.prepare(
      "INSERT INTO cases(id, name, base_name, method, device, dtype, problem, params) VALUES "
      "(?1,?2,?3,?4,?5,?6,?7,?8) "
      "ON CONFLICT(id) DO UPDATE SET name = ?2, base_name = ?3 WHERE name <> ?2 OR base_name <> ?3");
  Statement get_case = i.db.prepare("SELECT \"case\" FROM cases WHERE id = ?");
  Statement put_series = i.db.prepare(
      "INSERT INTO series(\"case\", machine, branch, suite) VALUES (?,?,?,?) ON CONFLICT DO NOTHING");
  Statement get_series = i.db.prepare(
      "SELECT series FROM series WHERE \"case\" = ? AND machine = ? AND branch = ? AND suite = ?");
  Statement put_point = i.db.prepare(
      "INSERT INTO points(series, time, run, status, median, ci_low, ci_high, flops, bytes, memory_peak, "
      "verdict) "
      "VALUES (?,?,?,?,?,?,?,?,?,?,?)");
  for (const CaseResult& c : run.cases) {
    put_case.bind(c.id)
        .bind(c.spec.name)
        .bind(c.spec.base_name)
        .bind(c.spec.method)
        .bind(c.spec.device)
        .bind(name(c.spec.problem.dtype))
        .bind(problem_text(c.spec))
        .bind(params_text(c.params))
        .run();
    get_case.bind(c.id);
    get_case.row();
    const int64_t case_key = get_case.integer(0);
    get_case.reset();
    put_series.bind(case_key).bind(machine).bind(options.branch).bind(suite).run();
    get_series.bind(case_key).bind(machine).bind(options.branch).bind(suite);
    get_series.row();
    const int64_t series = get_series.integer(0);
    get_series.reset();
    std::string verdict;
    // A run that is added late is judged by what lies before it in time, not by what was added before it.
    if (options.verdict && c.status == CaseStatus::ok && c.time) {
      const std::vector<HistoryPoint> before =
          points_of_case(c.id, run.environment.machine_id, options.branch, kPointsForVerdict, when);
      verdict = options.verdict(c, before, calibration(c.id, run.environment.machine_id));
    }
    const double nan = std::numeric_limits<double>::quiet_NaN();
    put_point.bind(series)
        .bind(when)
        .bind(run_key)
        .bind(name(c.status))
        .bind(c.time ? c.time->median_s : nan)
        .bind(c.time ? c.time->ci_low_s : nan)
        .bind(c.time ? c.time->ci_high_s : nan)
        .bind(c.counted.flops())
        .bind(c.counted.bytes())
        .bind(c.memory ? c.memory->total_peak : int64_t{0})
        .bind(verdict)
        .run();
  }
  t.commit();
  return {run_key, true};
}

namespace {
/// Removes the runs listed in the temporary table `doomed` and everything that nothing refers to any more.
int64_t remove_doomed(const Connection& db) {
  db.execute("DELETE FROM points WHERE run IN (SELECT run FROM doomed)");
  db.execute("DELETE FROM runs WHERE run IN (SELECT run FROM doomed)");
  const int64_t removed = db.changes();
  db.execute(
      "DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM points p WHERE p.series = series.series);"
      "DELETE FROM cases WHERE \"case\" NOT IN (SELECT \"case\" FROM series);"
      "DELETE FROM environments WHERE environment NOT IN (SELECT environment FROM runs);"
      "DELETE FROM suites WHERE suite NOT IN (SELECT suite FROM runs);"
      "DELETE FROM machines WHERE machine NOT IN (SELECT machine FROM runs);"
      "DROP TABLE doomed;");
  return removed;
}
constexpr const char* kQueryRuns =
    "r JOIN suites s USING (suite) JOIN machines m USING (machine) WHERE (?1 = '' OR s.name = ?1) AND (?2 = "
    "'' OR "
    "m.fingerprint = ?2) AND (?3 = '' OR r.branch = ?3) AND (?4 = '' OR r.revision = ?4) AND r.time BETWEEN "
    "?5 AND ?6";
}  // namespace

int64_t History::remove_runs(const HistoryQuery& q) {
  Transaction t(impl_->db);
  impl_->db.execute("CREATE TEMP TABLE doomed(run INTEGER PRIMARY KEY)");
  impl_->db.prepare(std::string("INSERT INTO doomed SELECT r.run FROM runs ") + kQueryRuns)
      .bind(q.suite)
      .bind(q.fingerprint)
      .bind(q.branch)
      .bind(q.revision)
      .bind(q.since)
      .bind(q.until)
      .run();
  const int64_t n = remove_doomed(impl_->db);
  t.commit();
  return n;
}

int64_t History::keep_newest(size_t keep, const HistoryQuery& q) {
  Transaction t(impl_->db);
  impl_->db.execute("CREATE TEMP TABLE doomed(run INTEGER PRIMARY KEY)");
  impl_->db
      .prepare(std::string(
                   "INSERT INTO doomed SELECT run FROM (SELECT r.run AS run, row_number() OVER (PARTITION "
                   "BY r.suite, r.machine, r.branch ORDER BY r.time DESC, r.run DESC) AS place FROM runs ") +
               kQueryRuns + ") WHERE place > ?7")
      .bind(q.suite)
      .bind(q.fingerprint)
      .bind(q.branch)
      .bind(q.revision)
      .bind(q.since)
      .bind(q.until)
      .bind(static_cast<int64_t>(keep))
      .run();
  const int64_t n = remove_doomed(impl_->db);
  t.commit();
  return n;
}

void History::set_calibration(const std::string& case_id, const std::string& fingerprint,
                              const Calibration& c) {
  impl_->db
      .prepare(
          "INSERT OR REPLACE INTO calibrations(case_id, fingerprint, sigma, runs, time, revision) VALUES "
          "(?,?,?,?,?,?)")
      .bind(case_id)
      .bind(fingerprint)
      .bind(c.sigma)
      .bind(c.runs)
      .bind(c.time)
      .bind(c.revision)
      .run();
}

void History::vacuum() { impl_->db.execute("VACUUM"); }

std::vector<std::string> History::check() const {
  std::vector<std::string> wrong;
  Statement s = impl_->db.prepare("PRAGMA integrity_check(100)");
  while (s.row())
    if (s.text(0) != "ok") wrong.push_back("the history '" + path() + "' is damaged: " + s.text(0));
  Statement f = impl_->db.prepare("PRAGMA foreign_key_check");
  while (f.row())
    wrong.push_back(
        fmt::format("the history '{}' is damaged: row {} of table {} refers to a missing row of {}", path(),
                    f.integer(1), f.text(0), f.text(2)));
  return wrong;
}

}  // namespace attnbench
