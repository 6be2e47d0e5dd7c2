// Mixture-of-head attention: shared heads for every token, a few routed heads by choice. Card: moh.
#include <algorithm>
#include <cmath>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/routing/routing.hpp"
#include "kernels/select/select.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"
#include "methods/vision_layer.hpp"

namespace attnbench {
namespace {

using vision::linear_cost;

/// Tokens of a block of packed queries: the least that tensor-core kernels take, as the last block of a head
/// is half empty on average.
constexpr int64_t kQueryBlock = 64, kKeyBlock = 128;

MethodInfo describe() {
  using Type = ParamSpec::Type;
  MethodInfo m;
  m.id = m.card = "moh";
  m.title = "Mixture-of-head attention (MoH)";
  m.paper = "MoH: Multi-Head Attention as Mixture-of-Head Attention, ICML 2025";
  m.arxiv = "2410.11842";
  m.family = "head-routing (softmax)";
  m.summary =
      "Every token keeps the shared heads and the routed heads that a linear router scores highest; their "
      "outputs are added with gates. Keys and values of all heads are needed by all tokens; queries, "
      "attention and outputs of the others are left out: the queries of each head are packed.";
  m.formula =
      "[q k v] = Wqkv x + bqkv;  H heads, the first shared_heads always on, of the E others routed_heads\n"
      "learned: p = softmax(Wr x), T = the routed_heads largest; r = routed_heads p / sum_T p on T\n"
      "  u = shared_heads softmax(Ws x) (1 for one head);  a = 2 softmax(Wa x);  g = [a_0 u ; a_1 r]\n"
      "  gate_norm paper: g = [a_0 softmax(Ws x) ; a_1 p on T] with a = softmax(Wa x); binary: 0 or 1\n"
      "qnorm: the routed heads with the largest |q_h|_2; gates 0 or 1\n"
      "y = Wo concat_h(g_h softmax(scale q_h k_h^T) v_h) + bo";
  m.cost =
      "A = shared_heads + routed_heads active heads a token: attention 4 B D M N A (causal: about half), A / "
      "H of dense, whole blocks of packed queries visited; projections 2 B N C (2 H + 2 Hkv) D; routers 2 B "
      "N "
      "C (E + shared_heads + 2). dense_masked computes all heads.";
  ParamSpec heads = spec::param("num_heads", Type::integer, 16, 1, "H");
  heads.from_problem = "heads";
  ParamSpec dim = spec::param("head_dim", Type::integer, Value(), 1, "D; null: C / H");
  dim.nullable = true;
  ParamSpec router =
      spec::param("router", Type::choice, "learned", {}, "linear routers, or norms of the queries");
  router.choices = {"learned", "qnorm"};
  ParamSpec norm = spec::param("gate_norm", Type::choice, "repo", {}, "how gates are scaled (learned)");
  norm.choices = {"repo", "paper", "binary"};
  ParamSpec kv_heads = spec::param("num_kv_heads", Type::integer, Value(), 1,
                                   "Hkv: grouped keys; null: problem.kv_heads, or H");
  kv_heads.nullable = true;
  ParamSpec causal = spec::param("causal", Type::boolean, false, {}, "as the problem says");
  causal.from_problem = "causal";
  ParamSpec compute =
      spec::param("compute", Type::choice, "sparse", {}, "active heads alone, or all and a product");
  compute.choices = {"sparse", "dense_masked"};
  m.params = {heads,
              dim,
              spec::param("shared_heads", Type::integer, 4, 0, "Hs: always on"),
              spec::param("routed_heads", Type::integer, 8, 0, "Kr: routed heads that a token keeps"),
              router,
              spec::param("two_stage", Type::boolean, true, {}, "balance shared against routed heads (Wa)"),
              norm,
              kv_heads,
              spec::param("qkv_bias", Type::boolean, true, {}, "bias of q, k and v"),
              causal,
              compute,
              scale_param()};
  m.kinds = {ProblemKind::sequence, ProblemKind::image, ProblemKind::video};
  m.figures = {
      {"active heads / accuracy", "MoH-ViT-S, ImageNet-1K", "TransNeXt-S 84.7%", "80%: 84.7%; 75%: 84.6%",
       "repository, fig4"},
      {"active heads / accuracy", "MoH-ViT-B, ImageNet-1K", "TransNeXt-B 84.8%", "75%: 84.9%; 50%: 84.7%",
       "repository, fig4"},
      {"FID, 7000K steps", "MoH-DiT-XL/2, 90% of the heads", "DiT-XL/2 9.62", "8.56", "repository, fig5"},
      {"average of 14 tasks", "MoH-LLaMA3-8B, 75% of the heads", "LLaMA3-8B", "64.0 (+2.4)", "abstract"},
      {"attention products, derived", "any", "dense", "0.90, 0.80, 0.75, 0.50", "closed form"}};
  m.notes = {
      "Routers and the norms of qnorm are computed in f32 whatever the dtype, so that a choice does not hang "
      "on its rounding.",
      "An absent bias is 0. Wr is needed with routed_heads > 0, Ws with more than one shared head, Wa with "
      "both kinds and two_stage (learned, gates not binary).",
      "qnorm is applied to the queries as they are: this layer has no rotary embedding. Its gates are 0 or 1 "
      "whatever gate_norm says.",
      "rows() gives the softmax rows of active heads, without their gates, and 0 for the others."};
  m.example.kind = ProblemKind::sequence;
  m.example.heads = 16;
  m.example.channels = 128;
  m.example.length = 75;
  return m;
}

struct Shape4 {
  int64_t batch, n, channels, heads, kv_heads, dim, shared, keep;
  int64_t routed() const { return heads - shared; }
  int64_t active() const { return shared + keep; }
  int64_t width() const { return heads * dim; }
  int64_t kv_width() const { return kv_heads * dim; }
};

struct Choices {
  bool qnorm, two_stage, bias, causal, sparse;
  HeadGatesArgs::Norm norm;
  float scale;
};

class MohInstance final : public Instance {
 public:
  MohInstance(Context& ctx, const Shape4& shape, const Choices& choices, DType dtype,
              std::vector<int64_t> grid)
      : s_(shape), c_(choices), dtype_(dtype), grid_(std::move(grid)), backend_(&ctx.backend()) {
    const int64_t rows = s_.width() + 2 * s_.kv_width();
    input_specs_ = {{"x", {s_.batch, s_.n, s_.channels}, dtype, Init::normal(), false, "tokens [B, N, C]"}};
    const auto add = [&](const char* name, const Shape& shape, Init init, bool optional,
                         const char* meaning) {
      weight_specs_.push_back({name, shape, dtype, init, optional, meaning});
    };
    const Init normal = Init::trunc_normal(0.02), zero = Init::constant(0);
    add("Wqkv", {rows, s_.channels}, normal, false, "rows (q | k | v, head, d)");
    if (c_.bias) add("bqkv", {rows}, zero, true, "absent: 0");
    add("Wo", {s_.channels, s_.width()}, normal, false, "output projection");
    add("bo", {s_.channels}, zero, true, "absent: 0");
    if (!c_.qnorm) {
      if (s_.routed() > 0)
        add("Wr", {s_.routed(), s_.channels}, normal, s_.keep == 0, "router of the routed heads");
      if (s_.shared > 1) add("Ws", {s_.shared, s_.channels}, normal, !soft(), "router of the shared heads");
      if (s_.shared > 0 && s_.keep > 0)
        add("Wa", {2, s_.channels}, normal, !balanced(), "balance of the two kinds");
    }
    y_ = ctx.allocate(dtype, {s_.batch, s_.n, s_.channels}, MemoryClass::output);
    gates_ = ctx.allocate(DType::f32, {s_.batch, s_.n, s_.heads}, MemoryClass::output);
    selected_ = ctx.allocate(DType::i32, {s_.batch, s_.n, s_.heads}, MemoryClass::output);
  }

