#include "methods/transformer.hpp"

#include <charconv>
#include <cmath>
#include <sstream>

#include "kernels/elementwise/pointwise.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/rotary/rotary.hpp"
#include "methods/attention_rows.hpp"

namespace attnbench {

using Mlp = TransformerConfig::Mlp;
using Positions = TransformerConfig::Positions;

// ---- configuration ----------------------------------------------------------------------------------------

TransformerConfig TransformerConfig::gpt2() {
  TransformerConfig c;
  c.tied = true;
  return c;
}

TransformerConfig TransformerConfig::llama() {
  TransformerConfig c;
  c.positions = Positions::rotary;
  c.rms_norm = true;
  c.mlp = Mlp::silu_gated;
  c.biases = false;
  return c;
}

TransformerConfig TransformerConfig::bert() {
  TransformerConfig c;
  c.eps = 1e-12;
  c.post_norm = c.embed_norm = c.token_types = true;
  c.mlp = Mlp::gelu_erf;
  c.unembed = false;
  c.causal = false;
  return c;
}

int64_t TransformerConfig::parameters() const {
  const int64_t norm = channels * (rms_norm ? 1 : 2), bias = biases ? 1 : 0;
  int64_t layer = norm + qkv_rows() * (channels + bias) + channels * (mix() + bias);
  if (mlp != Mlp::none) layer += norm + mlp_rows() * (channels + bias) + channels * (hidden + bias);
  int64_t n = vocab * channels + layers * layer;
  if (positions == Positions::learned) n += max_len * channels;
  if (token_types) n += 2 * channels;
  if (embed_norm) n += norm;
  if (!post_norm) n += norm;
  if (unembed && !tied) n += vocab * channels;
  if (unembed && unembed_bias) n += vocab;
  return n;
}

void TransformerConfig::check() const {
  const auto positive = [](const char* what, int64_t v) {
    if (v < 1)
      throw UsageError(std::string("transformer: ") + what + " is " + std::to_string(v) +
                       "; at least 1 is wanted");
  };
  positive("the number of layers", layers);
  positive("the number of heads", heads);
  positive("the number of key heads", kv_heads);
  positive("the head width", head_dim);
  positive("the number of channels", channels);
  positive("the vocabulary", vocab);
  positive("the longest sequence", max_len);
  if (mlp != Mlp::none) positive("the MLP's width", hidden);
  if (heads % kv_heads != 0)
    throw UsageError("transformer: " + std::to_string(kv_heads) + " key heads do not divide " +
                     std::to_string(heads) + " heads");
  if (positions == Positions::rotary && head_dim % 2 != 0)
    throw UsageError("transformer: rotary positions turn pairs of channels, and a head has " +
                     std::to_string(head_dim));
}

// ---- weights ----------------------------------------------------------------------------------------------

namespace {

/// How a file's tensor is laid out beside [out, in] (or a vector).
enum class Layout : uint8_t {
  as_is,      ///< [out, in], or the elements of a vector in order
  in_out,     ///< [in, out]
  heads_in,   ///< (H, C, D): W_Q
  heads_out,  ///< (H, D, C): W_O
  ignored     ///< a buffer that files carry
};

using Target = std::function<Tensor&(TransformerWeights&)>;

/// One tensor of a file and where it goes: rows [row, row + its own) of a target of `rows` rows.
struct Slot {
  TensorSpec spec;
  Layout layout = Layout::as_is;
  Target target;
  Shape whole;      ///< shape of the target
  int64_t row = 0;  ///< first row of the target that this tensor fills
  int64_t rows = 0;
};

/// Collects the slots of one naming.
class Names {
 public:
  Names(const TransformerConfig& config) : c(config) {}

  void matrix(const std::string& name, Layout layout, const Shape& file, const Target& target, int64_t rows,
              int64_t columns, const char* meaning, double std = 0.02, int64_t row = 0, int64_t own = 0) {
    add(name, layout, file, target, {rows, columns}, row, own ? own : rows, Init::normal(0, std), meaning);
  }
  void vector(const std::string& name, const Shape& file, const Target& target, int64_t length, double value,
              const char* meaning, int64_t row = 0, int64_t own = 0) {
    add(name, Layout::as_is, file, target, {length}, row, own ? own : length, Init::constant(value), meaning);
  }
  void norm(const std::string& gain, const std::string& offset, const Target& to_gain,
            const Target& to_offset) {
    vector(gain, {c.channels}, to_gain, c.channels, 1, "norm gain");
    if (!c.rms_norm) vector(offset, {c.channels}, to_offset, c.channels, 0, "norm offset");
  }
  void ignored(const std::string& name, const Shape& file, const char* meaning) {
    add(name, Layout::ignored, file, {}, {}, 0, 0, Init::constant(0), meaning);
    slots.back().spec.optional = true;
  }
  /// Residual projections start smaller: 2 L of them add up.
  double residual_std() const { return 0.02 / std::sqrt(2.0 * static_cast<double>(c.layers)); }

  const TransformerConfig& c;
  std::vector<Slot> slots;

