// AdaptInfer: vision tokens scored by text-weighted attention of one layer, the best of them kept.
// Card: adaptinfer.
#include <algorithm>
#include <cmath>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

/// Kept vision tokens of LLaVA-1.5-7B by budget.
const std::vector<std::pair<std::string, std::vector<int64_t>>>& budgets() {
  static const std::vector<std::pair<std::string, std::vector<int64_t>>> table{
      {"128", {290, 72, 18}}, {"64", {133, 27, 3}}, {"48", {80, 24, 2}}, {"32", {40, 12, 0}}};
  return table;
}

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "adaptinfer";
  m.title = "AdaptInfer: text-guided pruning of vision tokens";
  m.paper =
      "AdaptInfer: Adaptive Token Pruning for Vision-Language Model Inference with Dynamical Text Guidance, "
      "2025";
  m.arxiv = "2508.06084";
  m.family = "token-pruning";
  m.summary =
      "At a pruning layer of a vision-language model every vision token is scored by the attention that text "
      "tokens pay to it, weighted by what text tokens pay to each other; the best are kept, prompt and text "
      "always. This is the scoring and the choice at one layer, from its queries and keys.";
  m.formula =
      "A = softmax(q k^T / sqrt(D)), causal; P prompt, V vision, T text tokens in this order\n"
      "M = A[text, text];  S = M + M^T - diag(M);  S' = lb S + (1 - lb) mean(S)\n"
      "w[h, j] = sum_i S'[h, i, j];  score[v] = sum_h sum_j w[h, j] A[h, text j, vision v]\n"
      "selected_text: raters = text tokens whose mean over v of softmax_text(E_v E_t^T) is above the mean; "
      "score = mean of A[rater, v] over heads and raters\n"
      "uniform: each head's mean over text, normalised to sum 1, added over heads\n"
      "kept = the k largest scores, ascending; ties: lower index";
  m.cost =
      "Rows of the text alone: 2 H T n D + 4 H T^2 + 2 H T V operations and H T n exponentials (full_map: 2 "
      "H "
      "n^2 D and H n^2). Published MACs: of the whole prefill stack, 4 n d^2 + 2 n^2 d + 3 n d m a layer "
      "with "
      "the tokens that it processes, the authors' counter.";
  ParamSpec keep =
      spec::param("keep", Type::list, Value(), 0,
                  "kept vision tokens by pruning layer: counts, or shares of the current count; null: of "
                  "the budget. Scores are taken at the first");
  keep.nullable = true;
  ParamSpec budget =
      spec::param("budget", Type::choice, "64", {}, "row of the published table, where keep is null");
  budget.choices = {"128", "64", "48", "32", "custom"};
  ParamSpec scorer = spec::param("scorer", Type::choice, "t2t_weighted", {}, "how vision tokens are scored");
  scorer.choices = {"t2t_weighted", "uniform", "selected_text"};
  ParamSpec mode =
      spec::param("position_mode", Type::choice, "compact", {}, "positions of what is kept, in a stack");
  mode.choices = {"compact", "original"};
  ParamSpec impl = spec::param("attention_impl", Type::choice, "fused_plus_rows", {},
                               "rows of the text alone, or the whole map as the released code");
  impl.choices = {"fused_plus_rows", "full_map"};
  ParamSpec heads = spec::param("num_heads", Type::integer, 32, 1, "H");
  heads.from_problem = "heads";
  ParamSpec dim = spec::param("head_dim", Type::integer, 128, 1, "D");
  dim.from_problem = "head_dim";
  ParamSpec lb = spec::param("lb", Type::number, 1.0, 0, "1: text weights as they are; 0: all the same");
  lb.max = 1.0;
  m.params = {spec::param("num_layers", Type::integer, 32, 1, "L of the stack (published MACs)"),
              spec::param("prune_layers", Type::list, Value(Value::List{Value(1), Value(10), Value(20)}), 0,
                          "layers after which tokens are dropped, from 0 (published MACs)"),
              keep,
              budget,
              lb,
              scorer,
              spec::param("prompt_tokens", Type::integer, 35, 0, "P"),
              spec::param("vision_tokens", Type::integer, 576, 1, "V"),
              spec::param("text_tokens", Type::integer, 53, 1, "T"),
              mode,
              spec::param("allow_full", Type::boolean, false, {}, "lift the cap of V - 1"),
              heads,
              dim,
              spec::param("ffn_dim", Type::integer, 11008, 1, "m of the stack (published MACs)"),
              impl};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"CUDA latency", "LLaVA-1.5-7B", "vanilla", "-61.3%", "abstract"},
               {"accuracy kept, average", "LLaVA-1.5-7B", "100%", "92.9% (v1), 93.1% (v2)", "abstracts"},
               {"average tokens, derived", "budgets 128, 64, 48, 32", "576", "128.8, 65.0, 48.75, 33.0",
                "repository, score.py"},
               {"compute, derived", "32 layers, 664 tokens", "4.416 T MAC", "1.538, 1.119, 1.013, 0.910 T",
                "repository's counter"}};
  m.notes = {
      "The layer's own attention is not part of this call: it runs with all incoming tokens in any case.",
      "position_mode concerns the layers after the choice and changes nothing here.",
      "mean(S) is taken for each batch element; the released code takes one over the batch.",
      "A share keeps max(1, floor(share V)) tokens (t2t_weighted) or floor(share V) (the others); without "
      "allow_full at most V - 1.",
      "selected_text with several batch elements gives raters [B, T] filled with -1, as their numbers "
      "differ; "
      "where no text token is above the mean all scores are 0 (chosen)."};
  m.example.heads = 4;
  m.example.head_dim = 32;
  m.example.length = 664;
  m.example.causal = true;
  return m;
}

