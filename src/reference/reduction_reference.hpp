// Pieces of the spatial-reduction references (card: hilo). Not used by any method.
#pragma once
#include "reference/vision_reference.hpp"

namespace attnbench::vision_ref {

/// LayerNorm over the channels, eps 1e-5, in place.
inline void layer_norm(RefTensor& x, const RefTensor& gain, const RefTensor& offset) {
  const int64_t c = x.shape.back(), rows = x.numel() / c;
  for (int64_t r = 0; r < rows; ++r) {
    double* row = &x[r * c];
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c; ++i) mean += row[i] / static_cast<double>(c);
    for (int64_t i = 0; i < c; ++i) variance += (row[i] - mean) * (row[i] - mean) / static_cast<double>(c);
    for (int64_t i = 0; i < c; ++i)
      row[i] = (row[i] - mean) / std::sqrt(variance + 1e-5) * gain[i] + offset[i];
  }
}

/// PVT's attention layer with a strided convolution and norm on the keys' side; ratio 1: neither.
inline RefMap spatial_reduction(const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), c = params.integer("dim"), heads = params.integer("num_heads"),
                d = c / heads;
  const int64_t hg = params.integer("grid_h"), wg = params.integer("grid_w"), r = params.integer("sr_ratio");
  RefTensor xr = x;
  if (r > 1) {
    const int64_t ho = hg / r, wo = wg / r;
    const RefTensor &weight = weights.at("sr.weight"), &bias = weights.at("sr.bias");
    xr = RefTensor({batch, ho * wo, c});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t y = 0; y < ho; ++y)
        for (int64_t z = 0; z < wo; ++z)
          for (int64_t o = 0; o < c; ++o) {
            double sum = bias[o];
            for (int64_t i = 0; i < c; ++i)
              for (int64_t ky = 0; ky < r; ++ky)
                for (int64_t kz = 0; kz < r; ++kz)
                  sum += weight[((o * c + i) * r + ky) * r + kz] *
                         x[((b * hg + y * r + ky) * wg + z * r + kz) * c + i];
            xr[((b * ho + y) * wo + z) * c + o] = sum;
          }
    layer_norm(xr, weights.at("norm.weight"), weights.at("norm.bias"));
  }
  const RefTensor o =
      dense(linear(weights, "q", x), linear(weights, "kv", xr), heads, d, scale_of(params, d));
  return {{"out", linear(weights, "proj", o)}};
}

}  // namespace attnbench::vision_ref
