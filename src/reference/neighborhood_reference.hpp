// Attention over neighbourhoods in double precision, straight from the cards: windows as lists of
// coordinates, pair by pair. Shared by the references of the two cards, with nothing of the methods.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "reference/reference.hpp"

namespace attnbench::ref {

struct NeighborhoodAxis {
  int64_t extent = 1, window = 1, stride = 1, dilation = 1;
  bool causal = false;
};

/// Coordinates that coordinate i of an axis sees, ascending.
inline std::vector<int64_t> window_members(const NeighborhoodAxis& a, int64_t i) {
  const int64_t g = i % a.dilation, p = i / a.dilation;
  const int64_t length = (a.extent - g + a.dilation - 1) / a.dilation;
  int64_t first, last;
  if (a.causal) {
    const int64_t leader = std::min(p / a.stride * a.stride + a.stride - 1, length - 1);
    first = std::max<int64_t>(leader - a.window + 1, 0), last = p;
  } else {
    const int64_t leader = std::min(p / a.stride * a.stride + a.stride / 2, length - 1);
    first = std::max<int64_t>(0, std::min(leader - a.window / 2, length - a.window));
    last = first + a.window - 1;
  }
  std::vector<int64_t> members;
  for (int64_t x = first; x <= last; ++x) members.push_back(x * a.dilation + g);
  return members;
}

/// `name` of the parameters as one entry an axis, or `otherwise`.
inline std::vector<int64_t> by_axis(const Params& params, const std::string& name, size_t rank,
                                    std::vector<int64_t> otherwise) {
  if (params.is_null(name)) return otherwise;
  std::vector<int64_t> v;
  for (const Value& e : params.value(name).as_list())
    v.push_back(e.is_bool() ? (e.as_bool() ? 1 : 0) : static_cast<int64_t>(e.as_double()));
  while (v.size() < rank) v.push_back(v[0]);
  return v;
}

/// Rows of the output, indices into it as [rows, D]. q, k, v with tokens row-major between the batch and the
/// last axes. `heads_first`: [B, H, tokens.., D], else [B, tokens.., H, D]. `bias(h, i, j)` is added to the
/// scaled score of query coordinates i and key coordinates j.
using NeighborhoodBias =
    std::function<double(int64_t h, const std::vector<int64_t>& i, const std::vector<int64_t>& j)>;
inline RefTensor neighborhood(const std::vector<NeighborhoodAxis>& axes, double scale, bool heads_first,
                              const RefMap& inputs, const std::vector<int64_t>& rows,
                              const NeighborhoodBias& bias = {}) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const size_t rank = axes.size();
  const size_t head_axis = heads_first ? 1 : rank + 1;
  const int64_t heads = q.dim(head_axis), kv_heads = k.dim(head_axis), d = q.dim(rank + 2);
  int64_t n = 1;
  for (const NeighborhoodAxis& a : axes) n *= a.extent;
  const auto row = [&](int64_t b, int64_t h, int64_t token, int64_t of) {
    return heads_first ? ((b * of + h) * n + token) * d : ((b * n + token) * of + h) * d;
  };
  const RefTensor* extra_k = inputs.contains("extra_k") ? &inputs.at("extra_k") : nullptr;
  const RefTensor* extra_v = extra_k ? &inputs.at("extra_v") : nullptr;
  const auto count = static_cast<int64_t>(rows.size());
  RefTensor o({count, d});
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t r = 0; r < count; ++r) {
    const int64_t index = rows[static_cast<size_t>(r)];
    const int64_t i = heads_first ? index % n : index / heads % n;
    const int64_t h = heads_first ? index / n % heads : index % heads;
    const int64_t b = index / n / heads;
    std::vector<int64_t> at(rank), place(rank);
    std::vector<std::vector<int64_t>> members(rank);
    int64_t rest = i;
    for (size_t a = rank; a-- > 0;) {
      at[a] = rest % axes[a].extent;
      rest /= axes[a].extent;
      members[a] = window_members(axes[a], at[a]);
    }
    // The product of the axes' members, as coordinates and as tokens.
    std::vector<std::vector<int64_t>> keys{{}};
    for (size_t a = 0; a < rank; ++a) {
      std::vector<std::vector<int64_t>> longer;
      for (const auto& head : keys)
        for (int64_t x : members[a]) {
          longer.push_back(head);
          longer.back().push_back(x);
        }
      keys = std::move(longer);
    }
    const int64_t more = extra_k ? extra_k->dim(1) : 0;
    const int64_t g = h / (heads / kv_heads);
    std::vector<double> p;
    std::vector<const double*> values;
    const double* query = q.data.data() + index * d;
    const auto score = [&](const double* key) {
      double s = 0;
      for (int64_t c = 0; c < d; ++c) s += query[c] * key[c];
      return s * scale;
    };
    for (const auto& y : keys) {
      int64_t token = 0;
      for (size_t a = 0; a < rank; ++a) token = token * axes[a].extent + y[a];
      p.push_back(score(k.data.data() + row(b, g, token, kv_heads)) + (bias ? bias(h, at, y) : 0.0));
      values.push_back(v.data.data() + row(b, g, token, kv_heads));
    }
    for (int64_t x = 0; x < more; ++x) {
      const int64_t from = ((b * more + x) * kv_heads + g) * d;
      p.push_back(score(extra_k->data.data() + from));
      values.push_back(extra_v->data.data() + from);
    }
    softmax_row(p, std::vector<char>(p.size(), 1));
    double* out = o.data.data() + r * d;
    for (size_t x = 0; x < p.size(); ++x)
      for (int64_t c = 0; c < d; ++c) out[c] += p[x] * values[x][c];
  }
  return o;
}

/// The axes that a card's parameters describe; `window` is what null stands for by rank, cut to the grid.
inline std::vector<NeighborhoodAxis> neighborhood_axes(const Problem& problem, const Params& params,
                                                       const std::vector<std::vector<int64_t>>& window,
                                                       bool with_stride) {
  const std::vector<int64_t> grid =
      problem.grid.empty() ? std::vector<int64_t>{problem.length} : problem.grid;
  const size_t rank = grid.size();
  const std::vector<int64_t> ones(rank, 1), dilation = by_axis(params, "dilation", rank, ones);
  std::vector<int64_t> k = window[rank - 1];
  for (size_t a = 0; a < rank; ++a) k[a] = std::max<int64_t>(1, std::min(k[a], grid[a] / dilation[a]));
  k = by_axis(params, "window_size", rank, k);
  const std::vector<int64_t> stride = with_stride ? by_axis(params, "stride", rank, ones) : ones;
  const std::vector<int64_t> causal =
      by_axis(params, "causal", rank, std::vector<int64_t>(rank, problem.causal ? 1 : 0));
  std::vector<NeighborhoodAxis> axes;
  for (size_t a = 0; a < rank; ++a) axes.push_back({grid[a], k[a], stride[a], dilation[a], causal[a] != 0});
  return axes;
}

}  // namespace attnbench::ref
