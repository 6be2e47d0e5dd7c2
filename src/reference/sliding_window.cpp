// Reference of `sliding_window`: the visibility rule tested pair by pair.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap sliding_window_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                                const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const int64_t kv_heads = k.dim(1), m = k.dim(2);
  const Value &given = params.value("scale"), &given_right = params.value("right");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  const int64_t window = params.integer("window"), sinks = params.integer("sinks");
  const int64_t right = !given_right.is_null() ? given_right.as_int() : problem.causal ? 0 : window;
  RefTensor o({batch, heads, n, d});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = b * kv_heads + h / (heads / kv_heads);
      std::vector<double> p(static_cast<size_t>(m));
      std::vector<char> visible(static_cast<size_t>(m));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = (b * heads + h) * n + i, centre = i + m - n;
        for (int64_t j = 0; j < m; ++j) {
          const auto at = static_cast<size_t>(j);
          const bool in_band = centre - j <= window && j - centre <= right;
          visible[at] = (in_band || j < sinks) && (!problem.causal || j <= centre);
          p[at] = 0;
          if (!visible[at]) continue;
          for (int64_t c = 0; c < d; ++c) p[at] += q[row * d + c] * k[(kv * m + j) * d + c];
          p[at] *= scale;
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j < m; ++j) {
          const double weight = p[static_cast<size_t>(j)];
          if (visible[static_cast<size_t>(j)])
            for (int64_t c = 0; c < d; ++c) o[row * d + c] += weight * v[(kv * m + j) * d + c];
        }
      }
    }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(sliding_window, sliding_window_reference);

}  // namespace
}  // namespace attnbench
