// FICGen, straight from the card: complex spectra in full, every softmax and mask written out, in double.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Complex = std::complex<double>;
using Spectrum = std::vector<Complex>;

double gelu(double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); }
double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
size_t at(int64_t i) { return static_cast<size_t>(i); }

struct Weights {
  const RefMap& all;
  const RefTensor& operator()(const std::string& name) const { return all.at(name); }
  /// Rows by `<name>.weight` as [out, in], with `<name>.bias` if there is one.
  RefTensor linear(const std::string& name, const RefTensor& x) const {
    RefTensor w = all.at(name + ".weight");
    w.shape = {w.dim(0), w.numel() / w.dim(0)};
    RefTensor rows = x;
    const int64_t in = x.shape.back();
    rows.shape = {x.numel() / in, in};
    const auto bias = all.find(name + ".bias");
    RefTensor y = ref::linear(rows, w, bias == all.end() ? nullptr : &bias->second);
    std::vector<int64_t> shape = x.shape;
    shape.back() = w.dim(0);
    y.shape = shape;
    return y;
  }
};

RefTensor layer_norm(const RefTensor& x, double eps, const RefTensor* gain, const RefTensor* offset) {
  RefTensor y(x.shape);
  const int64_t c = x.shape.back();
  for (int64_t r = 0; r < x.numel() / c; ++r) {
    double mean = 0, square = 0;
    for (int64_t e = 0; e < c; ++e) mean += x[r * c + e] / static_cast<double>(c);
    for (int64_t e = 0; e < c; ++e) square += std::pow(x[r * c + e] - mean, 2) / static_cast<double>(c);
    for (int64_t e = 0; e < c; ++e)
      y[r * c + e] = (x[r * c + e] - mean) / std::sqrt(square + eps) * (gain ? (*gain)[e] : 1) +
                     (offset ? (*offset)[e] : 0);
  }
  return y;
}

/// Softmax attention of rows q [n, C] over k, v [m, C]; blocked(i, j) logits are the lowest float.
template <class Blocked>
RefTensor attend(const RefTensor& q, const RefTensor& k, const RefTensor& v, int64_t heads,
                 const Blocked& blocked) {
  const int64_t n = q.dim(0), m = k.dim(0), c = q.dim(1), d = c / heads;
  RefTensor o({n, c});
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i)
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> score(at(m));
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t e = 0; e < d; ++e) score[at(j)] += q[i * c + h * d + e] * k[j * c + h * d + e];
        score[at(j)] =
            blocked(i, j) ? -3.4028234663852886e38 : score[at(j)] / std::sqrt(static_cast<double>(d));
      }
      ref::softmax_row(score, std::vector<char>(at(m), 1));
      for (int64_t j = 0; j < m; ++j)
        for (int64_t e = 0; e < d; ++e) o[i * c + h * d + e] += score[at(j)] * v[j * c + h * d + e];
    }
  return o;
}
bool open(int64_t, int64_t) { return false; }

/// Transform of an h x w array, sign -1 forward, +1 inverse (divided by h w).
Spectrum transform(const Spectrum& x, int64_t h, int64_t w, int sign) {
  const auto axis = [&](const Spectrum& in, int64_t lines, int64_t n, int64_t line_step, int64_t step) {
    Spectrum turn, out(in.size());
    for (int64_t i = 0; i < n; ++i)
      turn.push_back(
          std::polar(1.0, sign * 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n)));
    for (int64_t l = 0; l < lines; ++l)
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < n; ++i)
          out[at(l * line_step + k * step)] += in[at(l * line_step + i * step)] * turn[at(i * k % n)];
    return out;
  };
  Spectrum y = axis(axis(x, h, w, w, 1), w, h, 1, w);
  if (sign > 0)
    for (Complex& v : y) v /= static_cast<double>(h * w);
  return y;
}

/// Element b of a batch, when there is an axis of it.
RefTensor of(const RefTensor& t, int64_t batch, int64_t b) {
  if (batch == 1) return t;
  RefTensor y(std::vector<int64_t>(t.shape.begin() + 1, t.shape.end()));
  std::copy_n(t.data.begin() + b * y.numel(), y.numel(), y.data.begin());
  return y;
}
RefTensor row(const RefTensor& t, int64_t i) { return of(t, 2, i); }

struct Sizes {
  int64_t h, w, c, x, heads, instances;
};

