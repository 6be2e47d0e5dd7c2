// Reference of `power_attention`: the predicate of each pattern, pair by pair.
#include <cmath>
#include <cstdlib>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// Whether a query of block bq may read block bk by the pattern alone.
bool reads(const Params& params, int64_t bq, int64_t bk) {
  const int64_t delta = std::abs(bq - bk);
  const std::string& pattern = params.choice("pattern");
  if (pattern == "power") {
    if (bk < params.integer("sink_blocks") || delta < params.integer("window_blocks")) return true;
    return delta == 0 || (params.boolean("power_blocks") && (delta & (delta - 1)) == 0);
  }
  if (pattern == "sliding_window") return delta < 9 || bk == 0;
  if (pattern == "stride_slash") return delta < 6 || bk == 0 || delta % params.integer("stride_blocks") == 0;
  if (pattern == "dilated") return delta % 2 == 0 && delta < 20;
  const int64_t x = bq ^ bk, y = bq | bk;  // longnet
  if (x < 8) return true;
  if (x < 16 && y % 2 == 0) return true;
  if (x < 32 && y % 4 == 0) return true;
  if (x < 64 && y % 8 == 0) return true;
  return x < 128 && y % 16 == 0;
}

RefMap power_attention_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const int64_t kv_heads = k.dim(1), m = k.dim(2), b = params.integer("block_size");
  const Value& given = params.value("scale");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  const bool causal = params.boolean("causal");
  RefTensor o({batch, heads, n, d});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t s = 0; s < batch; ++s)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = s * kv_heads + h / (heads / kv_heads);
      std::vector<double> p(static_cast<size_t>(m));
      std::vector<char> visible(static_cast<size_t>(m));
      for (int64_t row = 0; row < n; ++row) {
        const int64_t i = m - n + row, from = ((s * heads + h) * n + row) * d;
        for (int64_t j = 0; j < m; ++j) {
          const auto at = static_cast<size_t>(j);
          visible[at] = (!causal || j <= i) && reads(params, i / b, j / b);
          p[at] = 0;
          if (!visible[at]) continue;
          for (int64_t c = 0; c < d; ++c) p[at] += q[from + c] * k[(kv * m + j) * d + c];
          p[at] *= scale;
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j < m; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t c = 0; c < d; ++c)
              o[from + c] += p[static_cast<size_t>(j)] * v[(kv * m + j) * d + c];
      }
    }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(power_attention, power_attention_reference);

}  // namespace
}  // namespace attnbench
