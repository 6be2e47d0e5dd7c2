// Reference of `transformer`: the published forms of the three families, token by token, in double precision.
#include <cmath>
#include <numbers>
#include <sstream>

#include "methods/method.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// Weights of a layer as functions of plain indices, whatever the file's layout.
struct View {
  const RefTensor* t = nullptr;
  int64_t out_stride = 0, in_stride = 0, offset = 0;
  double operator()(int64_t out, int64_t in) const {
    return (*t)[offset + out * out_stride + in * in_stride];
  }
};

struct Row {
  const RefTensor* t = nullptr;
  int64_t offset = 0;
  double operator[](int64_t i) const { return t ? (*t)[offset + i] : 0.0; }
};

struct Model {
  const Problem& problem;
  const Params& params;
  const RefMap& w;
  std::string arch;
  int64_t layers, heads, kv_heads, d, c, hidden, vocab;
  bool rms, post;
  double eps;

  Model(const Problem& p, const Params& q, const RefMap& weights) : problem(p), params(q), w(weights) {
    arch = q.choice("architecture");
    layers = q.integer("num_layers");
    heads = p.heads;
    kv_heads = p.kv_heads ? p.kv_heads : p.heads;
    c = p.channels;
    d = p.head_dim ? p.head_dim : c / heads;
    hidden = q.integer("mlp_hidden") ? q.integer("mlp_hidden") : 4 * c;
    vocab = q.integer("vocab_size");
    rms = arch == "llama";
    post = arch == "bert";
    eps = !q.is_null("norm_eps") ? q.number("norm_eps") : post ? 1e-12 : 1e-5;
  }

  Row vec(const std::string& name, int64_t offset = 0) const {
    const auto it = w.find(name);
    return it == w.end() ? Row{} : Row{&it->second, offset};
  }
  View out_in(const std::string& name, int64_t in, int64_t first = 0) const {
    return {&w.at(name), in, 1, first * in};
  }
  View in_out(const std::string& name, int64_t out, int64_t first = 0) const {
    return {&w.at(name), 1, out, first};
  }

