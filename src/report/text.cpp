#include "report/text.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "methods/value.hpp"

namespace attnbench {

namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 1;
  bool valid = false;
};

/// The character at s[i]; what is not UTF-8 (overlong forms and surrogates too) is one invalid byte.
Character character_at(std::string_view s, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(s[k]); };
  const unsigned char first = byte(i);
  if (first < 0x80) return {first, 1, true};
  const size_t n = first >= 0xf0 && first < 0xf5   ? 4
                   : first >= 0xe0 && first < 0xf0 ? 3
                   : first >= 0xc2 && first < 0xe0 ? 2
                                                   : 0;
  if (n == 0 || i + n > s.size()) return {first, 1, false};
  uint32_t code = first & (0xffu >> (n + 1));
  for (size_t k = 1; k < n; ++k) {
    if ((byte(i + k) & 0xc0) != 0x80) return {first, 1, false};
    code = code << 6 | (byte(i + k) & 0x3fu);
  }
  const bool overlong = (n == 3 && code < 0x800) || (n == 4 && code < 0x10000);
  if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {first, 1, false};
  return {code, n, true};
}

/// Blocks of Unicode's East Asian Width W and F and of its combining marks, coarse: names rarely need more.
size_t columns_of(uint32_t c) {
  const auto in = [c](uint32_t low, uint32_t high) { return c >= low && c <= high; };
  if (in(0x300, 0x36f) || in(0x200b, 0x200f) || in(0xfe00, 0xfe0f) || in(0x20d0, 0x20ff)) return 0;
  const bool wide = in(0x1100, 0x115f) || in(0x2e80, 0xa4cf) || in(0xac00, 0xd7a3) || in(0xf900, 0xfaff) ||
                    in(0xfe30, 0xfe6f) || in(0xff00, 0xff60) || in(0xffe0, 0xffe6) || in(0x1f300, 0x1f64f) ||
                    in(0x1f900, 0x1f9ff) || in(0x20000, 0x3fffd);
  return wide ? 2 : 1;
}

}  // namespace

size_t display_width(const std::string& s) {
  size_t width = 0;
  for (size_t i = 0; i < s.size();) {
    const Character c = character_at(s, i);
    width += c.valid ? columns_of(c.code) : 1;
    i += c.bytes;
  }
  return width;
}

std::string cut_to(const std::string& s, size_t width) {
  if (display_width(s) <= width) return s;
  if (width == 0) return "";
  size_t used = 1, i = 0;  // the ellipsis
  while (i < s.size()) {
    const Character c = character_at(s, i);
    const size_t w = c.valid ? columns_of(c.code) : 1;
    if (used + w > width) break;
    used += w;
    i += c.bytes;
  }
  return s.substr(0, i) + "\u2026";
}

std::string printable(const std::string& s) {
  std::string out;
  for (size_t i = 0; i < s.size();) {
    const Character c = character_at(s, i);
    const bool override = (c.code >= 0x202a && c.code <= 0x202e) || (c.code >= 0x2066 && c.code <= 0x2069);
    if (c.valid && c.code == '\n') {
      out += "\\n";
    } else if (c.valid && c.code == '\t') {
      out += "\\t";
    } else if (!c.valid || c.code < 0x20 || (c.code >= 0x7f && c.code < 0xa0)) {
      out += fmt::format("\\x{:02x}", c.code);
    } else if (override) {
      out += fmt::format("\\u{:04x}", c.code);
    } else {
      out += s.substr(i, c.bytes);
    }
    i += c.bytes;
  }
  return out;
}

std::string wrap(const std::string& text, size_t width, const std::string& indent) {
  std::string out, word;
  size_t column = 0;
  const auto flush = [&] {
    if (word.empty()) return;
    const size_t w = display_width(word);
    if (column && column + 1 + w > width) {
      out += "\n" + indent;
      column = 0;
    } else if (column) {
      out += ' ';
      ++column;
    }
    out += word;
    column += w;
    word.clear();
  };
  for (char c : text) {
    if (c == ' ') {
      flush();
    } else if (c == '\n') {
      flush();
      out += "\n" + indent;
      column = 0;
    } else {
      word += c;
    }
  }
  flush();
  return out;
}

