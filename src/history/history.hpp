// The history of runs: an SQLite file with one point for every case of every run. What is slower than what is
// not decided here: see verdict.hpp. Neither are points drawn: see report/.
//
// A series is what may be compared over time: one case of one suite on one machine and branch. Points of a
// series are stored together in order of time, so that reading the newest of a case takes a few pages however
// old the history is.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// Seconds since 1970 UTC. Texts are ISO 8601: "2026-01-31T12:00:00Z"; a date alone is its first second.
using Time = int64_t;
std::string time_text(Time t);
/// Throws UsageError for what is neither a date nor a time.
Time parse_time(const std::string& text);

struct HistoryPoint {
  int64_t run = 0;  ///< HistoryRun::id
  Time time = 0;    ///< when the run began
  std::string revision;
  CaseStatus status = CaseStatus::ok;
  /// Seconds; NaN where nothing was timed. The interval is the bootstrap 95% interval of this run alone: the
  /// spread between runs is larger.
  double median_s = std::numeric_limits<double>::quiet_NaN();
  double ci_low_s = std::numeric_limits<double>::quiet_NaN();
  double ci_high_s = std::numeric_limits<double>::quiet_NaN();
  int64_t flops = 0;        ///< counted, one execution; FLOP/s is flops / median_s
  int64_t bytes = 0;        ///< counted reads and writes, one execution
  int64_t memory_peak = 0;  ///< exact allocator peak, bytes
  /// "faster", "slower", "same", "unsure" against the points before it, as decided when it was added; empty:
  /// there was nothing to compare with.
  std::string verdict;
};

/// So many points before a run are looked at for its verdict: two months of daily runs.
inline constexpr size_t kPointsForVerdict = 64;

struct HistorySuite {
  std::string name, title;
  int64_t runs = 0;
  Time first = 0, last = 0;
};

struct HistoryCase {
  std::string id;         ///< CaseResult::id
  std::string name;       ///< as the newest run calls it
  std::string base_name;  ///< without axis values
  std::string method, device, dtype;
  std::string problem;  ///< for people: Problem::str()
  std::string params;   ///< "alpha=0.9, window_size=2"
};

struct HistorySeries {
  int64_t id = 0;
  std::string suite, case_id, fingerprint, branch;
  int64_t points = 0;
  Time first = 0, last = 0;
};

struct HistoryRun {
  int64_t id = 0;
  Time time = 0;
  std::string suite, suite_hash, revision, branch, fingerprint;
  int64_t cases = 0;
  std::map<std::string, std::string> environment;  ///< plain text of every value
};

/// Which runs or series; empty members mean any.
struct HistoryQuery {
  std::string suite{}, case_id{}, fingerprint{}, branch{}, revision{};
  Time since = std::numeric_limits<Time>::min(), until = std::numeric_limits<Time>::max();
};

/// How much the median of one case differs between runs of the same code: from `calibrate`.
struct Calibration {
  double sigma = 0;  ///< standard deviation of the logarithm of the median
  int runs = 0;
  Time time = 0;
  std::string revision;
};

struct AddOptions {
  std::string branch;    ///< "main"; must not be empty
  std::string revision;  ///< empty: of the program that ran
  /// Decides a case's verdict from the points before it, newest last; empty: none is stored.
  std::function<std::string(const CaseResult&, const std::vector<HistoryPoint>& before,
                            const std::optional<Calibration>&)>
      verdict;
};

class History {
 public:
  /// The version that this program writes; older files are brought up to it when opened for writing, and read
  /// as they are otherwise.
  static constexpr int kSchemaVersion = 2;
  static constexpr int kApplicationId = 0x41746e42;  // "AtnB"

  /// read: never changes the file. write: the file must exist. create: it may be missing. Throws DataError
  /// for a missing, foreign or damaged file, which is left as it is, and UsageError for one of a newer
  /// program.
  enum class Mode : uint8_t { read, write, create };
  explicit History(const std::string& path, Mode mode = Mode::read);
  ~History();
  History(const History&) = delete;
  History& operator=(const History&) = delete;

  const std::string& path() const;
  int schema_version() const;

  // ---- reading; everything sorted by name or time ----
  std::vector<HistorySuite> suites() const;
  /// Of one suite; empty: of all.
  std::vector<HistoryCase> cases(const std::string& suite = {}) const;
  std::vector<HistorySeries> series(const HistoryQuery& query = {}) const;
  /// Oldest first. `newest`: only that many of the newest; 0: all.
  std::vector<HistoryPoint> points(int64_t series, Time since = std::numeric_limits<Time>::min(),
                                   size_t newest = 0, Time until = std::numeric_limits<Time>::max()) const;
  /// The same over every series of a case on one machine and branch, of whatever suite.
  std::vector<HistoryPoint> points_of_case(const std::string& case_id, const std::string& fingerprint,
                                           const std::string& branch, size_t newest = 0,
                                           Time until = std::numeric_limits<Time>::max()) const;
  std::vector<HistoryRun> runs(const HistoryQuery& query = {}, size_t newest = 0) const;
  /// Of the case on the machine; none when it was never calibrated.
  std::optional<Calibration> calibration(const std::string& case_id, const std::string& fingerprint) const;

  // ---- writing ----
  /// Adds every case of a run in one transaction; a run that is in it already (same suite, machine, branch,
  /// revision, start and cases) changes nothing. Returns its id and whether it is new.
  std::pair<int64_t, bool> add(const RunResult& run, const AddOptions& options);
  /// Removes the runs that the query names and what only they used; returns how many.
  int64_t remove_runs(const HistoryQuery& query);
  /// Removes all but the newest `keep` runs of every suite, machine and branch; returns how many.
  int64_t keep_newest(size_t keep, const HistoryQuery& query);
  void set_calibration(const std::string& case_id, const std::string& fingerprint, const Calibration& c);
  /// Gives the space of removed runs back to the file system.
  void vacuum();
  /// Reads every page; a full sentence for each thing that is wrong.
  std::vector<std::string> check() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnbench
