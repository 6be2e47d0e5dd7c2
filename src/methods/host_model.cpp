// The host model as a method: token ids in, hidden states and logits out. Analyses see the heads of all its
// layers.
#include <cmath>
#include <optional>

#include "inputs/inputs.hpp"
#include "kernels/layout/layout.hpp"
#include "methods/attention_rows.hpp"
#include "methods/transformer.hpp"

namespace attnbench {
namespace {

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "transformer";
  m.title = "Transformer host model";
  m.paper =
      "Attention Is All You Need, NeurIPS 2017; GPT-2 (2019), BERT (2018) and Llama (2023) for the three "
      "forms";
  m.arxiv = "1706.03762";
  m.family = "host model (dense, or any heads-form method of the toolbox)";
  m.summary =
      "A whole model around an attention method: embedding, L layers, head of logits. Decoder-only or "
      "encoder, with "
      "seeded weights or those of a safetensors file in the names of GPT-2, Llama, BERT or TransformerLens. "
      "Analyses "
      "see the heads of all layers: head l H + h is head h of layer l.";
  m.formula =
      "x = E[token] + P[position]                                   (rotary positions: in the heads "
      "instead)\n"
      "layer: z^h = softmax(q^h k^h^T / sqrt(D) + mask) v^h,  q, k, v from norm(x);  x += sum_h z^h Wo^h;  "
      "x += mlp(norm(x))\n"
      "bert: x = norm(x + attention(x));  x = norm(x + mlp(x))\n"
      "hidden = norm(x);  logits = hidden U^T";
  m.cost =
      "L (2 B N (2 H + 2 Hkv) D C + 4 B H D P + 2 B N w C F) + 2 B R C V, P pairs a head (N(N+1)/2 causal), "
      "w matrices "
      "of the MLP, R rows with logits; decode: the same pairs, one row at a time.";
  m.params = {
      spec::choice(
          "architecture", {"gpt2", "llama", "bert", "lens"},
          "gpt2: LayerNorm, learned positions, GELU (tanh), tied head; llama: RMSNorm, rotary positions, "
          "gated SiLU, "
          "no biases; bert: post-norm encoder, GELU, no head; lens: gpt2 with its own head, "
          "TransformerLens names"),
      spec::integer("num_layers", 12, 1, "L"),
      spec::integer("mlp_hidden", 0, 0, "width of the MLP; 0: 4 C"),
      spec::param("use_mlp", ParamSpec::Type::boolean, true,
                  "lens only: false makes an attention-only stack"),
      spec::integer("vocab_size", 50257, 2, "V"),
      spec::integer("max_len", 1024, 1, "longest sequence"),
      spec::param("tied", ParamSpec::Type::boolean, false, "llama: the head is the embedding"),
      spec::param("rotary_base", ParamSpec::Type::number, 10000.0, "llama: base of the frequencies"),
      spec::param("norm_eps", ParamSpec::Type::number, Value(), "null: 1e-5, bert 1e-12"),
      spec::param(
          "attention", ParamSpec::Type::text, "",
          "empty: the operator; else a heads-form method with its parameters, 'sliding_window window=64', "
          "or one for "
          "each layer between semicolons"),
      spec::integer("decode", 0, 0, "so many last tokens are fed one by one through the key-value cache"),
      spec::choice("logits", {"last", "all", "none"}, "rows that get logits")};
  m.params[8].nullable = true;
  m.params[8].min = 0;
  m.params[7].min = 1;
  m.kinds = {ProblemKind::sequence};
  m.notes = {
      "No card: the model that the analysing systems need around an attention map. Its own forms are the "
      "published ones.",
      "Seeded weights: normal 0.02, residual projections divided by sqrt(2 L), biases 0 (chosen, GPT-2's).",
      "Weights by name: gpt2 as Hugging Face's gpt2 (wte, wpe, h.l., [in, out]), llama as LlamaForCausalLM "
      "(model.layers.l.), bert as BertModel (embeddings, encoder.layer.l.), lens as TransformerLens "
      "(blocks.l.). The "
      "buffers that such files carry are accepted and ignored.",
      "problem.causal decides the mask in every form; bert's segments are all of type 0.",
      "Tokens are drawn evenly from the vocabulary unless a file gives them."};
  m.example.channels = 32;
  m.example.heads = 4;
  m.example.length = 33;
  m.example.causal = true;
  return m;
}

TransformerConfig config_of(const Problem& problem, const Params& p) {
  const std::string& arch = p.choice("architecture");
  TransformerConfig c = arch == "llama"  ? TransformerConfig::llama()
                        : arch == "bert" ? TransformerConfig::bert()
                                         : TransformerConfig::gpt2();
  c.layers = p.integer("num_layers");
  c.heads = problem.heads;
  c.kv_heads = problem.kv_heads_or_heads();
  c.channels = problem.channels;
  c.head_dim = problem.head_dim ? problem.head_dim : problem.channels / problem.heads;
  c.hidden = p.integer("mlp_hidden") ? p.integer("mlp_hidden") : 4 * c.channels;
  c.vocab = p.integer("vocab_size");
  c.max_len = p.integer("max_len");
  c.rotary_base = p.number("rotary_base");
  c.causal = problem.causal;
  c.dtype = problem.dtype;
  if (arch == "llama") c.tied = p.boolean("tied");
  if (arch == "lens") {
    c.tied = false;
    c.unembed_bias = true;
    if (!p.boolean("use_mlp")) c.mlp = TransformerConfig::Mlp::none;
  }
  if (!p.is_null("norm_eps")) c.eps = p.number("norm_eps");
  return c;
}

WeightNames names_of(const Params& p) {
  const std::string& arch = p.choice("architecture");
  return arch == "gpt2"    ? WeightNames::gpt2
         : arch == "llama" ? WeightNames::llama
         : arch == "bert"  ? WeightNames::bert
                           : WeightNames::transformer_lens;
}

class HostInstance final : public Instance {
 public:
  HostInstance(Context& ctx, const Problem& problem, const Params& params, const TransformerConfig& config)
      : config_(config),
        names_(names_of(params)),
        batch_(problem.batch),
        n_(problem.length),
        decode_(params.integer("decode")),
        attention_(parse_layer_attention(params.text("attention"))),
        model_(config, {}, attention_) {
    input_specs_ = {{"tokens", {batch_, n_}, DType::i32, Init::normal(), false, "token ids [B, N]"}};
    input_specs_[0].init.kind = Init::Kind::values;
    input_specs_[0].init.value = [seed = problem.seed, v = config.vocab](int64_t i) {
      return static_cast<double>(random_bits(seed, stream_of("tokens"), static_cast<uint64_t>(i)) %
                                 static_cast<uint64_t>(v));
    };
    weight_specs_ = transformer_specs(config_, names_);
    hidden_ = ctx.allocate(config_.dtype, {batch_, n_, config_.channels}, MemoryClass::output);
    const std::string& rows = params.choice("logits");
    if (config_.unembed && rows != "none") {
      logit_rows_ = rows == "all" ? n_ : 1;
      logits_ = ctx.allocate(config_.dtype, {batch_, logit_rows_, config_.vocab}, MemoryClass::output);
    }
    plan(ctx, model_);
  }