struct Sizes {
  int64_t batch, heads, kv_heads, dim, prompt, vision, text, keep, channels;
  int64_t tokens() const { return prompt + vision + text; }
  int64_t group() const { return heads / kv_heads; }
};

enum class Scorer : uint8_t { t2t_weighted, uniform, selected_text };

class AdaptInferInstance final : public Instance {
 public:
  AdaptInferInstance(Context& ctx, const Sizes& sizes, Scorer scorer, double lb, bool causal, bool full_map,
                     DType dtype, int64_t stack_macs)
      : s_(sizes),
        scorer_(scorer),
        lb_(lb),
        causal_(causal),
        full_map_(full_map),
        dtype_(dtype),
        stack_macs_(stack_macs),
        backend_(&ctx.backend()) {
    const int64_t n = s_.tokens();
    input_specs_ = {
        {"q", {s_.batch, s_.heads, n, s_.dim}, dtype, Init::normal(), false, "queries after rotary"},
        {"k", {s_.batch, s_.kv_heads, n, s_.dim}, dtype, Init::normal(), false, "keys after rotary"}};
    if (scorer_ == Scorer::selected_text)
      input_specs_.push_back({"embeddings",
                              {s_.batch, n, s_.channels},
                              dtype,
                              Init::normal(0, 1 / std::sqrt(std::sqrt(static_cast<double>(s_.channels)))),
                              false,
                              "hidden states before layer 0 [B, n, C]"});
    const auto output = [&ctx](DType t, const Shape& shape) {
      return ctx.allocate(t, shape, MemoryClass::output);
    };
    scores_ = output(DType::f32, {s_.batch, s_.vision});
    kept_ = output(DType::i32, {s_.batch, s_.keep});
    kept_tokens_ = output(DType::i32, {s_.batch, s_.prompt + s_.keep + s_.text});
    if (scorer_ == Scorer::selected_text) {
      raters_ = output(DType::i32, {s_.batch, s_.text});
      rater_count_ = ctx.allocate(DType::i32, {s_.batch});
    }
  }

