// SeerAttention: a learned gate over pooled queries and keys chooses the key blocks of every query block.
#include <algorithm>
#include <cmath>

#include "kernels/gemm/gemm.hpp"
#include "kernels/rotary/rotary.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

using Kind = PoolTokensArgs::Kind;

ParamSpec ranged(ParamSpec s, std::optional<double> min, std::optional<double> max = {}) {
  s.min = min, s.max = max;
  s.nullable = s.default_value.is_null();
  return s;
}
ParamSpec pools(const char* name, Value::List words, const char* meaning) {
  ParamSpec s = spec::param(name, ParamSpec::Type::list, Value(std::move(words)), meaning);
  s.of_words = true;
  s.choices = {"max", "min", "avg"};
  return s;
}

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "seer_attention";
  m.title = "SeerAttention (learned block-sparse attention gate)";
  m.paper = "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs, 2024 (NeurIPS 2025)";
  m.arxiv = "2410.13276";
  m.family = "dynamic-sparse (learned gate, causal prefill, block list, softmax)";
  m.summary =
      "Queries and keys are pooled over blocks of tokens before rotary positions; a small learned projection "
      "makes gate logits between blocks. Each query block attends to the key blocks whose gate score passes "
      "a "
      "threshold, or to the best K. Query and key are rotated afterwards and attend exactly inside the "
      "chosen "
      "blocks.";
  m.formula =
      "blocks of b tokens, n = ceil(N / b)\n"
      "qp = avg-pool(q) [n, D];  kp = concat(max-, min-, avg-pool(k)) [n, 3 D]        (before rotary)\n"
      "qg[h] = qp[h] (or qp[h] Wq[h]);  kg[h] = kp[h / group] Wk[h];  both rotated at 0, b, 2b, ...\n"
      "S[i, t] = qg[i] . kg[t] / sqrt(Dg), t <= i;   G = softmax_t(S)\n"
      "M = G > threshold, or the K largest S of each row: K = max(1, trunc((1 - sqrt(1 - nz_ratio)) n))\n"
      "o_r = sum_j softmax_j(rope(q_r) . rope(k_j) / sqrt(D)) v_j over j <= r in the chosen blocks";
  m.cost =
      "Gate: pooling N D (H Pq + Hkv P), projection 2 H n P D Dg (single form), map 2 H n^2 Dg, H n^2 "
      "exponentials. "
      "Attention 4 D b^2 a chosen block. Parameters H P D Dg.";
  m.params = {
      ranged(spec::param("block_size", Type::integer, 64, "b, tokens of a block"), 1),
      ranged(spec::param("gate_hidden", Type::integer, 128, "Dg, even"), 2),
      pools("q_pool", {"avg"}, "poolings of q, concatenated in the order max, min, avg"),
      pools("k_pool", {"max", "min", "avg"}, "poolings of k, concatenated in the order max, min, avg"),
      spec::param("force_double", Type::boolean, false,
                  "project q too (Wq) where one pooling of width Dg needs no projection"),
      spec::param("gate_rope", Type::boolean, true,
                  "rotate the pooled queries and keys at their block's first token"),
      ranged(spec::param("rope_theta", Type::number, 10000.0, "base of both rotations' frequencies"), 1e-6),
      spec::param("sparsity_method", Type::choice, "threshold", "how the mask follows from the gate"),
      ranged(spec::param("threshold", Type::number, 5e-4, "gate score that a block must exceed"), {}, {}),
      ranged(spec::param("nz_ratio", Type::number, 1.0, "kept share of the causal triangle"), 0.0, 1.0),
      ranged(spec::param("topk_blocks", Type::integer, Value(), "blocks a row for sparsity_method topk"), 1),
      spec::param("last_block_dense", Type::boolean, true, "the last two block rows see everything"),
      spec::param("force_diagonal", Type::boolean, true, "every row sees its own block"),
      spec::param("causal", Type::boolean, true, "false: no triangle anywhere")};
  for (ParamSpec& s : m.params)
    if (s.name == "sparsity_method") s.choices = {"threshold", "nz_ratio", "topk"};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"kernel speed-up", "N 32k, sparsity 90 %, b 64", "FlashAttention-2", "5.67x (attention kernel only)",
       "abstract, Fig. 1c"},
      {"gate + top-k + kernel", "N 128k, 90 %", "FlashAttention-2", "5.47x", "Fig. 5"},
      {"kernel speed-up, later version", "N 128k, 90 %, A100", "FlashAttention-2", "7.3x", "secondary"},
      {"share of gate + top-k", "N 32k", "", "1 to 2 % of latency", "Fig. 5 (secondary)"},
      {"time to first token, Llama-3.1-8B", "8k 0.5 / 16k 0.6 / 32k 0.7 / 64k 0.8 / 128k 0.95",
       "FA2 0.90/1.95/4.63/10.09/35.54 s", "1.15x/1.18x/1.29x/1.31x/2.66x", "Table 4"},
      {"gate file sizes", "Llama-3.1-8B, 70B, Qwen2.5-7B, 14B, 32B", "", "101, 503, 77, 189, 252 MB",
       "repository README"}};
  m.notes = {
      "Ties of the K largest go to the lower block (chosen). force_diagonal is a choice as well: without it "
      "a "
      "row whose list is empty gives zeros.",
      "The gate runs in f32 on the rounded inputs, and its weights are f32, whatever the problem's dtype: "
      "selections do not depend on it.",
      "One query (decode) skips the gate and attends densely; the outputs of the gate are then absent.",
      "nz_ratio: rows below K are dense, so that about nz_ratio of the triangle is kept (2 r - r^2 = rho).",
      "Llama-3.1's frequency scaling is not applied: theta alone sets the rates.",
      "ground_truth [B,H,n,n], the training target, is made on demand (apply --check): each row of block "
      "maxima of the dense probabilities divided by its sum."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 500;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

const MethodInfo& seer_info() {
  static const MethodInfo info = describe();
  return info;
}

/// The given poolings in the order in which they are concatenated.
std::vector<Kind> pool_kinds(const Value& words) {
  std::vector<Kind> kinds;
  for (const auto& [word, kind] : {std::pair{"max", Kind::max}, {"min", Kind::min}, {"avg", Kind::mean}})
    for (const Value& w : words.as_list())
      if (w.as_string() == word) kinds.push_back(kind);
  return kinds;
}

class SeerInstance final : public BlockSelectionInstance {
 public:
  SeerInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, seer_info(), problem, Layout::token_major,
                               1.0 / std::sqrt(static_cast<double>(problem.head_dim))),
        block_(params.integer("block_size")),
        hidden_(params.integer("gate_hidden")),
        q_pool_(pool_kinds(params.value("q_pool"))),
        k_pool_(pool_kinds(params.value("k_pool"))),
        gate_rope_(params.boolean("gate_rope")),
        causal_(params.boolean("causal")),
        theta_(params.number("rope_theta")),
        rule_(params.choice("sparsity_method")),
        threshold_(params.number("threshold")) {
    const HeadsForm& f = form_;
    dense_ = f.queries == 1;
    if (!dense_ && f.queries != f.keys)
      throw Unsupported(
          "seer_attention gates prefill, where every token is query and key: problem.kv_length must equal "
          "length " +
          std::to_string(f.queries) + ", not " + std::to_string(f.keys) +
          " (one query alone is decoded densely)");
    if (problem.causal && !causal_)
      throw UsageError("seer_attention.causal: false contradicts problem.causal = true");
    if (f.head_dim % 2 != 0)
      throw Unsupported("seer_attention rotates pairs of channels, and head_dim " +
                        std::to_string(f.head_dim) + " is odd");
    if (hidden_ % 2 != 0)
      throw UsageError("seer_attention.gate_hidden: rotated in pairs, so an even number is wanted, not " +
                       std::to_string(hidden_));
    single_ = q_pool_.size() == 1 && hidden_ == f.head_dim && !params.boolean("force_double");
    input_specs_ = {spec("q", f.heads, f.queries, "queries before rotary positions [B, N, H, D]"),
                    spec("k", f.kv_heads, f.keys, "keys before rotary positions [B, N, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, N, Hkv, D]")};
    mask_.rule.causal = causal_;
    if (dense_) return;
    // The current code draws its gates from a normal distribution of deviation 0.02.
    const int64_t pk = width(k_pool_), pq = width(q_pool_);
    weight_specs_.push_back({"Wk",
                             {single_ ? f.heads : f.kv_heads, pk, hidden_},
                             DType::f32,
                             Init::normal(0, 0.02),
                             false,
                             "gate projection of pooled keys"});
    if (!single_)
      weight_specs_.push_back({"Wq",
                               {f.heads, pq, hidden_},
                               DType::f32,
                               Init::normal(0, 0.02),
                               false,
                               "gate projection of pooled queries"});
    lists_.rule = mask_.rule;
    lists_.diagonal = params.boolean("force_diagonal");
    lists_.last_rows = params.boolean("last_block_dense") ? 2 : 0;
    make_lists(ctx, block_, block_);
    const int64_t n = query_blocks();
    if (rule_ == "topk") {
      if (params.is_null("topk_blocks"))
        throw UsageError("seer_attention.topk_blocks: sparsity_method topk needs a number of blocks");
      best_ = std::min(params.integer("topk_blocks"), n);
    } else {
      const double rho = params.number("nz_ratio");
      if (rule_ == "nz_ratio" && !(rho > 0))
        throw UsageError("seer_attention.nz_ratio: a kept share above 0 is wanted, not " +
                         params.value("nz_ratio").str());
      best_ =
          std::max<int64_t>(1, static_cast<int64_t>((1.0 - std::sqrt(1.0 - rho)) * static_cast<double>(n)));
    }
    logits_ = new_output(ctx, "gate_logits", DType::f32, {f.batch, f.heads, n, n});
    gate_ = new_output(ctx, "gate", DType::f32, {f.batch, f.heads, n, n});
  }

  void prepare(Context& ctx) override {
    const int64_t n = form_.keys, d = form_.head_dim;
    tokens_ = rotary_table(ctx, theta_, d, 0, 1, n);
    rotated_q_ = ctx.allocate_like(input("q"));
    rotated_k_ = ctx.allocate_like(input("k"));
    query_ = heads_first(rotated_q_), key_ = heads_first(rotated_k_), value_ = heads_first(input("v"));
    if (dense_) return;
    const int64_t blocks = query_blocks();
    if (gate_rope_) starts_ = rotary_table(ctx, theta_, hidden_, 0, block_, blocks);
    allocate_block_lists(ctx, lists_, form_.batch, form_.heads);
    mask_ = block_mask_of(lists_);
  }

  void run(Context& ctx) override {
    if (!dense_) {
      gate(ctx);
      select(ctx);
    }
    {
      const auto stage = ctx.stage("rotate");
      const int64_t first = form_.keys - form_.queries;
      rotary(ctx, {heads_first(input("q")), tokens_.cosine.slice(0, first, form_.keys),
                   tokens_.sine.slice(0, first, form_.keys), query_});
      rotary(ctx, {heads_first(input("k")), tokens_.cosine, tokens_.sine, key_});
    }
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
    ran_ = true;
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim;
    ClosedForm c;
    c.data_dependent = !dense_;
    c.cost = attend_cost();
    // Rotation: three operations an element; tables read with each operand.
    const int64_t turned = f.batch * (f.heads * f.queries + f.kv_heads * f.keys) * d;
    c.cost.elementwise += 3 * turned;
    c.cost.bytes_read += turned * element + 4 * d * (f.queries + f.keys);
    c.cost.bytes_written += turned * element;
    if (dense_) return c;
    const int64_t n = query_blocks(), b = f.batch, pk = width(k_pool_), pq = width(q_pool_);
    const int64_t map = b * f.heads * n * n;
    const auto pool = [&](int64_t heads, int64_t kinds) {
      c.cost.elementwise += b * heads * kinds * (f.keys + n) * d;
      c.cost.bytes_read += b * heads * kinds * f.keys * d * element;
      c.cost.bytes_written += b * heads * kinds * n * d * 4;
    };
    pool(f.heads, static_cast<int64_t>(q_pool_.size()));
    pool(f.kv_heads, static_cast<int64_t>(k_pool_.size()));
    // Weights count once a batch element, as the batched product reads them.
    const auto project = [&](int64_t heads, int64_t wide) {
      c.cost.matmul += 2 * b * heads * n * wide * hidden_;
      c.cost.bytes_read += b * heads * (n * wide + wide * hidden_) * 4;
      c.cost.bytes_written += b * heads * n * hidden_ * 4;
      c.parameters += heads * wide * hidden_;
    };
    project(single_ ? f.heads : f.kv_heads, pk);
    if (!single_) project(f.heads, pq);
    const int64_t gate_heads = f.heads + (single_ ? f.heads : f.kv_heads);
    if (gate_rope_) {
      c.cost.elementwise += 3 * b * gate_heads * n * hidden_;
      c.cost.bytes_read += 4 * b * gate_heads * n * hidden_ + 2 * 4 * n * hidden_;
      c.cost.bytes_written += 4 * b * gate_heads * n * hidden_;
    }
    c.cost.matmul += 2 * map * hidden_;
    c.cost.bytes_read += 4 * 2 * b * f.heads * n * hidden_;
    c.cost.bytes_written += 4 * map;
    if (causal_) c.cost.bytes_written += 4 * (map - b * f.heads * n * (n + 1) / 2);  // future logits: 0
    c.cost.special += map;                                                           // softmax
    c.cost.elementwise += 4 * map;
    c.cost.bytes_read += 4 * map;
    c.cost.bytes_written += 4 * map;
    c.cost.elementwise += map;  // threshold or top-k
    c.cost.bytes_read += 4 * map;
    c.cost.bytes_written += map;
    c.cost.bytes_read += map;  // lists
    c.cost.bytes_written += 4 * map + 4 * (lists_rule_partial() ? 4 : 2) * b * f.heads * n;
    return c;
  }

  std::optional<BlockEstimate> block_estimate(Context&) override {
    if (dense_) return std::nullopt;
    return BlockEstimate{gate_, block_, block_, form_.queries, form_.keys};
  }

  Tensor extra_output(Context& ctx, const std::string& name) override {
    if (name != "ground_truth" || dense_) return {};
    // Row softmax over all visible keys, streamed by query blocks.
    const int64_t n = query_blocks(), tokens = form_.keys;
    AttentionArgs all = call();
    BlockMask open;
    open.rule = mask_.rule;
    all.mask = &open;
    std::vector<float> truth(static_cast<size_t>(form_.batch * form_.heads * n * n)), rows;
    for (int64_t b = 0; b < form_.batch; ++b)
      for (int64_t h = 0; h < form_.heads; ++h)
        for (int64_t i = 0; i < n; ++i) {
          const int64_t first = i * block_, last = std::min(tokens, first + block_);
          attention_rows(ctx, all, b, h, first, last, rows);
          float* to = truth.data() + ((b * form_.heads + h) * n + i) * n;
          double sum = 0;
          for (int64_t t = 0; t < n; ++t) {
            for (int64_t r = 0; r < last - first; ++r)
              for (int64_t j = t * block_; j < std::min(tokens, (t + 1) * block_); ++j)
                to[t] = std::max(to[t], rows[static_cast<size_t>(r * tokens + j)]);
            sum += static_cast<double>(to[t]);
          }
          for (int64_t t = 0; t < n; ++t) to[t] = static_cast<float>(static_cast<double>(to[t]) / sum);
        }
    return upload(ctx, {form_.batch, form_.heads, n, n}, truth);
  }

 private:
  int64_t width(const std::vector<Kind>& pool) const {
    return static_cast<int64_t>(pool.size()) * form_.head_dim;
  }
  bool lists_rule_partial() const { return !mask_.rule.allows_all(); }

  /// All poolings of x [B, X, N, D] side by side: f32 [B, X, n, P D].
  Tensor pooled(Context& ctx, const Tensor& x, const std::vector<Kind>& kinds) {
    const int64_t d = form_.head_dim;
    const Tensor y = ctx.allocate(DType::f32, {x.dim(0), x.dim(1), query_blocks(), width(kinds)});
    for (size_t p = 0; p < kinds.size(); ++p) {
      PoolTokensArgs a;
      a.kind = kinds[p];
      a.block = block_;
      a.x = x;
      a.y = y.slice(3, static_cast<int64_t>(p) * d, static_cast<int64_t>(p + 1) * d);
      pool_tokens(ctx, a);
    }
    return y;
  }

  void gate(Context& ctx) {
    const HeadsForm& f = form_;
    const int64_t n = query_blocks(), group = f.group();
    Tensor qg, kg;
    {
      const auto stage = ctx.stage("pool");
      qg = pooled(ctx, heads_first(input("q")), q_pool_);
      kg = pooled(ctx, heads_first(input("k")), k_pool_);
    }
    const auto stage = ctx.stage("gate");
    const auto project = [&](const Tensor& x, const Tensor& w) {
      GemmArgs a;
      a.a = x;
      a.b = repeated(w, 0, f.batch);
      a.c = ctx.allocate(DType::f32, {f.batch, w.dim(0), n, hidden_});
      gemm(ctx, a);
      return a.c;
    };
    if (single_) {
      // Each query head has its own projection of its key head's pools.
      GemmArgs a;
      a.a = repeated(kg, 2, group);  // [B, Hkv, group, n, P D]
      a.b = repeated(weight("Wk").reshape({f.kv_heads, group, width(k_pool_), hidden_}), 0, f.batch);
      const Tensor c = ctx.allocate(DType::f32, {f.batch, f.kv_heads, group, n, hidden_});
      a.c = c;
      gemm(ctx, a);
      kg = c.reshape({f.batch, f.heads, n, hidden_});
    } else {
      qg = project(qg, weight("Wq"));
      kg = project(kg, weight("Wk"));
    }
    if (gate_rope_) {
      rotary(ctx, {qg, starts_.cosine, starts_.sine, qg});
      rotary(ctx, {kg, starts_.cosine, starts_.sine, kg});
    }
    GemmArgs a;
    a.a = qg.reshape({f.batch, f.kv_heads, group, n, hidden_});
    a.b = single_ ? kg.reshape({f.batch, f.kv_heads, group, n, hidden_}) : repeated(kg, 2, group);
    a.b_transposed = true;
    a.c = logits_.reshape({f.batch, f.kv_heads, group, n, n});
    a.alpha = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden_)));
    gemm(ctx, a);
    // Logits of future blocks are reported as 0.
    softmax(ctx, {logits_, gate_, causal_, 0, causal_});
  }

  void select(Context& ctx) {
    const auto stage = ctx.stage("select");
    const int64_t n = query_blocks();
    lists_.bitmap = ctx.allocate(DType::u8, {form_.batch, form_.heads, n, n});
    if (rule_ == "threshold") {
      CompareArgs a;
      a.x = gate_;
      a.flag = lists_.bitmap;
      a.threshold = static_cast<float>(threshold_);
      compare_flags(ctx, a);
    } else {
      TopKArgs a;
      a.x = logits_;
      a.flag = lists_.bitmap;
      a.k = best_;
      a.visible.causal = causal_;
      top_k(ctx, a);
    }
    build_block_lists(ctx, lists_);
  }

  int64_t block_, hidden_, best_ = 0;
  std::vector<Kind> q_pool_, k_pool_;
  bool gate_rope_, causal_, single_ = false;
  double theta_;
  std::string rule_;
  double threshold_;
  RotaryTable tokens_, starts_;
  Tensor rotated_q_, rotated_k_, logits_, gate_;
};

class SeerAttention final : public Method {
 public:
  const MethodInfo& info() const override { return seer_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<SeerInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(SeerAttention);

}  // namespace
}  // namespace attnbench
