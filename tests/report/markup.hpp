// Checks that HTML and XML texts of this program are well-formed: every element closed in order, attributes
// quoted, no stray < or &, only elements and attributes that pages use. Stricter than a browser, which
// forgives.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

namespace markup {

inline size_t count(const std::string& text, const std::string& piece) {
  size_t n = 0;
  for (size_t at = text.find(piece); at != std::string::npos; at = text.find(piece, at + piece.size())) ++n;
  return n;
}

/// After each `begin`, the number that follows the next `before`.
inline std::vector<double> numbers(const std::string& text, const std::string& begin,
                                   const std::string& before) {
  std::vector<double> out;
  for (size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at + 1)) {
    const size_t there = text.find(before, at);
    if (there != std::string::npos) out.push_back(std::strtod(text.c_str() + there + before.size(), nullptr));
  }
  return out;
}

/// Full sentences; empty: well-formed. `xml`: no void elements, no raw text of scripts.
inline std::vector<std::string> problems(const std::string& text, bool xml = false) {
  static const std::set<std::string> voids{"meta", "link", "br", "input", "img", "hr"};
  static const std::set<std::string> entities{"lt", "gt", "amp", "quot", "#39", "middot", "apos"};
  std::vector<std::string> out, open;
  const auto say = [&](const std::string& what, size_t at) {
    out.push_back(what + " at byte " + std::to_string(at) + ": " + text.substr(at, 60));
  };
  const auto name_char = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == ':' || c == '.';
  };
  const auto check_text = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      if (text[i] == '<') say("a stray '<'", i);
      if (text[i] != '&') continue;
      const size_t semicolon = text.find(';', i);
      if (semicolon == std::string::npos || !entities.contains(text.substr(i + 1, semicolon - i - 1)))
        say("a stray '&'", i);
    }
  };
  size_t i = 0;
  while (i < text.size() && out.size() < 5) {
    if (text[i] != '<') {
      const size_t end = std::min(text.find('<', i), text.size());
      check_text(i, end);
      i = end;
      continue;
    }
    const size_t begin = i++;
    if (text[i] == '!' || text[i] == '?') {  // the document type or the XML declaration, once at the top
      if (begin != 0) say("a declaration", begin);
      i = text.find('>', i) + 1;
      continue;
    }
    const bool closing = text[i] == '/';
    if (closing) ++i;
    std::string element;
    while (i < text.size() && name_char(text[i])) element += text[i++];
    if (element.empty()) {
      say("a stray '<'", begin);
      continue;
    }
    bool self = false;
    std::set<std::string> seen;
    while (i < text.size() && text[i] != '>') {
      if (text[i] == ' ' || text[i] == '\n') {
        ++i;
        continue;
      }
      if (text[i] == '/' && i + 1 < text.size() && text[i + 1] == '>') {
        self = true;
        ++i;
        continue;
      }
      std::string attribute;
      while (i < text.size() && name_char(text[i])) attribute += text[i++];
      if (attribute.empty() || closing) {
        say("a broken tag", begin);
        break;
      }
      if (!seen.insert(attribute).second) say("the attribute " + attribute + " twice", begin);
      if (attribute.starts_with("on")) say("the event handler " + attribute, begin);
      if (text[i] != '=') {
        if (xml) say("an attribute without value", begin);
        continue;  // hidden, data-count
      }
      if (text[++i] != '"') {
        say("an attribute without quotes", begin);
        break;
      }
      const size_t end = text.find('"', ++i);
      if (end == std::string::npos) {
        say("an attribute without end", begin);
        return out;
      }
      check_text(i, end);
      i = end + 1;
      if (i < text.size() && text[i] != ' ' && text[i] != '>' && text[i] != '/' && text[i] != '\n')
        say("attributes without space between", begin);
    }
    ++i;
    if (self || (!xml && voids.contains(element))) continue;
    if (!closing) {
      open.push_back(element);
      if (!xml && (element == "script" || element == "style"))
        i = std::min(text.find("</" + element + ">", i), text.size());
    } else if (open.empty() || open.back() != element) {
      say("</" + element + "> closes " + (open.empty() ? "nothing" : "<" + open.back() + ">"), begin);
    } else {
      open.pop_back();
    }
  }
  if (!open.empty() && out.empty()) out.push_back("<" + open.back() + "> is not closed");
  return out;
}

}  // namespace markup
