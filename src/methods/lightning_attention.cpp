// Lightning Attention: causal linear attention with a fixed decay per head, as kernel, token mixer (GLA) or
// layer.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "kernels/norm/norm.hpp"
#include "methods/attention_rows.hpp"
#include "methods/heads_form.hpp"

namespace attnbench {
namespace {

// Added to the mean square by the authors' SRMSNorm; the layer norm of their module keeps PyTorch's default.
constexpr float kRmsEps = 1e-6f, kLayerNormEps = 1e-5f;

MethodInfo describe() {
  MethodInfo m;
  m.id = m.card = "lightning_attention";
  m.title = "Lightning Attention";
  m.paper = "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention, 2024";
  m.arxiv = "2405.17381";
  m.family = "linear";
  m.summary =
      "Linear attention with a fixed exponential decay per head, no softmax and no normaliser. Tiling "
      "computes the "
      "left product inside blocks and carries a D x E state between them, so time is linear in N and memory "
      "constant. `gla` and `layer` are the token mixer and the transformer layer that the paper builds "
      "around it.";
  m.formula =
      "o_t = sum_{s <= t} lambda_h^(t-s) (q_t . k_s) v_s\n"
      "chunk:     O_blk = ((Q K^T) had M_blk) V + Lambda Q KV;  KV <- lambda^Bk KV + (lambda^Bk Lambda^-1 "
      "K)^T V\n"
      "recurrent: kv <- lambda kv + k_t v_t^T;  o_t = kv^T q_t\n"
      "quadratic: O = ((Q K^T) had M) V,  M_ts = lambda^(t-s) for s <= t\n"
      "parallel:  the chunk form with the block sums first and a decayed scan over them\n"
      "LRPE:      x_t -> concat(x_t cos(theta t), x_t sin(theta t)) for q and k\n"
      "gla:       Q = silu(X W_q), K = silu(X W_k), V = X W_v, U = X W_u;  Y = (norm(o) had U) W_o\n"
      "layer:     R = X + gla(norm(X));  Y = R + ((norm(R) W_1) had (norm(R) W_2)) W_3";
  m.cost =
      "Per head, full Bk x Bk tiles: N (2 Bk D + 2 Bk E + 4 D E) matmul FLOPs and N Bk for the mask; "
      "recurrent "
      "4 N D E + N D E; quadratic about N^2 (D + E). GLA adds 10 N C^2 and has 5 C^2 parameters; SGLU adds 6 "
      "N C F "
      "and has 3 C F.";
  ParamSpec values = spec::param("decay_values", ParamSpec::Type::list, Value(Value::List{}),
                                 "lambda of every head in (0, 1], for decay: list");
  values.min = 0.0;
  values.max = 1.0;
  m.params = {
      spec::integer("block_size", 64, 1, "Bk, rows a block; the paper picks about D"),
      spec::choice("variant", {"chunk", "recurrent", "quadratic", "parallel"},
                   "which of the equal forms is computed"),
      spec::choice(
          "decay", {"alibi", "none", "alibi_layer", "tnl_paper", "list"},
          "lambda_h: alibi exp(-2^(-8h/H)); alibi_layer: that rate times 1 - l/(L-1) + 1e-5; tnl_paper "
          "exp(-(8h/H)(1 - l/L)); none: 1"),
      values,
      spec::integer("layer_idx", 0, 0, "l, for alibi_layer and tnl_paper"),
      spec::integer("num_layers", 24, 1, "L, for alibi_layer (at least 2) and tnl_paper"),
      spec::param("lrpe", ParamSpec::Type::boolean, false, "LRPE on q and k: doubles their width"),
      spec::choice("module", {"kernel", "gla", "layer"},
                   "kernel: q, k, v -> o; gla: token mixer X -> Y; layer: with SGLU"),
      spec::choice("norm", {"srmsnorm", "layernorm", "rmsnorm", "none"},
                   "norm of the mixer's output, over merged heads"),
      spec::choice("gate", {"linear", "lowrank_sigmoid", "none"},
                   "linear: U = X W_u; lowrank_sigmoid: sigmoid(X W_g1 W_g2), and SiLU on V too"),
      spec::integer("ffn_dim", Value(), 1, "F of SGLU; null: 8C/3 rounded up to a multiple of 256"),
      spec::integer("value_dim", Value(), 1, "E of v, module kernel only; null: D"),
      spec::param("causal", ParamSpec::Type::boolean, true, "false: o = q (sum_s k_s v_s^T), without decay"),
      spec::param(
          "state", ParamSpec::Type::boolean, false,
          "module kernel: goes on from kv_in, the KV of the tokens before, and gives kv_out: prefill in "
          "pieces "
          "and, with one token and variant recurrent, decoding")};
  m.kinds = {ProblemKind::sequence};
  m.figures = {{"forward time", "B4 H32 D128 bf16 causal, N=32768", "FlashAttention-2",
                "17.661 ms vs 162.896 ms = 9.22x", "kernel repository, README"},
               {"forward time", "same, N=8192 / 4096 / 2048 / 512", "FlashAttention-2",
                "2.35x / 1.22x / 0.665x / 0.269x", "kernel repository, README"},
               {"backward time", "same, N=32768 / 8192 / 4096", "FlashAttention-2", "6.31x / 1.72x / 0.955x",
                "kernel repository, README"},
               {"forward, backward time", "same, N=32768", "xFormers causal", "16.2x, 14.4x",
                "kernel repository, README"},
               {"constant speed", "same, N 4096 -> 32768", "itself",
                "time x7.88 forward, x8.01 backward for 8x tokens", "kernel repository, README"},
               {"no decay vs decay", "same, N=32768 forward", "decay kernel", "23.88 vs 17.83 ms",
                "kernel repository, benchmarks/README"},
               {"forward memory", "same, N=512", "FlashAttention-2", "64.0005 vs 64.251 MiB, linear in N",
                "kernel repository, README"},
               {"backward memory", "same, N=32768", "FlashAttention-2, xFormers",
                "11110 vs 13190 vs 17286 MiB", "kernel repository, README"},
               {"SRMSNorm fused", "B12 C2048 bf16, N=8192 forward", "unfused PyTorch",
                "0.461 vs 4.365 ms = 9.5x; memory 768 vs 3072 MiB", "kernel repository, benchmarks/README"},
               {"inference throughput 7B", "A100 80G, 512 prompt, up to 1024 new tokens",
                "Pythia, Baichuan2, LLaMA2, ...", "2819.6 tokens/s, up to 11x", "paper, Fig. 5"},
               {"ablation, Mix position code", "385M, 100K updates", "LRPE-d in every layer",
                "training 15-20 % faster; loss 2.248 vs 2.236", "paper, Sec. 4.2, Table 4"},
               {"Wikitext-103 test perplexity", "45.45M parameters", "Transformer 44.65M", "24.03 vs 24.78",
                "paper, Table 1"}};
  m.notes = {
      "Causal by definition, whatever problem.causal says; `causal: false` is an extension and needs lambda "
      "= 1.",
      "The paper does not say where l of its decay (tnl_paper) starts; 0 .. L-1 is chosen. num_layers = 24 "
      "is chosen.",
      "For H = 8 the paper's layer-0 rates are 1, 2, .., 8, those of the authors' code (alibi) 0.5, 0.25, "
      ".., 1/256.",
      "theta of LRPE is a learned weight (f32, initialised to 10000^(-2 idx / (H D))); with lrpe the module "
      "kernel "
      "takes it too. Its cosine and sine tables are made in prepare().",
      "The weights of the optional norms are norm_weight and norm_bias [C], those of the low-rank gate W_g1 "
      "[C,D] "
      "and W_g2 [D,C] (names chosen).",
      "Forward only: the backward figures are listed for completeness.",
      "variant quadratic, tile by tile without an N x N buffer, is the left product of Lightning "
      "Attention-1; "
      "chunk and parallel are Lightning Attention-2.",
      "kv_in and kv_out [B, H, D, E] are f32 for every dtype (names chosen).",
      "Effective rows for analyses are |a_ts| / sum_s |a_ts| (chosen: the weights are signed and do not sum "
      "to 1)."};
  m.example.batch = 2;
  m.example.heads = 4;
  m.example.length = 150;
  m.example.head_dim = 32;
  m.example.causal = true;
  return m;
}

const MethodInfo& lightning_info() {
  static const MethodInfo info = describe();
  return info;
}

/// ALiBi's rates: 2^(-8h/H) for a power of two; otherwise those of the largest power of two below H, then
/// every second one of the next.
std::vector<double> alibi_rates(int64_t heads) {
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<double> rates;
  for (int64_t h = 1; h <= power; ++h)
    rates.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(power)));
  for (int64_t h = 1; static_cast<int64_t>(rates.size()) < heads; h += 2)
    rates.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(2 * power)));
  return rates;
}