  void prepare(Context& ctx) override {
    const auto positions = [&](int64_t begin, int64_t count) {
      std::vector<int32_t> v;
      for (int64_t b = 0; b < s_.batch; ++b)
        for (int64_t i = 0; i < count; ++i) v.push_back(static_cast<int32_t>(begin + i));
      return upload(ctx, {s_.batch, count}, v);
    };
    prompt_ = positions(0, s_.prompt);
    vision_ = positions(s_.prompt, s_.vision);
    text_ = positions(s_.prompt + s_.vision, s_.text);
    const int64_t longest = std::max({s_.text, s_.vision, s_.heads * s_.text});
    ones_ = upload(ctx, {longest, 1}, std::vector<float>(static_cast<size_t>(longest), 1.0f));
    if (scorer_ == Scorer::selected_text)
      bounds_ = upload(ctx, {s_.batch, 2}, std::vector<int32_t>(static_cast<size_t>(2 * s_.batch), 0));
    ctx.backend().synchronize();
  }

  void run(Context& ctx) override {
    const Tensor map = attention_map(ctx);
    if (scorer_ == Scorer::t2t_weighted)
      score_weighted(ctx, map);
    else if (scorer_ == Scorer::uniform)
      score_uniform(ctx, map);
    else
      score_by_raters(ctx, map);
    const auto stage = ctx.stage("select");
    if (s_.keep > 0) {
      TopKArgs best;
      best.x = scores_, best.index = kept_, best.k = s_.keep, best.order = TopKArgs::Order::index;
      top_k(ctx, best);
    }
    const auto part = [&](int64_t from, int64_t count) { return kept_tokens_.slice(1, from, from + count); };
    if (s_.prompt > 0) transpose_copy(ctx, {prompt_, part(0, s_.prompt)});
    if (s_.keep > 0) {
      // Positions are looked up, so that no integer arithmetic is needed on the device.
      const Tensor to = part(s_.prompt, s_.keep);
      GatherTokensArgs g;
      g.x = vision_.reshape({s_.batch, 1, s_.vision, 1});
      g.index = kept_.reshape({s_.batch, 1, s_.keep});
      g.y = to.strided({s_.batch, 1, s_.keep, 1}, {to.stride(0), to.stride(0), 1, 1});
      gather_tokens(ctx, g);
    }
    transpose_copy(ctx, {text_, part(s_.prompt + s_.keep, s_.text)});
  }

  TensorMap outputs() const override {
    TensorMap out{{"scores", scores_}, {"kept", kept_}, {"kept_tokens", kept_tokens_}};
    if (!raters_) return out;
    if (s_.batch > 1) {
      out["raters"] = raters_;
      return out;
    }
    // As many as there are; before the first run, room for all.
    int32_t count = static_cast<int32_t>(s_.text);
    if (ran_) {
      backend_->copy_bytes(&count, DeviceKind::cpu, rater_count_.raw(), rater_count_.device(), sizeof count);
      backend_->synchronize();
    }
    out["raters"] = raters_.reshape({s_.text}).slice(0, 0, count);
    return out;
  }