RefTensor bilinear(const RefTensor& x, int64_t h, int64_t w) {  // [h0, w0]
  RefTensor y({h, w});
  const auto place = [](int64_t i, int64_t n, int64_t m, int64_t& a, int64_t& b) {
    const double u =
        std::max((static_cast<double>(i) + 0.5) * static_cast<double>(n) / static_cast<double>(m) - 0.5, 0.0);
    a = std::min(static_cast<int64_t>(u), n - 1), b = std::min(a + 1, n - 1);
    return u - std::floor(u);
  };
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j = 0; j < w; ++j) {
      int64_t a, b, l, r;
      const double t = place(i, x.dim(0), h, a, b), s = place(j, x.dim(1), w, l, r);
      const auto v = [&](int64_t p, int64_t q) { return x[p * x.dim(1) + q]; };
      y[i * w + j] = (1 - t) * ((1 - s) * v(a, l) + s * v(a, r)) + t * ((1 - s) * v(b, l) + s * v(b, r));
    }
  return y;
}

void branches(const Sizes& s, const Params& p, const RefMap& in, const Weights& w, RefMap& out) {
  const int64_t n = s.h * s.w, c = s.c, x = s.x, count = s.instances, f = p.integer("fourier_freqs"),
                ih = p.integer("image_h"), iw = p.integer("image_w");
  const RefTensor &z = in.at("z"), &base = in.at("base"), &e = in.at("e");
  RefTensor G({1 + count, s.h, s.w}), phases({count + 2, n, c}), tokens({count, 1, x});
  std::vector<std::vector<double>> coherence;
  RefTensor rest({ih, iw});
  std::fill(rest.data.begin(), rest.data.end(), 1.0);
  for (int64_t i = 0; i < count; ++i) {
    const RefTensor mask = row(in.at("instance_masks"), i);
    const RefTensor small = bilinear(bilinear(mask, ih / 8, iw / 8), s.h, s.w);
    std::copy(small.data.begin(), small.data.end(), G.data.begin() + (1 + i) * n);
    std::vector<double> m(at(n));
    for (int64_t k = 0; k < ih * iw; ++k) {
      rest[k] = std::min(rest[k], 1 - mask[k]);
      m[at(k / iw / (ih / s.h) * s.w + k % iw / (iw / s.w))] +=
          mask[k] * static_cast<double>(n) / static_cast<double>(ih * iw);
    }
    coherence.push_back(m);
  }
  const RefTensor outside =
      count > 0 ? bilinear(bilinear(rest, ih / 8, iw / 8), s.h, s.w) : RefTensor({s.h, s.w});
  for (int64_t k = 0; k < n; ++k) G[k] = count > 0 ? outside[k] : 1.0;
  const auto branch = [&](const std::string& name, int64_t phrase, const RefTensor& context,
                          const double* mask) {
    const RefTensor q =
        w.linear(name + ".q", layer_norm(z, 1e-5, &w(name + ".ln.weight"), &w(name + ".ln.bias")));
    const RefTensor o = w.linear(name + ".out", attend(q, w.linear(name + ".k", context),
                                                       w.linear(name + ".v", context), s.heads, open));
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < c; ++j)
        phases[(phrase * n + k) * c + j] = (base[(phrase * n + k) * c + j] + o[k * c + j]) * mask[k];
  };
  for (int64_t i = 0; i < count; ++i) {
    RefTensor features({1, 16 * f});
    for (int64_t k = 0; k < f; ++k)
      for (int64_t j = 0; j < 8; ++j) {
        const double angle =
            std::pow(100.0, static_cast<double>(k) / static_cast<double>(f)) * in.at("box")[i * 8 + j];
        features[k * 16 + j] = std::sin(angle);
        features[k * 16 + 8 + j] = std::cos(angle);
      }
    RefTensor hidden = features;
    for (const char* layer : {"box.fc1", "box.fc2"}) {
      hidden = w.linear(layer, hidden);
      for (double& v : hidden.data) v *= sigmoid(v);
    }
    const RefTensor token = w.linear("box.fc3", hidden);
    std::copy(token.data.begin(), token.data.end(), tokens.data.begin() + i * x);
    const RefTensor hf = row(in.at("qhi"), i);
    RefTensor context({hf.dim(0) + 2, x});
    std::copy_n(e.data.begin() + (1 + i) * x, x, context.data.begin());
    std::copy(hf.data.begin(), hf.data.end(), context.data.begin() + x);
    std::copy(token.data.begin(), token.data.end(), context.data.end() - x);
    branch("vfe.fg", 1 + i, context, coherence[at(i)].data());
  }
  const int64_t ql = p.integer("lf_queries");
  RefTensor context({ql + 1, x});
  std::copy_n(e.data.begin(), x, context.data.begin());
  if (ql > 0) std::copy_n(in.at("qlo").data.begin(), ql * x, context.data.begin() + x);
  branch("vfe.bg", 0, context, G.data.data());
  const RefTensor o =
      w.linear("vfe.layout.out", attend(w.linear("vfe.layout.q", z), w.linear("vfe.layout.k", z),
                                        w.linear("vfe.layout.v", z), s.heads, [&](int64_t i, int64_t j) {
                                          double shared = 0;
                                          for (int64_t q = 0; q <= count; ++q)
                                            shared += G[q * n + i] * G[q * n + j];
                                          return !(shared > 0);
                                        }));
  std::copy(o.data.begin(), o.data.end(), phases.data.begin() + (count + 1) * n * c);
  if (count > 0) out["box_token"] = tokens;
  out["G"] = G;
  out["phases"] = phases;
}