 private:
  void add(const std::string& name, Layout layout, const Shape& file, const Target& target,
           const Shape& whole, int64_t row, int64_t rows, const Init& init, const char* meaning) {
    slots.push_back({{name, file, c.dtype, init, false, meaning}, layout, target, whole, row, rows});
  }
};

using Layer = TransformerWeights::Layer;
template <class Member>
Target of(Member TransformerWeights::*member) {
  return [member](TransformerWeights& w) -> Tensor& { return w.*member; };
}
Target of(int64_t l, Tensor Layer::*member) {
  return [l, member](TransformerWeights& w) -> Tensor& { return w.layers[static_cast<size_t>(l)].*member; };
}
using W = TransformerWeights;

void transformer_lens_names(Names& n) {
  const TransformerConfig& c = n.c;
  const int64_t ch = c.channels, d = c.head_dim, h = c.heads, g = c.kv_heads, q = h * d, kv = g * d;
  n.matrix("embed.W_E", Layout::as_is, {c.vocab, ch}, of(&W::tokens), c.vocab, ch, "token embedding");
  if (c.positions == Positions::learned)
    n.matrix("pos_embed.W_pos", Layout::as_is, {c.max_len, ch}, of(&W::positions), c.max_len, ch,
             "learned absolute positions");
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string b = "blocks." + std::to_string(l) + ".", a = b + "attn.", m = b + "mlp.";
    n.norm(b + "ln1.w", b + "ln1.b", of(l, &Layer::norm1_gain), of(l, &Layer::norm1_offset));
    const auto head = [&](const char* name, int64_t count, int64_t row) {
      n.matrix(a + "W_" + name, Layout::heads_in, {count, ch, d}, of(l, &Layer::qkv), c.qkv_rows(), ch,
               "projection of each head", 0.02, row, count * d);
      if (c.biases)
        n.vector(a + "b_" + name, {count, d}, of(l, &Layer::qkv_bias), c.qkv_rows(), 0, "its bias", row,
                 count * d);
    };
    head("Q", h, 0);
    head("K", g, q);
    head("V", g, q + kv);
    n.matrix(a + "W_O", Layout::heads_out, {h, d, ch}, of(l, &Layer::out), ch, q,
             "output projection of each head", n.residual_std());
    if (c.biases) n.vector(a + "b_O", {ch}, of(l, &Layer::out_bias), ch, 0, "its bias");
    if (c.mlp == Mlp::none) continue;
    n.norm(b + "ln2.w", b + "ln2.b", of(l, &Layer::norm2_gain), of(l, &Layer::norm2_offset));
    const bool gated = c.mlp == Mlp::silu_gated;
    if (gated)
      n.matrix(m + "W_gate", Layout::in_out, {ch, c.hidden}, of(l, &Layer::mlp_in), c.mlp_rows(), ch,
               "MLP gate", 0.02, 0, c.hidden);
    const int64_t row = gated ? c.hidden : 0;
    n.matrix(m + "W_in", Layout::in_out, {ch, c.hidden}, of(l, &Layer::mlp_in), c.mlp_rows(), ch, "MLP", 0.02,
             row, c.hidden);
    if (c.biases && gated)
      n.vector(m + "b_gate", {c.hidden}, of(l, &Layer::mlp_in_bias), c.mlp_rows(), 0, "bias of the gate", 0,
               c.hidden);
    if (c.biases)
      n.vector(m + "b_in", {c.hidden}, of(l, &Layer::mlp_in_bias), c.mlp_rows(), 0, "its bias", row,
               c.hidden);
    n.matrix(m + "W_out", Layout::in_out, {c.hidden, ch}, of(l, &Layer::mlp_out), ch, c.hidden, "MLP",
             n.residual_std());
    if (c.biases) n.vector(m + "b_out", {ch}, of(l, &Layer::mlp_out_bias), ch, 0, "its bias");
  }
  n.norm("ln_final.w", "ln_final.b", of(&W::final_gain), of(&W::final_offset));
  if (c.unembed && !c.tied)
    n.matrix("unembed.W_U", Layout::in_out, {ch, c.vocab}, of(&W::unembed), c.vocab, ch, "unembedding");
  if (c.unembed && c.unembed_bias)
    n.vector("unembed.b_U", {c.vocab}, of(&W::unembed_bias), c.vocab, 0, "its bias");
}

void gpt2_names(Names& n) {
  const TransformerConfig& c = n.c;
  const int64_t ch = c.channels;
  n.matrix("wte.weight", Layout::as_is, {c.vocab, ch}, of(&W::tokens), c.vocab, ch, "token embedding");
  n.matrix("wpe.weight", Layout::as_is, {c.max_len, ch}, of(&W::positions), c.max_len, ch,
           "learned absolute positions");
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string b = "h." + std::to_string(l) + ".";
    n.norm(b + "ln_1.weight", b + "ln_1.bias", of(l, &Layer::norm1_gain), of(l, &Layer::norm1_offset));
    n.matrix(b + "attn.c_attn.weight", Layout::in_out, {ch, c.qkv_rows()}, of(l, &Layer::qkv), c.qkv_rows(),
             ch, "projections, columns q | k | v");
    n.vector(b + "attn.c_attn.bias", {c.qkv_rows()}, of(l, &Layer::qkv_bias), c.qkv_rows(), 0, "their bias");
    n.matrix(b + "attn.c_proj.weight", Layout::in_out, {c.mix(), ch}, of(l, &Layer::out), ch, c.mix(),
             "output projection", n.residual_std());
    n.vector(b + "attn.c_proj.bias", {ch}, of(l, &Layer::out_bias), ch, 0, "its bias");
    n.ignored(b + "attn.bias", {1, 1, c.max_len, c.max_len}, "the causal mask, a buffer of the file");
    n.norm(b + "ln_2.weight", b + "ln_2.bias", of(l, &Layer::norm2_gain), of(l, &Layer::norm2_offset));
    n.matrix(b + "mlp.c_fc.weight", Layout::in_out, {ch, c.hidden}, of(l, &Layer::mlp_in), c.hidden, ch,
             "MLP");
    n.vector(b + "mlp.c_fc.bias", {c.hidden}, of(l, &Layer::mlp_in_bias), c.hidden, 0, "its bias");
    n.matrix(b + "mlp.c_proj.weight", Layout::in_out, {c.hidden, ch}, of(l, &Layer::mlp_out), ch, c.hidden,
             "MLP", n.residual_std());
    n.vector(b + "mlp.c_proj.bias", {ch}, of(l, &Layer::mlp_out_bias), ch, 0, "its bias");
  }
  n.norm("ln_f.weight", "ln_f.bias", of(&W::final_gain), of(&W::final_offset));
}

