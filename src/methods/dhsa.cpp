// Dynamic hierarchical sparse attention: learned boundaries cut the keys into chunks, chunks are scored for
// every block of queries, and a fixed budget of tokens is filled from the best of them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/select/chunks.hpp"
#include "kernels/softmax/softmax.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Rows that the labels of local layers look at: the window of the layers they were made for.
constexpr int64_t kLabelRows = 4096;
/// Score of gaps without a full window: below every threshold of a trained predictor.
constexpr float kNoWindow = -100.0f;
/// Elements of the encoder's outputs that are in memory at a time (64 MiB in f32); gaps go in segments.
constexpr int64_t kSegmentElements = int64_t{1} << 24;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "dhsa";
  m.title = "DHSA (dynamic hierarchical sparse attention)";
  m.paper =
      "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs, NeurIPS 2025 "
      "workshop on Efficient Reasoning";
  m.arxiv = "2510.24606";
  m.family = "dynamic-sparse (learned chunk boundaries, token budget per query block, softmax)";
  m.summary =
      "A small network scores every gap between tokens from the keys around it; the best gaps, kept apart, "
      "cut the sequence into chunks. The pooled queries of a block score the pooled keys of the chunks, and "
      "the tokens of the best chunks fill a fixed budget beside the newest and the first tokens. All heads "
      "share one list; the last rows of the prompt attend densely.";
  m.formula =
      "f_t = keys of token t, heads side by side; x = encoder(f_(t-w+1) .. f_(t+w)); l, r = means of halves\n"
      "s_t = MLP([l, r, |l - r|, l * r, cos(l, r)])      (predictor)\n"
      "s_t = (max(past, future) + 1e-6) / (min(past, future) + 1e-6) of attention mass     (ratio)\n"
      "chosen gaps: s_t > theta, best first, more than nms_window apart, beta (N / b) at most\n"
      "Q_m = sum of block m / b, K_c = sum of chunk c / sqrt(l_c), S = Q_m . K_c for every token of c\n"
      "list of m: the newest local_tokens before the block's end, the best S, the first global_tokens\n"
      "v2: S = mean of block m . mean of key block c, each head; list: the max(1, floor(density NK)) best, "
      "the future not left out before (v2_topk); or all up to the newest where they are no more, else the "
      "first, the newest and the best between (v2_a_shape)\n"
      "o_r = sum_j softmax_j(q_r . k_j scale) v_j over j <= r in the list of r's block; all j <= r in the "
      "tail";
  m.cost =
      "Attention 4 D a listed pair of each head, 4 D H I N in the tail; scores 2 mq Nc D; predictor 6 C^2 a "
      "token (in-projection, shared between windows) and 16 w^2 C + 4 w C^2 + 2 (4 C + 1) dh + 2 dh a gap. "
      "v2: 4 D a pair of each head's causal blocks, scores 2 B H NQ NK D.";
  ParamSpec budget = spec::integer("budget", 2048, -1, "Nb, tokens listed for a block of queries; -1: all");
  ParamSpec tail =
      spec::integer("instruction_tokens", 64, 0,
                    "I, last rows that attend densely, behind a forced boundary; null or 0: none");
  tail.nullable = true;
  m.params = {
      spec::integer("block_size", 64, 1, "b, rows of a block of queries"),
      budget,
      spec::choice("boundary_mode", {"predictor", "ratio", "fixed"},
                   "where chunks end: learned scores, the labels they are trained on, or every chunk_size"),
      spec::integer("chunk_size", 32, 1, "tokens of a chunk (fixed)"),
      spec::integer("boundary_window", 4, 1, "w, tokens on either side of a gap"),
      spec::param("theta", ParamSpec::Type::number, 1.1, "a boundary's score is above it"),
      spec::integer("chunk_beta", 8, 1, "beta (N / b) boundaries at most"),
      spec::boolean("use_nms", true, "boundaries keep their distance"),
      spec::integer("nms_window", 8, 0, "they differ by more than this"),
      spec::choice("pooling", {"avgpool_norm", "avgpool", "maxpool"},
                   "sums over the root of the length, means, or (queries only) maxima"),
      tail,
      spec::integer("global_tokens", 128, 0, "first tokens of every list"),
      spec::integer("local_tokens", 128, 0, "newest tokens of every list"),
      spec::integer("sliding_window", Value(), 1, "W, local layers: keys at r - W or later"),
      spec::integer("predictor_hidden", 256, 1, "dh, width of the predictor's hidden layer"),
      spec::integer("predictor_heads", 8, 1, "heads of its encoder; divides C = Hkv D"),
      spec::boolean("predictor_window_pool", false, "gated means of the halves instead of plain ones"),
      spec::boolean("share_boundaries", true, "model level: layers reuse the first one's boundaries"),
      spec::boolean("share_masks", false, "model level: layers of a kind reuse one list"),
      scale_param(),
      spec::integer("loop_times", 4, 1, "groups of query blocks in the original code; no effect here"),
      spec::choice("variant", {"v1", "v2_topk", "v2_a_shape"},
                   "v1: all of the above; v2: fixed blocks chosen by each head, by score alone, or with the "
                   "first and the newest block forced"),
      spec::param("density", ParamSpec::Type::number, 0.25, 0.0, 1.0, "v2: share of the key blocks listed"),
      spec::integer("v2_query_block", 128, 1, "v2: rows of a block of queries"),
      spec::integer("v2_key_block", 32, 1, "v2: keys of a block")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"prefill latency", "Gemma-2-2B, 8k, budget 2k, b 256, one 24 GB GPU", "dense 1.65 s",
                "1.19 s (1.39x)", "repository legacy/README.md"},
               {"prefill peak memory", "same", "10.72 GB", "6.91 GB (-35.5 %)", "same"},
               {"16k / 32k", "same", "dense out of memory", "2.18 s, 9.69 GB / 4.51 s, 16.99 GB", "same"},
               {"prefill latency range", "Gemma-2, NIAH and LongBench", "dense (eager)", "-20 to -60 %",
                "arXiv v1 abstract"},
               {"accuracy", "same budget", "block-sparse attention", "+6 to +18 % relative", "abstract"},
               {"kernel, v2", "Llama-3.1-8B shapes, 128k", "dense FlashAttention-2", "up to 10x prefill",
                "v2 abstract"}};
  m.notes = {
      "Equal scores: lower index first; the last chunk that fits gives its first tokens (chosen).",
      "A list is a set: each key counts once, keys that no row of the block sees are left out, and a row "
      "that "
      "sees no key is 0 (chosen). The output `lists` keeps the original order with padding.",
      "Nothing above theta: the forced boundary alone (chosen; the original code fails).",
      "The factors that a block of queries has in common (1 / b, root of its length) change no order and are "
      "left out where they are constant.",
      "ratio follows the original code: rows from t + w on, and 0 for gaps with fewer than 2 w tokens on "
      "either side.",
      "One query is a decode step: the same rule with b = 1 and I = 0 (chosen; the original code decodes "
      "densely).",
      "Predictor biases of the attention start at 0, as in a standard multi-head layer; its weights are f32.",
      "v2_topk ranks before the causal cut: a row whose blocks all lie ahead is 0 (chosen), and early rows "
      "see "
      "less than density. Short last blocks take the mean of their real tokens (chosen; the original code "
      "refuses them). The original code's v2 masks from vertical and slash lines are not offered.",
      "v2 has no tail, window, budget or predictor: of the parameters it takes scale and its own three.",
      "loop_times bounds memory of gathered keys, which a fused kernel does not make; share_* are a model's "
      "schedule around this module."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 300;
  m.example.head_dim = 16;
  m.example.causal = true;
  m.example_params = {{"block_size", 16},     {"budget", 64},           {"theta", 0.0},
                      {"chunk_beta", 2},      {"global_tokens", 8},     {"local_tokens", 16},
                      {"predictor_heads", 4}, {"predictor_hidden", 32}, {"instruction_tokens", 20}};
  return m;
}