/// FAM of one phase n [HW, C].
RefTensor spectral_attention(const Sizes& s, const Params& p, const RefTensor& x, const Weights& w) {
  const int64_t n = s.h * s.w, c = s.c, heads = s.heads, d = c / heads;
  std::vector<Spectrum> f(at(c)), first(at(c)), second(at(c));
  for (int64_t e = 0; e < c; ++e) {
    Spectrum line(at(n));
    for (int64_t k = 0; k < n; ++k) line[at(k)] = x[k * c + e];
    f[at(e)] = transform(line, s.h, s.w, -1);
  }
  const auto length = [&](int64_t e) {
    double sum = 0;
    for (const Complex& v : f[at(e)]) sum += std::norm(v);
    return std::max(std::sqrt(sum), 1e-12);
  };
  for (int64_t h = 0; h < heads; ++h) {
    Spectrum stacked(at(d * n));
    for (int64_t i = 0; i < d; ++i) {
      std::vector<double> re, im;
      for (int64_t j = 0; j < d; ++j) {
        Complex sum = 0;
        for (int64_t k = 0; k < n; ++k) sum += f[at(h * d + i)][at(k)] * f[at(h * d + j)][at(k)];
        sum *= w("asfa.fam.temperature")[h] / length(h * d + i) / length(h * d + j);
        re.push_back(sum.real()), im.push_back(sum.imag());
      }
      ref::softmax_row(re, std::vector<char>(at(d), 1));
      ref::softmax_row(im, std::vector<char>(at(d), 1));
      for (int64_t j = 0; j < d; ++j)
        for (int64_t k = 0; k < n; ++k)
          stacked[at(i * n + k)] += Complex(re[at(j)], im[at(j)]) * f[at(h * d + j)][at(k)];
    }
    if (p.choice("fam_ifft") == "reference") stacked = transform(stacked, d, n, 1);
    for (int64_t i = 0; i < d; ++i) {
      Spectrum line(stacked.begin() + i * n, stacked.begin() + (i + 1) * n);
      first[at(h * d + i)] = p.choice("fam_ifft") == "reference" ? line : transform(line, s.h, s.w, 1);
    }
  }
  RefTensor re({n, c});
  for (int64_t k = 0; k < n; ++k)
    for (int64_t e = 0; e < c; ++e) re[k * c + e] = f[at(e)][at(k)].real();
  RefTensor squeezed = w.linear("asfa.fam.gate1", re);
  for (int64_t i = 0; i < squeezed.numel(); ++i) {
    const int64_t e = i % squeezed.dim(1);
    squeezed[i] =
        std::max(0.0, (squeezed[i] - w("asfa.fam.bn.running_mean")[e]) /
                              std::sqrt(w("asfa.fam.bn.running_var")[e] + 1e-5) * w("asfa.fam.bn.weight")[e] +
                          w("asfa.fam.bn.bias")[e]);
  }
  const RefTensor gate = w.linear("asfa.fam.gate2", squeezed);
  RefTensor both({n, 2 * c});
  for (int64_t e = 0; e < c; ++e) {
    Spectrum line = f[at(e)];
    for (int64_t k = 0; k < n; ++k) line[at(k)] *= sigmoid(gate[k * c + e]);
    second[at(e)] = transform(line, s.h, s.w, 1);
    for (int64_t k = 0; k < n; ++k) {
      both[k * 2 * c + e] = std::abs(first[at(e)][at(k)]);
      both[k * 2 * c + c + e] = std::abs(second[at(e)][at(k)]);
    }
  }
  return w.linear("asfa.fam.out", both);
}