void llama_names(Names& n) {
  const TransformerConfig& c = n.c;
  const int64_t ch = c.channels, q = c.mix(), kv = c.kv_heads * c.head_dim;
  n.matrix("model.embed_tokens.weight", Layout::as_is, {c.vocab, ch}, of(&W::tokens), c.vocab, ch,
           "token embedding");
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string b = "model.layers." + std::to_string(l) + ".", a = b + "self_attn.", m = b + "mlp.";
    n.norm(b + "input_layernorm.weight", "", of(l, &Layer::norm1_gain), of(l, &Layer::norm1_offset));
    const auto part = [&](const char* name, int64_t rows, int64_t row) {
      n.matrix(a + name + "_proj.weight", Layout::as_is, {rows, ch}, of(l, &Layer::qkv), c.qkv_rows(), ch,
               "projection of each head", 0.02, row, rows);
    };
    part("q", q, 0);
    part("k", kv, q);
    part("v", kv, q + kv);
    n.matrix(a + "o_proj.weight", Layout::as_is, {ch, q}, of(l, &Layer::out), ch, q, "output projection",
             n.residual_std());
    n.ignored(a + "rotary_emb.inv_freq", {c.head_dim / 2}, "frequencies, a buffer of older files");
    n.norm(b + "post_attention_layernorm.weight", "", of(l, &Layer::norm2_gain), of(l, &Layer::norm2_offset));
    n.matrix(m + "gate_proj.weight", Layout::as_is, {c.hidden, ch}, of(l, &Layer::mlp_in), c.mlp_rows(), ch,
             "MLP gate", 0.02, 0, c.hidden);
    n.matrix(m + "up_proj.weight", Layout::as_is, {c.hidden, ch}, of(l, &Layer::mlp_in), c.mlp_rows(), ch,
             "MLP", 0.02, c.hidden, c.hidden);
    n.matrix(m + "down_proj.weight", Layout::as_is, {ch, c.hidden}, of(l, &Layer::mlp_out), ch, c.hidden,
             "MLP", n.residual_std());
  }
  n.norm("model.norm.weight", "", of(&W::final_gain), of(&W::final_offset));
  if (c.unembed && !c.tied)
    n.matrix("lm_head.weight", Layout::as_is, {c.vocab, ch}, of(&W::unembed), c.vocab, ch, "unembedding");
}