  std::vector<double> norm(const std::vector<double>& x, Row gain, Row offset) const {
    const auto n = static_cast<double>(x.size());
    double mean = 0, var = 0;
    if (!rms)
      for (double v : x) mean += v / n;
    for (double v : x) var += (v - mean) * (v - mean) / n;
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      y[i] = (x[i] - mean) / std::sqrt(var + eps) * gain[at] + offset[at];
    }
    return y;
  }
  static std::vector<double> product(const std::vector<double>& x, const View& weight, int64_t out,
                                     Row bias) {
    std::vector<double> y(static_cast<size_t>(out));
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias[o];
      for (size_t i = 0; i < x.size(); ++i) sum += x[i] * weight(o, static_cast<int64_t>(i));
      y[static_cast<size_t>(o)] = sum;
    }
    return y;
  }

  std::string block(int64_t l) const {
    const std::string s = std::to_string(l) + ".";
    return (arch == "gpt2"    ? "h."
            : arch == "llama" ? "model.layers."
            : arch == "bert"  ? "encoder.layer."
                              : "blocks.") +
           s;
  }

  /// Head h of projection `which` (0: q, 1: k, 2: v) of x.
  std::vector<double> head(int64_t l, int which, int64_t h, const std::vector<double>& x) const {
    const std::string b = block(l);
    if (arch == "gpt2") {
      const int64_t all = (heads + 2 * kv_heads) * d;
      const int64_t first = (which == 0 ? 0 : which == 1 ? heads : heads + kv_heads) * d + h * d;
      return product(x, in_out(b + "attn.c_attn.weight", all, first), d, vec(b + "attn.c_attn.bias", first));
    }
    if (arch == "llama") {
      static const char* const names[] = {"q", "k", "v"};
      return product(x, out_in(b + "self_attn." + names[which] + "_proj.weight", c, h * d), d, {});
    }
    if (arch == "bert") {
      static const char* const names[] = {"query", "key", "value"};
      const std::string p = b + "attention.self." + names[which];
      return product(x, out_in(p + ".weight", c, h * d), d, vec(p + ".bias", h * d));
    }
    static const char* const names[] = {"Q", "K", "V"};
    return product(x, {&w.at(b + "attn.W_" + names[which]), 1, d, h * c * d}, d,
                   vec(b + std::string("attn.b_") + names[which], h * d));
  }

  std::vector<double> mix(int64_t l, const std::vector<double>& z) const {
    const std::string b = block(l);
    if (arch == "gpt2")
      return product(z, in_out(b + "attn.c_proj.weight", c), c, vec(b + "attn.c_proj.bias"));
    if (arch == "llama") return product(z, out_in(b + "self_attn.o_proj.weight", heads * d), c, {});
    if (arch == "bert")
      return product(z, out_in(b + "attention.output.dense.weight", heads * d), c,
                     vec(b + "attention.output.dense.bias"));
    // (H, D, C): rows of all heads follow each other.
    return product(z, in_out(b + "attn.W_O", c), c, vec(b + "attn.b_O"));
  }

  std::vector<double> mlp(int64_t l, const std::vector<double>& x) const {
    const std::string b = block(l);
    const auto gelu_tanh = [](double a) {
      return 0.5 * a * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (a + 0.044715 * a * a * a)));
    };
    std::vector<double> h;
    if (arch == "gpt2") {
      h = product(x, in_out(b + "mlp.c_fc.weight", hidden), hidden, vec(b + "mlp.c_fc.bias"));
      for (double& v : h) v = gelu_tanh(v);
      return product(h, in_out(b + "mlp.c_proj.weight", c), c, vec(b + "mlp.c_proj.bias"));
    }
    if (arch == "llama") {
      h = product(x, out_in(b + "mlp.gate_proj.weight", c), hidden, {});
      const std::vector<double> up = product(x, out_in(b + "mlp.up_proj.weight", c), hidden, {});
      for (size_t i = 0; i < h.size(); ++i) h[i] = h[i] / (1 + std::exp(-h[i])) * up[i];
      return product(h, out_in(b + "mlp.down_proj.weight", hidden), c, {});
    }
    if (arch == "bert") {
      h = product(x, out_in(b + "intermediate.dense.weight", c), hidden, vec(b + "intermediate.dense.bias"));
      for (double& v : h) v = 0.5 * v * std::erfc(-v * std::sqrt(0.5));
      return product(h, out_in(b + "output.dense.weight", hidden), c, vec(b + "output.dense.bias"));
    }
    h = product(x, in_out(b + "mlp.W_in", hidden), hidden, vec(b + "mlp.b_in"));
    for (double& v : h) v = gelu_tanh(v);
    return product(h, in_out(b + "mlp.W_out", c), c, vec(b + "mlp.b_out"));
  }

  bool has_mlp() const { return arch != "lens" || params.boolean("use_mlp"); }
  std::pair<Row, Row> norm_of(int64_t l, int which) const {
    const std::string b = block(l);
    if (arch == "gpt2") {
      const std::string n = b + (which == 1 ? "ln_1" : "ln_2");
      return {vec(n + ".weight"), vec(n + ".bias")};
    }
    if (arch == "llama")
      return {vec(b + (which == 1 ? "input_layernorm" : "post_attention_layernorm") + ".weight"), {}};
    if (arch == "bert") {
      const std::string n = b + (which == 1 ? "attention.output.LayerNorm" : "output.LayerNorm");
      return {vec(n + ".weight"), vec(n + ".bias")};
    }
    const std::string n = b + (which == 1 ? "ln1" : "ln2");
    return {vec(n + ".w"), vec(n + ".b")};
  }
};

using Rows = std::vector<std::vector<double>>;

/// Rotation of Llama: channel i pairs with i + D / 2.
void rotate(std::vector<double>& x, int64_t position, double base) {
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) /
                         std::pow(base, 2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = a * std::sin(angle) + b * std::cos(angle);
  }
}

