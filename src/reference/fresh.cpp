// Reference of `fresh`: networks pixel by pixel, spectra by the sums of their definition, distances by
// partial sums, in double precision.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Complex = std::complex<double>;
using Row = std::vector<double>;
constexpr double kPi = std::numbers::pi;

/// One axis of an antialiased bilinear resize of [lines][from][inner].
Row resized(const Row& x, int64_t lines, int64_t from, int64_t to, int64_t inner) {
  Row y(static_cast<size_t>(lines * to * inner));
  const double ratio = static_cast<double>(from) / static_cast<double>(to), width = ratio > 1 ? ratio : 1;
  for (int64_t i = 0; i < to; ++i) {
    const double center = ratio * (static_cast<double>(i) + 0.5);
    Row weight(static_cast<size_t>(from));
    double sum = 0;
    for (int64_t j = 0; j < from; ++j) {
      const double distance = std::abs(static_cast<double>(j) + 0.5 - center) / width;
      weight[static_cast<size_t>(j)] = distance < 1 ? 1 - distance : 0;
      sum += weight[static_cast<size_t>(j)];
    }
    for (int64_t l = 0; l < lines; ++l)
      for (int64_t j = 0; j < from; ++j)
        if (weight[static_cast<size_t>(j)] > 0)
          for (int64_t c = 0; c < inner; ++c)
            y[static_cast<size_t>((l * to + i) * inner + c)] +=
                x[static_cast<size_t>((l * from + j) * inner + c)] * weight[static_cast<size_t>(j)] / sum;
  }
  return y;
}

/// s_1 .. s_m (or s_0 ..) of an image [C][h][w].
Row spectrum(Row image, int64_t channels, int64_t h, int64_t w, int64_t most, int64_t m, bool drop) {
  if (h != w || h > most) {
    const int64_t s = std::min({h, w, most});
    if (w != s) image = resized(image, channels * h, w, s, 1);
    if (h != s) image = resized(image, channels, h, s, s);
    h = w = s;
  }
  const int64_t s = h;
  std::vector<Complex> turn;
  for (int64_t i = 0; i < s; ++i)
    turn.push_back(std::polar(1.0, -2 * kPi * static_cast<double>(i) / static_cast<double>(s)));
  Row total(static_cast<size_t>(s * s));
  for (int64_t c = 0; c < channels; ++c) {
    std::vector<Complex> rows(static_cast<size_t>(s * s)), all(static_cast<size_t>(s * s));
#pragma omp parallel for
    for (int64_t y = 0; y < s; ++y)
      for (int64_t v = 0; v < s; ++v) {
        Complex sum = 0;
        for (int64_t x = 0; x < s; ++x)
          sum += image[static_cast<size_t>((c * s + y) * s + x)] * turn[static_cast<size_t>(x * v % s)];
        rows[static_cast<size_t>(y * s + v)] = sum;
      }
#pragma omp parallel for
    for (int64_t u = 0; u < s; ++u)
      for (int64_t v = 0; v < s; ++v) {
        Complex sum = 0;
        for (int64_t y = 0; y < s; ++y)
          sum += rows[static_cast<size_t>(y * s + v)] * turn[static_cast<size_t>(y * u % s)];
        total[static_cast<size_t>(u * s + v)] += std::abs(sum);
      }
  }
  // The first of every pair of conjugates in the order of u + v, then u: the rule of the card in words.
  std::vector<std::pair<int64_t, int64_t>> order;
  for (int64_t u = 0; u < s; ++u)
    for (int64_t v = 0; v < s; ++v) order.emplace_back(u, v);
  std::stable_sort(order.begin(), order.end(),
                   [](auto a, auto b) { return a.first + a.second < b.first + b.second; });
  std::vector<char> used(static_cast<size_t>(s * s));
  Row sums(static_cast<size_t>(2 * s - 1));
  for (const auto& [u, v] : order) {
    if (used[static_cast<size_t>(u * s + v)]) continue;
    used[static_cast<size_t>(u * s + v)] = used[static_cast<size_t>((s - u) % s * s + (s - v) % s)] = 1;
    sums[static_cast<size_t>(u + v)] += total[static_cast<size_t>(u * s + v)];
  }
  const int64_t first = drop ? 1 : 0;
  return Row(sums.begin() + first, sums.begin() + first + m);
}

