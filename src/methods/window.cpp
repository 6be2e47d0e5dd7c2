// Local window attention (Swin W-MSA): a baseline of the hilo card.
#include "methods/window_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

class Window final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i = layer_info("window", "local window attention layer (Swin W-MSA)", "window (softmax)");
      i.paper = "Swin Transformer, ICCV 2021; baseline of Fast Vision Transformers with HiLo Attention";
      i.arxiv = "2103.14030";
      i.summary =
          "Cuts the grid into non-overlapping w x w windows; every token attends to the tokens of its "
          "window. Sizes "
          "that w does not divide are zero-padded bottom and right before the projections.";
      i.formula =
          "per window: [q k v] = qkv(x);  o = softmax(q k^T / sqrt(D) + table) v per head;  out = proj(o)\n"
          "table: entry (yq-yk+w-1)(2w-1) + (xq-xk+w-1) of rel_pos_bias_table, when on";
      i.cost =
          "MACs per image, Np padded tokens: 4 Np C^2 + 2 Np w^2 C. Parameters 4 C^2 + C (+ 3 C with "
          "qkv_bias, "
          "+ (2w-1)^2 H with rel_pos_bias).";
      i.params = layer_params(window_params(0));
      i.figures = {{"CPU throughput", "B 64, 14x14, C 768, H 12, f32, win 7, no padding, no bias; i9-10900X",
                    "", "631 images/s", "HubHop/vit-attention-benchmark README"},
                   {"GPU throughput", "the same; RTX 3090", "", "4537 images/s",
                    "HubHop/vit-attention-benchmark README"},
                   {"MACs per image", "the same", "", "477.17 M", "HubHop/vit-attention-benchmark README"},
                   {"parameters", "the same", "", "2.36 M", "HubHop/vit-attention-benchmark README"}};
      i.notes.insert(
          i.notes.begin(),
          {"Padded tokens carry the biases as q, k and v and are not masked; the output projection runs on "
           "them too.",
           "clamp_window follows Swin's block; the published speed table's module does not clamp, which "
           "makes no difference at 14x14.",
           "With a shift above 0 this is shifted_window.",
           "rows() has a column per place of the padded grid."});
      i.example = image_problem(2, 9, 10, 24, 3);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const LayerShape shape = layer_shape(info(), problem, params);
    return make_window_layer(ctx, shape, window_options(info(), shape, params));
  }
};

ATTNBENCH_METHOD(Window);

}  // namespace
}  // namespace attnbench
