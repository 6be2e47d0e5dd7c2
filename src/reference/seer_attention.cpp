// Reference of `seer_attention`: the card's steps in double, masks asked pair by pair.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// Rotates x[0, width) in halves as token `position`.
void rotate(double* x, int64_t width, int64_t position, double theta) {
  for (int64_t i = 0; i < width / 2; ++i) {
    const double angle = static_cast<double>(position) *
                         std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
    const double a = x[i], b = x[i + width / 2];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + width / 2] = b * std::cos(angle) + a * std::sin(angle);
  }
}

/// Token-major [B, N, H, D] element.
double at(const RefTensor& t, int64_t b, int64_t n, int64_t h, int64_t d) {
  return t[((b * t.dim(1) + n) * t.dim(2) + h) * t.dim(3) + d];
}

std::vector<std::string> pools(const Value& given) {
  std::vector<std::string> words;
  for (const char* word : {"max", "min", "avg"})
    for (const Value& v : given.as_list())
      if (v.as_string() == word) words.push_back(word);
  return words;
}

/// Block t of head h: the poolings side by side.
std::vector<double> pooled(const RefTensor& x, int64_t b, int64_t h, int64_t t, int64_t block,
                           const std::vector<std::string>& kinds) {
  std::vector<double> out;
  const int64_t first = t * block, last = std::min(x.dim(1), first + block);
  for (const std::string& kind : kinds)
    for (int64_t d = 0; d < x.dim(3); ++d) {
      double value = kind == "max" ? -INFINITY : kind == "min" ? INFINITY : 0.0;
      for (int64_t n = first; n < last; ++n) {
        const double v = at(x, b, n, h, d);
        value = kind == "max" ? std::max(value, v) : kind == "min" ? std::min(value, v) : value + v;
      }
      out.push_back(kind == "avg" ? value / static_cast<double>(last - first) : value);
    }
  return out;
}

std::vector<double> times(const std::vector<double>& x, const RefTensor& w, int64_t h) {
  const int64_t in = w.dim(1), out = w.dim(2);
  std::vector<double> y(static_cast<size_t>(out), 0.0);
  for (int64_t i = 0; i < in; ++i)
    for (int64_t o = 0; o < out; ++o)
      y[static_cast<size_t>(o)] += x[static_cast<size_t>(i)] * w[(h * in + i) * out + o];
  return y;
}

RefMap seer_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                      const RefMap& weights) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), tokens = q.dim(1), heads = q.dim(2), dim = q.dim(3);
  const int64_t keys = k.dim(1), group = heads / k.dim(2), offset = keys - tokens;
  const int64_t block = params.integer("block_size"), hidden = params.integer("gate_hidden");
  const double theta = params.number("rope_theta");
  const bool causal = params.boolean("causal"), dense = tokens == 1;
  const std::vector<std::string> q_pool = pools(params.value("q_pool")),
                                 k_pool = pools(params.value("k_pool"));
  const bool single = q_pool.size() == 1 && hidden == dim && !params.boolean("force_double");
  const int64_t n = (keys + block - 1) / block;
  const std::string& rule = params.choice("sparsity_method");
  const int64_t best =
      rule == "topk"
          ? params.integer("topk_blocks")
          : std::max<int64_t>(1, static_cast<int64_t>((1.0 - std::sqrt(1.0 - params.number("nz_ratio"))) *
                                                      static_cast<double>(n)));
  RefTensor out(q.shape), gate({batch, heads, n, n}), logits({batch, heads, n, n}),
      selected({batch, heads, n, n});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t base = (b * heads + h) * n * n, kv = h / group;
      if (!dense) {
        std::vector<std::vector<double>> qg, kg;
        for (int64_t t = 0; t < n; ++t) {
          std::vector<double> x = pooled(q, b, h, t, block, q_pool), y = pooled(k, b, kv, t, block, k_pool);
          if (!single) x = times(x, weights.at("Wq"), h);
          y = times(y, weights.at("Wk"), single ? h : kv);
          if (params.boolean("gate_rope")) {
            rotate(x.data(), hidden, t * block, theta);
            rotate(y.data(), hidden, t * block, theta);
          }
          qg.push_back(x), kg.push_back(y);
        }
        for (int64_t i = 0; i < n; ++i) {
          const int64_t seen = causal ? i + 1 : n, row = base + i * n;
          std::vector<double> s(static_cast<size_t>(n), 0.0);
          std::vector<char> visible(static_cast<size_t>(n));
          for (int64_t t = 0; t < seen; ++t) {
            const auto& x = qg[static_cast<size_t>(i)];
            const auto& y = kg[static_cast<size_t>(t)];
            s[static_cast<size_t>(t)] = std::inner_product(x.begin(), x.end(), y.begin(), 0.0) /
                                        std::sqrt(static_cast<double>(hidden));
            visible[static_cast<size_t>(t)] = 1;
            logits[row + t] = s[static_cast<size_t>(t)];
          }
          std::vector<double> g = s;
          ref::softmax_row(g, visible);
          for (int64_t t = 0; t < seen; ++t) {
            gate[row + t] = g[static_cast<size_t>(t)];
            int64_t before = 0;
            for (int64_t u = 0; u < seen; ++u)
              before += s[static_cast<size_t>(u)] > s[static_cast<size_t>(t)] ||
                        (s[static_cast<size_t>(u)] == s[static_cast<size_t>(t)] && u < t);
            const bool chosen =
                rule == "threshold" ? g[static_cast<size_t>(t)] > params.number("threshold") : before < best;
            selected[row + t] = chosen || (params.boolean("last_block_dense") && i >= n - 2) ||
                                (params.boolean("force_diagonal") && t == i);
          }
        }
      }
      std::vector<double> turned(static_cast<size_t>(keys * dim));
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t d = 0; d < dim; ++d) turned[static_cast<size_t>(j * dim + d)] = at(k, b, j, kv, d);
        rotate(turned.data() + j * dim, dim, j, theta);
      }
      for (int64_t r = 0; r < tokens; ++r) {
        std::vector<double> x(static_cast<size_t>(dim)), p(static_cast<size_t>(keys));
        for (int64_t d = 0; d < dim; ++d) x[static_cast<size_t>(d)] = at(q, b, r, h, d);
        rotate(x.data(), dim, r + offset, theta);
        std::vector<char> visible(static_cast<size_t>(keys));
        for (int64_t j = 0; j < keys; ++j) {
          visible[static_cast<size_t>(j)] =
              (!causal || j <= r + offset) && (dense || selected[base + r / block * n + j / block] != 0);
          for (int64_t d = 0; d < dim; ++d)
            p[static_cast<size_t>(j)] += x[static_cast<size_t>(d)] * turned[static_cast<size_t>(j * dim + d)];
          p[static_cast<size_t>(j)] /= std::sqrt(static_cast<double>(dim));
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j < keys; ++j)
          if (visible[static_cast<size_t>(j)])
            for (int64_t d = 0; d < dim; ++d)
              out[((b * tokens + r) * heads + h) * dim + d] += p[static_cast<size_t>(j)] * at(v, b, j, kv, d);
      }
    }
  if (dense) return {{"out", out}};
  return {{"out", out}, {"gate", gate}, {"gate_logits", logits}, {"selected", selected}};
}
ATTNBENCH_REFERENCE(seer_attention, seer_reference);

}  // namespace
}  // namespace attnbench
