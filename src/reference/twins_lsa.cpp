// Reference of twins_lsa (card: hilo): windows never clamped, padding dropped before the projection.
#include "reference/window_reference.hpp"

namespace attnbench {

namespace {

RefMap twins_lsa(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  vision_ref::WindowRule rule;
  rule.w = params.integer("win");
  rule.crop_before_proj = true;
  return vision_ref::window_layer(params, rule, inputs, weights);
}

ATTNBENCH_REFERENCE(twins_lsa, twins_lsa);

}  // namespace
}  // namespace attnbench
