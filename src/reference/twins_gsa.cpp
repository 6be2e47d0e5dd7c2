// Reference of twins_gsa (card: hilo).
#include "reference/reduction_reference.hpp"

namespace attnbench {

namespace {

RefMap twins_gsa(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  return vision_ref::spatial_reduction(params, inputs, weights);
}

ATTNBENCH_REFERENCE(twins_gsa, twins_gsa);

}  // namespace
}  // namespace attnbench
