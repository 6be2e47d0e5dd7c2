// PowerAttention: sink, local and power-of-two key blocks, with the companion patterns of its paper.
// Card: power_attention.
#include <algorithm>

#include "kernels/layout/layout.hpp"
#include "methods/attention_rows.hpp"
#include "methods/block_pattern.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "power_attention";
  m.title = "PowerAttention";
  m.paper = "PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention, 2025";
  m.arxiv = "2503.03588";
  m.family = "static-sparse (softmax)";
  m.summary =
      "Each block of queries reads the first blocks, its own neighbourhood, and the blocks whose distance is "
      "a "
      "power of two. A token is reached from any later one in popcount(distance) layers, so d layers cover "
      "2^d tokens and more, without holes. `pattern` also builds the masks that the paper compares with.";
  m.formula =
      "delta = floor(i / b) - floor(j / b), b = block_size; i = row + (M - N)\n"
      "power: i reads j <= i iff j's block < sink_blocks, or delta < window_blocks, or delta is 0 or a power "
      "of two\n"
      "sliding_window: delta < 9, or block 0;  stride_slash: delta < 6, or block 0, or stride_blocks divides "
      "delta\n"
      "dilated: delta even and < 20;  longnet: x = bq xor bk, y = bq or bk: x < 8, or x < 16 s and 2 s "
      "divides y for s in 1, 2, 4, 8\n"
      "not causal: |delta| in place of delta, and no j <= i\n"
      "o_i = sum_j softmax_j(scale * q_i . k_j) v_j";
  m.cost =
      "n = ceil(N / b) query blocks; block t reads r(t) = min(window_blocks, t + 1) + #{e: window_blocks <= "
      "2^e <= t} + [t >= window_blocks and t no power of two] blocks (one sink). Matmul 4 b^2 D B H sum_t "
      "r(t) with whole blocks, cut at N and M; special 1 and elementwise 4 a pair. O(N log N).";
  ParamSpec powers;
  powers.name = "power_blocks";
  powers.type = ParamSpec::Type::boolean;
  powers.default_value = Value(true);
  powers.meaning = "read blocks at power-of-two distances; false leaves sinks and window (StreamingLLM)";
  ParamSpec pattern;
  pattern.name = "pattern";
  pattern.type = ParamSpec::Type::choice;
  pattern.default_value = Value("power");
  pattern.choices = {"power", "sliding_window", "stride_slash", "dilated", "longnet"};
  pattern.meaning = "which mask of the paper; all but power ignore window_blocks, sink_blocks, power_blocks";
  ParamSpec kv_heads = spec::integer("num_kv_heads", 1, 1, "grouped-query heads; divides the heads");
  kv_heads.default_value = Value();
  kv_heads.from_problem = "kv_heads";
  ParamSpec causal;
  causal.name = "causal";
  causal.type = ParamSpec::Type::boolean;
  causal.default_value = Value(true);
  causal.from_problem = "causal";
  causal.meaning = "true is the paper's; false takes |delta| and no test of j <= i (chosen)";
  m.params = {spec::integer("block_size", 256, 1, "b: tokens of a pattern block"),
              spec::integer("window_blocks", 5, 1, "local blocks, the own one counted (pattern power)"),
              spec::integer("sink_blocks", 1, 0, "leading blocks that every query reads (pattern power)"),
              powers,
              pattern,
              spec::integer("stride_blocks", 32, 1, "distance of the slashes (pattern stride_slash)"),
              kv_heads,
              causal,
              scale_param()};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"attention kernel time", "Qwen2-7B shapes, 128K tokens, A800", "full attention",
                "21.6x faster", "Sec. 4.5, Fig. 4(b)"},
               {"attention kernel time", "the same", "MInference", "5.3x faster", "Sec. 4.5, Fig. 4(b)"},
               {"prefill latency, end to end", "Qwen2-7B, 128K tokens, 1024 decode steps, A800",
                "full attention", "3.0x faster", "abstract, Sec. 4.5, Fig. 4(a)"},
               {"prefill latency, end to end", "the same", "MInference", "1.3x faster", "Sec. 4.5"},
               {"decode time", "the same", "full attention", "58% of the time", "Sec. 4.5"},
               {"decode time", "the same", "MInference (dense decode)", "80% of the time", "Sec. 4.5"},
               {"sparsity", "32K tokens, b 256", "", "0.94 for all five patterns", "Table 1, caption"},
               {"blocks a query", "32K tokens", "", "5 local + 1 sink + 4 power = 10", "Sec. 4.1"},
               {"one-hop coverage of the sliding window", "128 blocks", "", "10 / 128 = 7.82%", "App. A"},
               {"full coverage", "32K tokens, power", "", "within 6 layers", "Sec. 4.3"}};
  m.notes = {
      "stride_blocks 32 is chosen: the paper names three slashes at 32K (128 blocks) and no stride.",
      "dilated follows the text (a window of 20 blocks, every second one); its printed pseudo-code also "
      "names a window mask that it never defines.",
      "Fewer queries than keys are the last positions of a cache: N = 1 is decoding. More queries than keys "
      "have no position and are refused.",
      "The paper's models keep 2 full-attention layers in 7; that is the model's business, not this layer's.",
      "The sparsity of 0.94 at 32K is stated without its denominator; 1 - sum r / n^2 is 0.930."};
  m.example.heads = 4;
  m.example.kv_heads = 2;
  m.example.length = 3000;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

