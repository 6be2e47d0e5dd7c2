// Reference of sra (card: hilo).
#include "reference/reduction_reference.hpp"

namespace attnbench {

namespace {

RefMap sra(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  return vision_ref::spatial_reduction(params, inputs, weights);
}

ATTNBENCH_REFERENCE(sra, sra);

}  // namespace
}  // namespace attnbench
