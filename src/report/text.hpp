// Text for people: tables, wrapping, colour, units. It prints nothing, and machines read other formats.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace attnbench {

/// Columns that a UTF-8 text takes on a terminal: East Asian wide characters two, combining marks none.
size_t display_width(const std::string& s);
/// At most `width` columns of it, the last one an ellipsis where something was cut.
std::string cut_to(const std::string& s, size_t width);
/// Safe on a terminal: control characters (escape sequences, line breaks), direction overrides and bytes that
/// are not UTF-8 become visible text ("\\x1b", "\\n").
std::string printable(const std::string& s);

/// Breaks at spaces so that no line is wider than `width`; lines after the first begin with `indent`. Line
/// breaks of the text are kept.
std::string wrap(const std::string& text, size_t width, const std::string& indent = {});

/// ANSI styles, empty when colour is off.
enum class Style : uint8_t { plain, bold, dim, red, green, yellow };
std::string styled(const std::string& text, Style style, bool color);

/// A table with aligned columns.
class TextTable {
 public:
  enum class Align : uint8_t { left, right };
  explicit TextTable(std::vector<std::pair<std::string, Align>> columns);
  void add(std::vector<std::string> cells, Style style = Style::plain);
  bool empty() const { return rows_.empty(); }
  /// Lines no wider than `width` (0: any) as far as the text columns can be cut: the widest of them first,
  /// each down to kLeastWidth columns.
  std::string str(bool color, const std::string& indent = {}, size_t width = 0) const;
  static constexpr size_t kLeastWidth = 8;  ///< shorter pieces of names tell nothing

 private:
  struct Row {
    std::vector<std::string> cells;
    Style style;
  };
  std::vector<std::pair<std::string, Align>> columns_;
  std::vector<Row> rows_;
};

/// A field of CSV, quoted where RFC 4180 wants it.
std::string csv_field(const std::string& s);
/// Shortest text that reads back equal; nan, inf, -inf.
std::string csv_number(double v);

/// "1.23 ms", "45.6 us", "2.1 s": three significant digits. ASCII units.
std::string seconds_text(double s);
/// "1.21 GiB".
std::string bytes_text(int64_t bytes);
/// "1.23 G": decimal prefixes, three significant digits.
std::string count_text(double n);

}  // namespace attnbench
