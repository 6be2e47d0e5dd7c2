// Reference of `random_blocks`: a block is chosen when few enough allowed blocks rank before it; pairs tested
// one by one.
#include <algorithm>
#include <cmath>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

RefMap random_blocks_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                               const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), heads = q.dim(1), n = q.dim(2), d = q.dim(3);
  const int64_t kv_heads = k.dim(1), m = k.dim(2);
  const Value& given = params.value("scale");
  const double scale = given.is_null() ? 1.0 / std::sqrt(static_cast<double>(d)) : given.as_double();
  const int64_t block = params.integer("block_size"), columns = (m + block - 1) / block;
  const auto seed = static_cast<uint64_t>(params.integer("pattern_seed"));
  const auto chosen = [&](int64_t r, int64_t c) {
    const int64_t allowed = problem.causal ? r + 1 : columns;
    if (c >= allowed) return false;
    const double wanted = std::round((1.0 - params.number("sparsity")) * static_cast<double>(allowed));
    int64_t before = 0;
    const auto rank = [&](int64_t x) {
      return random_bits(seed, stream_of("random_blocks"), static_cast<uint64_t>(r * columns + x));
    };
    if (problem.causal && c == r) return true;
    if (problem.causal) ++before;  // the diagonal
    for (int64_t x = 0; x < allowed; ++x)
      if (x != c && !(problem.causal && x == r) && (rank(x) < rank(c) || (rank(x) == rank(c) && x < c)))
        ++before;
    return static_cast<double>(before) < std::max(1.0, wanted);
  };
  RefTensor o({batch, heads, n, d});
  for (int64_t i = 0; i < n; ++i) {
    std::vector<char> visible(static_cast<size_t>(m));
    for (int64_t c = 0; c < columns; ++c)
      if (chosen(i / block, c))
        for (int64_t j = c * block; j < std::min(m, (c + 1) * block); ++j)
          visible[static_cast<size_t>(j)] = !problem.causal || j <= i;
    for (int64_t bh = 0; bh < batch * heads; ++bh) {
      const int64_t kv = bh / heads * kv_heads + bh % heads / (heads / kv_heads), row = bh * n + i;
      std::vector<double> p(static_cast<size_t>(m));
      for (int64_t j = 0; j < m; ++j)
        for (int64_t c = 0; c < d; ++c)
          p[static_cast<size_t>(j)] += scale * q[row * d + c] * k[(kv * m + j) * d + c];
      if (!ref::softmax_row(p, visible)) continue;
      for (int64_t j = 0; j < m; ++j)
        if (visible[static_cast<size_t>(j)])
          for (int64_t c = 0; c < d; ++c)
            o[row * d + c] += p[static_cast<size_t>(j)] * v[(kv * m + j) * d + c];
    }
  }
  return {{"o", o}};
}
ATTNBENCH_REFERENCE(random_blocks, random_blocks_reference);

}  // namespace
}  // namespace attnbench
