// Which keys a reference lets each query see, read off its output: for hand-computed tiny patterns.
#pragma once
#include "tests/methods/method_check.hpp"

namespace attnbench::testing {

/// Bit j of entry i: query i sees key j. With equal scores and the identity as values a row of the output is
/// positive at the seen keys. One head, one batch element, at most 62 keys.
inline std::vector<int64_t> visible_sets(const std::string& method, Problem p, const ParamMap& given) {
  const int64_t n = p.length, m = p.kv_length_or_length();
  REQUIRE(m <= 62);
  p.head_dim = m;
  RefTensor q({1, 1, n, m}), k({1, 1, m, m}), v({1, 1, m, m});
  for (int64_t j = 0; j < m; ++j) v[j * m + j] = 1;
  const RefTensor o =
      find_reference(method)(p, params_of(method, p, given), {{"q", q}, {"k", k}, {"v", v}}, {}).at("o");
  std::vector<int64_t> sets(static_cast<size_t>(n), 0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j)
      if (o[i * m + j] > 0) sets[static_cast<size_t>(i)] |= int64_t{1} << j;
  return sets;
}

/// The set of keys as a word, for expectations.
inline int64_t keys_word(const std::vector<int64_t>& keys) {
  int64_t bits = 0;
  for (const int64_t j : keys) bits |= int64_t{1} << j;
  return bits;
}

}  // namespace attnbench::testing
