// Problems and shapes that the tests of both neighbourhood methods share.
#pragma once
#include "kernels/attention/neighborhood.hpp"
#include "tests/methods/method_check.hpp"

namespace attnbench::testing {

inline Problem grid_problem(std::vector<int64_t> grid, int64_t batch = 1, int64_t heads = 1,
                            int64_t kv_heads = 1, int64_t head_dim = 8, DType dtype = DType::f32) {
  Problem p;
  p.batch = batch, p.heads = heads, p.kv_heads = kv_heads, p.head_dim = head_dim, p.dtype = dtype;
  if (grid.size() == 1) {
    p.length = grid[0];
  } else {
    p.kind = grid.size() == 2 ? ProblemKind::image : ProblemKind::video;
    p.grid = std::move(grid);
  }
  return p;
}
inline Value ints(std::vector<int64_t> v) {
  Value::List l;
  for (int64_t x : v) l.emplace_back(x);
  return l;
}
inline Value flags(std::vector<bool> v) {
  Value::List l;
  for (const bool x : v) l.emplace_back(x);
  return l;
}

/// Tokens that the reference lets each query of a one-head problem see: with equal scores the output is the
/// mean of their values, and values 2^j spell out the set (up to 24 tokens).
inline std::vector<int64_t> reference_sets(const std::string& method, const Problem& p,
                                           const ParamMap& given) {
  const int64_t n = p.tokens();
  std::vector<int64_t> shape{1};
  if (p.grid.empty())
    shape.push_back(n);
  else
    shape.insert(shape.end(), p.grid.begin(), p.grid.end());
  shape.push_back(1), shape.push_back(1);
  RefTensor q(shape), k(shape), v(shape);
  for (int64_t j = 0; j < n; ++j) v[j] = std::exp2(static_cast<double>(j));
  const RefTensor o =
      find_reference(method)(p, params_of(method, p, given), {{"q", q}, {"k", k}, {"v", v}}, {}).at("o");
  std::vector<int64_t> sets;
  for (int64_t i = 0; i < n; ++i) {
    int64_t found = 0;
    for (int64_t count = 1; count <= n && !found; ++count) {
      const double bits = o[i] * static_cast<double>(count);
      const auto whole = static_cast<int64_t>(std::llround(bits));
      if (std::abs(bits - static_cast<double>(whole)) < 1e-6 &&
          __builtin_popcountll(static_cast<uint64_t>(whole)) == count)
        found = whole;
    }
    sets.push_back(found);
  }
  return sets;
}

}  // namespace attnbench::testing
