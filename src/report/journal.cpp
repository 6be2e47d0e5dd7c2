#include "report/journal.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "inputs/atomic_file.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

std::string reason() { return std::strerror(errno); }

std::string text_of(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace); }

/// The member of an object, or an empty text: headers are read leniently and judged afterwards.
std::string member(const Json& j, const char* key) {
  const auto it = j.find(key);
  return it != j.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t pid_of(const Json& j) {
  const auto it = j.find("pid");
  return it != j.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

}  // namespace

bool Journal::exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

Journal::Journal(Journal&& o) noexcept
    : path_(std::move(o.path_)),
      fd_(std::exchange(o.fd_, -1)),
      size_(o.size_),
      header_(std::move(o.header_)),
      last_pid_(o.last_pid_),
      cases_(std::move(o.cases_)),
      dropped_(std::move(o.dropped_)) {}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

void Journal::open_locked(bool create) {
  for (;;) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0666);
    if (fd_ < 0) throw UsageError("cannot open the journal '" + path_ + "': " + reason());
    struct stat mine = {}, there = {};
    if (::fstat(fd_, &mine) != 0) throw Error("cannot examine the journal '" + path_ + "': " + reason());
    if (!S_ISREG(mine.st_mode)) throw UsageError("the journal '" + path_ + "' is not a regular file");
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw Error("cannot lock the journal '" + path_ + "': " + reason());
      std::string who = "another process";
      try {
        read_records(read_file(path_));
        if (last_pid_ > 0) who += " (pid " + std::to_string(last_pid_) + ")";
      } catch (const Error&) {  // its owner may be writing; the message matters, not the content
      }
      throw UsageError("the journal '" + path_ + "' is in use by " + who +
                       "; wait for it, or write the results to another file");
    }
    // Its last owner may have finished and removed it between our open and our lock.
    if (::stat(path_.c_str(), &there) == 0 && there.st_ino == mine.st_ino && there.st_dev == mine.st_dev)
      return;
    ::close(std::exchange(fd_, -1));
    if (!create) throw UsageError("the journal '" + path_ + "' was removed by the run that owned it");
  }
}

void Journal::read_records(const std::string& text) {
  size_t begin = 0, number = 0;
  size_ = 0, cases_.clear(), dropped_.clear(), header_ = {}, last_pid_ = 0;
  while (begin < text.size()) {
    ++number;
    const size_t newline = text.find('\n', begin);
    if (newline == std::string::npos) {
      dropped_ = "line " + std::to_string(number) + " of '" + path_ + "' was cut off after " +
                 std::to_string(text.size() - begin) + " bytes and is dropped; its case is run again";
      return;
    }
    const std::string line = text.substr(begin, newline - begin);
    const std::string place = path_ + ":" + std::to_string(number);
    Json j;
    try {
      j = Json::parse(line);
    } catch (const Json::parse_error& e) {
      throw DataError(
          place + ": byte " + std::to_string(begin + (e.byte ? e.byte - 1 : 0)) +
          ": the line is damaged, and it is not a torn last line; remove it to run its case again");
    } catch (const Json::out_of_range&) {
      throw DataError(place + ": a number is larger than any double; remove the line to run its case again");
    }
    if (number == 1) {
      const auto version = j.is_object() ? j.find("schema_version") : j.end();
      if (member(j, "format") != "attnbench-journal" || version == j.end() || !version->is_number_integer())
        throw DataError(place + ": this is not a journal of attnbench");
      if (version->get<int64_t>() != kResultsSchemaVersion)
        throw UsageError(place + ": the journal has schema version " + version->dump() +
                         ", this program writes version " + std::to_string(kResultsSchemaVersion) +
                         "; resume with the program that started the run, or start anew");
      header_ = {member(j, "suite_hash"), member(j, "started_at"), member(j, "machine_id")};
      last_pid_ = pid_of(j);
    } else if (j.is_object() && j.contains("case_result")) {
      keep(case_from_json(text_of(j["case_result"]), place));
    } else if (j.is_object() && j.contains("resumed")) {
      last_pid_ = pid_of(j["resumed"]);
    } else {
      throw DataError(place + ": the line is neither a case nor a resumption");
    }
    begin = newline + 1;
    size_ = static_cast<int64_t>(begin);
  }
}

