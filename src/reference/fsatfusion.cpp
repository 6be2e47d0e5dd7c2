// Reference of fsatfusion: maps as [C][H W] of doubles, image by image, token by token.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {

namespace {

using Vector = std::vector<double>;

struct Fusion {
  const Params& params;
  const RefMap& weights;
  int64_t c, heads, h, w;
  int64_t n() const { return h * w; }

  Vector affine(const std::string& name, const Vector& x) const {
    const RefTensor& m = weights.at(name + ".weight");
    const auto bias = weights.find(name + ".bias");
    Vector y(static_cast<size_t>(m.dim(0)));
    for (int64_t o = 0; o < m.dim(0); ++o) {
      y[static_cast<size_t>(o)] = bias == weights.end() ? 0.0 : bias->second[o];
      for (int64_t i = 0; i < m.dim(1); ++i)
        y[static_cast<size_t>(o)] += m[o * m.dim(1) + i] * x[static_cast<size_t>(i)];
    }
    return y;
  }
  Vector layer_norm(const std::string& name, const Vector& x) const {
    double mean = 0, variance = 0;
    for (double v : x) mean += v / static_cast<double>(x.size());
    for (double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Vector y(x.size());
    for (size_t i = 0; i < x.size(); ++i)
      y[i] =
          (x[i] - mean) / std::sqrt(variance + 1e-5) * weights.at(name + ".weight")[static_cast<int64_t>(i)] +
          weights.at(name + ".bias")[static_cast<int64_t>(i)];
    return y;
  }
  double batch_norm(const std::string& name, int64_t ch, double x) const {
    return (x - weights.at(name + ".running_mean")[ch]) /
               std::sqrt(weights.at(name + ".running_var")[ch] + 1e-5) * weights.at(name + ".weight")[ch] +
           weights.at(name + ".bias")[ch];
  }
  /// x [in][H W], zeros outside.
  Vector conv(const std::string& name, const Vector& x) const {
    const RefTensor& m = weights.at(name + ".weight");
    const auto bias = weights.find(name + ".bias");
    const int64_t out = m.dim(0), in = m.dim(1), k = m.dim(2);
    Vector y(static_cast<size_t>(out * n()));
    for (int64_t o = 0; o < out; ++o)
      for (int64_t r = 0; r < h; ++r)
        for (int64_t s = 0; s < w; ++s) {
          double sum = bias == weights.end() ? 0.0 : bias->second[o];
          for (int64_t i = 0; i < in; ++i)
            for (int64_t p = 0; p < k; ++p)
              for (int64_t q = 0; q < k; ++q) {
                const int64_t a = r + p - k / 2, b = s + q - k / 2;
                if (a >= 0 && a < h && b >= 0 && b < w)
                  sum += m[((o * in + i) * k + p) * k + q] * x[static_cast<size_t>((i * h + a) * w + b)];
              }
          y[static_cast<size_t>((o * h + r) * w + s)] = sum;
        }
    return y;
  }
  size_t place(int64_t token, int64_t ch) const {
    return static_cast<size_t>(params.choice("token_layout") == "reference" ? token * c + ch
                                                                            : ch * n() + token);
  }

  Vector mixed(int64_t block, const Vector& x) const {
    const std::string at = "blocks." + std::to_string(block) + ".";
    std::vector<Vector> token(static_cast<size_t>(n()), Vector(static_cast<size_t>(c)));
    for (int64_t t = 0; t < n(); ++t)
      for (int64_t ch = 0; ch < c; ++ch)
        token[static_cast<size_t>(t)][static_cast<size_t>(ch)] = x[place(t, ch)];
    const bool global = params.choice("attn_scope") == "global";
    const int64_t win = global ? 1 : params.integer("window_size"), shift = block % 2 ? win / 2 : 0,
                  d = c / heads;
    const int64_t hp = (h + win - 1) / win * win, wp = (w + win - 1) / win * win;
    std::vector<Vector> qkv(static_cast<size_t>(hp * wp));
    for (int64_t r = 0; r < hp; ++r)
      for (int64_t s = 0; s < wp; ++s)
        qkv[static_cast<size_t>(r * wp + s)] = affine(
            at + "attn.qkv", r < h && s < w ? layer_norm(at + "ln1", token[static_cast<size_t>(r * w + s)])
                                            : Vector(static_cast<size_t>(c), 0.0));
    // Swin's regions of the rolled map: the last window, and in it what was rolled around.
    const auto region = [&](int64_t rolled, int64_t extent) {
      return shift == 0 || rolled < extent - win ? 0 : rolled < extent - shift ? 1 : 2;
    };
    for (int64_t r = 0; r < h; ++r)
      for (int64_t s = 0; s < w; ++s) {
        const int64_t rr = (r - shift + hp) % hp, rs = (s - shift + wp) % wp;
        Vector o(static_cast<size_t>(c), 0.0);
        const Vector& q = qkv[static_cast<size_t>(r * wp + s)];
        for (int64_t head = 0; head < heads; ++head) {
          Vector score;
          std::vector<int64_t> keys;
          if (global)
            for (int64_t j = 0; j < n(); ++j) keys.push_back(j);
          else
            for (int64_t i = 0; i < win * win; ++i)
              keys.push_back(((rr / win * win + i / win + shift) % hp) * wp +
                             (rs / win * win + i % win + shift) % wp);
          for (size_t j = 0; j < keys.size(); ++j) {
            double dot = 0;
            for (int64_t e = head * d; e < (head + 1) * d; ++e)
              dot +=
                  q[static_cast<size_t>(e)] * qkv[static_cast<size_t>(keys[j])][static_cast<size_t>(c + e)];
            dot /= std::sqrt(static_cast<double>(d));
            if (!global) {
              const int64_t ky = static_cast<int64_t>(j) / win, kx = static_cast<int64_t>(j) % win,
                            qy = rr % win, qx = rs % win;
              dot += weights.at(
                  at + "attn.bias_table")[((qy - ky + win - 1) * (2 * win - 1) + qx - kx + win - 1) * heads +
                                          head];
              const int64_t kr = rr / win * win + ky, ks = rs / win * win + kx;
              if (region(rr, hp) != region(kr, hp) || region(rs, wp) != region(ks, wp)) dot -= 100;
            }
            score.push_back(dot);
          }
          ref::softmax_row(score, std::vector<char>(score.size(), 1));
          for (size_t j = 0; j < keys.size(); ++j)
            for (int64_t e = head * d; e < (head + 1) * d; ++e)
              o[static_cast<size_t>(e)] +=
                  score[j] * qkv[static_cast<size_t>(keys[j])][static_cast<size_t>(2 * c + e)];
        }
        const Vector y = affine(at + "attn.proj", o);
        for (int64_t ch = 0; ch < c; ++ch)
          token[static_cast<size_t>(r * w + s)][static_cast<size_t>(ch)] += y[static_cast<size_t>(ch)];
      }
    std::vector<Vector> m;
    Vector mean(static_cast<size_t>(c), 0.0);
    for (const Vector& t : token) {
      Vector hidden = affine(at + "mlp.fc1", layer_norm(at + "ln2", t));
      for (double& v : hidden) v = 0.5 * v * std::erfc(-v / std::sqrt(2.0));
      m.push_back(affine(at + "mlp.fc2", hidden));
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += m.back()[i] / static_cast<double>(n());
    }
    const double share = params.number("broadcast");
    Vector u(x.size());
    for (int64_t t = 0; t < n(); ++t)
      for (int64_t ch = 0; ch < c; ++ch) {
        const auto i = static_cast<size_t>(ch);
        u[place(t, ch)] =
            token[static_cast<size_t>(t)][i] + (1 - share) * m[static_cast<size_t>(t)][i] + share * mean[i];
      }
    return u;
  }

  struct Gates {
    Vector f, z, g, q;
  };
  Gates gated(int64_t block, const Vector& u) const {
    static const int pairs[32][2] = {{0, 0}, {0, 1}, {6, 0}, {0, 5}, {0, 2}, {1, 0}, {1, 2}, {4, 0},
                                     {5, 0}, {1, 6}, {3, 0}, {0, 4}, {0, 6}, {0, 3}, {3, 5}, {2, 2},
                                     {4, 6}, {6, 3}, {3, 3}, {5, 3}, {5, 5}, {2, 1}, {6, 1}, {5, 2},
                                     {5, 4}, {3, 2}, {3, 1}, {4, 1}, {2, 3}, {2, 0}, {6, 5}, {1, 3}};
    const std::string at =
        params.boolean("share_fsam") ? "fsam." : "blocks." + std::to_string(block) + ".fsam.";
    const int64_t k = params.integer("dct_size"), each = c / params.integer("num_freq");
    const auto b = [k](int64_t f, int64_t i) {
      return std::cos(std::acos(-1.0) * static_cast<double>(f) * (static_cast<double>(i) + 0.5) /
                      static_cast<double>(k)) *
             std::sqrt((f > 0 ? 2.0 : 1.0) / static_cast<double>(k));
    };
    Gates out;
    for (int64_t ch = 0; ch < c; ++ch) {
      double z = 0;
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j) {
          double sum = 0, count = 0;
          for (int64_t r = i * h / k; r < ((i + 1) * h + k - 1) / k; ++r)
            for (int64_t s = j * w / k; s < ((j + 1) * w + k - 1) / k; ++s)
              sum += u[static_cast<size_t>((ch * h + r) * w + s)], ++count;
          z += sum / count * b(pairs[ch / each][0] * (k / 7), i) * b(pairs[ch / each][1] * (k / 7), j);
        }
      out.z.push_back(z);
    }
    Vector squeezed = affine(at + "W1", out.z);
    for (double& v : squeezed) v = std::max(v, 0.0);
    for (double v : affine(at + "W2", squeezed)) out.g.push_back(1 / (1 + std::exp(-v)));
    Vector x1 = u, planes(static_cast<size_t>(2 * n()));
    for (size_t i = 0; i < x1.size(); ++i) x1[i] *= out.g[i / static_cast<size_t>(n())];
    for (int64_t p = 0; p < n(); ++p) {
      double most = -INFINITY, mean = 0, variance = 0;
      for (int64_t ch = 0; ch < c; ++ch) {
        const double v = x1[static_cast<size_t>(ch * n() + p)];
        most = std::max(most, v), mean += v / static_cast<double>(c);
      }
      for (int64_t ch = 0; ch < c; ++ch) {
        const double away = x1[static_cast<size_t>(ch * n() + p)] - mean;
        variance += away * away / static_cast<double>(c);
      }
      planes[static_cast<size_t>(p)] = most, planes[static_cast<size_t>(n() + p)] = std::sqrt(variance);
    }
    for (double v : conv(at + "conv7", planes)) out.q.push_back(1 / (1 + std::exp(-v)));
    for (size_t i = 0; i < x1.size(); ++i) out.f.push_back(x1[i] * out.q[i % static_cast<size_t>(n())]);
    return out;
  }
};

RefMap fsatfusion(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const Fusion net{params, weights, params.integer("dim"), params.integer("num_heads"), x.dim(2), x.dim(3)};
  const std::string scope = params.choice("scope");
  const bool network = scope == "network";
  int64_t depth = params.is_null("depth") ? (network ? 2 : 1) : params.integer("depth");
  if (scope == "fsam" || scope == "itm") depth = 1;
  RefMap out;
  const auto store = [&](const std::string& name, int64_t b, const Vector& v, std::vector<int64_t> shape) {
    shape.insert(shape.begin(), x.dim(0));
    if (!out.contains(name)) out[name] = RefTensor(shape);
    std::copy(v.begin(), v.end(), out.at(name).data.begin() + b * static_cast<int64_t>(v.size()));
  };
  const int64_t c = net.c, h = net.h, w = net.w;
  for (int64_t b = 0; b < x.dim(0); ++b) {
    const int64_t size = x.numel() / x.dim(0);
    Vector map(x.data.begin() + b * size, x.data.begin() + (b + 1) * size);
    if (network) {
      map = net.conv("front.conv1", map);
      for (double& v : map) v = std::max(v, 0.0);
      map = net.conv("front.conv2", map);
      for (size_t i = 0; i < map.size(); ++i)
        map[i] = std::max(net.batch_norm("front.bn", static_cast<int64_t>(i) / net.n(), map[i]), 0.0);
      store("enc", b, map, {c, h, w});
    }
    for (int64_t i = 0; i < depth; ++i) {
      const std::string number = depth > 1 || network ? std::to_string(i) : "";
      const Vector u = scope == "fsam" ? map : net.mixed(i, map);
      if (scope == "itm") {
        map = u;
        continue;
      }
      const Fusion::Gates gates = net.gated(i, u);
      store("g" + number, b, gates.g, {c});
      if (!network) store("z" + number, b, gates.z, {c}), store("q" + number, b, gates.q, {1, h, w});
      map = gates.f;
      if (scope == "fsam") continue;
      store("u" + number, b, u, {c, h, w});
      const std::string norm =
          params.boolean("share_fsam") ? "block_bn" : "blocks." + std::to_string(i) + ".block_bn";
      for (size_t j = 0; j < map.size(); ++j)
        map[j] = std::max(net.batch_norm(norm, static_cast<int64_t>(j) / net.n(), u[j] + gates.f[j]), 0.0);
    }
    if (network) {
      map = net.conv("head", map);
      for (double& v : map) v = std::tanh(v);
    }
    store("out", b, map, {static_cast<int64_t>(map.size()) / net.n(), h, w});
  }
  return out;
}

ATTNBENCH_REFERENCE(fsatfusion, fsatfusion);

}  // namespace
}  // namespace attnbench
