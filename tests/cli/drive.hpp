// Drives the built program as a user does: arguments in; exit status, stdout and stderr out. Knows nothing of
// it.
#pragma once
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace drive {

namespace fs = std::filesystem;

inline std::string read(const fs::path& p) {
  std::ifstream f(p, std::ios::binary);
  return {std::istreambuf_iterator<char>(f), {}};
}

inline void write(const fs::path& p, const std::string& text) {
  fs::create_directories(p.parent_path());
  std::ofstream(p, std::ios::binary) << text;
}

/// A folder that goes away with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (fs::temp_directory_path() / "attnbench-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct Result {
  int code = -1;    ///< exit status; 128 + signal when one killed it
  std::string out;  ///< stdout
  std::string err;  ///< stderr
};

/// A program that runs beside the test.
class Process {
 public:
  struct Setup {
    fs::path folder{};  ///< working directory; empty: the test's
    std::vector<std::pair<std::string, std::string>> environment{};
    long max_file_bytes = 0;  ///< RLIMIT_FSIZE; 0: none
    std::string stdout_to{};  ///< a file instead of a capture
  };

  Process(std::vector<std::string> words, const Setup& setup)
      : out_(scratch_ / "out"), err_(scratch_ / "err") {
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    // The captures are made before a size limit is set; only what the program writes later is limited.
    const int out = open(setup.stdout_to.empty() ? out_.c_str() : setup.stdout_to.c_str(),
                         O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int err = open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(out, 1);
    dup2(err, 2);
    if (!setup.folder.empty() && chdir(setup.folder.c_str()) != 0) _exit(126);
    for (const auto& [key, value] : setup.environment) setenv(key.c_str(), value.c_str(), 1);
    if (setup.max_file_bytes) {
      const rlimit limit{static_cast<rlim_t>(setup.max_file_bytes),
                         static_cast<rlim_t>(setup.max_file_bytes)};
      setrlimit(RLIMIT_FSIZE, &limit);
    }
    execvp(argv[0], argv.data());
    _exit(127);
  }
  ~Process() {
    if (pid_ > 0 && !waited_) {
      kill(pid_, SIGKILL);
      wait();
    }
  }
  Process(const Process&) = delete;

  void signal(int number) const { kill(pid_, number); }
  bool running() {
    if (waited_) return false;
    const pid_t p = waitpid(pid_, &status_, WNOHANG);
    if (p == pid_) waited_ = true;
    return !waited_;
  }
  Result wait() {
    if (!waited_) waitpid(pid_, &status_, 0);
    waited_ = true;
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_), read(out_), read(err_)};
  }

 private:
  TempFolder scratch_;
  fs::path out_, err_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool waited_ = false;
};

/// Waits until `condition` holds, the process ends or the time is up; returns whether it holds.
inline bool wait_until(Process& process, double seconds, const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    if (condition()) return true;
    if (!process.running()) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

inline std::vector<std::string> command(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATTNBENCH_PROGRAM);
  return arguments;
}

inline Result program(std::vector<std::string> arguments, const Process::Setup& setup = {}) {
  return Process(command(std::move(arguments)), setup).wait();
}

}  // namespace drive