double wasserstein(const Row& a, const Row& b) {
  double sa = 0, sb = 0, ca = 0, cb = 0, w = 0;
  for (double x : a) sa += x;
  for (double x : b) sb += x;
  if (sa == 0 || sb == 0) return static_cast<double>(a.size());
  for (size_t k = 0; k + 1 < a.size(); ++k) {
    ca += a[k] / sa, cb += b[k] / sb;
    w += std::abs(ca - cb);
  }
  return w;
}

/// One candidate's repeat: weights by input, so that loops over outputs run along memory.
struct Network {
  struct Layer {
    int64_t in = 0, out = 0;
    Row weight, imaginary, bias, bias_imaginary;  ///< [in][out], [out]
  };
  std::vector<Layer> layers;

  Network(const RefMap& weights, int64_t at, int64_t count) {
    for (int64_t l = 0; l < count; ++l) {
      const std::string name = "layers." + std::to_string(l);
      const RefTensor& w = weights.at(name + ".weight");
      const bool complex = w.shape.size() == 5;
      Layer y;
      y.out = w.dim(2), y.in = w.dim(3);
      y.weight = y.imaginary = Row(static_cast<size_t>(y.in * y.out));
      y.bias = y.bias_imaginary = Row(static_cast<size_t>(y.out));
      for (int64_t o = 0; o < y.out; ++o) {
        for (int64_t i = 0; i < y.in; ++i) {
          const int64_t from = ((at * y.out + o) * y.in + i) * (complex ? 2 : 1);
          y.weight[static_cast<size_t>(i * y.out + o)] = w[from];
          if (complex) y.imaginary[static_cast<size_t>(i * y.out + o)] = w[from + 1];
        }
        if (!weights.contains(name + ".bias")) continue;
        const RefTensor& b = weights.at(name + ".bias");
        y.bias[static_cast<size_t>(o)] = b[(at * y.out + o) * (complex ? 2 : 1)];
        if (complex) y.bias_imaginary[static_cast<size_t>(o)] = b[(at * y.out + o) * 2 + 1];
      }
      layers.push_back(std::move(y));
    }
  }
  /// y += sign W x.
  static void add(const Row& weight, int64_t out, const Row& x, double sign, Row& y) {
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = sign * x[i];
      const double* w = &weight[i * static_cast<size_t>(out)];
      for (int64_t o = 0; o < out; ++o) y[static_cast<size_t>(o)] += v * w[o];
    }
  }
  /// factor W x + b.
  Row linear(int64_t l, const Row& x, double factor) const {
    const Layer& layer = layers[static_cast<size_t>(l)];
    Row y = layer.bias;
    add(layer.weight, layer.out, x, factor, y);
    return y;
  }
};

Row pixel(const Network& net, const std::string& model, double value, int64_t layers, double hidden, Row x) {
  if (model == "wire") {
    Row re, im;
    for (double z : net.linear(0, x, 1)) {
      const Complex v = std::exp(Complex(0, value * z) - 100.0 * z * z);
      re.push_back(v.real()), im.push_back(v.imag());
    }
    for (int64_t l = 1; l <= layers + 1; ++l) {
      const Network::Layer& layer = net.layers[static_cast<size_t>(l)];
      Row a = layer.bias, b = layer.bias_imaginary;
      Network::add(layer.weight, layer.out, re, 1, a);
      Network::add(layer.imaginary, layer.out, im, -1, a);
      Network::add(layer.weight, layer.out, im, 1, b);
      Network::add(layer.imaginary, layer.out, re, 1, b);
      re.assign(a.size(), 0), im.assign(a.size(), 0);
      for (size_t o = 0; o < a.size(); ++o) {
        const Complex z(a[o], b[o]),
            v = l > layers ? z : std::exp(Complex(0, hidden) * z - 100.0 * std::norm(z));
        re[o] = v.real(), im[o] = v.imag();
      }
    }
    for (double& v : re) v = v / 2 + 0.5;
    return re;
  }
  for (int64_t l = 0; l <= layers; ++l) {
    const double omega = l > 0 ? hidden : model == "finer_bias" ? 30 : value;
    Row y;
    if (model == "fourier" && l == 0) {
      const Row turn = net.linear(0, x, 2 * kPi);
      for (double t : turn) y.push_back(std::cos(t));
      for (double t : turn) y.push_back(std::sin(t));
    } else if (model == "fourier") {
      for (double z : net.linear(l, x, 1)) y.push_back(std::max(z, 0.0));
    } else if (model == "siren") {
      for (double z : net.linear(l, x, omega)) y.push_back(std::sin(z));
    } else {
      for (double z : net.linear(l, x, 1)) y.push_back(std::sin(omega * (std::abs(z) + 1) * z));
    }
    x = y;
  }
  return net.linear(layers + 1, x, model == "siren" ? hidden : 1);
}

