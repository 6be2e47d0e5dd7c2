// Routing attention: tokens of a sequence grouped by learned centroids, softmax inside each group, beside
// local block attention. Card: routing_transformer.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/features/features.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/routing/routing.hpp"
#include "kernels/select/select.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_pattern.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  using Type = ParamSpec::Type;
  const auto nullable = [](ParamSpec s) {
    s.nullable = true;
    return s;
  };
  MethodInfo m;
  m.id = m.card = "routing_transformer";
  m.title = "Routing attention (Routing Transformer)";
  m.paper = "Efficient Content-Based Sparse Attention with Routing Transformers, TACL 2021";
  m.arxiv = "2003.05997";
  m.family = "dynamic-sparse (content clusters, softmax)";
  m.summary =
      "Routing heads compare every token with learned centroids; each centroid takes the `window` nearest "
      "tokens, which attend to each other. Local heads attend to blocks around their own. With square-root "
      "sized clusters the work grows as N^1.5.";
  m.formula =
      "z = LN0(q) (normalize: l2, none);  k likewise, or k = q with shared_qk\n"
      "s[n, c] = z_n . mu_c;  I_c = the window tokens with the largest s[., c], ascending (ties: lower "
      "index)\n"
      "o_c = softmax(scale z_{I_c} k_{I_c}^T + z_{I_c} . rk[clip(j - i)]) (v_{I_c} + rv[clip(j - i)]), "
      "causal: "
      "places of keys not after the query's\n"
      "o_n = sum of o_c over the places that hold n / (their number + scatter_eps)\n"
      "lsh: clusters are buckets of signs of random projections, filled up in order of tokens\n"
      "strided-cluster heads: every (N / window)-th token by distance\n"
      "local heads: block t attends to itself and local_flange tokens before it (and after it, not causal)\n"
      "out = Wo concat_h(Wm o_h)";
  m.cost =
      "Projections 8 B N C^2 (less the unused keys of shared heads); scores 2 s B Hr N K D, s = 1 when "
      "shared; "
      "clusters 4 B Hr K w^2 D (causal: (w + 1) / 2w of it); local 4 B Hl N (b + m) D, whole blocks. Routing "
      "over dense attention 1 / K when K w = N.";
  ParamSpec causal = spec::boolean("causal", true, "as the problem says");
  causal.from_problem = "causal";
  m.params = {
      spec::integer("num_heads", 8, 1, "H: routing, strided-cluster, then local heads", "heads"),
      spec::integer("routing_heads", 4, 0, "Hr"),
      spec::integer("cluster_strided_heads", 0, 0, "strided-cluster heads, besides Hr"),
      nullable(spec::integer("num_clusters", Value(), 1, "K; null: round(sqrt(N))")),
      nullable(spec::integer("window", Value(), 1, "w: tokens of a cluster; null: ceil(N / K)")),
      spec::integer("local_block", 256, 1, "b: query block of local heads"),
      spec::integer("local_flange", 256, 0, "m: keys beside it, a multiple of b"),
      causal,
      nullable(spec::param("shared_qk", Type::boolean, Value(), "keys are the queries; null: when causal")),
      spec::choice("route", {"kmeans", "lsh"}, "centroids, or random projections"),
      spec::choice("normalize", {"layernorm", "l2", "none"}, "of queries and keys before routing"),
      nullable(spec::param("scale", Type::number, Value(), "null: 1 after layernorm, else 1 / sqrt(D)")),
      spec::boolean("relative", false, "relative tables for keys and values"),
      spec::integer("max_relative_position", 513, 1, "R: tables have 2 R + 1 rows"),
      spec::boolean("mask_self", false, "shared keys: the own one counts with logit -5e4"),
      spec::integer("num_mem_kv", 0, 0, "learned keys and values before each cluster"),
      spec::number("scatter_eps", 0.01, 0, "added to a token's number of clusters"),
      spec::boolean("head_mix", false, "one D x D matrix on every head"),
      spec::integer("kmeans_init_iters", 10, 0,
                    "centroids that no file gives are found by so many Lloyd steps on the input, before "
                    "timing; 0: they are given"),
      spec::boolean("update_means", false, "the training update of the centroids, too"),
      spec::share("ema_decay", 0.999, "of the centroid update"),
      spec::number("commitment", 1e-4, 0, "weight of the auxiliary loss")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"complexity", "n tokens, width d", "O(n^2 d)", "O(n^1.5 d)", "abstract"},
      {"perplexity", "Wikitext-103 test", "18.3", "15.8", "abstract"},
      {"bits/dim", "ImageNet-64", "3.44", "3.43", "abstract"},
      {"perplexity", "PG-19, 22 layers, 8192 tokens", "", "33.2", "abstract"},
      {"attention work, derived", "pg19_local_cluster8k: N 8192, K 16, w 512, b 256", "dense",
       "routing and local heads 16.0x fewer operations", "formula on the repository's configuration"}};
  m.notes = {
      "A problem with channels is the layer (x, projections); with head_dim it is the attention of the "
      "routing "
      "heads alone, on q, v and, not shared, k as given.",
      "The layer pads tokens with zeros to whole local blocks before routing, as the authors' code; the "
      "attention alone does not.",
      "Routing is computed in f32 whatever the dtype.",
      "Centroids that are given are used as they are. Others start from num_clusters normalised rows of the "
      "queries, and of the keys where those are not the queries, drawn without replacement by problem.seed "
      "(from the beginning again when there are too few); a step assigns every row to its largest product "
      "and "
      "puts the mean through `normalize`; empty clusters stay (chosen: as lucidrains' steps, whose means are "
      "normalised too).",
      "Memory has no rank in a cluster and so no relative term, and strided-cluster heads have none "
      "(chosen).",
      "update_means with keys of their own decays twice, for the queries and then for the keys, both "
      "assigned by "
      "the centroids before (the card's \"again\").",
      "A query that may see no key gives 0 and is not counted (chosen).",
      "Rows of zero values are padding only where this layer padded; the authors' code tests values."};
  m.example.heads = 6;
  m.example.channels = 96;
  m.example.length = 150;
  m.example.causal = true;
  return m;
}

/// What the parameters and the problem come to.
struct Routing {
  bool core = false;
  int64_t batch = 0, n = 0, padded = 0, channels = 0, heads = 0, hr = 0, hs = 0, hl = 0, dim = 0;
  int64_t clusters = 0, window = 0, block = 0, flange = 0, reach = 0, memory = 0;
  bool causal = false, shared = false, lsh = false, relative = false, mask_self = false, mix = false,
       update = false;
  enum class Normalize : uint8_t { layernorm, l2, none } normalize = Normalize::layernorm;
  float scale = 1, eps = 0, commitment = 0;
  double decay = 0;
  int64_t lloyd = 0;
  uint64_t seed = 0;
  int64_t bits() const { return static_cast<int64_t>(std::floor(std::log2(static_cast<double>(clusters)))); }
  int64_t slots() const { return clusters * window; }
};