/// ln(lambda_h) <= 0 of every head.
std::vector<double> log_decays(const Params& params, int64_t heads) {
  const std::string& schedule = params.choice("decay");
  const auto layer = params.integer("layer_idx"), layers = params.integer("num_layers");
  if (layer >= layers)
    throw UsageError("lightning_attention.layer_idx: " + std::to_string(layer) + " is not below num_layers " +
                     std::to_string(layers));
  std::vector<double> log_decay(static_cast<size_t>(heads), 0.0);
  if (schedule == "list") {
    const Value::List& values = params.value("decay_values").as_list();
    if (static_cast<int64_t>(values.size()) != heads)
      throw UsageError("lightning_attention.decay_values: " + std::to_string(values.size()) + " values for " +
                       std::to_string(heads) + " heads");
    for (size_t h = 0; h < values.size(); ++h) {
      if (!(values[h].as_double() > 0.0))
        throw UsageError("lightning_attention.decay_values: a decay above 0 is wanted, not " +
                         values[h].str());
      log_decay[h] = std::log(values[h].as_double());
    }
    return log_decay;
  }
  if (!params.value("decay_values").as_list().empty())
    throw UsageError("lightning_attention.decay_values: only decay: list reads them, and decay is " +
                     schedule);
  if (schedule == "none") return log_decay;
  if (schedule == "tnl_paper") {
    for (size_t h = 0; h < log_decay.size(); ++h)
      log_decay[h] = -8.0 * static_cast<double>(h + 1) / static_cast<double>(heads) *
                     (1.0 - static_cast<double>(layer) / static_cast<double>(layers));
    return log_decay;
  }
  double factor = 1.0;
  if (schedule == "alibi_layer") {
    if (layers < 2)
      throw UsageError(
          "lightning_attention.num_layers: decay alibi_layer divides by num_layers - 1; at least 2 is "
          "wanted, not " +
          std::to_string(layers));
    factor = 1.0 - static_cast<double>(layer) / static_cast<double>(layers - 1) + 1e-5;
  }
  const std::vector<double> rates = alibi_rates(heads);
  for (size_t h = 0; h < log_decay.size(); ++h) log_decay[h] = -rates[h] * factor;
  return log_decay;
}

