// Circuit component reuse: path patching of every head of a decoder stack, head overrides, logit attribution
// and the overlap of two circuits. Card: circuit_reuse.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs/inputs.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "methods/attention_rows.hpp"
#include "methods/transformer.hpp"

namespace attnbench {
namespace {

using Site = Transformer::Site;

ParamSpec head_list(const char* name, Value default_value, const char* meaning) {
  ParamSpec s = spec::param(name, ParamSpec::Type::list, std::move(default_value), meaning);
  s.nested = true;
  s.min = 0;
  return s;
}

Value pair(int64_t l, int64_t h) { return Value::List{l, h}; }

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "circuit_reuse";
  m.title = "Circuit component reuse: path patching, overrides and overlap of head circuits";
  m.paper = "Circuit Component Reuse Across Tasks in Transformer Language Models, ICLR 2024";
  m.arxiv = "2310.08744";
  m.family = "analysis (head-level causal interventions on dense causal attention)";
  m.summary =
      "Swaps one head's output for that of a corrupted prompt, freezes all others, and measures how far the "
      "change "
      "reaches chosen receivers and the answer: a score for each head of the stack. Heads can also be "
      "overridden to "
      "attend to named positions, or silenced; the best heads of two tasks are compared as sets.";
  m.formula =
      "LD = mean over the batch of logit[last, correct] - logit[last, wrong]\n"
      "sender (l, h): run the clean tokens with z[l, h][pos] := corrupt z, every other z[pos] := clean z "
      "(and MLPs); "
      "record the receivers\n"
      "run them again with the receivers' activations at pos replaced: LD_p\n"
      "score[l, h] = (LD_p - LD_clean) / (LD_corrupt - LD_clean)\n"
      "circuit = the ceil(top_frac L H) heads of largest |score|;  overlap = |A and B| / |A or B|";
  m.cost =
      "F(N) = L (24 N C^2 + 2 N (N + 1) C) + 2 C V. Full runs: 2 + 2 senders forwards a batch. incremental: "
      "clean and "
      "corrupt once, then 2 rows of 2 L (24 C^2 + 4 N C) a sender.";
  ParamSpec frac = spec::param("top_frac", ParamSpec::Type::number, 0.02,
                               "share of the heads that make a circuit, above 0");
  frac.min = 0;
  frac.max = 1;
  ParamSpec receivers =
      head_list("receivers", "logits",
                "receivers R: list of [layer, head], or logits: the residual before the final norm");
  receivers.choices = {"logits"};
  ParamSpec component =
      spec::param("component", ParamSpec::Type::choice, "z", "what of a head receiver is patched");
  component.choices = {"z", "q", "k", "v"};
  ParamSpec sources =
      spec::param("override_sources", ParamSpec::Type::list, Value::List{},
                  "positions that overridden heads attend to, evenly; empty: no override is run");
  sources.min = 0;
  m.params = {
      spec::integer("num_layers", 24, 1, "L (GPT-2 Medium)"),
      spec::integer("num_heads", 16, 1, "H", "heads"),
      spec::integer("head_dim", 64, 1, "D; C = H D", "head_dim"),
      spec::integer("vocab_size", 50257, 2, "V"),
      spec::integer("max_len", 1024, 1, "rows of the position table"),
      spec::boolean("use_mlp", true, "false: attention-only stack"),
      spec::integer("seq_len", 64, 1, "N", "length"),
      spec::integer("batch_size", 25, 1, "prompts at once", "batch"),
      spec::integer("num_examples", 1000, 1,
                    "prompts of the published experiment: num_examples / batch_size batches"),
      receivers,
      component,
      spec::param("position", ParamSpec::Type::integer, -1,
                  "pos: the row that is swapped; negative counts from the end"),
      spec::boolean("freeze_mlps", false, "MLP outputs at pos keep their clean values in the sender's run"),
      spec::boolean("truncate_to_receiver", true,
                    "skip senders above the lowest receiver layer; their score is 0"),
      spec::boolean("incremental", true,
                    "compute only the rows from pos on, against cached clean keys and values"),
      frac,
      head_list("override_heads", Value::List{pair(12, 3), pair(13, 4), pair(13, 13), pair(19, 1)},
                "heads whose last row is overridden where override_sources are given"),
      sources,
      head_list("ablate_heads", Value::List{},
                "heads whose values are 0 (content gatherers: 11.6, 11.7, 12.15)")};
  m.kinds = {ProblemKind::sequence};
  m.dtypes = {DType::f32};
  m.figures = {
      {"head overlap IOI / Colored Objects", "top 2 % per stage, GPT-2 Medium", "", "25/32 = 78 %",
       "abstract, section 4"},
      {"overlap with control tasks", "Greater Than / World Capitals", "", "3/18 = 16.7 % / 25 %",
       "appendix H"},
      {"overlap at scale", "top 10 heads, GPT-2 Large / XL", "", "5 of 10 / 0 of 10", "appendix I"},
      {"Colored Objects accuracy", "all four overrides", "49.6 %", "93.7 %, no new errors", "section 5"},
      {"Colored Objects accuracy", "negative mover only / inhibition only", "49.6 %", "78.1 % / 81.5 %",
       "section 5"},
      {"Colored Objects accuracy", "content gatherers blocked", "49.6 % (random heads 49.9 +- 1.0)", "35 %",
       "section 4"},
      {"Spearman (attribution change, original score)", "", "", "0.69 (p < 0.01)", "section 5"},
      {"number of forwards", "384 heads, batches of 25 of 1000 prompts", "", "770 per batch",
       "derived from the repository"}};
  m.notes = {
      "The union over stages is a union of runs: one run scores one receiver set. overlap is |A and B| / |A "
      "or B|, the "
      "reading that gives the published 25/32; ceil(top_frac L H) heads (chosen; computed less 1e-9, so that "
      "a product "
      "that is whole in decimals stays whole).",
      "f32 only: a score is a difference of nearly equal logits divided by another, and 8 or 11 bits do not "
      "carry it.",
      "Clean, corrupt and patched rows go through the same operators in the same shapes, so a patch without "
      "effect gives "
      "the clean run's bits and score 0. In incremental mode the clean run is the rows before pos and those "
      "from pos on.",
      "LD_corrupt = LD_clean leaves nothing to divide by: every score is 0 (chosen).",
      "In a record of component z the read comes before the freezing overwrites it; the released code reads "
      "what is "
      "already overwritten and returns 0.",
      "override outputs exist when override_sources name positions, value ablation when ablate_heads name "
      "heads, both "
      "together when both do. circuits, overlaps and Spearman exist when a second task's corrupt_tokens_2 is "
      "given.",
      "Seeded prompts are like IOI's: names A, B, later B again; the corrupt prompt has A there. Weights "
      "normal 0.02, "
      "residual projections divided by sqrt(2 L), biases 0 (chosen).",
      "The scores are finished on the host: one read of L H sums at the end of the run."};
  m.example.batch = 2;
  m.example.channels = 16;
  m.example.heads = 2;
  m.example.length = 8;
  m.example.causal = true;
  return m;
}

const MethodInfo& circuit_info() {
  static const MethodInfo info = describe();
  return info;
}

struct Head {
  int64_t layer = 0, head = 0;
  auto operator<=>(const Head&) const = default;
};

/// [[layer, head], ..] of the stack; throws UsageError naming the entry that is none.
std::vector<Head> heads_of(const Params& p, const char* name, int64_t layers, int64_t heads) {
  std::vector<Head> all;
  for (const Value& v : p.value(name).as_list()) {
    const std::string where = std::string("circuit_reuse.") + name + ": ";
    if (!v.is_list() || v.as_list().size() != 2 || !v.as_list()[0].is_int() || !v.as_list()[1].is_int())
      throw UsageError(where + "[layer, head] is wanted, not " + v.str());
    const Head h{v.as_list()[0].as_int(), v.as_list()[1].as_int()};
    if (h.layer >= layers || h.head >= heads)
      throw UsageError(where + v.str() + " is no head of " + std::to_string(layers) + " layers with " +
                       std::to_string(heads) + " heads");
    if (std::find(all.begin(), all.end(), h) != all.end())
      throw UsageError(where + v.str() + " is named twice");
    all.push_back(h);
  }
  std::sort(all.begin(), all.end());
  return all;
}

struct Setup {
  TransformerConfig config;
  int64_t batch = 0, n = 0, pos = 0, circuit = 0;
  bool to_logits = true, freeze = false, incremental = true;
  Site component = Site::z;
  std::vector<Head> receivers, senders, overridden, ablated;
  std::vector<int64_t> sources;

