// Reference of `random_blocks`: a block is chosen when few enough allowed blocks rank before it; pairs tested
// one by one.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap random_blocks_rows(const Problem& problem, const Params& params, const RefMap& inputs, const RefMap&,
                          const std::vector<int64_t>& rows) {
  const int64_t m = inputs.at("k").dim(2);
  const int64_t block = params.integer("block_size"), columns = (m + block - 1) / block;
  const auto seed = static_cast<uint64_t>(params.integer("pattern_seed"));
  const auto chosen = [&](int64_t r, int64_t c) {
    const int64_t allowed = problem.causal ? r + 1 : columns;
    if (c >= allowed) return false;
    const double wanted = std::round((1.0 - params.number("sparsity")) * static_cast<double>(allowed));
    int64_t before = 0;
    const auto rank = [&](int64_t x) {
      return random_bits(seed, stream_of("random_blocks"), static_cast<uint64_t>(r * columns + x));
    };
    if (problem.causal && c == r) return true;
    if (problem.causal) ++before;  // the diagonal
    for (int64_t x = 0; x < allowed; ++x)
      if (x != c && !(problem.causal && x == r) && (rank(x) < rank(c) || (rank(x) == rank(c) && x < c)))
        ++before;
    return static_cast<double>(before) < std::max(1.0, wanted);
  };
  // Which blocks a block of queries reads is the same for every batch and head.
  const int64_t n = inputs.at("q").dim(2);
  std::map<int64_t, std::vector<char>> reads;
  for (const int64_t row : rows) {
    std::vector<char>& of = reads[row % n / block];
    if (!of.empty()) continue;
    of.resize(static_cast<size_t>(columns));
    for (int64_t c = 0; c < columns; ++c) of[static_cast<size_t>(c)] = chosen(row % n / block, c);
  }
  return ref::attention_rows(inputs, ref::attention_scale(params, inputs), rows,
                             [&](int64_t, int64_t, int64_t i, std::vector<char>& visible) {
                               const std::vector<char>& of = reads.at(i / block);
                               for (int64_t j = 0; j < m; ++j)
                                 visible[static_cast<size_t>(j)] =
                                     of[static_cast<size_t>(j / block)] && (!problem.causal || j <= i);
                             });
}

RefMap random_blocks_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                               const RefMap& weights) {
  return ref::all_rows(random_blocks_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(random_blocks, random_blocks_reference);
ATTNBENCH_ROW_REFERENCE(random_blocks, random_blocks_rows);

}  // namespace
}  // namespace attnbench
