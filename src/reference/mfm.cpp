// Reference of `mfm`: full complex transforms by definition, steps 1 to 7 in order, and the ViT of scope
// full.
#include <algorithm>
#include <cmath>
#include <complex>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Complex = std::complex<double>;
using Spectrum = std::vector<Complex>;  // [H, W], DC first

/// Discrete Fourier transform of the rows of x [rows, n] by definition; sign -1 forward, +1 inverse
/// (unscaled).
void transform_rows(Spectrum& x, int64_t rows, int64_t n, double sign) {
  std::vector<Complex> root(static_cast<size_t>(n)), line(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k)
    root[static_cast<size_t>(k)] =
        std::polar(1.0, sign * 2.0 * M_PI * static_cast<double>(k) / static_cast<double>(n));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < n; ++k) {
      Complex sum = 0;
      for (int64_t j = 0; j < n; ++j)
        sum += x[static_cast<size_t>(r * n + j)] * root[static_cast<size_t>(j * k % n)];
      line[static_cast<size_t>(k)] = sum;
    }
    std::copy(line.begin(), line.end(), x.begin() + r * n);
  }
}

Spectrum transposed(const Spectrum& x, int64_t h, int64_t w) {
  Spectrum y(x.size());
  for (int64_t i = 0; i < h * w; ++i) y[static_cast<size_t>(i % w * h + i / w)] = x[static_cast<size_t>(i)];
  return y;
}

Spectrum transform(Spectrum x, int64_t h, int64_t w, double sign) {
  transform_rows(x, h, w, sign);
  Spectrum y = transposed(x, h, w);
  transform_rows(y, w, h, sign);
  return transposed(y, w, h);
}

/// Moves index k to (k + floor(N/2)) mod N on both axes, or back.
Spectrum shifted(const Spectrum& x, int64_t h, int64_t w, bool back) {
  Spectrum y(x.size());
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j = 0; j < w; ++j) {
      const int64_t plain = i * w + j, centred = (i + h / 2) % h * w + (j + w / 2) % w;
      y[static_cast<size_t>(back ? plain : centred)] = x[static_cast<size_t>(back ? centred : plain)];
    }
  return y;
}

struct Steps {
  int64_t batch, channels, height, width;
  const Params& params;
  int64_t plane() const { return height * width; }
};

/// Step 1: [B, H, W], centred.
RefTensor masks(const Steps& s) {
  RefTensor m({s.batch, s.height, s.width});
  const auto r1 = static_cast<double>(s.params.integer("mask_radius1")),
             r2 = static_cast<double>(s.params.integer("mask_radius2"));
  for (int64_t b = 0; b < s.batch; ++b) {
    bool low = s.params.choice("mask_mode") == "low";
    if (s.params.choice("mask_mode") == "random")
      low = random_uniform(static_cast<uint64_t>(s.params.integer("seed")), stream_of("M"),
                           static_cast<uint64_t>(b)) < s.params.number("sample_ratio");
    for (int64_t y = 0; y < s.height; ++y)
      for (int64_t x = 0; x < s.width; ++x) {
        const auto dy = static_cast<double>(y - s.height / 2), dx = static_cast<double>(x - s.width / 2);
        const double squared = dy * dy + dx * dx;
        const double pass = squared < r1 * r1 || squared >= r2 * r2 ? 1.0 : 0.0;
        m[(b * s.height + y) * s.width + x] = low ? pass : 1.0 - pass;
      }
  }
  return m;
}

/// Bicubic resize of one plane, a = -0.75, align_corners false, edges repeated.
std::vector<double> resized(const std::vector<double>& x, int64_t h, int64_t w, int64_t ho, int64_t wo) {
  const auto kernel = [](double t) {
    const double a = -0.75, d = std::abs(t);
    if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
    if (d < 2) return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
    return 0.0;
  };
  std::vector<double> y(static_cast<size_t>(ho * wo));
  for (int64_t i = 0; i < ho; ++i)
    for (int64_t j = 0; j < wo; ++j) {
      const double sy =
          (static_cast<double>(i) + 0.5) * static_cast<double>(h) / static_cast<double>(ho) - 0.5;
      const double sx =
          (static_cast<double>(j) + 0.5) * static_cast<double>(w) / static_cast<double>(wo) - 0.5;
      const auto fy = static_cast<int64_t>(std::floor(sy)), fx = static_cast<int64_t>(std::floor(sx));
      double sum = 0;
      for (int64_t u = fy - 1; u <= fy + 2; ++u)
        for (int64_t v = fx - 1; v <= fx + 2; ++v)
          sum +=
              kernel(sy - static_cast<double>(u)) * kernel(sx - static_cast<double>(v)) *
              x[static_cast<size_t>(std::clamp<int64_t>(u, 0, h - 1) * w + std::clamp<int64_t>(v, 0, w - 1))];
      y[static_cast<size_t>(i * wo + j)] = sum;
    }
  return y;
}

void clamp01(std::vector<double>& x) {
  for (double& v : x) v = std::clamp(v, 0.0, 1.0);
}