  int64_t layers() const { return config.layers; }
  int64_t heads() const { return config.heads; }
  int64_t all_heads() const { return config.layers * config.heads; }
  /// First row that runs touch, and how many.
  int64_t first() const { return incremental ? pos : 0; }
  int64_t rows() const { return n - first(); }
};

Setup setup_of(const Problem& problem, const Params& p) {
  Setup s;
  TransformerConfig& c = s.config;
  c.layers = p.integer("num_layers");
  c.heads = c.kv_heads = p.integer("num_heads");
  c.head_dim = p.integer("head_dim");
  c.channels = c.heads * c.head_dim;
  c.hidden = 4 * c.channels;
  c.vocab = p.integer("vocab_size");
  c.max_len = p.integer("max_len");
  c.unembed_bias = true;
  if (!p.boolean("use_mlp")) c.mlp = TransformerConfig::Mlp::none;
  c.dtype = problem.dtype;
  s.batch = p.integer("batch_size");
  s.n = p.integer("seq_len");
  if (problem.channels != c.channels)
    throw UsageError("circuit_reuse.head_dim: " + std::to_string(c.heads) + " heads of " +
                     std::to_string(c.head_dim) +
                     " channels are not problem.channels = " + std::to_string(problem.channels));
  if (s.n > c.max_len)
    throw UsageError("circuit_reuse.seq_len: " + std::to_string(s.n) + " exceeds max_len " +
                     std::to_string(c.max_len));
  const int64_t pos = p.integer("position");
  s.pos = pos < 0 ? s.n + pos : pos;
  if (s.pos < 0 || s.pos >= s.n)
    throw UsageError("circuit_reuse.position: " + std::to_string(pos) + " is outside the " +
                     std::to_string(s.n) + " rows of a prompt");
  s.freeze = p.boolean("freeze_mlps");
  s.incremental = p.boolean("incremental");
  const std::string& component = p.choice("component");
  s.component = component == "q"   ? Site::q
                : component == "k" ? Site::k
                : component == "v" ? Site::v
                                   : Site::z;
  s.to_logits = p.value("receivers").is_string();
  int64_t last_layer = c.layers - 1;
  if (!s.to_logits) {
    s.receivers = heads_of(p, "receivers", c.layers, c.heads);
    if (s.receivers.empty()) throw UsageError("circuit_reuse.receivers: the list names no head");
    if (p.boolean("truncate_to_receiver")) last_layer = s.receivers.front().layer;
  }
  for (int64_t l = 0; l <= last_layer; ++l)
    for (int64_t h = 0; h < c.heads; ++h)
      if (!std::binary_search(s.receivers.begin(), s.receivers.end(), Head{l, h}))
        s.senders.push_back({l, h});
  const double frac = p.number("top_frac");
  if (!(frac > 0)) throw UsageError("circuit_reuse.top_frac: a share above 0 is wanted");
  s.circuit = static_cast<int64_t>(std::ceil(frac * static_cast<double>(s.all_heads()) - 1e-9));
  s.circuit = std::clamp<int64_t>(s.circuit, 1, s.all_heads());
  for (const Value& v : p.value("override_sources").as_list()) {
    if (!v.is_int() || v.as_int() >= s.n)
      throw UsageError("circuit_reuse.override_sources: " + v.str() + " is no position of a prompt of " +
                       std::to_string(s.n) + " tokens");
    if (std::find(s.sources.begin(), s.sources.end(), v.as_int()) != s.sources.end())
      throw UsageError("circuit_reuse.override_sources: " + v.str() + " is named twice");
    s.sources.push_back(v.as_int());
  }
  if (!s.sources.empty()) s.overridden = heads_of(p, "override_heads", c.layers, c.heads);
  s.ablated = heads_of(p, "ablate_heads", c.layers, c.heads);
  return s;
}

/// A name that appears where the prompt of an IOI task has it: A, B, .. then B again (or A, corrupted), then
/// the rest.
int64_t prompt_token(uint64_t seed, const Setup& s, bool corrupt, int64_t index) {
  const int64_t b = index / s.n, i = index % s.n;
  const auto vocab = static_cast<uint64_t>(s.config.vocab);
  const auto draw = [&](const char* what, int64_t at) {
    return random_bits(seed, stream_of(what), static_cast<uint64_t>(at)) % vocab;
  };
  const uint64_t a = draw("name", b), other = (a + 1 + draw("other", b) % (vocab - 1)) % vocab;
  if (i == (3 * s.n) / 4) return static_cast<int64_t>(corrupt ? a : other);
  if (i == s.n / 4) return static_cast<int64_t>(a);
  if (i == s.n / 2) return static_cast<int64_t>(other);
  return static_cast<int64_t>(draw("filler", index));
}

void call(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y,
          float alpha = 1.0f) {
  PointwiseArgs p;
  p.op = op;
  p.a = a;
  p.b = b;
  p.y = y;
  p.alpha = alpha;
  pointwise(ctx, p);
}

/// Average ranks, so that ties share theirs.
std::vector<double> ranks(const std::vector<double>& x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> r(x.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && x[order[end]] == x[order[i]]) ++end;
    for (size_t k = i; k < end; ++k) r[order[k]] = 0.5 * static_cast<double>(i + end - 1) + 1;
    i = end;
  }
  return r;
}

