#include "report/atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "kernels/core/error.hpp"

namespace attnbench {

namespace {

std::string reason() { return std::strerror(errno); }

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Where the bytes go in the end, so that a link stays a link.
std::string resolved(const std::string& path) {
  char buffer[PATH_MAX];
  return realpath(path.c_str(), buffer) ? std::string(buffer) : path;
}

/// Empty when all was written, errno's text otherwise.
std::string write_all(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? reason() : "nothing was accepted";
    done += static_cast<size_t>(n);
  }
  return "";
}

}  // namespace

void write_file_atomically(const std::string& path, const std::string& text) {
  const std::string target = resolved(path);
  struct stat info = {};
  const bool exists = ::stat(target.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) throw Error("cannot write '" + path + "': it is a directory");
  if (exists && !S_ISREG(info.st_mode)) {
    const int fd = ::open(target.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) throw Error("cannot write '" + path + "': " + reason());
    std::string wrong = write_all(fd, text);
    if (::close(fd) != 0 && wrong.empty()) wrong = reason();
    if (!wrong.empty()) throw Error("cannot write '" + path + "': " + wrong);
    return;
  }
  const std::string temporary = target + "." + std::to_string(::getpid()) + ".tmp";
  const mode_t mode = exists ? info.st_mode & 07777 : 0666;
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) throw Error("cannot write '" + temporary + "': " + reason());
  std::string wrong = write_all(fd, text);
  if (wrong.empty() && ::fsync(fd) != 0) wrong = reason();
  if (::close(fd) != 0 && wrong.empty()) wrong = reason();
  if (wrong.empty() && ::rename(temporary.c_str(), target.c_str()) != 0) wrong = reason();
  if (!wrong.empty()) {
    ::unlink(temporary.c_str());
    throw Error("cannot write '" + path + "': " + wrong);
  }
  sync_directory_of(target);
}

void sync_directory_of(const std::string& path) {
  const int dir = ::open(directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return;
  ::fsync(dir);
  ::close(dir);
}

void require_writable(const std::string& path) {
  const std::string target = resolved(path);
  struct stat info = {};
  if (::stat(target.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) throw UsageError("cannot write '" + path + "': it is a directory");
    if (::access(target.c_str(), W_OK) != 0) throw UsageError("cannot write '" + path + "': " + reason());
    if (!S_ISREG(info.st_mode)) return;
  }
  const std::string dir = directory_of(target);
  if (::stat(dir.c_str(), &info) != 0)
    throw UsageError("cannot write '" + path + "': directory '" + dir + "': " + reason());
  if (::access(dir.c_str(), W_OK | X_OK) != 0)
    throw UsageError("cannot write '" + path + "': directory '" + dir + "': " + reason());
}

std::string read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw DataError("cannot read '" + path + "': " + reason());
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const std::string why = reason();
      ::close(fd);
      throw DataError("cannot read '" + path + "': " + why);
    }
    if (n == 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return text;
}

}  // namespace attnbench
