// Reference of `dhsa`: the card's steps token by token in double. Scores of gaps, chosen gaps, token scores,
// lists by sorting tokens, masked attention.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Vector = std::vector<double>;

double& at(Vector& v, int64_t i) { return v[static_cast<size_t>(i)]; }
double at(const Vector& v, int64_t i) { return v[static_cast<size_t>(i)]; }

/// Token-major [B, N, H, D] element.
double at(const RefTensor& t, int64_t b, int64_t n, int64_t h, int64_t d) {
  return t[((b * t.dim(1) + n) * t.dim(2) + h) * t.dim(3) + d];
}

double dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// W x + bias with W [out, in].
Vector affine(const RefTensor& w, const RefTensor* bias, const Vector& x, int64_t first, int64_t rows) {
  Vector y(static_cast<size_t>(rows));
  const int64_t in = w.dim(1);
  for (int64_t o = 0; o < rows; ++o) {
    double s = bias ? (*bias)[first + o] : 0.0;
    for (int64_t i = 0; i < in; ++i) s += w[(first + o) * in + i] * at(x, i);
    at(y, o) = s;
  }
  return y;
}

/// Score of the gap in the middle of a window of 2 w tokens.
double predicted(const std::vector<Vector>& window, int64_t heads, bool gated, const RefMap& weights) {
  const auto c = static_cast<int64_t>(window[0].size()), tokens = static_cast<int64_t>(window.size());
  const int64_t w = tokens / 2, d = c / heads;
  const RefTensor &in = weights.at("in_proj_weight"), &in_bias = weights.at("in_proj_bias");
  std::vector<Vector> q, k, v, x;
  for (const Vector& f : window) {
    q.push_back(affine(in, &in_bias, f, 0, c));
    k.push_back(affine(in, &in_bias, f, c, c));
    v.push_back(affine(in, &in_bias, f, 2 * c, c));
  }
  for (int64_t i = 0; i < tokens; ++i) {
    Vector mixed(static_cast<size_t>(c));
    for (int64_t a = 0; a < heads; ++a) {
      Vector s(static_cast<size_t>(tokens));
      for (int64_t j = 0; j < tokens; ++j) {
        for (int64_t e = a * d; e < (a + 1) * d; ++e)
          at(s, j) += at(q[static_cast<size_t>(i)], e) * at(k[static_cast<size_t>(j)], e);
        at(s, j) /= std::sqrt(static_cast<double>(d));
      }
      ref::softmax_row(s, std::vector<char>(s.size(), 1));
      for (int64_t j = 0; j < tokens; ++j)
        for (int64_t e = a * d; e < (a + 1) * d; ++e)
          at(mixed, e) += at(s, j) * at(v[static_cast<size_t>(j)], e);
    }
    Vector y = affine(weights.at("out_proj_weight"), &weights.at("out_proj_bias"), mixed, 0, c);
    const double mean = std::accumulate(y.begin(), y.end(), 0.0) / static_cast<double>(c);
    double variance = 0;
    for (double e : y) variance += (e - mean) * (e - mean) / static_cast<double>(c);
    for (int64_t e = 0; e < c; ++e)
      at(y, e) = (at(y, e) - mean) / std::sqrt(variance + 1e-5) * weights.at("norm_weight")[e] +
                 weights.at("norm_bias")[e];
    x.push_back(y);
  }
  Vector side[2];
  for (int64_t half = 0; half < 2; ++half) {
    Vector share(static_cast<size_t>(w), 1.0 / static_cast<double>(w));
    if (gated) {
      for (int64_t i = 0; i < w; ++i)
        at(share, i) =
            affine(weights.at("pool_gate"), nullptr, x[static_cast<size_t>(half * w + i)], 0, 1)[0];
      ref::softmax_row(share, std::vector<char>(share.size(), 1));
    }
    side[half].assign(static_cast<size_t>(c), 0.0);
    for (int64_t i = 0; i < w; ++i)
      for (int64_t e = 0; e < c; ++e)
        at(side[half], e) += at(share, i) * at(x[static_cast<size_t>(half * w + i)], e);
  }
  Vector features;
  features.insert(features.end(), side[0].begin(), side[0].end());
  features.insert(features.end(), side[1].begin(), side[1].end());
  for (int64_t e = 0; e < c; ++e) features.push_back(std::fabs(at(side[0], e) - at(side[1], e)));
  for (int64_t e = 0; e < c; ++e) features.push_back(at(side[0], e) * at(side[1], e));
  features.push_back(dot(side[0], side[1]) / (std::max(std::sqrt(dot(side[0], side[0])), 1e-6) *
                                              std::max(std::sqrt(dot(side[1], side[1])), 1e-6)));
  Vector hidden = affine(weights.at("mlp0_weight"), &weights.at("mlp0_bias"), features, 0,
                         weights.at("mlp0_weight").dim(0));
  for (double& h : hidden) h = std::max(h, 0.0);
  return affine(weights.at("mlp1_weight"), &weights.at("mlp1_bias"), hidden, 0, 1)[0];
}

