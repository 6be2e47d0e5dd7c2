// Reference of `flux_attention`: router, branches and xattn's block rule in double, pairs asked one by one.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;

double at(const RefTensor& t, int64_t b, int64_t n, int64_t h, int64_t d) {
  return t[((b * t.dim(1) + n) * t.dim(2) + h) * t.dim(3) + d];
}

void silu(RefTensor& t) {
  for (double& x : t.data) x /= 1.0 + std::exp(-x);
}

/// The two logits of a batch element.
RefTensor route(const RefTensor& q, int64_t b, const Params& params, const RefMap& w) {
  const int64_t n = q.dim(1), heads = q.dim(2), dim = q.dim(3),
                edge = std::min(params.integer("pool_size"), n);
  const std::string& pooling = params.choice("pooling");
  std::vector<int64_t> tokens;
  if (pooling == "first_token") tokens = {0};
  for (int64_t i = 0; i < n; ++i) {
    if (pooling == "mean" || (pooling == "edges" && i < edge)) tokens.push_back(i);
    if (pooling == "edges" && i >= n - edge) tokens.push_back(i);
  }
  RefTensor x({1, dim});
  for (int64_t i : tokens)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t d = 0; d < dim; ++d)
        x[d] += at(q, b, i, h, d) / static_cast<double>(heads * static_cast<int64_t>(tokens.size()));
  const auto layer = [&](const std::string& name, const RefTensor& in) {
    return ref::linear(in, w.at(name + ".weight"), &w.at(name + ".bias"));
  };
  RefTensor y = layer("encoder.0", x);
  silu(y);
  y = layer("encoder.1", y);
  y = layer("head.0", y);
  silu(y);
  y = layer("head.1", y);
  silu(y);
  return layer("head.2", y);
}

/// xattn's blocks of one head: keep[i][j].
std::vector<std::vector<char>> estimate(const RefTensor& q, const RefTensor& k, int64_t b, int64_t h,
                                        int64_t kv, const Params& params) {
  const int64_t n = q.dim(1), dim = q.dim(3), block = params.integer("block_size"),
                stride = params.integer("xattn_stride");
  const int64_t rows = (n + stride - 1) / stride, nb = (n + block - 1) / block, cell = block / stride;
  const double threshold = params.number("xattn_threshold");
  const auto value = [&](const RefTensor& t, int64_t token, int64_t head, int64_t d) {
    return token < n ? at(t, b, token, head, d) : 0.0;
  };
  std::vector<Row> mass(static_cast<size_t>(nb), Row(static_cast<size_t>(nb), 0.0));
  for (int64_t a = 0; a < rows; ++a) {
    Row p(static_cast<size_t>(rows));
    std::vector<char> visible(static_cast<size_t>(rows));
    for (int64_t c = 0; c <= a; ++c) {
      visible[static_cast<size_t>(c)] = 1;
      for (int64_t t = 0; t < stride; ++t)
        for (int64_t d = 0; d < dim; ++d)
          p[static_cast<size_t>(c)] +=
              value(q, a * stride + stride - 1 - t, h, d) * value(k, c * stride + t, kv, d);
      p[static_cast<size_t>(c)] /= std::sqrt(static_cast<double>(dim)) * static_cast<double>(stride);
    }
    ref::softmax_row(p, visible);
    for (int64_t c = 0; c <= a; ++c)
      mass[static_cast<size_t>(a / cell)][static_cast<size_t>(c / cell)] += p[static_cast<size_t>(c)];
  }
  int64_t power = 1;
  while (power < n) power *= 2;
  const int64_t chunk =
      std::max<int64_t>(std::min(std::max<int64_t>(2048, power), (int64_t{1} << 28) / power), 2048);
  std::vector<std::vector<char>> keep(static_cast<size_t>(nb), std::vector<char>(static_cast<size_t>(nb), 0));
  for (int64_t i = 0; i < nb; ++i) {
    const Row& A = mass[static_cast<size_t>(i)];
    const bool first_chunk = i * block < chunk;
    const double goal = threshold * std::accumulate(A.begin(), A.begin() + i + 1, 0.0);
    auto& row = keep[static_cast<size_t>(i)];
    row[static_cast<size_t>(i)] = 1;
    double base = A[static_cast<size_t>(i)];
    std::vector<int64_t> others;
    for (int64_t j = first_chunk ? 0 : 1; j < i; ++j) others.push_back(j);
    if (!first_chunk && i > 0) base += A[0];
    std::stable_sort(others.begin(), others.end(), [&A](int64_t x, int64_t y) {
      return A[static_cast<size_t>(x)] > A[static_cast<size_t>(y)];
    });
    Row sums{base};
    for (int64_t j : others) sums.push_back(sums.back() + A[static_cast<size_t>(j)]);
    for (size_t p = 1; p <= others.size(); ++p) {
      bool kept = false;
      if (first_chunk)
        kept = threshold > 0 && (p == 1 || sums[p - 2] < goal);
      else
        kept = sums[p - 1] < goal;
      if (!kept) break;
      row[static_cast<size_t>(others[p - 1])] = 1;
    }
    row[0] = 1;
  }
  return keep;
}

