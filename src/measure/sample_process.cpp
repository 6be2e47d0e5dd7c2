#include "measure/sample_process.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "kernels/core/error.hpp"

extern char** environ;

namespace attnbench {

namespace {
// Of a child's messages on stderr, as many are shown in an error.
constexpr size_t kShown = 2000;
}  // namespace

SampleProcess::SampleProcess(const std::vector<std::string>& command) : program_(command.at(0)) {
  int in[2], out[2];
  // A socket, because writing to a pipe whose reader is gone would end this process.
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0)
    throw Error(std::string("cannot make a pipe: ") + std::strerror(errno));
  if (::pipe2(out, O_CLOEXEC) != 0) {
    const std::string why = std::strerror(errno);
    ::close(in[0]), ::close(in[1]);
    throw Error("cannot make a pipe: " + why);
  }
  // Its messages go to a file without a name: a pipe could fill while the parent waits for something else.
  char pattern[] = "/tmp/attnbench-sample-XXXXXX";
  errors_ = ::mkostemp(pattern, O_CLOEXEC);
  if (errors_ >= 0) ::unlink(pattern);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  if (errors_ >= 0) posix_spawn_file_actions_adddup2(&actions, errors_, 2);
  std::vector<char*> argv;
  for (const std::string& w : command) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  const int failed = ::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]), ::close(out[1]);
  to_ = in[1], from_ = out[0];
  if (failed) {
    pid_ = -1;
    ::close(to_), ::close(from_);
    if (errors_ >= 0) ::close(errors_);
    throw Error("cannot start '" + program_ + "': " + std::strerror(failed));
  }
}

SampleProcess::~SampleProcess() {
  resume();
  if (to_ >= 0) ::close(to_);
  if (from_ >= 0) ::close(from_);
  if (pid_ > 0) {
    // It ends by itself at the end of its input, unless it is in a long run.
    int status = 0;
    bool ended = false;
    for (int i = 0; i < 50 && !ended; ++i) {
      ended = ::waitpid(pid_, &status, WNOHANG) != 0;
      if (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (!ended) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, &status, 0);
    }
  }
  if (errors_ >= 0) ::close(errors_);
}

void SampleProcess::pause() {
  if (paused_ || ::kill(pid_, SIGSTOP) != 0) return;
  paused_ = true;
  // Until the last of its threads has stopped.
  int status = 0;
  while (::waitpid(pid_, &status, WUNTRACED) < 0 && errno == EINTR) {
  }
  if (!WIFSTOPPED(status)) {
    pid_ = -1;  // it had ended
    gone();
  }
}

void SampleProcess::resume() {
  if (!paused_) return;
  paused_ = false;
  if (pid_ > 0) ::kill(pid_, SIGCONT);
}

void SampleProcess::gone() {
  std::string text(kShown, '\0');
  const ssize_t n = errors_ >= 0 ? ::pread(errors_, text.data(), text.size(), 0) : 0;
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  throw Error("'" + program_ + "' ended before it was asked to" + (text.empty() ? "" : ": " + text));
}

std::string SampleProcess::line() {
  for (;;) {
    const size_t end = buffer_.find('\n');
    if (end != std::string::npos) {
      std::string text = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (text.starts_with("error ")) throw Error("'" + program_ + "': " + text.substr(6));
      return text;
    }
    char bytes[256];
    const ssize_t n = ::read(from_, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) gone();
    buffer_.append(bytes, static_cast<size_t>(n));
  }
}

double SampleProcess::ready() {
  const std::string text = line();
  double seconds = 0;
  if (!text.starts_with("ready ") || !((seconds = std::strtod(text.c_str() + 6, nullptr)) > 0))
    throw Error("'" + program_ + "' does not take samples on demand: it said '" + text.substr(0, 80) + "'");
  return seconds;
}

double SampleProcess::sample(long iterations) {
  const std::string request = std::to_string(iterations) + "\n";
  if (::send(to_, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
    gone();
  const std::string text = line();
  const double seconds = std::strtod(text.c_str(), nullptr);
  if (!(seconds > 0)) throw Error("'" + program_ + "' answered '" + text.substr(0, 80) + "' for a time");
  return seconds;
}

PairedSamples sample_pair(const std::vector<std::string>& before, const std::vector<std::string>& now,
                          const PairPlan& plan) {
  SampleProcess a(before);
  // Ready one after the other: the second program's checks would disturb nothing but cost the cores.
  const double run_s = a.ready();
  a.pause();
  SampleProcess b(now);
  b.ready();
  b.pause();
  const long iterations = std::max(1L, static_cast<long>(std::ceil(plan.sample_s / run_s)));
  PairedSamples p;
  const auto begin = std::chrono::steady_clock::now();
  const auto spent = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const auto take = [&](SampleProcess& process, std::vector<double>& to) {
    process.resume();
    to.push_back(process.sample(iterations));
    process.pause();
  };
  for (int i = 0; i < plan.most && (i < plan.least || spent() < plan.seconds); ++i) {
    if (i % 2 == 0) {
      take(a, p.before_s);
      take(b, p.now_s);
    } else {
      take(b, p.now_s);
      take(a, p.before_s);
    }
  }
  return p;
}

}  // namespace attnbench