void bert_names(Names& n) {
  const TransformerConfig& c = n.c;
  const int64_t ch = c.channels, q = c.mix(), kv = c.kv_heads * c.head_dim;
  const std::string e = "embeddings.";
  n.matrix(e + "word_embeddings.weight", Layout::as_is, {c.vocab, ch}, of(&W::tokens), c.vocab, ch,
           "token embedding");
  n.matrix(e + "position_embeddings.weight", Layout::as_is, {c.max_len, ch}, of(&W::positions), c.max_len, ch,
           "learned absolute positions");
  n.matrix(e + "token_type_embeddings.weight", Layout::as_is, {2, ch}, of(&W::token_types), 2, ch,
           "segments; row 0 is used");
  n.norm(e + "LayerNorm.weight", e + "LayerNorm.bias", of(&W::embed_gain), of(&W::embed_offset));
  n.ignored(e + "position_ids", {1, c.max_len}, "a buffer of the file");
  n.slots.back().spec.dtype = DType::i32;
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string b = "encoder.layer." + std::to_string(l) + ".", a = b + "attention.";
    const auto part = [&](const char* name, int64_t rows, int64_t row) {
      n.matrix(a + "self." + name + ".weight", Layout::as_is, {rows, ch}, of(l, &Layer::qkv), c.qkv_rows(),
               ch, "projection of each head", 0.02, row, rows);
      n.vector(a + "self." + name + ".bias", {rows}, of(l, &Layer::qkv_bias), c.qkv_rows(), 0, "its bias",
               row, rows);
    };
    part("query", q, 0);
    part("key", kv, q);
    part("value", kv, q + kv);
    n.matrix(a + "output.dense.weight", Layout::as_is, {ch, q}, of(l, &Layer::out), ch, q,
             "output projection", n.residual_std());
    n.vector(a + "output.dense.bias", {ch}, of(l, &Layer::out_bias), ch, 0, "its bias");
    n.norm(a + "output.LayerNorm.weight", a + "output.LayerNorm.bias", of(l, &Layer::norm1_gain),
           of(l, &Layer::norm1_offset));
    n.matrix(b + "intermediate.dense.weight", Layout::as_is, {c.hidden, ch}, of(l, &Layer::mlp_in), c.hidden,
             ch, "MLP");
    n.vector(b + "intermediate.dense.bias", {c.hidden}, of(l, &Layer::mlp_in_bias), c.hidden, 0, "its bias");
    n.matrix(b + "output.dense.weight", Layout::as_is, {ch, c.hidden}, of(l, &Layer::mlp_out), ch, c.hidden,
             "MLP", n.residual_std());
    n.vector(b + "output.dense.bias", {ch}, of(l, &Layer::mlp_out_bias), ch, 0, "its bias");
    n.norm(b + "output.LayerNorm.weight", b + "output.LayerNorm.bias", of(l, &Layer::norm2_gain),
           of(l, &Layer::norm2_offset));
  }
  n.ignored("pooler.dense.weight", {ch, ch}, "the pooler, which follows the encoder");
  n.ignored("pooler.dense.bias", {ch}, "the pooler, which follows the encoder");
}

std::vector<Slot> slots_of(const TransformerConfig& config, WeightNames names) {
  config.check();
  Names n(config);
  switch (names) {
    case WeightNames::transformer_lens:
      transformer_lens_names(n);
      break;
    case WeightNames::gpt2:
      gpt2_names(n);
      break;
    case WeightNames::llama:
      llama_names(n);
      break;
    case WeightNames::bert:
      bert_names(n);
      break;
  }
  return std::move(n.slots);
}

}  // namespace

std::vector<TensorSpec> transformer_specs(const TransformerConfig& config, WeightNames names) {
  std::vector<TensorSpec> specs;
  for (Slot& s : slots_of(config, names)) specs.push_back(std::move(s.spec));
  return specs;
}

TransformerWeights pack_transformer(Context& ctx, const TransformerConfig& config, WeightNames names,
                                    const TensorMap& weights) {
  TransformerWeights packed;
  packed.layers.resize(static_cast<size_t>(config.layers));
  for (const Slot& s : slots_of(config, names)) {
    if (s.layout == Layout::ignored) continue;
    const auto it = weights.find(s.spec.name);
    if (it == weights.end())
      throw DataError("weight '" + s.spec.name + "' " + s.spec.shape.str() + " is missing");
    const Tensor& from = it->second;
    Tensor& to = s.target(packed);
    const bool whole = s.row == 0 && s.rows == s.whole[0];
    if (whole && s.layout == Layout::as_is) {
      to = from.shape() == s.whole ? from : from.reshape(s.whole);
      continue;
    }
    if (!to) to = ctx.allocate(config.dtype, s.whole, MemoryClass::weight);
    const Tensor rows = to.slice(0, s.row, s.row + s.rows);
    const int64_t d = config.head_dim;
    switch (s.layout) {
      case Layout::as_is:
        copy(ctx, from.reshape(rows.shape()), rows);
        break;
      case Layout::in_out:
        transpose_copy(ctx, {from.transpose(0, 1), rows});
        break;
      case Layout::heads_in:
        transpose_copy(ctx, {from.permute({0, 2, 1}), rows.reshape({s.rows / d, d, config.channels})});
        break;
      case Layout::heads_out:
        transpose_copy(ctx, {from.permute({2, 0, 1}), rows.reshape({config.channels, config.heads, d})});
        break;
      case Layout::ignored:
        break;
    }
  }
  if (config.unembed && config.tied) packed.unembed = packed.tokens;
  return packed;
}

// ---- method attention -------------------------------------------------------------------------------------

namespace {

Value value_of(const std::string& word) {
  if (word == "null") return Value();
  if (word == "true") return true;
  if (word == "false") return false;
  const char *begin = word.data(), *end = begin + word.size();
  int64_t i = 0;
  if (const auto r = std::from_chars(begin, end, i); r.ec == std::errc() && r.ptr == end) return i;
  double x = 0;
  if (const auto r = std::from_chars(begin, end, x); r.ec == std::errc() && r.ptr == end) return x;
  if (word.size() < 2 || word.front() != '[' || word.back() != ']') return word;
  Value::List list;  // "[7,7]", "[[12,3],[13,4]]"
  size_t first = 1;
  for (size_t at = 1, depth = 0; at < word.size(); ++at) {
    if (word[at] == '[') ++depth;
    if ((word[at] == ',' && depth == 0) || at + 1 == word.size()) {
      if (at > first) list.push_back(value_of(word.substr(first, at - first)));
      first = at + 1;
    } else if (word[at] == ']' && depth) {
      --depth;
    }
  }
  return list;
}

}  // namespace