std::string styled(const std::string& text, Style style, bool color) {
  if (!color || style == Style::plain) return text;
  const char* code = style == Style::bold    ? "1"
                     : style == Style::dim   ? "2"
                     : style == Style::red   ? "31"
                     : style == Style::green ? "32"
                                             : "33";
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

TextTable::TextTable(std::vector<std::pair<std::string, Align>> columns) : columns_(std::move(columns)) {}

void TextTable::add(std::vector<std::string> cells, Style style) {
  cells.resize(columns_.size());
  rows_.push_back({std::move(cells), style});
}

std::string TextTable::str(bool color, const std::string& indent, size_t width) const {
  std::vector<size_t> widths;
  size_t total = indent.size() + (columns_.empty() ? 0 : 2 * (columns_.size() - 1));
  for (size_t c = 0; c < columns_.size(); ++c) {
    size_t w = display_width(columns_[c].first);
    for (const Row& r : rows_) w = std::max(w, display_width(r.cells[c]));
    widths.push_back(w);
    total += w;
  }
  while (width > 0 && total > width) {
    size_t widest = columns_.size();
    for (size_t c = 0; c < columns_.size(); ++c)
      if (columns_[c].second == Align::left && widths[c] > kLeastWidth &&
          (widest == columns_.size() || widths[c] > widths[widest]))
        widest = c;
    if (widest == columns_.size()) break;
    --widths[widest], --total;
  }
  const auto line = [&](const auto& cell_of) {
    std::string s = indent;
    for (size_t c = 0; c < columns_.size(); ++c) {
      const std::string cell = cut_to(cell_of(c), widths[c]);
      const std::string pad(widths[c] - display_width(cell), ' ');
      s += (c ? "  " : "") + (columns_[c].second == Align::left ? cell + pad : pad + cell);
    }
    s.erase(s.find_last_not_of(' ') + 1);
    return s;
  };
  std::string out =
      styled(line([&](size_t c) -> const std::string& { return columns_[c].first; }), Style::bold, color) +
      "\n";
  for (const Row& r : rows_)
    out += styled(line([&](size_t c) -> const std::string& { return r.cells[c]; }), r.style, color) + "\n";
  return out;
}

namespace {

std::string three_digits(double v) {
  const double a = std::fabs(v);
  return fmt::format("{:.{}f}", v, a >= 100 || a == 0 ? 0 : a >= 10 ? 1 : 2);
}

}  // namespace

std::string csv_field(const std::string& s) {
  // A leading or trailing space is quoted too: some readers trim bare fields.
  const bool plain =
      s.find_first_of(",\"\r\n") == std::string::npos && (s.empty() || (s.front() != ' ' && s.back() != ' '));
  if (plain) return s;
  std::string out = "\"";
  for (char c : s) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string csv_number(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v < 0 ? "-inf" : "inf";
  return Value(v).str();
}

std::string seconds_text(double s) {
  if (!std::isfinite(s)) return "-";
  // Thresholds a little under the unit, so that rounding never shows "1000 us".
  if (s < 0.9995e-6) return three_digits(s * 1e9) + " ns";
  if (s < 0.9995e-3) return three_digits(s * 1e6) + " us";
  if (s < 0.9995) return three_digits(s * 1e3) + " ms";
  return three_digits(s) + " s";
}

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double v = static_cast<double>(bytes);
  int u = 0;
  while (std::fabs(v) >= 999.5 && u < 5) v /= 1024, ++u;
  return u ? three_digits(v) + " " + units[u] : fmt::format("{} B", bytes);
}

std::string count_text(double n) {
  const char* units[] = {"", " K", " M", " G", " T", " P"};
  int u = 0;
  while (std::fabs(n) >= 999.5 && u < 5) n /= 1000, ++u;
  return u ? three_digits(n) + units[u] : fmt::format("{:.0f}", n);
}

}  // namespace attnbench
