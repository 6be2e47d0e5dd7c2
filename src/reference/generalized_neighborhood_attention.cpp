// Reference of `generalized_neighborhood_attention`: its windows key by key. Tiles, permutation and tiling
// change nothing about the result.
#include "reference/neighborhood_reference.hpp"

namespace attnbench {
namespace {

RefMap generalized_neighborhood_rows(const Problem& problem, const Params& params, const RefMap& inputs,
                                     const RefMap&, const std::vector<int64_t>& rows) {
  const auto axes = ref::neighborhood_axes(problem, params, {{7}, {7, 7}, {18, 24, 24}}, true);
  const double d = static_cast<double>(inputs.at("q").shape.back());
  return {{"o", ref::neighborhood(axes, 1.0 / std::sqrt(d), false, inputs, rows)}};
}

RefMap generalized_neighborhood_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                                          const RefMap& weights) {
  return ref::all_rows(generalized_neighborhood_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(generalized_neighborhood_attention, generalized_neighborhood_reference);
ATTNBENCH_ROW_REFERENCE(generalized_neighborhood_attention, generalized_neighborhood_rows);

}  // namespace
}  // namespace attnbench