/// The kernel with its decay and position code; modules are built around it.
class LightningInstance : public Instance {
 public:
  LightningInstance(const Problem& problem, const Params& params, int64_t head_dim, int64_t value_dim)
      : batch_(problem.batch),
        heads_(problem.heads),
        n_(problem.tokens()),
        d_(head_dim),
        e_(value_dim),
        dtype_(problem.dtype),
        lrpe_(params.boolean("lrpe")),
        causal_(params.boolean("causal")),
        state_(params.boolean("state")),
        block_size_(params.integer("block_size")),
        log_decay_values_(log_decays(params, problem.heads)) {
    using Form = LinearAttentionArgs::Form;
    const std::string& variant = params.choice("variant");
    form_ = variant == "chunk"       ? Form::chunk
            : variant == "recurrent" ? Form::recurrent
            : variant == "quadratic" ? Form::quadratic
                                     : Form::parallel;
    if (problem.kv_heads_or_heads() != heads_)
      throw Unsupported("lightning_attention has one key head for each query head, and problem.kv_heads is " +
                        std::to_string(problem.kv_heads));
    if (problem.kv_length_or_length() != n_)
      throw Unsupported(
          "lightning_attention relates each token to those before it, so problem.kv_length must equal "
          "length " +
          std::to_string(n_) + ", not " + std::to_string(problem.kv_length));
    if (!causal_ && problem.causal)
      throw UsageError("lightning_attention.causal: false contradicts problem.causal = true");
    if (state_ && (lrpe_ || !causal_ || params.choice("module") != "kernel"))
      throw Unsupported(
          "lightning_attention.state: a state is carried by the causal kernel without lrpe (whose angles "
          "count "
          "from the sequence's start)");
    const bool decays =
        std::any_of(log_decay_values_.begin(), log_decay_values_.end(), [](double l) { return l < 0; });
    if (!causal_ && decays)
      throw Unsupported(
          "lightning_attention without causality sums over all keys alike: it needs decay: none, not " +
          params.choice("decay"));
    if (lrpe_) {
      const double exponent = -2.0 / static_cast<double>(heads_ * d_);
      Init theta;
      theta.kind = Init::Kind::values;
      theta.value = [exponent](int64_t index) {
        return std::pow(10000.0, exponent * static_cast<double>(index));
      };
      weight_specs_.push_back(
          {"theta", {heads_, 1, d_}, DType::f32, theta, false, "LRPE rates, radians a token"});
    }
  }

