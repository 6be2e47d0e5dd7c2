// Linear spatial-reduction attention (PVT v2): a baseline of the hilo card.
#include "methods/spatial_reduction.hpp"

namespace attnbench {

namespace {

using namespace vision;

class SraLinear final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i = layer_info("sra_linear", "linear spatial-reduction attention layer (PVT v2)",
                                "pooled keys (softmax)");
      i.paper = "PVT v2: Improved Baselines with Pyramid Vision Transformer, Computational Visual Media 2022";
      i.arxiv = "2106.13797";
      i.summary =
          "Every token attends to a grid of fixed size: adaptive average pooling, a 1x1 convolution, "
          "LayerNorm and "
          "GELU make the keys and values, so the cost is linear in the number of tokens.";
      i.formula =
          "q = q(x);  xr = GELU(LayerNorm(conv_1x1(adaptive_avg_pool_p(x))));  [k v] = kv(xr)\n"
          "o = softmax(q k^T / sqrt(D)) v per head over M = p^2 keys;  out = proj(o)\n"
          "cell i of the pooling covers rows floor(i Hg / p) .. ceil((i + 1) Hg / p) - 1";
      i.cost =
          "MACs per image: 2 N C^2 + 3 M C^2 + 2 N M C, M = p^2. Parameters 4 C^2 + C (+ 3 C with qkv_bias) "
          "+ C^2 + "
          "3 C.";
      i.params = layer_params({spec::integer("pool_size", 7, 1, "p: side of the pooled grid")});
      i.notes.insert(i.notes.begin(),
                     {"M is p^2 also when the grid is smaller than the pool: cells repeat.",
                      "GELU is the exact one (erf).", "rows() has a column per pooled key."});
      i.example = image_problem(2, 9, 12, 32, 4);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    ReductionOptions o;
    o.pool = params.integer("pool_size");
    o.qkv_bias = params.boolean("qkv_bias");
    return make_reduction_layer(ctx, info(), layer_shape(info(), problem, params), o);
  }
};

ATTNBENCH_METHOD(SraLinear);

}  // namespace
}  // namespace attnbench