std::vector<LayerAttention> parse_layer_attention(const std::string& text) {
  std::vector<LayerAttention> all;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ';');) {
    std::istringstream words(part);
    LayerAttention a;
    for (std::string word; words >> word;) {
      const size_t at = word.find('=');
      if (a.method.empty()) {
        if (at != std::string::npos)
          throw UsageError("attention: '" + part + "' does not begin with the id of a method");
        a.method = word;
      } else if (at == std::string::npos || at == 0) {
        throw UsageError("attention: '" + word + "' is not of the form key=value");
      } else {
        a.params[word.substr(0, at)] = value_of(word.substr(at + 1));
      }
    }
    if (a.method.empty()) throw UsageError("attention: '" + text + "' has an empty part");
    all.push_back(std::move(a));
  }
  return all;
}

struct Transformer::Shared {
  /// Where a method's attention runs for queries [first, first + rows): its inputs, shared by all layers.
  struct Shape {
    int64_t rows, first;
    auto operator<=>(const Shape&) const = default;
  };
  struct Plan {
    Tensor q, k, v;
    std::vector<std::unique_ptr<Instance>> layers;  ///< null: the operator
    std::vector<Tensor> out;
    bool prepared = false;
  };
  std::map<Shape, Plan> plans;
};

Transformer::Transformer(const TransformerConfig& config, TransformerWeights weights,
                         std::vector<LayerAttention> attention)
    : config_(config),
      weights_(std::move(weights)),
      attention_(std::move(attention)),
      shared_(std::make_unique<Shared>()) {
  config_.check();
  if (attention_.size() > 1 && static_cast<int64_t>(attention_.size()) != config_.layers)
    throw UsageError("attention: " + std::to_string(attention_.size()) + " methods are named for " +
                     std::to_string(config_.layers) + " layers; name one, or one for each");
}

Transformer::~Transformer() = default;
Transformer::Transformer(Transformer&&) noexcept = default;
Transformer& Transformer::operator=(Transformer&&) noexcept = default;

Transformer::Cache Transformer::make_cache(Context& ctx, int64_t batch, int64_t capacity) const {
  Cache c;
  for (int64_t l = 0; l < config_.layers; ++l) {
    const Shape shape{batch, config_.kv_heads, capacity, config_.head_dim};
    c.k.push_back(ctx.allocate(config_.dtype, shape));
    c.v.push_back(ctx.allocate(config_.dtype, shape));
  }
  return c;
}

void Transformer::plan(Context& ctx, int64_t batch, int64_t rows, int64_t first) {
  const TransformerConfig& c = config_;
  if (first + rows > c.max_len)
    throw UsageError("transformer: positions up to " + std::to_string(first + rows) + " exceed max_len " +
                     std::to_string(c.max_len));
  if (attention_.empty()) return;
  const auto [it, fresh] = shared_->plans.try_emplace({rows, first});
  Shared::Plan& plan = it->second;
  if (!fresh && plan.q.dim(0) == batch) return;
  plan = {};
  Problem p;
  p.batch = batch;
  p.heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.length = rows;
  p.kv_length = first + rows;
  p.head_dim = c.head_dim;
  p.causal = c.causal;
  p.dtype = c.dtype;
  const Shape kv{batch, c.kv_heads, first + rows, c.head_dim}, q{batch, c.heads, rows, c.head_dim};
  plan.q = ctx.allocate(c.dtype, q);
  plan.k = ctx.allocate(c.dtype, kv);
  plan.v = ctx.allocate(c.dtype, kv);
  for (int64_t l = 0; l < c.layers; ++l) {
    const LayerAttention& a = attention_[attention_.size() == 1 ? 0 : static_cast<size_t>(l)];
    const Method& m = find_method(a.method);
    auto instance = m.make(ctx, p, resolve_params(a.method, m.info().params, a.params, p));
    for (const TensorSpec& s : instance->input_specs())
      if (!s.optional && s.name != "q" && s.name != "k" && s.name != "v")
        throw Unsupported("transformer: method '" + a.method + "' wants '" + s.name +
                          "' beside q, k and v, which a layer does not make");
    for (const TensorSpec& s : instance->weight_specs())
      if (!s.optional)
        throw Unsupported("transformer: method '" + a.method + "' has weights of its own ('" + s.name + "')");
    Tensor out;
    for (const auto& [name, t] : instance->outputs())
      if (t.shape() == q && t.dtype() == c.dtype && !out) out = t;
    if (!out || instance->input_specs().size() < 3)
      throw Unsupported("transformer: method '" + a.method +
                        "' does not turn q, k and v into heads of q's shape");
    instance->bind({{"q", plan.q}, {"k", plan.k}, {"v", plan.v}}, {});
    plan.layers.push_back(std::move(instance));
    plan.out.push_back(out);
  }
}

