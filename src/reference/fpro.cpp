// FPro, straight from the card: planes [B, C, H, W] throughout, transforms as sums, every loop in double.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "kernels/core/error.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Complex = std::complex<double>;

double gelu(double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); }
double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

struct Weights {
  const RefMap& all;
  std::string prefix;
  const RefTensor& operator()(const std::string& name) const { return all.at(prefix + name); }
  const RefTensor* maybe(const std::string& name) const {
    const auto at = all.find(prefix + name);
    return at == all.end() ? nullptr : &at->second;
  }
  Weights in(const std::string& more) const { return {all, prefix + more}; }
};

/// Zero-padded to the same extents; groups 1 or one a channel.
RefTensor conv(const RefTensor& x, const RefTensor& w, const RefTensor* bias) {
  const int64_t b = x.dim(0), c = x.dim(1), h = x.dim(2), wd = x.dim(3), o = w.dim(0), each = w.dim(1),
                kh = w.shape.size() > 2 ? w.dim(2) : 1, kw = w.shape.size() > 2 ? w.dim(3) : 1;
  RefTensor y({b, o, h, wd});
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i < b; ++i)
    for (int64_t oc = 0; oc < o; ++oc)
      for (int64_t r = 0; r < h; ++r)
        for (int64_t q = 0; q < wd; ++q) {
          double sum = bias ? (*bias)[oc] : 0;
          for (int64_t e = 0; e < each; ++e) {
            const int64_t ic = oc / (o / (c / each)) * each + e;
            for (int64_t p = 0; p < kh; ++p)
              for (int64_t s = 0; s < kw; ++s) {
                const int64_t rr = r + p - kh / 2, qq = q + s - kw / 2;
                if (rr < 0 || rr >= h || qq < 0 || qq >= wd) continue;
                sum += w[((oc * each + e) * kh + p) * kw + s] * x[((i * c + ic) * h + rr) * wd + qq];
              }
          }
          y[((i * o + oc) * h + r) * wd + q] = sum;
        }
  return y;
}

/// Interpolation of every plane by taps at u = (i + 0.5) n / m - 0.5.
RefTensor resized(const RefTensor& x, int64_t m, bool cubic) {
  const auto axis = [&](int64_t n) {
    std::vector<std::vector<std::pair<int64_t, double>>> taps;
    for (int64_t i = 0; i < m; ++i) {
      double u = (static_cast<double>(i) + 0.5) * static_cast<double>(n) / static_cast<double>(m) - 0.5;
      std::vector<std::pair<int64_t, double>> row;
      const auto put = [&](int64_t at, double w) {
        row.emplace_back(std::min(std::max<int64_t>(at, 0), n - 1), w);
      };
      if (cubic) {
        const double f = std::floor(u), t = u - f, a = -0.75;
        const auto near = [&](double d) { return (a + 2) * d * d * d - (a + 3) * d * d + 1; };
        const auto far = [&](double d) { return a * d * d * d - 5 * a * d * d + 8 * a * d - 4 * a; };
        const auto at = static_cast<int64_t>(f);
        put(at - 1, far(1 + t)), put(at, near(t)), put(at + 1, near(1 - t)), put(at + 2, far(2 - t));
      } else {
        u = std::max(u, 0.0);
        const auto at = static_cast<int64_t>(u);
        put(at, 1 - (u - static_cast<double>(at))), put(at + 1, u - static_cast<double>(at));
      }
      taps.push_back(row);
    }
    return taps;
  };
  const auto rows = axis(x.dim(2)), columns = axis(x.dim(3));
  RefTensor y({x.dim(0), x.dim(1), m, m});
  const int64_t planes = x.dim(0) * x.dim(1);
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < m; ++j)
        for (const auto& [r, wr] : rows[static_cast<size_t>(i)])
          for (const auto& [q, wq] : columns[static_cast<size_t>(j)])
            y[(p * m + i) * m + j] += wr * wq * x[(p * x.dim(2) + r) * x.dim(3) + q];
  return y;
}