  void prepare(Context& ctx) override {
    if (!c_.qnorm && columns() > 0) {
      // The routers as one f32 matrix: one product.
      router_ = ctx.allocate(DType::f32, {columns(), s_.channels});
      int64_t at = 0;
      for (const char* name : {"Wr", "Ws", "Wa"}) {
        if (!uses(name)) continue;
        const Tensor& w = weight(name);
        cast(ctx, {w, router_.slice(0, at, at + w.dim(0))});
        at += w.dim(0);
      }
    }
    if (c_.qnorm && dtype_ != DType::f32) {
      wq_ = ctx.allocate(DType::f32, {s_.width(), s_.channels});
      cast(ctx, {weight("Wqkv").slice(0, 0, s_.width()), wq_});
      if (has_weight("bqkv")) {
        bq_ = ctx.allocate(DType::f32, {s_.width()});
        cast(ctx, {weight("bqkv").slice(0, 0, s_.width()), bq_});
      }
    }
    if (!c_.sparse) {
      identity_ = ctx.allocate(DType::i32, {1, 1, s_.n});
      std::vector<int32_t> own(static_cast<size_t>(s_.n));
      for (size_t i = 0; i < own.size(); ++i) own[i] = static_cast<int32_t>(i);
      put(ctx, identity_, own);
      return;
    }
    // A head's packed queries see the first so many key blocks: one list of all blocks serves every row.
    const int64_t blocks = (s_.n + kKeyBlock - 1) / kKeyBlock, tiles = query_blocks();
    std::vector<int32_t> all(static_cast<size_t>(blocks));
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
    list_begin_ = ctx.allocate(DType::i32, {s_.batch, s_.heads, tiles});
    put(ctx, list_begin_, std::vector<int32_t>(static_cast<size_t>(list_begin_.numel()), 0));
    list_index_ = ctx.allocate(DType::i32, {blocks});
    put(ctx, list_index_, all);
  }

