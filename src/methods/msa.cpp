// Multi-head self-attention of a vision layer: the dense baseline of the hilo card, projections included.
#include "methods/vision_layer.hpp"

namespace attnbench {

namespace {

using namespace vision;

class MsaInstance final : public LayerInstance {
 public:
  MsaInstance(Context& ctx, const LayerShape& shape, bool qkv_bias)
      : LayerInstance(ctx, shape), qkv_bias_(qkv_bias) {
    const int64_t c = s_.channels;
    add_linear(weight_specs_, "qkv", 3 * c, c, qkv_bias, s_.dtype, "projections, rows (q|k|v, head, d)");
    add_linear(weight_specs_, "proj", c, c, true, s_.dtype, "output projection");
  }

  ClosedForm cost() const override {
    const int64_t c = s_.channels, n = s_.tokens();
    ClosedForm f;
    f.cost = linear_cost(s_.rows(), c, 3 * c, qkv_bias_, s_.dtype) +
             attend_cost(s_.batch, s_.heads, n, n, s_.head_dim, s_.dtype) +
             linear_cost(s_.rows(), c, c, true, s_.dtype);
    f.published_macs = 4 * n * c * c + 2 * n * n * c;
    f.published_macs_note = "4 N C^2 + 2 N^2 C";
    f.parameters = 4 * c * c + c + (qkv_bias_ ? 3 * c : 0);
    return f;
  }

  int64_t keys(int64_t) const override { return s_.tokens(); }

 protected:
  void forward(Context& ctx, Trace* trace) override {
    const int64_t c = s_.channels, n = s_.tokens(), h = s_.heads, d = s_.head_dim;
    Tensor qkv = workspace(ctx, s_.rows(), 3 * c);
    const Tensor o = workspace(ctx, s_.rows(), c);
    {
      auto stage = ctx.stage("project");
      project(ctx, "qkv", tokens(), qkv);
    }
    {
      auto stage = ctx.stage("attend");
      AttentionArgs a;
      a.q = heads_view(qkv, 0, s_.batch, n, 0, h, d);
      a.k = heads_view(qkv, 0, s_.batch, n, 1, h, d);
      a.v = heads_view(qkv, 0, s_.batch, n, 2, h, d);
      a.o = heads_view(o, 0, s_.batch, n, 0, h, d);
      a.scale = s_.scale;
      attend(ctx, a, trace);
    }
    auto stage = ctx.stage("out");
    project(ctx, "proj", o, out_rows());
  }

  Place place(int64_t b, int64_t h, int64_t i) const override { return {0, b, h, i}; }
  int64_t visible_keys(int64_t, int64_t) const override { return s_.tokens(); }
  std::function<void(int64_t, int64_t, int64_t, Intervals&)> dependencies() const override {
    return [n = s_.tokens()](int64_t, int64_t, int64_t, Intervals& out) { out = {{0, n}}; };
  }

 private:
  bool qkv_bias_;
};

class Msa final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = [] {
      MethodInfo i = layer_info("msa", "multi-head self-attention layer", "dense (softmax)");
      i.paper =
          "An Image is Worth 16x16 Words, ICLR 2021; baseline of Fast Vision Transformers with HiLo "
          "Attention";
      i.arxiv = "2010.11929";
      i.summary =
          "The attention layer of a plain vision transformer with its projections: every token attends to "
          "every "
          "token. No position bias.";
      i.formula = "[q k v] = qkv(x);  o = softmax(q k^T / sqrt(D)) v per head;  out = proj(o)";
      i.cost = "MACs per image: 4 N C^2 + 2 N^2 C. Parameters 4 C^2 + C (+ 3 C with qkv_bias).";
      i.params = layer_params();
      i.figures = {{"CPU throughput", "B 64, 14x14, C 768, H 12, f32; i9-10900X", "", "505 images/s",
                    "HubHop/vit-attention-benchmark README"},
                   {"GPU throughput", "the same; RTX 3090", "", "4403 images/s",
                    "HubHop/vit-attention-benchmark README"},
                   {"MACs per image", "the same", "", "521.43 M", "HubHop/vit-attention-benchmark README"},
                   {"parameters", "the same", "", "2.36 M", "HubHop/vit-attention-benchmark README"}};
      i.example = image_problem(2, 6, 7, 24, 3);
      return i;
    }();
    return info;
  }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<MsaInstance>(ctx, layer_shape(info(), problem, params),
                                         params.boolean("qkv_bias"));
  }
};

ATTNBENCH_METHOD(Msa);

}  // namespace
}  // namespace attnbench
