// Reference of window (card: hilo).
#include "reference/window_reference.hpp"

namespace attnbench {

namespace {

RefMap window(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  return vision_ref::window_layer(params, vision_ref::swin_rule(params), inputs, weights);
}

ATTNBENCH_REFERENCE(window, window);

}  // namespace
}  // namespace attnbench