  void prepare(Context& ctx) override {
    log_decay_ = upload(ctx, DType::f32, {heads_}, log_decay_values_);
    if (!lrpe_) return;
    // In double on the host: theta t reaches thousands of radians, where f32 has lost the phase.
    const Tensor theta = on_host(ctx, weight("theta"));
    std::vector<double> cosines, sines;
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t t = 0; t < n_; ++t)
        for (int64_t c = 0; c < d_; ++c) {
          const double angle = static_cast<double>(theta.data<float>()[h * d_ + c]) * static_cast<double>(t);
          cosines.push_back(std::cos(angle));
          sines.push_back(std::sin(angle));
        }
    cosines_ = upload(ctx, dtype_, {heads_, n_, d_}, cosines);
    sines_ = upload(ctx, dtype_, {heads_, n_, d_}, sines);
  }

  std::optional<PairSet> pairs() const override {
    ElementRule rule;
    rule.causal = causal_;
    return rule_pairs(rule, batch_, heads_, n_, n_);
  }
  int64_t keys(int64_t) const override { return n_; }

  bool rows(Context& ctx, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
            std::vector<float>& out) override {
    const Tensor q = on_host(ctx, q_.select(0, b).select(0, h)),
                 k = on_host(ctx, k_.select(0, b).select(0, h));
    const int64_t width = q.dim(1);
    const double log_decay = log_decay_values_[static_cast<size_t>(h)];
    // Further back, lambda^r is below the smallest f32 (2^-149, ln = -103.3): those entries are 0.
    const int64_t window = log_decay < 0 ? static_cast<int64_t>(std::min(104.0 / -log_decay, 9e15)) : n_;
    const auto load = [width](const Tensor& t, int64_t row, std::vector<float>& values) {
      const char* at =
          static_cast<const char*>(t.raw()) + row * t.stride(0) * static_cast<int64_t>(size_of(t.dtype()));
      convert(at, t.dtype(), values.data(), DType::f32, width);
    };
    const int64_t first = causal_ ? std::max<int64_t>(0, q_begin - window) : 0, last = causal_ ? q_end : n_;
    std::vector<std::vector<float>> key_rows(static_cast<size_t>(last - first),
                                             std::vector<float>(static_cast<size_t>(width)));
    for (int64_t s = first; s < last; ++s) load(k, s, key_rows[static_cast<size_t>(s - first)]);
    out.assign(static_cast<size_t>((q_end - q_begin) * n_), 0.0f);
#pragma omp parallel num_threads(ctx.threads())
    {
      std::vector<float> query(static_cast<size_t>(width));
#pragma omp for schedule(dynamic)
      for (int64_t t = q_begin; t < q_end; ++t) {
        load(q, t, query);
        float* row = out.data() + (t - q_begin) * n_;
        double sum = 0;
        for (int64_t s = causal_ ? std::max<int64_t>(0, t - window) : 0; s < (causal_ ? t + 1 : n_); ++s) {
          double dot = 0;
          const std::vector<float>& key = key_rows[static_cast<size_t>(s - first)];
          for (size_t c = 0; c < query.size(); ++c)
            dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
          const double a = std::abs(dot) * std::exp(log_decay * static_cast<double>(t - s));
          row[s] = static_cast<float>(a);
          sum += a;
        }
        if (sum == 0.0) continue;
        for (int64_t s = first; s < last; ++s) row[s] = static_cast<float>(static_cast<double>(row[s]) / sum);
      }
    }
    return true;
  }

 protected:
  /// q, k [B, H, N, D] and v, o [B, H, N, E], any strides with contiguous rows.
  void attend(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o) {
    q_ = q;
    k_ = k;
    if (lrpe_) {
      const auto stage = ctx.stage("position");
      q_ = rotated(ctx, q);
      k_ = rotated(ctx, k);
    }
    const auto stage = ctx.stage("attend");
    LinearAttentionArgs a;
    a.form = form_;
    a.q = q_;
    a.k = k_;
    a.v = v;
    a.o = o;
    a.log_decay = log_decay_;
    a.block_size = block_size_;
    a.causal = causal_;
    if (state_) a.state_in = input("kv_in"), a.state_out = kv_out_;
    linear_attention(ctx, a);
  }

  /// Cost of attend().
  Cost attend_cost() const {
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    const int64_t tokens = batch_ * heads_ * n_, width = lrpe_ ? 2 * d_ : d_;
    Cost c;
    if (lrpe_) {
      // q and k times cosines and sines, each product reading its operands.
      c.elementwise += 4 * tokens * d_;
      c.bytes_read += 8 * tokens * d_ * bytes;
      c.bytes_written += 4 * tokens * d_ * bytes;
    }
    using Form = LinearAttentionArgs::Form;
    // Shapes alone decide the charge, so the arguments need no memory behind them.
    LinearAttentionArgs a;
    const auto shaped = [&](DType dtype, const Shape& shape) {
      return Tensor::borrow(DeviceKind::cpu, dtype, shape, nullptr);
    };
    a.form = form_;
    a.causal = causal_;
    a.block_size = block_size_;
    a.q = a.k = shaped(dtype_, {batch_, heads_, n_, width});
    a.v = a.o = shaped(dtype_, {batch_, heads_, n_, e_});
    a.log_decay = shaped(DType::f32, {heads_});
    if (state_) a.state_in = a.state_out = shaped(DType::f32, {batch_, heads_, d_, e_});
    Cost kernel = linear_attention_cost(a);
    if (causal_ && (form_ == Form::chunk || form_ == Form::parallel)) {
      // The card's formula.
      kernel.matmul = tokens * (2 * block_size_ * width + 2 * block_size_ * e_ + 4 * width * e_);
      kernel.elementwise = tokens * block_size_;
    } else if (causal_ && form_ == Form::recurrent) {
      kernel.matmul = 4 * tokens * width * e_;
      kernel.elementwise = tokens * width * e_;
    }
    return c + kernel;
  }

  int64_t batch_, heads_, n_, d_, e_;
  DType dtype_;
  bool lrpe_, causal_, state_;
  int64_t block_size_;
  LinearAttentionArgs::Form form_;
  Tensor kv_out_;

 private:
  Tensor rotated(Context& ctx, const Tensor& x) {
    const Tensor y = ctx.allocate(dtype_, {batch_, heads_, n_, 2 * d_});
    for (int64_t b = 0; b < batch_; ++b)
      for (const bool sine : {false, true}) {
        PointwiseArgs a;
        a.op = PointwiseArgs::Op::mul;
        a.a = x.select(0, b);
        a.b = sine ? sines_ : cosines_;
        a.y = y.select(0, b).slice(2, sine ? d_ : 0, sine ? 2 * d_ : d_);
        pointwise(ctx, a);
      }
    return y;
  }

  std::vector<double> log_decay_values_;
  Tensor log_decay_, cosines_, sines_;
  Tensor q_, k_;  ///< as the kernel of the last run saw them, for rows()
};

