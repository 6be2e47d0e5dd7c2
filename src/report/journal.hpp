// The journal of a run: JSON Lines, synced case by case, so that a killed run loses at most the case in
// flight. Not the results file: that is assembled from it at the end.
//
// Line 1 says which run this is; every other line is a case ({"case_result": …}) or the start of a further
// session ({"resumed": …}). A later record of a case replaces an earlier one (a failed case tried again).
#pragma once
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

struct JournalHeader {
  std::string suite_hash;
  std::string started_at;  ///< ISO 8601 UTC; of the first session
  std::string machine_id;
};

class Journal {
 public:
  /// Where the journal of a results file is.
  static std::string path_for(const std::string& results_path) { return results_path + ".journal"; }
  static bool exists(const std::string& path);

  /// Starts a run. Throws UsageError when another process holds the journal, or when it holds cases of an
  /// interrupted run, unless `discard_old`.
  static Journal open_new(const std::string& path, const JournalHeader& header, bool discard_old = false);
  /// Goes on with an interrupted run. A torn last line is dropped and told by dropped(); any other damage is
  /// a DataError with its line. Throws UsageError when the journal is missing, held by another process, or of
  /// another suite, machine or schema version.
  static Journal open_resume(const std::string& path, const JournalHeader& header);

  Journal(Journal&& o) noexcept;
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  Journal& operator=(Journal&&) = delete;
  ~Journal();  ///< releases the lock; the file stays

  /// Returns once the case is on the disk. Throws Error with errno's text; the cases before it are kept
  /// whole, and a later append may succeed.
  void append(const CaseResult& c);

  const JournalHeader& header() const { return header_; }
  /// Finished cases, those of earlier sessions first; one an id.
  const std::vector<CaseResult>& cases() const { return cases_; }
  /// What resuming had to drop, a full sentence; empty: nothing.
  const std::string& dropped() const { return dropped_; }

  /// Writes the results file atomically; only then removes the journal.
  void finish(const std::string& results_path, const std::string& results_text);

 private:
  explicit Journal(const std::string& path) : path_(path) {}
  void open_locked(bool create);
  void start(const JournalHeader& header);
  void write_line(const std::string& line);
  void read_records(const std::string& text);
  void keep(CaseResult c);

  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;  ///< bytes of whole lines
  JournalHeader header_;
  int64_t last_pid_ = 0;
  std::vector<CaseResult> cases_;
  std::string dropped_;
};

}  // namespace attnbench
