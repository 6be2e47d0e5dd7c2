#include "measure/plan.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <numeric>
#include <set>

namespace attnbench {

namespace {

/// Number of axes with equal values, or -1 when one differs.
int shared_axes(const std::map<std::string, Value>& a, const std::map<std::string, Value>& b) {
  int shared = 0;
  for (const auto& [key, value] : a) {
    const auto it = b.find(key);
    if (it == b.end()) continue;
    if (!(it->second == value)) return -1;
    ++shared;
  }
  return shared;
}

/// The cases that calls in a claim's expression name: sra and hilo in "time(sra) / time(hilo[batch=64])".
std::set<std::string> called_names(const std::string& expression) {
  std::set<std::string> names;
  for (size_t open = expression.find('('); open != std::string::npos; open = expression.find('(', open + 1)) {
    // The case is the first argument, up to its axis values or the next argument.
    const size_t close = expression.find_first_of("()[,", open + 1);
    if (close == std::string::npos || expression[close] == '(') continue;
    if (open == 0 ||
        !(std::isalnum(static_cast<unsigned char>(expression[open - 1])) || expression[open - 1] == '_'))
      continue;
    std::string s = expression.substr(open + 1, close - open - 1);
    const size_t a = s.find_first_not_of(" \t'\""), b = s.find_last_not_of(" \t'\"");
    if (a != std::string::npos) names.insert(s.substr(a, b - a + 1));
  }
  return names;
}

}  // namespace

bool comparable(const Problem& a, const Problem& b) {
  return a.kind == b.kind && a.batch == b.batch && a.tokens() == b.tokens() && a.size == b.size &&
         a.samples == b.samples;
}

std::optional<size_t> baseline_of(const Suite& suite, size_t i) {
  const Case& c = suite.cases[i];
  if (suite.baseline.empty() || c.base_name == suite.baseline || c.name == suite.baseline)
    return std::nullopt;
  std::optional<size_t> best;
  int most = -1;
  for (size_t j = 0; j < suite.cases.size(); ++j) {
    const Case& b = suite.cases[j];
    if ((b.base_name != suite.baseline && b.name != suite.baseline) || b.device != c.device ||
        !comparable(b.problem, c.problem))
      continue;
    const int shared = shared_axes(c.axes, b.axes);
    if (shared > most) most = shared, best = j;
  }
  return best;
}

std::vector<std::vector<size_t>> comparison_groups(const Suite& suite) {
  const size_t n = suite.cases.size();
  std::vector<size_t> root(n);
  std::iota(root.begin(), root.end(), size_t{0});
  const auto find = [&root](size_t i) {
    while (root[i] != i) i = root[i] = root[root[i]];
    return i;
  };
  const auto join = [&](size_t a, size_t b) {
    a = find(a), b = find(b);
    root[std::max(a, b)] = std::min(a, b);
  };
  for (size_t i = 0; i < n; ++i)
    if (const auto b = baseline_of(suite, i)) join(i, *b);
  for (const Claim& claim : suite.claims) {
    const std::set<std::string> names = called_names(claim.expression);
    std::vector<size_t> named;
    for (size_t i = 0; i < n; ++i) {
      const Case& c = suite.cases[i];
      if (!names.contains(c.name) && !names.contains(c.base_name)) continue;
      if (!claim.device.empty() && claim.device != c.device) continue;
      if (shared_axes(claim.axes, c.axes) < 0) continue;
      named.push_back(i);
    }
    // A claim with free axes holds once per value of each: only cases that agree are joined.
    for (size_t a = 0; a < named.size(); ++a)
      for (size_t b = a + 1; b < named.size(); ++b) {
        const Case &x = suite.cases[named[a]], &y = suite.cases[named[b]];
        if (x.device == y.device && x.base_name != y.base_name && shared_axes(x.axes, y.axes) >= 0)
          join(named[a], named[b]);
      }
  }
  std::map<size_t, std::vector<size_t>> sets;
  for (size_t i = 0; i < n; ++i) sets[find(i)].push_back(i);
  std::vector<std::vector<size_t>> groups;
  for (auto& [first, members] : sets) groups.push_back(std::move(members));
  return groups;
}

std::vector<Batch> fit_into_memory(const std::vector<size_t>& group, std::optional<size_t> baseline,
                                   const std::vector<int64_t>& bytes, int64_t limit) {
  std::vector<size_t> rest = group;
  std::vector<Batch> batches;
  bool baseline_measured = false;
  // The baseline goes first, so that later batches can have it as a partner.
  if (baseline) {
    const auto it = std::find(rest.begin(), rest.end(), *baseline);
    if (it == rest.end())
      baseline.reset();
    else
      std::rotate(rest.begin(), it, it + 1);
  }
  while (!rest.empty()) {
    Batch batch;
    int64_t used = 0;
    const auto fits = [&](size_t i) { return limit <= 0 || used + bytes[i] <= limit; };
    if (baseline && baseline_measured && (limit <= 0 || bytes[*baseline] + bytes[rest.front()] <= limit)) {
      batch.partner = baseline;
      used += bytes[*baseline];
    }
    std::vector<size_t> left;
    for (const size_t i : rest) {
      if (batch.members.empty() || fits(i)) {
        batch.members.push_back(i);
        used += bytes[i];
        if (baseline == i) baseline_measured = true;
      } else {
        left.push_back(i);
      }
    }
    // Within a batch the suite's order holds.
    std::sort(batch.members.begin(), batch.members.end());
    batches.push_back(batch);
    rest = left;
  }
  return batches;
}

}  // namespace attnbench