  ClosedForm cost() const override {
    const int64_t n = s_.tokens(), t = s_.text, v = s_.vision, h = s_.heads, b = s_.batch, d = s_.dim;
    const int64_t rows = full_map_ ? n : t, e = static_cast<int64_t>(size_of(dtype_));
    const auto move = [](int64_t read, int64_t written) {
      Cost c;
      c.bytes_read = read, c.bytes_written = written;
      return c;
    };
    const auto product = [](int64_t batch, int64_t m, int64_t k, int64_t columns, int64_t b_batch,
                            bool accumulate = false) {
      Cost c;
      c.matmul = 2 * batch * m * k * columns;
      c.bytes_read = 4 * (batch * m * k + b_batch * k * columns + (accumulate ? batch * m * columns : 0));
      c.bytes_written = 4 * batch * m * columns;
      return c;
    };
    ClosedForm f;
    if (dtype_ != DType::f32) {
      const int64_t q = b * h * rows * d;
      if (!full_map_ && b * h > 1) f.cost += move(q * e, q * e);  // the text's rows, made contiguous
      f.cost += move(q * e, q * 4) + move(b * s_.kv_heads * n * d * e, b * s_.kv_heads * n * d * 4);
    }
    for (int64_t g = 0; g < s_.group(); ++g) f.cost += product(b * s_.kv_heads, rows, d, n, b * s_.kv_heads);
    const int64_t map = b * h * rows * n;
    f.cost.special += map;
    f.cost.elementwise += 4 * map;
    f.cost += move(4 * map, 4 * map);
    if (scorer_ == Scorer::t2t_weighted) {
      f.cost += product(b * h, t, t, 1, 1) + product(b * h, t, t, 1, 1, true);
      f.cost += move(4 * b * h * t, 4 * b * h * t) + move(8 * b * h * t, 4 * b * h * t);
      f.cost.elementwise += b * h * t;
      if (lb_ < 1) {
        f.cost.elementwise += 2 * b * h * t;
        f.cost += move(4 * b * h * t, 4 * b) + move(4 * b * h * t, 4 * b * h * t) +
                  product(b, 1, 1, h * t, 1, true);
      }
      f.cost += product(b, 1, h * t, v, b);
      if (full_map_) f.cost += move(4 * b * h * t * v, 4 * b * h * t * v);
    } else if (scorer_ == Scorer::uniform) {
      f.cost += product(b * h, 1, t, v, b * h) + product(b * h, 1, v, 1, 1) +
                move(4 * b * h * (v + 1), 4 * b * h * v) + product(b, 1, h, v, b);
      f.cost.special += b * h * v;
    } else {
      const int64_t c = s_.channels, pairs = b * v * t;
      if (dtype_ != DType::f32) f.cost += move(b * n * c * e, b * n * c * 4);
      f.cost += product(b, v, c, t, b) + product(b, 1, v, t, b);
      f.cost.special += pairs;
      f.cost.elementwise += 4 * pairs + b * t;
      f.cost += move(4 * pairs, 4 * pairs) + move(4 * b * t, b * t) + move(b * t, 4 * b * t + 4 * b) +
                move(4 * b, 4 * b);
      const int64_t gathered = b * h * t * v;
      f.cost += move(4 * gathered + 4 * b * t, 4 * gathered);
      f.cost += product(b, 1, h, v, b);
      f.data_dependent = true;  // as many rows are pooled as there are raters
    }
    // Choice.
    if (s_.keep > 0) {
      f.cost.elementwise += b * v;
      f.cost += move(4 * b * v, 4 * b * s_.keep) + move(8 * b * s_.keep, 4 * b * s_.keep);
    }
    f.cost += move(4 * b * (s_.prompt + t), 4 * b * (s_.prompt + t));
    f.published_macs = stack_macs_;
    f.published_macs_note =
        "of the prefill stack (num_layers, prune_layers, keep, ffn_dim), counted as the released code does";
    return f;
  }

 private:
  Tensor as_f32(Context& ctx, const Tensor& x) const {
    if (x.dtype() == DType::f32) return x;
    Tensor packed = x;
    if (!x.contiguous()) {
      packed = ctx.allocate(x.dtype(), x.shape());
      transpose_copy(ctx, {x, packed});
    }
    const Tensor y = ctx.allocate(DType::f32, x.shape());
    cast(ctx, {packed, y});
    return y;
  }