class RoutingInstance final : public Instance, public DenseCounterpart {
 public:
  RoutingInstance(Context& ctx, const Routing& r, DType dtype)
      : r_(r), dtype_(dtype), backend_(&ctx.backend()), local_(r.n, r.n, r.block) {
    const int64_t c = r_.channels, d = r_.dim;
    const auto input = [&](const char* name, const Shape& shape, const char* meaning) {
      input_specs_.push_back({name, shape, dtype, Init::normal(), false, meaning});
    };
    const auto add = [&](const char* name, const Shape& shape, Init init, bool optional,
                         const char* meaning) {
      weight_specs_.push_back({name, shape, dtype, init, optional, meaning});
    };
    if (r_.core) {
      const Shape heads{r_.batch, r_.hr, r_.n, d};
      input("q", heads, "queries [B, Hr, N, D]");
      input("v", heads, "values");
      if (!r_.shared) input("k", heads, "keys");
    } else {
      input("x", {r_.batch, r_.n, c}, "tokens [B, N, C]");
      const double range = 0.2 * std::sqrt(3.0 / static_cast<double>(c));
      for (const char* name : {"Wq", "Wk", "Wv", "Wo"})
        add(name, {c, c}, Init::uniform(-range, range), false, "projection (out, in)");
    }
    if (r_.mix) add("Wm", {d, d}, Init::normal(0, 1 / std::sqrt(static_cast<double>(d))), false, "head mix");
    if (r_.hr > 0) {
      if (r_.lsh) {
        if (r_.bits() > 0) add("lsh_projections", {r_.hr, r_.bits(), d}, Init::normal(), false, "of buckets");
      } else {
        add("mu", {r_.hr, r_.clusters, d}, Init::normal(), r_.lloyd > 0, "centroids; absent: found");
      }
      if (r_.memory > 0) {
        add("mem_key", {r_.hr, r_.clusters, r_.memory, d}, Init::normal(), false, "learned keys");
        add("mem_value", {r_.hr, r_.clusters, r_.memory, d}, Init::normal(), false, "learned values");
      }
      if (r_.update) {
        add("ema_count", {r_.hr, r_.clusters}, Init::constant(0), false, "running counts");
        add("ema_means", {r_.hr, r_.clusters, d}, Init::normal(), false, "running sums");
      }
    }
    if (r_.hs > 0)
      add("mu_strided", {r_.hs, r_.clusters, d}, Init::normal(), r_.lloyd > 0,
          "of strided-cluster heads; absent: found");
    if (r_.relative) {
      const auto tables = [&](int64_t heads, const char* key, const char* value) {
        if (heads == 0) return;
        add(key, {2 * r_.reach + 1, d}, Init::normal(0, 0.1), true, "relative keys; absent: none");
        add(value, {2 * r_.reach + 1, d}, Init::normal(0, 0.1), true, "relative values");
      };
      tables(r_.hr, "rk", "rv");
      tables(r_.hl, "rk_local", "rv_local");
      tables(r_.hs, "rk_strided", "rv_strided");
    }
    const auto output = [&ctx](DType t, const Shape& shape) {
      return ctx.allocate(t, shape, MemoryClass::output);
    };
    out_ = r_.core ? output(dtype, {r_.batch, r_.hr, r_.n, d}) : output(dtype, {r_.batch, r_.n, c});
    const auto selected = [&](int64_t heads) {
      return output(DType::i32, {r_.batch, heads, r_.clusters, r_.window});
    };
    if (r_.hr > 0) selected_q_ = selected(r_.hr);
    if (r_.hr > 0 && !r_.shared) selected_k_ = selected(r_.hr);
    if (r_.hs > 0) strided_q_ = selected(r_.hs), strided_k_ = selected(r_.hs);
    if (r_.update) {
      mu_new_ = output(DType::f32, {r_.hr, r_.clusters, d});
      count_new_ = output(DType::f32, {r_.hr, r_.clusters});
      means_new_ = output(DType::f32, {r_.hr, r_.clusters, d});
      loss_ = output(DType::f32, {1});
    }
    if (r_.hl > 0) list_local();
  }

  void prepare(Context& ctx) override;
  void run(Context& ctx) override;
  TensorMap outputs() const override;
  ClosedForm cost() const override;
  std::optional<PairSet> pairs() const override;
  int64_t keys(int64_t) const override { return r_.n; }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override;
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override;

 private:
  struct Kind {
    const char *rk, *rv;
    Tensor rel_key, rel_value, skewed;  ///< tables by rank difference; probabilities moved onto them
  };

  void list_local() {
    const int64_t reach = r_.flange / r_.block;
    for (int64_t t = 0; t < local_.query_blocks(); ++t) {
      std::vector<int64_t> row;
      std::vector<bool> partial;
      const int64_t last = r_.causal ? t : std::min(t + reach, local_.key_blocks() - 1);
      for (int64_t c = std::max<int64_t>(0, t - reach); c <= last; ++c) {
        row.push_back(c);
        partial.push_back(r_.causal && c == t);
      }
      local_.add_row(row, partial);
    }
  }
  bool has_tables(const char* rk) const { return r_.relative && has_weight(rk); }
  /// Whether members of a cluster need ranges: not all of them are real, or places of keys and queries
  /// differ.
  bool ranges(bool shared) const {
    return !(shared && r_.causal) && (r_.padded > r_.n || (r_.causal && !shared));
  }

  Tensor zeros(Context& ctx, const Shape& shape) const {
    return upload(ctx, shape, std::vector<float>(static_cast<size_t>(shape.numel()), 0.0f));
  }
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
  Tensor as_dtype(Context& ctx, const Tensor& x) const {
    if (dtype_ == DType::f32) return x;
    Tensor packed = x;
    if (!x.contiguous()) {
      packed = ctx.allocate(DType::f32, x.shape());
      transpose_copy(ctx, {x, packed});
    }
    const Tensor y = ctx.allocate(dtype_, x.shape());
    cast(ctx, {packed, y});
    return y;
  }
  /// [H, ...] as [B, H, ...] without a copy.
  Tensor over_batch(const Tensor& t) const {
    std::vector<int64_t> shape{r_.batch}, strides{0};
    for (int a = 0; a < t.rank(); ++a) shape.push_back(t.dim(a)), strides.push_back(t.stride(a));
    return t.strided(Shape(shape), Shape(strides));
  }
  /// The table by difference of place, `columns` keys against `rows` queries whose own key is column `own`.
  Tensor spread(Context& ctx, const Tensor& table, int64_t rows, int64_t columns, int64_t own) const {
    std::vector<int32_t> index;
    for (int64_t t = 0; t < rows + columns - 1; ++t)
      index.push_back(
          static_cast<int32_t>(std::clamp<int64_t>(t - (rows - 1) - own, -r_.reach, r_.reach) + r_.reach));
    const Tensor at = upload(ctx, {static_cast<int64_t>(index.size())}, index);
    const Tensor from = as_f32(ctx, table), y = ctx.allocate(DType::f32, {at.dim(0), r_.dim});
    gather_rows(ctx, {from.reshape({1, from.dim(0), r_.dim}), at, y.reshape({1, at.dim(0), r_.dim})});
    return y;
  }
  /// Entry (i, j) of [..., rows, columns] stands at column j - i + rows - 1 of [..., rows, rows + columns -
  /// 1].
  static Tensor skew(const Tensor& t, int64_t columns) {
    const int rank = t.rank();
    std::vector<int64_t> shape, strides;
    for (int a = 0; a < rank; ++a) shape.push_back(t.dim(a)), strides.push_back(t.stride(a));
    const int64_t rows = t.dim(-2);
    shape.back() = columns;
    strides[static_cast<size_t>(rank - 2)] = t.stride(-2) - 1;
    return t.strided(Shape(shape), Shape(strides), rows - 1);
  }

  /// softmax(scale q k^T + q . rk + bias) (v + rv), f32, with the scores in memory: q [.., w, D], k, v [..,
  /// m, D]. The first `memory` keys have no relative terms and are seen by all.
  void unfused(Context& ctx, const Kind& kind, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& o, const Tensor& bias, float scale, bool causal, int64_t memory) const {
    std::vector<int64_t> shape;
    for (int a = 0; a < q.rank() - 1; ++a) shape.push_back(q.dim(a));
    const int64_t rows = q.dim(-2), columns = k.dim(-2), ranked = columns - memory;
    const int last = q.rank() - 1;
    shape.push_back(columns);
    const Tensor scores = ctx.allocate(DType::f32, Shape(shape));
    GemmArgs g;
    g.a = q, g.b = k, g.b_transposed = true, g.c = scores, g.alpha = scale;
    gemm(ctx, g);
    const auto plus = [&](const Tensor& to, const Tensor& b) {
      PointwiseArgs p;
      p.a = p.y = to, p.b = b;
      pointwise(ctx, p);
    };
    if (kind.rel_key) {
      shape.back() = rows + ranked - 1;
      const Tensor relative = ctx.allocate(DType::f32, Shape(shape));
      GemmArgs t;
      t.a = q, t.b = kind.rel_key, t.b_transposed = true, t.c = relative;
      gemm(ctx, t);
      plus(scores.slice(last, memory, columns), skew(relative, ranked));
    }
    if (bias) plus(scores, bias);
    SoftmaxArgs p;
    p.x = p.y = scores, p.causal = causal, p.causal_offset = memory;
    softmax(ctx, p);
    GemmArgs s;
    s.a = scores, s.b = v, s.c = o;
    gemm(ctx, s);
    if (!kind.rel_value) return;
    transpose_copy(ctx, {scores.slice(last, memory, columns), skew(kind.skewed, ranked)});
    GemmArgs t;
    t.a = kind.skewed, t.b = kind.rel_value, t.c = o, t.accumulate = true;
    gemm(ctx, t);
  }

