// FlexPrefill: the last queries probe all keys; each head then keeps vertical and slash lines of blocks, or,
// where pooled scores predict the probe well, the blocks of a pooled map as well.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/select/patterns.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "flexprefill";
  m.title = "FlexPrefill (context-aware sparse prefill)";
  m.paper =
      "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference, ICLR "
      "2025";
  m.arxiv = "2502.20766";
  m.family = "dynamic-sparse (training-free, causal prefill, per-head block list, softmax)";
  m.summary =
      "The last block of queries attends to all keys. How much of its mass single columns and diagonals hold "
      "sets "
      "how many vertical and slash lines of blocks a head keeps. Heads whose pooled scores predict the probe "
      "well "
      "(small Jensen-Shannon distance) also keep the blocks that cover gamma of a pooled map. Attention is "
      "exact "
      "inside the kept blocks.";
  m.formula =
      "P = softmax(Qlast K^T / sqrt(D)) [b, N];  a_v[j] = mean_i P[i, j];  a_s[c] = mean_i P[i, c - (b - 1) "
      "+ i]\n"
      "cover(x) = 1 + #{r : the r largest sum to <= gamma};  nv = clamp(cover(a_v) div unit + 1, bmin, "
      "bmax), ns alike\n"
      "d = sqrt(JSD(softmax_t(mean(Qlast) . mean(K_t) / sqrt(D)), sum of a_v in block t));  query-aware iff "
      "d < tau\n"
      "V = nv blocks of largest sum of a_v (block 0 always), S = ns distances of largest sum of a_s (0 "
      "always)\n"
      "L = {(i, t) : t in V} + {(i, i - o) : o in S}; query-aware heads (nv = ns = bmin) add the blocks of "
      "the causal\n"
      "pooled map softmax(mean(Q_i) . mean(K_t) / sqrt(D)) whose running sum stays within gamma n\n"
      "o_r = sum_j softmax_j(scale q_r . k_j) v_j over j <= r in the blocks of L";
  m.cost =
      "Probe 2 b N D a head and b N exponentials; line sums 2 b N; two sorts of N; pooled map 2 n^2 D and "
      "one sort "
      "of "
      "n^2 where tau > 0. Attention 4 D b^2 a listed block.";
  m.params = {
      spec::param("gamma", Type::number, 0.9, 1e-9, {}, "probability mass to cover; above 1: everything"),
      spec::param("tau", Type::number, 0.1, 0.0, 0.84,
                  "distance below which a head is query-aware; 0: none is"),
      spec::param("min_budget", Type::integer, 1024, 0, {}, "least tokens of each kind of line"),
      spec::param("max_budget", Type::integer, Value(), 1, {},
                  "most tokens of each kind of line; null: no limit"),
      spec::param("block_size", Type::integer, 128, 1, {}, "b, tokens of a block"),
      spec::param("budget_unit", Type::integer, 128, 1, {},
                  "tokens that count as one line (128 in the reference at any b)"),
      spec::param("gqa_interleave", Type::boolean, false, {}, {}, "query head h reads key head h mod Hkv"),
      spec::param("softmax_scale", Type::number, Value(), 1e-9, {},
                  "factor of q . k in the attention; null: 1 / sqrt(D). Probe and pooled maps always use 1 / "
                  "sqrt(D)"),
      spec::param("force_dense_below", Type::boolean, true, {}, {},
                  "dense attention up to max(2 b, min_budget in whole blocks) tokens"),
      spec::param("cover_inclusive", Type::boolean, false, {}, {},
                  "pooled map: the smallest set that reaches gamma n, instead of what stays within")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"attention latency, 128k, gamma 0.95", "Llama-3.1-8B shapes (H 32, Hkv 8, D 128, bf16), A100",
                "dense FlashAttention", "271.07 ms vs 658.83 ms = 2.43x", "paper table, via secondary notes"},
               {"attention latency, 128k, gamma 0.9", "same", "dense",
                "185.75 ms (= 3.55x; notes also say 3.49x)", "same"},
               {"attention latency, 128k, MInference", "same", "dense", "215.53 ms (= 3.06x)", "same"},
               {"RULER average, Llama-3.1-8B", "4k..128k", "dense 88.70, MInference 85.42", "89.18", "same"},
               {"kernel ceilings", "random block lists at 75 % and 95 % sparsity", "dense kernel",
                "4x and 20x", "repository tests/kernel_benchmark.py"}};
  m.notes = {
      "Ties of sorts and top-k go to the lower index (chosen), 0 ln 0 = 0, and a min_budget of 0 still keeps "
      "one "
      "line of each kind, so that no list is empty (chosen).",
      "bmin above bmax: both are bmax (chosen; the reference clamps only heads that are not query-aware).",
      "Scores of the selection are f32 on the rounded inputs, whatever the problem's dtype.",
      "One query decodes densely; short prompts are dense by force_dense_below. The outputs of the selection "
      "are "
      "then absent."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.kv_heads = 2;
  // Not a multiple of ten blocks: values of the map near 1 / (i + 1) fill one row of blocks after the other,
  // and 0.9 n would be reached at the end of a row, where the last rounding decides about a block.
  m.example.length = 2300;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

const MethodInfo& flex_info() {
  static const MethodInfo info = describe();
  return info;
}

class FlexPrefillInstance final : public BlockSelectionInstance {
 public:
  FlexPrefillInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, flex_info(), problem, Layout::token_major,
                               params.is_null("softmax_scale")
                                   ? 1.0 / std::sqrt(static_cast<double>(problem.head_dim))
                                   : params.number("softmax_scale")),
        block_(params.integer("block_size")),
        gamma_(params.number("gamma")),
        tau_(params.number("tau")),
        unit_(params.integer("budget_unit")),
        interleave_(params.boolean("gqa_interleave")),
        inclusive_(params.boolean("cover_inclusive")) {
    const HeadsForm& f = form_;
    if (!problem.causal)
      throw Unsupported(
          "flexprefill is causal prefill, and problem.causal is false; the paper has no other mode");
    if (f.queries != 1 && f.queries != f.keys)
      throw Unsupported("flexprefill needs as many keys as queries, not " + std::to_string(f.queries) +
                        " and " + std::to_string(f.keys) + " (one query alone is decoded densely)");
    input_specs_ = {spec("q", f.heads, f.queries, "queries [B, N, H, D]"),
                    spec("k", f.kv_heads, f.keys, "keys [B, N, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, N, Hkv, D]")};
    mask_.rule.causal = true;
    const int64_t least = params.integer("min_budget"), blocks = (f.keys + block_ - 1) / block_;
    const auto in_blocks = [this](int64_t tokens) { return (tokens + block_ - 1) / block_; };
    dense_ = f.queries == 1 || (params.boolean("force_dense_below") &&
                                f.queries <= std::max(2 * block_, in_blocks(least) * block_));
    most_ = params.is_null("max_budget") ? blocks : std::min(blocks, in_blocks(params.integer("max_budget")));
    least_ = std::min(std::max<int64_t>(1, in_blocks(least)), most_);
    if (dense_) return;
    if (blocks * blocks > INT32_MAX)
      throw Unsupported("flexprefill ranks " + std::to_string(blocks) +
                        "^2 blocks with 32-bit indices; use a larger "
                        "block_size");
    probe_rows_ = std::min(block_, f.queries);
    lists_.rule = mask_.rule;
    make_lists(ctx, block_, block_);
    distance_ = new_output(ctx, "d", DType::f32, {f.batch, f.heads});
    aware_ = new_output(ctx, "query_aware", DType::i32, {f.batch, f.heads});
  }

  void prepare(Context& ctx) override {
    query_ = heads_first(input("q"));
    if (interleave_ && form_.group() > 1) {
      // One key head for each query head: no single stride leads from h to h mod Hkv.
      const Shape wide{form_.batch, form_.keys, form_.heads, form_.head_dim};
      own_key_ = ctx.allocate(dtype_, wide), own_value_ = ctx.allocate(dtype_, wide);
      key_ = heads_first(own_key_), value_ = heads_first(own_value_);
    } else {
      key_ = heads_first(input("k")), value_ = heads_first(input("v"));
    }
    if (dense_) return;
    allocate_block_lists(ctx, lists_, form_.batch, form_.heads);
    mask_ = block_mask_of(lists_);
  }

  void run(Context& ctx) override {
    if (own_key_) {
      const auto stage = ctx.stage("spread");
      for (const auto& [from, to] : {std::pair{input("k"), own_key_}, std::pair{input("v"), own_value_}}) {
        const Shape shape{form_.batch, form_.keys, form_.group(), form_.kv_heads, form_.head_dim};
        transpose_copy(ctx, {repeated(from, 2, form_.group()), to.reshape(shape)});
      }
    }
    if (!dense_) {
      probe(ctx);
      select(ctx);
    }
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
    ran_ = true;
  }

  /// d is the root of a divergence J = d^2 whose terms cancel to it: an error of eps in J is one of eps / (2
  /// d) in d.
  double condition(const std::string& output) const override {
    if (output != "d") return 1.0;
    const Tensor host = on_host(*ctx_, distance_);
    double error = 0, norm = 0;
    for (int64_t i = 0; i < host.numel(); ++i) {
      const double d = std::max(static_cast<double>(host.data<float>()[i]), 1e-4);
      error += 0.25 / (d * d), norm += d * d;
    }
    return std::max(1.0, std::sqrt(error / norm));
  }

  /// The map that query-aware heads select by; of other heads, what it would be.
  std::optional<BlockEstimate> block_estimate(Context& ctx) override {
    if (dense_) return std::nullopt;
    const Tensor map = pooled_map(ctx, pooled(ctx, key_, block_, PoolTokensArgs::Kind::mean));
    return BlockEstimate{map, block_, block_, form_.queries, form_.keys};
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    ClosedForm c;
    c.data_dependent = !dense_;
    CostSheet s;
    s.c = attend_cost();
    const int64_t element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim, N = f.keys;
    const bool spread = interleave_ && f.group() > 1;
    if (spread) {
      const int64_t moved = f.batch * N * f.heads * d * element;
      s.bytes(2 * moved, 2 * moved);
      s.c.bytes_read += 2 * f.batch * N * (f.heads - f.kv_heads) * d * element;  // wider keys and values
    }
    if (dense_) return c.cost = s.c, c;
    const int64_t maps = f.batch * f.heads, kv_maps = f.batch * key_heads(), R = probe_rows_,
                  n = query_blocks();
    const auto log2 = [](int64_t x) {
      int64_t bits = 0;
      while ((int64_t{1} << bits) < x) ++bits;
      return bits;
    };
    // Line sums of the probe, whose map is never stored.
    s.c.matmul += 2 * maps * R * N * d;
    s.c.special += maps * R * N;
    s.work(6 * maps * R * N, element * (maps * R + kv_maps * N) * d, 8 * maps * N);
    s.work(2 * maps * N * (log2(N) + 1), 8 * maps * N, 8 * maps);  // covers
    s.pool(2 * maps * N, 4, 2 * maps * n);
    s.pool(maps * R * d, element, maps * d);
    s.pool(kv_maps * N * d, element, kv_maps * n * d);
    s.c.matmul += 2 * maps * n * d;
    s.bytes(4 * (maps * d + kv_maps * n * d), 4 * maps * n);
    s.softmax(maps * n);
    s.c.special += 2 * maps * n + maps;  // distance
    s.work(6 * maps * n, 8 * maps * n, 8 * maps);
    s.work(2 * maps, 16 * maps, 8 * maps);                        // budgets
    s.work(2 * maps, 8 * maps, 8 * maps);                         // the two forced lines
    s.work(2 * maps * n, 8 * maps * n + 8 * maps, 2 * maps * n);  // top-k of both
    s.bytes(maps * n, maps * n);                                  // slash flags by distance
    if (tau_ > 0) {
      s.pool(maps * N * d, element, maps * n * d);
      s.gemm(maps, n, n, d);
      s.softmax(maps * n * n);
      s.work(maps, 4 * maps, 4 * maps);
      s.work(maps * n * n * (log2(n * n) + 1), 4 * maps * n * n + 4 * maps, maps * n * n);
      s.bytes(maps * n * n, 0);
    }
    s.bytes(2 * maps * n, 4 * maps * n * n + 16 * maps * n);
    c.cost = s.c;
    return c;
  }

 private:
  /// Key heads as the attention call sees them.
  int64_t key_heads() const { return interleave_ ? form_.heads : form_.kv_heads; }
  int64_t key_group() const { return form_.heads / key_heads(); }

  Tensor pooled(Context& ctx, const Tensor& x, int64_t block, PoolTokensArgs::Kind kind) {
    PoolTokensArgs a;
    a.kind = kind;
    a.block = block;
    a.x = x;
    a.y = ctx.allocate(DType::f32, {x.dim(0), x.dim(1), (x.dim(2) + block - 1) / block, x.dim(3)});
    pool_tokens(ctx, a);
    return a.y;
  }
  float probe_scale() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(form_.head_dim)));
  }

  /// Abar: causal softmax of the scores of block means, [B, H, n, n].
  Tensor pooled_map(Context& ctx, const Tensor& mean_k) {
    const HeadsForm& f = form_;
    const int64_t n = query_blocks(), kv = key_heads(), group = key_group();
    const Tensor mean_q = pooled(ctx, query_, block_, PoolTokensArgs::Kind::mean);
    const Tensor map = ctx.allocate(DType::f32, {f.batch, f.heads, n, n});
    GemmArgs a;
    a.a = mean_q.reshape({f.batch, kv, group, n, f.head_dim});
    a.b = repeated(mean_k, 2, group);
    a.b_transposed = true;
    a.c = map.reshape({f.batch, kv, group, n, n});
    a.alpha = probe_scale();
    gemm(ctx, a);
    softmax(ctx, {map, map, true, 0});
    return map;
  }

  void probe(Context& ctx) {
    const auto stage = ctx.stage("probe");
    const HeadsForm& f = form_;
    const int64_t N = f.keys, R = probe_rows_;
    vertical_ = ctx.allocate(DType::f32, {f.batch, f.heads, N});
    slash_ = ctx.allocate(DType::f32, {f.batch, f.heads, N});
    const Tensor rows = query_.slice(2, N - R, N);
    probe_mean_ = pooled(ctx, rows, R, PoolTokensArgs::Kind::mean);  // [B, H, 1, D]
    LineSumsArgs a;
    a.q = rows, a.k = key_;
    a.scale = probe_scale();
    a.vertical = vertical_, a.slash = slash_;
    line_sums(ctx, a);
  }

  /// Entry `at` of every row becomes +inf.
  void force(Context& ctx, const Tensor& x, int64_t at) {
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine;
    p.a = p.y = x.slice(-1, at, at + 1);
    p.alpha = 0.0f;
    p.beta = std::numeric_limits<float>::infinity();
    pointwise(ctx, p);
  }

  void select(Context& ctx) {
    const auto stage = ctx.stage("select");
    const HeadsForm& f = form_;
    const int64_t kv = key_heads(), group = key_group(), N = f.keys, n = query_blocks();
    const Shape heads{f.batch, f.heads}, lines{f.batch, f.heads, n};
    const auto cover = [&](const Tensor& x) {
      TopPArgs a;
      a.x = x;
      a.count = ctx.allocate(DType::i32, heads);
      a.p = gamma_;
      a.lag = 0;
      a.inclusive = true;
      top_p(ctx, a);
      return a.count;
    };
    const Tensor covered_v = cover(vertical_), covered_s = cover(slash_);
    const auto by_block = [&](const Tensor& x) {
      return pooled(ctx, x.reshape({f.batch, f.heads, N, 1}), block_, PoolTokensArgs::Kind::sum)
          .reshape(lines);
    };
    const Tensor block_v = by_block(vertical_), block_s = by_block(slash_);

    // Pattern: how well pooled scores predict the probe.
    const Tensor mean_k = pooled(ctx, key_, block_, PoolTokensArgs::Kind::mean);  // [B, Hk, n, D]
    const Tensor estimate = ctx.allocate(DType::f32, lines);
    GemmArgs a;
    a.a = probe_mean_.reshape({f.batch, kv, group, f.head_dim});
    a.b = mean_k;
    a.b_transposed = true;
    a.c = estimate.reshape({f.batch, kv, group, n});
    a.alpha = probe_scale();
    gemm(ctx, a);
    softmax(ctx, {estimate, estimate});
    js_distance(ctx, {estimate, block_v, distance_, aware_, tau_});

    const auto budget = [&](const Tensor& covered) {
      CountRuleArgs r;
      r.x = covered, r.flag = aware_;
      r.y = ctx.allocate(DType::i32, heads);
      r.before = 1, r.divisor = static_cast<int32_t>(std::min<int64_t>(unit_, INT32_MAX)), r.after = 1;
      r.low = static_cast<int32_t>(least_), r.high = static_cast<int32_t>(most_);
      r.when_set = static_cast<int32_t>(least_);
      count_rule(ctx, r);
      return r.y;
    };
    const Tensor count_v = budget(covered_v), count_s = budget(covered_s);
    force(ctx, block_v, 0);
    force(ctx, block_s, n - 1);
    const auto best = [&](const Tensor& x, const Tensor& count) {
      TopKArgs t;
      t.x = x;
      t.count = count;
      t.flag = ctx.allocate(DType::u8, lines);
      t.k = most_;
      top_k(ctx, t);
      return t.flag;
    };
    lists_.columns = best(block_v, count_v);
    const Tensor by_line = best(block_s, count_s);
    lists_.diagonals = ctx.allocate(DType::u8, lines);
    transpose_copy(ctx, {by_line.strided(lines, {f.heads * n, n, -1}, n - 1), lists_.diagonals});

    if (tau_ > 0) {
      const Tensor map = pooled_map(ctx, mean_k);
      CountRuleArgs all;  // heads that are not query-aware keep nothing of the map
      all.flag = aware_;
      all.y = ctx.allocate(DType::i32, heads);
      all.low = all.high = 0;
      all.when_set = static_cast<int32_t>(n * n);
      count_rule(ctx, all);
      TopPArgs p;
      p.x = map.reshape({f.batch, f.heads, n * n});
      p.flag = ctx.allocate(DType::u8, {f.batch, f.heads, n * n});
      p.visible.limit = all.y;
      p.p = gamma_ * static_cast<double>(n);
      p.lag = inclusive_ ? 1 : 0;
      p.inclusive = !inclusive_;
      top_p(ctx, p);
      lists_.bitmap = p.flag.reshape({f.batch, f.heads, n, n});
    }
    build_block_lists(ctx, lists_);
  }

  int64_t block_, least_ = 1, most_ = 1, probe_rows_ = 0;
  double gamma_, tau_;
  int64_t unit_;
  bool interleave_, inclusive_;
  Tensor own_key_, own_value_, vertical_, slash_, probe_mean_, distance_, aware_;
};

class FlexPrefill final : public Method {
 public:
  const MethodInfo& info() const override { return flex_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<FlexPrefillInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(FlexPrefill);

}  // namespace
}  // namespace attnbench