void decouple(const RefTensor& s, const Params& p, const Weights& w, RefTensor& low, RefTensor& high) {
  const int64_t b = s.dim(0), c = s.dim(1), h = s.dim(2), wd = s.dim(3), g = p.integer("gdd_groups"),
                k = p.integer("gdd_kernel"), taps = k * k, all = g * taps;
  low = high = RefTensor(s.shape);
  for (int64_t i = 0; i < b; ++i) {
    std::vector<double> mean(static_cast<size_t>(c)), f(static_cast<size_t>(all)), gated = f;
    for (int64_t e = 0; e < c; ++e)
      for (int64_t j = 0; j < h * wd; ++j)
        mean[static_cast<size_t>(e)] += s[(i * c + e) * h * wd + j] / static_cast<double>(h * wd);
    for (int64_t o = 0; o < all; ++o)
      for (int64_t e = 0; e < c; ++e)
        f[static_cast<size_t>(o)] += w("conv.weight")[o * c + e] * mean[static_cast<size_t>(e)];
    for (int64_t o = 0; o < all; ++o) {
      double gate = 0;
      for (int64_t e = 0; e < all; ++e) gate += w("gate.weight")[o * all + e] * f[static_cast<size_t>(e)];
      gated[static_cast<size_t>(o)] = (f[static_cast<size_t>(o)] * sigmoid(gate) - w("bn.running_mean")[o]) /
                                          std::sqrt(w("bn.running_var")[o] + 1e-5) * w("bn.weight")[o] +
                                      w("bn.bias")[o];
    }
    for (int64_t q = 0; q < g; ++q) {
      double sum = 0, most = -INFINITY;
      for (int64_t t = 0; t < taps; ++t) most = std::max(most, gated[static_cast<size_t>(q * taps + t)]);
      for (int64_t t = 0; t < taps; ++t) {
        double& v = gated[static_cast<size_t>(q * taps + t)];
        v = std::exp(v - most);
        sum += v;
      }
      for (int64_t t = 0; t < taps; ++t) gated[static_cast<size_t>(q * taps + t)] /= sum;
    }
    const auto mirror = [](int64_t v, int64_t n) { return v < 0 ? -v : v >= n ? 2 * (n - 1) - v : v; };
    for (int64_t e = 0; e < c; ++e)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < wd; ++x) {
          double sum = 0;
          for (int64_t t = 0; t < taps; ++t)
            sum += gated[static_cast<size_t>(e / (c / g) * taps + t)] *
                   s[((i * c + e) * h + mirror(y + t / k - k / 2, h)) * wd + mirror(x + t % k - k / 2, wd)];
          const int64_t at = ((i * c + e) * h + y) * wd + x;
          low[at] = sum;
          high[at] = s[at] - sum;
        }
  }
}