  void prepare(Context& ctx) override {
    model_ = Transformer(config_, pack_transformer(ctx, config_, names_, weights_), attention_);
    plan(ctx, model_);
    model_.prepare(ctx);
    if (decode_ > 0) cache_ = model_.make_cache(ctx, batch_, n_);
    traced_.clear();
  }

  void run(Context& ctx) override {
    const int64_t prefill = n_ - decode_;
    {
      const auto stage = ctx.stage("prefill");
      pass(ctx, 0, prefill, {});
    }
    const auto stage = ctx.stage("decode");
    for (int64_t t = prefill; t < n_; ++t) pass(ctx, t, 1, {});
  }

  TensorMap outputs() const override {
    TensorMap out{{"hidden", hidden_}};
    if (logits_) out["logits"] = logits_;
    return out;
  }

  ClosedForm cost() const override {
    const int64_t prefill = n_ - decode_;
    ClosedForm f;
    f.cost = pass_cost(0, prefill);
    for (int64_t t = prefill; t < n_; ++t) f.cost += pass_cost(t, 1);
    f.parameters = config_.parameters();
    return f;
  }

  std::optional<PairSet> pairs() const override {
    PairSet all;
    all.batch = batch_;
    all.heads = config_.layers * config_.heads;
    all.layers = config_.layers;
    all.queries = all.tokens = n_;
    if (attention_.empty()) {
      ElementRule rule;
      rule.causal = config_.causal;
      PairSet one = rule_pairs(rule, batch_, all.heads, n_, n_);
      one.layers = config_.layers;
      return one;
    }
    if (decode_ > 0) return std::nullopt;  // each row is its own call
    std::vector<PairSet> layers;
    for (int64_t l = 0; l < config_.layers; ++l) {
      const auto one = model_.instance(l, n_, 0)->pairs();
      if (!one || one->tokens != n_) return std::nullopt;
      all.same_for_all_batches = all.same_for_all_batches && one->same_for_all_batches;
      layers.push_back(*one);
    }
    all.row = [layers, heads = config_.heads](int64_t b, int64_t h, int64_t i, Intervals& out) {
      layers[static_cast<size_t>(h / heads)].row(b, h % heads, i, out);
    };
    return all;
  }

