// Reference of `tfm_tokenizer`: each step by its formula, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;
/// Tokens or frames of channels.
using Rows = std::vector<Row>;

struct Model {
  const RefMap& w;
  int64_t e;

  const RefTensor& at(const std::string& name) const { return w.at(name); }

  /// y_o = sum_i W[o, i] x_i + b_o over a flat input.
  Row linear(const Row& x, const std::string& weight, const std::string& bias) const {
    const RefTensor& m = at(weight);
    const int64_t out = m.dim(0), in = m.numel() / out;
    Row y(static_cast<size_t>(out));
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : at(bias)[o];
      for (int64_t i = 0; i < in; ++i) sum += m[o * in + i] * x[static_cast<size_t>(i)];
      y[static_cast<size_t>(o)] = sum;
    }
    return y;
  }
  static double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
  Row with_gelu(Row x) const {
    for (double& v : x) v = gelu(v);
    return x;
  }

  /// Groups of neighbouring channels over all places.
  void group_norm(Rows& x, const std::string& name) const {
    const size_t channels = x[0].size(), width = channels / static_cast<size_t>(e / 4);
    for (size_t g = 0; g < channels; g += width) {
      double mean = 0, square = 0;
      const double count = static_cast<double>(width * x.size());
      for (const Row& r : x)
        for (size_t c = g; c < g + width; ++c) mean += r[c] / count;
      for (const Row& r : x)
        for (size_t c = g; c < g + width; ++c) square += (r[c] - mean) * (r[c] - mean) / count;
      for (Row& r : x)
        for (size_t c = g; c < g + width; ++c)
          r[c] = (r[c] - mean) / std::sqrt(square + 1e-5) * at(name + ".weight")[static_cast<int64_t>(c)] +
                 at(name + ".bias")[static_cast<int64_t>(c)];
    }
  }
  Row layer_norm(const Row& x, const std::string& name) const {
    double mean = 0, square = 0;
    const auto n = static_cast<double>(x.size());
    for (double v : x) mean += v / n;
    for (double v : x) square += (v - mean) * (v - mean) / n;
    Row y;
    for (size_t i = 0; i < x.size(); ++i)
      y.push_back((x[i] - mean) / std::sqrt(square + 1e-5) * at(name + ".weight")[static_cast<int64_t>(i)] +
                  at(name + ".bias")[static_cast<int64_t>(i)]);
    return y;
  }
  /// conv -> GELU -> group norm, the kernel's points already side by side.
  Rows embed(const Rows& x, const std::string& conv, const std::string& norm) const {
    Rows y;
    for (const Row& r : x) y.push_back(with_gelu(linear(r, conv + ".weight", conv + ".bias")));
    group_norm(y, norm);
    return y;
  }

  void attention_layers(Rows& u, const std::string& name, int64_t depth, int64_t heads) const {
    const auto d = static_cast<size_t>(e / heads);
    for (int64_t l = 0; l < depth; ++l) {
      const std::string p = name + "." + std::to_string(l) + ".";
      Rows q, k, v;
      for (const Row& r : u) {
        const Row x = layer_norm(r, p + "attn_norm");
        q.push_back(linear(x, p + "attn.W_q", ""));
        k.push_back(linear(x, p + "attn.W_k", ""));
        v.push_back(linear(x, p + "attn.W_v", ""));
      }
      for (size_t c = 0; c < static_cast<size_t>(e); ++c) {  // keys: over the sequence
        double sum = 0;
        for (Row& r : k) sum += r[c] = std::exp(r[c]);
        for (Row& r : k) r[c] /= sum;
      }
      Rows mixed;
      for (Row& r : q) {
        Row out(static_cast<size_t>(e));
        for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
          double sum = 0;
          for (size_t i = 0; i < d; ++i) sum += r[h * d + i] = std::exp(r[h * d + i]);
          for (size_t i = 0; i < d; ++i) r[h * d + i] /= sum * std::sqrt(static_cast<double>(d));
          for (size_t j = 0; j < u.size(); ++j) {
            double dot = 0;
            for (size_t i = 0; i < d; ++i) dot += r[h * d + i] * k[j][h * d + i];
            for (size_t i = 0; i < d; ++i) out[h * d + i] += dot * v[j][h * d + i];
          }
        }
        mixed.push_back(out);
      }
      for (size_t t = 0; t < u.size(); ++t) {
        const Row o = linear(mixed[t], p + "attn.W_o", p + "attn.b_o");
        for (size_t c = 0; c < o.size(); ++c) u[t][c] += o[c];
        const Row f = linear(with_gelu(linear(layer_norm(u[t], p + "ff_norm"), p + "ff.W1", p + "ff.b1")),
                             p + "ff.W2", p + "ff.b2");
        for (size_t c = 0; c < f.size(); ++c) u[t][c] += f[c];
      }
    }
  }
};

