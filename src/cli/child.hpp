// This program, or another build of it, run as a child to its end. Not for children that are talked to: see
// measure/sample_process.hpp.
#pragma once
#include <string>
#include <vector>

#include "kernels/core/error.hpp"

namespace attnbench {

/// The user asked to stop: exit status 130, after what is temporary was removed.
class Interrupted : public Error {
 public:
  using Error::Error;
};

/// The path of the running program.
std::string own_program();
/// Runs `command` with its stdout and stderr kept away; returns its exit status (128 + signal when one killed
/// it). `messages` gets its stderr. Throws Error when it cannot be started.
int run_child(const std::vector<std::string>& command, std::string& messages);

/// A folder of the system's temporary place, removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& file) const { return path_ + "/" + file; }

 private:
  std::string path_;
};

}  // namespace attnbench