/// The mask as a rule on block distances.
struct BlockRule {
  enum class Pattern : uint8_t { power, sliding_window, stride_slash, dilated, longnet } pattern;
  int64_t window, sinks, stride;
  bool powers, causal;

  /// Key blocks of query block t among `blocks`, ascending.
  std::vector<int64_t> row(int64_t t, int64_t blocks) const {
    std::vector<int64_t> all;
    const auto at = [&](int64_t c) {
      if (c >= 0 && c < blocks && !(causal && c > t)) all.push_back(c);
    };
    const auto both = [&](int64_t distance) {
      at(t - distance);
      if (distance > 0) at(t + distance);
    };
    const auto leading = [&](int64_t count) {
      for (int64_t c = 0; c < std::min(count, blocks); ++c) at(c);
    };
    const auto near = [&](int64_t count) {
      for (int64_t d = 0; d < std::min(count, blocks); ++d) both(d);
    };
    switch (pattern) {
      case Pattern::power:
        leading(sinks);
        near(window);
        both(0);
        if (powers)
          for (int64_t d = 1; d < blocks; d *= 2) both(d);
        break;
      case Pattern::sliding_window:
        leading(1);
        near(9);
        break;
      case Pattern::stride_slash:
        leading(1);
        near(6);
        for (int64_t d = stride; d < blocks; d += stride) both(d);
        break;
      case Pattern::dilated:
        for (int64_t d = 0; d < 20; d += 2) both(d);
        break;
      case Pattern::longnet:
        // x < 128 keeps the seven low bits apart from all others.
        for (int64_t c = t & ~int64_t{127}; c <= (t | 127); ++c) {
          const int64_t x = t ^ c, y = t | c;
          if (x < 8 || (x < 16 && y % 2 == 0) || (x < 32 && y % 4 == 0) || (x < 64 && y % 8 == 0) ||
              (x < 128 && y % 16 == 0))
            at(c);
        }
        break;
    }
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }
};

class PowerInstance final : public HeadsInstance {
 public:
  PowerInstance(Context& ctx, const MethodInfo& info, const Problem& problem, const Params& params,
                double scale)
      : HeadsInstance(ctx, info, problem, scale) {
    if (form_.queries > form_.keys)
      throw Unsupported("power_attention: queries are the last positions of the keys, and " +
                        std::to_string(form_.queries) + " queries have no place among " +
                        std::to_string(form_.keys) + " keys");
    // A block beyond the sequence is the whole sequence; cut, it cannot overflow.
    block_ = std::min(params.integer("block_size"), form_.keys);
    const int64_t blocks = (form_.keys + block_ - 1) / block_, first = form_.keys - form_.queries;
    const auto& choices = info_choices(info);
    const auto chosen = std::find(choices.begin(), choices.end(), params.choice("pattern"));
    const BlockRule rule{static_cast<BlockRule::Pattern>(chosen - choices.begin()),
                         std::min(params.integer("window_blocks"), blocks),
                         std::min(params.integer("sink_blocks"), blocks),
                         std::min(params.integer("stride_blocks"), blocks),
                         params.boolean("power_blocks"),
                         params.boolean("causal")};
    causal_ = mask_.rule.causal = rule.causal;
    // Lists are by block of queries, so queries that start inside a pattern block are a part of their own.
    const int64_t head = std::min((block_ - first % block_) % block_, form_.queries);
    add_part(rule, 0, head, blocks);
    add_part(rule, head, form_.queries, blocks);
  }

  void prepare(Context& ctx) override {
    for (Part& p : parts_) p.pattern.upload(ctx, p.mask);
  }
  void run(Context& ctx) override {
    const auto stage = ctx.stage("attend");
    for (const Part& p : parts_) attention(ctx, call_of(p));
  }