/// Steps 2 and 3.
RefTensor corrupted(const Steps& s, const RefTensor& x, const RefTensor& mask) {
  RefTensor y(x.shape);
  const bool clamp = s.params.boolean("clamp"), sr = s.params.choice("corruption") == "sr";
#pragma omp parallel for
  for (int64_t p = 0; p < s.batch * s.channels; ++p) {
    std::vector<double> image(x.data.begin() + p * s.plane(), x.data.begin() + (p + 1) * s.plane());
    if (sr) {
      const int64_t f = s.params.integer("sr_factor"), small_h = s.height / f, small_w = s.width / f;
      image = resized(image, s.height, s.width, small_h, small_w);
      if (clamp) clamp01(image);
      image = resized(image, small_h, small_w, s.height, s.width);
    } else {
      Spectrum z = shifted(transform(Spectrum(image.begin(), image.end()), s.height, s.width, -1), s.height,
                           s.width, false);
      for (int64_t i = 0; i < s.plane(); ++i)
        z[static_cast<size_t>(i)] *= mask[p / s.channels * s.plane() + i];
      z = transform(shifted(z, s.height, s.width, true), s.height, s.width, +1);
      for (size_t i = 0; i < image.size(); ++i) image[i] = z[i].real() / static_cast<double>(s.plane());
    }
    if (clamp) clamp01(image);
    std::copy(image.begin(), image.end(), y.data.begin() + p * s.plane());
  }
  return y;
}

/// Step 4.
RefTensor standardised(const Steps& s, const RefTensor& x) {
  const double mean[] = {0.485, 0.456, 0.406}, std[] = {0.229, 0.224, 0.225};
  RefTensor y = x;
  if (s.channels == 3)
    for (int64_t i = 0; i < y.numel(); ++i) {
      const int64_t c = i / s.plane() % 3;
      y[i] = (y[i] - mean[c]) / std[c];
    }
  return y;
}

/// Steps 5 to 7.
void score(const Steps& s, const RefTensor& p, const RefTensor& t, const RefTensor& mask, RefMap& out) {
  RefTensor map(p.shape), weight(p.shape);
  const double gamma = s.params.number("loss_gamma"), alpha = s.params.number("matrix_gamma");
  const bool focal = s.params.boolean("with_matrix");
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.plane()));
#pragma omp parallel for
  for (int64_t plane = 0; plane < s.batch * s.channels; ++plane) {
    const auto spectrum_of = [&](const RefTensor& image) {
      Spectrum z(image.data.begin() + plane * s.plane(), image.data.begin() + (plane + 1) * s.plane());
      return shifted(transform(z, s.height, s.width, -1), s.height, s.width, false);
    };
    const Spectrum zp = spectrum_of(p), zt = spectrum_of(t);
    for (int64_t i = 0; i < s.plane(); ++i) {
      const Complex d = (zp[static_cast<size_t>(i)] - zt[static_cast<size_t>(i)]) * scale;
      map[plane * s.plane() + i] = std::pow(std::sqrt(std::norm(d) + 1e-12), gamma);
      const double w = std::pow(std::abs(d), alpha);
      weight[plane * s.plane() + i] = s.params.boolean("log_matrix") ? std::log(1 + w) : w;
    }
  }
  if (focal) {
    const int64_t span = s.params.boolean("batch_matrix") ? map.numel() : s.plane();
    for (int64_t begin = 0; begin < map.numel(); begin += span) {
      const double most = *std::max_element(weight.data.begin() + begin, weight.data.begin() + begin + span);
      for (int64_t i = begin; i < begin + span; ++i)
        map[i] *= most > 0 ? std::clamp(weight[i] / most, 0.0, 1.0) : 0.0;
    }
  }
  double sum = 0, count = 0;
  for (int64_t i = 0; i < map.numel(); ++i) {
    const int64_t b = i / (s.channels * s.plane());
    const double open =
        s.params.choice("target") == "masked" ? 1.0 - mask[b * s.plane() + i % s.plane()] : 1.0;
    sum += open * map[i];
    count += open;
  }
  RefTensor loss({1});
  loss[0] = count > 0 ? sum / count : 0.0;
  out["loss"] = loss;
  out["loss_map"] = map;
}

/// Layer norm of rows [*, d], eps 1e-6.
RefTensor layer_norm(const RefTensor& x, const RefTensor& gain, const RefTensor& offset) {
  const int64_t d = gain.numel();
  RefTensor y(x.shape);
  for (int64_t r = 0; r < x.numel() / d; ++r) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < d; ++i) mean += x[r * d + i];
    mean /= static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i) variance += (x[r * d + i] - mean) * (x[r * d + i] - mean);
    variance /= static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i)
      y[r * d + i] = (x[r * d + i] - mean) / std::sqrt(variance + 1e-6) * gain[i] + offset[i];
  }
  return y;
}

void add(RefTensor& x, const RefTensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) x[i] += y[i];
}