  int64_t keys(int64_t h) const override {
    return attention_.empty() ? n_
                              : model_.instance(h / config_.heads, n_ - decode_, 0)->keys(h % config_.heads);
  }

  bool rows(Context& ctx, int64_t b, int64_t h, int64_t begin, int64_t end,
            std::vector<float>& out) override {
    if (!attention_.empty() && decode_ > 0) return false;
    trace(ctx);
    const int64_t l = h / config_.heads;
    if (attention_.empty())
      return attention_rows(ctx, traced_[static_cast<size_t>(l)], b, h % config_.heads, begin, end, out);
    return load(ctx, l)->rows(ctx, b, h % config_.heads, begin, end, out);
  }

  std::optional<RowStats> row_stats(Context& ctx) override {
    if (!attention_.empty() && decode_ > 0) return std::nullopt;
    trace(ctx);
    RowStats all;
    const Shape shape{batch_, config_.layers * config_.heads, n_};
    for (int64_t l = 0; l < config_.layers; ++l) {
      const auto one = attention_.empty() ? attention_row_stats(ctx, traced_[static_cast<size_t>(l)])
                                          : load(ctx, l)->row_stats(ctx);
      if (!one || one->entropy.shape() != Shape{batch_, config_.heads, n_}) return std::nullopt;
      const auto put = [&](const Tensor& part, Tensor& whole) {
        if (!part) return;
        if (!whole) whole = ctx.allocate(part.dtype(), shape);
        transpose_copy(ctx, {part, whole.slice(1, l * config_.heads, (l + 1) * config_.heads)});
      };
      put(one->entropy, all.entropy);
      put(one->visible_keys, all.visible_keys);
      put(one->row_max_probability, all.row_max_probability);
    }
    return all;
  }

 private:
  void plan(Context& ctx, Transformer& model) const {
    const int64_t prefill = n_ - decode_;
    if (prefill > 0) model.plan(ctx, batch_, prefill, 0);
    for (int64_t t = prefill; t < n_; ++t) model.plan(ctx, batch_, 1, t);
  }

  /// Rows [first, first + rows) of the sequences.
  void pass(Context& ctx, int64_t first, int64_t rows, const Transformer::Hook& hook) {
    if (rows == 0) return;
    const int64_t ch = config_.channels;
    // The residual lives in the output where its rows are packed.
    const bool direct = rows == n_;
    const Tensor x = direct ? hidden_ : ctx.allocate(config_.dtype, {batch_, rows, ch});
    model_.embed(ctx, input("tokens").slice(1, first, first + rows), first, x);
    Transformer::Pass p;
    p.first = first;
    if (decode_ > 0) p.cache = &cache_;
    p.hook = hook;
    model_.forward(ctx, x, p);
    if (hook) return;
    const auto stage = ctx.stage("head");
    const Tensor flat = x.reshape({batch_ * rows, ch});
    model_.finish(ctx, flat, flat);
    if (!direct) transpose_copy(ctx, {x, hidden_.slice(1, first, first + rows)});
    if (!logits_) return;
    if (logit_rows_ == n_) {
      Tensor y = logits_.reshape({batch_ * n_, config_.vocab});
      if (!direct) y = ctx.allocate(config_.dtype, {batch_ * rows, config_.vocab});
      model_.logits(ctx, flat, y);
      if (!direct)
        transpose_copy(ctx,
                       {y.reshape({batch_, rows, config_.vocab}), logits_.slice(1, first, first + rows)});
    } else if (first + rows == n_) {
      model_.logits(ctx, x.select(1, rows - 1), logits_.select(1, 0));
    }
  }