/// The weight logits of one phase, before the softmax over phases.
RefTensor weigh(const Sizes& s, const Params& p, const RefTensor& phase, const double* mask,
                const Weights& w) {
  const int64_t n = s.h * s.w, c = s.c;
  RefTensor with({n, c + 1});
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t e = 0; e < c; ++e) with[k * (c + 1) + e] = phase[k * c + e];
    with[k * (c + 1) + c] = mask[k];
  }
  const RefTensor u = w.linear("asfa.conv1", with);
  // CBAM
  RefTensor mean({1, c}), most({1, c}), y = u;
  for (int64_t e = 0; e < c; ++e) {
    most[e] = -INFINITY;
    for (int64_t k = 0; k < n; ++k) {
      mean[e] += u[k * c + e] / static_cast<double>(n);
      most[e] = std::max(most[e], u[k * c + e]);
    }
  }
  const auto mlp = [&](const RefTensor& v) {
    RefTensor hidden = w.linear("asfa.cbam.fc1", v);
    for (double& q : hidden.data) q = std::max(q, 0.0);
    return w.linear("asfa.cbam.fc2", hidden);
  };
  const RefTensor of_mean = mlp(mean), of_most = mlp(most);
  for (int64_t i = 0; i < y.numel(); ++i) y[i] *= sigmoid(of_mean[i % c] + of_most[i % c]);
  RefTensor planes({2, n});
  for (int64_t k = 0; k < n; ++k) {
    planes[k] = *std::max_element(y.data.begin() + k * c, y.data.begin() + (k + 1) * c);
    for (int64_t e = 0; e < c; ++e) planes[n + k] += y[k * c + e] / static_cast<double>(c);
  }
  const auto inside = [&](int64_t r, int64_t q) { return r >= 0 && r < s.h && q >= 0 && q < s.w; };
  for (int64_t k = 0; k < n; ++k) {
    double sum = 0;
    for (int64_t plane = 0; plane < 2; ++plane)
      for (int64_t t = 0; t < 49; ++t) {
        const int64_t r = k / s.w + t / 7 - 3, q = k % s.w + t % 7 - 3;
        if (inside(r, q))
          sum += w("asfa.cbam.conv7.weight")[plane * 49 + t] * planes[plane * n + r * s.w + q];
      }
    for (int64_t e = 0; e < c; ++e) y[k * c + e] *= sigmoid(sum);
  }
  // SAM and FAM
  const RefTensor normed = layer_norm(u, 1e-6, nullptr, nullptr), qkv = w.linear("asfa.sam.qkv", normed);
  RefTensor part[3];
  for (int64_t i = 0; i < 3; ++i) {
    part[i] = RefTensor({n, c});
    for (int64_t k = 0; k < n; ++k)
      for (int64_t e = 0; e < c; ++e) part[i][k * c + e] = qkv[k * 3 * c + i * c + e];
  }
  const RefTensor sam = w.linear("asfa.sam.out", attend(part[0], part[1], part[2], s.heads, open)),
                  fam = spectral_attention(s, p, normed, w);
  RefTensor mixed({n, 2 * c});
  const RefTensor &dw = w("asfa.gate_dw.weight"), &offset = w("asfa.gate_dw.bias");
  for (int64_t k = 0; k < n; ++k)
    for (int64_t e = 0; e < 2 * c; ++e) {
      double sum = offset[e];
      for (int64_t t = 0; t < 9; ++t) {
        const int64_t r = k / s.w + t / 3 - 1, q = k % s.w + t % 3 - 1;
        if (!inside(r, q)) continue;
        const int64_t from = r * s.w + q;
        sum += dw[e * 9 + t] * (e < c ? sam[from * c + e] : fam[from * c + e - c]);
      }
      mixed[k * 2 * c + e] = sum;
    }
  const RefTensor gate = w.linear("asfa.gate_pw", mixed);
  for (int64_t i = 0; i < y.numel(); ++i) y[i] += gate[i];
  return y;
}