RefTensor modulate_high(const RefTensor& high, const RefTensor& x, const Params& p, const Weights& w,
                        RefTensor& h3) {
  const int64_t b = x.dim(0), c = x.dim(1), r = x.dim(2), n = r * r, win = p.integer("window"),
                heads = p.integer("prompt_heads"), d = c / heads;
  const RefTensor h1 = resized(high, r, false);
  h3 = conv(conv(h1, w("dw1x3.weight"), &w("dw1x3.bias")), w("dw3x1.weight"), &w("dw3x1.bias"));
  const RefTensor& phi = w("Phi");
  for (int64_t i = 0; i < h3.numel(); ++i) h3[i] = h1[i] * gelu(h3[i]) * phi[i % phi.numel()];
  const auto matrix = [&](const char* name) {
    RefTensor m = w(std::string(name) + ".weight");
    m.shape = {m.dim(0), m.dim(1)};
    return m;
  };
  const RefTensor q = conv(x, matrix("q"), &w("q.bias")),
                  kv = conv(conv(h3, w("kv_dw.weight"), nullptr), matrix("kv"), &w("kv.bias"));
  RefTensor o(x.shape);
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i < b; ++i)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < n; ++t) {
        std::vector<double> score;
        std::vector<int64_t> place;
        for (int64_t k = 0; k < win * win; ++k) {
          const int64_t u = (t / r / win * win + k / win) * r + t % r / win * win + k % win;
          double sum = 0;
          for (int64_t e = 0; e < d; ++e)
            sum += q[(i * c + h * d + e) * n + t] * kv[(i * 2 * c + h * d + e) * n + u];
          score.push_back(sum / std::sqrt(static_cast<double>(d)));
          place.push_back(u);
        }
        ref::softmax_row(score, std::vector<char>(score.size(), 1));
        for (size_t j = 0; j < score.size(); ++j)
          for (int64_t e = 0; e < d; ++e)
            o[(i * c + h * d + e) * n + t] += score[j] * kv[(i * 2 * c + c + h * d + e) * n + place[j]];
      }
  return conv(o, matrix("out"), &w("out.bias"));
}

/// Full y_l [B, C, R, R].
RefTensor modulate_low(const RefTensor& low, const RefTensor& x, const Params& p, const Weights& w) {
  const int64_t b = x.dim(0), c = x.dim(1), r = x.dim(2), n = r * r, c0 = low.dim(1), bins = r / 2 + 1,
                heads = p.integer("prompt_heads"), d = c / heads, pool = p.integer("lpm_pool"),
                keys = pool * pool;
  const RefTensor l1 = resized(low, r, true);
  std::vector<Complex> turn;
  for (int64_t i = 0; i < r; ++i)
    turn.push_back(std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(r)));
  const auto at = [&](int64_t i) { return turn[static_cast<size_t>(i % r)]; };
  RefTensor u({b, 2 * c0, r, bins}), l3({b, c0, r, r});
#pragma omp parallel for
  for (int64_t plane = 0; plane < b * c0; ++plane) {
    std::vector<Complex> line(static_cast<size_t>(r * bins));
    for (int64_t y = 0; y < r; ++y)
      for (int64_t k = 0; k < bins; ++k)
        for (int64_t j = 0; j < r; ++j)
          line[static_cast<size_t>(y * bins + k)] += l1[(plane * r + y) * r + j] * at(j * k);
    for (int64_t m = 0; m < r; ++m)
      for (int64_t k = 0; k < bins; ++k) {
        Complex sum = 0;
        for (int64_t y = 0; y < r; ++y) sum += line[static_cast<size_t>(y * bins + k)] * at(y * m);
        const int64_t i = plane / c0, e = plane % c0;
        u[((i * 2 * c0 + e) * r + m) * bins + k] = sum.real();
        u[((i * 2 * c0 + c0 + e) * r + m) * bins + k] = sum.imag();
      }
  }
  const RefTensor gate = conv(u, w("gate_conv.weight"), &w("gate_conv.bias"));
  for (int64_t i = 0; i < u.numel(); ++i) u[i] *= gelu(gate[i]);
  const RefTensor& plo = w("Plo");
