// Shifted window attention (Swin SW-MSA): a baseline of the hilo card.
#include "methods/window_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

class ShiftedWindow final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i =
          layer_info("shifted_window", "shifted window attention layer (Swin SW-MSA)", "window (softmax)");
      i.paper = "Swin Transformer, ICCV 2021; baseline of Fast Vision Transformers with HiLo Attention";
      i.arxiv = "2103.14030";
      i.summary =
          "Window attention on the cyclically shifted grid, so that neighbouring windows of the unshifted "
          "layer meet. "
          "Pairs that the shift brought together from opposite edges get -100 added to their score.";
      i.formula =
          "pad, roll by (-t, -t), cut into w x w windows\n"
          "per window: [q k v] = qkv(x);  o = softmax(q k^T / sqrt(D) + table + mask) v per head;  y = "
          "proj(o)\n"
          "mask = -100 where the labels of the two places differ; rows are cut at Hp-w and Hp-t, columns at "
          "Wp-w and "
          "Wp-t\n"
          "out = y rolled back by (t, t) and cropped";
      i.cost =
          "MACs per image, Np padded tokens: 4 Np C^2 + 2 Np w^2 C (masked pairs are computed). Parameters 4 "
          "C^2 + C "
          "(+ 3 C with qkv_bias, + (2w-1)^2 H with rel_pos_bias).";
      i.params = layer_params(window_params(3));
      i.figures = {{"CPU throughput", "B 64, 14x14, C 768, H 12, f32, win 7, shift 3; i9-10900X", "",
                    "374 images/s", "HubHop/vit-attention-benchmark README"},
                   {"GPU throughput", "the same; RTX 3090", "", "4351 images/s",
                    "HubHop/vit-attention-benchmark README"}};
      i.notes.insert(i.notes.begin(), {"The mask is additive and finite, as in the original: not a removal "
                                       "of pairs. pairs() and the visible-key "
                                       "counts leave masked pairs out; rows() has their (vanishing) weights.",
                                       "Windows with the same mask pattern (interior, right edge, bottom "
                                       "edge, corner) are attended together, each "
                                       "pattern with one bias of w^2 x w^2.",
                                       "The published benchmark rebuilds the mask in every call: "
                                       "rebuild_mask true does so too (stage `mask`).",
                                       "Padded tokens carry the biases as q, k and v, roll along, and are "
                                       "not masked for being padding."});
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

ATTNBENCH_METHOD(ShiftedWindow);

}  // namespace
}  // namespace attnbench