void Transformer::prepare(Context& ctx) {
  const TransformerConfig& c = config_;
  if (c.positions == Positions::rotary && !cosine_) {
    std::vector<float> cosine, sine;
    for (int64_t p = 0; p < c.max_len; ++p)
      for (int64_t i = 0; i < c.head_dim / 2; ++i) {
        const double angle =
            static_cast<double>(p) *
            std::pow(c.rotary_base, -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
        cosine.push_back(static_cast<float>(std::cos(angle)));
        sine.push_back(static_cast<float>(std::sin(angle)));
      }
    const Shape shape{c.max_len, c.head_dim / 2};
    cosine_ = ctx.allocate(DType::f32, shape);
    sine_ = ctx.allocate(DType::f32, shape);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::f32, shape, cosine.data()), cosine_);
    copy(ctx, Tensor::borrow(DeviceKind::cpu, DType::f32, shape, sine.data()), sine_);
  }
  for (auto& [shape, plan] : shared_->plans) {
    if (plan.prepared) continue;
    for (const auto& instance : plan.layers) instance->prepare(ctx);
    plan.prepared = true;
  }
}

Instance* Transformer::instance(int64_t layer, int64_t rows, int64_t first) const {
  const auto it = shared_->plans.find({rows, first});
  return it == shared_->plans.end() ? nullptr : it->second.layers[static_cast<size_t>(layer)].get();
}

// ---- the pass ---------------------------------------------------------------------------------------------

namespace {

void add(Context& ctx, const Tensor& x, const Tensor& y) {
  PointwiseArgs p;
  p.op = PointwiseArgs::Op::add;
  p.a = x;
  p.b = y;
  p.y = x;
  pointwise(ctx, p);
}

/// y (+)= activation(x W^T + b).
void project(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y,
             bool accumulate, Activation activation = Activation::none) {
  GemmArgs g;
  g.a = x;
  g.b = w;
  g.b_transposed = true;
  g.bias = bias;
  g.c = y;
  g.accumulate = accumulate;
  g.activation = activation;
  gemm(ctx, g);
}

/// Columns [first, first + heads D) of packed rows [B n, R] as [B, heads, n, D].
Tensor head_view(const Tensor& packed, int64_t batch, int64_t n, int64_t first, int64_t heads, int64_t d) {
  const int64_t row = packed.dim(1);
  return packed.strided({batch, heads, n, d}, {n * row, d, row, 1}, first);
}

}  // namespace

void Transformer::norm(Context& ctx, const Tensor& x, const Tensor& gain, const Tensor& offset,
                       const Tensor& y) const {
  NormArgs a;
  a.kind = config_.rms_norm ? NormArgs::Kind::rms_norm : NormArgs::Kind::layer_norm;
  a.x = x;
  a.y = y;
  a.gain = gain;
  a.offset = offset;
  a.eps = static_cast<float>(config_.eps);
  normalize(ctx, a);
}

void Transformer::embed(Context& ctx, const Tensor& tokens, int64_t first, const Tensor& x) const {
  const auto stage = ctx.stage("embed");
  const TransformerConfig& c = config_;
  const int64_t batch = x.dim(0), n = x.dim(1);
  Tensor ids = tokens;
  if (!ids.contiguous()) {
    ids = ctx.allocate(DType::i32, tokens.shape());
    transpose_copy(ctx, {tokens, ids});
  }
  gather_rows(ctx, {weights_.tokens.reshape({1, c.vocab, c.channels}), ids.reshape({batch * n}),
                    x.reshape({1, batch * n, c.channels})});
  if (c.positions == Positions::learned)
    for (int64_t b = 0; b < batch; ++b)
      add(ctx, x.select(0, b), weights_.positions.slice(0, first, first + n));
  const Tensor rows = x.reshape({batch * n, c.channels});
  if (c.token_types) add(ctx, rows, weights_.token_types.select(0, 0));
  if (c.embed_norm) norm(ctx, rows, weights_.embed_gain, weights_.embed_offset, rows);
}

void Transformer::attend(Context& ctx, int64_t l, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& z, int64_t first, AttentionArgs& call) const {
  static const BlockMask causal = [] {
    BlockMask m;
    m.rule.causal = true;
    return m;
  }();
  if (attention_.empty()) {
    call.q = q;
    call.k = k;
    call.v = v;
    call.o = z;
    call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
    if (config_.causal) call.mask = &causal;
    attention(ctx, call);
    return;
  }
  const auto it = shared_->plans.find({q.dim(2), first});
  if (it == shared_->plans.end())
    throw Error("transformer: no plan was made for " + std::to_string(q.dim(2)) + " rows from " +
                std::to_string(first) + " (a bug)");
  const Shared::Plan& plan = it->second;
  transpose_copy(ctx, {q, plan.q});
  transpose_copy(ctx, {k, plan.k});
  transpose_copy(ctx, {v, plan.v});
  plan.layers[static_cast<size_t>(l)]->run(ctx);
  transpose_copy(ctx, {plan.out[static_cast<size_t>(l)], z});
}