  /// Normalised rows z [B, H, padded, D], f32, zero behind the tokens.
  void normalise(Context& ctx, const Tensor& x, const Tensor& z) const {
    normalise_rows(ctx, x, z.slice(2, 0, r_.n));
  }
  void normalise_rows(Context& ctx, const Tensor& x, const Tensor& to) const {
    switch (r_.normalize) {
      case Routing::Normalize::layernorm: {
        NormArgs n;
        n.x = x, n.y = to, n.eps = 1e-6f;
        normalize(ctx, n);
        break;
      }
      case Routing::Normalize::l2: {
        UnitRowsArgs u;
        u.x = x, u.y = to, u.floor = 1e-12f;
        unit_rows(ctx, u);
        break;
      }
      case Routing::Normalize::none:
        transpose_copy(ctx, {x, to});
        break;
    }
  }

  /// Members of every cluster, ascending: index [B, H, K, w].
  void members(Context& ctx, const Tensor& z, const Tensor& centroids, bool strided,
               const Tensor& index) const {
    const int64_t heads = z.dim(1), n = z.dim(2), w = r_.window;
    const Tensor scores = ctx.allocate(DType::f32, {r_.batch, heads, r_.clusters, n});
    GemmArgs g;
    g.a = over_batch(centroids), g.b = z, g.b_transposed = true, g.c = scores;
    gemm(ctx, g);
    if (!strided) {
      if (r_.lsh) buckets(ctx, z, scores);
      TopKArgs best;
      best.x = scores, best.index = index, best.k = w, best.order = TopKArgs::Order::index;
      top_k(ctx, best);
      return;
    }
    ArgsortArgs sorted;
    sorted.x = scores, sorted.descending = true;
    sorted.index = ctx.allocate(DType::i32, scores.shape());
    argsort(ctx, sorted);
    const Tensor taken = ctx.allocate(DType::i32, index.shape()),
                 order = ctx.allocate(DType::i32, index.shape());
    const Shape& s = sorted.index.strides();
    transpose_copy(
        ctx, {sorted.index.strided(index.shape(), {s[0], s[1], s[2], std::max<int64_t>(1, n / w)}), taken});
    ArgsortArgs ascending;
    ascending.x = taken, ascending.index = order, ascending.value = index;
    argsort(ctx, ascending);
  }
  /// 1 where a token's signs are the bucket's number: +-1 projections against codes, less bits - 1.
  void buckets(Context& ctx, const Tensor& z, const Tensor& scores) const {
    const int64_t bits = r_.bits();
    if (bits == 0) return;  // one cluster: it takes tokens in order, as scores of equal centroids (zero) do
    const Tensor signs = ctx.allocate(DType::f32, {r_.batch, r_.hr, z.dim(2), bits});
    GemmArgs g;
    g.a = z, g.b = over_batch(projections_), g.b_transposed = true, g.c = signs;
    gemm(ctx, g);
    // Above 0: 1, else -1; a projection below 2^-120 does not occur but at padding, which is exactly 0.
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine, p.a = p.y = signs, p.alpha = 0x1p120f, p.beta = -1.0f;
    pointwise(ctx, p);
    p.op = PointwiseArgs::Op::clamp, p.alpha = -1.0f, p.beta = 1.0f;
    pointwise(ctx, p);
    GemmArgs m;
    m.a = over_batch(codes_.strided({r_.hr, r_.clusters, bits}, {0, bits, 1}));
    m.b = signs, m.b_transposed = true, m.c = scores;
    gemm(ctx, m);
    p.op = PointwiseArgs::Op::affine, p.a = p.y = scores, p.alpha = 1.0f;
    p.beta = -static_cast<float>(bits - 1);
    pointwise(ctx, p);
    p.op = PointwiseArgs::Op::relu;
    pointwise(ctx, p);
  }

  /// Rows of x [B, H, N, D] by index [B, H, K, w] as [B, H K, w, D].
  Tensor members_of(Context& ctx, const Tensor& x, const Tensor& index) const {
    const int64_t heads = index.dim(1);
    const Tensor y = ctx.allocate(x.dtype(), {r_.batch, heads, r_.slots(), r_.dim});
    gather_tokens(ctx, {x, index.reshape({r_.batch, heads, r_.slots()}), y});
    return y.reshape({r_.batch, heads * r_.clusters, r_.window, r_.dim});
  }
  /// The same behind the memory's rows.
  Tensor with_memory(Context& ctx, const Tensor& rows, const char* memory, int64_t m) const {
    if (m == 0) return rows;
    const int64_t lists = rows.dim(1);
    const Tensor y = ctx.allocate(rows.dtype(), {r_.batch, lists, m + r_.window, r_.dim});
    const Tensor own = rows.dtype() == DType::f32 ? as_f32(ctx, weight(memory)) : weight(memory);
    transpose_copy(ctx, {over_batch(own.reshape({lists, m, r_.dim})), y.slice(2, 0, m)});
    transpose_copy(ctx, {rows, y.slice(2, m, m + r_.window)});
    return y;
  }

  /// Attention inside clusters and the mean over them, into o [B, H, N, D] (a view).
  void cluster_attention(Context& ctx, const Kind& kind, const Tensor& zq, const Tensor& zk, const Tensor& v,
                         const Tensor& iq, const Tensor& ik, bool shared, const Tensor& o) {
    const int64_t heads = iq.dim(1), lists = heads * r_.clusters, w = r_.window;
    const int64_t memory = &kind == &routing_ ? r_.memory : 0, columns = memory + w;
    const Shape rows{r_.batch, lists, w};
    const bool in_memory = kind.rel_key || kind.rel_value, ranged = ranges(shared);
    Tensor qc, kc, vc;
    {
      const auto stage = ctx.stage("gather");
      const auto type = [&](const Tensor& z) { return in_memory ? z : as_dtype(ctx, z); };
      qc = members_of(ctx, type(zq), iq);
      kc = shared && memory == 0
               ? qc
               : with_memory(ctx, shared ? qc : members_of(ctx, type(zk), ik), "mem_key", memory);
      vc = with_memory(ctx, members_of(ctx, in_memory ? as_f32(ctx, v) : v, ik), "mem_value", memory);
    }
    const auto stage = ctx.stage("attend");
    MemberRangesArgs r;
    if (ranged) {
      r.index_q = iq.reshape(rows), r.index_k = ik.reshape(rows);
      r.row_begin = ctx.allocate(DType::i32, rows), r.row_end = ctx.allocate(DType::i32, rows);
      r.weight = ctx.allocate(DType::f32, rows);
      if (in_memory) r.bias = ctx.allocate(DType::f32, {r_.batch, lists, w, columns});
      r.tokens = r_.n, r.memory = memory, r.causal = r_.causal;
      member_ranges(ctx, r);
    }
    Tensor oc = ctx.allocate(qc.dtype(), {r_.batch, lists, w, r_.dim});
    const bool self = r_.mask_self && shared;
    if (in_memory) {
      if (self) {
        // Both biases together where both are.
        const Tensor own = self_bias_.strided({r_.batch, lists, w, columns}, {0, 0, columns, 1});
        if (r.bias) {
          PointwiseArgs p;
          p.a = p.y = r.bias, p.b = own;
          pointwise(ctx, p);
        } else {
          r.bias = own;
        }
      }
      unfused(ctx, kind, qc, kc, vc, oc, r.bias, r_.scale, r_.causal && shared, memory);
    } else {
      AttentionArgs a;
      a.q = qc, a.k = kc, a.v = vc, a.o = oc, a.scale = r_.scale;
      BlockMask mask;
      if (ranged) mask.row_begin = r.row_begin, mask.row_end = r.row_end;
      if (r_.causal && shared) mask.rule.causal = true, mask.rule.offset = memory;
      if (ranged || (r_.causal && shared)) a.mask = &mask;
      if (self) a.bias.dense = self_bias_.strided({1, 1, w, columns}, {0, 0, columns, 1});
      attention(ctx, a);
    }
    const auto scatter_stage = ctx.stage("scatter");
    oc = as_f32(ctx, oc);
    const Tensor sums = ctx.allocate(DType::f32, {r_.batch, heads, r_.n, r_.dim + 1});
    ScatterTokensArgs s;
    s.index = iq.reshape({r_.batch, heads, r_.slots()});
    if (ranged) s.weight = r.weight.reshape({r_.batch, heads, r_.slots()});
    s.x = oc.reshape({r_.batch, heads, r_.slots(), r_.dim});
    s.y = sums.slice(3, 0, r_.dim);
    scatter_tokens(ctx, s);
    s.x = ones_.strided({r_.batch, heads, r_.slots(), 1}, {0, 0, 1, 1});
    s.y = sums.slice(3, r_.dim, r_.dim + 1);
    scatter_tokens(ctx, s);
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine, p.a = p.y = s.y, p.alpha = 1.0f, p.beta = r_.eps;
    pointwise(ctx, p);
    const Tensor mean = ctx.allocate(DType::f32, {r_.batch, heads, r_.n, r_.dim});
    divide_by_last(ctx, {sums, mean});
    transpose_copy(ctx, {as_dtype(ctx, mean), o});
  }