/// Pearson correlation of the ranks; 0 where one side has no spread.
double spearman(const std::vector<double>& x, const std::vector<double>& y) {
  const std::vector<double> a = ranks(x), b = ranks(y);
  const double mean = 0.5 * (static_cast<double>(a.size()) + 1);
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean) * (b[i] - mean);
    aa += (a[i] - mean) * (a[i] - mean);
    bb += (b[i] - mean) * (b[i] - mean);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0.0;
}

class CircuitInstance final : public Instance {
 public:
  CircuitInstance(Context& ctx, const Problem& problem, const Setup& setup)
      : s_(setup), model_(setup.config, {}) {
    const auto prompt = [&](const char* name, bool corrupt, const char* meaning) {
      TensorSpec t{name, {s_.batch, s_.n}, DType::i32, Init::normal(), false, meaning};
      t.init.kind = Init::Kind::values;
      t.init.value = [s = s_, seed = problem.seed, corrupt](int64_t i) {
        return static_cast<double>(prompt_token(seed, s, corrupt, i));
      };
      input_specs_.push_back(t);
    };
    prompt("clean_tokens", false, "clean prompts [B, N]");
    prompt("corrupt_tokens", true, "corrupt prompts of equal length [B, N]");
    TensorSpec answers{"answer_ids",   {s_.batch, 2}, DType::i32,
                       Init::normal(), false,         "correct and wrong answer [B, 2]"};
    answers.init.kind = Init::Kind::values;
    answers.init.value = [s = s_, seed = problem.seed](int64_t i) {
      const int64_t row = i / 2 * s.n;
      return static_cast<double>(prompt_token(seed, s, i % 2 == 0, row + (3 * s.n) / 4));
    };
    input_specs_.push_back(answers);
    input_specs_.push_back({"corrupt_tokens_2",
                            {s_.batch, s_.n},
                            DType::i32,
                            Init::normal(),
                            true,
                            "corrupt prompts of a second task with the same clean prompts [B, N]"});
    weight_specs_ = transformer_specs(s_.config, WeightNames::transformer_lens);
    const TransformerConfig& c = s_.config;
    output(ctx, "LD_clean", {1});
    output(ctx, "LD_corrupt", {1});
    output(ctx, "score", {c.layers, c.heads});
    output(ctx, "logits_clean_last", {s_.batch, c.vocab});
    output(ctx, "logits_corrupt_last", {s_.batch, c.vocab});
    output(ctx, "z_clean_last", {c.layers, s_.batch, c.heads, c.head_dim});
    output(ctx, "resid_final_last", {s_.batch, c.channels});
    output(ctx, "dla", {c.layers, c.heads, s_.batch, 2});
    output(ctx, "dla_folded", {c.layers, c.heads, s_.batch, 2});
    if (!s_.sources.empty()) output(ctx, "logits_override_last", {s_.batch, c.vocab});
    if (!s_.ablated.empty()) output(ctx, "logits_value_ablation_last", {s_.batch, c.vocab});
    if (!s_.sources.empty() && !s_.ablated.empty())
      output(ctx, "logits_override_and_ablation_last", {s_.batch, c.vocab});
  }