/// Self-attention of qkv [B, N, 3 d].
RefTensor attend(const RefTensor& qkv, int64_t heads) {
  const int64_t batch = qkv.dim(0), n = qkv.dim(1), d = qkv.dim(2) / 3, e = d / heads;
  RefTensor o({batch, n, d});
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const std::vector<char> all(static_cast<size_t>(n), 1);
      std::vector<double> p(static_cast<size_t>(n));
      const auto at = [&](int64_t token, int64_t part, int64_t c) {
        return qkv[((b * n + token) * 3 + part) * d + h * e + c];
      };
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < e; ++c) dot += at(i, 0, c) * at(j, 1, c);
          p[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(e));
        }
        ref::softmax_row(p, all);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t c = 0; c < e; ++c)
            o[(b * n + i) * d + h * e + c] += p[static_cast<size_t>(j)] * at(j, 2, c);
      }
    }
  return o;
}

/// The encoder and head on x_c: outputs `features` and `p`.
void vit(const Steps& s, const RefTensor& x, const RefMap& w, RefMap& out) {
  const int64_t d = s.params.integer("embed_dim"), heads = s.params.integer("num_heads"),
                size = s.params.integer("patch_size");
  const int64_t rows = s.height / size, columns = s.width / size, n = rows * columns + 1,
                pixels = s.channels * size * size;
  // Pixel (c, i, j) of the patch at (r, k).
  const auto pixel = [&](int64_t b, int64_t r, int64_t k, int64_t index) {
    const int64_t c = index / (size * size), i = index / size % size, j = index % size;
    return ((b * s.channels + c) * s.height + r * size + i) * s.width + k * size + j;
  };
  RefTensor tokens({s.batch, n, d});
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t o = 0; o < d; ++o) {
        double v = w.at("pos_embed")[t * d + o];
        if (t == 0) {
          v += w.at("cls_token")[o];
        } else {
          v += w.at("patch_embed.proj.bias")[o];
          for (int64_t i = 0; i < pixels; ++i)
            v += x[pixel(b, (t - 1) / columns, (t - 1) % columns, i)] *
                 w.at("patch_embed.proj.weight")[o * pixels + i];
        }
        tokens[(b * n + t) * d + o] = v;
      }
  for (int64_t l = 0; l < s.params.integer("depth"); ++l) {
    const auto part = [&](const char* name) -> const RefTensor& {
      return w.at("blocks." + std::to_string(l) + "." + name);
    };
    RefTensor bias({3 * d});
    for (int64_t i = 0; i < d; ++i)
      bias[i] = part("attn.q_bias")[i], bias[2 * d + i] = part("attn.v_bias")[i];
    const RefTensor first = layer_norm(tokens, part("norm1.weight"), part("norm1.bias"));
    const RefTensor mixed = attend(ref::linear(first, part("attn.qkv.weight"), &bias), heads);
    add(tokens, ref::linear(mixed, part("attn.proj.weight"), &part("attn.proj.bias")));
    const RefTensor second = layer_norm(tokens, part("norm2.weight"), part("norm2.bias"));
    RefTensor hidden = ref::linear(second, part("mlp.fc1.weight"), &part("mlp.fc1.bias"));
    for (double& v : hidden.data) v *= 0.5 * (1.0 + std::erf(v / std::sqrt(2.0)));
    add(tokens, ref::linear(hidden, part("mlp.fc2.weight"), &part("mlp.fc2.bias")));
  }
  tokens = layer_norm(tokens, w.at("norm.weight"), w.at("norm.bias"));
  RefTensor features({s.batch, d, rows, columns}), p({s.batch, s.channels, s.height, s.width});
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t t = 1; t < n; ++t) {
      for (int64_t o = 0; o < d; ++o) features[(b * d + o) * (n - 1) + t - 1] = tokens[(b * n + t) * d + o];
      for (int64_t i = 0; i < pixels; ++i) {
        double v = w.at("head.bias")[i];
        for (int64_t o = 0; o < d; ++o) v += tokens[(b * n + t) * d + o] * w.at("head.weight")[i * d + o];
        p[pixel(b, (t - 1) / columns, (t - 1) % columns, i)] = v;
      }
    }
  out["features"] = features;
  out["p"] = p;
}

RefMap mfm_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const Steps s{x.dim(0), x.dim(1), x.dim(2), x.dim(3), params};
  RefMap out;
  RefTensor mask;
  if (params.choice("corruption") == "mfm") mask = inputs.contains("M") ? inputs.at("M") : masks(s);
  const RefTensor clamped = corrupted(s, x, mask);
  out["x_c"] = standardised(s, clamped);
  const bool full = params.choice("scope") == "full";
  if (full)
    vit(s, out["x_c"], weights, out);
  else
    out["x_clamped"] = clamped;
  score(s, full ? out.at("p") : inputs.at("p"), standardised(s, x), mask, out);
  return out;
}
ATTNBENCH_REFERENCE(mfm, mfm_reference);

}  // namespace
}  // namespace attnbench
