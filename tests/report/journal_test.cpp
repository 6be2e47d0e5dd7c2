// The journal keeps what was measured through kills, torn lines, full disks and a second process.
#include "report/journal.hpp"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inputs/atomic_file.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"
#include "tests/catch.hpp"
#include "tests/report/sample_run.hpp"

using namespace attnbench;

namespace {

/// A directory of its own, removed at the end.
struct Directory {
  std::string path;
  Directory() {
    char name[] = "/tmp/attnbench-journal-XXXXXX";
    path = mkdtemp(name);
  }
  ~Directory() {
    for (const std::string& f : files()) ::unlink((path + "/" + f).c_str());
    ::rmdir(path.c_str());
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    DIR* d = opendir(path.c_str());
    while (const dirent* e = readdir(d))
      if (e->d_name[0] != '.') names.emplace_back(e->d_name);
    closedir(d);
    return names;
  }
};

const JournalHeader kHeader{"suite-1", "2026-01-01T00:00:00Z", "machine-1"};

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

/// Limits how far this process may write into any file, as a full disk would; undone at the end.
struct FullDisk {
  rlimit old{};
  explicit FullDisk(size_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    rlimit now = old;
    now.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &old); }
};

}  // namespace

TEST_CASE("a journal that was closed without a word is resumed with every case") {
  Directory dir;
  const std::string path = Journal::path_for(dir.path + "/r.json");
  CHECK_FALSE(Journal::exists(path));
  {
    Journal j = Journal::open_new(path, kHeader);
    j.append(sample_case_result("a"));
    j.append(sample_case_result("b"));
  }
  REQUIRE(Journal::exists(path));
  Journal j = Journal::open_resume(path, {"suite-1", "2026-02-02T00:00:00Z", "machine-1"});
  REQUIRE(j.cases().size() == 2);
  CHECK(j.dropped().empty());
  CHECK(j.header().started_at == "2026-01-01T00:00:00Z");  // of the first session
  CHECK(case_to_json(j.cases()[1]) == case_to_json(sample_case_result("b")));
  CaseResult again = sample_case_result("a");
  again.status = CaseStatus::failed;
  j.append(again);
  REQUIRE(j.cases().size() == 2);
  CHECK(j.cases()[0].status == CaseStatus::failed);
}

TEST_CASE("kill -9 in mid-run loses nothing that append returned for") {
  Directory dir;
  const std::string path = dir.path + "/j";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    Journal j = Journal::open_new(path, kHeader);
    for (int i = 0;; ++i) {
      j.append(sample_case_result(std::to_string(i)));
      const char c = static_cast<char>(i);
      if (write(ready[1], &c, 1) != 1) _exit(1);
    }
  }
  char last = 0;
  for (int i = 0; i < 20; ++i) REQUIRE(read(ready[0], &last, 1) == 1);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[1]);
  char more = 0;
  while (read(ready[0], &more, 1) == 1) last = more;
  close(ready[0]);
  Journal j = Journal::open_resume(path, kHeader);
  CHECK(j.cases().size() >= static_cast<size_t>(last) + 1);
}

TEST_CASE("a torn last line is dropped and told, at every length") {
  Directory dir;
  const std::string path = dir.path + "/j";
  {
    Journal j = Journal::open_new(path, kHeader);
    j.append(sample_case_result("a"));
  }
  const std::string whole = read_file(path);
  const std::string line = "{\"case_result\":" + case_to_json(sample_case_result("b")) + "}";
  for (size_t n = 1; n <= line.size(); n += 53) {
    write_file_atomically(path, whole + line.substr(0, n));
    Journal j = Journal::open_resume(path, kHeader);
    INFO(n);
    REQUIRE(j.cases().size() == 1);
    REQUIRE(j.dropped().find("line 3 ") == 0);
    REQUIRE(j.dropped().find(std::to_string(n) + " bytes") != std::string::npos);
    j.append(sample_case_result("b"));
  }
  Journal j = Journal::open_resume(path, kHeader);  // the last repair left a whole journal
  CHECK(j.dropped().empty());
  CHECK(j.cases().size() == 2);
}