  /// Probabilities [B, H, T, n] of the text's rows, f32.
  Tensor attention_map(Context& ctx) const {
    const int64_t n = s_.tokens(), first = full_map_ ? 0 : n - s_.text, rows = n - first;
    const auto stage = ctx.stage("map");
    const Tensor q =
        as_f32(ctx, rows == n && dtype_ == DType::f32 ? input("q") : input("q").slice(2, first, n));
    const Tensor k = as_f32(ctx, input("k"));
    const Tensor map = ctx.allocate(DType::f32, {s_.batch, s_.heads, rows, n});
    for (int64_t g = 0; g < s_.group(); ++g) {
      // Heads g, g + G, ... of [B, H, ...]: one of each group that shares a key head.
      const auto heads = [&](const Tensor& x) {
        return x.strided({s_.batch, s_.kv_heads, x.dim(2), x.dim(3)},
                         {x.stride(0), s_.group() * x.stride(1), x.stride(2), x.stride(3)}, g * x.stride(1));
      };
      GemmArgs a;
      a.a = heads(q), a.b = k, a.b_transposed = true, a.c = heads(map);
      a.alpha = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s_.dim)));
      gemm(ctx, a);
    }
    SoftmaxArgs p;
    p.x = p.y = map;
    p.causal = causal_;
    p.causal_offset = first;
    softmax(ctx, p);
    return map.slice(2, n - s_.text - first, rows);
  }

  /// [B, H, T, T] and [B, H, T, V] of the rows.
  Tensor to_text(const Tensor& map) const { return map.slice(3, s_.prompt + s_.vision, s_.tokens()); }
  Tensor to_vision(const Tensor& map) const { return map.slice(3, s_.prompt, s_.prompt + s_.vision); }

  void score_weighted(Context& ctx, const Tensor& map) const {
    const auto stage = ctx.stage("score");
    const int64_t t = s_.text;
    const Tensor block = to_text(map);
    // Column sums of M + M^T - diag(M) without forming it.
    const Tensor w = ctx.allocate(DType::f32, {s_.batch, s_.heads, t, 1});
    GemmArgs sums;
    sums.a = block, sums.b = ones_.slice(0, 0, t), sums.c = w;
    gemm(ctx, sums);
    sums.a_transposed = sums.accumulate = true;
    gemm(ctx, sums);
    const Tensor diagonal = ctx.allocate(DType::f32, {s_.batch, s_.heads, t});
    transpose_copy(ctx, {block.strided(diagonal.shape(),
                                       {block.stride(0), block.stride(1), block.stride(2) + block.stride(3)}),
                         diagonal});
    PointwiseArgs less;
    less.op = PointwiseArgs::Op::sub;
    less.a = less.y = w.reshape({s_.batch, s_.heads * t});
    less.b = diagonal.reshape({s_.batch, s_.heads * t});
    pointwise(ctx, less);
    if (lb_ < 1) {
      // Sum of w = sum of S; its mean is spread over the T rows of each column.
      const Tensor sum = ctx.allocate(DType::f32, {s_.batch});
      ReduceArgs total;
      total.x = less.y, total.y = sum, total.all = false;
      reduce(ctx, total);
      PointwiseArgs scale;
      scale.op = PointwiseArgs::Op::affine;
      scale.a = scale.y = less.y;
      scale.alpha = static_cast<float>(lb_);
      pointwise(ctx, scale);
      GemmArgs flat;
      flat.a = sum.reshape({s_.batch, 1, 1});
      flat.b = ones_.slice(0, 0, s_.heads * t).reshape({1, s_.heads * t});
      flat.c = less.y.reshape({s_.batch, 1, s_.heads * t});
      flat.alpha = static_cast<float>((1 - lb_) / static_cast<double>(s_.heads * t));
      flat.accumulate = true;
      gemm(ctx, flat);
    }
    const Tensor x = rows_of_all_heads(ctx, to_vision(map));
    GemmArgs score;
    score.a = w.reshape({s_.batch, 1, s_.heads * t});
    score.b = x;
    score.c = scores_.reshape({s_.batch, 1, s_.vision});
    gemm(ctx, score);
  }

  /// [B, H, T, V] as [B, H T, V]: a view where the heads follow each other, a copy in a full map.
  Tensor rows_of_all_heads(Context& ctx, const Tensor& x) const {
    const int64_t rows = s_.heads * s_.text;
    if (!full_map_) return x.strided({s_.batch, rows, x.dim(3)}, {x.stride(0), x.stride(2), 1});
    const Tensor packed = ctx.allocate(DType::f32, x.shape());
    transpose_copy(ctx, {x, packed});
    return packed.reshape({s_.batch, rows, x.dim(3)});
  }

  /// Each head's column sums over the text, divided by their own sum.
  void score_uniform(Context& ctx, const Tensor& map) const {
    const auto stage = ctx.stage("score");
    const int64_t t = s_.text, v = s_.vision;
    const Tensor sums = ctx.allocate(DType::f32, {s_.batch, s_.heads, 1, v + 1});
    GemmArgs a;
    a.a = ones_.strided({s_.batch, s_.heads, 1, t}, {0, 0, t, 1});
    a.b = to_vision(map);
    a.c = sums.slice(3, 0, v);
    gemm(ctx, a);
    GemmArgs total;
    total.a = a.c, total.b = ones_.slice(0, 0, v), total.c = sums.slice(3, v, v + 1);
    gemm(ctx, total);
    const Tensor shares = ctx.allocate(DType::f32, {s_.batch, s_.heads, 1, v});
    divide_by_last(ctx, {sums, shares});
    GemmArgs over;
    over.a = ones_.strided({s_.batch, 1, s_.heads}, {0, s_.heads, 1});
    over.b = shares.reshape({s_.batch, s_.heads, v});
    over.c = scores_.reshape({s_.batch, 1, v});
    gemm(ctx, over);
  }

  void score_by_raters(Context& ctx, const Tensor& map) {
    const int64_t t = s_.text, v = s_.vision;
    {
      const auto stage = ctx.stage("rate");
      const Tensor all = as_f32(ctx, input("embeddings"));
      const Tensor similar = ctx.allocate(DType::f32, {s_.batch, v, t});
      GemmArgs a;
      a.a = all.slice(1, s_.prompt, s_.prompt + v);
      a.b = all.slice(1, s_.prompt + v, s_.tokens());
      a.b_transposed = true;
      a.c = similar;
      gemm(ctx, a);
      softmax(ctx, {similar, similar});
      const Tensor mean = ctx.allocate(DType::f32, {s_.batch, 1, t});
      GemmArgs over;  // the mean over vision tokens times T: above the mean is above 1
      over.a = ones_.strided({s_.batch, 1, v}, {0, v, 1});
      over.b = similar, over.c = mean;
      over.alpha = static_cast<float>(static_cast<double>(t) / static_cast<double>(v));
      gemm(ctx, over);
      CompareArgs above;
      above.x = mean.reshape({s_.batch, t});
      above.threshold = 1.0f;
      above.flag = ctx.allocate(DType::u8, {s_.batch, t});
      compare_flags(ctx, above);
      compact_flags(ctx, {above.flag, raters_, rater_count_});
      ran_ = true;
    }
    const auto stage = ctx.stage("score");
    transpose_copy(ctx, {rater_count_, bounds_.select(1, 1)});
    const Tensor rows = ctx.allocate(DType::f32, {s_.batch, s_.heads, t, v});
    gather_tokens(ctx, {to_vision(map), raters_.reshape({s_.batch, 1, t}), rows});
    const Tensor mean = ctx.allocate(DType::f32, {s_.batch, s_.heads, 1, v});
    PoolTokensArgs pool;
    pool.x = rows, pool.y = mean, pool.bounds = bounds_;
    pool_tokens(ctx, pool);
    GemmArgs over;
    over.a = ones_.strided({s_.batch, 1, s_.heads}, {0, s_.heads, 1});
    over.b = mean.reshape({s_.batch, s_.heads, v});
    over.c = scores_.reshape({s_.batch, 1, v});
    over.alpha = static_cast<float>(1.0 / static_cast<double>(s_.heads));
    gemm(ctx, over);
  }

  Sizes s_;
  Scorer scorer_;
  double lb_;
  bool causal_, full_map_;
  DType dtype_;
  int64_t stack_macs_;
  Backend* backend_;
  bool ran_ = false;
  Tensor scores_, kept_, kept_tokens_, raters_, rater_count_;
  Tensor prompt_, vision_, text_, ones_, bounds_;
};

