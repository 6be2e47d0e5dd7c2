// Reference of vsa: the card's steps on the padded map, every sample from its four neighbours.
#include "reference/vision_reference.hpp"

namespace attnbench {

namespace {

RefMap vsa(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const int64_t c = params.integer("dim"), co = params.is_null("out_dim") ? c : params.integer("out_dim");
  const int64_t heads = params.integer("num_heads"), d = co / heads, w = params.integer("window_size");
  const int64_t hg = params.integer("grid_h"), wg = params.integer("grid_w");
  const RefTensor& given = inputs.at("x");
  const int64_t batch = given.dim(0);
  const double scale =
      params.is_null("qk_scale") ? 1 / std::sqrt(static_cast<double>(c / heads)) : params.number("qk_scale");
  RefTensor x = given;  // [B, C, Hg, Wg]
  const auto pixel = [&](const RefTensor& t, int64_t b, int64_t ch, int64_t y, int64_t z) {
    return y < 0 || y >= hg || z < 0 || z >= wg ? 0.0 : t[((b * c + ch) * hg + y) * wg + z];
  };
  if (params.boolean("cpe")) {
    const RefTensor &kernel = weights.at("cpe.weight"), &bias = weights.at("cpe.bias");
    const int64_t kc = 2 * (w / 2) + 1;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t ch = 0; ch < c; ++ch)
        for (int64_t y = 0; y < hg; ++y)
          for (int64_t z = 0; z < wg; ++z) {
            double sum = bias[ch];
            for (int64_t p = 0; p < kc; ++p)
              for (int64_t q = 0; q < kc; ++q)
                sum += kernel[(ch * kc + p) * kc + q] * pixel(given, b, ch, y + p - kc / 2, z + q - kc / 2);
            x[((b * c + ch) * hg + y) * wg + z] += sum;
          }
  }
  const int64_t nh = (hg + w - 1) / w, nw = (wg + w - 1) / w, hp = nh * w, wp = nw * w;
  const bool center = params.choice("pad_mode") == "center";
  const int64_t top = center ? (hp - hg) / 2 : 0, left = center ? (wp - wg) / 2 : 0;
  const std::string norm = params.choice("offset_norm");
  double count_x = static_cast<double>(norm == "padded" ? nw : wg / w);
  double count_y = static_cast<double>(norm == "padded" ? nh : hg / w);
  if (norm == "swapped") std::swap(count_x, count_y);