  void run(Context& ctx) override {
    const int64_t rows = s_.batch * s_.n;
    const Tensor x = input("x").reshape({rows, s_.channels});
    Tensor x32;
    if (needs_f32()) {
      const auto stage = ctx.stage("route");
      x32 = ctx.allocate(DType::f32, x.shape());
      cast(ctx, {x, x32});
    } else if (dtype_ == DType::f32) {
      x32 = x;
    }
    const Tensor qkv = ctx.allocate(dtype_, {rows, s_.width() + 2 * s_.kv_width()});
    Tensor q32;
    {
      const auto stage = ctx.stage("project");
      const Tensor bias = has_weight("bqkv") ? weight("bqkv") : Tensor();
      if (wq_) {
        q32 = ctx.allocate(DType::f32, {rows, s_.width()});
        linear(ctx, x32, wq_, bq_, q32);
        const Tensor q = ctx.allocate(dtype_, {rows, s_.width()});
        cast(ctx, {q32, q});
        transpose_copy(ctx, {q, qkv.slice(1, 0, s_.width())});
        const int64_t from = s_.width(), to = qkv.dim(1);
        linear(ctx, x, weight("Wqkv").slice(0, from, to), bias ? bias.slice(0, from, to) : Tensor(),
               qkv.slice(1, from, to));
      } else {
        linear(ctx, x, weight("Wqkv"), bias, qkv);
        q32 = qkv.slice(1, 0, s_.width());
      }
    }
    route(ctx, x32, q32);
    const Tensor mixed = ctx.allocate(dtype_, {rows, s_.width()});
    attend(ctx, qkv, mixed.reshape({s_.batch, s_.n, s_.heads, s_.dim}).transpose(1, 2));
    const auto stage = ctx.stage("out");
    linear(ctx, mixed, weight("Wo"), has_weight("bo") ? weight("bo") : Tensor(),
           y_.reshape({rows, s_.channels}));
  }

  TensorMap outputs() const override { return {{"y", y_}, {"gates", gates_}, {"selected", selected_}}; }

