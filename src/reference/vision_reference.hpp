// Double-precision pieces that the references of the hilo card share: projections by weight name and one
// attention row over an explicit list of keys. Not used by any method.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "reference/reference.hpp"

namespace attnbench::vision_ref {

/// The linear layer `<name>.weight`, `<name>.bias` (none: no bias) of x [..., in].
inline RefTensor linear(const RefMap& weights, const std::string& name, const RefTensor& x) {
  const auto bias = weights.find(name + ".bias");
  return ref::linear(x, weights.at(name + ".weight"), bias == weights.end() ? nullptr : &bias->second);
}

/// D channels of row r of a tensor [rows..., width], starting at `column`.
struct Rows {
  const RefTensor& tensor;
  int64_t column;
  const double* at(int64_t r) const { return tensor.data.data() + r * tensor.shape.back() + column; }
};

/// out[0..D) = sum_j softmax_j(scale q . k_j + bias_j) v_j over the listed rows; no bias: 0.
inline void attend(const double* q, const Rows& k, const Rows& v, const std::vector<int64_t>& keys,
                   const std::vector<double>& bias, double scale, int64_t d, double* out) {
  std::vector<double> p(keys.size());
  for (size_t j = 0; j < keys.size(); ++j) {
    double s = 0;
    for (int64_t c = 0; c < d; ++c) s += q[c] * k.at(keys[j])[c];
    p[j] = scale * s + (bias.empty() ? 0.0 : bias[j]);
  }
  ref::softmax_row(p, std::vector<char>(keys.size(), 1));
  for (int64_t c = 0; c < d; ++c) {
    double s = 0;
    for (size_t j = 0; j < keys.size(); ++j) s += p[j] * v.at(keys[j])[c];
    out[c] = s;
  }
}

/// Logit scale: qk_scale, or D^-0.5 when it is null.
inline double scale_of(const Params& params, int64_t d) {
  return params.is_null("qk_scale") ? 1.0 / std::sqrt(static_cast<double>(d)) : params.number("qk_scale");
}

/// x [B, Hg * Wg, C] zero-padded bottom and right to hp x wp.
inline RefTensor pad_grid(const RefTensor& x, int64_t hg, int64_t wg, int64_t hp, int64_t wp) {
  const int64_t batch = x.dim(0), c = x.dim(2);
  RefTensor y({batch, hp * wp, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < hg; ++r)
      for (int64_t s = 0; s < wg; ++s)
        for (int64_t i = 0; i < c; ++i)
          y[((b * hp + r) * wp + s) * c + i] = x[((b * hg + r) * wg + s) * c + i];
  return y;
}

/// The first hg x wg places of a padded grid.
inline RefTensor crop_grid(const RefTensor& x, int64_t hg, int64_t wg, int64_t hp, int64_t wp) {
  const int64_t batch = x.dim(0), c = x.dim(2);
  RefTensor y({batch, hg * wg, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < hg; ++r)
      for (int64_t s = 0; s < wg; ++s)
        for (int64_t i = 0; i < c; ++i)
          y[((b * hg + r) * wg + s) * c + i] = x[((b * hp + r) * wp + s) * c + i];
  return y;
}

/// Dense attention of q [B, N, H D] to kv [B, M, 2 H D] whose columns are (k|v, head, d): [B, N, H D].
inline RefTensor dense(const RefTensor& q, const RefTensor& kv, int64_t heads, int64_t d, double scale) {
  const int64_t batch = q.dim(0), n = q.dim(1), m = kv.dim(1), c = heads * d;
  RefTensor o({batch, n, c});
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<int64_t> keys;
    for (int64_t j = 0; j < m; ++j) keys.push_back(b * m + j);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i)
        attend(Rows{q, h * d}.at(b * n + i), {kv, h * d}, {kv, c + h * d}, keys, {}, scale, d,
               &o[(b * n + i) * c + h * d]);
  }
  return o;
}

/// Columns [begin, begin + count) of the last axis.
inline RefTensor columns(const RefTensor& x, int64_t begin, int64_t count) {
  const int64_t width = x.shape.back(), rows = x.numel() / width;
  std::vector<int64_t> shape = x.shape;
  shape.back() = count;
  RefTensor y(shape);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < count; ++i) y[r * count + i] = x[r * width + begin + i];
  return y;
}

}  // namespace attnbench::vision_ref