/// Gaps of one sample that become boundaries, as the card walks them.
std::set<int64_t> chosen_gaps(const Vector& score, const Params& params, int64_t block, int64_t tail) {
  const auto n = static_cast<int64_t>(score.size());
  std::vector<int64_t> kept;
  for (int64_t t = 0; t < n; ++t)
    if (at(score, t) > params.number("theta")) kept.push_back(t);
  std::stable_sort(kept.begin(), kept.end(),
                   [&](int64_t a, int64_t b) { return at(score, a) > at(score, b); });
  const int64_t spacing = params.boolean("use_nms") ? params.integer("nms_window") : 0;
  const double cap = static_cast<double>(params.integer("chunk_beta")) * static_cast<double>(n / block);
  std::set<int64_t> chosen;
  if (tail > 0) chosen.insert(n - tail);
  for (int64_t t : kept) {
    if (tail > 0 && t > n - tail) continue;
    const bool close = std::any_of(chosen.begin(), chosen.end(),
                                   [&](int64_t other) { return std::abs(other - t) <= spacing; });
    if (close) continue;
    chosen.insert(t);
    if (static_cast<double>(chosen.size()) >= cap) break;
  }
  return chosen;
}

/// The second version: block by block, each head on its own.
RefMap blocks_reference(const Params& params, const RefMap& inputs) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), rows = q.dim(1), heads = q.dim(2), dim = q.dim(3), n = k.dim(1),
                group = heads / k.dim(2), shift = n - rows;
  const int64_t bq = rows == 1 ? 1 : params.integer("v2_query_block"), bk = params.integer("v2_key_block");
  const int64_t nq = (rows + bq - 1) / bq, nk = (n + bk - 1) / bk;
  const int64_t listed =
      std::max<int64_t>(1, static_cast<int64_t>(params.number("density") * static_cast<double>(nk)));
  const double scale =
      params.is_null("scale") ? 1 / std::sqrt(static_cast<double>(dim)) : params.number("scale");
  const auto mean = [dim](const RefTensor& x, int64_t b, int64_t h, int64_t begin, int64_t end) {
    Vector m(static_cast<size_t>(dim));
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < dim; ++d) at(m, d) += at(x, b, i, h, d) / static_cast<double>(end - begin);
    return m;
  };
  RefTensor out(q.shape), selected({batch, heads, nq, nk});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t m = 0; m < nq; ++m) {
        const Vector block = mean(q, b, h, m * bq, std::min(rows, (m + 1) * bq));
        Vector score;
        for (int64_t c = 0; c < nk; ++c)
          score.push_back(dot(block, mean(k, b, h / group, c * bk, std::min(n, (c + 1) * bk))));
        std::vector<int64_t> rank(static_cast<size_t>(nk));
        std::iota(rank.begin(), rank.end(), 0);
        std::stable_sort(rank.begin(), rank.end(),
                         [&](int64_t x, int64_t y) { return at(score, x) > at(score, y); });
        std::set<int64_t> list;
        if (params.choice("variant") == "v2_topk") {
          for (int64_t c : rank)
            if (static_cast<int64_t>(list.size()) < listed) list.insert(c);
        } else {
          const int64_t newest = std::min((shift + (m + 1) * bq - 1) / bk, nk - 1);
          list = {0, newest};
          for (int64_t c : rank)
            if (c < newest && static_cast<int64_t>(list.size()) < listed) list.insert(c);
        }
        // Blocks that no row of this block may see are not visited.
        const int64_t last = shift + std::min(rows, (m + 1) * bq) - 1;
        for (int64_t c : list)
          if (c * bk <= last) selected[((b * heads + h) * nq + m) * nk + c] = 1;
        for (int64_t r = m * bq; r < std::min(rows, (m + 1) * bq); ++r) {
          Vector p(static_cast<size_t>(n));
          std::vector<char> visible(static_cast<size_t>(n));
          bool any = false;
          for (int64_t j = 0; j <= r + shift; ++j) {
            if (!list.contains(j / bk)) continue;
            visible[static_cast<size_t>(j)] = 1, any = true;
            for (int64_t d = 0; d < dim; ++d)
              at(p, j) += scale * at(q, b, r, h, d) * at(k, b, j, h / group, d);
          }
          if (!any) continue;
          ref::softmax_row(p, visible);
          for (int64_t j = 0; j <= r + shift; ++j)
            for (int64_t d = 0; visible[static_cast<size_t>(j)] && d < dim; ++d)
              out[((b * rows + r) * heads + h) * dim + d] += at(p, j) * at(v, b, j, h / group, d);
        }
      }
  return {{"out", out}, {"selected", selected}};
}