class KernelInstance final : public LightningInstance {
 public:
  KernelInstance(Context& ctx, const Problem& problem, const Params& params, int64_t value_dim)
      : LightningInstance(problem, params, problem.head_dim, value_dim) {
    const Shape qk{batch_, heads_, n_, d_}, vo{batch_, heads_, n_, e_};
    input_specs_ = {{"q", qk, dtype_, Init::normal(), false, "queries [B, H, N, D]"},
                    {"k", qk, dtype_, Init::normal(), false, "keys [B, H, N, D]"},
                    {"v", vo, dtype_, Init::normal(), false, "values [B, H, N, E]"}};
    o_ = ctx.allocate(dtype_, vo, MemoryClass::output);
    if (!state_) return;
    const Shape kv{batch_, heads_, d_, e_};
    input_specs_.push_back({"kv_in", kv, DType::f32, Init::normal(), false, "KV of the tokens before"});
    kv_out_ = ctx.allocate(DType::f32, kv, MemoryClass::output);
  }
  void run(Context& ctx) override { attend(ctx, input("q"), input("k"), input("v"), o_); }
  TensorMap outputs() const override {
    return state_ ? TensorMap{{"o", o_}, {"kv_out", kv_out_}} : TensorMap{{"o", o_}};
  }
  ClosedForm cost() const override {
    ClosedForm c;
    c.cost = attend_cost();
    c.parameters = lrpe_ ? heads_ * d_ : 0;
    return c;
  }

