// Random problems of the unfused neighbourhood operators with their results in double precision: windows as
// lists of coordinates, nothing of the operators' arithmetic. For tests of every backend.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/neighborhood/neighborhood.hpp"
#include "tests/op_testing.hpp"

namespace attnbench::neighborhood_test {

using testing::get;

struct Case {
  NeighborhoodScoresArgs scores;
  NeighborhoodValuesArgs values;
  std::string text;
  int64_t pairs = 0;                             ///< of all heads and batches
  std::vector<double> want_scores, want_values;  ///< scores: -inf where there is no key
  double score_size = 0, value_size = 0;         ///< largest sum of magnitudes behind a result

  Case(Context& ctx, testing::Random& r, DType dtype, NeighborhoodKernel kernel) {
    ElementRule& rule = scores.rule;
    const bool naive = kernel == NeighborhoodKernel::naive, tiled = kernel == NeighborhoodKernel::tiled;
    rule.rank = static_cast<int>(naive ? r.integer(1, 3) : tiled ? 2 : r.integer(1, 2));
    const int64_t window = tiled ? 2 * r.integer(1, 3) + 1 : r.integer(1, 5);
    const int64_t dilation = r.integer(0, 1) ? 1 : r.integer(1, 3);
    int64_t n = 1, w = 1;
    for (size_t a = 0; a < static_cast<size_t>(rule.rank); ++a) {
      rule.dilation[a] = naive ? r.integer(1, 3) : dilation;
      rule.window[a] = naive ? r.integer(1, 4) : window;
      const int64_t least = rule.window[a] * rule.dilation[a];
      rule.grid[a] = least + r.integer(0, rule.rank == 1 ? 150 : rule.rank == 2 ? 14 : 3);
      rule.stride[a] = r.integer(0, 1) ? 1 : r.integer(1, rule.window[a]);
      rule.causal_axis[a] = naive && r.integer(0, 2) == 0;
      n *= rule.grid[a], w *= rule.window[a];
      text += " " + std::to_string(rule.grid[a]) + "/" + std::to_string(rule.window[a]) + "/" +
              std::to_string(rule.dilation[a]) + "/" + std::to_string(rule.stride[a]);
    }
    bool causal = false;
    for (size_t a = 0; a < 3; ++a) causal = causal || rule.causal_axis[a];
    const int64_t batch = r.integer(1, 2), kv_heads = r.integer(1, 2), heads = kv_heads * r.integer(1, 2);
    const int64_t d = tiled ? 32 : r.integer(1, 40), e = tiled ? 32 : r.integer(1, 40);
    scores.kernel = values.kernel = kernel;
    scores.scale = 0.3f;
    values.rule = rule;
    // Heads inside the rows of tokens, as a view.
    const auto tensor = [&](int64_t h, int64_t dim) {
      const Tensor t = testing::random(ctx, dtype, {batch, n, h, dim}, r);
      return r.integer(0, 1) ? t.permute({0, 2, 1, 3}) : testing::random(ctx, dtype, {batch, h, n, dim}, r);
    };
    scores.q = tensor(heads, d), scores.k = tensor(kv_heads, d);
    values.v = tensor(kv_heads, e);
    scores.a = testing::poisoned(ctx, DType::f32, {batch, heads, n, w});
    values.o = testing::poisoned(ctx, dtype, {batch, n, heads, e}).permute({0, 2, 1, 3});
    values.a = testing::random(ctx, DType::f32, {batch, heads, n, w}, r, 0, 1);
    if (!causal && r.integer(0, 1)) {
      int64_t entries = 1;
      for (size_t a = 0; a < static_cast<size_t>(rule.rank); ++a) entries *= 2 * rule.window[a] - 1;
      scores.bias = testing::random(ctx, dtype, {heads, entries}, r);
      text += " bias";
    }
    expect(batch, heads, kv_heads, n, w, d, e);
  }

  /// Largest error and what rounding may make of it.
  std::pair<double, double> check_scores(const Tensor& a) const {
    // Products of exact inputs, summed in f32: an epsilon a term at most.
    const double bound = (static_cast<double>(scores.q.dim(3)) + 4) * epsilon_of(DType::f32) * score_size;
    return {worst(testing::values(a), want_scores), bound};
  }
  std::pair<double, double> check_values(const Tensor& o) const {
    const double w = static_cast<double>(values.a.dim(3));
    const double bound =
        ((w + 4) * epsilon_of(DType::f32) + epsilon_of(values.v.dtype()) + probability_rounding) * value_size;
    return {worst(testing::values(o), want_values), bound};
  }
  double probability_rounding = 0;  ///< of forms whose weights are rounded to the storage type