/// Tokens kept of `vision`, by one entry of `keep`.
int64_t kept_of(const Value& keep, int64_t vision, bool weighted, bool allow_full) {
  int64_t k = 0;
  if (keep.is_int()) {
    k = keep.as_int();
  } else {
    k = static_cast<int64_t>(std::floor(keep.as_double() * static_cast<double>(vision)));
    if (weighted) k = std::max<int64_t>(1, k);
  }
  return std::clamp<int64_t>(k, 0, allow_full ? vision : std::max<int64_t>(vision - 1, 0));
}

class AdaptInfer final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    Sizes s{};
    s.batch = f.batch, s.heads = f.heads, s.kv_heads = f.kv_heads, s.dim = f.head_dim;
    s.prompt = params.integer("prompt_tokens"), s.vision = params.integer("vision_tokens");
    s.text = params.integer("text_tokens");
    s.channels = problem.channels ? problem.channels : f.heads * f.head_dim;
    if (s.tokens() != f.queries)
      throw UsageError("adaptinfer: prompt_tokens " + std::to_string(s.prompt) + ", vision_tokens " +
                       std::to_string(s.vision) + " and text_tokens " + std::to_string(s.text) + " make " +
                       std::to_string(s.tokens()) + " tokens, and problem.length is " +
                       std::to_string(f.queries));
    if (f.keys != f.queries)
      throw Unsupported("adaptinfer: a prefill has as many keys as queries, not " + std::to_string(f.keys) +
                        " and " + std::to_string(f.queries));
    const std::string& scorer = params.choice("scorer");
    Value::List keep;
    if (!params.is_null("keep")) {
      keep = params.value("keep").as_list();
    } else {
      for (const auto& [name, counts] : budgets())
        if (name == params.choice("budget"))
          for (const int64_t k : counts) keep.emplace_back(k);
      if (keep.empty()) throw UsageError("adaptinfer.keep: budget custom needs the list of kept tokens");
    }
    if (keep.empty()) throw UsageError("adaptinfer.keep: the list is empty");
    for (const Value& k : keep)
      if (!k.is_int() && k.as_double() > 1)
        throw UsageError("adaptinfer.keep: a share lies in [0, 1], a count is a whole number; " + k.str() +
                         " is neither");
    const bool weighted = scorer == "t2t_weighted", allow_full = params.boolean("allow_full");
    s.keep = kept_of(keep[0], s.vision, weighted, allow_full);
    return std::make_unique<AdaptInferInstance>(ctx, s,
                                                weighted              ? Scorer::t2t_weighted
                                                : scorer == "uniform" ? Scorer::uniform
                                                                      : Scorer::selected_text,
                                                params.number("lb"), problem.causal,
                                                params.choice("attention_impl") == "full_map", problem.dtype,
                                                stack_macs(params, keep, weighted, allow_full));
  }

 private:
  /// The released counter over the stack: a pruning layer runs with what comes in.
  static int64_t stack_macs(const Params& params, const Value::List& keep, bool weighted, bool allow_full) {
    const int64_t d = params.integer("num_heads") * params.integer("head_dim"), m = params.integer("ffn_dim");
    const int64_t layers = params.integer("num_layers");
    std::vector<int64_t> at;
    for (const Value& l : params.value("prune_layers").as_list()) {
      at.push_back(static_cast<int64_t>(l.as_double()));
      if (at.back() >= layers || (at.size() > 1 && at.back() <= at[at.size() - 2]))
        throw UsageError("adaptinfer.prune_layers: ascending layers below num_layers " +
                         std::to_string(layers) + " are wanted, not " + params.value("prune_layers").str());
    }
    int64_t vision = params.integer("vision_tokens"), macs = 0;
    size_t next = 0;
    for (int64_t l = 0; l < layers; ++l) {
      const int64_t n = params.integer("prompt_tokens") + vision + params.integer("text_tokens");
      macs += 4 * n * d * d + 2 * n * n * d + 3 * n * d * m;
      if (next < at.size() && next < keep.size() && l == at[next]) {
        vision = kept_of(keep[next], vision, weighted, allow_full);
        ++next;
      }
    }
    return macs;
  }
};
ATTNBENCH_METHOD(AdaptInfer);

}  // namespace
}  // namespace attnbench