  ClosedForm cost() const override {
    ClosedForm c;
    for (const Part& p : parts_) {
      const int64_t pairs = p.pattern.visited_pairs();
      const Cost part = fused_cost(pairs);
      const int64_t element = static_cast<int64_t>(size_of(dtype_)), d = form_.head_dim;
      // A decoding step sees few of a long cache's keys; what no pair visits is not read.
      const int64_t keys = std::min(form_.kv_heads * form_.keys, form_.heads * pairs);
      c.cost.matmul += part.matmul;
      c.cost.elementwise += part.elementwise;
      c.cost.special += part.special;
      c.cost.bytes_read +=
          form_.batch * (form_.heads * (p.end - p.begin) + 2 * keys) * d * element + p.pattern.list_bytes();
      c.cost.bytes_written += form_.batch * form_.heads * (p.end - p.begin) * d * element;
    }
    return c;
  }

  std::optional<PairSet> pairs() const override {
    PairSet set;
    set.batch = form_.batch;
    set.heads = form_.heads;
    set.queries = form_.queries;
    set.tokens = form_.keys;
    set.row = [parts = parts_, first = form_.keys - form_.queries, keys = form_.keys, causal = causal_](
                  int64_t, int64_t, int64_t i, Intervals& out) {
      const Part& p = i < parts.front().end ? parts.front() : parts.back();
      p.pattern.intervals(i - p.begin, causal ? first + i + 1 : keys, out);
    };
    return set;
  }

  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    out.clear();
    std::vector<float> some;
    for (const Part& p : parts_) {
      const int64_t from = std::max(q_begin, p.begin), to = std::min(q_end, p.end);
      if (from >= to) continue;
      attention_rows(ctx, call_of(p), b, h, from - p.begin, to - p.begin, some);
      out.insert(out.end(), some.begin(), some.end());
    }
    return true;
  }

  std::optional<RowStats> row_stats(Context& ctx) override {
    if (parts_.size() == 1) return attention_row_stats(ctx, call_of(parts_.front()));
    const auto whole = [&] { return ctx.allocate(DType::f32, {form_.batch, form_.heads, form_.queries}); };
    RowStats all{whole(), whole(), whole()};
    for (const Part& p : parts_) {
      const RowStats part = attention_row_stats(ctx, call_of(p));
      const auto put = [&](const Tensor& from, const Tensor& to) {
        transpose_copy(ctx, {from, to.slice(2, p.begin, p.end)});
      };
      put(part.entropy, all.entropy);
      put(part.visible_keys, all.visible_keys);
      put(part.row_max_probability, all.row_max_probability);
    }
    return all;
  }

 private:
  /// Queries [begin, end) with lists of their own.
  struct Part {
    int64_t begin = 0, end = 0;
    BlockPattern pattern;
    BlockMask mask;
  };

  static const std::vector<std::string>& info_choices(const MethodInfo& info) {
    for (const ParamSpec& s : info.params)
      if (s.name == "pattern") return s.choices;
    throw Error("power_attention has no parameter 'pattern' (a bug)");
  }

  void add_part(const BlockRule& rule, int64_t begin, int64_t end, int64_t blocks) {
    if (begin >= end) return;
    Part p;
    p.begin = begin, p.end = end;
    p.pattern = BlockPattern(end - begin, form_.keys, block_);
    const int64_t first = form_.keys - form_.queries + begin;  // position of the part's first query
    p.mask.rule.causal = causal_;
    p.mask.rule.offset = first;
    for (int64_t r = 0; r < p.pattern.query_blocks(); ++r) {
      const int64_t position = first + r * block_;
      const std::vector<int64_t> row = rule.row(position / block_, blocks);
      std::vector<bool> partial;
      // The causal rule is needed where some key of the block comes after the block's first query.
      for (const int64_t c : row)
        partial.push_back(causal_ && std::min((c + 1) * block_, form_.keys) - 1 > position);
      p.pattern.add_row(row, partial);
    }
    parts_.push_back(std::move(p));
  }

  AttentionArgs call_of(const Part& p) const {
    AttentionArgs a = call();
    a.q = a.q.slice(2, p.begin, p.end);
    a.o = a.o.slice(2, p.begin, p.end);
    a.mask = &p.mask;
    return a;
  }

  int64_t block_ = 1;
  bool causal_ = true;
  std::vector<Part> parts_;
};

class PowerAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    const HeadsForm f = heads_form(info(), problem);
    return std::make_unique<PowerInstance>(ctx, info(), problem, params, scale_of(params, f.head_dim));
  }
};
ATTNBENCH_METHOD(PowerAttention);

}  // namespace
}  // namespace attnbench
