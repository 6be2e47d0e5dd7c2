// Reference of `sliding_window`: the visibility rule tested pair by pair.
#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap sliding_window_rows(const Problem& problem, const Params& params, const RefMap& inputs, const RefMap&,
                           const std::vector<int64_t>& rows) {
  const int64_t n = inputs.at("q").dim(2), m = inputs.at("k").dim(2);
  const Value& given_right = params.value("right");
  const int64_t window = params.integer("window"), sinks = params.integer("sinks");
  const int64_t right = !given_right.is_null() ? given_right.as_int() : problem.causal ? 0 : window;
  return ref::attention_rows(inputs, ref::attention_scale(params, inputs), rows,
                             [&](int64_t, int64_t, int64_t i, std::vector<char>& visible) {
                               const int64_t centre = i + m - n;
                               for (int64_t j = 0; j < m; ++j) {
                                 const bool in_band = centre - j <= window && j - centre <= right;
                                 visible[static_cast<size_t>(j)] =
                                     (in_band || j < sinks) && (!problem.causal || j <= centre);
                               }
                             });
}

RefMap sliding_window_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                                const RefMap& weights) {
  return ref::all_rows(sliding_window_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(sliding_window, sliding_window_reference);
ATTNBENCH_ROW_REFERENCE(sliding_window, sliding_window_rows);

}  // namespace
}  // namespace attnbench
