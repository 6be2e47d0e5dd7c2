// Spatial-reduction attention (PVT v1): a baseline of the hilo card.
#include "methods/spatial_reduction.hpp"

namespace attnbench {

namespace {

using namespace vision;

class Sra final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i = layer_info("sra", "spatial-reduction attention layer (PVT)", "pooled keys (softmax)");
      i.paper =
          "Pyramid Vision Transformer, ICCV 2021; baseline of Fast Vision Transformers with HiLo Attention";
      i.arxiv = "2102.12122";
      i.summary =
          "Every token attends to a reduced grid: a strided convolution with LayerNorm turns r x r patches "
          "into one key "
          "and one value.";
      i.formula =
          "q = q(x);  xr = LayerNorm(conv_r(x)), kernel = stride = r;  [k v] = kv(xr)\n"
          "o = softmax(q k^T / sqrt(D)) v per head over M = floor(Hg/r) floor(Wg/r) keys;  out = proj(o)\n"
          "r = 1: no convolution, no norm: msa";
      i.cost =
          "MACs per image: 2 N C^2 + M r^2 C^2 + 2 M C^2 + 2 N M C; the published table adds 5 M C for the "
          "norm. "
          "Parameters 4 C^2 + C (+ 3 C with qkv_bias) + r^2 C^2 + 3 C.";
      i.params = layer_params(
          {spec::integer("sr_ratio", 2, 1, "r: side of the reducing patch; 1 is plain attention")});
      i.figures = {{"CPU throughput", "B 64, 14x14, C 768, H 12, f32, sr_ratio 2; i9-10900X", "",
                    "710 images/s", "HubHop/vit-attention-benchmark README"},
                   {"GPU throughput", "the same; RTX 3090", "", "4810 images/s",
                    "HubHop/vit-attention-benchmark README"},
                   {"MACs per image", "the same", "", "419.56 M", "HubHop/vit-attention-benchmark README"},
                   {"parameters", "the same", "", "4.72 M", "HubHop/vit-attention-benchmark README"}};
      i.notes.insert(i.notes.begin(),
                     {"Left-over rows and columns of the grid are dropped by the convolution, not padded.",
                      "The convolution starts like the linear layers, truncated normal of 0.02 (chosen).",
                      "rows() has a column per reduced key."});
      i.example = image_problem(2, 9, 7, 32, 4);
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

ATTNBENCH_METHOD(Sra);

}  // namespace
}  // namespace attnbench
