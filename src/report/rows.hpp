// The rows that the table and Markdown formats share: which columns a run fills, and their texts for people.
// Not escaped: each format does that for itself.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

struct ReportTable {
  struct Column {
    std::string title;
    bool right = false;  ///< aligned
  };
  /// How a row reads: plain, in order, to be looked at, bad.
  enum class Mood : uint8_t { plain, good, warn, bad };
  struct Row {
    std::vector<std::string> cells;
    Mood mood = Mood::plain;
    /// What pages sort a column by, by cell; empty, or NaN in it: by the text.
    std::vector<double> keys = {};
  };
  std::vector<Column> columns;
  std::vector<Row> rows;
  /// Takes out the columns in which every row is empty.
  void drop_empty_columns();
};

/// Time, speed-up against the baseline with its interval, rate, share of the ceiling, memory, error.
ReportTable case_table(const RunResult& run);
/// Cases that have two stages or more.
ReportTable stage_table(const RunResult& run);
/// One table an analysis, with its title: the headline figures of each case.
std::vector<std::pair<std::string, ReportTable>> analysis_tables(const RunResult& run);
/// Published and measured figure, with interval and verdict.
ReportTable claim_table(const RunResult& run);
/// What is not ok, and warnings: "sra: unsupported: …", whole sentences; cases with the same remark share
/// one.
std::vector<std::string> remarks(const RunResult& run);
/// "hilo_cpu: HiLo against other attention layers".
std::string headline(const RunResult& run);
/// "AMD EPYC, 2 cores, …, 2026-01-01T00:00:00Z": whatever of it is known.
std::string machine_line(const RunResult& run);
/// "3 ok, 1 unsupported; 1 claim holds"; says when the run was interrupted.
std::string tally(const RunResult& run);

}  // namespace attnbench