  /// Tokens [B N, X D] as [B, X, N, D].
  Tensor split(const Tensor& t) const {
    return t.reshape({r_.batch, r_.n, t.dim(1) / r_.dim, r_.dim}).transpose(1, 2);
  }
  static Tensor project(Context& ctx, const Tensor& from, const Tensor& w, float alpha) {
    GemmArgs g;
    g.a = from, g.b = w, g.b_transposed = true, g.alpha = alpha;
    g.c = ctx.allocate(from.dtype(), {from.dim(0), w.dim(0)});
    gemm(ctx, g);
    return g.c;
  }
  /// Queries and keys of the heads that route, in f32: what `normalise_routed` puts into zq_ and zk_. Shared
  /// heads come first and have no keys.
  void project_routed(Context& ctx, Tensor& q, Tensor& k) const {
    if (r_.core) {
      q = as_f32(ctx, input("q"));
      if (!r_.shared) k = as_f32(ctx, input("k"));
      return;
    }
    const int64_t d = r_.dim, routed = r_.hr + r_.hs, first = r_.shared ? r_.hr : 0;
    const Tensor x = as_f32(ctx, input("x").reshape({r_.batch * r_.n, r_.channels}));
    q = split(project(ctx, x, wq_, static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)))));
    if (first < routed) k = split(project(ctx, x, wk_.slice(0, first * d, routed * d), 1.0f));
  }
  void normalise_routed(Context& ctx, const Tensor& q, const Tensor& k) const {
    normalise(ctx, q, zq_);
    if (k) normalise(ctx, k, zk_.slice(1, r_.shared ? r_.hr : 0, r_.hr + r_.hs));
  }
  /// Centroids [heads, K, D] of heads first .. last - 1 from zq_ (and zk_).
  Tensor find_centroids(Context& ctx, int64_t first, int64_t last, bool shared, const char* stream) const;
  void local_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& o) const;
  std::shared_ptr<std::vector<int32_t>> host(const Tensor& t) const;
  int64_t ranged_pairs(const Tensor& iq, const Tensor& ik, int64_t memory) const;
  /// Of the queries, then again of keys that are not the queries.
  void update_means(Context& ctx, const Tensor& zq, const Tensor& zk) const;
  void add_assigned(Context& ctx, const Tensor& z, bool first) const;

  Routing r_;
  DType dtype_;
  bool ran_ = false;
  Backend* backend_;
  BlockPattern local_;
  BlockMask local_mask_;
  Tensor out_, selected_q_, selected_k_, strided_q_, strided_k_, mu_new_, count_new_, means_new_, loss_;
  // Plans: f32 weights, padded buffers whose tails stay 0, tables by difference.
  Tensor wq_, wk_, mu_, mu_strided_, projections_, codes_, ones_, self_bias_, local_bias_;
  Tensor zq_, zk_, v_, local_k_, local_v_;
  Kind routing_{"rk", "rv", {}, {}, {}}, strided_kind_{"rk_strided", "rv_strided", {}, {}, {}},
      local_kind_{"rk_local", "rv_local", {}, {}, {}};
};

void RoutingInstance::prepare(Context& ctx) {
  const int64_t routed = r_.hr + r_.hs, d = r_.dim;
  if (!r_.core && routed > 0) {
    wq_ = as_f32(ctx, weight("Wq").slice(0, 0, routed * d));
    wk_ = as_f32(ctx, weight("Wk").slice(0, 0, routed * d));
  }
  if (r_.hr > 0 && !r_.lsh && has_weight("mu")) mu_ = as_f32(ctx, weight("mu"));
  if (r_.hr > 0 && r_.lsh) {
    mu_ = zeros(ctx, {r_.hr, r_.clusters, d});  // scores that buckets replace, or equal ones
    if (r_.bits() > 0) projections_ = as_f32(ctx, weight("lsh_projections"));
    std::vector<float> codes;
    for (int64_t c = 0; c < r_.clusters; ++c)
      for (int64_t i = 0; i < r_.bits(); ++i)
        codes.push_back(c >> r_.bits() ? 0.0f : (c >> i & 1) ? 1.0f : -1.0f);
    codes_ = upload(ctx, {r_.clusters, r_.bits()}, codes);
  }
  if (r_.hs > 0 && has_weight("mu_strided")) mu_strided_ = as_f32(ctx, weight("mu_strided"));
  const int64_t longest = std::max({r_.slots(), r_.padded, 2 * r_.batch * r_.n});
  ones_ = upload(ctx, {longest, 1}, std::vector<float>(static_cast<size_t>(longest), 1.0f));
  if (routed > 0) {
    zq_ = zeros(ctx, {r_.batch, routed, r_.padded, d});
    zk_ = zeros(ctx, {r_.batch, routed, r_.padded, d});
    if (r_.padded > r_.n) v_ = as_dtype(ctx, zeros(ctx, {r_.batch, routed, r_.padded, d}));
    if ((r_.hr > 0 && !mu_) || (r_.hs > 0 && !mu_strided_)) {
      Tensor q, k;
      project_routed(ctx, q, k);
      normalise_routed(ctx, q, k);
      if (r_.hr > 0 && !mu_) mu_ = find_centroids(ctx, 0, r_.hr, r_.shared, "routing_transformer.mu");
      if (r_.hs > 0 && !mu_strided_)
        mu_strided_ = find_centroids(ctx, r_.hr, routed, false, "routing_transformer.mu_strided");
    }
  }
  if (r_.mask_self) {
    const int64_t w = r_.window, columns = r_.memory + w;
    std::vector<float> bias(static_cast<size_t>(w * columns), 0.0f);
    for (int64_t i = 0; i < w; ++i) bias[static_cast<size_t>(i * columns + r_.memory + i)] = -5e4f;
    self_bias_ = upload(ctx, {w, columns}, bias);
  }
  const auto tables = [&](Kind& kind, int64_t heads) {
    if (heads == 0 || !has_tables(kind.rk)) return;
    kind.rel_key = spread(ctx, weight(kind.rk), r_.window, r_.window, 0);
    kind.rel_value = spread(ctx, weight(kind.rv), r_.window, r_.window, 0);
    kind.skewed = zeros(ctx, {r_.batch, heads * r_.clusters, r_.window, 2 * r_.window - 1});
  };
  tables(routing_, r_.hr);
  tables(strided_kind_, r_.hs);
  if (r_.hl == 0) return;
  if (!has_tables("rk_local")) {
    local_.upload(ctx, local_mask_);
    local_mask_.rule.causal = r_.causal;
    return;
  }
  const int64_t b = r_.block, blocks = r_.padded / b, columns = b + r_.flange + (r_.causal ? 0 : r_.flange);
  local_kind_.rel_key = spread(ctx, weight("rk_local"), b, columns, r_.flange);
  local_kind_.rel_value = spread(ctx, weight("rv_local"), b, columns, r_.flange);
  local_kind_.skewed = zeros(ctx, {r_.batch, r_.hl, blocks, b, b + columns - 1});
  const int64_t rows = r_.flange + r_.padded + (r_.causal ? 0 : r_.flange);
  local_k_ = zeros(ctx, {r_.batch, r_.hl, rows, d});
  local_v_ = zeros(ctx, {r_.batch, r_.hl, rows, d});
  std::vector<float> bias;
  for (int64_t t = 0; t < blocks; ++t)
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t key = t * b - r_.flange + j;
        bias.push_back(key < 0 || key >= r_.n || (r_.causal && key > t * b + i) ? -1e9f : 0.0f);
      }
  local_bias_ = upload(ctx, {blocks, b, columns}, bias);
}