RefMap dhsa_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap& weights) {
  if (params.choice("variant") != "v1") return blocks_reference(params, inputs);
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), rows = q.dim(1), heads = q.dim(2), dim = q.dim(3), n = k.dim(1),
                kv = k.dim(2);
  const bool decode = rows == 1;
  const int64_t shift = n - rows, block = decode ? 1 : params.integer("block_size");
  const int64_t tail = decode || params.is_null("instruction_tokens")
                           ? 0
                           : std::min(params.integer("instruction_tokens"), rows);
  const bool local = !params.is_null("sliding_window");
  const int64_t window = local ? params.integer("sliding_window") : 0, sparse = rows - tail,
                blocks = (sparse + block - 1) / block;
  int64_t budget = params.integer("budget");
  if (budget < 0 || budget > n) budget = n;
  if (local) budget = std::min(budget, window);
  const double scale =
      params.is_null("scale") ? 1 / std::sqrt(static_cast<double>(dim)) : params.number("scale");
  const std::string &mode = params.choice("boundary_mode"), &pooling = params.choice("pooling");
  const int64_t w = params.integer("boundary_window");

  /// Softmax of row r of head h over the keys that `sees` allows; zeros where it allows none.
  const auto probabilities = [&](int64_t b, int64_t h, int64_t r, const std::vector<char>& allowed) {
    Vector s(static_cast<size_t>(n));
    std::vector<char> visible(static_cast<size_t>(n));
    const int64_t p = r + shift;
    for (int64_t j = 0; j <= p; ++j) {
      if ((local && j < p - window) || !allowed[static_cast<size_t>(j)]) continue;
      visible[static_cast<size_t>(j)] = 1;
      for (int64_t d = 0; d < dim; ++d)
        at(s, j) += scale * at(q, b, r, h, d) * at(k, b, j, h / (heads / kv), d);
    }
    ref::softmax_row(s, visible);
    for (int64_t j = 0; j < n; ++j)
      if (!visible[static_cast<size_t>(j)]) at(s, j) = 0;
    return s;
  };

  RefTensor out(q.shape), lists({batch, blocks, budget}), gap_scores({batch, n});
  std::vector<std::vector<int64_t>> all_bounds;
  for (int64_t b = 0; b < batch; ++b) {
    // 1. boundaries
    std::vector<int64_t> bounds{0};
    if (mode == "fixed") {
      for (int64_t c = params.integer("chunk_size"); c < n; c += params.integer("chunk_size"))
        bounds.push_back(c);
    } else {
      Vector score(static_cast<size_t>(n), mode == "ratio" ? 0.0 : -100.0);
      if (mode == "predictor") {
        for (int64_t t = w - 1; t < n - w; ++t) {
          std::vector<Vector> tokens;
          for (int64_t i = t - w + 1; i <= t + w; ++i) {
            Vector f;
            for (int64_t h = 0; h < kv; ++h)
              for (int64_t d = 0; d < dim; ++d) f.push_back(at(k, b, i, h, d));
            tokens.push_back(f);
          }
          at(score, t) = predicted(tokens, params.integer("predictor_heads"),
                                   params.boolean("predictor_window_pool"), weights);
        }
      } else {
        std::vector<Vector> map;
        for (int64_t r = 0; r < n; ++r) {
          Vector mean(static_cast<size_t>(n));
          for (int64_t h = 0; h < heads; ++h) {
            const Vector p = probabilities(b, h, r, std::vector<char>(static_cast<size_t>(n), 1));
            for (int64_t j = 0; j < n; ++j) at(mean, j) += at(p, j) / static_cast<double>(heads);
          }
          map.push_back(mean);
        }
        for (int64_t t = 2 * w - 1; t < n - 2 * w; ++t) {
          double past = 0, future = 0;
          for (int64_t r = t + w; r < (local ? std::min(n, t + w + 4096) : n); ++r)
            for (int64_t i = 0; i < w; ++i) {
              past += at(map[static_cast<size_t>(r)], t - i);
              future += at(map[static_cast<size_t>(r)], t + 1 + i);
            }
          at(score, t) = (std::max(past, future) + 1e-6) / (std::min(past, future) + 1e-6);
        }
      }
      for (int64_t t = 0; t < n; ++t) gap_scores[b * n + t] = at(score, t);
      for (int64_t t : chosen_gaps(score, params, block, tail)) bounds.push_back(t + 1);
    }
    if (bounds.back() != n) bounds.push_back(n);
    all_bounds.push_back(bounds);

    // 2, 3. representations and token scores
    std::vector<int64_t> chunk_of(static_cast<size_t>(n));
    std::vector<Vector> chunk;
    for (size_t c = 0; c + 1 < bounds.size(); ++c) {
      Vector sum(static_cast<size_t>(dim));
      for (int64_t j = bounds[c]; j < bounds[c + 1]; ++j) {
        chunk_of[static_cast<size_t>(j)] = static_cast<int64_t>(c);
        for (int64_t h = 0; h < kv; ++h)
          for (int64_t d = 0; d < dim; ++d) at(sum, d) += at(k, b, j, h, d) / static_cast<double>(kv);
      }
      const auto length = static_cast<double>(bounds[c + 1] - bounds[c]);
      for (double& x : sum) x *= (pooling == "avgpool_norm" ? std::sqrt(length) : 1.0) / length;
      chunk.push_back(sum);
    }
    for (int64_t m = 0; m < blocks; ++m) {
      Vector pooled(static_cast<size_t>(dim), pooling == "maxpool" ? -INFINITY : 0.0);
      const int64_t length = std::min(sparse - m * block, block);
      for (int64_t i = 0; i < block; ++i)
        for (int64_t d = 0; d < dim; ++d) {
          double mean = 0;
          for (int64_t h = 0; h < heads && i < length; ++h)
            mean += at(q, b, m * block + i, h, d) / static_cast<double>(heads);
          at(pooled, d) = pooling == "maxpool" ? std::max(at(pooled, d), mean)
                                               : at(pooled, d) + mean / static_cast<double>(block);
        }
      if (pooling == "avgpool_norm")
        for (double& x : pooled) x *= std::sqrt(static_cast<double>(length));
      Vector by_chunk;
      for (const Vector& c : chunk) by_chunk.push_back(dot(pooled, c));

      // 4. token selection
      const int64_t start = shift + m * block, end = start + block;
      std::vector<int64_t> allowed;
      for (int64_t j = 0; j < n; ++j)
        if (j < end && (!local || j >= end - window)) allowed.push_back(j);
      const auto recent = std::min(
          {static_cast<size_t>(params.integer("local_tokens")), static_cast<size_t>(budget), allowed.size()});
      std::vector<int64_t> list(allowed.end() - static_cast<std::ptrdiff_t>(recent), allowed.end());
      allowed.resize(allowed.size() - recent);
      std::stable_sort(allowed.begin(), allowed.end(), [&](int64_t x, int64_t y) {
        return at(by_chunk, chunk_of[static_cast<size_t>(x)]) >
               at(by_chunk, chunk_of[static_cast<size_t>(y)]);
      });
      for (int64_t j : allowed)
        if (static_cast<int64_t>(list.size()) < budget) list.push_back(j);
      list.resize(static_cast<size_t>(budget), n - 1);
      std::sort(list.begin(), list.end());
      const int64_t from = local ? std::max<int64_t>(0, start - window) : 0;
      for (int64_t i = 0; i < std::min(budget, params.integer("global_tokens")); ++i)
        list[static_cast<size_t>(i)] = std::min(from + i, std::min(end, n) - 1);
      for (int64_t i = 0; i < budget; ++i)
        lists[(b * blocks + m) * budget + i] = static_cast<double>(list[static_cast<size_t>(i)]);
    }

    // 5. attention
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<char> allowed(static_cast<size_t>(n), r >= sparse);
      if (r < sparse)
        for (int64_t i = 0; i < budget; ++i)
          allowed[static_cast<size_t>(lists[(b * blocks + r / block) * budget + i])] = 1;
      for (int64_t h = 0; h < heads; ++h) {
        const Vector p = probabilities(b, h, r, allowed);
        for (int64_t j = 0; j < n; ++j)
          for (int64_t d = 0; d < dim; ++d)
            out[((b * rows + r) * heads + h) * dim + d] += at(p, j) * at(v, b, j, h / (heads / kv), d);
      }
    }
  }
  size_t width = 0;
  for (const auto& bounds : all_bounds) width = std::max(width, bounds.size());
  RefTensor boundaries({batch, static_cast<int64_t>(width)});
  for (int64_t b = 0; b < batch; ++b)
    for (size_t c = 0; c < width; ++c) {
      const auto& bounds = all_bounds[static_cast<size_t>(b)];
      boundaries[b * static_cast<int64_t>(width) + static_cast<int64_t>(c)] =
          c < bounds.size() ? static_cast<double>(bounds[c]) : -1.0;
    }
  RefMap result{{"out", out}, {"boundaries", boundaries}, {"lists", lists}};
  if (mode != "fixed") result["gap_scores"] = gap_scores;
  return result;
}
ATTNBENCH_REFERENCE(dhsa, dhsa_reference);

}  // namespace
}  // namespace attnbench
