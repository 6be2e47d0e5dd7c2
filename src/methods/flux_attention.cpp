// Flux Attention: a small router over pooled queries sends a whole layer to full or to sparse attention; the
// sparse branch is a sink-and-window stream, xattn's antidiagonal block selection, a triangle or a token
// window.
#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/select/patterns.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

/// Bytes of stride scores that exist at a time: they are written once and read once, and this much of
/// them stays in a GPU's second-level cache. Less of what lies beyond the diagonal is computed, too.
constexpr int64_t kScoreBytes = int64_t{32} << 20;

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "flux_attention";
  m.title = "Flux Attention (layer router between full and sparse attention)";
  m.paper = "Flux Attention: Context-Aware Hybrid Attention for Efficient LLMs Inference, 2026";
  m.arxiv = "2604.07394";
  m.family = "head-routing (whole-layer routing; static-sparse or dynamic-sparse branch)";
  m.summary =
      "The queries of the prompt's edges, before rotary positions, are averaged over tokens and heads; a "
      "small MLP "
      "makes two logits of them. The larger one decides for the whole layer and each batch element: full "
      "causal "
      "attention or the sparse branch. The decision is taken on the device.";
  m.formula =
      "p = mean over heads of the mean over the first P and last P tokens of q_router\n"
      "logits = head(encoder(p)); r = argmax: 0 sparse, 1 full (tie: sparse)\n"
      "r = 1: o_t = sum_j softmax_j(scale q_t . k_j) v_j over j <= t\n"
      "streaming: key blocks below ceil(sink / b) and the last ceil(window / b) up to the own one, j <= t\n"
      "xattn: Q~[a] = concat_t q[a S + S - 1 - t], K~[c] = concat_t k[c S + t]; P = softmax_c(Q~ K~^T / "
      "(sqrt(D) S)),\n"
      "       c <= a; A = sums of P over b / S x b / S cells; per row the largest A_ij until threshold of "
      "the row's "
      "sum\n"
      "triangle: streaming, the last n_last rows see everything; local: the last `local_window` tokens; "
      "none: zeros";
  m.cost =
      "Router 72 B D^2 FLOPs and 36 D^2 + 17 D + 2 parameters. Full 4 D pairs; streaming 4 D b^2 a block of "
      "sum_i min(i + 1, s + w); xattn about 1 / (2 S) of dense for the estimate.";
  m.params = {
      spec::param("pool_size", Type::integer, 100, 1, {}, "P, tokens at each edge of the prompt"),
      spec::choice("pooling", {"edges", "mean", "first_token"}, "which tokens the router sees"),
      spec::choice("sparse_type", {"streaming", "xattn", "triangle", "local", "none"}, "the sparse branch"),
      spec::choice("full_type", {"full", "xattn"}, "the full branch"),
      spec::param("block_size", Type::integer, 128, 16, 256, "b, tokens of a block"),
      spec::param("sink_size", Type::integer, 128, 0, {},
                  "first tokens that stay visible, rounded up to blocks"),
      spec::param("local_window", Type::integer, 2048, 1, {},
                  "last tokens that stay visible, rounded up to blocks"),
      spec::param("triangle_n_last", Type::integer, 128, 1, {}, "dense rows at the end of a triangle"),
      spec::param("xattn_stride", Type::integer, 16, 1, {}, "S, divides block_size"),
      spec::param("xattn_threshold", Type::number, 0.9, 0.0, 1.0, "share of a row's estimated mass to keep"),
      spec::choice(
          "force", {"router", "full", "sparse", "list"},
          "decision: the router's, or fixed; list: a stack of num_layers layers, sparse_ratio of them "
          "sparse"),
      spec::param("sparse_ratio", Type::number, Value(), 0.0, 1.0,
                  "share of sparse layers of force: list, evenly spaced"),
      spec::param("num_layers", Type::integer, 36, 1, {}, "layers of force: list"),
      scale_param()};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"prefill speed-up", "long-context LLM, layer routing, up to", "dense backbone", "2.8x",
                "abstract, project page"},
               {"decode speed-up", "same, up to", "same", "2.0x", "abstract, project page"},
               {"router size, derived", "D 128", "", "592,002 parameters a layer", "formula on the code"},
               {"streaming work, derived", "s 1, w 16, b 128, N 128k", "dense causal",
                "30.4x fewer block pairs", "formula on the code"}};
  m.notes = {
      "Each batch element decides for itself (chosen; the original runs one at a time). The router runs in "
      "f32 with f32 "
      "weights, whatever the problem's dtype.",
      "One query over a longer cache is a decode step: the prefill's decision is kept there, so force full "
      "or sparse is "
      "needed; sparse sees the sink blocks and the last window blocks (the plain rule, chosen), whatever "
      "sparse_type is.",
      "xattn: ties of the sort go to the lower block (chosen); at threshold 0 nothing is added to block 0 "
      "and the "
      "diagonal.",
      "full_type xattn goes with sparse_type streaming, xattn or none.",
      "force: list runs the stack on the same q, k and v; out and r are those of the last layer."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 3000;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

const MethodInfo& flux_info() {
  static const MethodInfo info = describe();
  return info;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class FluxInstance final : public BlockSelectionInstance {
 public:
  FluxInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, flux_info(), problem, Layout::token_major,
                               scale_of(params, problem.head_dim)),
        block_(params.integer("block_size")),
        edge_(params.integer("pool_size")),
        stride_(params.integer("xattn_stride")),
        window_(params.integer("local_window")),
        tail_(params.integer("triangle_n_last")),
        threshold_(params.number("xattn_threshold")),
        pooling_(params.choice("pooling")),
        sparse_(params.choice("sparse_type")),
        full_(params.choice("full_type")),
        force_(params.choice("force")) {
    const HeadsForm& f = form_;
    if (!problem.causal)
      throw Unsupported("flux_attention routes layers of causal models, and problem.causal is false");
    decode_ = f.queries == 1 && f.keys > 1;
    if (!decode_ && f.queries != f.keys)
      throw Unsupported("flux_attention needs as many keys as queries, not " + std::to_string(f.queries) +
                        " and " + std::to_string(f.keys) + " (one query alone is a decode step)");
    if (decode_ && (force_ == "router" || force_ == "list"))
      throw Unsupported(
          "flux_attention decides at prefill, and problem.length 1 with a longer cache is a decode step: fix "
          "its "
          "decision by force: full or force: sparse");
    if (full_ == "xattn" && (sparse_ == "triangle" || sparse_ == "local"))
      throw Unsupported(
          "flux_attention.full_type: xattn goes with sparse_type streaming, xattn or none, not " + sparse_);
    if (decode_) sparse_ = "streaming", full_ = "full";
    if (force_ == "list") {
      if (params.is_null("sparse_ratio"))
        throw UsageError("flux_attention.sparse_ratio: force: list needs the share of sparse layers");
      const int64_t layers = params.integer("num_layers");
      const auto sparse =
          static_cast<int64_t>(std::llround(params.number("sparse_ratio") * static_cast<double>(layers)));
      for (int64_t l = 0; l < layers; ++l) stack_.push_back((l + 1) * sparse / layers > l * sparse / layers);
    } else if (force_ != "router") {
      stack_ = {force_ == "sparse"};
    }
    const bool uses_xattn =
        (sparse_ == "xattn" && force_ != "full") || (full_ == "xattn" && force_ != "sparse");
    if (uses_xattn && block_ % stride_ != 0)
      throw UsageError("flux_attention.xattn_stride: " + std::to_string(stride_) +
                       " does not divide block_size " + std::to_string(block_));
    if (sparse_ == "triangle" && force_ != "full" && !(tail_ < f.queries))
      throw UsageError("flux_attention.triangle_n_last: " + std::to_string(tail_) + " is not below length " +
                       std::to_string(f.queries));
    sinks_ = ceil_div(params.integer("sink_size"), block_);
    near_ = ceil_div(window_, block_);
    if (full_ == "xattn" && sparse_ == "streaming" && sinks_ == 0 && force_ == "router")
      throw Unsupported(
          "flux_attention: full_type xattn beside streaming needs a sink block; sink_size is 0");
    input_specs_ = {spec("q", f.heads, f.queries, "rotated queries [B, N, H, D]"),
                    spec("k", f.kv_heads, f.keys, "rotated keys [B, N, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, N, Hkv, D]"),
                    spec("q_router", f.heads, f.queries, "queries before rotary positions [B, N, H, D]")};
    input_specs_.back().optional = decode_;
    mask_.rule.causal = true;
    rows_ = ctx.allocate(DType::i32, {f.batch}, MemoryClass::output);
    outputs_["r"] = rows_;
    // Lists hold whole rows for a full decision, so one call serves both. Heads differ under xattn only.
    if (uses_xattn) make_lists(ctx, block_, block_);
    lists_.n = f.queries, lists_.m = f.keys, lists_.block_q = lists_.block_k = block_;
    lists_.rule = mask_.rule;
    xattn_ = uses_xattn;
    if (decode_) return;
    logits_ = new_output(ctx, "logits", DType::f32, {f.batch, 2});
    const int64_t d = f.head_dim;
    const auto layer = [&](const std::string& name, int64_t out, int64_t in, Init weight, Init bias) {
      weight_specs_.push_back({name + ".weight", {out, in}, DType::f32, weight, false, "router"});
      weight_specs_.push_back({name + ".bias", {out}, DType::f32, bias, false, "router"});
    };
    const auto uniform = [](int64_t in) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(in));
      return Init::uniform(-bound, bound);
    };
    // Kaiming with a = sqrt 5 has the same bound 1 / sqrt(fan_in).
    layer("encoder.0", 8 * d, d, uniform(d), uniform(d));
    layer("encoder.1", 2 * d, 8 * d, uniform(8 * d), uniform(8 * d));
    layer("head.0", 4 * d, 2 * d, uniform(2 * d), Init::constant(0));
    layer("head.1", d, 4 * d, uniform(4 * d), Init::constant(0));
    Init last;
    last.kind = Init::Kind::values;
    last.value = [](int64_t i) { return i == 0 ? 0.0 : 4.5; };
    layer("head.2", 2, d, Init::constant(0), last);
  }

  void prepare(Context& ctx) override {
    const HeadsForm& f = form_;
    query_ = heads_first(input("q")), key_ = heads_first(input("k")), value_ = heads_first(input("v"));
    const int64_t nb = key_blocks();
    mask_.block_q = mask_.block_k = block_;
    const auto thresholds = [&](const auto& value) {
      std::vector<float> row(static_cast<size_t>(nb));
      for (int64_t c = 0; c < nb; ++c) row[static_cast<size_t>(c)] = value(c);
      return upload(ctx, {nb}, row);
    };
    // A column or diagonal is on where gate > threshold (or < when the full branch is xattn), gate = r.
    if (full_ == "xattn") {
      column_ = thresholds([&](int64_t c) {
        if (sparse_ == "streaming") return c == 0 ? 2.0f : c < sinks_ ? 0.5f : -1.0f;
        return c == 0 ? 2.0f : -1.0f;
      });
      diagonal_ = thresholds([&](int64_t o) { return sparse_ == "streaming" && o < near_ ? 0.5f : -1.0f; });
    } else {
      column_ = thresholds([&](int64_t c) {
        const bool always =
            (sparse_ == "streaming" || sparse_ == "triangle") ? c < sinks_ : sparse_ == "xattn" && c == 0;
        return always ? -1.0f : 0.5f;
      });
      if (sparse_ == "streaming" || sparse_ == "triangle") lists_.window = near_;
    }
    if (xattn_) plan_estimate(ctx);
    allocate_block_lists(ctx, lists_, f.batch, xattn_ ? f.heads : 1);
    if (sparse_ == "local") {
      band_ = lists_;
      band_.selected = {};
      band_.rule.band = true;
      band_.rule.left = std::min(window_ - 1, f.keys);
      allocate_block_lists(ctx, band_, f.batch, 1);
      half_ = ctx.allocate_like(out_);
    }
    if (sparse_ == "triangle") {
      stream_ = lists_;
      stream_.n = f.queries - tail_;
      stream_.rule.offset = 0;
      allocate_block_lists(ctx, stream_, f.batch, 1);
    }
    ones_ = upload(ctx, {f.batch, nb}, std::vector<float>(static_cast<size_t>(f.batch * nb), 1.0f));
  }

  void run(Context& ctx) override {
    if (!decode_) route(ctx);
    if (stack_.empty()) {
      layer(ctx, std::nullopt);
    } else {
      {
        const auto stage = ctx.stage("route");
        CountRuleArgs fixed;
        fixed.y = rows_;
        fixed.low = fixed.high = stack_.back() ? 0 : 1;
        count_rule(ctx, fixed);
      }
      for (const bool sparse : stack_) layer(ctx, sparse);
    }
    ran_ = true;
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    ClosedForm c;
    const int64_t d = f.head_dim;
    if (!decode_) c.parameters = 36 * d * d + 17 * d + 2;
    // Which branch runs is the router's decision, and xattn's blocks depend on the data.
    c.data_dependent = stack_.empty() || xattn_;
    c.cost = attend_cost();
    if (!c.data_dependent) {
      Cost all;
      for (const bool sparse : stack_) all += fixed_cost(sparse);
      c.cost = all;
    }
    CostSheet s;
    s.c = c.cost;
    if (!stack_.empty()) s.work(f.batch, 0, 4 * f.batch);
    if (!decode_) {
      const int64_t element = static_cast<int64_t>(size_of(dtype_)), head = f.batch * f.heads * d;
      const int64_t tokens = pooling_ == "edges"  ? 2 * std::min(edge_, f.queries)
                             : pooling_ == "mean" ? f.queries
                                                  : 1;
      const int64_t parts = pooling_ == "edges" ? 2 : 1;
      s.pool(head * tokens, element, head * parts);
      s.pool(head * parts, 4, f.batch * d);
      const int64_t widths[6] = {d, 8 * d, 2 * d, 4 * d, d, 2};
      for (int i = 0; i < 5; ++i) {
        s.gemm(1, f.batch, widths[i + 1], widths[i]);
        s.work(f.batch * widths[i + 1], 4 * widths[i + 1], 0);
        if (i == 0 || i == 2 || i == 3) s.c.special += f.batch * widths[i + 1];
      }
      s.work(2 * f.batch, 8 * f.batch, 4 * f.batch);  // arg_max
    }
    c.cost = s.c;
    return c;
  }

  std::optional<PairSet> pairs() const override {
    if (!ran_) return BlockSelectionInstance::pairs();
    struct Part {
      int64_t first, last;
      PairSet pairs;
    };
    std::vector<Part> parts;
    for (const Piece& p : last_) parts.push_back({p.first, p.last, attention_pairs(*ctx_, piece_call(p))});
    PairSet set;
    set.batch = form_.batch, set.heads = form_.heads;
    set.queries = form_.queries, set.tokens = form_.keys;
    set.same_for_all_batches = form_.batch == 1;
    // Of two pieces with the same rows each serves some batch elements: one is empty.
    set.row = [parts = std::move(parts)](int64_t b, int64_t h, int64_t i, Intervals& out) {
      Intervals row;
      out.clear();
      for (const Part& p : parts) {
        if (i < p.first || i >= p.last) continue;
        p.pairs.row(b, h, i - p.first, row);
        if (!row.empty()) out = row;
      }
    };
    return set;
  }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const int64_t m = form_.keys;
    out.assign(static_cast<size_t>((q_end - q_begin) * m), 0.0f);
    std::vector<float> part;
    for (const Piece& piece : last_) {
      const int64_t first = std::max(q_begin, piece.first), last = std::min(q_end, piece.last);
      if (first >= last) continue;
      AttentionArgs a = piece_call(piece);
      attention_rows(ctx, a, b, h, first - piece.first, last - piece.first, part);
      for (size_t e = 0; e < part.size(); ++e) out[static_cast<size_t>((first - q_begin) * m) + e] += part[e];
    }
    return true;
  }
  /// The rule of the last branch may be narrower than causal attention.
  std::optional<DenseEquivalent> dense_equivalent(Context& ctx) override {
    std::optional<DenseEquivalent> d = BlockSelectionInstance::dense_equivalent(ctx);
    BlockMask all = causal_mask(0);
    d->pairs = rule_pairs(all.rule, form_.batch, form_.heads, form_.queries, form_.keys);
    d->set_mask(std::move(all));
    return d;
  }
  int64_t computed_pairs(Context& ctx) override {
    int64_t all = 0;
    for (const Piece& piece : last_) all += visited_pairs(ctx, piece_call(piece));
    return all;
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    if (last_.size() != 1) return std::nullopt;
    return attention_row_stats(ctx, piece_call(last_.front()));
  }

 private:
  /// An attention call of the last layer: query rows [first, last) under a mask, into `to`.
  struct Piece {
    int64_t first, last;
    BlockMask mask;
    Tensor to;
  };
  AttentionArgs piece_call(const Piece& p) const {
    AttentionArgs a;
    a.q = query_.slice(2, p.first, p.last), a.k = key_, a.v = value_;
    a.o = heads_first(p.to).slice(2, p.first, p.last);
    a.scale = scale_;
    a.mask = &p.mask;
    return a;
  }

  void route(Context& ctx) {
    const auto stage = ctx.stage("route");
    const HeadsForm& f = form_;
    const int64_t d = f.head_dim, n = f.queries;
    const Tensor x = heads_first(input("q_router"));
    const auto mean = [&](const Tensor& from, const Tensor& to) {
      PoolTokensArgs a;
      a.x = from, a.y = to;
      a.block = from.dim(2);
      pool_tokens(ctx, a);
    };
    const int64_t parts = pooling_ == "edges" ? 2 : 1, edge = std::min(edge_, n);
    const Tensor heads = ctx.allocate(DType::f32, {f.batch, f.heads, parts, d});
    if (pooling_ == "edges") {
      mean(x.slice(2, 0, edge), heads.slice(2, 0, 1));
      mean(x.slice(2, n - edge, n), heads.slice(2, 1, 2));
    } else {
      mean(pooling_ == "mean" ? x : x.slice(2, 0, 1), heads);
    }
    Tensor h = ctx.allocate(DType::f32, {f.batch, 1, 1, d});
    mean(heads.reshape({f.batch, 1, f.heads * parts, d}), h);
    h = h.reshape({f.batch, d});
    for (const char* name : {"encoder.0", "encoder.1", "head.0", "head.1", "head.2"}) {
      const std::string layer = name;
      const Tensor& w = weight(layer + ".weight");
      const bool last = layer == "head.2", linear_only = layer == "encoder.1" || last;
      const Tensor y = last ? logits_ : ctx.allocate(DType::f32, {f.batch, w.dim(0)});
      linear(ctx, h, w, weight(layer + ".bias"), y, linear_only ? Activation::none : Activation::silu);
      h = y;
    }
    arg_max(ctx, logits_, rows_);
  }

  /// gate [B, nb] f32: r of each batch element in every column.
  Tensor gate(Context& ctx) {
    const int64_t nb = key_blocks();
    const Tensor decided = ctx.allocate(DType::i32, {form_.batch, nb});
    arg_max(ctx, logits_.strided({form_.batch, nb, 2}, {2, 0, 1}), decided);
    MaskValuesArgs a;
    a.x = ones_, a.first = decided;
    a.y = ctx.allocate(DType::f32, {form_.batch, nb});
    mask_values(ctx, a);
    return a.y;
  }
  /// Flags [B, groups, nb]: gate against a row of thresholds.
  Tensor lines(Context& ctx, const Tensor& gate, const Tensor& row, CompareArgs::Relation relation) {
    const int64_t groups = lists_.full.count.dim(1), nb = key_blocks();
    CompareArgs a;
    a.relation = relation;
    a.x = gate.strided({form_.batch, groups, nb}, {nb, 0, 1});
    a.y = row.strided({form_.batch, groups, nb}, {0, 0, 1});
    a.flag = ctx.allocate(DType::u8, {form_.batch, groups, nb});
    compare_flags(ctx, a);
    return a.flag;
  }

  /// One layer; `fixed`: sparse or not, none: the router's decision.
  void layer(Context& ctx, std::optional<bool> fixed) {
    const int64_t n = form_.queries;
    last_.clear();
    const bool to_full = fixed && !*fixed, to_sparse = fixed && *fixed;
    if (to_full && full_ == "full") {
      last_.push_back({0, n, causal_mask(0), out_});
    } else if (to_sparse && sparse_ == "local") {
      BlockMask m = causal_mask(0);
      m.rule.band = true;
      m.rule.left = std::min(window_ - 1, form_.keys);
      last_.push_back({0, n, m, out_});
    } else {
      const auto stage = ctx.stage("select");
      using Relation = CompareArgs::Relation;
      const Tensor g = fixed ? Tensor() : gate(ctx);
      lists_.columns = lists_.diagonals = lists_.bitmap = {};
      lists_.first_columns = 0;
      const bool streams = sparse_ == "streaming" || sparse_ == "triangle";
      const int64_t near = streams ? near_ : 0;
      if (fixed) {
        const bool estimate = (*fixed ? sparse_ : full_) == "xattn";
        lists_.first_columns = estimate ? 1 : *fixed && streams ? sinks_ : 0;
        lists_.window = *fixed ? near : 0;
        if (estimate) lists_.bitmap = estimated(ctx, {});
      } else if (full_ == "xattn") {
        lists_.columns = lines(ctx, g, column_, Relation::less);
        lists_.diagonals = lines(ctx, g, diagonal_, Relation::less);
        // Rows of elements that stream (or keep nothing) take no estimated block.
        Tensor limit;
        if (sparse_ != "xattn") {
          CountRuleArgs rule;
          const int64_t nb = key_blocks();
          rule.flag = ctx.allocate(DType::i32, {form_.batch, form_.heads, nb});
          arg_max(ctx, logits_.strided({form_.batch, form_.heads, nb, 2}, {2, 0, 0, 1}), rule.flag);
          rule.y = ctx.allocate(DType::i32, {form_.batch, form_.heads, nb});
          rule.low = rule.high = 0;
          rule.when_set = static_cast<int32_t>(nb);
          count_rule(ctx, rule);
          limit = rule.y;
          if (sparse_ == "none") lists_.columns = lines(ctx, g, none_row(ctx), Relation::greater);
        }
        lists_.bitmap = estimated(ctx, limit);
      } else {
        lists_.columns = lines(ctx, g, column_, Relation::greater);
        lists_.window = near;
        if (sparse_ == "xattn") lists_.bitmap = estimated(ctx, {});
      }
      if (sparse_ == "triangle") {
        stream_.columns = lists_.columns, stream_.window = lists_.window,
        stream_.first_columns = lists_.first_columns;
        build_block_lists(ctx, stream_);
        last_.push_back({0, n - tail_, block_mask_of(stream_), out_});
        last_.push_back({n - tail_, n, causal_mask(n - tail_), out_});
      } else {
        build_block_lists(ctx, lists_);
        last_.push_back({0, n, block_mask_of(lists_), out_});
      }
      if (sparse_ == "local") {  // the router's: both branches, each empty where the other one is chosen
        band_.columns = lines(ctx, g, column_, Relation::less);
        build_block_lists(ctx, band_);
        last_.push_back({0, n, block_mask_of(band_), half_});
      }
    }
    mask_ = last_.front().mask;
    const auto stage = ctx.stage("attend");
    for (const Piece& piece : last_) attention(ctx, piece_call(piece));
    if (last_.back().to.raw() == half_.raw() && half_) {
      PointwiseArgs add;
      add.a = add.y = out_.reshape({form_.batch * form_.queries, form_.heads * form_.head_dim});
      add.b = half_.reshape({form_.batch * form_.queries, form_.heads * form_.head_dim});
      pointwise(ctx, add);
    }
  }

  BlockMask causal_mask(int64_t first) const {
    BlockMask m;
    m.rule.causal = true;
    m.rule.offset = decode_ ? form_.keys - form_.queries : first;
    return m;
  }
  /// Block 0 where the decision is full.
  Tensor none_row(Context& ctx) {
    if (!none_) {
      std::vector<float> row(static_cast<size_t>(key_blocks()), 2.0f);
      row[0] = 0.5f;
      none_ = upload(ctx, {key_blocks()}, row);
    }
    return none_;
  }

  // ---- xattn ----------------------------------------------------------------------------------------------

  void plan_estimate(Context& ctx) {
    const int64_t n = form_.keys, rows = ceil_div(n, stride_);
    std::vector<int32_t> reversed, plain;
    for (int64_t a = 0; a < rows; ++a)
      for (int64_t t = 0; t < stride_; ++t) {
        const int64_t q = a * stride_ + stride_ - 1 - t, k = a * stride_ + t;
        reversed.push_back(q < n ? static_cast<int32_t>(q) : -1);
        plain.push_back(k < n ? static_cast<int32_t>(k) : -1);
      }
    reversed_ = upload(ctx, {1, 1, rows * stride_}, reversed);
    plain_ = upload(ctx, {1, 1, rows * stride_}, plain);
    // Rows of the first estimation chunk are counted by another rule (a quirk of the original that decides
    // which blocks are kept).
    const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
    const int64_t chunk =
        std::max<int64_t>(std::min(std::max<int64_t>(2048, power), (int64_t{1} << 28) / power), 2048);
    first_rows_ = std::min(key_blocks(), ceil_div(chunk, block_));
    if (sparse_ == "none" && full_ == "xattn") none_row(ctx);
  }

  /// Blocks [B, H, nb, nb] that the antidiagonal estimate keeps; limit i32 [B, H, nb] of visible columns, or
  /// none.
  Tensor estimated(Context& ctx, const Tensor& limit) {
    const HeadsForm& f = form_;
    const int64_t rows = ceil_div(f.keys, stride_), wide = stride_ * f.head_dim, nb = key_blocks(),
                  group = f.group();
    const auto strided_rows = [&](const Tensor& x, const Tensor& index, int64_t heads) {
      const Tensor y = ctx.allocate(dtype_, {f.batch, heads, rows * stride_, f.head_dim});
      gather_tokens(ctx, {x, index, y});
      return y.reshape({f.batch, heads, rows, wide});
    };
    const Tensor q = strided_rows(query_, reversed_, f.heads), k = strided_rows(key_, plain_, f.kv_heads);
    const Tensor mass = ctx.allocate(DType::f32, {f.batch, f.heads, nb, nb});
    const int64_t cell = block_ / stride_;
    // Rows in whole blocks, as many as the scores' bytes allow; columns up to the diagonal.
    const int64_t together = std::max<int64_t>(1, std::min(nb, kScoreBytes / (4 * group * rows * cell)));
    for (int64_t b = 0; b < f.batch; ++b)
      for (int64_t kv = 0; kv < f.kv_heads; ++kv)
        for (int64_t first = 0; first < nb; first += together) {
          const int64_t last = std::min(nb, first + together);
          const int64_t r0 = first * cell, r1 = std::min(rows, last * cell);
          GemmArgs a;
          a.a = q.select(0, b).slice(0, kv * group, (kv + 1) * group).slice(1, r0, r1);
          a.b = k.select(0, b).select(0, kv).slice(0, 0, r1);
          a.b_transposed = true;
          a.c = ctx.allocate(DType::f32, {group, r1 - r0, r1});
          a.alpha = static_cast<float>(
              1.0 / (std::sqrt(static_cast<double>(f.head_dim)) * static_cast<double>(stride_)));
          gemm(ctx, a);
          CellSumsArgs s;
          s.x = a.c;
          s.softmax = s.causal = true;
          s.causal_offset = r0;
          s.rows = s.columns = cell;
          s.y = mass.select(0, b)
                    .slice(0, kv * group, (kv + 1) * group)
                    .slice(1, first, last)
                    .slice(2, 0, last);
          cell_sums(ctx, s);
        }
    const Tensor flags = ctx.allocate(DType::u8, {f.batch, f.heads, nb, nb});
    const auto keep = [&](int64_t first, int64_t last, bool first_chunk) {
      if (first >= last) return;
      TopPArgs p;
      p.x = mass.slice(2, first, last);
      p.flag = flags.slice(2, first, last);
      p.visible.causal = true;
      p.visible.offset = first;
      if (limit) p.visible.limit = limit.slice(2, first, last);
      p.p = threshold_;
      p.share = true;
      p.forced_diagonal = true;
      p.forced_first = first_chunk ? 0 : 1;
      p.lag = first_chunk && threshold_ > 0 ? 2 : 1;
      top_p(ctx, p);
    };
    keep(0, first_rows_, true);
    keep(first_rows_, nb, false);
    return flags;
  }

  /// What one layer of a fixed decision costs where nothing depends on data.
  Cost fixed_cost(bool sparse) const {
    const HeadsForm& f = form_;
    const int64_t groups = f.batch * f.heads, element = static_cast<int64_t>(size_of(dtype_));
    const int64_t nb = ceil_div(f.keys, block_);
    CostSheet s;
    const auto attend = [&](int64_t rows, int64_t pairs, int64_t entries, int64_t list_rows) {
      s.c.matmul += pairs * 4 * f.head_dim;
      s.c.elementwise += 4 * pairs;
      s.c.special += pairs;
      s.bytes((groups * rows + 2 * std::min(f.batch * f.kv_heads * f.keys, pairs)) * f.head_dim * element +
                  4 * (entries + 4 * list_rows),
              groups * rows * f.head_dim * element);
    };
    ElementRule rule;
    rule.causal = true;
    if (!sparse) {
      attend(f.queries, groups * band_pair_count(rule, f.queries, f.keys), 0, 0);
      return s.c;
    }
    if (sparse_ == "local") {
      rule.band = true;
      rule.left = std::min(window_ - 1, f.keys);
      attend(f.queries, groups * band_pair_count(rule, f.queries, f.keys), 0, 0);
      return s.c;
    }
    // Listed blocks of a stream.
    const bool streams = sparse_ == "streaming" || sparse_ == "triangle";
    const int64_t rows = sparse_ == "triangle" ? f.queries - tail_ : f.queries;
    const int64_t offset = decode_ ? f.keys - f.queries : 0;
    int64_t pairs = 0, entries = 0;
    const int64_t list_rows = ceil_div(rows, block_);
    for (int64_t r = 0; streams && r < list_rows; ++r) {
      const int64_t last = std::min(rows, (r + 1) * block_), own = (last - 1 + offset) / block_;
      for (int64_t c = 0; c <= own && c < nb; ++c) {
        if (c >= sinks_ && c <= own - near_) continue;
        pairs += (last - r * block_) * (std::min(f.keys, (c + 1) * block_) - c * block_);
        ++entries;
      }
    }
    attend(rows, groups * pairs, f.batch * entries, f.batch * list_rows);
    s.bytes(0, 4 * 4 * f.batch * list_rows);
    if (sparse_ == "triangle") {
      ElementRule tail;
      tail.causal = true;
      tail.offset = rows;
      attend(tail_, groups * band_pair_count(tail, tail_, f.keys), 0, 0);
    }
    return s.c;
  }

  int64_t block_, edge_, stride_, window_, tail_, sinks_ = 0, near_ = 0, first_rows_ = 0;
  double threshold_;
  std::string pooling_, sparse_, full_, force_;
  bool decode_ = false, xattn_ = false;
  std::vector<bool> stack_;  ///< sparse or not, layer by layer; empty: the router decides
  BlockListsArgs band_, stream_;
  Tensor rows_, logits_, column_, diagonal_, none_, ones_, half_, reversed_, plain_;
  std::vector<Piece> last_;
};

class FluxAttention final : public Method {
 public:
  const MethodInfo& info() const override { return flux_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<FluxInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(FluxAttention);

}  // namespace
}  // namespace attnbench
