// Dense softmax attention through the fused operator: the baseline of every speed-up.
#include <algorithm>
#include <cstdio>
#include <limits>

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
  impl.choices = {"auto", "engine", "cudnn", "fa2"};
  impl.meaning =
      "engine: this project's fastest kernel; cudnn: NVIDIA's (CUDA devices, bf16 and f16); auto: the faster "
      "of the two, timed while preparing; fa2: the engine's mma.sync kernel (CUDA devices), FlashAttention-2 "
      "class, as the baseline older papers compare with";
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

enum class Impl : uint8_t { choose, engine, cudnn, fa2 };

class DenseInstance final : public HeadsInstance {
 public:
  DenseInstance(Context& ctx, const MethodInfo& info, const Problem& problem, double scale, Impl impl)
      : HeadsInstance(ctx, info, problem, scale), impl_(impl), open_(impl == Impl::choose) {}

  void prepare(Context& ctx) override {
    // The library makes its plan at the first call; what it refuses is known here, not within a run.
    if (impl_ == Impl::cudnn) library_attention(ctx, call());
    if (impl_ == Impl::fa2) ctx.backend().attention_plan(engine_call());
    if (impl_ == Impl::choose) choose(ctx);
  }
  std::vector<Decision> decisions() const override {
    if (!open_ || why_.empty()) return {};
    return {{"impl", impl_ == Impl::cudnn ? "cudnn" : "engine", why_}};
  }
  void run(Context& ctx) override {
    const auto stage = ctx.stage("attend");
    if (impl_ == Impl::cudnn)
      library_attention(ctx, call());
    else
      attention(ctx, engine_call());
  }
  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = fused_cost(masked_ ? band_pair_count(mask_.rule, form_.queries, form_.keys)
                                : form_.queries * form_.keys);
    return c;
  }

 private:
  AttentionArgs engine_call() const {
    AttentionArgs args = call();
    if (impl_ == Impl::fa2) args.kernel = AttentionKernel::mma_sync;
    return args;
  }

  /// The faster one on this device, at this shape. The CPU has the engine alone, and nothing to report.
  void choose(Context& ctx) {
    impl_ = Impl::engine;
    if (ctx.device() == DeviceKind::cpu) return;
    try {
      library_attention(ctx, call());
    } catch (const Unsupported& e) {
      why_ = e.what();
      return;
    }
    const double engine = shortest(ctx, [&] { attention(ctx, call()); });
    const double cudnn = shortest(ctx, [&] { library_attention(ctx, call()); });
    char text[96];
    std::snprintf(text, sizeof text, "engine %.4g ms, cudnn %.4g ms", 1e3 * engine, 1e3 * cudnn);
    why_ = text;
    if (cudnn < engine) impl_ = Impl::cudnn;
  }

  /// The shortest of some timings of one execution, recorded as a graph where the device can: launching from
  /// the host would count for the one whose launch is shorter.
  template <class F>
  static double shortest(Context& ctx, const F& work) {
    constexpr int kReadings = 5, kRunsEach = 4;
    // Long executions need no company to be read exactly, and a few of them tell: at 128K tokens the choice
    // would otherwise take longer than the measurement.
    constexpr double kLong = 5e-3, kEnough = 0.25;
    work();  // what is loaded or allocated at the first call must not be recorded
    std::unique_ptr<DeviceGraph> graph;
    try {
      graph = ctx.backend().capture(work);
    } catch (const Unsupported&) {
    }
    const std::unique_ptr<DeviceTimer> timer = ctx.backend().make_timer();
    const auto reading = [&](int runs) {
      timer->start();
      if (graph)
        graph->replay(runs);
      else
        for (int i = 0; i < runs; ++i) work();
      timer->stop();
      return timer->seconds() / runs;
    };
    double best = reading(1), spent = best;
    const int runs = best < kLong ? kRunsEach : 1;
    for (int r = 1; r < kReadings && (r < 2 || spent < kEnough); ++r) {
      const double s = reading(runs);
      spent += s * runs;
      best = std::min(best, s);
    }
    return best;
  }

  Impl impl_;
  bool open_;  ///< the parameter left it to prepare()
  std::string why_;
};

class Dense final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    Impl impl = Impl::choose;
    if (params.choice("impl") == "engine") impl = Impl::engine;
    if (params.choice("impl") == "cudnn") {
      impl = Impl::cudnn;
      if (ctx.device() == DeviceKind::cpu)
        throw Unsupported("dense.impl: cudnn runs on CUDA devices, and this device is the CPU");
      if (problem.dtype == DType::f32)
        throw Unsupported("dense.impl: cudnn attends in bf16 and f16, not in f32");
    }
    if (params.choice("impl") == "fa2") {
      impl = Impl::fa2;
      if (ctx.device() == DeviceKind::cpu)
        throw Unsupported(
            "dense.impl: fa2 is an mma.sync kernel and runs on CUDA devices, and this device is the CPU");
    }
    return std::make_unique<DenseInstance>(ctx, info(), problem, scale_of(params, f.head_dim), impl);
  }
};
ATTNBENCH_METHOD(Dense);

}  // namespace
}  // namespace attnbench