  void prepare(Context& ctx) override {
    const TransformerConfig& c = s_.config;
    model_ = Transformer(c, pack_transformer(ctx, c, WeightNames::transformer_lens, weights_));
    model_.prepare(ctx);
    if (s_.incremental) cache_ = model_.make_cache(ctx, s_.batch, s_.n);
    const bool second = has_input("corrupt_tokens_2");
    if (second && !out_.contains("score_2")) {
      output(ctx, "LD_corrupt_2", {1});
      output(ctx, "score_2", {c.layers, c.heads});
      output(ctx, "circuit_1", {s_.circuit, 2}, DType::i32);
      output(ctx, "circuit_2", {s_.circuit, 2}, DType::i32);
      for (const char* name : {"overlap", "overlap_of_1", "spearman"}) output(ctx, name, {1});
    } else if (!second) {
      for (const char* name :
           {"LD_corrupt_2", "score_2", "circuit_1", "circuit_2", "overlap", "overlap_of_1", "spearman"})
        out_.erase(name);
    }
    prepare_attribution(ctx);
  }

  void run(Context& ctx) override {
    const TransformerConfig& c = s_.config;
    const Shape rows{s_.batch, c.channels};
    answers(ctx);
    const int64_t tasks = has_input("corrupt_tokens_2") ? 2 : 1;
    const auto senders = static_cast<int64_t>(s_.senders.size());
    // LD_clean without its bias, the biases, then for each task LD_corrupt - LD_clean and each sender's LD_p
    // - LD_clean.
    sums_ = ctx.allocate(DType::f64, {2 + tasks * (1 + senders)});

    Record clean = record(ctx);
    {
      const auto stage = ctx.stage("clean");
      if (s_.first() > 0) full_pass(ctx, "clean_tokens", 0, s_.first(), &cache_, {});
      const Tensor x = full_pass(ctx, "clean_tokens", s_.first(), s_.rows(), cache(),
                                 [&](Context& ctx, const Transformer::Tap& t) { keep_clean(ctx, t, clean); });
      head(ctx, x, clean.finished, "logits_clean_last");
    }
    const Tensor difference = ctx.allocate(c.dtype, rows);
    weighted_sum(ctx, clean.finished, 0);
    bias_sum(ctx, 1);
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t at = 2 + task * (1 + senders);
      Record corrupt = record(ctx);
      {
        const auto stage = ctx.stage("corrupt");
        const char* tokens = task == 0 ? "corrupt_tokens" : "corrupt_tokens_2";
        Transformer::Cache own;
        if (s_.incremental) own = model_.make_cache(ctx, s_.batch, s_.n);
        Transformer::Cache* used = s_.incremental ? &own : nullptr;
        if (s_.first() > 0) full_pass(ctx, tokens, 0, s_.first(), used, {});
        const Tensor x =
            full_pass(ctx, tokens, s_.first(), s_.rows(), used,
                      [&](Context& ctx, const Transformer::Tap& t) { keep_heads(ctx, t, corrupt); });
        head(ctx, x, corrupt.finished, task == 0 ? "logits_corrupt_last" : nullptr);
        call(ctx, PointwiseArgs::Op::sub, corrupt.finished, clean.finished, difference);
        weighted_sum(ctx, difference, at);
      }
      const auto stage = ctx.stage("patch");
      std::vector<Tensor> received;
      for (size_t i = 0; i < std::max<size_t>(s_.receivers.size(), 1); ++i)
        received.push_back(ctx.allocate(c.dtype, s_.to_logits ? rows : Shape{s_.batch, c.head_dim}));
      const Tensor finished = ctx.allocate(c.dtype, rows);
      for (int64_t i = 0; i < senders; ++i) {
        const Head& sender = s_.senders[static_cast<size_t>(i)];
        full_pass(ctx, "clean_tokens", s_.first(), s_.rows(), cache(),
                  [&](Context& ctx, const Transformer::Tap& t) {
                    each_receiver(t, [&](size_t r, const Tensor& live) {
                      transpose_copy(ctx, {live, received[r]});
                    });
                    send(ctx, t, sender, clean, corrupt);
                  });
        const Tensor x = full_pass(ctx, "clean_tokens", s_.first(), s_.rows(), cache(),
                                   [&](Context& ctx, const Transformer::Tap& t) {
                                     each_receiver(t, [&](size_t r, const Tensor& live) {
                                       transpose_copy(ctx, {received[r], live});
                                     });
                                   });
        model_.finish(ctx, last_row(x), finished);
        call(ctx, PointwiseArgs::Op::sub, finished, clean.finished, difference);
        weighted_sum(ctx, difference, at + 1 + i);
      }
    }
    interventions(ctx);
    attribute(ctx);
    finish(ctx, tasks);
  }

  TensorMap outputs() const override { return out_; }

  ClosedForm cost() const override;

  std::optional<PairSet> pairs() const override {
    ElementRule rule;
    rule.causal = true;
    return rule_pairs(rule, s_.batch, s_.all_heads(), s_.n, s_.n);
  }
  /// The host reads the sums at the end.
  bool capturable() const override { return false; }

  double condition(const std::string& output) const override {
    const auto it = condition_.find(output);
    return it == condition_.end() ? 1.0 : it->second;
  }

 private:
  /// Activations at pos of one run; `finished`: the normalised last row.
  struct Record {
    std::vector<Tensor> z;    ///< [B, H, D] of each layer
    std::vector<Tensor> mlp;  ///< [B, C]
    Tensor finished;
  };

  void output(Context& ctx, const std::string& name, const Shape& shape, DType dtype = DType::f32) {
    out_[name] = ctx.allocate(dtype, shape, MemoryClass::output);
  }
  Transformer::Cache* cache() { return s_.incremental ? &cache_ : nullptr; }

  Record record(Context& ctx) const {
    Record r;
    const TransformerConfig& c = s_.config;
    for (int64_t l = 0; l < c.layers; ++l) {
      r.z.push_back(ctx.allocate(c.dtype, {s_.batch, c.heads, c.head_dim}));
      if (s_.freeze) r.mlp.push_back(ctx.allocate(c.dtype, {s_.batch, c.channels}));
    }
    r.finished = ctx.allocate(c.dtype, {s_.batch, c.channels});
    return r;
  }

  /// Rows [first, first + rows) of the prompts through all layers.
  Tensor full_pass(Context& ctx, const char* tokens, int64_t first, int64_t rows, Transformer::Cache* cache,
                   const Transformer::Hook& hook) {
    const Tensor x = ctx.allocate(s_.config.dtype, {s_.batch, rows, s_.config.channels});
    model_.embed(ctx, input(tokens).slice(1, first, first + rows), first, x);
    Transformer::Pass pass;
    pass.first = first;
    pass.cache = cache;
    // Branches are always added apart: every run rounds alike.
    pass.hook = hook ? hook : [](Context&, const Transformer::Tap&) {};
    model_.forward(ctx, x, pass);
    return x;
  }

  static Tensor last_row(const Tensor& x) { return x.select(1, x.dim(1) - 1); }
  /// Row pos of [B, heads, n, D] or [B, n, C].
  Tensor at_pos(const Tensor& live) const { return live.select(live.rank() - 2, s_.pos - s_.first()); }

  void keep_heads(Context& ctx, const Transformer::Tap& t, Record& r) const {
    const auto l = static_cast<size_t>(t.layer);
    if (t.site == Site::z) transpose_copy(ctx, {at_pos(t.value), r.z[l]});
  }
  void keep_clean(Context& ctx, const Transformer::Tap& t, Record& r) {
    keep_heads(ctx, t, r);
    if (t.site == Site::z)
      transpose_copy(ctx,
                     {t.value.select(2, t.value.dim(2) - 1), out_.at("z_clean_last").select(0, t.layer)});
    if (t.site == Site::mlp_out && s_.freeze)
      transpose_copy(ctx, {at_pos(t.value), r.mlp[static_cast<size_t>(t.layer)]});
    if (t.site == Site::residual_post && t.layer + 1 == s_.layers())
      transpose_copy(ctx, {last_row(t.value), out_.at("resid_final_last")});
  }

  /// Calls f(index, live view) for every receiver that this site holds.
  template <class F>
  void each_receiver(const Transformer::Tap& t, const F& f) const {
    if (s_.to_logits) {
      if (t.site == Site::residual_post && t.layer + 1 == s_.layers()) f(0, at_pos(t.value));
      return;
    }
    if (t.site != s_.component) return;
    for (size_t r = 0; r < s_.receivers.size(); ++r)
      if (s_.receivers[r].layer == t.layer) f(r, at_pos(t.value).select(1, s_.receivers[r].head));
  }

  /// Freezes row pos at its clean values, but for the sender's head.
  void send(Context& ctx, const Transformer::Tap& t, const Head& sender, const Record& clean,
            const Record& corrupt) const {
    const auto l = static_cast<size_t>(t.layer);
    if (t.site == Site::z) {
      transpose_copy(ctx, {clean.z[l], at_pos(t.value)});
      if (t.layer == sender.layer)
        transpose_copy(ctx, {corrupt.z[l].select(1, sender.head), at_pos(t.value).select(1, sender.head)});
    }
    if (t.site == Site::mlp_out && s_.freeze) transpose_copy(ctx, {clean.mlp[l], at_pos(t.value)});
  }

  /// Unembedding rows of the answers, and the difference of the two.
  void answers(Context& ctx) {
    const TransformerConfig& c = s_.config;
    const Tensor ids = input("answer_ids").reshape({2 * s_.batch});
    answer_rows_ = ctx.allocate(c.dtype, {s_.batch, 2, c.channels});
    answer_difference_ = ctx.allocate(c.dtype, {s_.batch, c.channels});
    answer_bias_ = ctx.allocate(c.dtype, {s_.batch, 1});
    const Tensor bias = ctx.allocate(c.dtype, {s_.batch, 2, 1});
    const TransformerWeights& w = model_.weights();
    gather_rows(ctx, {w.unembed.reshape({1, c.vocab, c.channels}), ids,
                      answer_rows_.reshape({1, 2 * s_.batch, c.channels})});
    gather_rows(ctx, {w.unembed_bias.reshape({1, c.vocab, 1}), ids, bias.reshape({1, 2 * s_.batch, 1})});
    call(ctx, PointwiseArgs::Op::sub, answer_rows_.select(1, 0), answer_rows_.select(1, 1),
         answer_difference_);
    call(ctx, PointwiseArgs::Op::sub, bias.select(1, 0), bias.select(1, 1), answer_bias_);
  }

  void weighted_sum(Context& ctx, const Tensor& rows, int64_t slot) const {
    ReduceArgs r;
    r.x = rows;
    r.weight = answer_difference_;
    r.y = sums_.slice(0, slot, slot + 1);
    reduce(ctx, r);
  }
  void bias_sum(Context& ctx, int64_t slot) const {
    ReduceArgs r;
    r.x = answer_bias_;
    r.y = sums_.slice(0, slot, slot + 1);
    reduce(ctx, r);
  }

  /// `finished` = final norm of the last row; its logits where an output wants them.
  void head(Context& ctx, const Tensor& x, const Tensor& finished, const char* logits) {
    model_.finish(ctx, last_row(x), finished);
    if (logits) model_.logits(ctx, finished, out_.at(logits));
  }

  /// Part C: rows of heads that attend where they are told, heads without values, and both.
  void interventions(Context& ctx) {
    const auto stage = ctx.stage("override");
    const auto run = [&](const char* name, bool override_rows, bool ablate) {
      const Tensor x =
          full_pass(ctx, "clean_tokens", 0, s_.n, nullptr, [&](Context& ctx, const Transformer::Tap& t) {
            if (ablate && t.site == Site::v)
              for (const Head& h : s_.ablated)
                if (h.layer == t.layer) {
                  const Tensor v = t.value.select(1, h.head);
                  call(ctx, PointwiseArgs::Op::affine, v, {}, v, 0.0f);
                }
            if (override_rows && t.site == Site::z)
              for (const Head& h : s_.overridden)
                if (h.layer == t.layer)
                  mean_of_sources(ctx, t.attention->v.select(1, h.head),
                                  t.value.select(1, h.head).select(1, s_.n - 1));
          });
      const Tensor finished = ctx.allocate(s_.config.dtype, {s_.batch, s_.config.channels});
      head(ctx, x, finished, name);
    };
    if (!s_.sources.empty()) run("logits_override_last", true, false);
    if (!s_.ablated.empty()) run("logits_value_ablation_last", false, true);
    if (!s_.sources.empty() && !s_.ablated.empty()) run("logits_override_and_ablation_last", true, true);
  }

  /// y [B, D] = mean of rows `sources` of v [B, N, D].
  void mean_of_sources(Context& ctx, const Tensor& v, const Tensor& y) const {
    const auto share = static_cast<float>(1.0 / static_cast<double>(s_.sources.size()));
    const Tensor sum = ctx.allocate(s_.config.dtype, y.shape());
    transpose_copy(ctx, {v.select(1, s_.sources[0]), sum});
    for (size_t i = 1; i < s_.sources.size(); ++i)
      call(ctx, PointwiseArgs::Op::add, sum, v.select(1, s_.sources[i]), sum);
    call(ctx, PointwiseArgs::Op::affine, sum, {}, y, share);
  }

  // ---- direct logit attribution: (z Wo) . (g (u_t - mean u)) over centred channels, divided by the final
  // deviation

  /// Static parts: C = I - 1/C centres channels, the mean of U's rows, the constant part of each head's z.
  void prepare_attribution(Context& ctx) {
    const TransformerConfig& c = s_.config;
    std::vector<float> centre(static_cast<size_t>(c.channels * c.channels),
                              static_cast<float>(-1.0 / static_cast<double>(c.channels)));
    for (int64_t i = 0; i < c.channels; ++i) centre[static_cast<size_t>(i * c.channels + i)] += 1.0f;
    centre_ = upload(ctx, {c.channels, c.channels}, centre);
    const Tensor share = upload(ctx, {1, c.vocab},
                                std::vector<float>(static_cast<size_t>(c.vocab),
                                                   static_cast<float>(1.0 / static_cast<double>(c.vocab))));
    mean_unembed_ = ctx.allocate(c.dtype, {c.channels});
    GemmArgs g;
    g.a = share;
    g.b = model_.weights().unembed;
    g.c = mean_unembed_.reshape({1, c.channels});
    gemm(ctx, g);
    constants_.clear();
    const int64_t mix = c.mix();
    for (const TransformerWeights::Layer& w : model_.weights().layers) {
      // What every attention row adds to z, as its weights sum to 1: b_V and the part of ln1's offset.
      const Tensor z = ctx.allocate(c.dtype, {1, mix});
      GemmArgs v;
      v.a = w.norm1_offset.reshape({1, c.channels});
      v.b = w.qkv.slice(0, 2 * mix, 3 * mix);
      v.b_transposed = true;
      v.bias = w.qkv_bias.slice(0, 2 * mix, 3 * mix);
      v.c = z;
      gemm(ctx, v);
      constants_.push_back(z.reshape({mix}));
    }
  }

  void attribute(Context& ctx) {
    const auto stage = ctx.stage("attribute");
    const TransformerConfig& c = s_.config;
    const int64_t rows = 2 * s_.batch, mix = c.mix();
    const Tensor target = ctx.allocate(c.dtype, {rows, c.channels}),
                 centred = ctx.allocate(c.dtype, {rows, c.channels});
    call(ctx, PointwiseArgs::Op::sub, answer_rows_.reshape({rows, c.channels}), mean_unembed_, target);
    call(ctx, PointwiseArgs::Op::mul, target, model_.weights().final_gain, target);
    GemmArgs g;
    g.a = target;
    g.b = centre_;
    g.c = centred;
    gemm(ctx, g);
    const Tensor direction = ctx.allocate(c.dtype, {s_.batch, 2, c.heads, c.head_dim});
    const Tensor folded = ctx.allocate(c.dtype, {s_.batch, mix});
    for (int64_t l = 0; l < c.layers; ++l) {
      // What one unit of each head's output adds to the two logits.
      g.a = centred;
      g.b = model_.weights().layers[static_cast<size_t>(l)].out;
      g.c = direction.reshape({rows, mix});
      gemm(ctx, g);
      const Tensor z = out_.at("z_clean_last").select(0, l);
      call(ctx, PointwiseArgs::Op::sub, z.reshape({s_.batch, mix}), constants_[static_cast<size_t>(l)],
           folded);
      const auto dot = [&](const Tensor& heads, const char* name) {
        GemmArgs d;
        d.a = heads.reshape({s_.batch, c.heads, 1, c.head_dim});
        d.b = direction.permute({0, 2, 1, 3});
        d.b_transposed = true;
        const Tensor out = out_.at(name).select(0, l);  // [H, B, 2]
        d.c = out.strided({s_.batch, c.heads, 1, 2}, {2, 2 * s_.batch, 2, 1});
        gemm(ctx, d);
      };
      dot(z, "dla");
      dot(folded, "dla_folded");
    }
  }

  // ---- the end on the host

  template <class T>
  std::vector<T> read(Context& ctx, const Tensor& t) const {
    std::vector<T> v(static_cast<size_t>(t.numel()));
    copy(ctx, t, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()));
    return v;
  }
  template <class T>
  void write(Context& ctx, const std::string& name, std::vector<T> v) {
    const Tensor& t = out_.at(name);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, t.dtype(), t.shape(), v.data()), t);
  }

  void finish(Context& ctx, int64_t tasks) {
    const auto stage = ctx.stage("rank");
    const TransformerConfig& c = s_.config;
    ctx.backend().synchronize();
    const std::vector<double> sums = read<double>(ctx, sums_);
    const double batch = static_cast<double>(s_.batch);
    const double clean = (sums[0] + sums[1]) / batch;
    write<float>(ctx, "LD_clean", {static_cast<float>(clean)});
    // The largest that a logit difference can be for rows of these norms: roundings of the rows are relative
    // to it.
    const std::vector<float> u = read<float>(ctx, answer_difference_),
                             x = read<float>(ctx, out_.at("resid_final_last"));
    double scale = 0;
    for (int64_t b = 0; b < s_.batch; ++b) {
      double norm = 0;
      for (int64_t i = 0; i < c.channels; ++i)
        norm += std::pow(static_cast<double>(u[static_cast<size_t>(b * c.channels + i)]), 2);
      scale += std::sqrt(norm * static_cast<double>(c.channels)) / batch;  // finished rows have norm sqrt(C)
    }
    const auto set_condition = [&](const std::string& name, double by) {
      condition_[name] = by > 0 && std::isfinite(scale / by) ? std::max(1.0, scale / by) : 1.0;
    };
    set_condition("LD_clean", std::fabs(clean));
    const size_t senders = s_.senders.size();
    std::vector<std::vector<double>> scores;
    for (int64_t task = 0; task < tasks; ++task) {
      const std::string suffix = task == 0 ? "" : "_2";
      const size_t at = 2 + static_cast<size_t>(task) * (1 + senders);
      const double whole = sums[at] / batch;
      write<float>(ctx, "LD_corrupt" + suffix, {static_cast<float>(clean + whole)});
      set_condition("LD_corrupt" + suffix, std::fabs(clean + whole));
      std::vector<double> score(static_cast<size_t>(s_.all_heads()), 0.0);
      double norm = 0;
      for (size_t i = 0; i < senders; ++i) {
        const double v = whole != 0 ? sums[at + 1 + i] / batch / whole : 0.0;
        score[static_cast<size_t>(s_.senders[i].layer * c.heads + s_.senders[i].head)] = v;
        norm += v * v;
      }
      // |d score| <= (sqrt(L H) + |score|) |d LD| / |LD_k - LD_c|, beside |score|.
      norm = std::sqrt(norm);
      set_condition("score" + suffix,
                    std::fabs(whole) * norm / (std::sqrt(static_cast<double>(s_.all_heads())) + norm));
      write<float>(ctx, "score" + suffix, std::vector<float>(score.begin(), score.end()));
      scores.push_back(std::move(score));
    }
    if (tasks == 2) compare_tasks(ctx, scores);
    scale_attribution(ctx, x);
  }

  std::vector<int64_t> circuit(const std::vector<double>& score) const {
    std::vector<int64_t> order(score.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return std::fabs(score[static_cast<size_t>(a)]) > std::fabs(score[static_cast<size_t>(b)]);
    });
    order.resize(static_cast<size_t>(s_.circuit));
    std::sort(order.begin(), order.end());
    return order;
  }

  void compare_tasks(Context& ctx, const std::vector<std::vector<double>>& scores) {
    const std::vector<int64_t> a = circuit(scores[0]), b = circuit(scores[1]);
    std::vector<int64_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    const auto put = [&](const char* name, const std::vector<int64_t>& heads) {
      std::vector<int32_t> pairs;
      for (int64_t h : heads) {
        pairs.push_back(static_cast<int32_t>(h / s_.heads()));
        pairs.push_back(static_cast<int32_t>(h % s_.heads()));
      }
      write(ctx, name, std::move(pairs));
    };
    put("circuit_1", a);
    put("circuit_2", b);
    const double shared = static_cast<double>(both.size()),
                 all = static_cast<double>(a.size() + b.size()) - shared;
    write<float>(ctx, "overlap", {static_cast<float>(shared / all)});
    write<float>(ctx, "overlap_of_1", {static_cast<float>(shared / static_cast<double>(a.size()))});
    write<float>(ctx, "spearman", {static_cast<float>(spearman(scores[0], scores[1]))});
  }

  void scale_attribution(Context& ctx, const std::vector<float>& x) {
    const TransformerConfig& c = s_.config;
    std::vector<double> inverse;
    for (int64_t b = 0; b < s_.batch; ++b) {
      double mean = 0, var = 0;
      const auto row = [&](int64_t i) {
        return static_cast<double>(x[static_cast<size_t>(b * c.channels + i)]);
      };
      for (int64_t i = 0; i < c.channels; ++i) mean += row(i) / static_cast<double>(c.channels);
      for (int64_t i = 0; i < c.channels; ++i)
        var += (row(i) - mean) * (row(i) - mean) / static_cast<double>(c.channels);
      inverse.push_back(1.0 / std::sqrt(var + c.eps));
    }
    for (const char* name : {"dla", "dla_folded"}) {
      std::vector<float> v = read<float>(ctx, out_.at(name));
      for (size_t i = 0; i < v.size(); ++i)
        v[i] = static_cast<float>(static_cast<double>(v[i]) * inverse[i / 2 % static_cast<size_t>(s_.batch)]);
      write(ctx, name, std::move(v));
    }
  }

  Setup s_;
  Transformer model_;
  Transformer::Cache cache_;
  TensorMap out_;
  Tensor sums_, answer_rows_, answer_difference_, answer_bias_;
  Tensor centre_, mean_unembed_;
  std::vector<Tensor> constants_;
  std::map<std::string, double> condition_;
};

