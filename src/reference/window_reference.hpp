// The window layers' reference, transcribed from the hilo card on the padded, rolled map. Not used by any
// method.
#pragma once
#include <algorithm>

#include "reference/vision_reference.hpp"

namespace attnbench::vision_ref {

struct WindowRule {
  int64_t w = 7, t = 0;
  bool rel_pos_bias = false, crop_before_proj = false;
};

/// Swin's rule: a window that covers the smaller side is that side, unshifted.
inline WindowRule swin_rule(const Params& params) {
  WindowRule r;
  r.w = params.integer("win");
  r.t = params.integer("shift");
  r.rel_pos_bias = params.boolean("rel_pos_bias");
  const int64_t side = std::min(params.integer("grid_h"), params.integer("grid_w"));
  if (params.boolean("clamp_window") && side <= r.w) {
    r.w = side;
    r.t = 0;
  }
  return r;
}

inline RefMap window_layer(const Params& params, const WindowRule& rule, const RefMap& inputs,
                           const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), c = params.integer("dim"), heads = params.integer("num_heads"),
                d = c / heads;
  const int64_t hg = params.integer("grid_h"), wg = params.integer("grid_w"), w = rule.w, t = rule.t;
  const int64_t hp = w * ((hg + w - 1) / w), wp = w * ((wg + w - 1) / w);
  const double scale = scale_of(params, d);

  const RefTensor padded = pad_grid(x, hg, wg, hp, wp);
  RefTensor rolled(padded.shape);  // roll by (-t, -t): place (y, x) takes what stood at (y + t, x + t)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t y = 0; y < hp; ++y)
      for (int64_t z = 0; z < wp; ++z)
        for (int64_t i = 0; i < c; ++i)
          rolled[((b * hp + y) * wp + z) * c + i] =
              padded[((b * hp + (y + t) % hp) * wp + (z + t) % wp) * c + i];

  const RefTensor qkv = linear(weights, "qkv", rolled);
  const auto region = [&](int64_t at, int64_t extent) {
    return at < extent - w ? 0 : at < extent - t ? 1 : 2;
  };
  RefTensor o({batch, hp * wp, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t y = 0; y < hp; ++y)
      for (int64_t z = 0; z < wp; ++z) {
        const int64_t row = (b * hp + y) * wp + z;
        for (int64_t h = 0; h < heads; ++h) {
          std::vector<int64_t> keys;
          std::vector<double> bias;
          for (int64_t ky = y - y % w; ky < y - y % w + w; ++ky)
            for (int64_t kz = z - z % w; kz < z - z % w + w; ++kz) {
              keys.push_back((b * hp + ky) * wp + kz);
              double add = 0;
              if (rule.rel_pos_bias)
                add += weights.at(
                    "rel_pos_bias_table")[((y - ky + w - 1) * (2 * w - 1) + (z - kz + w - 1)) * heads + h];
              if (t > 0 && (region(y, hp) != region(ky, hp) || region(z, wp) != region(kz, wp))) add -= 100.0;
              bias.push_back(add);
            }
          attend(Rows{qkv, h * d}.at(row), {qkv, c + h * d}, {qkv, 2 * c + h * d}, keys, bias, scale, d,
                 &o[row * c + h * d]);
        }
      }

  const RefTensor y = rule.crop_before_proj ? o : linear(weights, "proj", o);
  RefTensor back(y.shape);  // roll by (+t, +t)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < hp; ++r)
      for (int64_t s = 0; s < wp; ++s)
        for (int64_t i = 0; i < c; ++i)
          back[((b * hp + (r + t) % hp) * wp + (s + t) % wp) * c + i] = y[((b * hp + r) * wp + s) * c + i];
  RefTensor out = crop_grid(back, hg, wg, hp, wp);
  if (rule.crop_before_proj) out = linear(weights, "proj", out);
  return {{"out", out}};
}

}  // namespace attnbench::vision_ref