void Transformer::layer(Context& ctx, int64_t l, const Tensor& x, const Pass& pass) const {
  const TransformerConfig& c = config_;
  const TransformerWeights::Layer& w = weights_.layers[static_cast<size_t>(l)];
  const int64_t batch = x.dim(0), n = x.dim(1), rows = batch * n, d = c.head_dim;
  const Tensor flat = x.reshape({rows, c.channels});
  const auto hook = [&](Site site, const Tensor& value, const AttentionArgs* call = nullptr) {
    if (pass.hook) pass.hook(ctx, {site, l, value, call});
  };
  hook(Site::residual_pre, x);
  {
    const auto stage = ctx.stage("attention");
    Tensor in = flat;
    if (!c.post_norm) {
      in = ctx.allocate(c.dtype, flat.shape());
      norm(ctx, flat, w.norm1_gain, w.norm1_offset, in);
    }
    const Tensor qkv = ctx.allocate(c.dtype, {rows, c.qkv_rows()}),
                 z = ctx.allocate(c.dtype, {rows, c.mix()});
    project(ctx, in, w.qkv, w.qkv_bias, qkv, false);
    const Tensor q = head_view(qkv, batch, n, 0, c.heads, d);
    Tensor k = head_view(qkv, batch, n, c.mix(), c.kv_heads, d);
    Tensor v = head_view(qkv, batch, n, c.mix() + c.kv_heads * d, c.kv_heads, d);
    if (c.positions == Positions::rotary) {
      const Tensor cosine = cosine_.slice(0, pass.first, pass.first + n),
                   sine = sine_.slice(0, pass.first, pass.first + n);
      rotary(ctx, {q, cosine, sine, q});
      rotary(ctx, {k, cosine, sine, k});
    }
    hook(Site::q, q);
    hook(Site::k, k);
    hook(Site::v, v);
    if (pass.cache) {
      const auto keep = [&](Tensor& all, Tensor& fresh) {
        transpose_copy(ctx, {fresh, all.slice(2, pass.first, pass.first + n)});
        fresh = all.slice(2, 0, pass.first + n);
      };
      keep(pass.cache->k[static_cast<size_t>(l)], k);
      keep(pass.cache->v[static_cast<size_t>(l)], v);
    }
    const Tensor heads = head_view(z, batch, n, 0, c.heads, d);
    AttentionArgs call;
    attend(ctx, l, q, k, v, heads, pass.first, call);
    hook(Site::z, heads, attention_.empty() ? &call : nullptr);
    if (pass.hook) {
      const Tensor branch = ctx.allocate(c.dtype, flat.shape());
      project(ctx, z, w.out, w.out_bias, branch, false);
      hook(Site::attention_out, branch.reshape(x.shape()));
      add(ctx, flat, branch);
    } else {
      project(ctx, z, w.out, w.out_bias, flat, true);
    }
    if (c.post_norm) norm(ctx, flat, w.norm1_gain, w.norm1_offset, flat);
  }
  if (c.mlp != Mlp::none) {
    const auto stage = ctx.stage("mlp");
    Tensor in = flat;
    if (!c.post_norm) {
      in = ctx.allocate(c.dtype, flat.shape());
      norm(ctx, flat, w.norm2_gain, w.norm2_offset, in);
    }
    Tensor hidden = ctx.allocate(c.dtype, {rows, c.mlp_rows()});
    project(ctx, in, w.mlp_in, w.mlp_in_bias, hidden, false,
            c.mlp == Mlp::gelu_erf ? Activation::gelu_erf : Activation::none);
    PointwiseArgs p;
    if (c.mlp == Mlp::gelu_tanh) {
      p.op = PointwiseArgs::Op::gelu_tanh;
      p.a = p.y = hidden;
      pointwise(ctx, p);
    } else if (c.mlp == Mlp::silu_gated) {
      p.op = PointwiseArgs::Op::silu_mul;
      p.a = hidden.slice(1, 0, c.hidden);
      p.b = hidden.slice(1, c.hidden, 2 * c.hidden);
      p.y = hidden = ctx.allocate(c.dtype, {rows, c.hidden});
      pointwise(ctx, p);
    }
    if (pass.hook) {
      const Tensor branch = ctx.allocate(c.dtype, flat.shape());
      project(ctx, hidden, w.mlp_out, w.mlp_out_bias, branch, false);
      hook(Site::mlp_out, branch.reshape(x.shape()));
      add(ctx, flat, branch);
    } else {
      project(ctx, hidden, w.mlp_out, w.mlp_out_bias, flat, true);
    }
    if (c.post_norm) norm(ctx, flat, w.norm2_gain, w.norm2_offset, flat);
  }
  hook(Site::residual_post, x);
}

void Transformer::forward(Context& ctx, const Tensor& x, const Pass& pass) const {
  if (pass.first > 0 && !pass.cache) throw UsageError("transformer: rows before the first need a cache");
  for (int64_t l = pass.first_layer; l < config_.layers; ++l) layer(ctx, l, x, pass);
}

void Transformer::finish(Context& ctx, const Tensor& x, const Tensor& y) const {
  if (!config_.post_norm)
    norm(ctx, x, weights_.final_gain, weights_.final_offset, y);
  else if (x.raw() != y.raw())
    transpose_copy(ctx, {x, y});
}

void Transformer::logits(Context& ctx, const Tensor& rows, const Tensor& y) const {
  if (!config_.unembed) throw Unsupported("transformer: the model has no head of logits");
  project(ctx, rows, weights_.unembed, weights_.unembed_bias, y, false);
}

