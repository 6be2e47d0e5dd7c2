// Reference of msa (card: hilo): dense multi-head self-attention with projections.
#include "reference/vision_reference.hpp"

namespace attnbench {

namespace {

RefMap msa(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const int64_t c = params.integer("dim"), heads = params.integer("num_heads"), d = c / heads;
  const RefTensor qkv = vision_ref::linear(weights, "qkv", inputs.at("x"));
  const RefTensor o = vision_ref::dense(vision_ref::columns(qkv, 0, c), vision_ref::columns(qkv, c, 2 * c),
                                        heads, d, vision_ref::scale_of(params, d));
  return {{"out", vision_ref::linear(weights, "proj", o)}};
}

ATTNBENCH_REFERENCE(msa, msa);

}  // namespace
}  // namespace attnbench