#pragma omp parallel for
  for (int64_t plane = 0; plane < b * c0; ++plane) {
    const int64_t i = plane / c0, e = plane % c0;
    // Inverse along the rows' index first; then each row as half of a Hermitian line.
    std::vector<Complex> z(static_cast<size_t>(r * bins)), t = z;
    for (int64_t m = 0; m < r; ++m)
      for (int64_t k = 0; k < bins; ++k) {
        const int64_t o = ((e * r + m) * bins + k) * 2;
        z[static_cast<size_t>(m * bins + k)] =
            Complex(u[((i * 2 * c0 + e) * r + m) * bins + k], u[((i * 2 * c0 + c0 + e) * r + m) * bins + k]) *
            Complex(plo[o], plo[o + 1]);
      }
    for (int64_t y = 0; y < r; ++y)
      for (int64_t k = 0; k < bins; ++k)
        for (int64_t m = 0; m < r; ++m)
          t[static_cast<size_t>(y * bins + k)] += z[static_cast<size_t>(m * bins + k)] * std::conj(at(y * m));
    for (int64_t y = 0; y < r; ++y)
      for (int64_t j = 0; j < r; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < bins; ++k)
          sum += (k == 0 || 2 * k == r ? 1 : 2) *
                 (t[static_cast<size_t>(y * bins + k)] * std::conj(at(j * k))).real();
        l3[(plane * r + y) * r + j] = sum / static_cast<double>(n);
      }
  }
  RefTensor cells({b, c0, pool, pool});
  for (int64_t plane = 0; plane < b * c0; ++plane)
    for (int64_t i = 0; i < pool; ++i)
      for (int64_t j = 0; j < pool; ++j) {
        const int64_t y0 = i * r / pool, y1 = ((i + 1) * r + pool - 1) / pool, x0 = j * r / pool,
                      x1 = ((j + 1) * r + pool - 1) / pool;
        double sum = 0;
        for (int64_t y = y0; y < y1; ++y)
          for (int64_t q = x0; q < x1; ++q) sum += l3[(plane * r + y) * r + q];
        cells[(plane * pool + i) * pool + j] = sum / static_cast<double>((y1 - y0) * (x1 - x0));
      }
  const RefTensor q = conv(x, w("q.weight"), nullptr), kv = conv(cells, w("kv.weight"), nullptr);
  RefTensor o(x.shape);
  for (int64_t i = 0; i < b; ++i)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < n; ++t) {
        std::vector<double> score(static_cast<size_t>(keys));
        for (int64_t k = 0; k < keys; ++k) {
          for (int64_t e = 0; e < d; ++e)
            score[static_cast<size_t>(k)] +=
                q[(i * c + h * d + e) * n + t] * kv[(i * 2 * c + h * d + e) * keys + k];
          score[static_cast<size_t>(k)] *= w("temperature")[h];
        }
        ref::softmax_row(score, std::vector<char>(score.size(), 1));
        for (int64_t k = 0; k < keys; ++k)
          for (int64_t e = 0; e < d; ++e)
            o[(i * c + h * d + e) * n + t] +=
                score[static_cast<size_t>(k)] * kv[(i * 2 * c + c + h * d + e) * keys + k];
      }
  return conv(o, w("out.weight"), nullptr);
}

RefTensor joined(const RefTensor& a, const RefTensor& b) {
  RefTensor y({a.dim(0), a.dim(1) + b.dim(1), a.dim(2), a.dim(3)});
  const int64_t na = a.numel() / a.dim(0), nb = b.numel() / b.dim(0);
  for (int64_t i = 0; i < a.dim(0); ++i) {
    std::copy_n(a.data.begin() + i * na, na, y.data.begin() + i * (na + nb));
    std::copy_n(b.data.begin() + i * nb, nb, y.data.begin() + i * (na + nb) + na);
  }
  return y;
}

RefTensor prompt(const RefTensor& low, const RefTensor& high, const RefTensor& x, const Params& p,
                 const Weights& w) {
  RefTensor h3;
  return conv(joined(modulate_high(high, x, p, w.in("hpm."), h3), modulate_low(low, x, p, w.in("lpm."))),
              w("fuse.weight"), &w("fuse.bias"));
}

void add(RefTensor& x, const RefTensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) x[i] += y[i];
}

