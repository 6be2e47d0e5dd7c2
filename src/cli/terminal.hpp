// The terminal as the program finds it: width, whether somebody watches, a progress line on stderr.
#pragma once
#include <cstddef>
#include <optional>
#include <string>

namespace attnbench {

/// Columns of the terminal on stdout; 0 when stdout is no terminal (then nothing is cut).
size_t stdout_width();

/// A remark on stderr ("attnbench: …"), unless quiet.
void note(bool quiet, const std::string& text);

/// Progress of a known number of steps on stderr: one line that is drawn over on a terminal, a line a step
/// elsewhere, nothing when quiet. Notes may come between its steps.
class Progress {
 public:
  Progress(bool quiet, bool color);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `count` are done, `what` has begun.
  void begin(size_t done, size_t count, const std::string& what, std::optional<double> eta_s);
  /// `what` has ended with `outcome`. Terminals show it only when `keep`: what went wrong stays to be read.
  void end(size_t done, size_t count, const std::string& what, const std::string& outcome, bool keep);
  void remark(const std::string& text);
  void clear();

 private:
  bool quiet_, color_, terminal_, drawn_ = false;
};

/// "3 s", "2 min 5 s", "1 h 4 min".
std::string duration_text(double s);

}  // namespace attnbench