RefMap fresh_reference(const Problem&, const Params& p, const RefMap& inputs, const RefMap& weights) {
  const std::string model = p.choice("model");
  Row candidates;
  if (!p.is_null("candidates"))
    for (const Value& v : p.value("candidates").as_list()) candidates.push_back(v.as_double());
  else
    for (int i = 0; i < (model == "finer_bias" ? 31 : 20); ++i)
      candidates.push_back(model == "finer_bias" ? 0.1 * i : model == "fourier" ? i + 1 : 10.0 * (i + 1));
  const auto betas = model == "siren" ? static_cast<int64_t>(p.value("beta_values").as_list().size()) : 1;
  const int64_t k = static_cast<int64_t>(candidates.size()) * betas, e = p.integer("repeats"),
                channels = p.integer("out_channels"), h = p.integer("height"), w = p.integer("width"),
                m = p.integer("spectrum_size"), pixels = h * w, most = p.integer("max_side");
  const double hidden = p.is_null("hidden_omega") ? (model == "wire" ? 10 : 30) : p.number("hidden_omega");
  RefMap out;
  RefTensor renders({k, e, channels, h, w});
  if (model == "external") {
    renders = inputs.at("outputs");
  } else {
#pragma omp parallel for schedule(dynamic)
    for (int64_t r = 0; r < k * e; ++r) {
      const Network net(weights, r, p.integer("hidden_layers") + 2);
      for (int64_t i = 0; i < pixels; ++i) {
        const Row x = {-1 + 2 * static_cast<double>(i / w) / static_cast<double>(h - 1),
                       -1 + 2 * static_cast<double>(i % w) / static_cast<double>(w - 1)};
        const Row y = pixel(net, model, candidates[static_cast<size_t>(r / e / betas)],
                            p.integer("hidden_layers"), hidden, x);
        for (int64_t c = 0; c < channels; ++c)
          renders[(r * channels + c) * pixels + i] = y[static_cast<size_t>(c)];
      }
    }
    out["outputs"] = renders;
  }
  const bool drop = p.boolean("drop_dc");
  const Row wanted = spectrum(inputs.at("y").data, channels, h, w, most, m, drop);
  RefTensor target({m}), spectra({k, e, m}), each({k, e}), distance({k}), error({k}), best({1});
  target.data = wanted;
  for (int64_t r = 0; r < k * e; ++r) {
    const auto begin = renders.data.begin() + r * channels * pixels;
    const Row s = spectrum(Row(begin, begin + channels * pixels), channels, h, w, most, m, drop);
    std::copy(s.begin(), s.end(), spectra.data.begin() + r * m);
    each[r] = wasserstein(s, wanted);
  }
  for (int64_t i = 0; i < k; ++i) {
    double mean = 0, square = 0;
    for (int64_t j = 0; j < e; ++j) mean += each[i * e + j] / static_cast<double>(e);
    for (int64_t j = 0; j < e; ++j) square += std::pow(each[i * e + j] - mean, 2) / static_cast<double>(e);
    distance[i] = mean;
    error[i] = std::sqrt(square / static_cast<double>(e));
    if (distance[i] < distance[static_cast<int64_t>(best[0])]) best[0] = static_cast<double>(i);
  }
  out["spectrum_target"] = target, out["spectrum_output"] = spectra, out["distance_each"] = each;
  out["distance"] = distance, out["standard_error"] = error, out["best"] = best;
  return out;
}
ATTNBENCH_REFERENCE(fresh, fresh_reference);

}  // namespace
}  // namespace attnbench