 private:
  Tensor o_;
};

/// The token mixer and, with `layer`, its transformer layer.
class MixerInstance final : public LightningInstance {
 public:
  MixerInstance(Context& ctx, const Problem& problem, const Params& params, int64_t head_dim)
      : LightningInstance(problem, params, head_dim, head_dim),
        channels_(problem.channels),
        layer_(params.choice("module") == "layer"),
        norm_(params.choice("norm")),
        gate_(params.choice("gate")),
        // The authors' default, 2816 at C = 1024, is this rule.
        ffn_(!params.is_null("ffn_dim") ? params.integer("ffn_dim") : (8 * channels_ + 767) / 768 * 256) {
    const int64_t c = channels_;
    input_specs_ = {{"X", {batch_, n_, c}, dtype_, Init::normal(), false, "tokens [B, N, C]"}};
    const auto matrix = [&](const char* name, int64_t in, int64_t out, const char* meaning) {
      weight_specs_.push_back({name, {in, out}, dtype_, Init::normal(0, 0.02), false, meaning});
    };
    matrix("W_q", c, c, "queries, stored [in, out]");
    matrix("W_k", c, c, "keys, stored [in, out]");
    matrix("W_v", c, c, "values, stored [in, out]");
    if (gate_ == "linear") matrix("W_u", c, c, "gate, stored [in, out]");
    if (gate_ == "lowrank_sigmoid") {
      matrix("W_g1", c, d_, "gate, first factor, stored [in, out]");
      matrix("W_g2", d_, c, "gate, second factor, stored [in, out]");
    }
    matrix("W_o", c, c, "output, stored [in, out]");
    if (norm_ == "layernorm" || norm_ == "rmsnorm")
      weight_specs_.push_back({"norm_weight", {c}, dtype_, Init::constant(1), false, "gain of the norm"});
    if (norm_ == "layernorm")
      weight_specs_.push_back({"norm_bias", {c}, dtype_, Init::constant(0), false, "offset of the norm"});
    if (layer_) {
      matrix("W_1", c, ffn_, "SGLU, first factor, stored [in, out]");
      matrix("W_2", c, ffn_, "SGLU, second factor, stored [in, out]");
      matrix("W_3", ffn_, c, "SGLU, output, stored [in, out]");
    }
    y_ = ctx.allocate(dtype_, {batch_, n_, c}, MemoryClass::output);
  }

  TensorMap outputs() const override { return {{"Y", y_}}; }