RefMap flux_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), n = q.dim(1), heads = q.dim(2), dim = q.dim(3), m = k.dim(1);
  const int64_t group = heads / k.dim(2), block = params.integer("block_size"), offset = m - n;
  const bool decode = n == 1 && m > 1;
  const double scale =
      params.is_null("scale") ? 1.0 / std::sqrt(static_cast<double>(dim)) : params.number("scale");
  const std::string force = params.choice("force");
  std::string sparse = params.choice("sparse_type"), full = params.choice("full_type");
  if (decode) sparse = "streaming", full = "full";
  const int64_t sinks = (params.integer("sink_size") + block - 1) / block;
  const int64_t window = params.integer("local_window"), near = (window + block - 1) / block;
  const int64_t nb = (m + block - 1) / block;
  const bool xattn = (sparse == "xattn" && force != "full") || (full == "xattn" && force != "sparse");
  RefTensor out(q.shape), r({batch}), logits({batch, 2}), selected({batch, heads, nb, nb});
  for (int64_t b = 0; b < batch; ++b) {
    if (!decode) {
      const RefTensor l = route(inputs.at("q_router"), b, params, weights);
      logits[b * 2] = l[0], logits[b * 2 + 1] = l[1];
    }
    if (force == "router") r[b] = logits[b * 2 + 1] > logits[b * 2];
    if (force == "full") r[b] = 1;
    if (force == "list") {
      // The last of the evenly spaced layers.
      const int64_t layers = params.integer("num_layers");
      const auto count =
          static_cast<int64_t>(std::llround(params.number("sparse_ratio") * static_cast<double>(layers)));
      r[b] = !(count > (layers - 1) * count / layers);
    }
    const std::string branch = r[b] != 0 ? full : sparse;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = h / group;
      std::vector<std::vector<char>> keep;
      if (branch == "xattn") keep = estimate(q, k, b, h, kv, params);
      for (int64_t i = 0; xattn && i < nb; ++i)
        for (int64_t c = 0; c <= i; ++c)
          selected[((b * heads + h) * nb + i) * nb + c] =
              branch == "xattn"       ? keep[static_cast<size_t>(i)][static_cast<size_t>(c)] != 0
              : branch == "full"      ? true
              : branch == "streaming" ? c < sinks || i - c < near
                                      : false;
      for (int64_t t = 0; t < n; ++t) {
        const int64_t place = t + offset;
        Row p(static_cast<size_t>(m));
        std::vector<char> visible(static_cast<size_t>(m));
        for (int64_t j = 0; j <= place; ++j) {
          const bool streamed = j / block < sinks || place / block - j / block < near;
          visible[static_cast<size_t>(j)] =
              branch == "full"        ? true
              : branch == "none"      ? false
              : branch == "local"     ? place - j < window
              : branch == "streaming" ? streamed
              : branch == "triangle"  ? streamed || t >= n - params.integer("triangle_n_last")
                                      : keep[static_cast<size_t>(t / block)][static_cast<size_t>(j / block)];
          for (int64_t d = 0; d < dim; ++d)
            p[static_cast<size_t>(j)] += scale * at(q, b, t, h, d) * at(k, b, j, kv, d);
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j <= place; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t d = 0; d < dim; ++d)
              out[((b * n + t) * heads + h) * dim + d] += p[static_cast<size_t>(j)] * at(v, b, j, kv, d);
      }
    }
  }
  RefMap result{{"out", out}, {"r", r}};
  if (!decode) result["logits"] = logits;
  if (xattn) result["selected"] = selected;
  return result;
}
ATTNBENCH_REFERENCE(flux_attention, flux_reference);

}  // namespace
}  // namespace attnbench
