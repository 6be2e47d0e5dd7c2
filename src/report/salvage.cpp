#include "report/salvage.hpp"

#include <optional>
#include <vector>

#include "measure/case_id.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

/// Where each whole element of the root's list "cases" ends, and where the list begins. No parser: it only
/// counts brackets outside strings, so it works on texts that end anywhere.
struct Ends {
  size_t list_begin = std::string::npos;  ///< after its bracket
  std::vector<size_t> cases;
};

Ends ends_in(const std::string& text) {
  Ends ends;
  std::string closers, key;
  bool in_cases = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      const size_t begin = i + 1;
      for (++i; i < text.size() && text[i] != '"'; ++i)
        if (text[i] == '\\') ++i;
      if (i >= text.size()) return ends;
      if (closers.size() == 1) {
        const size_t after = text.find_first_not_of(" \t\r\n", i + 1);
        if (after != std::string::npos && text[after] == ':') key = text.substr(begin, i - begin);
      }
    } else if (c == '{' || c == '[') {
      closers += c == '{' ? '}' : ']';
      if (closers.size() == 2 && c == '[' && key == "cases") in_cases = true, ends.list_begin = i + 1;
    } else if (c == '}' || c == ']') {
      if (closers.empty() || closers.back() != c) return ends;
      closers.pop_back();
      if (in_cases && closers.size() == 2) ends.cases.push_back(i + 1);
      if (in_cases && closers.size() == 1) return ends;
    }
  }
  return ends;
}

}  // namespace

Salvage salvage_results(const std::string& text, const std::string& file) {
  std::string damage;
  try {
    return {run_from_json(text, file), ""};
  } catch (const DataError& e) {
    damage = e.what();
  }
  const Ends ends = ends_in(text);
  if (ends.list_begin == std::string::npos)
    throw DataError(damage + "; nothing can be saved: the file ends before its first case");
  std::string first_wrong;
  const auto read = [&](size_t n) -> std::optional<RunResult> {
    const std::string whole =
        text.substr(0, n == 0 ? ends.list_begin : ends.cases[n - 1]) + "],\"claims\":[]}";
    try {
      return run_from_json(whole, file);
    } catch (const DataError&) {
      return std::nullopt;
    }
  };
  std::optional<RunResult> best = read(0);
  if (!best) throw DataError(damage + "; nothing can be saved: the run's head is damaged");
  // A text that is whole up to its n-th case is so up to every earlier one.
  size_t low = 0, high = ends.cases.size();
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    if (std::optional<RunResult> r = read(middle)) {
      best = std::move(r);
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  Salvage s;
  s.run = std::move(*best);
  s.run.interrupted = true;
  const size_t planned = s.run.suite.cases.size();
  s.note = damage + "; saved " + std::to_string(low) + " of " + std::to_string(planned) + " cases";
  return s;
}

}  // namespace attnbench