  void run(Context& ctx) override {
    const Tensor x = input("X");
    if (!layer_) {
      mix(ctx, x, y_);
      return;
    }
    const Tensor r = ctx.allocate(dtype_, x.shape()), normed = ctx.allocate(dtype_, x.shape());
    {
      const auto stage = ctx.stage("norm");
      srms_norm(ctx, x, normed);
    }
    mix(ctx, normed, r);
    {
      const auto stage = ctx.stage("residual");
      binary(ctx, PointwiseArgs::Op::add, r, x, r);
    }
    {
      const auto stage = ctx.stage("norm");
      srms_norm(ctx, r, normed);
    }
    {
      const auto stage = ctx.stage("ffn");
      const Tensor wide = ctx.allocate(dtype_, {batch_, n_, ffn_}), gate = ctx.allocate(dtype_, wide.shape());
      product(ctx, normed, weight("W_1"), wide);
      product(ctx, normed, weight("W_2"), gate);
      binary(ctx, PointwiseArgs::Op::mul, wide, gate, wide);
      product(ctx, wide, weight("W_3"), y_);
    }
    const auto stage = ctx.stage("residual");
    binary(ctx, PointwiseArgs::Op::add, y_, r, y_);
  }

  ClosedForm cost() const override {
    const int64_t tokens = batch_ * n_, c = channels_;
    const auto bytes = static_cast<int64_t>(size_of(dtype_));
    const auto product_cost = [&](int64_t in, int64_t out, bool activation) {
      Cost p;
      p.matmul = 2 * tokens * in * out;
      p.special = activation ? tokens * out : 0;
      p.bytes_read = (tokens * in + in * out) * bytes;
      p.bytes_written = tokens * out * bytes;
      return p;
    };
    const auto binary_cost = [&](int64_t width, bool special) {
      Cost p;
      (special ? p.special : p.elementwise) = tokens * width;
      p.bytes_read = 2 * tokens * width * bytes;
      p.bytes_written = tokens * width * bytes;
      return p;
    };
    const auto norm_cost = [&](bool centred, int64_t gains) {
      Cost p;
      p.elementwise = tokens * c * (centred ? 5 : 4);
      p.special = 2 * tokens;
      p.bytes_read = (tokens * c + gains * c) * bytes;
      p.bytes_written = tokens * c * bytes;
      return p;
    };
    const bool low_rank = gate_ == "lowrank_sigmoid";
    ClosedForm f;
    f.cost = attend_cost();
    f.cost += product_cost(c, c, true) * 2 + product_cost(c, c, low_rank) + product_cost(c, c, false);
    f.parameters = 4 * c * c + (lrpe_ ? c : 0);
    if (gate_ == "linear") {
      f.cost += product_cost(c, c, false) + binary_cost(c, false);
      f.parameters += c * c;
    } else if (low_rank) {
      f.cost += product_cost(c, d_, false) + product_cost(d_, c, false) + binary_cost(c, true);
      f.parameters += 2 * c * d_;
    }
    if (norm_ != "none") {
      const int64_t gains = norm_ == "layernorm" ? 2 : norm_ == "rmsnorm" ? 1 : 0;
      f.cost += norm_cost(norm_ == "layernorm", gains);
      f.parameters += gains * c;
    }
    if (layer_) {
      f.cost += norm_cost(false, 0) * 2 + binary_cost(c, false) * 2 + product_cost(c, ffn_, false) * 2 +
                binary_cost(ffn_, false) + product_cost(ffn_, c, false);
      f.parameters += 3 * c * ffn_;
    }
    return f;
  }

 private:
  void product(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& y,
               Activation activation = Activation::none) {
    GemmArgs a;
    a.a = x.reshape({batch_ * n_, w.dim(0)});
    a.b = w;
    a.c = y.reshape({batch_ * n_, w.dim(1)});
    a.activation = activation;
    gemm(ctx, a);
  }
  static void binary(Context& ctx, PointwiseArgs::Op op, const Tensor& a, const Tensor& b, const Tensor& y) {
    PointwiseArgs p;
    p.op = op;
    p.a = a;
    p.b = b;
    p.y = y;
    pointwise(ctx, p);
  }
  static void srms_norm(Context& ctx, const Tensor& x, const Tensor& y) {
    NormArgs a;
    a.kind = NormArgs::Kind::rms_norm;
    a.x = x;
    a.y = y;
    a.eps = kRmsEps;
    normalize(ctx, a);
  }

