// Reference of `tiger`: maps entry by entry, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;
constexpr double kPi = std::numbers::pi;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// A sequence of channels, [channel][place].
struct Sequence {
  int64_t c = 0, n = 0;
  Row data;
  Sequence() = default;
  Sequence(int64_t channels, int64_t length)
      : c(channels), n(length), data(static_cast<size_t>(channels * length)) {}
  double& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * n + j)]; }
  double at(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * n + j)]; }
};

/// A map, [band][frame][channel].
struct Map {
  int64_t k = 0, t = 0, c = 0;
  Row data;
  Map(int64_t bands, int64_t frames, int64_t channels)
      : k(bands), t(frames), c(channels), data(static_cast<size_t>(bands * frames * channels)) {}
  double* at(int64_t band, int64_t frame) { return &data[static_cast<size_t>((band * t + frame) * c)]; }
  const double* at(int64_t band, int64_t frame) const {
    return &data[static_cast<size_t>((band * t + frame) * c)];
  }
};

struct Net {
  const RefMap& w;
  const Params& p;
  int64_t heads;

  const RefTensor& at(const std::string& name) const { return w.at(name); }

  Sequence pointwise(const Sequence& x, const std::string& weight, const std::string& bias) const {
    const RefTensor& m = at(weight);
    Sequence y(m.dim(0), x.n);
    for (int64_t o = 0; o < y.c; ++o)
      for (int64_t j = 0; j < x.n; ++j) {
        double sum = bias.empty() ? 0 : at(bias)[o];
        for (int64_t i = 0; i < x.c; ++i) sum += m[o * x.c + i] * x.at(i, j);
        y.at(o, j) = sum;
      }
    return y;
  }
  /// Depthwise, zeros outside.
  Sequence depthwise(const Sequence& x, const std::string& weight, const std::string& bias,
                     int64_t stride) const {
    const RefTensor& m = at(weight);
    const int64_t taps = m.dim(1);
    Sequence y(x.c, (x.n - 1) / stride + 1);
    for (int64_t i = 0; i < x.c; ++i)
      for (int64_t j = 0; j < y.n; ++j) {
        double sum = bias.empty() ? 0 : at(bias)[i];
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t from = j * stride + k - taps / 2;
          if (from >= 0 && from < x.n) sum += m[i * taps + k] * x.at(i, from);
        }
        y.at(i, j) = sum;
      }
    return y;
  }
  Sequence group_norm(Sequence x, const std::string& name, double eps) const {
    double mean = 0, square = 0;
    const auto count = static_cast<double>(x.data.size());
    for (double v : x.data) mean += v / count;
    for (double v : x.data) square += (v - mean) * (v - mean) / count;
    for (int64_t i = 0; i < x.c; ++i)
      for (int64_t j = 0; j < x.n; ++j)
        x.at(i, j) =
            (x.at(i, j) - mean) / std::sqrt(square + eps) * at(name + ".weight")[i] + at(name + ".bias")[i];
    return x;
  }
  void prelu(Row& x, const std::string& name) const {
    for (double& v : x)
      if (v < 0) v *= at(name)[0];
  }
  Row channel_norm(const Row& x, const std::string& name) const {
    double mean = 0, square = 0;
    const auto count = static_cast<double>(x.size());
    for (double v : x) mean += v / count;
    for (double v : x) square += (v - mean) * (v - mean) / count;
    Row y;
    for (size_t i = 0; i < x.size(); ++i)
      y.push_back((x[i] - mean) / std::sqrt(square + 1e-5) * at(name + ".weight").data[i] +
                  at(name + ".bias").data[i]);
    return y;
  }

  Sequence gated(const Sequence& local, const Sequence& global, const std::string& name) const {
    const auto part = [&](const Sequence& x, const char* which) {
      return group_norm(depthwise(x, name + "." + which + ".conv.weight", "", 1),
                        name + "." + which + ".norm", 1e-8);
    };
    Sequence y = part(local, "local");
    const Sequence gate = part(global, "gate"), added = part(global, "global");
    for (int64_t i = 0; i < y.c; ++i)
      for (int64_t j = 0; j < y.n; ++j) {
        const int64_t from = j * global.n / y.n;
        y.at(i, j) = y.at(i, j) * sigmoid(gate.at(i, from)) + added.at(i, from);
      }
    return y;
  }

  Sequence msa(const Sequence& z, const std::string& name) const {
    const int64_t depth = p.integer("msa_depth");
    Sequence x =
        group_norm(pointwise(z, name + ".in.conv.weight", name + ".in.conv.bias"), name + ".in.norm", 1e-8);
    prelu(x.data, name + ".in.prelu");
    std::vector<Sequence> e;
    for (int64_t i = 0; i < depth; ++i) {
      const std::string at_scale = name + ".down." + std::to_string(i);
      e.push_back(group_norm(depthwise(i == 0 ? x : e.back(), at_scale + ".conv.weight",
                                       at_scale + ".conv.bias", i == 0 ? 1 : 2),
                             at_scale + ".norm", 1e-8));
    }
    Sequence g(x.c, e.back().n);
    for (const Sequence& s : e)
      for (int64_t i = 0; i < s.c; ++i)
        for (int64_t j = 0; j < g.n; ++j) {
          const int64_t first = j * s.n / g.n, last = ((j + 1) * s.n + g.n - 1) / g.n;
          for (int64_t k = first; k < last; ++k) g.at(i, j) += s.at(i, k) / static_cast<double>(last - first);
        }
    g = group_norm(pointwise(g, name + ".global.fc1.conv.weight", ""), name + ".global.fc1.norm", 1e-8);
    g = depthwise(g, name + ".global.dw.weight", name + ".global.dw.bias", 1);
    for (double& v : g.data) v = std::max(v, 0.0);
    g = group_norm(pointwise(g, name + ".global.fc2.conv.weight", ""), name + ".global.fc2.norm", 1e-8);
    std::vector<Sequence> f;
    for (int64_t i = 0; i < depth; ++i)
      f.push_back(gated(e[static_cast<size_t>(i)], g, name + ".fuse." + std::to_string(i)));
    Sequence r = p.choice("decoder_seed") == "coarsest" ? f.back()
                                                        : f[static_cast<size_t>(depth == 2 ? 1 : depth - 3)];
    for (int64_t i = depth - 2; i >= 0; --i)
      r = gated(f[static_cast<size_t>(i)], r, name + ".decode." + std::to_string(i));
    Sequence y = pointwise(r, name + ".out.weight", name + ".out.bias");
    for (size_t i = 0; i < y.data.size(); ++i) y.data[i] += z.data[i];
    return y;
  }

  Row branch(const double* x, int64_t n, const std::string& name) const {
    const RefTensor& m = at(name + ".conv.weight");
    Row y;
    for (int64_t o = 0; o < m.dim(0); ++o) {
      double sum = at(name + ".conv.bias")[o];
      for (int64_t i = 0; i < n; ++i) sum += m[o * n + i] * x[i];
      y.push_back(sum);
    }
    prelu(y, name + ".prelu");
    return channel_norm(y, name + ".norm");
  }

  /// Attention over bands (all frames as features) or over frames.
  void attend(Map& u, const std::string& name, bool bands) const {
    const int64_t m = bands ? u.k : u.t, r = bands ? u.t : u.k;
    const auto place = [&](int64_t i, int64_t j) { return bands ? u.at(i, j) : u.at(j, i); };
    Map joined(u.k, u.t, u.c);
    for (int64_t h = 0; h < heads; ++h) {
      const std::string head = name + "." + std::to_string(h) + ".";
      std::vector<std::vector<Row>> q(static_cast<size_t>(m)), k = q, v = q;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < r; ++j) {
          q[static_cast<size_t>(i)].push_back(branch(place(i, j), u.c, head + "Q"));
          k[static_cast<size_t>(i)].push_back(branch(place(i, j), u.c, head + "K"));
          v[static_cast<size_t>(i)].push_back(branch(place(i, j), u.c, head + "V"));
        }
      const auto e = static_cast<int64_t>(q[0][0].size()), width = static_cast<int64_t>(v[0][0].size());
      for (int64_t i = 0; i < m; ++i) {
        Row score(static_cast<size_t>(m));
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < m; ++j) {
          double dot = 0;
          for (size_t a = 0; a < static_cast<size_t>(r); ++a)
            for (size_t c = 0; c < static_cast<size_t>(e); ++c)
              dot += q[static_cast<size_t>(i)][a][c] * k[static_cast<size_t>(j)][a][c];
          score[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(e * r));
          most = std::max(most, score[static_cast<size_t>(j)]);
        }
        for (double& s : score) sum += s = std::exp(s - most);
        for (int64_t a = 0; a < r; ++a) {
          double* to = (bands ? joined.at(i, a) : joined.at(a, i)) + h * width;
          for (int64_t j = 0; j < m; ++j)
            for (int64_t c = 0; c < width; ++c)
              to[c] += score[static_cast<size_t>(j)] / sum *
                       v[static_cast<size_t>(j)][static_cast<size_t>(a)][static_cast<size_t>(c)];
        }
      }
    }
    for (int64_t i = 0; i < u.k; ++i)
      for (int64_t j = 0; j < u.t; ++j) {
        const Row y = branch(joined.at(i, j), u.c, name + ".out");
        for (int64_t c = 0; c < u.c; ++c) u.at(i, j)[c] += y[static_cast<size_t>(c)];
      }
  }

  void path(Map& z, const std::string& name, bool bands) const {
    Map u = z;
    const int64_t lines = bands ? z.t : z.k, length = bands ? z.k : z.t;
#pragma omp parallel for
    for (int64_t l = 0; l < lines; ++l) {
      Sequence s(z.c, length);
      for (int64_t i = 0; i < length; ++i)
        for (int64_t c = 0; c < z.c; ++c) s.at(c, i) = (bands ? z.at(i, l) : z.at(l, i))[c];
      s = msa(s, name + ".msa");
      for (int64_t i = 0; i < length; ++i)
        for (int64_t c = 0; c < z.c; ++c) (bands ? u.at(i, l) : u.at(l, i))[c] = s.at(c, i);
    }
    attend(u, name + ".f3a", bands);
    for (int64_t i = 0; i < z.k; ++i)
      for (int64_t j = 0; j < z.t; ++j) {
        const Row y = channel_norm(Row(u.at(i, j), u.at(i, j) + z.c), name + ".norm");
        for (int64_t c = 0; c < z.c; ++c) z.at(i, j)[c] += y[static_cast<size_t>(c)];
      }
  }
};

