// Reference of `dense` and `naive`: softmax attention over every (causal) pair, row by row.
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap dense_reference(const Problem& problem, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const int64_t kv_heads = k.dim(1), m = k.dim(2), e = v.dim(3);
  const Value& given = params.value("scale");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  RefTensor o({batch, heads, n, e});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = b * kv_heads + h * kv_heads / heads;
      std::vector<double> p(static_cast<size_t>(m));
      std::vector<char> visible(static_cast<size_t>(m), 1);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = (b * heads + h) * n + i;
        for (int64_t j = 0; j < m; ++j) {
          const auto at = static_cast<size_t>(j);
          visible[at] = !problem.causal || j <= i + (m - n);
          p[at] = 0;
          if (!visible[at]) continue;
          for (int64_t c = 0; c < d; ++c) p[at] += q[row * d + c] * k[(kv * m + j) * d + c];
          p[at] *= scale;
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j < m; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t c = 0; c < e; ++c)
              o[row * e + c] += p[static_cast<size_t>(j)] * v[(kv * m + j) * e + c];
      }
    }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(dense, dense_reference);
ATTNBENCH_REFERENCE(naive, dense_reference);

}  // namespace
}  // namespace attnbench