Tensor RoutingInstance::find_centroids(Context& ctx, int64_t first, int64_t last, bool shared,
                                       const char* stream) const {
  const int64_t heads = last - first, b = r_.batch, n = r_.n, d = r_.dim, k = r_.clusters;
  const int64_t sides = shared ? 1 : 2, rows = sides * b * n;
  const auto f32 = DType::f32;
  // Rows of a head side by side: of the queries and then of the keys, batch by batch.
  const Tensor x = ctx.allocate(f32, {heads, sides, b, n, d});
  for (int64_t side = 0; side < sides; ++side) {
    const Tensor z = (side == 0 ? zq_ : zk_).slice(1, first, last).slice(2, 0, n);
    transpose_copy(ctx, {z.transpose(0, 1), x.select(1, side)});
  }
  const Tensor all = x.reshape({1, heads, rows, d});
  std::vector<int32_t> drawn;
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::vector<uint64_t> rank(order.size());
  for (int64_t h = 0; h < heads; ++h) {
    std::iota(order.begin(), order.end(), int64_t{0});
    for (int64_t i = 0; i < rows; ++i)
      rank[static_cast<size_t>(i)] =
          random_bits(r_.seed, stream_of(stream), static_cast<uint64_t>(h * rows + i));
    const auto taken = std::min(k, rows);
    std::partial_sort(order.begin(), order.begin() + taken, order.end(), [&rank](int64_t p, int64_t q) {
      return std::pair(rank[static_cast<size_t>(p)], p) < std::pair(rank[static_cast<size_t>(q)], q);
    });
    for (int64_t c = 0; c < k; ++c)
      drawn.push_back(static_cast<int32_t>(order[static_cast<size_t>(c % taken)]));
  }
  const Tensor mu = ctx.allocate(f32, {heads, k, d});
  gather_tokens(ctx, {all, upload(ctx, {1, heads, k}, drawn), mu.reshape({1, heads, k, d})});
  const Tensor scores = ctx.allocate(f32, {heads, rows, k}),
               nearest = ctx.allocate(DType::i32, {heads, rows}),
               sums = ctx.allocate(f32, {1, heads, k, d + 1}), means = ctx.allocate(f32, {heads, k, d}),
               centres = ctx.allocate(f32, {heads, k, d}), empty = ctx.allocate(f32, {heads, k, 1});
  using Op = PointwiseArgs::Op;
  for (int64_t step = 0; step < r_.lloyd; ++step) {
    GemmArgs g;
    g.a = all.reshape({heads, rows, d}), g.b = mu, g.b_transposed = true, g.c = scores;
    gemm(ctx, g);
    arg_max(ctx, scores, nearest);
    ScatterTokensArgs s;
    s.index = nearest.reshape({1, heads, rows});
    s.x = all, s.y = sums.slice(3, 0, d);
    scatter_tokens(ctx, s);
    s.x = ones_.strided({1, heads, rows, 1}, {0, 0, 1, 1}), s.y = sums.slice(3, d, d + 1);
    scatter_tokens(ctx, s);
    // mu = normalised means, 0 for an empty cluster, + the old ones of empty clusters.
    const Tensor each = sums.reshape({heads, k, d + 1});
    divide_by_last(ctx, {each, means});
    normalise_rows(ctx, means, centres);
    PointwiseArgs p;
    p.op = Op::clamp, p.a = each.slice(2, d, d + 1), p.y = empty, p.alpha = 0.0f, p.beta = 1.0f;
    pointwise(ctx, p);
    p.op = Op::affine, p.a = empty, p.alpha = -1.0f, p.beta = 1.0f;
    pointwise(ctx, p);
    pointwise(ctx, {Op::mul, mu, empty, mu});
    pointwise(ctx, {Op::add, mu, centres, mu});
  }
  return mu;
}

void RoutingInstance::run(Context& ctx) {
  const int64_t n = r_.n, c = r_.channels, d = r_.dim, h = r_.heads, routed = r_.hr + r_.hs;
  const int64_t rows = r_.batch * n;
  Tensor v, mixed, q_local, k_local, q32, k32;
  if (r_.core) {
    const auto stage = ctx.stage("normalise");
    project_routed(ctx, q32, k32);
    normalise_routed(ctx, q32, k32);
    v = input("v");
    mixed = out_;
  } else {
    const Tensor x = input("x").reshape({rows, c});
    Tensor values;
    {
      const auto stage = ctx.stage("project");
      if (routed > 0) project_routed(ctx, q32, k32);
      values = project(ctx, x, weight("Wv"), 1.0f);
      if (r_.hl > 0) {
        q_local = split(project(ctx, x, weight("Wq").slice(0, routed * d, h * d), 1.0f));
        k_local = split(project(ctx, x, weight("Wk").slice(0, routed * d, h * d), 1.0f));
      }
    }
    if (routed > 0) {
      const auto stage = ctx.stage("normalise");
      normalise_routed(ctx, q32, k32);
    }
    v = split(values);
    mixed = ctx.allocate(dtype_, {r_.batch, n, h, d}).transpose(1, 2);
  }
  if (routed > 0) {
    Tensor members_v = v.slice(1, 0, routed);
    if (v_) {
      const auto stage = ctx.stage("gather");
      transpose_copy(ctx, {members_v, v_.slice(2, 0, n)});
      members_v = v_;
    }
    const auto part = [](const Tensor& t, int64_t from, int64_t to) { return t.slice(1, from, to); };
    const auto packed = [&](const Tensor& t, int64_t from, int64_t to) {
      if (from == 0 && to == routed) return t;
      const Tensor y = ctx.allocate(t.dtype(), {r_.batch, to - from, t.dim(2), d});
      transpose_copy(ctx, {part(t, from, to), y});
      return y;
    };
    if (r_.hr > 0) {
      Tensor z, zk;
      {
        const auto stage = ctx.stage("route");
        z = packed(zq_, 0, r_.hr);
        members(ctx, z, mu_, false, selected_q_);
        if (!r_.shared) {
          zk = packed(zk_, 0, r_.hr);
          members(ctx, zk, mu_, false, selected_k_);
        }
      }
      cluster_attention(ctx, routing_, z, r_.shared ? z : zk, part(members_v, 0, r_.hr), selected_q_,
                        r_.shared ? selected_q_ : selected_k_, r_.shared, part(mixed, 0, r_.hr));
      if (r_.update) update_means(ctx, z, zk);
    }
    if (r_.hs > 0) {
      Tensor z, zk;
      {
        const auto stage = ctx.stage("route");
        z = packed(zq_, r_.hr, routed), zk = packed(zk_, r_.hr, routed);
        members(ctx, z, mu_strided_, true, strided_q_);
        members(ctx, zk, mu_strided_, true, strided_k_);
      }
      cluster_attention(ctx, strided_kind_, z, zk, part(members_v, r_.hr, routed), strided_q_, strided_k_,
                        false, part(mixed, r_.hr, routed));
    }
  }
  if (r_.hl > 0) {
    const auto stage = ctx.stage("local");
    local_attention(ctx, q_local, k_local, v.slice(1, routed, h), mixed.slice(1, routed, h));
  }
  ran_ = true;
  if (r_.core) return;
  const auto stage = ctx.stage("out");
  Tensor heads = mixed.transpose(1, 2).reshape({rows * h, d});
  if (r_.mix) {
    const Tensor other = ctx.allocate(dtype_, heads.shape());
    linear(ctx, heads, weight("Wm"), {}, other);
    heads = other;
  }
  linear(ctx, heads.reshape({rows, c}), weight("Wo"), {}, out_.reshape({rows, c}));
}