  const auto project = [&](const std::string& name, const std::vector<double>& in) {
    const RefTensor& m = weights.at(name + ".weight");
    const auto bias = weights.find(name + ".bias");
    std::vector<double> y(static_cast<size_t>(m.dim(0)));
    for (int64_t o = 0; o < m.dim(0); ++o) {
      y[static_cast<size_t>(o)] = bias == weights.end() ? 0.0 : bias->second[o];
      for (int64_t i = 0; i < m.dim(1); ++i)
        y[static_cast<size_t>(o)] += m[o * m.dim(1) + i] * in[static_cast<size_t>(i)];
    }
    return y;
  };
  RefTensor out({batch, co, hg, wg});
  for (int64_t b = 0; b < batch; ++b) {
    // q, k, v on the padded map: zero at padding.
    std::vector<std::vector<double>> qkv(static_cast<size_t>(hp * wp),
                                         std::vector<double>(static_cast<size_t>(3 * co), 0.0));
    for (int64_t y = 0; y < hg; ++y)
      for (int64_t z = 0; z < wg; ++z) {
        std::vector<double> in;
        for (int64_t ch = 0; ch < c; ++ch) in.push_back(pixel(x, b, ch, y, z));
        qkv[static_cast<size_t>((y + top) * wp + z + left)] = project("qkv", in);
      }
    for (int64_t jy = 0; jy < nh; ++jy)
      for (int64_t jx = 0; jx < nw; ++jx) {
        std::vector<double> a;
        for (int64_t ch = 0; ch < c; ++ch) {
          double sum = 0;
          for (int64_t y = 0; y < w; ++y)
            for (int64_t z = 0; z < w; ++z) sum += pixel(x, b, ch, jy * w + y - top, jx * w + z - left);
          sum /= static_cast<double>(w * w);
          a.push_back(sum < 0 ? params.number("leaky_slope") * sum : sum);
        }
        const std::vector<double> offset = project("offset", a), stretch = project("scale", a);
        std::vector<std::vector<double>> mixed(static_cast<size_t>(w * w),
                                               std::vector<double>(static_cast<size_t>(co), 0.0));
        for (int64_t h = 0; h < heads; ++h) {
          const auto row = static_cast<size_t>(2 * h);
          RefTensor keys({w * w, d}), values({w * w, d});
          for (int64_t i = 0; i < w * w; ++i) {
            const double middle = static_cast<double>(w - 1) / 2;
            const double px = static_cast<double>(w * jx) + middle +
                              (1 + stretch[row]) * (static_cast<double>(i % w) - middle) +
                              offset[row] * static_cast<double>(wp - 1) / (2 * count_x);
            const double py = static_cast<double>(w * jy) + middle +
                              (1 + stretch[row + 1]) * (static_cast<double>(i / w) - middle) +
                              offset[row + 1] * static_cast<double>(hp - 1) / (2 * count_y);
            for (int64_t k = 0; k < 4; ++k) {
              const double cx = std::floor(px) + static_cast<double>(k % 2),
                           cy = std::floor(py) + static_cast<double>(k / 2);
              if (cx < 0 || cx > static_cast<double>(wp - 1) || cy < 0 || cy > static_cast<double>(hp - 1))
                continue;
              const double weight = (1 - std::fabs(px - cx)) * (1 - std::fabs(py - cy));
              const std::vector<double>& at =
                  qkv[static_cast<size_t>(static_cast<int64_t>(cy) * wp + static_cast<int64_t>(cx))];
              for (int64_t e = 0; e < d; ++e) {
                keys[i * d + e] += weight * at[static_cast<size_t>(co + h * d + e)];
                values[i * d + e] += weight * at[static_cast<size_t>(2 * co + h * d + e)];
              }
            }
          }
          for (int64_t i = 0; i < w * w; ++i) {
            const std::vector<double>& q = qkv[static_cast<size_t>((jy * w + i / w) * wp + jx * w + i % w)];
            std::vector<double> p;
            for (int64_t j = 0; j < w * w; ++j) {
              double s = 0;
              for (int64_t e = 0; e < d; ++e) s += q[static_cast<size_t>(h * d + e)] * keys[j * d + e];
              s *= scale;
              if (params.boolean("rel_pos_bias"))
                s += weights.at("rel_pos_bias_table")
                         [((i / w - j / w + w - 1) * (2 * w - 1) + (i % w - j % w + w - 1)) * heads + h];
              p.push_back(s);
            }
            ref::softmax_row(p, std::vector<char>(p.size(), 1));
            for (int64_t j = 0; j < w * w; ++j)
              for (int64_t e = 0; e < d; ++e)
                mixed[static_cast<size_t>(i)][static_cast<size_t>(h * d + e)] +=
                    p[static_cast<size_t>(j)] * values[j * d + e];
          }
        }
        for (int64_t i = 0; i < w * w; ++i) {
          const int64_t y = jy * w + i / w - top, z = jx * w + i % w - left;
          if (y < 0 || y >= hg || z < 0 || z >= wg) continue;
          const std::vector<double> result = project("proj", mixed[static_cast<size_t>(i)]);
          for (int64_t ch = 0; ch < co; ++ch)
            out[((b * co + ch) * hg + y) * wg + z] = result[static_cast<size_t>(ch)];
        }
      }
  }
  return {{"out", out}};
}

ATTNBENCH_REFERENCE(vsa, vsa);

}  // namespace
}  // namespace attnbench