RefTensor layer_norm(const RefTensor& x, const Weights& w) {
  RefTensor y(x.shape);
  const int64_t c = x.dim(1), n = x.dim(2) * x.dim(3);
  for (int64_t i = 0; i < x.dim(0); ++i)
    for (int64_t t = 0; t < n; ++t) {
      double mean = 0, square = 0;
      for (int64_t e = 0; e < c; ++e) mean += x[(i * c + e) * n + t] / static_cast<double>(c);
      for (int64_t e = 0; e < c; ++e)
        square += std::pow(x[(i * c + e) * n + t] - mean, 2) / static_cast<double>(c);
      for (int64_t e = 0; e < c; ++e)
        y[(i * c + e) * n + t] =
            (x[(i * c + e) * n + t] - mean) / std::sqrt(square + 1e-5) * w("weight")[e] + w("bias")[e];
    }
  return y;
}

RefTensor channel_attention(const RefTensor& x, const Weights& w) {
  const RefTensor qkv = conv(conv(x, w("qkv.weight"), nullptr), w("qkv_dw.weight"), nullptr);
  const int64_t b = x.dim(0), c = x.dim(1), n = x.dim(2) * x.dim(3), heads = w("temperature").dim(0),
                d = c / heads;
  RefTensor o(x.shape);
  const auto row = [&](int64_t i, int64_t part, int64_t e) {
    return &qkv.data[static_cast<size_t>((i * 3 * c + part * c + e) * n)];
  };
  const auto dot = [&](const double* u, const double* v) {
    double sum = 0;
    for (int64_t t = 0; t < n; ++t) sum += u[t] * v[t];
    return sum;
  };
  for (int64_t i = 0; i < b; ++i)
    for (int64_t e = 0; e < c; ++e) {
      const int64_t h = e / d;
      const double* q = row(i, 0, e);
      std::vector<double> score;
      for (int64_t j = 0; j < d; ++j) {
        const double* k = row(i, 1, h * d + j);
        score.push_back(dot(q, k) / std::max(std::sqrt(dot(q, q)), 1e-12) /
                        std::max(std::sqrt(dot(k, k)), 1e-12) * w("temperature")[h]);
      }
      ref::softmax_row(score, std::vector<char>(score.size(), 1));
      for (int64_t j = 0; j < d; ++j)
        for (int64_t t = 0; t < n; ++t)
          o[(i * c + e) * n + t] += score[static_cast<size_t>(j)] * row(i, 2, h * d + j)[t];
    }
  return conv(o, w("out.weight"), nullptr);
}

RefTensor feed_forward(const RefTensor& x, const Weights& w) {
  const RefTensor wide = conv(conv(x, w("in.weight"), nullptr), w("dw.weight"), nullptr);
  const int64_t e = wide.dim(1) / 2, n = x.dim(2) * x.dim(3);
  RefTensor gated({x.dim(0), e, x.dim(2), x.dim(3)});
  for (int64_t i = 0; i < x.dim(0); ++i)
    for (int64_t j = 0; j < e * n; ++j)
      gated[i * e * n + j] = gelu(wide[i * 2 * e * n + j]) * wide[i * 2 * e * n + e * n + j];
  return conv(gated, w("out.weight"), nullptr);
}

/// Without the attention's weights the feed-forward alone. Returns u.
RefTensor block(RefTensor& x, const Weights& w) {
  if (w.maybe("mdta.qkv.weight")) add(x, channel_attention(layer_norm(x, w.in("ln1.")), w.in("mdta.")));
  const RefTensor u = x;
  add(x, feed_forward(layer_norm(x, w.in("ln2.")), w.in("gdfn.")));
  return u;
}

RefTensor unshuffled(const RefTensor& x) {
  RefTensor y({x.dim(0), 4 * x.dim(1), x.dim(2) / 2, x.dim(3) / 2});
  int64_t o = 0;
  for (int64_t i = 0; i < y.dim(0); ++i)
    for (int64_t c = 0; c < y.dim(1); ++c)
      for (int64_t r = 0; r < y.dim(2); ++r)
        for (int64_t q = 0; q < y.dim(3); ++q)
          y[o++] = x[((i * x.dim(1) + c / 4) * x.dim(2) + 2 * r + c / 2 % 2) * x.dim(3) + 2 * q + c % 2];
  return y;
}

