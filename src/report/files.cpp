#include "report/files.hpp"

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

}  // namespace

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
