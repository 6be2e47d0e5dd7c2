// A plain transformer built from operators: the host model on which the analysing methods work. Decoder-only
// or encoder, with hooks at every head and residual, a key-value cache, and any heads-form method of the
// toolbox as its attention. Not a framework: one forward pass, weights by name, no training, no sampling, no
// tokenizer.
//
// A layer of the pre-norm form (GPT-2, Llama), x [B, n, C]:
//   q, k, v = heads of norm1(x) Wqkv^T + b;  q, k rotated where positions are rotary
//   z^h = softmax(q^h k^h^T / sqrt(D) + mask) v^h            head h reads key head h / (H / Hkv)
//   x += [z^1 .. z^H] Wo^T + bo;  x += mlp(norm2(x))
// and of the post-norm form (BERT): x = norm1(x + attention(x));  x = norm2(x + mlp(x)).
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "methods/method.hpp"

namespace attnbench {

struct TransformerConfig {
  enum class Positions : uint8_t { none, learned, rotary };
  enum class Mlp : uint8_t { none, gelu_tanh, gelu_erf, silu_gated };

  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, channels = 0;
  int64_t hidden = 0;  ///< width of the MLP
  int64_t vocab = 0, max_len = 0;
  Positions positions = Positions::learned;
  double rotary_base = 10000;
  bool rms_norm = false;
  double eps = 1e-5;
  bool post_norm = false;    ///< BERT; there is no final norm then
  bool embed_norm = false;   ///< BERT
  bool token_types = false;  ///< BERT: row 0 of the token type table is added to every token
  Mlp mlp = Mlp::gelu_tanh;
  bool biases = true;         ///< of every linear layer and norm offset (an RMS norm has none)
  bool unembed = true;        ///< a head of `vocab` logits
  bool tied = false;          ///< the head is the embedding
  bool unembed_bias = false;  ///< TransformerLens
  bool causal = true;
  DType dtype = DType::f32;

  int64_t qkv_rows() const { return (heads + 2 * kv_heads) * head_dim; }
  int64_t mix() const { return heads * head_dim; }  ///< channels of all heads together
  int64_t mlp_rows() const { return (mlp == Mlp::silu_gated ? 2 : 1) * hidden; }
  /// Learned parameters.
  int64_t parameters() const;

  /// The shapes that these families share; extents are the caller's.
  static TransformerConfig gpt2();
  static TransformerConfig llama();
  static TransformerConfig bert();
  /// Throws UsageError naming the extent that makes no sense.
  void check() const;
};

/// How a file names and lays out the weights.
///   transformer_lens  blocks.l.attn.W_Q (H, C, D), W_O (H, D, C), mlp.W_in (C, F), unembed.W_U (C, V), ...
///   gpt2              wte.weight, h.l.attn.c_attn.weight (C, 3C): [in, out], as Hugging Face's gpt2
///   llama             model.layers.l.self_attn.q_proj.weight (H D, C): [out, in], rotation by halves
///   bert              encoder.layer.l.attention.self.query.weight (C, C): [out, in], as BertModel
enum class WeightNames : uint8_t { transformer_lens, gpt2, llama, bert };

/// Weights as the layers use them: every matrix [out, in].
struct TransformerWeights {
  struct Layer {
    Tensor norm1_gain, norm1_offset, norm2_gain, norm2_offset;
    Tensor qkv, qkv_bias;          ///< [(H + 2 Hkv) D, C], rows q | k | v
    Tensor out, out_bias;          ///< [C, H D]
    Tensor mlp_in, mlp_in_bias;    ///< [F, C], or gate | up [2 F, C]
    Tensor mlp_out, mlp_out_bias;  ///< [C, F]
  };
  Tensor tokens, positions, token_types, embed_gain, embed_offset;
  std::vector<Layer> layers;
  Tensor final_gain, final_offset, unembed, unembed_bias;  ///< unembed [V, C]
};

/// The tensors a file of these names holds, with the seeded initialisation: normal 0.02, residual projections
/// divided by sqrt(2 L), biases 0, gains 1. Buffers that such files carry and nobody needs are optional.
std::vector<TensorSpec> transformer_specs(const TransformerConfig& config, WeightNames names);
/// Puts them into the layers' layout; tensors that have it already are shared, not copied.
TransformerWeights pack_transformer(Context& ctx, const TransformerConfig& config, WeightNames names,
                                    const TensorMap& weights);

/// The attention of one layer: a method in heads form (inputs q, k, v) with its parameters; empty: the
/// operator.
struct LayerAttention {
  std::string method;
  std::map<std::string, Value> params;
};
/// "sliding_window window=64 sinks=4; dense" -> one entry for each part between semicolons; lists without
/// spaces, "window_size=[7,7]". Throws UsageError.
std::vector<LayerAttention> parse_layer_attention(const std::string& text);

class Transformer {
 public:
  /// `attention`: none (the operator), one for all layers, or one for each.
  Transformer(const TransformerConfig& config, TransformerWeights weights,
              std::vector<LayerAttention> attention = {});
  ~Transformer();
  Transformer(Transformer&&) noexcept;
  Transformer& operator=(Transformer&&) noexcept;

