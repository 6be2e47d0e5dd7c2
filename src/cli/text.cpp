#include "cli/text.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace attnbench {

size_t display_width(const std::string& s) {
  return static_cast<size_t>(std::count_if(
      s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
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

std::string TextTable::str(bool color, const std::string& indent) const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    size_t w = display_width(columns_[c].first);
    for (const Row& r : rows_) w = std::max(w, display_width(r.cells[c]));
    widths.push_back(w);
  }
  const auto line = [&](const auto& cell_of) {
    std::string s = indent;
    for (size_t c = 0; c < columns_.size(); ++c) {
      const std::string& cell = cell_of(c);
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

void print_data(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace attnbench