  Cost pass_cost(int64_t first, int64_t rows) const {
    Cost c;
    if (rows == 0) return c;
    const int64_t element = static_cast<int64_t>(size_of(config_.dtype)), all = batch_ * rows;
    const auto moved = [&](int64_t count, int64_t bytes) {
      c.bytes_read += count * bytes, c.bytes_written += count * bytes;
    };
    const bool direct = rows == n_;
    // Ids of some rows of several sequences are not packed.
    if (!direct && batch_ > 1) moved(all, 4);
    c += model_.embed_cost(batch_, rows) + model_.forward_cost(batch_, rows, first, decode_ > 0, false);
    Cost finish = model_.finish_cost(all);
    if (!config_.post_norm) c += finish;  // in place there is nothing to copy
    if (!direct) moved(all * config_.channels, element);
    if (!logits_) return c;
    if (logit_rows_ == n_) {
      c += model_.logits_cost(all);
      if (!direct) moved(all * config_.vocab, element);
    } else if (first + rows == n_) {
      c += model_.logits_cost(batch_);
    }
    return c;
  }

  /// Runs once more and keeps every layer's queries and keys, as its attention sees them.
  void trace(Context& ctx) {
    if (!traced_.empty()) return;
    const auto kept = [&](const Tensor& t) {
      const Tensor own = ctx.allocate(t.dtype(), t.shape());
      transpose_copy(ctx, {t, own});
      return own;
    };
    traced_.resize(static_cast<size_t>(config_.layers));
    const Tensor x = ctx.allocate(config_.dtype, {batch_, n_, config_.channels});
    static const BlockMask causal = [] {
      BlockMask m;
      m.rule.causal = true;
      return m;
    }();
    if (!attention_.empty() && decode_ > 0)
      throw Error("transformer: decoding with a method is not traced (a bug)");
    model_.embed(ctx, input("tokens"), 0, x);
    Transformer::Pass p;
    p.hook = [&](Context&, const Transformer::Tap& a) {
      AttentionArgs& call = traced_[static_cast<size_t>(a.layer)];
      if (a.site == Transformer::Site::q) call.q = kept(a.value);
      if (a.site == Transformer::Site::k) call.k = kept(a.value);
      if (a.site != Transformer::Site::v) return;
      call.v = kept(a.value);
      call.o = ctx.allocate(config_.dtype, call.q.shape());
      call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
      if (config_.causal) call.mask = &causal;
    };
    model_.forward(ctx, x, p);
    loaded_ = -1;
  }

  /// The method of layer l, run on what the layer gave it.
  Instance* load(Context& ctx, int64_t l) {
    Instance* i = model_.instance(l, n_, 0);
    if (loaded_ == l) return i;
    const AttentionArgs& call = traced_[static_cast<size_t>(l)];
    copy(ctx, call.q, i->inputs().at("q"));
    copy(ctx, call.k, i->inputs().at("k"));
    copy(ctx, call.v, i->inputs().at("v"));
    i->run(ctx);
    loaded_ = l;
    return i;
  }

  TransformerConfig config_;
  WeightNames names_;
  int64_t batch_, n_, decode_, logit_rows_ = 0;
  std::vector<LayerAttention> attention_;
  Transformer model_;
  Transformer::Cache cache_;
  Tensor hidden_, logits_;
  std::vector<AttentionArgs> traced_;
  int64_t loaded_ = -1;
};

class HostModel final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo info = describe();
    return info;
  }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    require_extent(info(), problem.channels, "channels");
    require_extent(info(), problem.heads, "heads");
    require_extent(info(), problem.length, "length");
    if (problem.kv_length && problem.kv_length != problem.length)
      throw Unsupported("transformer: a model reads its own tokens; problem.kv_length has no meaning");
    const TransformerConfig config = config_of(problem, params);
    if (problem.length > config.max_len)
      throw UsageError("transformer.max_len: " + std::to_string(config.max_len) +
                       " is below problem.length " + std::to_string(problem.length));
    const int64_t decode = params.integer("decode");
    if (decode > problem.length)
      throw UsageError("transformer.decode: " + std::to_string(decode) + " exceeds problem.length " +
                       std::to_string(problem.length));
    if (decode > 0 && !config.causal)
      throw Unsupported(
          "transformer: rows that see later ones cannot be decoded one by one; set problem.causal");
    return std::make_unique<HostInstance>(ctx, problem, params, config);
  }
};
ATTNBENCH_METHOD(HostModel);

}  // namespace
}  // namespace attnbench
