// Dense softmax attention through the fused operator: the baseline of every speed-up.
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "dense";
  m.title = "Dense attention (fused)";
  m.paper = "Attention Is All You Need, NeurIPS 2017; fused as in FlashAttention, NeurIPS 2022";
  m.arxiv = "1706.03762";
  m.family = "dense (softmax)";
  m.summary =
      "Softmax attention over every pair (or every causal pair), fused with an online softmax, so memory "
      "stays "
      "linear in N. The strongest dense implementation of the device: what speed-ups are measured against.";
  m.formula =
      "s_ij = scale * q_i . k_j                 j <= i + (M - N) when causal\n"
      "p_ij = exp(s_ij) / sum_j exp(s_ij)\n"
      "o_i  = sum_j p_ij v_j                    0 for a row that sees nothing";
  m.cost =
      "P pairs a head: N M, or the causal pairs (N (N + 1) / 2 when M = N). Matmul 4 P D B H, special P B H, "
      "elementwise 4 P B H; q, k, v read once, o written once.";
  ParamSpec impl;
  impl.name = "impl";
  impl.type = ParamSpec::Type::choice;
  impl.default_value = "auto";
  impl.choices = {"auto", "engine", "cudnn"};
  impl.meaning =
      "auto: the fastest of this device; engine: this project's kernel; cudnn: NVIDIA's (CUDA only)";
  m.params = {impl, scale_param()};
  m.kinds = {ProblemKind::sequence, ProblemKind::image, ProblemKind::video};
  m.notes = {"causal with M != N aligns the ends: the last query sees the last key (chosen).",
             "Images and videos are attended over their tokens in row-major order."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 70;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

class DenseInstance final : public HeadsInstance {
 public:
  using HeadsInstance::HeadsInstance;
  void run(Context& ctx) override {
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
  }
  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = fused_cost(masked_ ? band_pair_count(mask_.rule, form_.queries, form_.keys)
                                : form_.queries * form_.keys);
    return c;
  }
};

class Dense final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    if (params.choice("impl") == "cudnn")
      throw Unsupported(ctx.device() == DeviceKind::cpu
                            ? "dense.impl: cudnn runs on CUDA devices, and this device is the CPU"
                            : "dense.impl: cudnn is not part of this build");
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<DenseInstance>(ctx, info(), problem, scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(Dense);

}  // namespace
}  // namespace attnbench