  ClosedForm cost() const override {
    const int64_t rows = s_.batch * s_.n, c = s_.channels, width = s_.width();
    const int64_t qkv = width + 2 * s_.kv_width(), e = static_cast<int64_t>(size_of(dtype_));
    const auto move = [](int64_t read, int64_t written) {
      Cost m;
      m.bytes_read = read, m.bytes_written = written;
      return m;
    };
    ClosedForm f;
    if (needs_f32()) f.cost += move(rows * c * e, rows * c * 4);
    if (c_.qnorm && dtype_ != DType::f32) {
      f.cost += linear_cost(rows, c, width, has_weight("bqkv"), DType::f32) +
                move(rows * width * 4, rows * width * e) + move(rows * width * e, rows * width * e) +
                linear_cost(rows, c, qkv - width, has_weight("bqkv"), dtype_);
    } else {
      f.cost += linear_cost(rows, c, qkv, has_weight("bqkv"), dtype_);
    }
    if (c_.qnorm && s_.keep > 0) {
      const int64_t routed = rows * s_.routed() * s_.dim;
      f.cost += move(routed * 4, routed * 4) + move(routed * 8, rows * s_.routed() * 4);
      f.cost.elementwise += 2 * routed;
    } else if (!c_.qnorm && columns() > 0) {
      f.cost += linear_cost(rows, c, columns(), false, DType::f32);
      if (soft()) f.cost.special += rows * columns();
    }
    const bool scored = s_.keep > 0;
    const int64_t score_columns = c_.qnorm ? (scored ? s_.routed() : 0) : columns();
    f.cost += move(rows * score_columns * 4, 2 * rows * s_.heads * 4);
    f.cost.elementwise += rows * ((scored ? s_.routed() : 0) + 6 * s_.heads);

    // Attention: expected of the active heads, exact where all are computed.
    const int64_t heads = c_.sparse ? s_.active() : s_.heads;
    const int64_t pairs = s_.batch * heads * (c_.causal ? s_.n * (s_.n + 1) / 2 : s_.n * s_.n);
    f.data_dependent = c_.sparse;
    f.cost.matmul += 4 * s_.dim * pairs;
    f.cost.special += pairs;
    f.cost.elementwise += 4 * pairs;
    f.cost += move((rows * width + 2 * std::min(rows * s_.kv_width(), pairs * s_.dim)) * e, rows * width * e);
    const int64_t by_head = rows * s_.heads * 4;
    if (c_.sparse) {
      const int64_t counts = s_.batch * s_.heads * query_blocks() * 4,
                    blocks = (s_.n + kKeyBlock - 1) / kKeyBlock;
      f.cost += move(by_head, 4 * by_head + counts) + move(rows * width * e + by_head, rows * width * e) +
                move(2 * counts + 4 * s_.batch * s_.active() * query_blocks() * blocks + 2 * by_head, 0) +
                move(rows * width * e + 2 * by_head, rows * width * e);
    } else {
      f.cost += move(by_head, by_head) + move(rows * width * e + 4 * s_.n + by_head, rows * width * e);
    }
    f.cost.elementwise += 2 * rows * width;
    f.cost += linear_cost(rows, width, c, has_weight("bo"), dtype_);

    f.parameters = (qkv + width) * c + c + (c_.bias ? qkv : 0);
    for (const TensorSpec& w : weight_specs_)
      if (w.name == "Wr" || w.name == "Ws" || w.name == "Wa") f.parameters += w.shape.numel();
    f.published_macs = s_.n * c * (qkv + width + (c_.qnorm ? 0 : columns())) +
                       2 * s_.dim * (pairs / std::max<int64_t>(s_.batch, 1));
    f.published_macs_note = "projections, routers and attention of the active heads";
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = s_.batch;
    set.heads = s_.heads;
    set.queries = set.tokens = s_.n;
    set.same_for_all_batches = false;
    set.grid = grid_;
    auto on = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(selected_.numel()));
    if (!on->empty())
      backend_->copy_bytes(on->data(), DeviceKind::cpu, selected_.raw(), selected_.device(),
                           on->size() * sizeof(int32_t));
    backend_->synchronize();
    set.row = [on, n = s_.n, heads = s_.heads, causal = c_.causal](int64_t b, int64_t h, int64_t i,
                                                                   Intervals& out) {
      out.clear();
      if ((*on)[static_cast<size_t>((b * n + i) * heads + h)]) out.push_back({0, causal ? i + 1 : n});
    };
    return set;
  }
  int64_t keys(int64_t) const override { return s_.n; }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const Tensor qkv = ctx.allocate(dtype_, {s_.batch * s_.n, s_.width() + 2 * s_.kv_width()});
    linear(ctx, input("x").reshape({s_.batch * s_.n, s_.channels}), weight("Wqkv"),
           has_weight("bqkv") ? weight("bqkv") : Tensor(), qkv);
    BlockMask mask;
    mask.rule.causal = true;
    AttentionArgs a = dense_call(qkv, ctx.allocate(dtype_, {s_.batch, s_.heads, s_.n, s_.dim}));
    if (c_.causal) a.mask = &mask;
    attention_rows(ctx, a, b, h, q_begin, q_end, out);
    const std::optional<PairSet> set = pairs();
    Intervals seen;
    for (int64_t i = q_begin; i < q_end; ++i) {
      set->row(b, h, i, seen);
      if (seen.empty()) std::fill_n(out.begin() + (i - q_begin) * s_.n, s_.n, 0.0f);
    }
    return true;
  }

