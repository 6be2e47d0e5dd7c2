#include "cli/terminal.hpp"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "cli/text.hpp"

namespace attnbench {

namespace {

size_t width_of(int fd) {
  winsize size{};
  if (!isatty(fd)) return 0;
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

size_t stdout_width() { return width_of(STDOUT_FILENO); }

void note(bool quiet, const std::string& text) {
  if (!quiet) print_message(fmt::format("attnbench: {}\n", text));
}

Progress::Progress(bool quiet, bool color) : quiet_(quiet), color_(color), terminal_(isatty(STDERR_FILENO)) {
  const char* term = std::getenv("TERM");
  if (term && std::strcmp(term, "dumb") == 0) terminal_ = false;
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void Progress::begin(size_t done, size_t count, const std::string& what, std::optional<double> eta_s) {
  if (quiet_ || !terminal_) return;
  constexpr size_t kBar = 24;
  const size_t filled = count ? kBar * done / count : 0;
  std::string line = fmt::format("[{}{}] {}/{} {}", std::string(filled, '='), std::string(kBar - filled, ' '),
                                 done, count, printable(what));
  if (eta_s) line += ", " + duration_text(*eta_s) + " to go";
  // The last column stays free: some terminals wrap when it is written.
  print_message(
      fmt::format("\r\033[K{}", styled(cut_to(line, width_of(STDERR_FILENO) - 1), Style::dim, color_)));
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::end(size_t done, size_t count, const std::string& what, const std::string& outcome,
                   bool keep) {
  if (quiet_ || (terminal_ && !keep)) return;
  clear();
  const size_t digits = std::to_string(count).size();
  print_message(
      fmt::format("[{:>{}}/{}] {}: {}\n", done, digits, count, printable(what), printable(outcome)));
}

void Progress::remark(const std::string& text) {
  if (quiet_) return;
  clear();
  note(false, printable(text));
}

std::string duration_text(double s) {
  const auto whole = static_cast<long long>(std::ceil(std::max(s, 0.0)));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace attnbench
