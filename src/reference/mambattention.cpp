// Reference of `mambattention`: maps channel by channel and recurrences token by token, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;  ///< a sequence of tokens
constexpr double kPi = std::numbers::pi;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// A map of one sample, [C][T][F].
struct Map {
  int64_t c = 0, t = 0, f = 0;
  Row data;
  Map() = default;
  Map(int64_t channels, int64_t frames, int64_t bins)
      : c(channels), t(frames), f(bins), data(static_cast<size_t>(channels * frames * bins)) {}
  double& at(int64_t i, int64_t y, int64_t x) { return data[static_cast<size_t>((i * t + y) * f + x)]; }
  double at(int64_t i, int64_t y, int64_t x) const { return data[static_cast<size_t>((i * t + y) * f + x)]; }
};

struct Net {
  const RefMap& w;
  const Params& p;
  int64_t heads;

  const RefTensor& at(const std::string& name) const { return w.at(name); }
  Row linear(const Row& x, const std::string& weight, const std::string& bias) const {
    const RefTensor& m = at(weight);
    Row y(static_cast<size_t>(m.dim(0)));
    for (size_t o = 0; o < y.size(); ++o) {
      y[o] = bias.empty() ? 0 : at(bias)[static_cast<int64_t>(o)];
      for (size_t i = 0; i < x.size(); ++i) y[o] += m.data[o * x.size() + i] * x[i];
    }
    return y;
  }

