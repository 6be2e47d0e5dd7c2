#include "reference/compare.hpp"

#include <cmath>
#include <limits>

#include "methods/value.hpp"

namespace attnbench {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

}  // namespace

std::string place_text(const std::vector<int64_t>& shape, int64_t index) {
  std::vector<int64_t> at(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    at[axis] = index % shape[axis];
    index /= shape[axis];
  }
  return shape_text(at);
}

Comparison compare(const RefTensor& got, const RefTensor& want) {
  if (got.shape != want.shape)
    throw DataError("shape " + shape_text(got.shape) + " instead of " + shape_text(want.shape));
  Comparison c;
  // Scaled sums, so that large finite values neither overflow nor hide small ones.
  double scale = 0;
  for (const double w : want.data)
    if (std::isfinite(w)) scale = std::max(scale, std::fabs(w));
  if (scale == 0) scale = 1;
  double error = 0, norm = 0;
  int64_t worst = -1;
  for (int64_t i = 0; i < want.numel(); ++i) {
    const double g = got[i], w = want[i];
    if (g == w || (std::isnan(g) && std::isnan(w))) {
      if (std::isfinite(w)) norm += (w / scale) * (w / scale);
      continue;
    }
    if (!std::isfinite(g) || !std::isfinite(w)) {
      c.relative_l2 = c.max_absolute = std::numeric_limits<double>::infinity();
      c.worst_index = i;
      c.worst = place_text(want.shape, i) + ": " + Value(g).str() + " instead of " + Value(w).str();
      return c;
    }
    const double d = std::fabs(g - w);
    error += (d / scale) * (d / scale);
    norm += (w / scale) * (w / scale);
    if (d > c.max_absolute) c.max_absolute = d, worst = i;
  }
  c.relative_l2 = norm > 0 ? std::sqrt(error / norm) : std::sqrt(error) * scale;
  c.worst_index = worst;
  if (worst >= 0)
    c.worst = place_text(want.shape, worst) + ": " + Value(got[worst]).str() + " instead of " +
              Value(want[worst]).str();
  return c;
}

}  // namespace attnbench