TEST_CASE("a journal killed before its header was whole starts anew") {
  Directory dir;
  const std::string path = dir.path + "/j";
  const std::string torn = GENERATE(std::string(), std::string("{\"format\":\"attn"));
  write_file_atomically(path, torn);
  {
    Journal j = Journal::open_resume(path, kHeader);
    CHECK(j.cases().empty());
    CHECK(j.dropped().empty() == torn.empty());
    j.append(sample_case_result("a"));
  }
  CHECK(Journal::open_resume(path, kHeader).cases().size() == 1);
}

TEST_CASE("any other damage is an error with its line, and the file stays as it is") {
  Directory dir;
  const std::string path = dir.path + "/j";
  {
    Journal j = Journal::open_new(path, kHeader);
    j.append(sample_case_result("a"));
    j.append(sample_case_result("b"));
  }
  std::string text = read_file(path);
  const auto second = text.find('\n') + 1;
  SECTION("a byte in the middle") { text[second] = '#'; }
  SECTION("a whole line of garbage at the end") { text.replace(text.rfind("{\"case_result"), 3, "###"); }
  SECTION("zeros in the middle") { text.replace(second + 20, 8, std::string(8, '\0')); }
  SECTION("a case without its time") { text.replace(text.find("\"time\"", second), 6, "\"tame\""); }
  SECTION("a line of something else") { text.insert(second, "{\"other\":1}\n"); }
  write_file_atomically(path, text);
  const std::string message = message_of([&] { Journal::open_resume(path, kHeader); });
  const bool last = text.find("###") != std::string::npos;
  INFO(message);
  CHECK(message.find(path + (last ? ":3" : ":2")) == 0);
  CHECK(read_file(path) == text);
  // Not even a new run may overwrite what it cannot read, unless told to.
  CHECK_FALSE(message_of([&] { Journal::open_new(path, kHeader); }).empty());
  CHECK(read_file(path) == text);
  CHECK(message_of([&] { Journal::open_new(path, kHeader, true); }).empty());
}

TEST_CASE("the journal of another suite, machine, version or program is refused") {
  Directory dir;
  const std::string path = dir.path + "/j";
  {
    Journal j = Journal::open_new(path, kHeader);
    j.append(sample_case_result("a"));
  }
  const std::string text = read_file(path);
  JournalHeader other = kHeader;
  other.suite_hash = "suite-2";
  CHECK_THAT(message_of([&] { Journal::open_resume(path, other); }),
             ContainsSubstring("suite-1, now suite-2"));
  other = kHeader;
  other.machine_id = "machine-2";
  CHECK_THAT(message_of([&] { Journal::open_resume(path, other); }), ContainsSubstring("another machine"));
  CHECK(read_file(path) == text);
  std::string newer = text;
  newer.replace(newer.find("\"schema_version\":1"), 18, "\"schema_version\":9");
  write_file_atomically(path, newer);
  CHECK_THAT(message_of([&] { Journal::open_resume(path, kHeader); }), ContainsSubstring("schema version 9"));
  write_file_atomically(path, "a,b\n1,2\n");
  CHECK_THAT(message_of([&] { Journal::open_resume(path, kHeader); }), ContainsSubstring(path + ":1"));
  write_file_atomically(path, "{}\n");
  CHECK_THAT(message_of([&] { Journal::open_resume(path, kHeader); }), ContainsSubstring("not a journal"));
  CHECK_THAT(message_of([&] { Journal::open_resume(dir.path + "/none", kHeader); }),
             ContainsSubstring("does not exist"));
}

TEST_CASE("a new run does not overwrite the cases of an interrupted one unless told to") {
  Directory dir;
  const std::string path = dir.path + "/j";
  { Journal j = Journal::open_new(path, kHeader); }
  {
    Journal j = Journal::open_new(path, kHeader);  // no case in it: nothing to lose
    j.append(sample_case_result("a"));
  }
  const std::string text = read_file(path);
  CHECK_THAT(message_of([&] { Journal::open_new(path, kHeader); }),
             ContainsSubstring("holds 1 finished case"));
  CHECK(read_file(path) == text);
  Journal j = Journal::open_new(path, kHeader, true);
  CHECK(j.cases().empty());
}