RefMap tiger_reference(const Problem& problem, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const bool full = p.choice("scope") == "full";
  const int64_t heads = !p.is_null("att_heads") ? p.integer("att_heads")
                        : problem.heads > 0     ? problem.heads
                                                : 4;
  const Net net{weights, p, heads};
  const int64_t n = weights.at("freq.norm.weight").numel();
  RefMap out;
  const auto store = [&](const std::string& name, int64_t b, int64_t batch,
                         const Map& m) {  // as [B][K][N][T]
    if (!out.contains(name)) out[name] = RefTensor({batch, m.k, m.c, m.t});
    for (int64_t k = 0; k < m.k; ++k)
      for (int64_t t = 0; t < m.t; ++t)
        for (int64_t c = 0; c < m.c; ++c) out[name][((b * m.k + k) * m.c + c) * m.t + t] = m.at(k, t)[c];
  };
  const auto separate = [&](Map z, int64_t b, int64_t batch, bool first) {
    const Map z0 = z;
    for (int64_t i = 0; i < p.integer("num_blocks"); ++i) {
      if (i > 0)
        for (size_t j = 0; j < z.data.size(); ++j) {
          const auto c = static_cast<int64_t>(j) % n;
          double v = (z0.data[j] + z.data[j]) * weights.at("reentry.conv.weight")[c] +
                     weights.at("reentry.conv.bias")[c];
          z.data[j] = v < 0 ? v * weights.at("reentry.prelu")[0] : v;
        }
      net.path(z, "freq", true);
      net.path(z, "frame", false);
      if (i == 0 && first) store("out_block1", b, batch, z);
    }
    return z;
  };
  if (!full) {
    const RefTensor& x = inputs.at("Z");
    for (int64_t b = 0; b < x.dim(0); ++b) {
      Map z(x.dim(1), x.dim(3), n);
      for (int64_t k = 0; k < z.k; ++k)
        for (int64_t t = 0; t < z.t; ++t)
          for (int64_t c = 0; c < n; ++c) z.at(k, t)[c] = x[((b * z.k + k) * n + c) * z.t + t];
      store("out", b, x.dim(0), separate(z, b, x.dim(0), true));
    }
    return out;
  }
  const RefTensor& waves = inputs.at("wave");
  const int64_t batch = waves.dim(0), samples = waves.dim(1), n_fft = p.integer("n_fft"),
                hop = p.integer("hop"), frames = 1 + samples / hop, f = n_fft / 2 + 1,
                s = p.integer("num_sources");
  // Widths from the shapes of the bands' weights.
  std::vector<int64_t> widths;
  while (weights.contains("split." + std::to_string(widths.size()) + ".conv.weight"))
    widths.push_back(weights.at("split." + std::to_string(widths.size()) + ".conv.weight").dim(1) / 2);
  Row window;
  for (int64_t i = 0; i < n_fft; ++i)
    window.push_back(0.5 - 0.5 * std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(n_fft)));
  std::vector<std::complex<double>> turn;
  for (int64_t i = 0; i < n_fft; ++i)
    turn.push_back(std::polar(1.0, -2 * kPi * static_cast<double>(i) / static_cast<double>(n_fft)));
  out["est"] = RefTensor({batch, s, samples});
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<std::complex<double>> bins(static_cast<size_t>(frames * f));
    for (int64_t t = 0; t < frames; ++t)
      for (int64_t k = 0; k < f; ++k) {
        std::complex<double> sum = 0;
        for (int64_t i = 0; i < n_fft; ++i) {
          int64_t at = t * hop + i - n_fft / 2;
          at = at < 0 ? -at : at >= samples ? 2 * (samples - 1) - at : at;
          sum += waves[b * samples + at] * window[static_cast<size_t>(i)] *
                 turn[static_cast<size_t>(i * k % n_fft)];
        }
        bins[static_cast<size_t>(t * f + k)] = sum;
      }
    Map z(static_cast<int64_t>(widths.size()), frames, n);
    int64_t first = 0;
    for (int64_t k = 0; k < z.k; ++k) {
      const int64_t g = widths[static_cast<size_t>(k)];
      const std::string name = "split." + std::to_string(k);
      Sequence rows(2 * g, frames);
      for (int64_t i = 0; i < g; ++i)
        for (int64_t t = 0; t < frames; ++t) {
          rows.at(i, t) = bins[static_cast<size_t>(t * f + first + i)].real();
          rows.at(g + i, t) = bins[static_cast<size_t>(t * f + first + i)].imag();
        }
      const Sequence y = net.pointwise(net.group_norm(rows, name + ".norm", 1.1920929e-07),
                                       name + ".conv.weight", name + ".conv.bias");
      for (int64_t t = 0; t < frames; ++t)
        for (int64_t c = 0; c < n; ++c) z.at(k, t)[c] = y.at(c, t);
      first += g;
    }
    store("Z", b, batch, z);
    const Map sep = separate(z, b, batch, false);
    store("sep", b, batch, sep);
    std::vector<std::vector<std::complex<double>>> separated(static_cast<size_t>(s),
                                                             std::vector<std::complex<double>>(bins.size()));
    first = 0;
    for (int64_t k = 0; k < z.k; ++k) {
      const int64_t g = widths[static_cast<size_t>(k)], per_group = 4 * g;
      const std::string name = "mask." + std::to_string(k);
      const RefTensor& m = weights.at(name + ".conv.weight");
      for (int64_t t = 0; t < frames; ++t) {
        Row x(sep.at(k, t), sep.at(k, t) + n);
        net.prelu(x, name + ".prelu");
        Row y;
        for (int64_t o = 0; o < s * per_group; ++o) {
          double sum = weights.at(name + ".conv.bias")[o];
          const int64_t group = o / per_group, in = n / s;
          for (int64_t i = 0; i < in; ++i) sum += m[o * in + i] * x[static_cast<size_t>(group * in + i)];
          y.push_back(sum);
        }
        const auto value = [&](int64_t part, int64_t imaginary, int64_t source, int64_t i) {
          return y[static_cast<size_t>(((part * 2 + imaginary) * s + source) * g + i)];
        };
        for (int64_t i = 0; i < g; ++i) {
          std::vector<std::complex<double>> mask;
          std::complex<double> sum = -1.0;
          for (int64_t source = 0; source < s; ++source) {
            mask.emplace_back(value(0, 0, source, i) * sigmoid(value(1, 0, source, i)),
                              value(0, 1, source, i) * sigmoid(value(1, 1, source, i)));
            sum += mask.back();
          }
          for (int64_t source = 0; source < s; ++source)
            separated[static_cast<size_t>(source)][static_cast<size_t>(t * f + first + i)] =
                (mask[static_cast<size_t>(source)] - sum / static_cast<double>(s)) *
                bins[static_cast<size_t>(t * f + first + i)];
        }
      }
      first += g;
    }
    for (int64_t source = 0; source < s; ++source) {
      Row wave(static_cast<size_t>(samples)), power(wave.size());
      for (int64_t t = 0; t < frames; ++t)
        for (int64_t i = 0; i < n_fft; ++i) {
          const int64_t at = t * hop + i - n_fft / 2;
          if (at < 0 || at >= samples) continue;
          double sum = 0;
          for (int64_t k = 0; k < f; ++k) {
            const std::complex<double> v =
                separated[static_cast<size_t>(source)][static_cast<size_t>(t * f + k)] *
                std::conj(turn[static_cast<size_t>(i * k % n_fft)]);
            const bool single = k == 0 || 2 * k == n_fft;
            // Imaginary parts of bins that stand alone do not count.
            sum += single ? separated[static_cast<size_t>(source)][static_cast<size_t>(t * f + k)].real() *
                                turn[static_cast<size_t>(i * k % n_fft)].real()
                          : 2 * v.real();
          }
          wave[static_cast<size_t>(at)] += window[static_cast<size_t>(i)] * sum / static_cast<double>(n_fft);
          power[static_cast<size_t>(at)] += std::pow(window[static_cast<size_t>(i)], 2);
        }
      for (int64_t i = 0; i < samples; ++i)
        out["est"][(b * s + source) * samples + i] =
            power[static_cast<size_t>(i)] < 1e-11
                ? wave[static_cast<size_t>(i)]
                : wave[static_cast<size_t>(i)] / power[static_cast<size_t>(i)];
    }
  }
  return out;
}
ATTNBENCH_REFERENCE(tiger, tiger_reference);

}  // namespace
}  // namespace attnbench
