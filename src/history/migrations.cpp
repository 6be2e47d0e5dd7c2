#include "history/migrations.hpp"

namespace attnbench {

const std::vector<std::string_view>& history_migrations() {
  static const std::vector<std::string_view> list{
      // 1: runs, and points clustered by series and time: the newest points of a case are neighbours on disk.
      R"sql(
CREATE TABLE suites(
  suite INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, title TEXT NOT NULL) STRICT;
CREATE TABLE machines(
  machine INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE cases(
  "case" INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, base_name TEXT NOT NULL,
  method TEXT NOT NULL, device TEXT NOT NULL, dtype TEXT NOT NULL, problem TEXT NOT NULL,
  params TEXT NOT NULL) STRICT;
CREATE TABLE environments(
  environment INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE runs(
  run INTEGER PRIMARY KEY, suite INTEGER NOT NULL REFERENCES suites, machine INTEGER NOT NULL REFERENCES machines,
  branch TEXT NOT NULL, revision TEXT NOT NULL, time INTEGER NOT NULL, suite_hash TEXT NOT NULL,
  environment INTEGER NOT NULL REFERENCES environments, cases INTEGER NOT NULL,
  content TEXT NOT NULL UNIQUE) STRICT;
CREATE INDEX runs_by_time ON runs(suite, machine, branch, time);
CREATE TABLE series(
  series INTEGER PRIMARY KEY, "case" INTEGER NOT NULL REFERENCES cases, machine INTEGER NOT NULL REFERENCES machines,
  branch TEXT NOT NULL, suite INTEGER NOT NULL REFERENCES suites,
  UNIQUE("case", machine, branch, suite)) STRICT;
CREATE TABLE points(
  series INTEGER NOT NULL REFERENCES series, time INTEGER NOT NULL, run INTEGER NOT NULL REFERENCES runs,
  status TEXT NOT NULL, median REAL, ci_low REAL, ci_high REAL,
  flops INTEGER NOT NULL, bytes INTEGER NOT NULL, memory_peak INTEGER NOT NULL,
  PRIMARY KEY(series, time, run)) STRICT, WITHOUT ROWID;
CREATE INDEX points_by_run ON points(run);
)sql",
      // 2: verdicts as decided when a run was added, and the spread that `calibrate` measured.
      R"sql(
ALTER TABLE points ADD COLUMN verdict TEXT NOT NULL DEFAULT '';
CREATE TABLE calibrations(
  case_id TEXT NOT NULL, fingerprint TEXT NOT NULL, sigma REAL NOT NULL, runs INTEGER NOT NULL,
  time INTEGER NOT NULL, revision TEXT NOT NULL, PRIMARY KEY(case_id, fingerprint)) STRICT, WITHOUT ROWID;
)sql",
  };
  return list;
}

}  // namespace attnbench
