// HiP attention: a tree search finds the best small key blocks of every block of queries in logarithmically
// many rounds; attention runs on those tokens, a window and a few sinks.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/select/tree.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_selection.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "hip_attention";
  m.title = "HiP (hierarchically pruned attention)";
  m.paper =
      "A Training-free Sub-quadratic Cost Transformer Model Serving Framework with Hierarchically Pruned "
      "Attention, "
      "ICLR 2025";
  m.arxiv = "2406.09827";
  m.family = "dynamic-sparse (training-free, per-query-block top-k by tree search, softmax)";
  m.summary =
      "For every block of queries the keys are cut into k ranges; each round halves all ranges, scores every "
      "half by one "
      "of its blocks and keeps the best k, until single blocks are left. Attention is exact on their tokens, "
      "on a window "
      "of the newest keys and on the first few. Time grows as T log T, memory linearly.";
  m.formula =
      "block m of queries: t = position of its last row + 1, T = t - window, nb = ceil(T / bk), Kb = ceil(k "
      "/ bk)\n"
      "cells (floor(nb i / Kb), ...); ceil(log2(nb / Kb)) times: split each in halves, keep the Kb best by\n"
      "score = max over sampled rows and keys of q . k in the representative block\n"
      "o_r = sum_j softmax_j(q_r . k_j / sqrt(D)) v_j over j <= p(r) in the kept blocks, j >= t - window, or "
      "j < sinks";
  m.cost =
      "Search 2 D a sampled pair of 2 Kb children in each of ceil(log2(nb / Kb)) rounds; attention 4 D (k + "
      "w + sinks) a "
      "row at most.";
  ParamSpec representative;
  representative.name = "representative";
  representative.type = ParamSpec::Type::choice;
  representative.default_value = "first";
  representative.choices = {"first", "center", "last", "random", "oracle"};
  representative.meaning = "block of a half that is scored; oracle: the best of all";
  ParamSpec causal;
  causal.name = "causal";
  causal.type = ParamSpec::Type::boolean;
  causal.default_value = true;
  causal.from_problem = "causal";
  causal.meaning = "rows see keys up to their own position";
  ParamSpec scale_up = spec::integer("scale_up", 2, 2, "children of a cell");
  scale_up.max = 2;
  m.params = {spec::integer("mask_k", 512, 1, "k, tokens kept for each block of queries"),
              spec::integer("block_size_q", 64, 1, "bq, rows of a block of queries"),
              spec::integer("block_stride_q", 2, 1, "every how many rows are sampled for scores"),
              spec::integer("block_size_k", 2, 1, "bk, tokens of a key block"),
              spec::integer("block_stride_k", 1, 1, "every how many keys of a block are sampled"),
              representative,
              spec::integer("sliding_window", 256, 0, "w, newest keys that are always visible"),
              spec::integer("sink_tokens", 16, 0, "first keys that are always visible"),
              spec::integer("refresh_interval", 8, 1, "decode: steps that share one search"),
              spec::integer("dense_queries", 0, 0, "rows below this position attend densely"),
              spec::integer("dense_layers", 3, 0, "model level: first layers that stay dense"),
              causal,
              scale_up,
              spec::integer("seed", 0, 0, "of representative: random")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {
      {"decode attention, mask refreshed", "Llama-3.1-8B layer, T 8k/16k/32k/64k/128k", "FlashAttention",
       "0.99x, 1.78x, 2.88x, 5.26x, 8.77x", "repository plot_latency_breakdown.py"},
      {"decode attention, mask cached", "same", "FlashAttention", "3.06x, 5.37x, 10.3x, 20.3x, 36.7x",
       "same"},
      {"prefill attention", "chunked 32k, 1K preset, RTX 4090, T 32k/64k/128k/1M", "FlashAttention-2",
       "0.80x, 1.71x, 3.48x, 23.7x", "InfiniteHiP (2502.08910) Table 3"},
      {"mask time, 8k to 128k", "decode", "", "x1.99 for 16x keys", "repository plot data"}};
  m.notes = {
      "The window belongs to the block of queries (the v1.0 form); keys at or behind t - w are no "
      "candidates.",
      "Equal scores keep the lower start, and a half without blocks is never kept (chosen). Scores are f32.",
      "One query is a decode step: refresh_interval runs in a row share one search (step 0 searches), so a "
      "graph cannot "
      "capture it unless the interval is 1. Prefill searches in every run.",
      "dense_layers is a schedule of the model around this module and changes nothing here.",
      "A random representative is drawn by a hash of seed, head, query block, round and start."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 2000;
  m.example.head_dim = 16;
  m.example.causal = true;
  return m;
}

const MethodInfo& hip_info() {
  static const MethodInfo info = describe();
  return info;
}

class HipInstance final : public BlockSelectionInstance {
 public:
  HipInstance(Context& ctx, const Problem& problem, const Params& params)
      : BlockSelectionInstance(ctx, hip_info(), problem, Layout::token_major,
                               1.0 / std::sqrt(static_cast<double>(problem.head_dim))),
        causal_(params.boolean("causal")),
        dense_below_(params.integer("dense_queries")),
        refresh_(problem.tokens() == 1 ? params.integer("refresh_interval") : 1) {
    const HeadsForm& f = form_;
    if (causal_ && f.keys < f.queries)
      throw Unsupported("hip_attention: the last query stands at the last key, so " +
                        std::to_string(f.queries) + " causal queries need as many keys, not " +
                        std::to_string(f.keys));
    search_.block_q = params.integer("block_size_q"), search_.stride_q = params.integer("block_stride_q");
    search_.block_k = params.integer("block_size_k"), search_.stride_k = params.integer("block_stride_k");
    search_.keep = params.integer("mask_k");
    search_.window = std::min(params.integer("sliding_window"), f.keys);
    search_.sinks = std::min(params.integer("sink_tokens"), f.keys);
    search_.causal = causal_;
    search_.seed = static_cast<uint32_t>(params.integer("seed"));
    using R = TreeSearchArgs::Representative;
    const std::string& word = params.choice("representative");
    search_.representative = word == "first"    ? R::first
                             : word == "center" ? R::center
                             : word == "last"   ? R::last
                             : word == "random" ? R::random
                                                : R::oracle;
    const auto at_most = [](const char* name, int64_t value, const char* than, int64_t limit) {
      if (value > limit)
        throw UsageError("hip_attention." + std::string(name) + ": " + std::to_string(value) + " is above " +
                         than + " " + std::to_string(limit));
    };
    at_most("block_stride_q", search_.stride_q, "block_size_q", search_.block_q);
    at_most("block_stride_k", search_.stride_k, "block_size_k", search_.block_k);
    at_most("block_size_k", search_.block_k, "mask_k", search_.keep);
    input_specs_ = {spec("q", f.heads, f.queries, "queries [B, Tq, H, D]"),
                    spec("k", f.kv_heads, f.keys, "keys [B, Tk, Hkv, D]"),
                    spec("v", f.kv_heads, f.keys, "values [B, Tk, Hkv, D]")};
    mask_.rule.causal = causal_;
    rows_ = (f.queries + search_.block_q - 1) / search_.block_q;
    cells_ = (search_.keep + search_.block_k - 1) / search_.block_k;
    search_.selected = new_output(ctx, "selected", DType::i32, {f.batch, f.heads, rows_, cells_});
    search_.count = new_output(ctx, "selected_count", DType::i32, {f.batch, f.heads, rows_});
  }

  void prepare(Context& ctx) override {
    const HeadsForm& f = form_;
    query_ = heads_first(input("q")), key_ = heads_first(input("k")), value_ = heads_first(input("v"));
    search_.q = query_, search_.k = key_;
    const int64_t lists = f.batch * f.heads * rows_,
                  entries = cells_ * search_.block_k + search_.window + search_.sinks;
    if (lists * entries > INT32_MAX)
      throw Unsupported("hip_attention: " + std::to_string(lists) + " token lists of " +
                        std::to_string(entries) +
                        " entries exceed the 2^31 - 1 of a mask; use larger query blocks");
    search_.lists.begin = ctx.allocate(DType::i32, {f.batch, f.heads, rows_});
    search_.lists.count = ctx.allocate(DType::i32, {f.batch, f.heads, rows_});
    search_.lists.index = ctx.allocate(DType::i32, {lists * entries});
    mask_.block_q = search_.block_q;
    mask_.gather = search_.lists;
    step_ = 0;
  }

  void run(Context& ctx) override {
    {
      const auto stage = ctx.stage("select");
      // The lists are kept with the mask: the newest key of an instance stands still, and so does the window.
      if (step_++ % refresh_ == 0) tree_search(ctx, search_);
    }
    const auto stage = ctx.stage("attend");
    attention(ctx, call());
    if (dense_rows() > 0) attention(ctx, dense_call());
    ran_ = true;
  }
  bool capturable() const override { return refresh_ == 1; }

  ClosedForm cost() const override {
    const HeadsForm& f = form_;
    const int64_t groups = f.batch * f.heads, element = static_cast<int64_t>(size_of(dtype_)), d = f.head_dim;
    ClosedForm c;
    c.data_dependent = true;
    TreeSearchArgs sizes = search_;
    CostSheet s;
    // Listed tokens: static but for blocks that sinks or the window cut.
    int64_t pairs = 0, entries = 0;
    if (ran_) {
      const Tensor count = on_host(*ctx_, search_.lists.count);
      for (int64_t i = 0; i < count.numel(); ++i) {
        const int64_t r = i % rows_, listed = count.data<int32_t>()[i];
        pairs += listed * (std::min(f.queries, (r + 1) * search_.block_q) - r * search_.block_q);
        entries += listed;
      }
    } else {
      pairs = groups * f.queries * std::min(f.keys, search_.keep + search_.window + search_.sinks);
    }
    const auto attend = [&](int64_t rows, int64_t all) {
      s.c.matmul += 4 * d * all, s.c.elementwise += 4 * all, s.c.special += all;
      s.bytes((groups * rows + 2 * std::min(f.batch * f.kv_heads * f.keys, all)) * d * element,
              groups * rows * d * element);
    };
    attend(f.queries, pairs);
    s.bytes(4 * (entries + 2 * groups * rows_), 0);
    if (dense_rows() > 0) {
      ElementRule rule = dense_rule();
      attend(dense_rows(), groups * band_pair_count(rule, dense_rows(), f.keys));
    }
    if (!search_.q) {
      // Before prepare() the shapes stand for the tensors.
      sizes.q = heads_first(out_);
      sizes.k = Tensor::borrow(DeviceKind::cpu, dtype_, {f.batch, f.kv_heads, f.keys, d}, nullptr);
    }
    const int64_t dots = groups * tree_search_dots(sizes);
    s.c.matmul += 2 * d * dots;
    s.bytes((groups * f.queries + std::min(f.batch * f.kv_heads * f.keys, dots)) * d * element,
            4 * groups * rows_ * (cells_ + 1));
    s.bytes(4 * groups * rows_ * (cells_ + 1), 8 * groups * rows_);
    c.cost = s.c;
    return c;
  }

  std::optional<PairSet> pairs() const override {
    if (!ran_) return rule_pairs(mask_.rule, form_.batch, form_.heads, form_.queries, form_.keys);
    PairSet set;
    set.batch = form_.batch, set.heads = form_.heads;
    set.queries = form_.queries, set.tokens = form_.keys;
    set.same_for_all_batches = form_.batch == 1;
    const Tensor index = on_host(*ctx_, search_.lists.index), begin = on_host(*ctx_, search_.lists.begin),
                 count = on_host(*ctx_, search_.lists.count);
    set.row = [=, heads = form_.heads, rows = rows_, block = search_.block_q,
               shift = form_.keys - form_.queries, causal = causal_, keys = form_.keys,
               dense = dense_rows()](int64_t b, int64_t h, int64_t i, Intervals& out) {
      out.clear();
      const int64_t end = causal ? i + shift + 1 : keys;
      if (i < dense) return out.push_back({0, end});
      const int64_t at = (b * heads + h) * rows + i / block;
      const int32_t* token = index.data<int32_t>() + begin.data<int32_t>()[at];
      for (int32_t e = 0; e < count.data<int32_t>()[at] && token[e] < end; ++e) {
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
    attention_rows(ctx, call(), b, h, q_begin, q_end, out);
    const int64_t last = std::min(q_end, dense_rows());
    if (q_begin < last) {
      std::vector<float> part;
      attention_rows(ctx, dense_call(), b, h, q_begin, last, part);
      std::copy(part.begin(), part.end(), out.begin());
    }
    return true;
  }
  int64_t computed_pairs(Context& ctx) override {
    return visited_pairs(ctx, call()) + (dense_rows() > 0 ? visited_pairs(ctx, dense_call()) : 0);
  }
  std::optional<RowStats> row_stats(Context& ctx) override {
    if (dense_rows() > 0) return std::nullopt;
    return attention_row_stats(ctx, call());
  }

 private:
  /// First rows whose positions lie below dense_queries.
  int64_t dense_rows() const {
    return std::clamp<int64_t>(dense_below_ - (form_.keys - form_.queries), 0, form_.queries);
  }
  ElementRule dense_rule() const {
    ElementRule rule;
    rule.causal = causal_;
    rule.offset = form_.keys - form_.queries;
    return rule;
  }
  AttentionArgs dense_call() {
    dense_mask_.rule = dense_rule();
    AttentionArgs a = call();
    a.q = a.q.slice(2, 0, dense_rows());
    a.o = a.o.slice(2, 0, dense_rows());
    a.mask = &dense_mask_;
    return a;
  }

  bool causal_;
  int64_t dense_below_, refresh_, rows_ = 0, cells_ = 0, step_ = 0;
  TreeSearchArgs search_;
  BlockMask dense_mask_;
};

class HipAttention final : public Method {
 public:
  const MethodInfo& info() const override { return hip_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    return std::make_unique<HipInstance>(ctx, problem, params);
  }
};
ATTNBENCH_METHOD(HipAttention);

}  // namespace
}  // namespace attnbench