RefMap tfm_reference(const Problem& problem, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), ch = x.dim(1), samples = x.dim(2), signals = batch * ch;
  const int64_t fs = !p.is_null("sample_rate")
                         ? p.integer("sample_rate")
                         : static_cast<int64_t>(problem.sample_rate > 0 ? problem.sample_rate : 200.0);
  const int64_t hop = fs / 2, f = fs / 2, frames = 1 + (samples - fs) / hop, e = p.integer("embed_dim"),
                w = p.integer("freq_patch"), heads = p.integer("heads"), groups = f / (w * w),
                codes = p.integer("codebook_size");
  const std::string stage = p.choice("stage");
  const Model m{weights, e};
  RefMap out;
  RefTensor S({signals, f, frames});
  std::vector<Rows> time(static_cast<size_t>(signals));
#pragma omp parallel for
  for (int64_t s = 0; s < signals; ++s) {
    Rows pieces;
    for (int64_t t = 0; t < frames; ++t) {
      const Row piece(x.data.begin() + s * samples + t * hop, x.data.begin() + s * samples + t * hop + fs);
      pieces.push_back(piece);
      for (int64_t k = 0; k < f; ++k) {
        std::complex<double> sum = 0;
        for (int64_t i = 0; i < fs; ++i) {
          const double turn = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(fs);
          sum += piece[static_cast<size_t>(i)] * (0.5 - 0.5 * std::cos(turn)) *
                 std::polar(
                     1.0, -2 * std::numbers::pi * static_cast<double>(i * k % fs) / static_cast<double>(fs));
        }
        S[(s * f + k) * frames + t] = std::abs(sum);
      }
    }
    time[static_cast<size_t>(s)] = m.embed(m.embed(m.embed(pieces, "time_embed.conv1", "time_embed.norm1"),
                                                   "time_embed.conv2", "time_embed.norm2"),
                                           "time_embed.conv3", "time_embed.norm3");
  }
  const auto encode = [&](const RefTensor& spectrum, RefTensor& z, RefTensor& unit, RefTensor& tokens,
                          RefTensor& quantized) {
    z = unit = quantized = RefTensor({signals, frames, e});
    tokens = RefTensor({batch, ch, frames});
#pragma omp parallel for
    for (int64_t s = 0; s < signals; ++s) {
      Rows u;
      for (int64_t t = 0; t < frames; ++t) {
        Rows patches;
        for (int64_t i = 0; i < f / w; ++i) {
          Row patch;
          for (int64_t j = 0; j < w; ++j) patch.push_back(spectrum[(s * f + i * w + j) * frames + t]);
          patches.push_back(patch);
        }
        patches = m.embed(m.embed(m.embed(patches, "freq_embed.conv1", "freq_embed.norm1"),
                                  "freq_embed.conv2", "freq_embed.norm2"),
                          "freq_embed.conv3", "freq_embed.norm3");
        m.attention_layers(patches, "freq_layers", p.integer("freq_depth"), heads);
        Row row(static_cast<size_t>(e / 2));
        for (int64_t g = 0; g < groups; ++g) {
          Row wide;  // [channel][place], as a kernel reads them
          for (int64_t c = 0; c < e; ++c)
            for (int64_t j = 0; j < w; ++j)
              wide.push_back(patches[static_cast<size_t>(g * w + j)][static_cast<size_t>(c)]);
          const Row value = m.linear(wide, "freq_value.weight", "freq_value.bias"),
                    gate = m.linear(wide, "freq_gate.weight", "freq_gate.bias");
          for (size_t c = 0; c < value.size(); ++c)
            row[c * static_cast<size_t>(groups) + static_cast<size_t>(g)] =
                value[c] / (1 + std::exp(-gate[c]));
        }
        const Row& half = time[static_cast<size_t>(s)][static_cast<size_t>(t)];
        row.insert(row.end(), half.begin(), half.end());
        u.push_back(row);
      }
      m.attention_layers(u, "time_layers", p.integer("time_depth"), heads);
      for (int64_t t = 0; t < frames; ++t) {
        const Row& row = u[static_cast<size_t>(t)];
        double norm = 0, best = INFINITY;
        for (double v : row) norm += v * v;
        norm = std::max(std::sqrt(norm), 1e-12);
        int64_t token = 0;
        for (int64_t k = 0; k < codes; ++k) {
          double distance = 0;
          for (int64_t c = 0; c < e; ++c)
            distance += std::pow(row[static_cast<size_t>(c)] / norm - weights.at("codebook")[k * e + c], 2);
          if (distance < best) best = distance, token = k;
        }
        for (int64_t c = 0; c < e; ++c) {
          const int64_t at = (s * frames + t) * e + c;
          z[at] = row[static_cast<size_t>(c)];
          unit[at] = row[static_cast<size_t>(c)] / norm;
          quantized[at] = weights.at("codebook")[token * e + c];
        }
        tokens[s * frames + t] = static_cast<double>(token);
      }
    }
  };
  const auto decode = [&](const RefTensor& quantized) {
    RefTensor y({signals, f, frames});
    for (int64_t s = 0; s < signals; ++s) {
      Rows u;
      for (int64_t t = 0; t < frames; ++t) {
        const auto begin = quantized.data.begin() + (s * frames + t) * e;
        u.emplace_back(begin, begin + e);
      }
      m.attention_layers(u, "dec_layers", p.integer("dec_depth"), heads);
      for (int64_t t = 0; t < frames; ++t) {
        Row h = m.linear(u[static_cast<size_t>(t)], "dec_head.linear1.weight", "dec_head.linear1.bias");
        for (double& v : h) v = std::tanh(v);
        const Row o = m.linear(h, "dec_head.linear2.weight", "dec_head.linear2.bias");
        for (int64_t k = 0; k < f; ++k) y[(s * f + k) * frames + t] = o[static_cast<size_t>(k)];
      }
    }
    return y;
  };
  out["S"] = S;
  encode(S, out["z"], out["e"], out["tokens"], out["quantized"]);
  if (stage == "reconstruct") {
    out["S_hat"] = decode(out["quantized"]);
    RefTensor keep({f, frames});
    if (inputs.contains("keep")) {
      keep = inputs.at("keep");
    } else {
      // The draw belongs to the method's definition of its seed: bands, then frames, each by Fisher and Yates
      // from the end.
      const auto masked = [&](int64_t count, double ratio, const char* name) {
        std::vector<int64_t> order(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
        for (int64_t i = count - 1; i > 0; --i) {
          const uint64_t bits = random_bits(problem.seed, stream_of(std::string("tfm_tokenizer.") + name),
                                            static_cast<uint64_t>(i));
          std::swap(order[static_cast<size_t>(i)],
                    order[static_cast<size_t>(bits % static_cast<uint64_t>(i + 1))]);
        }
        order.resize(static_cast<size_t>(static_cast<double>(count) * ratio));
        return order;
      };
      std::fill(keep.data.begin(), keep.data.end(), 1.0);
      const int64_t band = p.integer("mask_band");
      for (int64_t b : masked(f / band, p.number("freq_mask_ratio"), "bands"))
        for (int64_t k = b * band; k < (b + 1) * band; ++k)
          for (int64_t t = 0; t < frames; ++t) keep[k * frames + t] = 0;
      for (int64_t t : masked(frames, p.number("time_mask_ratio"), "frames"))
        for (int64_t k = 0; k < f; ++k) keep[k * frames + t] = 0;
    }
    for (const char* pass : {"keep", "complement"}) {
      const std::string name = pass;
      RefTensor part = S, z, unit, quantized;
      for (int64_t i = 0; i < part.numel(); ++i) {
        const double k = keep[i % (f * frames)];
        part[i] *= name == "keep" ? k : 1 - k;
      }
      encode(part, z, unit, out["tokens_" + name], quantized);
      const RefTensor back = decode(quantized);
      RefTensor loss({1});
      for (int64_t i = 0; i < back.numel(); ++i)
        loss[0] += std::pow(back[i] - S[i], 2) / static_cast<double>(back.numel());
      out["S_hat_" + name] = back;
      out["loss_recon_" + name] = loss;
    }
  }
  if (stage == "classify") {
    const int64_t classes = p.integer("n_classes"), tokens = ch * frames;
    RefTensor logits({batch, classes}), each({batch, tokens, classes});
    for (int64_t b = 0; b < batch; ++b) {
      Rows u = {Row(weights.at("cls.class_vector").data)};
      for (int64_t c = 0; c < ch; ++c)
        for (int64_t t = 0; t < frames; ++t) {
          const auto id = static_cast<int64_t>(out["tokens"][(b * ch + c) * frames + t]);
          Row row;
          for (int64_t i = 0; i < e; ++i) {
            const double rate = std::pow(10000.0, -static_cast<double>(i - i % 2) / static_cast<double>(e));
            row.push_back(
                weights.at("cls.token_embed")[id * e + i] + weights.at("cls.channel_embed")[c * e + i] +
                (i % 2 ? std::cos(static_cast<double>(t) * rate) : std::sin(static_cast<double>(t) * rate)));
          }
          u.push_back(row);
        }
      m.attention_layers(u, "cls_layers", p.integer("cls_depth"), 8);
      for (size_t i = 0; i < u.size(); ++i) {
        const Row y = m.linear(u[i], "cls_head.weight", "cls_head.bias");
        for (int64_t c = 0; c < classes; ++c)
          (i == 0 ? logits[b * classes + c]
                  : each[(b * tokens + static_cast<int64_t>(i) - 1) * classes + c]) =
              y[static_cast<size_t>(c)];
      }
    }
    out["logits"] = logits;
    out["token_logits"] = each;
  }
  return out;
}
ATTNBENCH_REFERENCE(tfm_tokenizer, tfm_reference);

}  // namespace
}  // namespace attnbench