void RoutingInstance::local_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& o) const {
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(r_.dim)));
  if (!local_kind_.rel_key) {
    AttentionArgs a;
    a.q = q, a.k = k, a.v = v, a.o = o, a.scale = scale;
    a.mask = &local_mask_;
    attention(ctx, a);
    return;
  }
  // Windows of keys as overlapping views of a buffer with the flanges around.
  const int64_t b = r_.block, blocks = r_.padded / b, columns = local_bias_.dim(2), d = r_.dim;
  const auto windows = [&](const Tensor& x, const Tensor& buffer) {
    transpose_copy(ctx, {as_f32(ctx, x), buffer.slice(2, r_.flange, r_.flange + r_.n)});
    return buffer.strided({r_.batch, r_.hl, blocks, columns, d},
                          {buffer.stride(0), buffer.stride(1), b * d, d, 1});
  };
  const Tensor kw = windows(k, local_k_), vw = windows(v, local_v_);
  Tensor q32 = as_f32(ctx, q);
  // The relative term takes the scaled query, as the scores do.
  const Tensor rows = ctx.allocate(DType::f32, {r_.batch, r_.hl, r_.padded, d});
  const Tensor packed = ctx.allocate(DType::f32, {r_.batch, r_.hl, r_.n, d});
  transpose_copy(ctx, {q32, packed});
  PointwiseArgs p;
  p.op = PointwiseArgs::Op::affine, p.a = p.y = packed, p.alpha = scale;
  pointwise(ctx, p);
  transpose_copy(ctx, {packed, rows.slice(2, 0, r_.n)});
  if (r_.padded > r_.n) {
    // Rows behind the tokens are computed and dropped; any finite values do.
    transpose_copy(ctx, {packed.slice(2, 0, 1).strided({r_.batch, r_.hl, r_.padded - r_.n, d},
                                                       {packed.stride(0), packed.stride(1), 0, 1}),
                         rows.slice(2, r_.n, r_.padded)});
  }
  const Tensor result = ctx.allocate(DType::f32, {r_.batch, r_.hl, r_.padded, d});
  unfused(ctx, local_kind_, rows.reshape({r_.batch, r_.hl, blocks, b, d}), kw, vw,
          result.reshape({r_.batch, r_.hl, blocks, b, d}),
          local_bias_.strided({r_.batch, r_.hl, blocks, b, columns}, {0, 0, b * columns, columns, 1}), 1.0f,
          false, 0);
  transpose_copy(ctx, {as_dtype(ctx, result.slice(2, 0, r_.n)), o});
}

/// Decays the running sums and counts and adds the tokens z of each centroid; their distances join the loss.
void RoutingInstance::add_assigned(Context& ctx, const Tensor& z, bool first) const {
  const int64_t k = r_.clusters, d = r_.dim, n = r_.n, hr = r_.hr, b = r_.batch;
  const Tensor scores = ctx.allocate(DType::f32, {b, hr, r_.padded, k});
  GemmArgs g;
  g.a = z, g.b = over_batch(mu_), g.b_transposed = true, g.c = scores;
  gemm(ctx, g);
  const Tensor nearest = ctx.allocate(DType::i32, {b, hr, r_.padded});
  arg_max(ctx, scores, nearest);
  const Tensor own = ctx.allocate(DType::i32, {b, hr, n});
  transpose_copy(ctx, {nearest.slice(2, 0, n), own});
  // Sums and counts of each batch element, then over them.
  const Tensor sums = ctx.allocate(DType::f32, {b, hr, k, d}),
               counts = ctx.allocate(DType::f32, {b, hr, k, 1});
  ScatterTokensArgs s;
  s.index = own, s.x = z.slice(2, 0, n), s.y = sums;
  scatter_tokens(ctx, s);
  s.x = ones_.strided({b, hr, n, 1}, {0, 0, 1, 1}), s.y = counts;
  scatter_tokens(ctx, s);
  const auto over_batch_into = [&](const Tensor& each, const Tensor& before, const Tensor& after) {
    // after = decay before + (1 - decay) sum over the batch
    const int64_t size = after.numel();
    const Tensor was = as_f32(ctx, before);
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine, p.a = was.reshape({size}), p.y = after.reshape({size}),
    p.alpha = static_cast<float>(r_.decay);
    pointwise(ctx, p);
    GemmArgs sum;
    sum.a = ones_.slice(0, 0, b).reshape({1, b}), sum.b = each.reshape({b, size});
    sum.c = after.reshape({1, size}), sum.alpha = static_cast<float>(1 - r_.decay), sum.accumulate = true;
    gemm(ctx, sum);
  };
  over_batch_into(sums, first ? weight("ema_means") : means_new_, means_new_);
  over_batch_into(counts, first ? weight("ema_count") : count_new_, count_new_);
  // Loss: beta mean |z - mu of the nearest|^2 of queries and of keys, padding included.
  const Tensor centre = ctx.allocate(DType::f32, {b, hr, r_.padded, d});
  gather_tokens(ctx, {over_batch(mu_), nearest, centre});
  PointwiseArgs p;
  p.op = PointwiseArgs::Op::sub, p.a = z, p.b = centre, p.y = centre;
  pointwise(ctx, p);
  ReduceArgs squares;
  squares.x = squares.weight = centre;
  squares.y = first ? loss_ : ctx.allocate(DType::f32, {1});
  reduce(ctx, squares);
  p = {};
  p.op = PointwiseArgs::Op::affine, p.a = p.y = squares.y;
  p.alpha = (r_.shared ? 2 : 1) * r_.commitment / static_cast<float>(centre.numel());
  pointwise(ctx, p);
  if (first) return;
  p = {};
  p.a = p.y = loss_, p.b = squares.y;
  pointwise(ctx, p);
}

void RoutingInstance::update_means(Context& ctx, const Tensor& zq, const Tensor& zk) const {
  const auto stage = ctx.stage("update");
  const int64_t k = r_.clusters, d = r_.dim, hr = r_.hr;
  add_assigned(ctx, zq, true);
  if (!r_.shared) add_assigned(ctx, zk, false);
  // mu = means (total + K e) / ((count + e) total)
  constexpr float kEpsilon = 1e-5f;
  const Tensor ratio = ctx.allocate(DType::f32, {hr, k, d + 1});
  transpose_copy(ctx, {means_new_, ratio.slice(2, 0, d)});
  transpose_copy(ctx, {count_new_.reshape({hr, k, 1}), ratio.slice(2, d, d + 1)});
  PointwiseArgs p;
  p.op = PointwiseArgs::Op::affine, p.a = p.y = ratio.slice(2, d, d + 1), p.alpha = 1.0f, p.beta = kEpsilon;
  pointwise(ctx, p);
  const Tensor quotient = ctx.allocate(DType::f32, {hr, k, d});
  divide_by_last(ctx, {ratio, quotient});
  const Tensor total = ctx.allocate(DType::f32, {hr, 2});
  ReduceArgs sum;
  sum.x = count_new_, sum.all = false, sum.y = ctx.allocate(DType::f32, {hr});
  reduce(ctx, sum);
  transpose_copy(ctx, {sum.y.reshape({hr, 1}), total.slice(1, 1, 2)});
  p.a = sum.y.reshape({hr, 1}), p.y = total.slice(1, 0, 1);
  p.beta = static_cast<float>(k) * kEpsilon;
  pointwise(ctx, p);
  const Tensor factor = ctx.allocate(DType::f32, {hr, 1});
  divide_by_last(ctx, {total, factor});
  GemmArgs scale;
  scale.a = factor.reshape({hr, 1, 1}), scale.b = quotient.reshape({hr, 1, k * d});
  scale.c = mu_new_.reshape({hr, 1, k * d});
  gemm(ctx, scale);
}

TensorMap RoutingInstance::outputs() const {
  TensorMap out{{"out", out_}};
  const auto put = [&out](const char* name, const Tensor& t) {
    if (t) out[name] = t;
  };
  put("selected_q", selected_q_), put("selected_k", selected_k_);
  put("selected_strided_q", strided_q_), put("selected_strided_k", strided_k_);
  put("mu_new", mu_new_), put("ema_count_new", count_new_), put("ema_means_new", means_new_);
  put("aux_loss", loss_);
  return out;
}

