// Reference of `neighborhood_attention`: its windows key by key, whichever the implementation.
#include "reference/neighborhood_reference.hpp"

namespace attnbench {
namespace {

RefMap neighborhood_rows(const Problem& problem, const Params& params, const RefMap& inputs,
                         const RefMap& weights, const std::vector<int64_t>& rows) {
  const auto axes = ref::neighborhood_axes(problem, params, {{7}, {7, 7}, {7, 7, 7}}, false);
  const double d = static_cast<double>(inputs.at("q").shape.back());
  const double scale = params.is_null("scale") ? 1.0 / std::sqrt(d) : params.number("scale");
  const bool heads_first = params.choice("implementation") != "fused";
  ref::NeighborhoodBias bias;
  if (params.boolean("rel_pos_bias")) {
    const RefTensor& table = weights.at("rel_pos_bias");
    bias = [&axes, &table](int64_t h, const std::vector<int64_t>& i, const std::vector<int64_t>& j) {
      int64_t at = h;
      for (size_t a = 0; a < axes.size(); ++a) {
        // Both are of one dilation group: their distance is whole steps.
        const int64_t steps = (j[a] - i[a]) / axes[a].dilation;
        at = at * (2 * axes[a].window - 1) + steps + axes[a].window - 1;
      }
      return table[at];
    };
  }
  return {{"o", ref::neighborhood(axes, scale, heads_first, inputs, rows, bias)}};
}

RefMap neighborhood_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                              const RefMap& weights) {
  return ref::all_rows(neighborhood_rows, problem, params, inputs, weights, inputs.at("q").shape);
}
ATTNBENCH_REFERENCE(neighborhood_attention, neighborhood_reference);
ATTNBENCH_ROW_REFERENCE(neighborhood_attention, neighborhood_rows);

}  // namespace
}  // namespace attnbench