/// The method named for a layer and its parameters, by the rule of the parameter `attention`.
std::pair<std::string, std::map<std::string, Value>> method_of(const std::string& text, int64_t l) {
  std::vector<std::string> parts;
  std::istringstream all(text);
  for (std::string part; std::getline(all, part, ';');) parts.push_back(part);
  std::istringstream words(parts.size() == 1 ? parts[0] : parts[static_cast<size_t>(l)]);
  std::pair<std::string, std::map<std::string, Value>> out;
  words >> out.first;
  for (std::string word; words >> word;) {
    const size_t at = word.find('=');
    const std::string v = word.substr(at + 1);
    Value value = v;
    if (v == "true" || v == "false")
      value = v == "true";
    else if (v.find_first_not_of("-0123456789") == std::string::npos)
      value = static_cast<int64_t>(std::stoll(v));
    else if (v.find_first_not_of("-+.eE0123456789") == std::string::npos)
      value = std::stod(v);
    out.second[word.substr(0, at)] = value;
  }
  return out;
}

RefTensor dense_heads(const RefTensor& q, const RefTensor& k, const RefTensor& v, bool causal) {
  const int64_t heads = q.dim(1), kv = k.dim(1), n = q.dim(2), d = q.dim(3);
  RefTensor z(q.shape);
  std::vector<double> p(static_cast<size_t>(n));
  std::vector<char> visible(static_cast<size_t>(n));
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t g = h / (heads / kv) * n * d;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = (h * n + i) * d;
      for (int64_t j = 0; j < n; ++j) {
        const auto at = static_cast<size_t>(j);
        visible[at] = !causal || j <= i;
        p[at] = 0;
        for (int64_t c = 0; c < d; ++c) p[at] += q[row + c] * k[g + j * d + c];
        p[at] /= std::sqrt(static_cast<double>(d));
      }
      if (!ref::softmax_row(p, visible)) continue;
      for (int64_t j = 0; j < n; ++j)
        for (int64_t c = 0; c < d; ++c) z[row + c] += p[static_cast<size_t>(j)] * v[g + j * d + c];
    }
  }
  return z;
}