ClosedForm RoutingInstance::cost() const {
  const int64_t n = r_.n, np = r_.padded, c = r_.channels, d = r_.dim, w = r_.window, k = r_.clusters,
                b = r_.batch, routed = r_.hr + r_.hs;
  ClosedForm f;
  // Operations of the card; moves and pointwise work are charged by what runs.
  f.data_dependent = true;
  Cost& x = f.cost;
  const auto tables = [&](const char* rk) { return r_.relative && has_weight(rk); };
  if (!r_.core) {
    const int64_t keys = r_.shared ? r_.hs : routed;
    x.matmul += 2 * b * n * c * (routed + keys + r_.heads + 2 * r_.hl) * d + 2 * b * n * c * c;
    if (r_.mix) x.matmul += 2 * b * n * r_.heads * d * d;
  }
  const auto clusters = [&](int64_t heads, bool shared, const char* rk, int64_t m, const Tensor& iq,
                            const Tensor& ik) {
    x.matmul += 2 * (shared ? 1 : 2) * b * heads * np * k * d;
    const bool in_memory = tables(rk);
    int64_t pairs =
        b * heads * k * (r_.causal && shared && !in_memory ? w * (w + 1) / 2 + w * m : w * (w + m));
    // Members that are padding, or keys behind their query: what the last run chose; before it, all.
    if (ran_ && ranges(shared) && !in_memory) pairs = ranged_pairs(iq, ik, m);
    x.matmul += 4 * d * pairs;
    if (in_memory) x.matmul += 4 * b * heads * k * w * (2 * w - 1) * d;
    x.special += pairs;
    x.elementwise += 4 * pairs;
  };
  if (r_.hr > 0)
    clusters(r_.hr, r_.shared, "rk", r_.memory, selected_q_, r_.shared ? selected_q_ : selected_k_);
  if (r_.hs > 0) clusters(r_.hs, false, "rk_strided", 0, strided_q_, strided_k_);
  if (r_.lsh && r_.hr > 0) x.matmul += 2 * (r_.shared ? 1 : 2) * b * r_.hr * np * (d + k) * r_.bits();
  if (r_.hl > 0) {
    int64_t pairs = b * r_.hl * local_.visited_pairs();
    if (tables("rk_local")) {
      const int64_t columns = r_.block + r_.flange * (r_.causal ? 1 : 2);
      pairs = b * r_.hl * np * columns;
      x.matmul += 4 * b * r_.hl * np * (r_.block + columns - 1) * d;
    }
    x.matmul += 4 * d * pairs;
    x.special += pairs;
    x.elementwise += 4 * pairs;
  }
  if (r_.update)
    x.matmul +=
        (r_.shared ? 1 : 2) * (2 * b * r_.hr * np * k * d + 2 * b * r_.hr * k * (d + 1)) + 2 * r_.hr * k * d;
  const auto e = static_cast<int64_t>(size_of(dtype_));
  x.bytes_read = e * (b * n * (r_.core ? (r_.shared ? 2 : 3) * r_.hr * d : c) + (r_.core ? 0 : 4 * c * c));
  x.bytes_written = e * b * n * (r_.core ? r_.hr * d : c);
  for (const TensorSpec& s : weight_specs_)
    if (s.name.rfind("ema_", 0) != 0) f.parameters += s.shape.numel();
  return f;
}

std::shared_ptr<std::vector<int32_t>> RoutingInstance::host(const Tensor& t) const {
  backend_->synchronize();  // of what runs before the copy
  auto v = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(t ? t.numel() : 0));
  if (!v->empty())
    backend_->copy_bytes(v->data(), DeviceKind::cpu, t.raw(), t.device(), v->size() * sizeof(int32_t));
  return v;
}

/// Pairs inside the clusters of the last run, by the ranges that member_ranges gives.
int64_t RoutingInstance::ranged_pairs(const Tensor& iq, const Tensor& ik, int64_t memory) const {
  const auto q = host(iq), k = host(ik);
  const auto w = static_cast<std::ptrdiff_t>(r_.window);
  int64_t pairs = 0;
  for (auto query = q->begin(), key = k->begin(); query != q->end(); query += w, key += w) {
    const auto real = std::lower_bound(key, key + w, static_cast<int32_t>(r_.n));
    for (auto i = query; i != query + w; ++i)
      pairs += memory + (r_.causal ? std::min(std::upper_bound(key, key + w, *i), real) : real) - key;
  }
  return pairs;
}

std::optional<PairSet> RoutingInstance::pairs() const {
  PairSet set;
  set.batch = r_.batch;
  set.heads = r_.heads;
  set.queries = set.tokens = r_.n;
  set.same_for_all_batches = r_.hr + r_.hs == 0;
  set.row = [r = r_, local = local_, q = host(selected_q_), k = host(r_.shared ? selected_q_ : selected_k_),
             sq = host(strided_q_), sk = host(strided_k_)](int64_t b, int64_t h, int64_t i, Intervals& out) {
    if (h >= r.hr + r.hs) {
      local.intervals(i, r.causal ? i + 1 : r.n, out);
      return;
    }
    const bool strided = h >= r.hr;
    const auto& queries = strided ? *sq : *q;
    const auto& keys = strided ? *sk : *k;
    const int64_t heads = strided ? r.hs : r.hr, first = (b * heads + h - (strided ? r.hr : 0)) * r.clusters;
    std::vector<int64_t> seen;
    for (int64_t c = first; c < first + r.clusters; ++c) {
      const auto from = queries.begin() + c * r.window;
      if (!std::binary_search(from, from + r.window, static_cast<int32_t>(i))) continue;
      for (int64_t j = c * r.window; j < (c + 1) * r.window; ++j) {
        const int64_t key = keys[static_cast<size_t>(j)];
        if (key < r.n && (!r.causal || key <= i)) seen.push_back(key);
      }
    }
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    out.clear();
    for (const int64_t j : seen) {
      if (!out.empty() && out.back().end == j)
        ++out.back().end;
      else
        out.push_back({j, j + 1});
    }
  };
  return set;
}

