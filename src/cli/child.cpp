#include "cli/child.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/core/error.hpp"
#include "report/files.hpp"

extern char** environ;

namespace attnbench {

namespace fs = std::filesystem;

namespace {

std::atomic<pid_t> running_child{-1};
std::atomic<bool> stop_asked{false};
static_assert(std::atomic<pid_t>::is_always_lock_free, "a signal handler reads it");

/// The second signal kills, as it would any program.
extern "C" void on_stop_signal(int signal) {
  if (stop_asked.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  if (const pid_t pid = running_child; pid > 0) ::kill(pid, signal);
}

/// From the first child on: between two children a signal counts as well.
void listen_for_signals() {
  static const bool listening = [] {
    for (const int s : {SIGINT, SIGTERM, SIGHUP}) {
      struct sigaction before {
      }, action{};
      sigaction(s, nullptr, &before);
      if (before.sa_handler == SIG_IGN) continue;  // nohup
      action.sa_handler = on_stop_signal;
      sigemptyset(&action.sa_mask);
      action.sa_flags = SA_RESTART;
      sigaction(s, &action, nullptr);
    }
    return true;
  }();
  static_cast<void>(listening);
}

void stop_if_asked() {
  if (stop_asked) throw Interrupted("interrupted");
}

}  // namespace

std::string own_program() {
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (failed) throw Error("cannot find this program's own file: " + failed.message());
  return program.string();
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (fs::temp_directory_path() / "attnbench-XXXXXX").string();
  if (!::mkdtemp(pattern.data()))
    throw Error(std::string("cannot make a temporary folder: ") + std::strerror(errno));
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

int run_child(const std::vector<std::string>& command, std::string& messages) {
  listen_for_signals();
  stop_if_asked();
  const TemporaryFolder folder;
  const std::string err = folder / "stderr";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  std::vector<char*> argv;
  for (const std::string& w : command) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int failed = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) throw Error("cannot start '" + command.front() + "': " + std::strerror(failed));
  running_child = pid;
  // Asked while it was being started, when the handler did not know it yet.
  if (stop_asked) ::kill(pid, SIGINT);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  running_child = -1;
  stop_if_asked();
  messages = read_file(err);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace attnbench