// ---- closed forms -----------------------------------------------------------------------------------------

namespace {

struct Charge {
  int64_t element;  ///< bytes
  bool biases;

  Cost product(int64_t rows, int64_t in, int64_t out, bool accumulate, bool activation = false) const {
    Cost c;
    c.matmul = 2 * rows * in * out;
    c.elementwise = biases ? rows * out : 0;
    c.special = activation ? rows * out : 0;
    c.bytes_read = (rows * in + in * out + (biases ? out : 0) + (accumulate ? rows * out : 0)) * element;
    c.bytes_written = rows * out * element;
    return c;
  }
  Cost norm(int64_t rows, int64_t channels, bool rms) const {
    Cost c;
    c.elementwise = (rms ? 4 : 5) * rows * channels;
    c.special = 2 * rows;
    c.bytes_read = (rows * channels + (rms ? 1 : 2) * channels) * element;
    c.bytes_written = rows * channels * element;
    return c;
  }
  Cost moved(int64_t count) const {
    Cost c;
    c.bytes_read = c.bytes_written = count * element;
    return c;
  }
  /// y = a + b with b of `second` elements.
  Cost sum(int64_t count, int64_t second) const {
    Cost c;
    c.elementwise = count;
    c.bytes_read = (count + second) * element;
    c.bytes_written = count * element;
    return c;
  }
};

}  // namespace

Cost Transformer::embed_cost(int64_t batch, int64_t rows) const {
  const TransformerConfig& c = config_;
  const Charge charge{static_cast<int64_t>(size_of(c.dtype)), c.biases};
  const int64_t all = batch * rows * c.channels;
  Cost cost = charge.moved(all);
  cost.bytes_read += 4 * batch * rows;
  if (c.positions == Positions::learned) cost += charge.sum(all, all);
  if (c.token_types) cost += charge.sum(all, c.channels);
  if (c.embed_norm) cost += charge.norm(batch * rows, c.channels, c.rms_norm);
  return cost;
}

Cost Transformer::forward_cost(int64_t batch, int64_t rows, int64_t first, bool cached, bool hooked) const {
  const TransformerConfig& c = config_;
  const int64_t element = static_cast<int64_t>(size_of(c.dtype));
  const Charge charge{element, c.biases};
  const int64_t n = batch * rows, ch = c.channels, keys = first + rows, d = c.head_dim;
  const int64_t q = n * c.mix(), kv = batch * c.kv_heads * d;
  Cost layer = charge.norm(n, ch, c.rms_norm) + charge.product(n, ch, c.qkv_rows(), false);
  if (c.positions == Positions::rotary) {
    Cost turn;
    turn.elementwise = 3 * (q + kv * rows);
    turn.bytes_read = (q + kv * rows) * element + 2 * 2 * rows * (d / 2) * 4;
    turn.bytes_written = (q + kv * rows) * element;
    layer += turn;
  }
  if (cached) layer += charge.moved(kv * rows) * 2;
  if (attention_.empty()) {
    const int64_t pairs = batch * c.heads * (c.causal ? rows * first + rows * (rows + 1) / 2 : rows * keys);
    Cost attend;
    attend.matmul = 4 * d * pairs;
    attend.special = pairs;
    attend.elementwise = 4 * pairs;
    attend.bytes_read = (q + 2 * kv * keys) * element;
    attend.bytes_written = q * element;
    layer += attend;
  } else {
    layer += charge.moved(2 * q) + charge.moved(2 * kv * keys);
  }
  const auto branch = [&](const Cost& alone) { return hooked ? alone + charge.sum(n * ch, n * ch) : alone; };
  layer += branch(charge.product(n, c.mix(), ch, !hooked));
  if (c.mlp != Mlp::none) {
    layer +=
        charge.norm(n, ch, c.rms_norm) + charge.product(n, ch, c.mlp_rows(), false, c.mlp == Mlp::gelu_erf);
    if (c.mlp == Mlp::gelu_tanh || c.mlp == Mlp::silu_gated) {
      Cost f;
      f.special = n * c.hidden;
      f.bytes_read = n * c.mlp_rows() * element;
      f.bytes_written = n * c.hidden * element;
      layer += f;
    }
    layer += branch(charge.product(n, c.hidden, ch, !hooked));
  }
  Cost all = layer * c.layers;
  if (!attention_.empty())
    for (int64_t l = 0; l < c.layers; ++l)
      if (const Instance* i = instance(l, rows, first)) all += i->cost().cost;
  return all;
}

Cost Transformer::finish_cost(int64_t rows) const {
  const Charge charge{static_cast<int64_t>(size_of(config_.dtype)), config_.biases};
  return config_.post_norm ? charge.moved(rows * config_.channels)
                           : charge.norm(rows, config_.channels, config_.rms_norm);
}

Cost Transformer::logits_cost(int64_t rows) const {
  const Charge charge{static_cast<int64_t>(size_of(config_.dtype)), config_.unembed_bias};
  return charge.product(rows, config_.channels, config_.vocab, false);
}

}  // namespace attnbench