 private:
  /// Gates follow softmaxes, so the shared heads' router and the balance matter.
  bool soft() const { return c_.norm != HeadGatesArgs::Norm::binary; }
  bool balanced() const { return soft() && c_.two_stage && s_.shared > 0 && s_.keep > 0; }
  bool uses(const std::string& router) const {
    if (router == "Wr") return s_.keep > 0;
    if (router == "Ws") return soft() && s_.shared > 1;
    return balanced();
  }
  int64_t columns() const {
    return (uses("Wr") ? s_.routed() : 0) + (uses("Ws") ? s_.shared : 0) + (uses("Wa") ? 2 : 0);
  }
  bool needs_f32() const { return dtype_ != DType::f32 && (c_.qnorm ? s_.keep > 0 : columns() > 0); }
  int64_t query_blocks() const { return (s_.n + kQueryBlock - 1) / kQueryBlock; }

  static void put(Context& ctx, const Tensor& t, const std::vector<int32_t>& v) {
    if (!v.empty())
      ctx.backend().copy_bytes(t.raw(), t.device(), v.data(), DeviceKind::cpu, v.size() * sizeof(int32_t));
  }

  void route(Context& ctx, const Tensor& x32, const Tensor& q32) {
    const auto stage = ctx.stage("route");
    const int64_t rows = s_.batch * s_.n;
    HeadGatesArgs g;
    g.norm = c_.norm;
    g.shared_heads = s_.shared, g.keep = s_.keep;
    g.gates = gates_.reshape({rows, s_.heads});
    g.selected = selected_.reshape({rows, s_.heads});
    if (c_.qnorm && s_.keep > 0) {
      // Squares order as norms do, and dividing by the deviation over the heads changes no order.
      const Tensor routed = ctx.allocate(DType::f32, {rows, s_.routed() * s_.dim});
      transpose_copy(ctx, {q32.slice(1, s_.shared * s_.dim, s_.width()), routed});
      ReduceArgs squares;
      squares.x = squares.weight = routed.reshape({rows * s_.routed(), s_.dim});
      g.routed = ctx.allocate(DType::f32, {rows, s_.routed()});
      squares.y = g.routed.reshape({rows * s_.routed()});
      squares.all = false;
      reduce(ctx, squares);
    } else if (!c_.qnorm && columns() > 0) {
      const Tensor scores = ctx.allocate(DType::f32, {rows, columns()});
      linear(ctx, x32, router_, {}, scores);
      int64_t at = 0;
      const auto next = [&](int64_t width) {
        at += width;
        return scores.slice(1, at - width, at);
      };
      if (uses("Wr")) g.routed = next(s_.routed());
      if (uses("Ws")) g.shared = next(s_.shared);
      if (uses("Wa")) g.balance = next(2);
    }
    head_gates(ctx, g);
  }

  Tensor part(const Tensor& qkv, int64_t from, int64_t heads) const {
    const int64_t row = qkv.stride(0);
    return qkv.strided({s_.batch, heads, s_.n, s_.dim}, {s_.n * row, s_.dim, row, 1}, from);
  }
  AttentionArgs dense_call(const Tensor& qkv, const Tensor& o) const {
    AttentionArgs a;
    a.q = part(qkv, 0, s_.heads);
    a.k = part(qkv, s_.width(), s_.kv_heads);
    a.v = part(qkv, s_.width() + s_.kv_width(), s_.kv_heads);
    a.o = o;
    a.scale = c_.scale;
    return a;
  }

