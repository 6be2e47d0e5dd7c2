#include "inputs/atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/core/error.hpp"

namespace attnbench {

namespace {
bool is_special(const std::string& path) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
}
}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  if (is_special(path_)) {
    // A pipe or device cannot be renamed over: write to it directly.
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail("cannot be opened for writing");
    return;
  }
  // A link is written through, not replaced.
  std::error_code ignored;
  const auto target = std::filesystem::weakly_canonical(path_, ignored);
  if (!ignored) path_ = target.string();
  temporary_ = path_ + ".tmp." + std::to_string(::getpid());
  struct stat old = {};
  const mode_t mode = ::stat(path_.c_str(), &old) == 0 ? old.st_mode & 0777 : 0666;  // as it was, or by umask
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd_ < 0) {
    temporary_.clear();
    fail("cannot be created");
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* doing) const {
  throw Error(path_ + ": " + doing + ": " + std::strerror(errno));
}

void AtomicFile::write(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, bytes);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot be written");
    }
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

void AtomicFile::commit() {
  if (temporary_.empty()) return;
  if (::fsync(fd_) != 0) fail("cannot be flushed to disk");
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail("cannot be closed");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be replaced");
  temporary_.clear();
  // The rename itself must survive a crash too; where folders cannot be synced, the data still is.
  const auto folder = std::filesystem::path(path_).parent_path();
  const int dir = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir >= 0) {
    ::fsync(dir);
    ::close(dir);
  }
}

void write_file_atomically(const std::string& path, const std::string& text) {
  AtomicFile f(path);
  f.write(text.data(), text.size());
  f.commit();
}

}  // namespace attnbench