void aggregate(const Sizes& s, const Params& p, const RefTensor& phases, const RefTensor& G, const Weights& w,
               RefMap& out) {
  const int64_t n = s.h * s.w, c = s.c, count = s.instances + 2;
  RefTensor scale({count, n, c}), sum({n, c});
  const std::vector<double> ones(at(n), 1.0);
  for (int64_t i = 0; i < count; ++i) {
    const RefTensor logits = weigh(s, p, row(phases, i), i + 1 < count ? &G.data[at(i * n)] : ones.data(), w);
    std::copy(logits.data.begin(), logits.data.end(), scale.data.begin() + i * n * c);
  }
  for (int64_t k = 0; k < n * c; ++k) {
    std::vector<double> line;
    for (int64_t i = 0; i < count; ++i) line.push_back(scale[i * n * c + k]);
    ref::softmax_row(line, std::vector<char>(at(count), 1));
    for (int64_t i = 0; i < count; ++i) {
      scale[i * n * c + k] = line[at(i)];
      sum[k] += line[at(i)] * phases[i * n * c + k];
    }
  }
  out["scale"] = scale;
  out["out"] = sum;
}

RefMap proto(const Params& p, const RefTensor& f, const Weights& w) {
  const int64_t batch = f.dim(0), c = f.dim(1), h = f.dim(2), wd = f.dim(3), n = h * wd, r = c / 16;
  const double share = p.number("freq_threshold");
  const auto in_box = [&](int64_t i, int64_t size) {
    const double v = static_cast<double>(size);
    return static_cast<double>(i) >= std::nearbyint(v / 2 - share * v) &&
           static_cast<double>(i) < std::nearbyint(v / 2 + share * v);
  };
  RefTensor g(f.shape), a({batch, c}), out(f.shape), means({2, batch, c});
  for (int64_t line = 0; line < batch * c; ++line) {
    Spectrum z(f.data.begin() + line * n, f.data.begin() + (line + 1) * n);
    z = transform(z, h, wd, -1);
    for (int64_t k = 0; k < n; ++k) {
      // Frequency k / wd stands at (k / wd + h / 2) mod h of the centred order.
      const bool box = in_box((k / wd + h / 2) % h, h) && in_box((k % wd + wd / 2) % wd, wd);
      if (box == p.boolean("high_pass")) z[at(k)] = 0;
      means[line] += z[at(k)].real() / static_cast<double>(n);
      means[batch * c + line] += z[at(k)].imag() / static_cast<double>(n);
    }
    z = transform(z, h, wd, 1);
    for (int64_t k = 0; k < n; ++k) g[line * n + k] = z[at(k)].real();
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int part = 0; part < 2; ++part) {
      std::vector<double> v(at(c)), hidden(at(r));
      for (int64_t k = 0; k < c; ++k) {
        int64_t from = b, channel = k;
        if (p.boolean("roll_all_axes"))
          from = ((b - batch / 2) % batch + batch) % batch, channel = ((k - c / 2) % c + c) % c;
        v[at(k)] = means[(part * batch + from) * c + channel];
      }
      for (int64_t i = 0; i < r; ++i) {
        hidden[at(i)] = w("b1")[i];
        for (int64_t k = 0; k < c; ++k) hidden[at(i)] += w("W1")[i * c + k] * v[at(k)];
        hidden[at(i)] = std::max(hidden[at(i)], 0.0);
      }
      for (int64_t k = 0; k < c; ++k) {
        double sum = w("b2")[k];
        for (int64_t i = 0; i < r; ++i) sum += w("W2")[k * r + i] * hidden[at(i)];
        a[b * c + k] += std::pow(sigmoid(sum), 2);
      }
    }
    for (int64_t k = 0; k < c; ++k) a[b * c + k] = std::sqrt(a[b * c + k] + 1e-8);
    for (int64_t i = 0; i < n; ++i) {
      double sum = w("w_s.bias")[0];
      for (int64_t k = 0; k < c; ++k)
        for (int64_t t = 0; t < 9; ++t) {
          const int64_t y = i / wd + t / 3 - 1, x = i % wd + t % 3 - 1;
          if (y < 0 || y >= h || x < 0 || x >= wd) continue;
          sum += w("w_s.weight")[k * 9 + t] * f[((b * c + k) * h + y) * wd + x];
        }
      for (int64_t k = 0; k < c; ++k)
        out[(b * c + k) * n + i] = g[(b * c + k) * n + i] * sigmoid(sum) * a[b * c + k];
    }
  }
  return {{"g", g}, {"a", a}, {"out", out}};
}