TEST_CASE("two processes never share a journal; the message names the holder") {
  Directory dir;
  const std::string path = dir.path + "/j";
  int ready[2], done[2];
  REQUIRE(pipe(ready) == 0);
  REQUIRE(pipe(done) == 0);
  const pid_t child = fork();
  if (child == 0) {
    Journal j = Journal::open_new(path, kHeader);
    j.append(sample_case_result("a"));
    char c = 1;
    if (write(ready[1], &c, 1) != 1 || read(done[0], &c, 1) != 1) _exit(1);
    _exit(0);
  }
  char c = 0;
  REQUIRE(read(ready[0], &c, 1) == 1);
  const std::string text = read_file(path);
  const std::string pid = "pid " + std::to_string(child);
  CHECK_THAT(message_of([&] { Journal::open_resume(path, kHeader); }), ContainsSubstring(pid));
  CHECK_THAT(message_of([&] { Journal::open_new(path, kHeader, true); }), ContainsSubstring(pid));
  CHECK(read_file(path) == text);
  REQUIRE(write(done[1], &c, 1) == 1);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  for (int fd : {ready[0], ready[1], done[0], done[1]}) close(fd);
  CHECK(Journal::open_resume(path, kHeader).cases().size() == 1);  // the lock died with its process
}

TEST_CASE("a full disk is an error with its reason; what was written stays whole") {
  Directory dir;
  const std::string path = dir.path + "/j";
  Journal j = Journal::open_new(path, kHeader);
  j.append(sample_case_result("a"));
  const std::string text = read_file(path);
  {
    FullDisk full(text.size() + 100);  // room for a part of the next line
    CHECK_THAT(message_of([&] { j.append(sample_case_result("b")); }), ContainsSubstring("File too large"));
  }
  CHECK(read_file(path) == text);
  CHECK(j.cases().size() == 1);
  j.append(sample_case_result("c"));  // room again
  CHECK(j.cases().size() == 2);
}

TEST_CASE("the results file appears whole; only then the journal goes") {
  Directory dir;
  const std::string results = dir.path + "/r.json", path = Journal::path_for(results);
  write_file_atomically(results, "old");
  Journal j = Journal::open_new(path, kHeader);
  j.append(sample_case_result("a"));
  {
    FullDisk full(1000);
    CHECK_THAT(message_of([&] { j.finish(results, std::string(5000, 'x')); }),
               ContainsSubstring("File too large"));
  }
  CHECK(read_file(results) == "old");
  CHECK(Journal::exists(path));
  CHECK(dir.files().size() == 2);  // no temporary file is left
  j.finish(results, "new");
  CHECK(read_file(results) == "new");
  CHECK(dir.files() == std::vector<std::string>{"r.json"});
}

TEST_CASE("atomic writing follows links, keeps permissions and names what is wrong") {
  Directory dir;
  const std::string target = dir.path + "/t", link = dir.path + "/l";
  write_file_atomically(target, "1");
  REQUIRE(chmod(target.c_str(), 0640) == 0);
  REQUIRE(symlink(target.c_str(), link.c_str()) == 0);
  write_file_atomically(link, "2");
  CHECK(read_file(target) == "2");
  struct stat info {};
  REQUIRE(lstat(link.c_str(), &info) == 0);
  CHECK(S_ISLNK(info.st_mode));
  REQUIRE(stat(target.c_str(), &info) == 0);
  CHECK((info.st_mode & 07777) == 0640);
  write_file_atomically("/dev/null", "x");
  CHECK_THAT(message_of([] { write_file_atomically("/dev/full", "x"); }),
             ContainsSubstring("No space left on device"));
  CHECK_THAT(message_of([&] { write_file_atomically(dir.path, "x"); }), ContainsSubstring("Is a directory"));
  CHECK_THAT(message_of([&] { write_file_atomically(dir.path + "/no/r", "x"); }),
             ContainsSubstring("No such file or directory"));
  CHECK_THAT(message_of([&] { require_writable(dir.path + "/no/r"); }), ContainsSubstring(dir.path + "/no"));
  CHECK_THAT(message_of([&] { require_writable(dir.path); }), ContainsSubstring("is a directory"));
  CHECK(message_of([&] { require_writable(dir.path + "/r"); }).empty());
  CHECK_FALSE(Journal::exists(dir.path + "/r"));  // asking makes nothing
  CHECK_THAT(message_of([&] { read_file(dir.path + "/none"); }), ContainsSubstring("No such file"));
  CHECK_THAT(message_of([&] { read_file(dir.path); }), ContainsSubstring("Is a directory"));
}
