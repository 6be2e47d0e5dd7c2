// Text for people: tables, wrapping, colour, units. Not for files: report/ writes those.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace attnbench {

/// Columns that a UTF-8 text takes on a terminal (code points; enough for the texts of this program).
size_t display_width(const std::string& s);

/// Breaks at spaces so that no line is wider than `width`; lines after the first begin with `indent`. Line
/// breaks of the text are kept.
std::string wrap(const std::string& text, size_t width, const std::string& indent = {});

/// ANSI styles, empty when colour is off.
enum class Style : uint8_t { plain, bold, dim, red, green, yellow };
std::string styled(const std::string& text, Style style, bool color);

/// A table with aligned columns. The widest text column is cut with an ellipsis only when asked to fit a
/// width.
class TextTable {
 public:
  enum class Align : uint8_t { left, right };
  explicit TextTable(std::vector<std::pair<std::string, Align>> columns);
  void add(std::vector<std::string> cells, Style style = Style::plain);
  bool empty() const { return rows_.empty(); }
  std::string str(bool color, const std::string& indent = {}) const;

 private:
  struct Row {
    std::vector<std::string> cells;
    Style style;
  };
  std::vector<std::pair<std::string, Align>> columns_;
  std::vector<Row> rows_;
};

/// "1.23 ms", "45.6 us", "2.1 s": three significant digits. ASCII units.
std::string seconds_text(double s);
/// "1.21 GiB".
std::string bytes_text(int64_t bytes);
/// "1.23 G": decimal prefixes, three significant digits.
std::string count_text(double n);

/// Writes data to stdout; messages go to stderr by other ways.
void print_data(const std::string& text);

}  // namespace attnbench
