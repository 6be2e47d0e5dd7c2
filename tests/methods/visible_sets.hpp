// Which keys a reference lets each query see, spelled out by its output: for hand-computed tiny patterns.
#pragma once
#include "tests/methods/method_check.hpp"

namespace attnbench::testing {

/// Bit j of entry i: query i sees key j. With equal scores the output is the mean of the seen values, and
/// values 2^j spell out the set. One head, one batch element, at most 40 keys (a double tells them apart).
inline std::vector<int64_t> visible_sets(const std::string& method, const Problem& p, const ParamMap& given) {
  const int64_t n = p.length, m = p.kv_length_or_length();
  REQUIRE(m <= 40);
  RefTensor q({1, 1, n, 1}), k({1, 1, m, 1}), v({1, 1, m, 1});
  for (int64_t j = 0; j < m; ++j) v[j] = std::exp2(static_cast<double>(j));
  const RefTensor o =
      find_reference(method)(p, params_of(method, p, given), {{"q", q}, {"k", k}, {"v", v}}, {}).at("o");
  std::vector<int64_t> sets;
  for (int64_t i = 0; i < n; ++i) {
    int64_t found = 0;
    for (int64_t count = 1; count <= m && !found; ++count) {
      const double bits = o[i] * static_cast<double>(count);
      const auto whole = static_cast<int64_t>(std::llround(bits));
      if (std::abs(bits - static_cast<double>(whole)) < 1e-3 &&
          __builtin_popcountll(static_cast<uint64_t>(whole)) == count)
        found = whole;
    }
    sets.push_back(found);
  }
  return sets;
}

/// The set of keys as a word, for expectations.
inline int64_t keys_word(const std::vector<int64_t>& keys) {
  int64_t bits = 0;
  for (const int64_t j : keys) bits |= int64_t{1} << j;
  return bits;
}

}  // namespace attnbench::testing
