// References of the methods that are one operator: copy, linear, norm, row_softmax, avg_pool, spectrum.
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap linear_reference(const Problem&, const Params&, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  RefTensor rows = x;
  rows.shape = {x.dim(0) * x.dim(1), x.dim(2)};
  RefTensor y = ref::linear(rows, weights.at("weight"), nullptr);
  y.shape = {x.dim(0), x.dim(1), y.dim(1)};
  return {{"y", y}};
}
ATTNBENCH_REFERENCE(linear, linear_reference);

RefMap copy_reference(const Problem&, const Params&, const RefMap& inputs, const RefMap&) {
  return {{"y", inputs.at("x")}};
}
ATTNBENCH_REFERENCE(copy, copy_reference);

RefMap norm_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const bool layer = params.choice("kind") == "layer";
  const int64_t c = x.dim(2);
  RefTensor y(x.shape);
  for (int64_t r = 0; r < x.dim(0) * x.dim(1); ++r) {
    double mean = 0, square = 0;
    for (int64_t i = 0; layer && i < c; ++i) mean += x[r * c + i] / static_cast<double>(c);
    for (int64_t i = 0; i < c; ++i) square += (x[r * c + i] - mean) * (x[r * c + i] - mean);
    const double scale = 1 / std::sqrt(square / static_cast<double>(c) + 1e-5);
    for (int64_t i = 0; i < c; ++i)
      y[r * c + i] =
          (x[r * c + i] - mean) * scale * weights.at("gain")[i] + (layer ? weights.at("offset")[i] : 0.0);
  }
  return {{"y", y}};
}
ATTNBENCH_REFERENCE(norm, norm_reference);

RefMap row_softmax_reference(const Problem& problem, const Params&, const RefMap& inputs, const RefMap&) {
  const RefTensor& x = inputs.at("x");
  const int64_t n = x.dim(2), m = x.dim(3);
  RefTensor y(x.shape);
  for (int64_t r = 0; r < x.dim(0) * x.dim(1) * n; ++r) {
    const int64_t seen = problem.causal ? std::min(m, r % n + (m - n) + 1) : m;
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = 0; j < seen; ++j) top = std::max(top, x[r * m + j]);
    for (int64_t j = 0; j < seen; ++j) sum += std::exp(x[r * m + j] - top);
    for (int64_t j = 0; j < seen; ++j) y[r * m + j] = std::exp(x[r * m + j] - top) / sum;
  }
  return {{"y", y}};
}
ATTNBENCH_REFERENCE(row_softmax, row_softmax_reference);

RefMap avg_pool_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor& x = inputs.at("x");
  const int64_t w = params.integer("window"), rows = x.dim(1) / w, columns = x.dim(2) / w, c = x.dim(3);
  RefTensor y({x.dim(0), rows, columns, c});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t i = 0; i < rows * w; ++i)
      for (int64_t j = 0; j < columns * w; ++j)
        for (int64_t k = 0; k < c; ++k)
          y[((b * rows + i / w) * columns + j / w) * c + k] +=
              x[((b * x.dim(1) + i) * x.dim(2) + j) * c + k] / static_cast<double>(w * w);
  return {{"y", y}};
}
ATTNBENCH_REFERENCE(avg_pool, avg_pool_reference);

/// By definition along one axis after the other.
RefMap spectrum_reference(const Problem&, const Params&, const RefMap& inputs, const RefMap&) {
  using Complex = std::complex<double>;
  const RefTensor& x = inputs.at("x");
  const int64_t planes = x.dim(0) * x.dim(1), h = x.dim(2), w = x.dim(3), half = w / 2 + 1;
  const auto root = [](int64_t k, int64_t n) {
    return std::polar(1.0, -2 * M_PI * static_cast<double>(k % n) / static_cast<double>(n));
  };
  RefTensor y({x.dim(0), x.dim(1), h, half, 2});
  std::vector<Complex> rows(static_cast<size_t>(h * half));
  for (int64_t p = 0; p < planes; ++p) {
    for (int64_t i = 0; i < h; ++i)
      for (int64_t v = 0; v < half; ++v) {
        Complex sum = 0;
        for (int64_t j = 0; j < w; ++j) sum += x[(p * h + i) * w + j] * root(v * j, w);
        rows[static_cast<size_t>(i * half + v)] = sum;
      }
    for (int64_t u = 0; u < h; ++u)
      for (int64_t v = 0; v < half; ++v) {
        Complex sum = 0;
        for (int64_t i = 0; i < h; ++i) sum += rows[static_cast<size_t>(i * half + v)] * root(u * i, h);
        y[((p * h + u) * half + v) * 2] = sum.real();
        y[((p * h + u) * half + v) * 2 + 1] = sum.imag();
      }
  }
  return {{"y", y}};
}
ATTNBENCH_REFERENCE(spectrum, spectrum_reference);

}  // namespace
}  // namespace attnbench
