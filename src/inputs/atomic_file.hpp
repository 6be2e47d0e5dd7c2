// Writes a whole file or nothing: temporary file in the same folder, fsync, rename, fsync of the folder.
#pragma once
#include <cstddef>
#include <string>

namespace attnbench {

class AtomicFile {
 public:
  /// Throws Error naming the path and the system's reason.
  explicit AtomicFile(std::string path);
  ~AtomicFile();  ///< without commit() the temporary file is removed and `path` stays as it was
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* doing) const;
  std::string path_, temporary_;
  int fd_ = -1;
};

/// The whole text at once.
void write_file_atomically(const std::string& path, const std::string& text);

}  // namespace attnbench