const MethodInfo& dhsa_info() {
  static const MethodInfo info = describe();
  return info;
}

void require_prefill_or_decode(const Problem& problem, const HeadsForm& f) {
  if (!problem.causal)
    throw Unsupported("dhsa is causal, and problem.causal is false; the paper has no other mode");
  if (f.queries != 1 && f.keys != f.queries)
    throw Unsupported("dhsa: prefill is self-attention of " + std::to_string(f.queries) +
                      " tokens and decoding has one query; kv_length " + std::to_string(f.keys) +
                      " is neither");
}

enum class Mode : uint8_t { predictor, ratio, fixed };

class DhsaInstance final : public BlockSelectionInstance {
 public:
  DhsaInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, dhsa_info(), problem, Layout::token_major,
                               scale_of(params, problem.head_dim)) {
    const HeadsForm& f = form_;
    require_prefill_or_decode(problem, f);
    const bool decode = f.queries == 1;
    block_ = decode ? 1 : params.integer("block_size");
    tail_ = decode || params.is_null("instruction_tokens")
                ? 0
                : std::min(params.integer("instruction_tokens"), f.queries);
    window_ = params.is_null("sliding_window") ? 0 : params.integer("sliding_window");
    recent_ = params.integer("local_tokens"), leading_ = params.integer("global_tokens");
    const int64_t budget = params.integer("budget");
    if (budget == 0 || (budget > 0 && budget < recent_ + leading_))
      throw UsageError("dhsa.budget: " + std::to_string(budget) + " tokens do not hold global_tokens " +
                       std::to_string(leading_) + " and local_tokens " + std::to_string(recent_));
    budget_ = budget < 0 ? f.keys : std::min(budget, f.keys);
    if (window_ > 0) budget_ = std::min(budget_, window_);
    first_ = f.keys - f.queries, sparse_rows_ = f.queries - tail_;
    blocks_ = ceil_div(sparse_rows_, block_);
    const std::string& mode = params.choice("boundary_mode");
    mode_ = mode == "predictor" ? Mode::predictor : mode == "ratio" ? Mode::ratio : Mode::fixed;
    pooling_ = params.choice("pooling");
    w_ = params.integer("boundary_window");
    if (mode_ == Mode::ratio && decode && f.keys > 1)
      throw Unsupported("dhsa: ratio needs the attention of all rows, and a decode step has one");
    if (mode_ == Mode::ratio && window_ > 0 && 2 * w_ > kLabelRows)
      throw Unsupported("dhsa: ratio of local layers looks at " + std::to_string(kLabelRows) +
                        " rows, and boundary_window " + std::to_string(w_) + " needs twice its width");

    input_specs_ = {spec("q", f.heads, f.queries, "queries [B, N, H, D]"),
                    spec("k", f.kv_heads, f.keys, "keys [B, N, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, N, Hkv, D]")};
    if (mode_ == Mode::fixed) {
      chunk_ = params.integer("chunk_size");
      chunks_ = ceil_div(f.keys, chunk_);
    } else {
      theta_ = static_cast<float>(params.number("theta"));
      spacing_ = params.boolean("use_nms") ? params.integer("nms_window") : 0;
      const int64_t beta = std::min(params.integer("chunk_beta"), f.keys);
      limit_ = beta * (f.keys / block_);
      // The cap is looked at after a choice; gaps that keep their distance are few.
      const int64_t most = std::min(std::max<int64_t>(limit_, tail_ > 0 ? 2 : 1),
                                    spacing_ >= f.keys ? 1 : ceil_div(f.keys, spacing_ + 1));
      chunks_ = std::min(most + 1, f.keys);
      gap_scores_ = new_output(ctx, "gap_scores", DType::f32, {f.batch, f.keys});
    }
    if (mode_ == Mode::predictor) make_predictor(params);
    bounds_ = ctx.allocate(DType::i32, {f.batch, chunks_ + 1}, MemoryClass::output);
    chunk_count_ = ctx.allocate(DType::i32, {f.batch});
    if (f.batch * blocks_ * budget_ > INT32_MAX)
      throw Unsupported("dhsa: " + std::to_string(f.batch * blocks_) + " token lists of " +
                        std::to_string(budget_) +
                        " entries exceed the 2^31 - 1 of a mask; use larger query blocks");
    lists_args_.tokens = new_output(ctx, "lists", DType::i32, {f.batch, blocks_, budget_});

    mask_.rule.causal = true, mask_.rule.offset = first_;
    if (window_ > 0) mask_.rule.band = true, mask_.rule.left = window_;
    tail_mask_.rule = mask_.rule;
    tail_mask_.rule.offset = first_ + sparse_rows_;
    mask_.block_q = block_;
  }

  void prepare(Context& ctx) override {
    const HeadsForm& f = form_;
    query_ = heads_first(input("q")), key_ = heads_first(input("k")), value_ = heads_first(input("v"));
    BlockList& l = lists_args_.lists;
    l.begin = ctx.allocate(DType::i32, {f.batch, 1, blocks_});
    l.count = ctx.allocate(DType::i32, {f.batch, 1, blocks_});
    l.index = ctx.allocate(DType::i32, {f.batch * blocks_ * budget_});
    mask_.gather = l;
    if (mode_ == Mode::fixed) {
      std::vector<int32_t> bounds;
      for (int64_t c = 0; c < chunks_; ++c) bounds.push_back(static_cast<int32_t>(c * chunk_));
      bounds.push_back(static_cast<int32_t>(f.keys));
      plan_ = upload(ctx, {1, chunks_ + 1}, bounds);
    } else {
      plan_ = upload(ctx, {1, 1}, std::vector<float>{kNoWindow});
      ends_ = upload(ctx, {1, 1}, std::vector<uint8_t>{1});
    }
  }

  void run(Context& ctx) override {
    if (mode_ == Mode::fixed) {
      const auto stage = ctx.stage("boundaries");
      transpose_copy(ctx, {plan_.strided(bounds_.shape(), {0, 1}), bounds_});
    } else {
      {
        const auto stage = ctx.stage("predict");
        if (mode_ == Mode::predictor)
          predict(ctx);
        else
          label(ctx);
      }
      const auto stage = ctx.stage("boundaries");
      find_boundaries(ctx);
    }
    if (blocks_ > 0) select(ctx);
    const auto stage = ctx.stage("attend");
    if (blocks_ > 0) attention(ctx, call());
    if (tail_ > 0) attention(ctx, tail_call());
    ran_ = true;
  }

  TensorMap outputs() const override {
    TensorMap o = outputs_;
    o["boundaries"] = bounds_;
    if (!ran_ || mode_ == Mode::fixed) return o;
    // As wide as the sample with the most chunks.
    const Tensor count = on_host(*ctx_, chunk_count_), bounds = on_host(*ctx_, bounds_);
    const int64_t batch = form_.batch, full = chunks_ + 1;
    int64_t width = 1;
    for (int64_t b = 0; b < batch; ++b) width = std::max<int64_t>(width, count.data<int32_t>()[b]);
    std::vector<int32_t> narrow;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 0; c < width; ++c) narrow.push_back(bounds.data<int32_t>()[b * full + c]);
    o["boundaries"] = upload(*ctx_, {batch, width}, narrow);
    return o;
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim, b = f.batch, n = f.keys;
    ClosedForm form;
    form.data_dependent = true;
    CostSheet s;
    if (mode_ == Mode::fixed) {
      s.bytes(4 * b * (chunks_ + 1), 4 * b * (chunks_ + 1));
    } else {
      if (mode_ == Mode::predictor) {
        form.parameters = predictor_parameters();
        charge_predictor(s);
      } else {
        ElementRule rule = mask_.rule;
        rule.offset = 0;
        const int64_t pairs = b * f.heads * band_pair_count(rule, n, n);
        attend(s, n, pairs);
        s.bytes(0, 4 * b * f.heads * n);  // lse
        s.c.matmul += 2 * d * pairs, s.c.special += pairs, s.c.elementwise += 2 * pairs + 4 * w_ * b * n;
        s.bytes(b * (f.heads + f.kv_heads) * n * d * element + 4 * b * f.heads * n, 4 * b * n);
      }
      s.work(b * n * bits(n), 4 * b * n, 4 * b * n);  // order of the gaps
      s.work(b * n, 8 * b * n, b * n);                // choice
      s.bytes(2 * b, 2 * b);                          // both ends
      s.bytes(b * (n + 1), 4 * b * (chunks_ + 2));    // their places
    }
    if (blocks_ > 0) {
      s.work(b * f.heads * f.queries * d, b * f.heads * f.queries * d * element, 4 * b * f.queries * d);
      s.work(b * f.kv_heads * n * d, b * f.kv_heads * n * d * element, 4 * b * n * d);
      s.pool(b * sparse_rows_ * d, 4, b * blocks_ * d);
      if (rectified()) s.c.special += b * d, s.bytes(4 * b * d, 4 * b * d);
      s.pool(b * n * d, 4, b * chunks_ * d);
      s.bytes(4 * b * (chunks_ + 1), 0);
      s.gemm(b, blocks_, chunks_, d);
      const int64_t scores = b * blocks_ * chunks_;
      s.work(scores * bits(chunks_), 4 * scores, 4 * scores);
      s.bytes(4 * scores + 4 * b * (chunks_ + 1), 4 * b * blocks_ * (budget_ + 2));
      // Listed tokens; before the first run as many as the budget holds.
      int64_t pairs = 0, entries = 0;
      if (ran_) {
        const Tensor count = on_host(*ctx_, lists_args_.lists.count);
        for (int64_t i = 0; i < count.numel(); ++i) {
          const int64_t m = i % blocks_, listed = count.data<int32_t>()[i];
          pairs += listed * (std::min(sparse_rows_, (m + 1) * block_) - m * block_);
          entries += listed;
        }
      } else {
        pairs = b * sparse_rows_ * budget_;
      }
      attend(s, sparse_rows_, f.heads * pairs);
      s.bytes(4 * entries + 8 * b * blocks_, 0);
    }
    if (tail_ > 0) attend(s, tail_, b * f.heads * band_pair_count(tail_mask_.rule, tail_, n));
    form.cost = s.c;
    return form;
  }

  std::optional<PairSet> pairs() const override {
    ElementRule rule = mask_.rule;
    if (!ran_) return rule_pairs(rule, form_.batch, form_.heads, form_.queries, form_.keys);
    PairSet set;
    set.batch = form_.batch, set.heads = form_.heads;
    set.queries = form_.queries, set.tokens = form_.keys;
    set.same_for_all_batches = form_.batch == 1;
    Tensor index, count;
    if (blocks_ > 0)
      index = on_host(*ctx_, lists_args_.lists.index), count = on_host(*ctx_, lists_args_.lists.count);
    set.row = [=, form = form_, blocks = blocks_, block = block_, sparse = sparse_rows_, budget = budget_](
                  int64_t b, int64_t, int64_t i, Intervals& out) {
      Intervals band;
      band_intervals(rule, i, form.queries, form.keys, band);
      out.clear();
      if (band.empty()) return;
      if (i >= sparse) {
        out = band;
        return;
      }
      const int64_t at = b * blocks + i / block;
      const int32_t* token = index.data<int32_t>() + at * budget;
      for (int32_t e = 0; e < count.data<int32_t>()[at]; ++e) {
        if (token[e] < band.front().begin || token[e] >= band.back().end) continue;
        if (!out.empty() && out.back().end == token[e])
          ++out.back().end;
        else
          out.push_back({token[e], token[e] + 1});
      }
    };
    return set;
  }
  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    out.clear();
    std::vector<float> part;
    if (q_begin < sparse_rows_)
      attention_rows(ctx, call(), b, h, q_begin, std::min(q_end, sparse_rows_), out);
    if (q_end > sparse_rows_) {
      attention_rows(ctx, tail_call(), b, h, std::max<int64_t>(0, q_begin - sparse_rows_),
                     q_end - sparse_rows_, part);
      out.insert(out.end(), part.begin(), part.end());
    }
    return true;
  }
  int64_t computed_pairs(Context& ctx) override {
    return (blocks_ > 0 ? visited_pairs(ctx, call()) : 0) + (tail_ > 0 ? visited_pairs(ctx, tail_call()) : 0);
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    if (tail_ == 0) return attention_row_stats(ctx, call());
    if (blocks_ == 0) return attention_row_stats(ctx, tail_call());
    return std::nullopt;
  }

 private:
  AttentionArgs call() const override {
    AttentionArgs a = BlockSelectionInstance::call();
    a.q = a.q.slice(2, 0, sparse_rows_), a.o = a.o.slice(2, 0, sparse_rows_);
    return a;
  }
  AttentionArgs tail_call() const {
    AttentionArgs a = BlockSelectionInstance::call();
    a.q = a.q.slice(2, sparse_rows_, form_.queries), a.o = a.o.slice(2, sparse_rows_, form_.queries);
    a.mask = &tail_mask_;
    return a;
  }
  /// Charge of fused attention of `rows` rows of every head.
  void attend(CostSheet& s, int64_t rows, int64_t pairs) const {
    const HeadsForm& f = form_;
    const int64_t element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim;
    s.c.matmul += 4 * d * pairs, s.c.elementwise += 4 * pairs, s.c.special += pairs;
    s.bytes((f.batch * f.heads * rows + 2 * std::min(f.batch * f.kv_heads * f.keys, pairs)) * d * element,
            f.batch * f.heads * rows * d * element);
  }
  static int64_t bits(int64_t n) {
    int64_t k = 0;
    while ((int64_t{1} << k) < n) ++k;
    return k;
  }
  /// The last block's maximum also meets the zeros that pad it.
  bool rectified() const { return pooling_ == "maxpool" && sparse_rows_ % block_ != 0; }

  // ---- boundaries -----------------------------------------------------------------------------------------

  int64_t width() const { return form_.kv_heads * form_.head_dim; }
  int64_t windows() const { return std::max<int64_t>(0, form_.keys - 2 * w_ + 1); }
  int64_t segment() const {
    return std::clamp<int64_t>(kSegmentElements / (2 * w_ * width()), 1, std::max<int64_t>(1, windows()));
  }

  void make_predictor(const Params& params) {
    const int64_t c = width();
    hidden_ = params.integer("predictor_hidden"), encoder_heads_ = params.integer("predictor_heads");
    gated_ = params.boolean("predictor_window_pool");
    if (c % encoder_heads_ != 0)
      throw UsageError("dhsa.predictor_heads: " + std::to_string(encoder_heads_) +
                       " does not divide the width " + std::to_string(c) + " of a token's keys");
    const auto f32 = DType::f32;
    const auto within = [](double fan_in) {
      return Init::uniform(-1 / std::sqrt(fan_in), 1 / std::sqrt(fan_in));
    };
    const double xavier = std::sqrt(6.0 / static_cast<double>(4 * c)), fan = static_cast<double>(c),
                 fused = static_cast<double>(4 * c + 1), hidden = static_cast<double>(hidden_);
    weight_specs_ = {
        {"in_proj_weight", {3 * c, c}, f32, Init::uniform(-xavier, xavier), false, "encoder, q | k | v"},
        {"in_proj_bias", {3 * c}, f32, Init::constant(0), false, "encoder"},
        {"out_proj_weight", {c, c}, f32, within(fan), false, "encoder"},
        {"out_proj_bias", {c}, f32, Init::constant(0), false, "encoder"},
        {"norm_weight", {c}, f32, Init::constant(1), false, "gain behind the encoder"},
        {"norm_bias", {c}, f32, Init::constant(0), false, "offset behind the encoder"},
        {"mlp0_weight", {hidden_, 4 * c + 1}, f32, within(fused), false, "hidden layer"},
        {"mlp0_bias", {hidden_}, f32, within(fused), false, "hidden layer"},
        {"mlp1_weight", {1, hidden_}, f32, within(hidden), false, "score"},
        {"mlp1_bias", {1}, f32, within(hidden), false, "score"}};
    if (gated_)
      weight_specs_.push_back({"pool_gate", {1, c}, f32, within(fan), false, "gate of the pooled halves"});
  }
  int64_t predictor_parameters() const {
    const int64_t c = width();
    return 4 * c * c + 4 * c + 2 * c + (4 * c + 1) * hidden_ + hidden_ + hidden_ + 1 + (gated_ ? c : 0);
  }

  /// Scores of all gaps into gap_scores_. The in-projection is shared between the windows of a token.
  void predict(Context& ctx) {
    const int64_t b = form_.batch, n = form_.keys, c = width(), gaps = windows();
    const auto f32 = DType::f32;
    const auto no_window = [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      const Tensor y = gap_scores_.slice(1, begin, end);
      transpose_copy(ctx, {plan_.strided(y.shape(), {0, 0}), y});
    };
    if (gaps == 0) return no_window(0, n);
    no_window(0, w_ - 1), no_window(n - w_, n);
    Tensor features = input("k").reshape({b, n, c});
    if (dtype_ != f32) {
      const Tensor wide = ctx.allocate(f32, {b, n, c});
      cast(ctx, {features, wide});
      features = wide;
    }
    const Tensor projected = ctx.allocate(f32, {b, n, 3 * c});
    linear(ctx, features, weight("in_proj_weight"), weight("in_proj_bias"), projected);
    const int64_t most = segment();
    for (int64_t i = 0; i < b; ++i)
      for (int64_t g = 0; g < gaps; g += most) {
        const int64_t count = std::min(most, gaps - g);
        score_windows(ctx, projected, (i * n + g) * 3 * c, count,
                      gap_scores_.strided({count, 1}, {1, 1}, i * n + w_ - 1 + g));
      }
  }
  /// Windows g, g + 1, ...: their tokens start at element `at` of the projections, one token apart.
  void score_windows(Context& ctx, const Tensor& projected, int64_t at, int64_t count, const Tensor& score) {
    const int64_t c = width(), tokens = 2 * w_, d = c / encoder_heads_, fused = 4 * c + 1;
    const auto f32 = DType::f32;
    const auto part = [&](int64_t which) {
      return projected.strided({count, encoder_heads_, tokens, d}, {3 * c, d, 3 * c, 1}, at + which * c);
    };
    const Tensor mixed = ctx.allocate(f32, {count, tokens, c}), x = ctx.allocate(f32, {count, tokens, c});
    AttentionArgs a;
    a.q = part(0), a.k = part(1), a.v = part(2);
    a.o = mixed.strided({count, encoder_heads_, tokens, d}, {tokens * c, d, c, 1});
    a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
    attention(ctx, a);
    linear(ctx, mixed, weight("out_proj_weight"), weight("out_proj_bias"), x);
    NormArgs norm;
    norm.x = norm.y = x, norm.gain = weight("norm_weight"), norm.offset = weight("norm_bias");
    normalize(ctx, norm);

    const Tensor all = ctx.allocate(f32, {count, fused});
    if (gated_) {
      const Tensor gate = ctx.allocate(f32, {count, 2, 1, w_});
      linear(ctx, x.reshape({count * tokens, c}), weight("pool_gate"), {}, gate.reshape({count * tokens, 1}));
      softmax(ctx, {gate, gate});
      GemmArgs mean;
      mean.a = gate, mean.b = x.reshape({count, 2, w_, c});
      mean.c = all.strided({count, 2, 1, c}, {fused, c, c, 1});
      gemm(ctx, mean);
    } else {
      PoolTokensArgs mean;
      mean.x = x.reshape({count, 1, tokens, c}), mean.block = w_;
      mean.y = all.strided({count, 1, 2, c}, {fused, 2 * c, c, 1});
      pool_tokens(ctx, mean);
    }
    const Tensor left = all.slice(1, 0, c), right = all.slice(1, c, 2 * c),
                 apart = all.slice(1, 2 * c, 3 * c);
    using Op = PointwiseArgs::Op;
    pointwise(ctx, {Op::sub, left, right, apart});
    pointwise(ctx, {Op::abs, apart, {}, apart});
    pointwise(ctx, {Op::mul, left, right, all.slice(1, 3 * c, 4 * c)});
    const Tensor one = ctx.allocate(f32, {count, c}), other = ctx.allocate(f32, {count, c});
    for (const auto& [from, to] : {std::pair{left, one}, {right, other}}) {
      NormArgs unit;
      unit.kind = NormArgs::Kind::l2_norm, unit.eps = 1e-6f;
      unit.x = from, unit.y = to;
      normalize(ctx, unit);
    }
    const Tensor cosine = ctx.allocate(f32, {count});
    reduce(ctx, {ReduceArgs::Op::sum, one, other, cosine, false});
    transpose_copy(ctx, {cosine.reshape({count, 1}), all.slice(1, 4 * c, fused)});
    const Tensor hidden = ctx.allocate(f32, {count, hidden_});
    linear(ctx, all, weight("mlp0_weight"), weight("mlp0_bias"), hidden, Activation::relu);
    linear(ctx, hidden, weight("mlp1_weight"), weight("mlp1_bias"), score);
  }
  void charge_predictor(CostSheet& s) const {
    const int64_t b = form_.batch, n = form_.keys, c = width(), gaps = windows(), tokens = 2 * w_;
    const int64_t ends = gaps == 0 ? n : 2 * w_ - 1;
    s.bytes(4 * b * ends, 4 * b * ends);
    if (gaps == 0) return;
    if (dtype_ != DType::f32) s.bytes(2 * b * n * c, 4 * b * n * c);
    const auto layer = [](CostSheet& to, int64_t rows, int64_t in, int64_t out, bool bias = true) {
      to.gemm(1, rows, out, in);
      if (bias) to.work(rows * out, 4 * out, 0);
    };
    layer(s, b * n, c, 3 * c);
    const int64_t fused = 4 * c + 1, most = segment();
    for (int64_t g = 0; g < gaps; g += most) {
      const int64_t x = std::min(most, gaps - g), pairs = x * encoder_heads_ * tokens * tokens;
      CostSheet one;
      one.c.matmul += 4 * (c / encoder_heads_) * pairs, one.c.special += pairs,
          one.c.elementwise += 4 * pairs;
      one.bytes(3 * 4 * x * tokens * c, 4 * x * tokens * c);
      layer(one, x * tokens, c, c);
      one.c.special += 2 * x * tokens;  // norm
      one.work(5 * x * tokens * c, 4 * (x * tokens * c + 2 * c), 4 * x * tokens * c);
      if (gated_) {
        layer(one, x * tokens, c, 1, false);
        one.softmax(x * tokens);
        one.gemm(2 * x, 1, c, w_);
      } else {
        one.pool(x * tokens * c, 4, 2 * x * c);
      }
      one.work(3 * x * c, 5 * 4 * x * c, 3 * 4 * x * c);  // difference, its size, product
      one.c.special += 4 * x;                             // unit vectors, then the sum of their product
      one.work(10 * x * c, 4 * 4 * x * c, 2 * 4 * x * c + 4 * x);
      one.bytes(4 * x, 4 * x);
      layer(one, x, fused, hidden_);
      one.c.special += x * hidden_;
      layer(one, x, hidden_, 1);
      s.c += one.c * b;
    }
  }

  /// The ratios that the predictor is trained on, from dense attention.
  void label(Context& ctx) {
    const HeadsForm& f = form_;
    AttentionArgs dense = BlockSelectionInstance::call();
    BlockMask all;
    all.rule = mask_.rule, all.rule.offset = 0;
    dense.mask = &all;
    dense.o = ctx.allocate(dtype_, {f.batch, f.heads, f.queries, f.head_dim});
    dense.lse = ctx.allocate(DType::f32, {f.batch, f.heads, f.queries});
    attention(ctx, dense);
    GapRatiosArgs a;
    a.q = query_, a.k = key_, a.lse = dense.lse, a.score = gap_scores_;
    a.w = w_, a.scale = scale_;
    if (window_ > 0) a.window = window_, a.reach = kLabelRows;
    gap_ratios(ctx, a);
  }

  void find_boundaries(Context& ctx) {
    const int64_t b = form_.batch, n = form_.keys;
    const Tensor order = ctx.allocate(DType::i32, {b, n}), flag = ctx.allocate(DType::u8, {b, n + 1});
    ArgsortArgs sort;
    sort.x = gap_scores_, sort.index = order, sort.descending = true;
    argsort(ctx, sort);
    PickSpacedArgs pick;
    pick.score = gap_scores_, pick.order = order, pick.flag = flag.slice(1, 1, n + 1);
    pick.threshold = theta_, pick.spacing = spacing_, pick.limit = limit_;
    if (tail_ > 0) pick.forced = pick.last = std::min(n - tail_, n - 1);
    pick_spaced(ctx, pick);
    for (const int64_t end : {int64_t{0}, n}) {
      const Tensor y = flag.slice(1, end, end + 1);
      transpose_copy(ctx, {ends_.strided(y.shape(), {0, 0}), y});
    }
    compact_flags(ctx, {flag, bounds_, chunk_count_});
  }

  // ---- lists ----------------------------------------------------------------------------------------------

  void select(Context& ctx) {
    const HeadsForm& f = form_;
    const int64_t b = f.batch, d = f.head_dim;
    const auto f32 = DType::f32;
    const Tensor blocks = ctx.allocate(f32, {b, 1, blocks_, d}),
                 chunks = ctx.allocate(f32, {b, 1, chunks_, d});
    {
      const auto stage = ctx.stage("pool");
      const auto mean_of_heads = [&](const Tensor& x) {
        ReduceAxisArgs mean;
        mean.op = ReduceAxisArgs::Op::mean, mean.axis = 2;
        mean.x = x, mean.y = ctx.allocate(f32, {b, x.dim(1), d});
        reduce_axis(ctx, mean);
        return mean.y.reshape({b, 1, x.dim(1), d});
      };
      PoolTokensArgs q;
      q.kind = pooling_ == "maxpool" ? PoolTokensArgs::Kind::max : PoolTokensArgs::Kind::mean;
      if (pooling_ != "maxpool") q.divisor = PoolTokensArgs::Divisor::whole;
      q.x = mean_of_heads(input("q")).slice(2, 0, sparse_rows_), q.y = blocks, q.block = block_;
      pool_tokens(ctx, q);
      if (rectified()) {
        const Tensor last = blocks.slice(2, blocks_ - 1, blocks_);
        pointwise(ctx, {PointwiseArgs::Op::relu, last, {}, last});
      }
      PoolTokensArgs k;
      if (pooling_ == "avgpool_norm") k.divisor = PoolTokensArgs::Divisor::root;
      k.x = mean_of_heads(input("k")), k.y = chunks, k.bounds = bounds_;
      pool_tokens(ctx, k);
    }
    const Tensor scores = ctx.allocate(f32, {b, blocks_, chunks_}),
                 order = ctx.allocate(DType::i32, scores.shape());
    {
      const auto stage = ctx.stage("score");
      GemmArgs g;
      g.a = blocks.reshape({b, blocks_, d}), g.b = chunks.reshape({b, chunks_, d}), g.b_transposed = true;
      g.c = scores;
      gemm(ctx, g);
    }
    const auto stage = ctx.stage("select");
    ArgsortArgs sort;
    sort.x = scores, sort.index = order, sort.descending = true;
    argsort(ctx, sort);
    ChunkListsArgs& l = lists_args_;
    l.order = order, l.bounds = bounds_;
    l.n = f.keys, l.first = first_, l.rows = sparse_rows_, l.block_q = block_;
    l.window = window_, l.recent = recent_, l.leading = leading_;
    chunk_lists(ctx, l);
  }

  Mode mode_ = Mode::predictor;
  std::string pooling_;
  int64_t block_ = 1, tail_ = 0, window_ = 0, recent_ = 0, leading_ = 0, budget_ = 0;
  int64_t first_ = 0, sparse_rows_ = 0, blocks_ = 0, chunks_ = 0, chunk_ = 0, w_ = 1;
  int64_t spacing_ = 0, limit_ = 0, hidden_ = 0, encoder_heads_ = 1;
  bool gated_ = false;
  float theta_ = 0;
  Tensor gap_scores_, bounds_, chunk_count_, plan_, ends_;
  ChunkListsArgs lists_args_;
  BlockMask tail_mask_;
};

