// Reference of `dense` and `naive`: softmax attention over every (causal) pair, row by row.
#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap dense_rows(const Problem& problem, const Params& params, const RefMap& inputs, const RefMap&,
                  const std::vector<int64_t>& rows) {
  const int64_t n = inputs.at("q").dim(2), m = inputs.at("k").dim(2);
  return ref::attention_rows(inputs, ref::attention_scale(params, inputs), rows,
                             [&](int64_t, int64_t, int64_t i, std::vector<char>& visible) {
                               for (int64_t j = 0; j < m; ++j)
                                 visible[static_cast<size_t>(j)] = !problem.causal || j <= i + (m - n);
                             });
}

RefMap dense_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                       const RefMap& weights) {
  return ref::all_rows(dense_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(dense, dense_reference);
ATTNBENCH_REFERENCE(naive, dense_reference);
ATTNBENCH_ROW_REFERENCE(dense, dense_rows);
ATTNBENCH_ROW_REFERENCE(naive, dense_rows);

}  // namespace
}  // namespace attnbench
