// Reference of hilo: step by step from the card, on the padded grid in row-major order.
#include "reference/vision_reference.hpp"

namespace attnbench {

namespace {

using namespace vision_ref;

RefMap hilo(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), c = params.integer("dim"), heads = params.integer("num_heads"),
                d = c / heads;
  const int64_t hg = params.integer("grid_h"), wg = params.integer("grid_w"),
                s = params.integer("window_size");
  const double scale = scale_of(params, d);
  int64_t lo_heads = static_cast<int64_t>(static_cast<double>(heads) * params.number("alpha"));
  if (s == 1) lo_heads = heads;
  const int64_t hi_heads = heads - lo_heads, ch = hi_heads * d;

  const int64_t hp = s * ((hg + s - 1) / s), wp = s * ((wg + s - 1) / s);
  const RefTensor xp = pad_grid(x, hg, wg, hp, wp);
  RefTensor both({batch, hp * wp, c});  // [Hi-Fi ; Lo-Fi]
  const auto place = [&](const RefTensor& y, int64_t column) {
    const int64_t width = y.dim(2);
    for (int64_t r = 0; r < batch * hp * wp; ++r)
      for (int64_t i = 0; i < width; ++i) both[r * c + column + i] = y[r * width + i];
  };

  if (hi_heads > 0) {
    const RefTensor qkv = linear(weights, "h_qkv", xp);
    RefTensor o({batch, hp * wp, ch});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t y = 0; y < hp; ++y)
        for (int64_t z = 0; z < wp; ++z) {
          std::vector<int64_t> keys;
          for (int64_t ky = y / s * s; ky < y / s * s + s; ++ky)
            for (int64_t kz = z / s * s; kz < z / s * s + s; ++kz) keys.push_back((b * hp + ky) * wp + kz);
          const int64_t row = (b * hp + y) * wp + z;
          for (int64_t h = 0; h < hi_heads; ++h)
            attend(Rows{qkv, h * d}.at(row), {qkv, ch + h * d}, {qkv, 2 * ch + h * d}, keys, {}, scale, d,
                   &o[row * ch + h * d]);
        }
    place(linear(weights, "h_proj", o), 0);
  }

  if (lo_heads > 0) {
    RefTensor pooled({batch, (hp / s) * (wp / s), c});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t y = 0; y < hp; ++y)
        for (int64_t z = 0; z < wp; ++z)
          for (int64_t i = 0; i < c; ++i)
            pooled[((b * (hp / s) + y / s) * (wp / s) + z / s) * c + i] +=
                xp[((b * hp + y) * wp + z) * c + i] / static_cast<double>(s * s);
    const RefTensor o =
        dense(linear(weights, "l_q", xp), linear(weights, "l_kv", pooled), lo_heads, d, scale);
    place(linear(weights, "l_proj", o), ch);
  }
  return {{"out", crop_grid(both, hg, wg, hp, wp)}};
}

ATTNBENCH_REFERENCE(hilo, hilo);

}  // namespace
}  // namespace attnbench
