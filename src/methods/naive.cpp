// Softmax attention with the N x M score matrix in memory: what papers often compare with.
#include "kernels/elementwise/cast.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "naive";
  m.title = "Naive attention (materialised scores)";
  m.paper = "Attention Is All You Need, NeurIPS 2017";
  m.arxiv = "1706.03762";
  m.family = "dense (softmax)";
  m.summary =
      "Product, row softmax, product, with the whole score matrix in memory. Not the dense baseline (that is "
      "`dense`), but many published speed-ups and all quadratic-memory claims refer to it.";
  m.formula =
      "S = scale * Q K^T                        [B, H, N, M], stored\n"
      "P = softmax over the rows of S           causal: j <= i + (M - N)\n"
      "O = P V";
  m.cost =
      "Matmul 4 N M D B H: the causal half is computed and thrown away. Softmax: special N M B H, "
      "elementwise "
      "4 N M B H. Workspace 4 N M B H bytes.";
  m.params = {scale_param()};
  m.kinds = {ProblemKind::sequence, ProblemKind::image, ProblemKind::video};
  m.notes = {
      "Scores and probabilities are f32 for every storage type; bf16 and f16 operands are widened first.",
      "causal with M != N aligns the ends: the last query sees the last key (chosen)."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 70;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

class NaiveInstance final : public HeadsInstance {
 public:
  using HeadsInstance::HeadsInstance;

  void run(Context& ctx) override {
    const HeadsForm& f = form_;
    // The query heads of one key head stand next to each other: one product covers them all.
    const Shape grouped{f.batch, f.kv_heads, f.group() * f.queries, f.head_dim};
    Tensor q = input("q"), k = input("k"), v = input("v"), o = o_;
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("widen");
      for (Tensor* t : {&q, &k, &v}) {
        const Tensor wide = ctx.allocate(DType::f32, t->shape());
        cast(ctx, {*t, wide});
        *t = wide;
      }
      o = ctx.allocate(DType::f32, o_.shape());
    }
    const Tensor scores = ctx.allocate(DType::f32, {f.batch, f.kv_heads, f.group() * f.queries, f.keys});
    {
      const auto stage = ctx.stage("scores");
      GemmArgs a;
      a.a = q.reshape(grouped);
      a.b = k;
      a.b_transposed = true;
      a.c = scores;
      a.alpha = scale_;
      gemm(ctx, a);
    }
    {
      const auto stage = ctx.stage("softmax");
      SoftmaxArgs a;
      a.x = a.y = scores.reshape({f.batch, f.heads, f.queries, f.keys});
      a.causal = mask_.rule.causal;
      a.causal_offset = f.keys - f.queries;
      softmax(ctx, a);
    }
    {
      const auto stage = ctx.stage("values");
      GemmArgs a;
      a.a = scores;
      a.b = v;
      a.c = o.reshape(grouped);
      gemm(ctx, a);
    }
    if (dtype_ != DType::f32) {
      const auto stage = ctx.stage("narrow");
      cast(ctx, {o, o_});
    }
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t pairs = f.batch * f.heads * f.queries * f.keys;
    const int64_t q = f.batch * f.heads * f.queries * f.head_dim,
                  kv = f.batch * f.kv_heads * f.keys * f.head_dim;
    ClosedForm c;
    c.cost.matmul = pairs * 4 * f.head_dim;
    c.cost.special = pairs;
    c.cost.elementwise = pairs * 4;
    // Two products and the softmax, operands once each.
    c.cost.bytes_read = 4 * (q + kv + pairs + pairs + kv);
    c.cost.bytes_written = 4 * (pairs + pairs + q);
    if (dtype_ != DType::f32) {
      const auto narrow = static_cast<int64_t>(size_of(dtype_));
      c.cost.bytes_read += narrow * (q + 2 * kv) + 4 * q;
      c.cost.bytes_written += 4 * (q + 2 * kv) + narrow * q;
    }
    return c;
  }
};

class Naive final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<NaiveInstance>(ctx, info(), problem, scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(Naive);

}  // namespace
}  // namespace attnbench