void Journal::keep(CaseResult c) {
  for (CaseResult& old : cases_)
    if (old.id == c.id) {
      old = std::move(c);
      return;
    }
  cases_.push_back(std::move(c));
}

void Journal::start(const JournalHeader& header) {
  cases_.clear(), dropped_.clear();
  size_ = 0;
  header_ = header;
  if (::ftruncate(fd_, 0) != 0) throw Error("cannot empty the journal '" + path_ + "': " + reason());
  write_line(text_of({{"format", "attnbench-journal"},
                      {"schema_version", kResultsSchemaVersion},
                      {"suite_hash", header.suite_hash},
                      {"started_at", header.started_at},
                      {"machine_id", header.machine_id},
                      {"pid", ::getpid()}}));
  sync_directory_of(path_);
}

Journal Journal::open_new(const std::string& path, const JournalHeader& header, bool discard_old) {
  Journal j(path);
  j.open_locked(true);
  if (!discard_old) {
    j.read_records(read_file(path));
    if (!j.cases_.empty())
      throw UsageError(
          "the journal '" + path + "' holds " + std::to_string(j.cases_.size()) +
          " finished cases of an interrupted run; resume it, or remove the journal to start anew");
  }
  j.start(header);
  return j;
}

Journal Journal::open_resume(const std::string& path, const JournalHeader& header) {
  if (!exists(path))
    throw UsageError("there is no interrupted run to resume: the journal '" + path + "' does not exist");
  Journal j(path);
  j.open_locked(false);
  j.read_records(read_file(path));
  if (j.size_ == 0) {  // killed before its first line was whole: nothing was measured
    const std::string dropped = j.dropped_;
    j.start(header);
    j.dropped_ = dropped;
    return j;
  }
  if (j.header_.suite_hash != header.suite_hash)
    throw UsageError("the journal '" + path + "' belongs to another suite or other settings (hash " +
                     j.header_.suite_hash + ", now " + header.suite_hash +
                     "): its cases may not be mixed with this run's; undo the change, or start anew");
  if (j.header_.machine_id != header.machine_id)
    throw UsageError("the journal '" + path + "' was started on another machine (id " + j.header_.machine_id +
                     ", now " + header.machine_id + "): results of two machines are not mixed; start anew");
  if (::ftruncate(j.fd_, j.size_) != 0)
    throw Error("cannot cut the torn line of the journal '" + path + "': " + reason());
  j.write_line(text_of({{"resumed", {{"started_at", header.started_at}, {"pid", ::getpid()}}}}));
  return j;
}

void Journal::write_line(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n =
        ::pwrite(fd_, text.data() + done, text.size() - done, size_ + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done < text.size() || ::fsync(fd_) != 0) {
    const std::string why = reason();
    // Half a line would read as damage once something follows it.
    const bool cut = ::ftruncate(fd_, size_) == 0;
    throw Error("cannot write the journal '" + path_ + "': " + why +
                (cut ? "; the cases before this one are kept" : "; its last line is torn"));
  }
  size_ += static_cast<int64_t>(text.size());
}

void Journal::append(const CaseResult& c) {
  write_line("{\"case_result\":" + case_to_json(c) + "}");
  keep(c);
}

void Journal::finish(const std::string& results_path, const std::string& results_text) {
  write_file_atomically(results_path, results_text);
  // Still locked: whoever opened the name meanwhile notices that it is gone.
  if (::unlink(path_.c_str()) != 0 && errno != ENOENT)
    throw Error("the results are in '" + results_path + "', but the journal '" + path_ +
                "' cannot be removed: " + reason());
  ::close(std::exchange(fd_, -1));
}

}  // namespace attnbench
