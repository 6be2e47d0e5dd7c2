// Sliding-window softmax attention with optional sinks: the simplest static sparsity.
#include <algorithm>

#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "sliding_window";
  m.title = "Sliding-window attention with sinks";
  m.paper =
      "Longformer: The Long-Document Transformer, 2020 (the window); Efficient Streaming Language Models "
      "with "
      "Attention Sinks, ICLR 2024 (the sinks)";
  m.arxiv = "2004.05150";
  m.family = "window (softmax)";
  m.summary =
      "Each query attends to a band of keys around its own position and, if asked, to the first few keys of "
      "the "
      "sequence. Work and reach grow linearly: after d layers a token has seen d windows.";
  m.formula =
      "c = i + (M - N)\n"
      "query i sees key j when c - window <= j <= c + right, or j < sinks; and j <= c when causal\n"
      "o_i = sum_j softmax_j(scale * q_i . k_j) v_j over the visible keys";
  m.cost =
      "P pairs a head: sum_i |visible keys of i|, about N (window + right + 1 + sinks). Matmul 4 P D B H, "
      "special "
      "P B H, elementwise 4 P B H; q, k, v read once, o written once. With block_size > 0 whole blocks are "
      "visited and P counts them.";
  ParamSpec right = spec::integer(
      "right", Value(), 0,
      "keys to the right of the query, its own not counted; null: 0 when causal, else equal to window");
  right.nullable = true;
  m.params = {
      spec::integer("window", 256, 0,
                    "keys to the left of the query, its own not counted: FlashAttention's window_size[0]"),
      right,
      spec::integer("sinks", 0, 0, "first keys of the sequence that every query sees (subject to causality)"),
      spec::integer(
          "block_size", 0, 0,
          "0: the engine skips blocks by the rule; else prepare() lists the full and partial blocks of "
          "this many tokens"),
      scale_param()};
  m.kinds = {ProblemKind::sequence};
  m.notes = {
      "The window counts as in FlashAttention: `window: W - 1` gives the W keys of Mistral's window of W.",
      "With M != N the ends are aligned: the last query stands at the last key (chosen).",
      "The default window of 256 is chosen; no paper fixes one."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 700;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

class SlidingWindowInstance final : public HeadsInstance {
 public:
  SlidingWindowInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params,
                        double scale)
      : HeadsInstance(ctx, info, problem, scale), block_size_(params.integer("block_size")) {
    ElementRule& rule = mask_.rule;
    rule.band = true;
    rule.left = params.integer("window");
    rule.right = !params.is_null("right") ? params.integer("right") : problem.causal ? 0 : rule.left;
    rule.sinks = params.integer("sinks");
    masked_ = true;
    if (problem.causal && rule.right > 0)
      throw UsageError("sliding_window.right: " + std::to_string(rule.right) +
                       " keys to the right contradict problem.causal");
    // A window beyond both sequences means everything; cut, it cannot overflow.
    const int64_t most = form_.queries + form_.keys;
    rule.left = std::min(rule.left, most);
    rule.right = std::min(rule.right, most);
    rule.sinks = std::min(rule.sinks, form_.keys);
  }

  void prepare(Context& ctx) override {
    if (block_size_ > 0)
      mask_ = make_block_mask(ctx, mask_.rule, form_.queries, form_.keys, block_size_, block_size_);
  }
  void run(Context& ctx) override {
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
  }

  ClosedForm cost() const override {
    ClosedForm c;
    if (block_size_ == 0) {
      c.cost = fused_cost(band_pair_count(mask_.rule, form_.queries, form_.keys));
    } else {
      c.cost = fused_cost(listed_pairs());
      c.cost.bytes_read += mask_bytes();
    }
    return c;
  }

 private:
  /// Pairs of the blocks that hold at least one visible pair. Bands and sinks move right by at most one key a
  /// query, so the visible keys of a query block are those of its first and last query and what lies between.
  int64_t listed_pairs() const {
    int64_t pairs = 0;
    each_query_block([&](int64_t rows, const Intervals& blocks) {
      for (const Interval& v : blocks)
        pairs += rows * (std::min(v.end * block_size_, form_.keys) - v.begin * block_size_);
    });
    return pairs;
  }

  int64_t mask_bytes() const {
    // Lists are i32: begin and count of both kinds for each query block, and one entry for each listed block.
    int64_t entries = 0, query_blocks = 0;
    each_query_block([&](int64_t, const Intervals& blocks) {
      ++query_blocks;
      for (const Interval& v : blocks) entries += v.end - v.begin;
    });
    return 4 * (4 * query_blocks + entries);
  }

  /// Calls f(rows, key blocks) for each query block: disjoint ranges of key blocks with a visible pair.
  template <class F>
  void each_query_block(F&& f) const {
    Intervals row, blocks;
    for (int64_t begin = 0; begin < form_.queries; begin += block_size_) {
      const int64_t end = std::min(begin + block_size_, form_.queries);
      blocks.clear();
      for (int64_t i = begin; i < end; ++i) {
        band_intervals(mask_.rule, i, form_.queries, form_.keys, row);
        for (const Interval& v : row)
          blocks.push_back({v.begin / block_size_, (v.end + block_size_ - 1) / block_size_});
      }
      std::sort(blocks.begin(), blocks.end(),
                [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
      Intervals merged;
      for (const Interval& v : blocks) {
        if (!merged.empty() && v.begin <= merged.back().end)
          merged.back().end = std::max(merged.back().end, v.end);
        else
          merged.push_back(v);
      }
      f(end - begin, merged);
    }
  }

  int64_t block_size_;
};

class SlidingWindow final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<SlidingWindowInstance>(ctx, info(), problem, params,
                                                   scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(SlidingWindow);

}  // namespace
}  // namespace attnbench