  Rows attention(const Rows& x, const std::string& name) const {
    const size_t n = x.size(), c = x[0].size(), d = c / static_cast<size_t>(heads);
    Rows qkv;
    for (const Row& r : x) {
      double mean = 0, square = 0;
      for (double v : r) mean += v / static_cast<double>(c);
      for (double v : r) square += (v - mean) * (v - mean) / static_cast<double>(c);
      Row y;
      for (size_t i = 0; i < c; ++i)
        y.push_back((r[i] - mean) / std::sqrt(square + 1e-5) * at(name + "norm.weight").data[i] +
                    at(name + "norm.bias").data[i]);
      qkv.push_back(linear(y, name + "in_proj.weight", name + "in_proj.bias"));
    }
    Rows out;
    for (size_t i = 0; i < n; ++i) {
      Row mixed(c);
      for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
        Row score(n);
        double most = -INFINITY, sum = 0;
        for (size_t j = 0; j < n; ++j) {
          for (size_t k = 0; k < d; ++k) score[j] += qkv[i][h * d + k] * qkv[j][c + h * d + k];
          score[j] /= std::sqrt(static_cast<double>(d));
          most = std::max(most, score[j]);
        }
        for (double& s : score) sum += s = std::exp(s - most);
        for (size_t j = 0; j < n; ++j)
          for (size_t k = 0; k < d; ++k) mixed[h * d + k] += score[j] / sum * qkv[j][2 * c + h * d + k];
      }
      out.push_back(linear(mixed, name + "out_proj.weight", name + "out_proj.bias"));
    }
    return out;
  }

  /// x + Mamba(RMSNorm x) of one sequence, forwards.
  Rows directed(const Rows& x, const std::string& name) const {
    const size_t c = x[0].size();
    const RefTensor& rates = at(name + "A_log");
    const auto di = static_cast<size_t>(rates.dim(0)), states = static_cast<size_t>(rates.dim(1));
    const size_t taps = static_cast<size_t>(at(name + "conv.weight").dim(1)),
                 r = static_cast<size_t>(at(name + "W_dt").dim(1));
    Rows az, out;
    for (const Row& row : x) {
      double square = 0;
      for (double v : row) square += v * v / static_cast<double>(c);
      Row y;
      for (size_t i = 0; i < c; ++i)
        y.push_back(row[i] / std::sqrt(square + p.number("norm_eps")) * at(name + "norm.gain").data[i]);
      az.push_back(linear(y, name + "W_in", ""));
    }
    std::vector<Row> h(di, Row(states));
    for (size_t t = 0; t < x.size(); ++t) {
      Row a(di);
      for (size_t i = 0; i < di; ++i) {
        a[i] = at(name + "conv.bias").data[i];
        for (size_t k = 0; k < taps; ++k)
          if (t + k + 1 >= taps)
            a[i] += at(name + "conv.weight").data[i * taps + k] * az[t + k + 1 - taps][i];
        a[i] *= sigmoid(a[i]);
      }
      const Row mixed = linear(a, name + "W_x", "");
      const Row delta =
          linear(Row(mixed.begin(), mixed.begin() + static_cast<long>(r)), name + "W_dt", name + "b_dt");
      Row y(di);
      for (size_t i = 0; i < di; ++i) {
        const double step = delta[i] > 30 ? delta[i] : std::log1p(std::exp(delta[i]));
        for (size_t s = 0; s < states; ++s) {
          h[i][s] =
              std::exp(-step * std::exp(rates.data[i * states + s])) * h[i][s] + step * mixed[r + s] * a[i];
          y[i] += mixed[r + states + s] * h[i][s];
        }
        y[i] += at(name + "Dskip").data[i] * a[i];
        const double z = az[t][di + i];
        y[i] *= z * sigmoid(z);
      }
      Row o = linear(y, name + "W_out", "");
      for (size_t i = 0; i < c; ++i) o[i] += x[t][i];
      out.push_back(o);
    }
    return out;
  }

  void sequence(Rows& x, const std::string& block, bool time) const {
    const std::string attn = block + (p.boolean("share_attention") ? "attn." : time ? "attn_t." : "attn_f.");
    if (p.boolean("use_attention")) {
      const Rows y = attention(x, attn);
      for (size_t t = 0; t < x.size(); ++t)
        for (size_t i = 0; i < y[t].size(); ++i) x[t][i] += y[t][i];
    }
    if (!p.boolean("use_mamba")) return;
    const std::string axis = time ? "time" : "freq";
    const Rows forward = directed(x, block + axis + ".forward.");
    Rows reversed(x.rbegin(), x.rend());
    Rows backward = directed(reversed, block + axis + ".backward.");
    std::reverse(backward.begin(), backward.end());
    const RefTensor& merge = at(block + "merge_" + axis + ".weight");
    const size_t c = x[0].size();
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t o = 0; o < c; ++o) {
        double sum = at(block + "merge_" + axis + ".bias").data[o];
        for (size_t i = 0; i < c; ++i)
          sum += forward[t][i] * merge.data[i * c + o] + backward[t][i] * merge.data[(c + i) * c + o];
        x[t][o] += sum;
      }
  }

  void block(Map& m, const std::string& name) const {
    for (const bool time : {true, false}) {
      const int64_t lines = time ? m.f : m.t, length = time ? m.t : m.f;
#pragma omp parallel for
      for (int64_t l = 0; l < lines; ++l) {
        Rows x(static_cast<size_t>(length), Row(static_cast<size_t>(m.c)));
        for (int64_t i = 0; i < length; ++i)
          for (int64_t c = 0; c < m.c; ++c)
            x[static_cast<size_t>(i)][static_cast<size_t>(c)] = time ? m.at(c, i, l) : m.at(c, l, i);
        sequence(x, name, time);
        for (int64_t i = 0; i < length; ++i)
          for (int64_t c = 0; c < m.c; ++c)
            (time ? m.at(c, i, l) : m.at(c, l, i)) = x[static_cast<size_t>(i)][static_cast<size_t>(c)];
      }
    }
  }

  // ---- shell ----

  /// Kernel (out, in, kt, kf), zeros outside; strides and padding of the frequency axis.
  Map conv(const Map& x, const std::string& name, int64_t dilation, int64_t pad_t, int64_t pad_f,
           int64_t stride) const {
    const RefTensor& k = at(name + ".weight");
    const int64_t out = k.dim(0), in = k.dim(1), kt = k.dim(2), kf = k.dim(3);
    Map y(out, x.t, (x.f + 2 * pad_f - kf) / stride + 1);
#pragma omp parallel for
    for (int64_t o = 0; o < out; ++o)
      for (int64_t t = 0; t < y.t; ++t)
        for (int64_t f = 0; f < y.f; ++f) {
          double sum = at(name + ".bias")[o];
          for (int64_t i = 0; i < in; ++i)
            for (int64_t a = 0; a < kt; ++a)
              for (int64_t b = 0; b < kf; ++b) {
                const int64_t yy = t + a * dilation - pad_t, xx = f * stride + b - pad_f;
                if (yy >= 0 && yy < x.t && xx >= 0 && xx < x.f)
                  sum += k[((o * in + i) * kt + a) * kf + b] * x.at(i, yy, xx);
              }
          y.at(o, t, f) = sum;
        }
    return y;
  }
  Map norm_prelu(Map x, const std::string& name) const {
    const double count = static_cast<double>(x.t * x.f);
    for (int64_t c = 0; c < x.c; ++c) {
      double mean = 0, square = 0;
      for (int64_t i = 0; i < x.t * x.f; ++i) mean += x.data[static_cast<size_t>(c * x.t * x.f + i)] / count;
      for (int64_t i = 0; i < x.t * x.f; ++i)
        square += std::pow(x.data[static_cast<size_t>(c * x.t * x.f + i)] - mean, 2) / count;
      for (int64_t i = 0; i < x.t * x.f; ++i) {
        double& v = x.data[static_cast<size_t>(c * x.t * x.f + i)];
        v = (v - mean) / std::sqrt(square + 1e-5) * at(name + ".norm.weight")[c] + at(name + ".norm.bias")[c];
        if (v < 0) v *= at(name + ".prelu")[c];
      }
    }
    return x;
  }
  Map dense(const Map& x, const std::string& name) const {
    Map stack = x, last;
    for (int64_t j = 0; j < 4; ++j) {
      const std::string layer = name + "." + std::to_string(j);
      last = norm_prelu(conv(stack, layer + ".conv", int64_t{1} << j, int64_t{1} << j, 1, 1), layer);
      Map next(stack.c + last.c, x.t, x.f);
      std::copy(last.data.begin(), last.data.end(), next.data.begin());
      std::copy(stack.data.begin(), stack.data.end(),
                next.data.begin() + static_cast<long>(last.data.size()));
      stack = next;
    }
    return last;
  }
  /// Kernel (in, out, 1, 3), stride 2 along frequency.
  Map up(const Map& x, const std::string& name) const {
    const RefTensor& k = at(name + ".weight");
    Map y(x.c, x.t, 2 * x.f + 1);
    for (int64_t o = 0; o < x.c; ++o)
      for (int64_t t = 0; t < x.t; ++t) {
        for (int64_t f = 0; f < y.f; ++f) y.at(o, t, f) = at(name + ".bias")[o];
        for (int64_t f = 0; f < x.f; ++f)
          for (int64_t i = 0; i < x.c; ++i)
            for (int64_t a = 0; a < 3; ++a) y.at(o, t, 2 * f + a) += x.at(i, t, f) * k[(i * x.c + o) * 3 + a];
      }
    return y;
  }
};

