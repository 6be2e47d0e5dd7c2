// Global sub-sampled attention (Twins-SVT GSA): a baseline of the hilo card.
#include "methods/spatial_reduction.hpp"

namespace attnbench {

namespace {

using namespace vision;

class TwinsGsa final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i =
          layer_info("twins_gsa", "global sub-sampled attention layer (Twins-SVT)", "pooled keys (softmax)");
      i.paper = "Twins: Revisiting the Design of Spatial Attention in Vision Transformers, NeurIPS 2021";
      i.arxiv = "2104.13840";
      i.summary =
          "Spatial-reduction attention with the ratio of the stage (8, 4, 2, 1): the odd blocks of a Twins "
          "network "
          "(the even ones are twins_lsa).";
      i.formula =
          "q = q(x);  xr = LayerNorm(conv_r(x)), kernel = stride = r;  [k v] = kv(xr)\n"
          "o = softmax(q k^T / sqrt(D)) v per head over M = floor(Hg/r) floor(Wg/r) keys;  out = proj(o)";
      i.cost =
          "MACs per image: 2 N C^2 + M r^2 C^2 + 2 M C^2 + 2 N M C (+ 5 M C for the norm, as for sra). "
          "Parameters 4 C^2 "
          "+ C (+ 3 C with qkv_bias) + r^2 C^2 + 3 C.";
      i.params = layer_params(
          {spec::integer("sr_ratio", 2, 1, "r: side of the reducing patch; stages use 8, 4, 2, 1")});
      i.notes.insert(i.notes.begin(),
                     {"Left-over rows and columns of the grid are dropped by the convolution.",
                      "rows() has a column per reduced key."});
      i.example = image_problem(2, 7, 9, 16, 4);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    ReductionOptions o;
    o.ratio = params.integer("sr_ratio");
    o.qkv_bias = params.boolean("qkv_bias");
    return make_reduction_layer(ctx, info(), layer_shape(info(), problem, params), o);
  }
};

ATTNBENCH_METHOD(TwinsGsa);

}  // namespace
}  // namespace attnbench