RefTensor shuffled(const RefTensor& x) {
  RefTensor y({x.dim(0), x.dim(1) / 4, 2 * x.dim(2), 2 * x.dim(3)});
  int64_t o = 0;
  for (int64_t i = 0; i < y.dim(0); ++i)
    for (int64_t c = 0; c < y.dim(1); ++c)
      for (int64_t r = 0; r < y.dim(2); ++r)
        for (int64_t q = 0; q < y.dim(3); ++q)
          y[o++] = x[((i * x.dim(1) + 4 * c + 2 * (r % 2) + q % 2) * x.dim(2) + r / 2) * x.dim(3) + q / 2];
  return y;
}

RefMap network(const Params& p, const RefTensor& image, const RefMap& weights) {
  const Weights w{weights, ""};
  RefMap out;
  const RefTensor shallow = conv(image, w("patch_embed.proj.weight"), nullptr);
  const auto level = [&](RefTensor& x, const std::string& name) {
    for (int64_t i = 0; weights.contains(name + "." + std::to_string(i) + ".ln2.weight"); ++i)
      block(x, w.in(name + "." + std::to_string(i) + "."));
  };
  RefTensor e1 = shallow, low, high;
  level(e1, "encoder_level1");
  RefTensor e2 = unshuffled(conv(e1, w("down1_2.weight"), nullptr));
  level(e2, "encoder_level2");
  RefTensor x = unshuffled(conv(e2, w("down2_3.weight"), nullptr));
  level(x, "encoder_level3");
  decouple(shallow, p, w.in("gdd."), low, high);
  const auto modulate = [&](const std::string& name) {
    out[name] = prompt(low, high, x, p, w.in(name + "."));
    add(x, out[name]);
  };
  level(x, "decoder_level3");
  modulate("prompt_d3");
  x = conv(joined(shuffled(conv(x, w("up3_2.weight"), nullptr)), e2), w("reduce_chan_level2.weight"),
           nullptr);
  level(x, "decoder_level2");
  modulate("prompt_d2");
  x = joined(shuffled(conv(x, w("up2_1.weight"), nullptr)), e1);
  level(x, "decoder_level1");
  modulate("prompt_d1");
  level(x, "refinement");
  modulate("prompt_r");
  out["out"] = conv(x, w("output.weight"), nullptr);
  add(out["out"], image);
  return out;
}

RefMap fpro_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const std::string scope = p.choice("scope");
  const Weights w{weights, ""};
  RefMap out;
  if (scope == "network") return network(p, inputs.at("x"), weights);
  if (scope == "restoration_block") {
    RefTensor x = inputs.at("x");
    out["u"] = block(x, w);
    out["out"] = x;
    return out;
  }
  RefTensor high;
  decouple(inputs.at("s"), p, w.in("gdd."), out["low"], high);
  if (scope == "gdd") {
    out["high"] = high;
    return out;
  }
  const RefTensor& x = inputs.at("x");
  RefTensor y_h, y_l;
  if (scope != "lpm") out["y_h"] = y_h = modulate_high(high, x, p, w.in("hpm."), out["h3"]);
  if (scope != "hpm") {
    y_l = modulate_low(out["low"], x, p, w.in("lpm."));
    RefTensor one({y_l.dim(0), y_l.dim(1), 1, 1});
    for (int64_t i = 0; i < one.numel(); ++i) one[i] = y_l[i * y_l.dim(2) * y_l.dim(3)];
    out["y_l"] = p.integer("lpm_pool") == 1 ? one : y_l;
  }
  if (scope == "prompt_block") out["out"] = conv(joined(y_h, y_l), w("fuse.weight"), &w("fuse.bias"));
  return out;
}
ATTNBENCH_REFERENCE(fpro, fpro_reference);

}  // namespace
}  // namespace attnbench