/// One sequence: hidden states after the final norm.
Rows run_sequence(const Model& m, const RefTensor& tokens, int64_t b) {
  const int64_t n = m.problem.length;
  Rows x(static_cast<size_t>(n), std::vector<double>(static_cast<size_t>(m.c)));
  const char* const embedding = m.arch == "gpt2"    ? "wte.weight"
                                : m.arch == "llama" ? "model.embed_tokens.weight"
                                : m.arch == "bert"  ? "embeddings.word_embeddings.weight"
                                                    : "embed.W_E";
  const char* const position = m.arch == "gpt2"   ? "wpe.weight"
                               : m.arch == "bert" ? "embeddings.position_embeddings.weight"
                                                  : "pos_embed.W_pos";
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double>& row = x[static_cast<size_t>(i)];
    const auto id = static_cast<int64_t>(tokens[b * n + i]);
    for (int64_t c = 0; c < m.c; ++c) {
      double& v = row[static_cast<size_t>(c)];
      v = m.w.at(embedding)[id * m.c + c];
      if (m.arch != "llama") v += m.w.at(position)[i * m.c + c];
      if (m.arch == "bert") v += m.w.at("embeddings.token_type_embeddings.weight")[c];
    }
    if (m.arch == "bert")
      row = m.norm(row, m.vec("embeddings.LayerNorm.weight"), m.vec("embeddings.LayerNorm.bias"));
  }
  const std::string& text = m.params.text("attention");
  for (int64_t l = 0; l < m.layers; ++l) {
    RefTensor q({1, m.heads, n, m.d}), k({1, m.kv_heads, n, m.d}), v({1, m.kv_heads, n, m.d});
    const auto [gain1, offset1] = m.norm_of(l, 1);
    for (int64_t i = 0; i < n; ++i) {
      const std::vector<double>& row = x[static_cast<size_t>(i)];
      const std::vector<double> in = m.post ? row : m.norm(row, gain1, offset1);
      for (int which = 0; which < 3; ++which) {
        RefTensor& to = which == 0 ? q : which == 1 ? k : v;
        for (int64_t h = 0; h < to.dim(1); ++h) {
          std::vector<double> one = m.head(l, which, h, in);
          if (m.arch == "llama" && which < 2) rotate(one, i, m.params.number("rotary_base"));
          for (int64_t c = 0; c < m.d; ++c) to[(h * n + i) * m.d + c] = one[static_cast<size_t>(c)];
        }
      }
    }
    RefTensor z;
    if (text.empty()) {
      z = dense_heads(q, k, v, m.problem.causal);
    } else {
      const auto [id, given] = method_of(text, l);
      Problem p;
      p.batch = 1;
      p.heads = m.heads;
      p.kv_heads = m.kv_heads;
      p.length = p.kv_length = n;
      p.head_dim = m.d;
      p.causal = m.problem.causal;
      p.dtype = m.problem.dtype;
      const Params params = resolve_params(id, find_method(id).info().params, given, p);
      for (const auto& [name, t] : find_reference(id)(p, params, {{"q", q}, {"k", k}, {"v", v}}, {}))
        if (t.shape == q.shape) z = t;
    }
    const auto [gain2, offset2] = m.norm_of(l, 2);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double>& row = x[static_cast<size_t>(i)];
      std::vector<double> heads;
      for (int64_t h = 0; h < m.heads; ++h)
        for (int64_t c = 0; c < m.d; ++c) heads.push_back(z[(h * n + i) * m.d + c]);
      const std::vector<double> attention = m.mix(l, heads);
      for (size_t c = 0; c < row.size(); ++c) row[c] += attention[c];
      if (m.post) row = m.norm(row, gain1, offset1);
      if (!m.has_mlp()) continue;
      const std::vector<double> update = m.mlp(l, m.post ? row : m.norm(row, gain2, offset2));
      for (size_t c = 0; c < row.size(); ++c) row[c] += update[c];
      if (m.post) row = m.norm(row, gain2, offset2);
    }
  }
  if (!m.post) {
    const std::string f = m.arch == "gpt2" ? "ln_f" : m.arch == "llama" ? "model.norm" : "ln_final";
    const bool lens = m.arch == "lens";
    for (std::vector<double>& row : x)
      row = m.norm(row, m.vec(f + (lens ? ".w" : ".weight")), m.vec(f + (lens ? ".b" : ".bias")));
  }
  return x;
}

RefMap transformer_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                             const RefMap& weights) {
  const Model m(problem, params, weights);
  const int64_t n = problem.length, batch = problem.batch;
  const std::string& which = params.choice("logits");
  const bool head = m.arch != "bert" && which != "none";
  RefTensor hidden({batch, n, m.c});
  RefTensor logits({batch, head ? (which == "all" ? n : 1) : 0, head ? m.vocab : 0});
  // The head as out x in: row v of a table, or column v of (C, V).
  View unembed;
  if (head) {
    if (m.arch == "gpt2") unembed = m.out_in("wte.weight", m.c);
    if (m.arch == "llama")
      unembed = m.out_in(params.boolean("tied") ? "model.embed_tokens.weight" : "lm_head.weight", m.c);
    if (m.arch == "lens") unembed = m.in_out("unembed.W_U", m.vocab);
  }
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < batch; ++b) {
    const Rows x = run_sequence(m, inputs.at("tokens"), b);
    for (int64_t i = 0; i < n; ++i) {
      const std::vector<double>& row = x[static_cast<size_t>(i)];
      for (int64_t c = 0; c < m.c; ++c) hidden[(b * n + i) * m.c + c] = row[static_cast<size_t>(c)];
      if (!head || (which == "last" && i + 1 < n)) continue;
      const std::vector<double> y = Model::product(row, unembed, m.vocab, m.vec("unembed.b_U"));
      const int64_t at = which == "all" ? b * n + i : b;
      for (int64_t v = 0; v < m.vocab; ++v) logits[at * m.vocab + v] = y[static_cast<size_t>(v)];
    }
  }
  RefMap out{{"hidden", hidden}};
  if (head) out["logits"] = logits;
  return out;
}
ATTNBENCH_REFERENCE(transformer, transformer_reference);

}  // namespace
}  // namespace attnbench
