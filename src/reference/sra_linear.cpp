// Reference of sra_linear (card: hilo): adaptive pooling, 1x1 convolution, LayerNorm and GELU on the keys'
// side.
#include <numbers>

#include "reference/reduction_reference.hpp"

namespace attnbench {

namespace {

using namespace vision_ref;

RefMap sra_linear(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), c = params.integer("dim"), heads = params.integer("num_heads"),
                d = c / heads;
  const int64_t hg = params.integer("grid_h"), wg = params.integer("grid_w"), p = params.integer("pool_size");
  RefTensor pooled({batch, p * p, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t y = 0; y < p; ++y)
      for (int64_t z = 0; z < p; ++z) {
        const int64_t y0 = y * hg / p, y1 = ((y + 1) * hg + p - 1) / p;
        const int64_t z0 = z * wg / p, z1 = ((z + 1) * wg + p - 1) / p;
        for (int64_t i = 0; i < c; ++i) {
          double sum = 0;
          for (int64_t gy = y0; gy < y1; ++gy)
            for (int64_t gz = z0; gz < z1; ++gz) sum += x[((b * hg + gy) * wg + gz) * c + i];
          pooled[((b * p + y) * p + z) * c + i] = sum / static_cast<double>((y1 - y0) * (z1 - z0));
        }
      }
  RefTensor kernel = weights.at("sr.weight");
  kernel.shape = {c, c};
  RefTensor xr = ref::linear(pooled, kernel, &weights.at("sr.bias"));
  layer_norm(xr, weights.at("norm.weight"), weights.at("norm.bias"));
  for (double& v : xr.data) v *= 0.5 * (1.0 + std::erf(v / std::numbers::sqrt2));
  const RefTensor o =
      dense(linear(weights, "q", x), linear(weights, "kv", xr), heads, d, scale_of(params, d));
  return {{"out", linear(weights, "proj", o)}};
}

ATTNBENCH_REFERENCE(sra_linear, sra_linear);

}  // namespace
}  // namespace attnbench
