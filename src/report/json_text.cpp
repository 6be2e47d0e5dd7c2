#include "report/json_text.hpp"

#include <algorithm>

namespace attnbench {

namespace {

/// Walks valid JSON without building it; nesting costs no stack.
struct Scanner {
  std::string_view text;
  size_t at = 0;

  bool end() const { return at >= text.size(); }
  void space() {
    while (!end() && std::string_view(" \t\r\n").find(text[at]) != std::string_view::npos) ++at;
  }
  /// The raw characters between the quotes, escapes left as they are.
  std::string_view string() {
    const size_t begin = ++at;
    while (!end() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
    const size_t stop = std::min(at, text.size());
    at = stop + 1;
    return text.substr(begin, stop - begin);
  }
  void skip_value() {
    space();
    size_t depth = 0;
    do {
      if (end()) return;
      const char c = text[at];
      if (c == '"') {
        string();
      } else if (c == '{' || c == '[') {
        ++depth, ++at;
      } else if (c == '}' || c == ']') {
        --depth, ++at;
      } else if (depth > 0) {
        ++at;
      } else {
        while (!end() && std::string_view(",]} \t\r\n").find(text[at]) == std::string_view::npos) ++at;
      }
    } while (depth > 0);
  }
  /// Moves from the start of a container to the value of one step; false when it is not there.
  bool enter(std::string_view step) {
    space();
    if (end() || (text[at] != '{' && text[at] != '[')) return false;
    const bool object = text[at++] == '{';
    for (size_t index = 0;; ++index) {
      space();
      if (end() || text[at] == '}' || text[at] == ']') return false;
      bool here = !object && std::to_string(index) == step;
      if (object) {
        here = string() == step;
        space();
        ++at;  // the colon
      }
      space();
      if (here) return true;
      skip_value();
      space();
      if (!end() && text[at] == ',') ++at;
    }
  }
};

std::string unescaped(std::string_view step) {
  std::string s;
  for (size_t i = 0; i < step.size(); ++i) {
    if (step[i] == '~' && i + 1 < step.size()) {
      s += step[++i] == '1' ? '/' : '~';
    } else {
      s += step[i];
    }
  }
  return s;
}

}  // namespace

std::string pointer_step(std::string_view key) {
  std::string s;
  for (char c : key) {
    if (c == '~') {
      s += "~0";
    } else if (c == '/') {
      s += "~1";
    } else {
      s += c;
    }
  }
  return s;
}

size_t json_offset(std::string_view text, std::string_view pointer) {
  Scanner scan{text};
  scan.space();
  size_t found = scan.at;
  while (!pointer.empty()) {
    const size_t end = pointer.find('/', 1);
    const std::string step = unescaped(pointer.substr(1, end == std::string_view::npos ? end : end - 1));
    pointer = end == std::string_view::npos ? "" : pointer.substr(end);
    if (!scan.enter(step)) break;
    found = scan.at;
  }
  return std::min(found, text.size());
}

size_t too_deep(std::string_view text, size_t limit) {
  Scanner scan{text};
  size_t depth = 0;
  while (!scan.end()) {
    const char c = text[scan.at];
    if (c == '"') {
      scan.string();
      continue;
    }
    if ((c == '{' || c == '[') && ++depth > limit) return scan.at;
    if ((c == '}' || c == ']') && depth > 0) --depth;
    ++scan.at;
  }
  return std::string_view::npos;
}

std::string line_and_column(std::string_view text, size_t offset) {
  offset = std::min(offset, text.size());
  const std::string_view before = text.substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t start = before.rfind('\n');
  const size_t column = offset - (start == std::string_view::npos ? 0 : start + 1) + 1;
  return "line " + std::to_string(line) + ", column " + std::to_string(column);
}

}  // namespace attnbench
