// Reference of shifted_window (card: hilo).
#include "reference/window_reference.hpp"

namespace attnbench {

namespace {

RefMap shifted_window(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  return vision_ref::window_layer(params, vision_ref::swin_rule(params), inputs, weights);
}

ATTNBENCH_REFERENCE(shifted_window, shifted_window);

}  // namespace
}  // namespace attnbench