ClosedForm CircuitInstance::cost() const {
  const TransformerConfig& c = s_.config;
  const int64_t b = s_.batch, ch = c.channels, d = c.head_dim, mix = c.mix(), e = 4;
  const auto moved = [&](int64_t count, int64_t bytes = 4) {
    Cost k;
    k.bytes_read = k.bytes_written = count * bytes;
    return k;
  };
  const auto pointwise_cost = [&](int64_t count, int64_t second) {
    Cost k;
    k.elementwise = count;
    k.bytes_read = (count + second) * e;
    k.bytes_written = count * e;
    return k;
  };
  const auto sum_cost = [&](int64_t count, bool weighted) {
    Cost k;
    k.elementwise = count * (weighted ? 2 : 1);
    k.bytes_read = count * e * (weighted ? 2 : 1);
    k.bytes_written = 8;
    return k;
  };
  const auto product = [&](int64_t batch, int64_t m, int64_t k, int64_t n, int64_t b_elements) {
    Cost p;
    p.matmul = 2 * batch * m * k * n;
    p.bytes_read = (batch * m * k + b_elements) * e;
    p.bytes_written = batch * m * n * e;
    return p;
  };
  const auto pass = [&](int64_t first, int64_t rows, bool cached) {
    Cost k = model_.embed_cost(b, rows) + model_.forward_cost(b, rows, first, cached, true);
    if (rows != s_.n && b > 1) k += moved(b * rows);  // ids of some rows of several prompts are not packed
    return k;
  };
  const bool cached = s_.incremental;
  const int64_t first = s_.first(), rows = s_.rows(), senders = static_cast<int64_t>(s_.senders.size());
  const Cost finished = model_.finish_cost(b), logits = model_.logits_cost(b),
             heads = moved(b * mix) * c.layers;
  const Cost mlps = s_.freeze && c.mlp != TransformerConfig::Mlp::none ? moved(b * ch) * c.layers : Cost{};
  const Cost difference = pointwise_cost(b * ch, b * ch) + sum_cost(b * ch, true);
  const int64_t tasks = has_input("corrupt_tokens_2") ? 2 : 1;

  ClosedForm f;
  // Answers: two gathers, two differences.
  Cost answers = moved(2 * b * ch) + moved(2 * b) + pointwise_cost(b * ch, b * ch) + pointwise_cost(b, b);
  answers.bytes_read += 2 * 2 * b * 4;
  f.cost += answers;
  Cost run = pass(first, rows, cached);
  if (first > 0) run += pass(0, first, true);
  f.cost += run + heads * 2 + mlps + moved(b * ch) + finished + logits;
  f.cost += sum_cost(b * ch, true) + sum_cost(b, false);
  f.cost += (run + heads + finished + difference) * tasks + logits;
  const int64_t receivers = s_.to_logits ? ch : static_cast<int64_t>(s_.receivers.size()) * d;
  const Cost one = pass(first, rows, cached) * 2 + moved(b * receivers) * 2 + heads + moved(b * d) + mlps +
                   finished + difference;
  f.cost += one * (senders * tasks);
  // Interventions.
  const Cost full = pass(0, s_.n, false) + finished + logits;
  const auto sources = static_cast<int64_t>(s_.sources.size());
  Cost mean;
  if (sources > 0)
    mean = moved(b * d) + pointwise_cost(b * d, b * d) * (sources - 1) + pointwise_cost(b * d, 0);
  const Cost overrides = mean * static_cast<int64_t>(s_.overridden.size());
  const Cost silence = pointwise_cost(b * s_.n * d, 0) * static_cast<int64_t>(s_.ablated.size());
  const bool over = sources > 0, ablate = !s_.ablated.empty();
  if (over) f.cost += full + overrides;
  if (ablate) f.cost += full + silence;
  if (over && ablate) f.cost += full + overrides + silence;
  // Attribution.
  f.cost += pointwise_cost(2 * b * ch, ch) * 2 + product(1, 2 * b, ch, ch, ch * ch);
  f.cost += (product(1, 2 * b, ch, mix, ch * mix) + pointwise_cost(b * mix, mix) +
             product(b * c.heads, 1, d, 2, b * c.heads * 2 * d) * 2) *
            c.layers;

  // The card's F(N), with logits at the last row, for each of a batch's forwards.
  const int64_t wide = c.mlp == TransformerConfig::Mlp::none ? 4 : 12;
  const int64_t forward =
      c.layers * (2 * s_.n * wide * ch * ch + 2 * s_.n * (s_.n + 1) * ch) + 2 * ch * c.vocab;
  const int64_t row = c.layers * (2 * wide * ch * ch + 4 * s_.n * ch);
  f.published_macs = s_.incremental ? forward + row * senders : (1 + senders) * forward;
  f.published_macs_note = s_.incremental ? "two forwards, then two rows a sender" : "2 + 2 senders forwards";
  f.parameters = c.parameters();
  return f;
}

class CircuitReuse final : public Method {
 public:
  const MethodInfo& info() const override { return circuit_info(); }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    require_extent(info(), problem.channels, "channels");
    require_extent(info(), problem.heads, "heads");
    require_extent(info(), problem.length, "length");
    if (!problem.causal)
      throw Unsupported(
          "circuit_reuse: rows before pos stay clean only under a causal mask; set problem.causal");
    if (problem.kv_heads_or_heads() != problem.heads)
      throw Unsupported("circuit_reuse: the stack has a key head for each head");
    return std::make_unique<CircuitInstance>(ctx, problem, setup_of(problem, params));
  }
};
ATTNBENCH_METHOD(CircuitReuse);

}  // namespace
}  // namespace attnbench