  /// The token mixer: x [B, N, C] -> y.
  void mix(Context& ctx, const Tensor& x, const Tensor& y) {
    const Shape shape{batch_, n_, channels_};
    const Tensor q = ctx.allocate(dtype_, shape), k = ctx.allocate(dtype_, shape),
                 v = ctx.allocate(dtype_, shape);
    const bool low_rank = gate_ == "lowrank_sigmoid";
    Tensor u;
    {
      const auto stage = ctx.stage("project");
      product(ctx, x, weight("W_q"), q, Activation::silu);
      product(ctx, x, weight("W_k"), k, Activation::silu);
      product(ctx, x, weight("W_v"), v, low_rank ? Activation::silu : Activation::none);
      if (gate_ == "linear") {
        u = ctx.allocate(dtype_, shape);
        product(ctx, x, weight("W_u"), u);
      } else if (low_rank) {
        const Tensor narrow = ctx.allocate(dtype_, {batch_, n_, d_});
        u = ctx.allocate(dtype_, shape);
        product(ctx, x, weight("W_g1"), narrow);
        product(ctx, narrow, weight("W_g2"), u);
      }
    }
    const Tensor mixed = ctx.allocate(dtype_, shape);
    attend(ctx, split_heads(q, heads_), split_heads(k, heads_), split_heads(v, heads_),
           split_heads(mixed, heads_));
    if (norm_ != "none") {
      const auto stage = ctx.stage("norm");
      NormArgs a;
      a.kind = norm_ == "layernorm" ? NormArgs::Kind::layer_norm : NormArgs::Kind::rms_norm;
      a.x = a.y = mixed;
      if (norm_ != "srmsnorm") a.gain = weight("norm_weight");
      if (norm_ == "layernorm") a.offset = weight("norm_bias");
      a.eps = norm_ == "layernorm" ? kLayerNormEps : kRmsEps;
      normalize(ctx, a);
    }
    if (u) {
      const auto stage = ctx.stage("gate");
      if (low_rank)
        binary(ctx, PointwiseArgs::Op::sigmoid_mul, u, mixed, mixed);
      else
        binary(ctx, PointwiseArgs::Op::mul, mixed, u, mixed);
    }
    const auto stage = ctx.stage("out");
    product(ctx, mixed, weight("W_o"), y);
  }

  int64_t channels_;
  bool layer_;
  std::string norm_, gate_;
  int64_t ffn_;
  Tensor y_;
};

class LightningAttention final : public Method {
 public:
  const MethodInfo& info() const override { return lightning_info(); }

  std::unique_ptr<Instance> make(Context& ctx, const Problem& problem, const Params& params) const override {
    require_kind(info(), problem);
    require_extent(info(), problem.heads, "heads");
    require_extent(info(), problem.tokens(), "length");
    if (params.choice("module") == "kernel") {
      require_extent(info(), problem.head_dim, "head_dim (module kernel is given q, k and v)");
      const int64_t value_dim = params.is_null("value_dim") ? problem.head_dim : params.integer("value_dim");
      return std::make_unique<KernelInstance>(ctx, problem, params, value_dim);
    }
    require_extent(info(), problem.channels, "channels (modules gla and layer are given X)");
    if (problem.channels % problem.heads != 0)
      throw UsageError("problem.channels: " + std::to_string(problem.channels) +
                       " is not divisible by heads " + std::to_string(problem.heads));
    const int64_t head_dim = problem.channels / problem.heads;
    if (problem.head_dim && problem.head_dim != head_dim)
      throw UsageError("problem.head_dim: the mixer splits channels evenly, so " + std::to_string(head_dim) +
                       " is wanted, not " + std::to_string(problem.head_dim));
    if (!params.is_null("value_dim") && params.integer("value_dim") != head_dim)
      throw Unsupported("lightning_attention.value_dim: modules gla and layer have E = D = " +
                        std::to_string(head_dim) + "; only module kernel takes another E");
    return std::make_unique<MixerInstance>(ctx, problem, params, head_dim);
  }
};
ATTNBENCH_METHOD(LightningAttention);

}  // namespace
}  // namespace attnbench
