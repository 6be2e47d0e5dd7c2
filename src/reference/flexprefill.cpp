// Reference of `flexprefill`: the card's steps 0 to 10 in double.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Row = std::vector<double>;

/// Indices of x by descending value, equal values by index.
std::vector<int64_t> descending(const Row& x) {
  std::vector<int64_t> order(x.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&x](int64_t a, int64_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  return order;
}

double dot(const double* a, const double* b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += a[i] * b[i];
  return s;
}

RefMap flexprefill_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), N = q.dim(1), heads = q.dim(2), D = q.dim(3), M = k.dim(1),
                kv_heads = k.dim(2);
  const int64_t b = params.integer("block_size"), n = (M + b - 1) / b;
  const double gamma = params.number("gamma"), tau = params.number("tau");
  const auto blocks = [b](int64_t tokens) { return (tokens + b - 1) / b; };
  const int64_t least = params.integer("min_budget");
  const int64_t most = params.is_null("max_budget") ? n : std::min(n, blocks(params.integer("max_budget")));
  const int64_t floor = std::min(std::max<int64_t>(1, blocks(least)), most);
  const bool dense =
      N == 1 || (params.boolean("force_dense_below") && N <= std::max(2 * b, blocks(least) * b));
  const double scale = 1.0 / std::sqrt(static_cast<double>(D));
  const double final_scale = params.is_null("softmax_scale") ? scale : params.number("softmax_scale");
  RefTensor out(q.shape), selected({batch, heads, n, n}), distance({batch, heads}), aware({batch, heads});

  for (int64_t bh = 0; bh < batch * heads; ++bh) {
    const int64_t B = bh / heads, h = bh % heads;
    const int64_t kv = params.boolean("gqa_interleave") ? h % kv_heads : h / (heads / kv_heads);
    // Rows of this head, packed.
    Row Q, K, V;
    const auto take = [&](Row& to, const RefTensor& t, int64_t head) {
      for (int64_t i = 0; i < t.dim(1); ++i)
        for (int64_t d = 0; d < D; ++d) to.push_back(t[((B * t.dim(1) + i) * t.dim(2) + head) * D + d]);
    };
    take(Q, q, h), take(K, k, kv), take(V, v, kv);
    const auto mean_of = [&](const Row& x, int64_t first, int64_t last) {
      Row m(static_cast<size_t>(D), 0.0);
      for (int64_t i = first; i < last; ++i)
        for (int64_t d = 0; d < D; ++d) m[static_cast<size_t>(d)] += x[static_cast<size_t>(i * D + d)];
      for (double& e : m) e /= static_cast<double>(last - first);
      return m;
    };
    std::vector<std::vector<char>> keep(static_cast<size_t>(n), std::vector<char>(static_cast<size_t>(n), 0));
    if (!dense) {
      const int64_t R = std::min(b, N);
      Row av(static_cast<size_t>(N), 0.0), as(static_cast<size_t>(N), 0.0);
      for (int64_t i = 0; i < R; ++i) {
        Row p(static_cast<size_t>(N));
        std::vector<char> visible(static_cast<size_t>(N));
        for (int64_t j = 0; j < N; ++j) {
          p[static_cast<size_t>(j)] =
              scale * dot(&Q[static_cast<size_t>((N - R + i) * D)], &K[static_cast<size_t>(j * D)], D);
          visible[static_cast<size_t>(j)] = j <= N - R + i;
        }
        ref::softmax_row(p, visible);
        for (int64_t j = 0; j < N; ++j) {
          av[static_cast<size_t>(j)] += p[static_cast<size_t>(j)] / static_cast<double>(R);
          const int64_t c = j + (R - 1) - i;
          if (c < N) as[static_cast<size_t>(c)] += p[static_cast<size_t>(j)] / static_cast<double>(R);
        }
      }
      const auto lines = [&](const Row& x) {
        int64_t cover = 1;
        double sum = 0;
        for (int64_t j : descending(x)) {
          sum += x[static_cast<size_t>(j)];
          if (sum <= gamma) ++cover;
        }
        return std::clamp<int64_t>(cover / params.integer("budget_unit") + 1, floor, most);
      };
      int64_t nv = lines(av), ns = lines(as);
      Row block_v(static_cast<size_t>(n), 0.0), block_s(static_cast<size_t>(n), 0.0),
          estimate(static_cast<size_t>(n));
      for (int64_t j = 0; j < N; ++j) {
        block_v[static_cast<size_t>(j / b)] += av[static_cast<size_t>(j)];
        block_s[static_cast<size_t>(j / b)] += as[static_cast<size_t>(j)];
      }
      const Row qbar = mean_of(Q, N - R, N);
      std::vector<Row> kbar;
      for (int64_t t = 0; t < n; ++t) {
        kbar.push_back(mean_of(K, t * b, std::min(N, (t + 1) * b)));
        estimate[static_cast<size_t>(t)] = scale * dot(qbar.data(), kbar.back().data(), D);
      }
      ref::softmax_row(estimate, std::vector<char>(static_cast<size_t>(n), 1));
      double divergence = 0;
      for (size_t t = 0; t < estimate.size(); ++t) {
        const double a = estimate[t], p = block_v[t], m = 0.5 * (a + p);
        if (a > 0) divergence += 0.5 * a * std::log(a / m);
        if (p > 0) divergence += 0.5 * p * std::log(p / m);
      }
      distance[bh] = std::sqrt(std::max(divergence, 0.0));
      aware[bh] = distance[bh] < tau;
      if (aware[bh] != 0) nv = ns = floor;
      block_v[0] = INFINITY;
      block_s[static_cast<size_t>(n - 1)] = INFINITY;
      const std::vector<int64_t> by_v = descending(block_v), by_s = descending(block_s);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t r = 0; r < nv; ++r)
          if (by_v[static_cast<size_t>(r)] <= i)
            keep[static_cast<size_t>(i)][static_cast<size_t>(by_v[static_cast<size_t>(r)])] = 1;
        for (int64_t r = 0; r < ns; ++r) {
          const int64_t o = n - 1 - by_s[static_cast<size_t>(r)];
          if (o <= i) keep[static_cast<size_t>(i)][static_cast<size_t>(i - o)] = 1;
        }
      }
      if (aware[bh] != 0) {
        Row map(static_cast<size_t>(n * n), 0.0);
        for (int64_t i = 0; i < n; ++i) {
          const Row qb = mean_of(Q, i * b, std::min(N, (i + 1) * b));
          Row s(static_cast<size_t>(n));
          std::vector<char> visible(static_cast<size_t>(n));
          for (int64_t t = 0; t <= i; ++t) {
            s[static_cast<size_t>(t)] = scale * dot(qb.data(), kbar[static_cast<size_t>(t)].data(), D);
            visible[static_cast<size_t>(t)] = 1;
          }
          ref::softmax_row(s, visible);
          for (int64_t t = 0; t <= i; ++t) map[static_cast<size_t>(i * n + t)] = s[static_cast<size_t>(t)];
        }
        double sum = 0;
        for (int64_t e : descending(map)) {
          const double before = sum;
          sum += map[static_cast<size_t>(e)];
          const double goal = gamma * static_cast<double>(n);
          if (params.boolean("cover_inclusive") ? before >= goal : sum > goal) break;
          if (e % n <= e / n) keep[static_cast<size_t>(e / n)][static_cast<size_t>(e % n)] = 1;
        }
      }
      for (int64_t i = 0; i < n; ++i)
        for (int64_t t = 0; t < n; ++t)
          selected[(bh * n + i) * n + t] = keep[static_cast<size_t>(i)][static_cast<size_t>(t)];
    }
    for (int64_t r = 0; r < N; ++r) {
      const int64_t at = r + M - N;
      Row p(static_cast<size_t>(M));
      std::vector<char> visible(static_cast<size_t>(M));
      for (int64_t j = 0; j <= at; ++j) {
        visible[static_cast<size_t>(j)] =
            dense || keep[static_cast<size_t>(r / b)][static_cast<size_t>(j / b)];
        p[static_cast<size_t>(j)] =
            final_scale * dot(&Q[static_cast<size_t>(r * D)], &K[static_cast<size_t>(j * D)], D);
      }
      if (!ref::softmax_row(p, visible)) continue;
      for (int64_t j = 0; j <= at; ++j)
        if (visible[static_cast<size_t>(j)])
          for (int64_t d = 0; d < D; ++d)
            out[((B * N + r) * heads + h) * D + d] +=
                p[static_cast<size_t>(j)] * V[static_cast<size_t>(j * D + d)];
    }
  }
  if (dense) return {{"out", out}};
  return {{"out", out}, {"selected", selected}, {"d", distance}, {"query_aware", aware}};
}
ATTNBENCH_REFERENCE(flexprefill, flexprefill_reference);

}  // namespace
}  // namespace attnbench