RefMap resampler(const Params& p, const RefTensor& features, const Weights& w) {
  const int64_t batch = features.dim(0), q = p.integer("hf_queries"), r = p.integer("resampler_dim"),
                x = p.integer("context_dim"), t = features.dim(1), heads = r / p.integer("dim_head");
  RefTensor out({batch, q, x});
  for (int64_t b = 0; b < batch; ++b) {
    RefTensor one({t, features.dim(2)});
    std::copy_n(features.data.begin() + b * one.numel(), one.numel(), one.data.begin());
    const RefTensor from = w.linear("proj_in", one);
    RefTensor latents = w("queries");
    latents.shape = {q, r};
    const auto add = [&](const RefTensor& y) {
      for (int64_t i = 0; i < y.numel(); ++i) latents[i] += y[i];
    };
    for (int64_t l = 0; l < p.integer("depth"); ++l) {
      const std::string name = "layers." + std::to_string(l) + ".";
      const auto norm = [&](const std::string& which, const RefTensor& v) {
        return layer_norm(v, 1e-5, &w(name + which + ".weight"), &w(name + which + ".bias"));
      };
      const RefTensor a = norm("attn.ln_features", from), c = norm("attn.ln_latents", latents);
      RefTensor all({t + q, r});
      std::copy(a.data.begin(), a.data.end(), all.data.begin());
      std::copy(c.data.begin(), c.data.end(), all.data.begin() + t * r);
      const RefTensor kv = w.linear(name + "attn.kv", all);
      RefTensor k({t + q, r}), v({t + q, r});
      for (int64_t i = 0; i < t + q; ++i)
        for (int64_t e = 0; e < r; ++e)
          k[i * r + e] = kv[i * 2 * r + e], v[i * r + e] = kv[i * 2 * r + r + e];
      add(w.linear(name + "attn.out", attend(w.linear(name + "attn.q", c), k, v, heads, open)));
      RefTensor hidden = w.linear(name + "mlp.fc1", norm("mlp.ln", latents));
      for (double& h : hidden.data) h = gelu(h);
      add(w.linear(name + "mlp.fc2", hidden));
    }
    const RefTensor y =
        layer_norm(w.linear("proj_out", latents), 1e-5, &w("norm_out.weight"), &w("norm_out.bias"));
    std::copy(y.data.begin(), y.data.end(), out.data.begin() + b * q * x);
  }
  return {{"out", out}};
}

RefMap ficgen_reference(const Problem& problem, const Params& p, const RefMap& inputs,
                        const RefMap& weights) {
  const std::string component = p.choice("component");
  const Weights w{weights};
  if (component == "proto") return proto(p, inputs.at("f"), w);
  if (component == "resampler") return resampler(p, inputs.at("features"), w);
  const auto pick = [&](const char* name, int64_t own, int64_t standard) {
    return !p.is_null(name) ? p.integer(name) : own > 0 ? own : standard;
  };
  const bool grid = !problem.grid.empty();
  const Sizes s{pick("grid_h", grid ? problem.grid[0] : 0, 16),
                pick("grid_w", grid ? problem.grid[1] : 0, 16),
                pick("dim", problem.channels, 1280),
                p.integer("context_dim"),
                pick("heads", problem.heads, 8),
                p.integer("num_instances")};
  RefMap out;
  for (int64_t b = 0; b < problem.batch; ++b) {
    RefMap in, one;
    for (const auto& [name, t] : inputs) in[name] = of(t, problem.batch, b);
    if (component != "asfa") branches(s, p, in, w, one);
    if (component != "vfe")
      aggregate(s, p, component == "asfa" ? in.at("phases") : one.at("phases"),
                component == "asfa" ? in.at("G") : one.at("G"), w, one);
    for (const auto& [name, t] : one) {
      RefTensor& all = out[name];
      if (b == 0 && problem.batch > 1)
        all.shape = t.shape, all.shape.insert(all.shape.begin(), problem.batch);
      if (problem.batch == 1) all.shape = t.shape;
      all.data.insert(all.data.end(), t.data.begin(), t.data.end());
    }
  }
  return out;
}
ATTNBENCH_REFERENCE(ficgen, ficgen_reference);

}  // namespace
}  // namespace attnbench