  /// mixed [B, H, N, D] (a view): gate times the head's output, 0 where it is off.
  void attend(Context& ctx, const Tensor& qkv, const Tensor& mixed) {
    const Shape packed{s_.batch, s_.heads, s_.n, s_.dim};
    const Tensor o = ctx.allocate(dtype_, packed);
    AttentionArgs a = dense_call(qkv, o);
    BlockMask mask;
    if (!c_.sparse) {
      const auto stage = ctx.stage("attend");
      mask.rule.causal = true;
      if (c_.causal) a.mask = &mask;
      attention(ctx, a);
      const Tensor weight = ctx.allocate(DType::f32, {s_.batch, s_.heads, s_.n});
      transpose_copy(ctx, {gates_.transpose(1, 2), weight});
      ScatterTokensArgs back;
      back.x = o, back.index = identity_, back.weight = weight, back.y = mixed;
      scatter_tokens(ctx, back);
      return;
    }
    PackQueriesArgs p;
    const Shape by_head{s_.batch, s_.heads, s_.n};
    {
      const auto stage = ctx.stage("pack");
      p.gates = gates_;
      p.index = ctx.allocate(DType::i32, by_head);
      p.weight = ctx.allocate(DType::f32, by_head);
      p.row_begin = ctx.allocate(DType::i32, by_head);
      p.row_end = ctx.allocate(DType::i32, by_head);
      p.count = ctx.allocate(DType::i32, {s_.batch, s_.heads, query_blocks()});
      p.keys = s_.n, p.block_q = kQueryBlock, p.block_k = kKeyBlock, p.causal = c_.causal;
      pack_queries(ctx, p);
      const Tensor q = ctx.allocate(dtype_, packed);
      gather_tokens(ctx, {a.q, p.index, q});
      a.q = q;
    }
    {
      const auto stage = ctx.stage("attend");
      mask.block_q = kQueryBlock, mask.block_k = kKeyBlock;
      mask.full = {list_begin_, p.count, list_index_};
      mask.row_begin = p.row_begin, mask.row_end = p.row_end;
      a.mask = &mask;
      attention(ctx, a);
    }
    const auto stage = ctx.stage("unpack");
    ScatterTokensArgs back;
    back.x = o, back.index = p.index, back.weight = p.weight, back.y = mixed;
    scatter_tokens(ctx, back);
  }

  Shape4 s_;
  Choices c_;
  DType dtype_;
  std::vector<int64_t> grid_;
  Backend* backend_;
  Tensor y_, gates_, selected_;
  Tensor router_, wq_, bq_, identity_, list_begin_, list_index_;
};

class Moh final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    require_extent(info(), problem.channels, "channels (the layer is given x)");
    require_extent(info(), problem.tokens(), problem.kind == ProblemKind::sequence ? "length" : "grid");
    if (problem.kv_length && problem.kv_length != problem.tokens())
      throw Unsupported("moh: a self-attention layer; kv_length " + std::to_string(problem.kv_length) +
                        " cannot differ from its " + std::to_string(problem.tokens()) + " tokens");
    Shape4 s{};
    s.batch = problem.batch, s.n = problem.tokens(), s.channels = problem.channels;
    s.heads = params.integer("num_heads");
    s.kv_heads =
        params.is_null("num_kv_heads") ? problem.kv_heads_or_heads() : params.integer("num_kv_heads");
    if (problem.kv_heads && s.kv_heads != problem.kv_heads)
      throw UsageError("moh.num_kv_heads: " + std::to_string(s.kv_heads) +
                       " contradicts problem.kv_heads = " + std::to_string(problem.kv_heads));
    s.shared = params.integer("shared_heads"), s.keep = params.integer("routed_heads");
    if (s.shared > s.heads)
      throw UsageError("moh.shared_heads: " + std::to_string(s.shared) + " of " + std::to_string(s.heads) +
                       " heads");
    if (s.keep > s.routed())
      throw UsageError("moh.routed_heads: " + std::to_string(s.keep) + " of the " +
                       std::to_string(s.routed()) + " heads that are not shared");
    if (s.active() == 0) throw UsageError("moh: no head is ever on (shared_heads 0, routed_heads 0)");
    if (s.heads % s.kv_heads != 0)
      throw UsageError("moh.num_kv_heads: " + std::to_string(s.kv_heads) + " does not divide " +
                       std::to_string(s.heads) + " heads");
    if (params.is_null("head_dim") && s.channels % s.heads != 0)
      throw UsageError("moh.head_dim: " + std::to_string(s.channels) + " channels are not a multiple of " +
                       std::to_string(s.heads) + " heads; give it");
    s.dim = params.is_null("head_dim") ? s.channels / s.heads : params.integer("head_dim");
    Choices c{};
    c.qnorm = params.choice("router") == "qnorm";
    c.two_stage = params.boolean("two_stage");
    c.bias = params.boolean("qkv_bias");
    c.causal = params.boolean("causal");
    c.sparse = params.choice("compute") == "sparse";
    const std::string& norm = params.choice("gate_norm");
    c.norm = c.qnorm || norm == "binary" ? HeadGatesArgs::Norm::binary
             : norm == "paper"           ? HeadGatesArgs::Norm::plain
                                         : HeadGatesArgs::Norm::renormalised;
    c.scale = static_cast<float>(scale_of(params, s.dim));
    return std::make_unique<MohInstance>(ctx, s, c, problem.dtype, problem.grid);
  }
};
ATTNBENCH_METHOD(Moh);

}  // namespace
}  // namespace attnbench