  const TransformerConfig& config() const { return config_; }
  const TransformerWeights& weights() const { return weights_; }

  /// Keys and values of every layer, [B, Hkv, capacity, D]: row i belongs to position i.
  struct Cache {
    std::vector<Tensor> k, v;
  };
  Cache make_cache(Context& ctx, int64_t batch, int64_t capacity) const;

  enum class Site : uint8_t { residual_pre, q, k, v, z, attention_out, mlp_out, residual_post };
  /// A live view that a hook may read and overwrite: q, k, v (rotated, before they are cached) and z [B,
  /// heads, n, D]; the others [B, n, C]. `attention` at z: the call that made it, with all keys; null where a
  /// method made it.
  struct Tap {
    Site site;
    int64_t layer;
    Tensor value;
    const AttentionArgs* attention = nullptr;
  };
  using Hook = std::function<void(Context&, const Tap&)>;

  struct Pass {
    int64_t first = 0;       ///< position of x's first row; rows before it come from the cache
    Cache* cache = nullptr;  ///< receives the keys and values of x's rows
    Hook hook;               ///< with a hook branches are added to the residual apart, so that it sees them
    int64_t first_layer = 0;
  };

  /// Declares passes of `batch` sequences with rows [first, first + rows): makes the instances of method
  /// attention, so that costs are known. Once for each shape, before prepare().
  void plan(Context& ctx, int64_t batch, int64_t rows, int64_t first = 0);
  /// Static work of everything planned: tables of rotary positions, the methods' own plans.
  void prepare(Context& ctx);
  /// x [B, n, C] from token ids i32 [B, n] at positions first, first + 1, ..
  void embed(Context& ctx, const Tensor& tokens, int64_t first, const Tensor& x) const;
  /// Layers from pass.first_layer on, x [B, n, C] in place.
  void forward(Context& ctx, const Tensor& x, const Pass& pass) const;
  /// y = final norm of rows x [.., C] (a copy where there is none); y may be x.
  void finish(Context& ctx, const Tensor& x, const Tensor& y) const;
  /// y [R, V] from finished rows [R, C].
  void logits(Context& ctx, const Tensor& rows, const Tensor& y) const;
  /// The method of a layer for queries [first, first + rows), null for the operator.
  Instance* instance(int64_t layer, int64_t rows, int64_t first) const;

  // Closed forms, as the operators charge.
  Cost embed_cost(int64_t batch, int64_t rows) const;
  Cost forward_cost(int64_t batch, int64_t rows, int64_t first, bool cached, bool hooked) const;
  Cost finish_cost(int64_t rows) const;
  Cost logits_cost(int64_t rows) const;

 private:
  struct Shared;
  void layer(Context& ctx, int64_t l, const Tensor& x, const Pass& pass) const;
  void attend(Context& ctx, int64_t l, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& z,
              int64_t first, AttentionArgs& call) const;
  void norm(Context& ctx, const Tensor& x, const Tensor& gain, const Tensor& offset, const Tensor& y) const;

  TransformerConfig config_;
  TransformerWeights weights_;
  std::vector<LayerAttention> attention_;
  Tensor cosine_, sine_;  ///< [max_len, D / 2]
  std::unique_ptr<Shared> shared_;
};

}  // namespace attnbench
