// Reference of `moh`: gates token by token, every head in full, then the weighted sum.
#include <algorithm>
#include <cmath>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

std::vector<double> softmax(std::vector<double> x) {
  const double most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - most);
  for (double& v : x) v /= sum;
  return x;
}

/// W x_t for the rows of W.
std::vector<double> scores(const RefMap& weights, const char* name, const RefTensor& x, int64_t t) {
  const RefTensor& w = weights.at(name);
  const int64_t c = w.dim(1);
  std::vector<double> s(static_cast<size_t>(w.dim(0)), 0);
  for (int64_t r = 0; r < w.dim(0); ++r)
    for (int64_t i = 0; i < c; ++i) s[static_cast<size_t>(r)] += w[r * c + i] * x[t * c + i];
  return s;
}

/// The `keep` largest, ties by lower index.
std::vector<size_t> largest(const std::vector<double>& x, int64_t keep) {
  std::vector<size_t> order;
  for (size_t i = 0; i < x.size(); ++i) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&x](size_t a, size_t b) { return x[a] > x[b]; });
  order.resize(static_cast<size_t>(keep));
  return order;
}

RefMap moh_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                     const RefMap& weights) {
  const RefTensor& x = inputs.at("x");
  const int64_t batch = x.dim(0), n = x.dim(1), c = x.dim(2), heads = params.integer("num_heads");
  const int64_t kv_heads =
      params.is_null("num_kv_heads") ? problem.kv_heads_or_heads() : params.integer("num_kv_heads");
  const int64_t shared = params.integer("shared_heads"), keep = params.integer("routed_heads"),
                routed = heads - shared;
  const int64_t d = params.is_null("head_dim") ? c / heads : params.integer("head_dim");
  const double scale =
      params.is_null("scale") ? 1 / std::sqrt(static_cast<double>(d)) : params.number("scale");
  const bool qnorm = params.choice("router") == "qnorm";
  const std::string norm = qnorm ? "binary" : params.choice("gate_norm");
  const auto bias = [&](const char* name) { return weights.contains(name) ? &weights.at(name) : nullptr; };
  const RefTensor qkv = ref::linear(x, weights.at("Wqkv"), bias("bqkv"));
  const int64_t row = (heads + 2 * kv_heads) * d;

  RefTensor gates({batch, n, heads}), selected({batch, n, heads});
  for (int64_t t = 0; t < batch * n; ++t) {
    std::vector<double> g(static_cast<size_t>(heads), 0);
    if (norm == "binary") {
      for (int64_t h = 0; h < shared; ++h) g[static_cast<size_t>(h)] = 1;
      if (keep > 0) {
        std::vector<double> s;
        if (qnorm) {
          for (int64_t h = shared; h < heads; ++h) {
            double square = 0;
            for (int64_t i = 0; i < d; ++i) square += std::pow(qkv[t * row + h * d + i], 2);
            s.push_back(std::sqrt(square));
          }
        } else {
          s = scores(weights, "Wr", x, t);
        }
        for (const size_t e : largest(s, keep)) g[static_cast<size_t>(shared) + e] = 1;
      }
    } else {
      const bool repo = norm == "repo";
      if (shared == 1) {
        g[0] = 1;
      } else if (shared > 1) {
        const std::vector<double> u = softmax(scores(weights, "Ws", x, t));
        for (int64_t h = 0; h < shared; ++h)
          g[static_cast<size_t>(h)] = u[static_cast<size_t>(h)] * (repo ? static_cast<double>(shared) : 1);
      }
      if (keep > 0) {
        const std::vector<double> p = softmax(scores(weights, "Wr", x, t));
        double kept = 0;
        for (const size_t e : largest(p, keep)) kept += p[e];
        for (const size_t e : largest(p, keep))
          g[static_cast<size_t>(shared) + e] =
              repo ? static_cast<double>(keep) * p[e] / std::max(kept, 1.1920929e-7) : p[e];
      }
      if (params.boolean("two_stage") && shared > 0 && keep > 0) {
        const std::vector<double> a = softmax(scores(weights, "Wa", x, t));
        for (int64_t h = 0; h < heads; ++h)
          g[static_cast<size_t>(h)] *= a[h < shared ? 0 : 1] * (repo ? 2 : 1);
      }
    }
    for (int64_t h = 0; h < heads; ++h) {
      gates[t * heads + h] = g[static_cast<size_t>(h)];
      selected[t * heads + h] = g[static_cast<size_t>(h)] != 0;
    }
  }

  RefTensor mixed({batch, n, heads * d});
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv = heads + h / (heads / kv_heads);
      std::vector<double> p(static_cast<size_t>(n));
      std::vector<char> visible(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        const double gate = gates[(b * n + i) * heads + h];
        for (int64_t j = 0; j < n; ++j) {
          visible[static_cast<size_t>(j)] = !params.boolean("causal") || j <= i;
          double dot = 0;
          for (int64_t k = 0; k < d; ++k)
            dot += qkv[(b * n + i) * row + h * d + k] * qkv[(b * n + j) * row + kv * d + k];
          p[static_cast<size_t>(j)] = scale * dot;
        }
        ref::softmax_row(p, visible);
        for (int64_t j = 0; j < n; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t k = 0; k < d; ++k)
              mixed[((b * n + i) * heads + h) * d + k] +=
                  gate * p[static_cast<size_t>(j)] * qkv[(b * n + j) * row + (kv + kv_heads) * d + k];
      }
    }
  return {{"y", ref::linear(mixed, weights.at("Wo"), bias("bo"))}, {"gates", gates}, {"selected", selected}};
}
ATTNBENCH_REFERENCE(moh, moh_reference);

}  // namespace
}  // namespace attnbench