RefMap mamba_reference(const Problem& problem, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const bool full = p.choice("scope") == "full";
  const int64_t heads = !p.is_null("heads") ? p.integer("heads") : problem.heads > 0 ? problem.heads : 8;
  const Net net{weights, p, heads};
  const int64_t blocks = p.integer("num_blocks");
  RefMap out;
  const auto store = [&](const std::string& name, int64_t b, int64_t batch, const std::vector<int64_t>& shape,
                         const Row& data) {
    std::vector<int64_t> all = shape;
    all.insert(all.begin(), batch);
    if (!out.contains(name)) out[name] = RefTensor(all);
    std::copy(data.begin(), data.end(), out[name].data.begin() + b * static_cast<int64_t>(data.size()));
  };
  if (!full) {
    const RefTensor& x = inputs.at("X");
    const int64_t batch = x.dim(0);
    for (int64_t b = 0; b < batch; ++b) {
      Map m(x.dim(1), x.dim(2), x.dim(3));
      std::copy_n(x.data.begin() + b * static_cast<int64_t>(m.data.size()), m.data.size(), m.data.begin());
      for (int64_t i = 0; i < blocks; ++i) {
        net.block(m, "blocks." + std::to_string(i) + ".");
        if (i == 0) store("out_block0", b, batch, {m.c, m.t, m.f}, m.data);
      }
      store("out", b, batch, {m.c, m.t, m.f}, m.data);
    }
    return out;
  }
  const RefTensor& waves = inputs.at("wave");
  const int64_t batch = waves.dim(0), samples = waves.dim(1), n_fft = p.integer("n_fft"),
                hop = p.integer("hop"), win = p.integer("win"), frames = 1 + samples / hop,
                bins = n_fft / 2 + 1;
  const double compress = p.number("compress");
  Row window(static_cast<size_t>(n_fft));
  for (int64_t i = 0; i < win; ++i)
    window[static_cast<size_t>((n_fft - win) / 2 + i)] =
        0.5 - 0.5 * std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(win));
  for (int64_t b = 0; b < batch; ++b) {
    double power = 0;
    for (int64_t i = 0; i < samples; ++i) power += std::pow(waves[b * samples + i], 2);
    const double level = std::sqrt(static_cast<double>(samples) / power);
    Map input(2, frames, bins);
    Row mag_in(static_cast<size_t>(bins * frames));
    for (int64_t t = 0; t < frames; ++t)
      for (int64_t k = 0; k < bins; ++k) {
        std::complex<double> z = 0;
        for (int64_t i = 0; i < n_fft; ++i) {
          int64_t at = t * hop + i - n_fft / 2;
          at = at < 0 ? -at : at >= samples ? 2 * (samples - 1) - at : at;
          z += level * waves[b * samples + at] * window[static_cast<size_t>(i)] *
               std::polar(1.0, -2 * kPi * static_cast<double>(i * k % n_fft) / static_cast<double>(n_fft));
        }
        const double size = std::abs(z);
        double phase = std::abs(z.imag()) <= 1e-6 * size ? (z.real() < 0 ? kPi : 0.0) : std::arg(z);
        input.at(0, t, k) = mag_in[static_cast<size_t>(k * frames + t)] = std::pow(size, compress);
        input.at(1, t, k) = phase;
      }
    store("mag_in", b, batch, {bins, frames}, mag_in);
    Map m = net.norm_prelu(net.conv(input, "encoder.in.conv", 1, 0, 0, 1), "encoder.in");
    m = net.dense(m, "encoder.dense");
    m = net.norm_prelu(net.conv(m, "encoder.down.conv", 1, 0, 0, 2), "encoder.down");
    store("enc", b, batch, {m.c, m.t, m.f}, m.data);
    for (int64_t i = 0; i < blocks; ++i) net.block(m, "blocks." + std::to_string(i) + ".");
    store("blocks_out", b, batch, {m.c, m.t, m.f}, m.data);
    Map mask = net.up(net.dense(m, "mag.dense"), "mag.up");
    mask = net.norm_prelu(net.conv(mask, "mag.proj.conv", 1, 0, 0, 1), "mag.proj");
    mask = net.conv(mask, "mag.out", 1, 0, 0, 1);
    const Map wide = net.norm_prelu(net.up(net.dense(m, "phase.dense"), "phase.up.conv"), "phase.up");
    const Map re = net.conv(wide, "phase.r", 1, 0, 0, 1), im = net.conv(wide, "phase.i", 1, 0, 0, 1);
    Row mag(static_cast<size_t>(bins * frames)), com(static_cast<size_t>(2 * bins * frames));
    std::vector<std::complex<double>> spectrum(static_cast<size_t>(bins * frames));
    for (int64_t k = 0; k < bins; ++k)
      for (int64_t t = 0; t < frames; ++t) {
        const auto at = static_cast<size_t>(k * frames + t);
        const double phase = std::atan2(im.at(0, t, k), re.at(0, t, k));
        mag[at] = p.number("mask_beta") * sigmoid(weights.at("mag.slope")[k] * mask.at(0, t, k)) *
                  input.at(0, t, k);
        com[2 * at] = mag[at] * std::cos(phase), com[2 * at + 1] = mag[at] * std::sin(phase);
        spectrum[at] = std::polar(std::pow(mag[at], 1 / compress), phase);
      }
    store("mag", b, batch, {bins, frames}, mag);
    store("com", b, batch, {bins, frames, 2}, com);
    const int64_t length = hop * (frames - 1);
    Row wave(static_cast<size_t>(length)), weight(wave.size());
    for (int64_t t = 0; t < frames; ++t)
      for (int64_t i = 0; i < n_fft; ++i) {
        const int64_t at = t * hop + i - n_fft / 2;
        if (at < 0 || at >= length || window[static_cast<size_t>(i)] == 0) continue;
        double sum = 0;
        for (int64_t k = 0; k < bins; ++k) {
          const std::complex<double> z = spectrum[static_cast<size_t>(k * frames + t)];
          const double angle = 2 * kPi * static_cast<double>(i * k % n_fft) / static_cast<double>(n_fft);
          const bool single = k == 0 || 2 * k == n_fft;
          sum += single ? z.real() * std::cos(angle)
                        : 2 * (z.real() * std::cos(angle) - z.imag() * std::sin(angle));
        }
        wave[static_cast<size_t>(at)] += window[static_cast<size_t>(i)] * sum / static_cast<double>(n_fft);
        weight[static_cast<size_t>(at)] += std::pow(window[static_cast<size_t>(i)], 2);
      }
    for (size_t i = 0; i < wave.size(); ++i) wave[i] /= (weight[i] > 0 ? weight[i] : 1) * level;
    store("wave_out", b, batch, {length}, wave);
  }
  return out;
}
ATTNBENCH_REFERENCE(mambattention, mamba_reference);

}  // namespace
}  // namespace attnbench