 private:
  static double worst(const std::vector<double>& got, const std::vector<double>& want) {
    double most = got.size() == want.size() ? 0 : INFINITY;
    for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
      if (got[i] == want[i]) continue;  // -inf included
      const double error = std::abs(got[i] - want[i]);
      most = std::isnan(error) ? INFINITY : std::max(most, error);
    }
    return most;
  }

  /// Places and coordinates that coordinate x of an axis sees.
  static std::vector<int64_t> members(const ElementRule& rule, size_t a, int64_t x) {
    std::vector<int64_t> group;
    int64_t me = 0;
    for (int64_t y = x % rule.dilation[a]; y < rule.grid[a]; y += rule.dilation[a]) {
      if (y == x) me = static_cast<int64_t>(group.size());
      group.push_back(y);
    }
    const int64_t size = static_cast<int64_t>(group.size()), s = rule.stride[a], k = rule.window[a];
    int64_t begin, end;
    if (rule.causal_axis[a]) {
      begin = std::max<int64_t>(0, std::min(me - me % s + s - 1, size - 1) - k + 1), end = me + 1;
    } else {
      begin = std::min(me - me % s + s / 2, size - 1) - k / 2;
      begin = std::max<int64_t>(0, std::min(begin, size - k)), end = begin + k;
    }
    return {group.begin() + begin, group.begin() + end};
  }

  void expect(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t w, int64_t d, int64_t e) {
    const ElementRule& rule = scores.rule;
    const size_t rank = static_cast<size_t>(rule.rank);
    want_scores.assign(static_cast<size_t>(batch * heads * n * w), -INFINITY);
    want_values.assign(static_cast<size_t>(batch * heads * n * e), 0);
    const auto at = [](const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t c) {
      return get(t, b * t.stride(0) + h * t.stride(1) + i * t.stride(2) + c);
    };
    for (int64_t i = 0; i < n; ++i) {
      std::vector<int64_t> x(3, 0);
      int64_t rest = i;
      for (size_t a = rank; a-- > 0; rest /= rule.grid[a]) x[a] = rest % rule.grid[a];
      std::vector<std::vector<int64_t>> m(3, {0});
      for (size_t a = 0; a < rank; ++a) m[a] = members(rule, a, x[a]);
      for (size_t i0 = 0; i0 < m[0].size(); ++i0)
        for (size_t i1 = 0; i1 < m[1].size(); ++i1)
          for (size_t i2 = 0; i2 < m[2].size(); ++i2) {
            const size_t place[3] = {i0, i1, i2};
            int64_t entry = 0, key = 0, table = 0;
            for (size_t a = 0; a < rank; ++a) {
              entry = entry * rule.window[a] + static_cast<int64_t>(place[a]);
              key = key * rule.grid[a] + m[a][place[a]];
              table = table * (2 * rule.window[a] - 1) + (m[a][place[a]] - x[a]) / rule.dilation[a] +
                      rule.window[a] - 1;
            }
            pairs += batch * heads;
            for (int64_t b = 0; b < batch; ++b)
              for (int64_t h = 0; h < heads; ++h) {
                const int64_t g = h / (heads / kv_heads);
                double s = 0, size = 0;
                for (int64_t c = 0; c < d; ++c) {
                  const double t = at(scores.q, b, h, i, c) * at(scores.k, b, g, key, c);
                  s += t, size += std::abs(t);
                }
                s *= static_cast<double>(scores.scale), size *= static_cast<double>(scores.scale);
                if (scores.bias) {
                  const double t = get(scores.bias, h * scores.bias.dim(1) + table);
                  s += t, size += std::abs(t);
                }
                want_scores[static_cast<size_t>(((b * heads + h) * n + i) * w + entry)] = s;
                score_size = std::max(score_size, size);
                const double weight = get(values.a, ((b * heads + h) * n + i) * w + entry);
                for (int64_t c = 0; c < e; ++c)
                  want_values[static_cast<size_t>(((b * heads + h) * n + i) * e + c)] +=
                      weight * at(values.v, b, g, key, c);
                value_size = std::max(value_size, weight * static_cast<double>(w));
              }
          }
    }
  }
};

}  // namespace attnbench::neighborhood_test