/// The second version: fixed blocks, scored by means and chosen by each head.
class DhsaBlocksInstance final : public BlockSelectionInstance {
 public:
  DhsaBlocksInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, dhsa_info(), problem, Layout::token_major,
                               scale_of(params, problem.head_dim)),
        a_shape_(params.choice("variant") == "v2_a_shape") {
    const HeadsForm& f = form_;
    require_prefill_or_decode(problem, f);
    input_specs_ = {spec("q", f.heads, f.queries, "queries [B, N, H, D]"),
                    spec("k", f.kv_heads, f.keys, "keys [B, N, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, N, Hkv, D]")};
    first_ = f.keys - f.queries;
    make_lists(ctx, f.queries == 1 ? 1 : params.integer("v2_query_block"), params.integer("v2_key_block"));
    lists_.rule.causal = true, lists_.rule.offset = first_;
    mask_.rule = lists_.rule;
    best_ = std::max<int64_t>(
        1, static_cast<int64_t>(params.number("density") * static_cast<double>(key_blocks())));
  }

  void prepare(Context& ctx) override {
    const HeadsForm& f = form_;
    const int64_t nq = query_blocks(), nk = key_blocks();
    query_ = heads_first(input("q")), key_ = heads_first(input("k")), value_ = heads_first(input("v"));
    allocate_block_lists(ctx, lists_, f.batch, f.heads);
    mask_ = block_mask_of(lists_);
    const Shape map{f.batch, f.heads, nq, nk};
    if (!a_shape_) {
      lists_.bitmap = ctx.allocate(DType::u8, map);
      return;
    }
    // Column 0 is forced in every row, so that the choice is between it and the newest block.
    lists_.bitmap = upload(ctx, map, std::vector<uint8_t>(static_cast<size_t>(map.numel()), 0));
    std::vector<uint8_t> forced(static_cast<size_t>(nq * nk), 0);
    std::vector<int32_t> between, wanted;
    for (int64_t r = 0; r < nq; ++r) {
      const int64_t newest = std::min((first_ + (r + 1) * lists_.block_q - 1) / lists_.block_k, nk - 1);
      const bool all = newest + 1 <= best_;
      for (int64_t c = 0; c <= newest; ++c)
        if (all || c == 0 || c == newest) forced[static_cast<size_t>(r * nk + c)] = 1;
      between.push_back(static_cast<int32_t>(std::max<int64_t>(0, newest - 1)));
      wanted.push_back(all ? 0 : static_cast<int32_t>(std::max<int64_t>(0, best_ - 2)));
    }
    lists_.also = upload(ctx, {nq, nk}, forced);
    between_ = upload(ctx, {nq}, between), wanted_ = upload(ctx, {nq}, wanted);
  }

  void run(Context& ctx) override {
    const HeadsForm& f = form_;
    const int64_t nq = query_blocks(), nk = key_blocks(), d = f.head_dim;
    const auto f32 = DType::f32;
    Tensor queries, keys;
    {
      const auto stage = ctx.stage("pool");
      const auto means = [&](const Tensor& x, int64_t block, int64_t blocks) {
        PoolTokensArgs mean;
        mean.x = x, mean.block = block;
        mean.y = ctx.allocate(f32, {f.batch, x.dim(1), blocks, d});
        pool_tokens(ctx, mean);
        return mean.y;
      };
      queries = means(query_, lists_.block_q, nq), keys = means(key_, lists_.block_k, nk);
    }
    const Tensor scores = ctx.allocate(f32, {f.batch, f.heads, nq, nk});
    {
      const auto stage = ctx.stage("score");
      GemmArgs g;
      g.a = queries.reshape({f.batch, f.kv_heads, f.group(), nq, d});
      g.b = repeated(keys, 2, f.group()), g.b_transposed = true;
      g.c = scores.reshape({f.batch, f.kv_heads, f.group(), nq, nk});
      gemm(ctx, g);
    }
    {
      const auto stage = ctx.stage("select");
      TopKArgs best;
      best.k = best_;
      if (!a_shape_) {
        best.x = scores, best.flag = lists_.bitmap;
        top_k(ctx, best);
      } else if (nk > 1) {
        const Shape rows{f.batch, f.heads, nq}, same{0, 0, 1};
        best.x = scores.slice(3, 1, nk), best.flag = lists_.bitmap.slice(3, 1, nk);
        best.visible.limit = between_.strided(rows, same), best.count = wanted_.strided(rows, same);
        top_k(ctx, best);
      }
      build_block_lists(ctx, lists_);
    }
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
    ran_ = true;
  }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t nq = query_blocks(), nk = key_blocks(), d = f.head_dim, groups = f.batch * f.heads;
    const auto element = static_cast<int64_t>(size_of(dtype_));
    ClosedForm form;
    form.data_dependent = true;
    CostSheet s;
    s.c = attend_cost();
    s.pool(groups * f.queries * d, element, groups * nq * d);
    s.pool(f.batch * f.kv_heads * f.keys * d, element, f.batch * f.kv_heads * nk * d);
    s.gemm(groups, nq, nk, d);
    const int64_t map = groups * nq * nk, ranked = groups * nq * (a_shape_ ? nk - 1 : nk);
    s.work(ranked, 4 * ranked + (a_shape_ && nk > 1 ? 8 * groups * nq : 0), ranked);
    s.bytes(map + (a_shape_ ? nq * nk : 0), 4 * map + 16 * groups * nq);  // lists
    form.cost = s.c;
    return form;
  }

 private:
  bool a_shape_;
  int64_t first_ = 0, best_ = 1;
  Tensor between_, wanted_;  ///< a row's middle blocks, and how many of them it takes (a_shape)
};

class Dhsa final : public Method {
 public:
  const MethodInfo& info() const override { return dhsa_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    if (params.choice("variant") != "v1") return std::make_unique<DhsaBlocksInstance>(ctx, problem, params);
    return std::make_unique<DhsaInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(Dhsa);

}  // namespace
}  // namespace attnbench
