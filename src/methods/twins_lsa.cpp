// Locally-grouped self-attention (Twins-SVT LSA): a baseline of the hilo card.
#include "methods/window_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

class TwinsLsa final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i =
          layer_info("twins_lsa", "locally-grouped self-attention layer (Twins-SVT)", "window (softmax)");
      i.paper = "Twins: Revisiting the Design of Spatial Attention in Vision Transformers, NeurIPS 2021";
      i.arxiv = "2104.13840";
      i.summary =
          "Window attention without shift and position bias: the even blocks of a Twins network (the odd "
          "ones are "
          "twins_gsa). Padding is dropped before the output projection.";
      i.formula =
          "per w x w window: [q k v] = qkv(x);  o = softmax(q k^T / sqrt(D)) v per head;  out = "
          "proj(crop(o))";
      i.cost =
          "MACs per image, Np padded tokens: 3 Np C^2 + 2 Np w^2 C + N C^2. Parameters 4 C^2 + C (+ 3 C with "
          "qkv_bias).";
      i.params = layer_params({spec::integer("win", 7, 1, "w: side of a window; never clamped to the grid")});
      i.notes.insert(
          i.notes.begin(),
          {"The classification code needs sizes that w divides; other sizes follow the detection code: "
           "zero-padding bottom and right before the projections, cropping before the output projection.",
           "rows() has a column per place of the padded grid."});
      i.example = image_problem(2, 9, 11, 16, 4);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    WindowLayerOptions o;
    o.win = params.integer("win");
    o.qkv_bias = params.boolean("qkv_bias");
    o.crop_before_proj = true;
    return make_window_layer(ctx, layer_shape(info(), problem, params), o);
  }
};

ATTNBENCH_METHOD(TwinsLsa);

}  // namespace
}  // namespace attnbench