/// Of the last run: the mean over a query's clusters, as the output takes it; the memory's share is left out.
bool RoutingInstance::rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                           std::vector<float>& out) {
  const int64_t n = r_.n, d = r_.dim, routed = r_.hr + r_.hs, w = r_.window;
  if (h >= routed) {
    if (local_kind_.rel_key) return false;
    const auto project = [&](const char* name) {
      const Tensor y = ctx.allocate(dtype_, {r_.batch * n, r_.hl * d});
      linear(ctx, input("x").reshape({r_.batch * n, r_.channels}),
             weight(name).slice(0, routed * d, r_.heads * d), {}, y);
      return y.reshape({r_.batch, n, r_.hl, d}).transpose(1, 2);
    };
    AttentionArgs a;
    a.q = project("Wq"), a.k = a.v = project("Wk"), a.o = a.q;
    a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    a.mask = &local_mask_;
    return attention_rows(ctx, a, b, h - routed, q_begin, q_end, out);
  }
  const bool strided = h >= r_.hr, shared = r_.shared && !strided;
  const Kind& kind = strided ? strided_kind_ : routing_;
  const int64_t head = strided ? h - r_.hr : h, memories = strided ? 0 : r_.memory, count = memories + w;
  const Tensor zq = on_host(ctx, zq_.select(0, b).select(0, h)),
               zk = shared ? zq : on_host(ctx, zk_.select(0, b).select(0, h));
  const Tensor iq = on_host(ctx, (strided ? strided_q_ : selected_q_).select(0, b).select(0, head)),
               ik = shared ? iq
                           : on_host(ctx, (strided ? strided_k_ : selected_k_).select(0, b).select(0, head));
  const Tensor relative = on_host(ctx, kind.rel_key);
  const Tensor memory =
      memories > 0 ? on_host(ctx, as_f32(ctx, weight("mem_key").select(0, head))) : Tensor();
  const auto product = [d](const float* x, const float* y) {
    float sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += x[c] * y[c];
    return sum;
  };
  out.assign(static_cast<size_t>((q_end - q_begin) * n), 0.0f);
  std::vector<float> times(static_cast<size_t>(q_end - q_begin), 0.0f), p(static_cast<size_t>(count));
  for (int64_t c = 0; c < r_.clusters; ++c) {
    const int32_t *queries = iq.data<int32_t>() + c * w, *keys = ik.data<int32_t>() + c * w;
    for (int64_t i = 0; i < w; ++i) {
      const int64_t token = queries[i];
      if (token < q_begin || token >= q_end) continue;
      const float* q = zq.data<float>() + token * d;
      float most = -INFINITY, sum = 0;
      for (int64_t j = 0; j < count; ++j) {
        float& s = p[static_cast<size_t>(j)];
        if (j < memories) {
          s = r_.scale * product(q, memory.data<float>() + (c * memories + j) * d);
        } else {
          const int64_t own = j - memories, key = keys[own];
          s = -INFINITY;
          if (key >= n || (r_.causal && key > token)) continue;
          s = r_.scale * product(q, zk.data<float>() + key * d);
          if (relative) s += product(q, relative.data<float>() + (own - i + w - 1) * d);
          if (r_.mask_self && shared && own == i) s -= 5e4f;
        }
        most = std::max(most, s);
      }
      if (most == -INFINITY) continue;
      for (float& s : p) sum += s = std::exp(s - most);
      times[static_cast<size_t>(token - q_begin)] += 1;
      float* row = out.data() + (token - q_begin) * n;
      for (int64_t j = 0; j < w; ++j)
        if (keys[j] < n) row[keys[j]] += p[static_cast<size_t>(memories + j)] / sum;
    }
  }
  for (int64_t i = 0; i < q_end - q_begin; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (times[static_cast<size_t>(i)] > 0)
        out[static_cast<size_t>(i * n + j)] /= times[static_cast<size_t>(i)] + r_.eps;
  return true;
}

/// One softmax a row of each head over all tokens, with the queries and keys of that head's own kind. Terms
/// that depend on a cluster (ranks, memory, a masked own key) have no counterpart.
std::optional<DenseEquivalent> RoutingInstance::dense_equivalent(Context& ctx) {
  if (r_.relative || r_.memory > 0 || r_.mask_self) return std::nullopt;
  const int64_t n = r_.n, d = r_.dim, routed = r_.hr + r_.hs;
  const Shape heads{r_.batch, r_.heads, n, d};
  DenseEquivalent e;
  e.call.q = ctx.allocate(DType::f32, heads), e.call.k = ctx.allocate(DType::f32, heads);
  e.call.scale = r_.scale;
  const auto put = [&](const Tensor& from, const Tensor& to, int64_t first, int64_t last) {
    if (first < last) transpose_copy(ctx, {from, to.slice(1, first, last)});
  };
  if (routed > 0) {
    put(zq_.slice(2, 0, n), e.call.q, 0, routed);
    put((r_.shared ? zq_ : zk_).slice(1, 0, r_.hr).slice(2, 0, n), e.call.k, 0, r_.hr);
    put(zk_.slice(1, r_.hr, routed).slice(2, 0, n), e.call.k, r_.hr, routed);
  }
  if (r_.hl > 0) {
    const auto project = [&](const char* name) {
      const Tensor y = ctx.allocate(dtype_, {r_.batch * n, r_.hl * d});
      linear(ctx, input("x").reshape({r_.batch * n, r_.channels}),
             weight(name).slice(0, routed * d, r_.heads * d), {}, y);
      return as_f32(ctx, y).reshape({r_.batch, n, r_.hl, d}).transpose(1, 2);
    };
    put(project("Wk"), e.call.k, routed, r_.heads);
    // One scale serves all heads: the local ones' goes into their queries.
    const Tensor q = ctx.allocate(DType::f32, {r_.batch, r_.hl, n, d});
    transpose_copy(ctx, {project("Wq"), q});
    PointwiseArgs p;
    p.op = PointwiseArgs::Op::affine;
    p.a = p.y = q.reshape({r_.batch * r_.hl, n * d});
    p.alpha = static_cast<float>(1.0 / (std::sqrt(static_cast<double>(d)) * static_cast<double>(r_.scale)));
    pointwise(ctx, p);
    put(q, e.call.q, routed, r_.heads);
  }
  if (r_.core) e.call.v = as_f32(ctx, input("v")), e.output = as_f32(ctx, outputs().at("out"));
  BlockMask mask;
  mask.rule.causal = r_.causal;
  e.pairs = rule_pairs(mask.rule, r_.batch, r_.heads, n, n);
  e.set_mask(std::move(mask));
  return e;
}

class RoutingTransformer final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    require_extent(info(), problem.length, "length");
    if (problem.kv_length && problem.kv_length != problem.length)
      throw Unsupported("routing_transformer: tokens attend to each other; kv_length " +
                        std::to_string(problem.kv_length) + " cannot differ from length " +
                        std::to_string(problem.length));
    Routing r;
    r.core = problem.channels == 0;
    r.batch = problem.batch, r.n = problem.length;
    r.heads = params.integer("num_heads");
    r.hr = params.integer("routing_heads"), r.hs = params.integer("cluster_strided_heads");
    r.hl = r.heads - r.hr - r.hs;
    if (r.hl < 0 || r.hs > r.hr)
      throw UsageError("routing_transformer: routing_heads " + std::to_string(r.hr) +
                       " and cluster_strided_heads " + std::to_string(r.hs) + " do not fit " +
                       std::to_string(r.heads) + " heads (strided ones at most as many as routing ones)");
    if (r.core) {
      require_extent(info(), problem.head_dim, "head_dim (q, k and v are given; a layer has channels)");
      if (r.hl + r.hs > 0)
        throw UsageError(
            "routing_transformer.routing_heads: the attention alone has routing heads only, all " +
            std::to_string(r.heads) + " of them, not " + std::to_string(r.hr));
      if (problem.kv_heads_or_heads() != problem.heads)
        throw Unsupported("routing_transformer: every head has keys of its own");
      r.dim = problem.head_dim, r.channels = r.heads * r.dim;
    } else {
      r.channels = problem.channels;
      if (r.channels % r.heads != 0)
        throw UsageError("routing_transformer: " + std::to_string(r.channels) +
                         " channels are not a multiple of " + std::to_string(r.heads) + " heads");
      r.dim = r.channels / r.heads;
    }
    r.block = params.integer("local_block"), r.flange = params.integer("local_flange");
    if (r.flange % r.block != 0)
      throw UsageError("routing_transformer.local_flange: " + std::to_string(r.flange) +
                       " is not a multiple of local_block " + std::to_string(r.block));
    r.padded = r.core ? r.n : (r.n + r.block - 1) / r.block * r.block;
    const auto square = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(r.n))));
    r.clusters =
        params.is_null("num_clusters") ? std::max<int64_t>(1, square) : params.integer("num_clusters");
    r.window = params.is_null("window") ? (r.n + r.clusters - 1) / r.clusters : params.integer("window");
    r.window = std::min(r.window, r.n);
    r.causal = params.boolean("causal");
    r.shared = params.is_null("shared_qk") ? r.causal : params.boolean("shared_qk");
    r.lsh = params.choice("route") == "lsh";
    const std::string& normalize = params.choice("normalize");
    r.normalize = normalize == "layernorm" ? Routing::Normalize::layernorm
                  : normalize == "l2"      ? Routing::Normalize::l2
                                           : Routing::Normalize::none;
    r.scale = static_cast<float>(!params.is_null("scale")   ? params.number("scale")
                                 : normalize == "layernorm" ? 1.0
                                                            : 1.0 / std::sqrt(static_cast<double>(r.dim)));
    r.relative = params.boolean("relative");
    r.reach = params.integer("max_relative_position");
    r.mask_self = params.boolean("mask_self");
    r.memory = params.integer("num_mem_kv");
    r.eps = static_cast<float>(params.number("scatter_eps"));
    r.mix = params.boolean("head_mix");
    if (r.mix && r.core)
      throw Unsupported("routing_transformer: head_mix belongs to the layer, not to the attention alone");
    r.lloyd = params.integer("kmeans_init_iters"), r.seed = problem.seed;
    r.update = params.boolean("update_means") && r.hr > 0;
    if (r.update && r.lsh)
      throw Unsupported("routing_transformer: update_means with route lsh, which has no centroids");
    r.decay = params.number("ema_decay");
    r.commitment = static_cast<float>(params.number("commitment"));
    return std::make_unique<RoutingInstance>(ctx, r, problem.dtype);
  }
};
ATTNBENCH_METHOD(RoutingTransformer);

}  // namespace
}  // namespace attnbench
