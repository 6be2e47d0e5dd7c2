// Reference of `routing_transformer`: heads one after the other, clusters and local blocks token by token.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

using Rows = std::vector<std::vector<double>>;  // tokens by D

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Rows of head h of [.., H, N, D] (heads form) or columns of a projection [B, N, C].
Rows head_of(const RefTensor& t, int64_t b, int64_t h, int64_t heads, bool split, double factor) {
  const int64_t n = split ? t.dim(1) : t.dim(2), d = split ? t.dim(2) / heads : t.dim(3);
  Rows rows;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> row;
    for (int64_t c = 0; c < d; ++c)
      row.push_back(factor *
                    (split ? t[(b * n + i) * heads * d + h * d + c] : t[((b * heads + h) * n + i) * d + c]));
    rows.push_back(row);
  }
  return rows;
}

void normalise(Rows& rows, const std::string& how) {
  for (auto& r : rows) {
    const auto d = static_cast<double>(r.size());
    if (how == "layernorm") {
      double mean = 0, var = 0;
      for (const double x : r) mean += x / d;
      for (const double x : r) var += (x - mean) * (x - mean) / d;
      for (double& x : r) x = (x - mean) / std::sqrt(var + 1e-6);
    } else if (how == "l2") {
      const double length = std::max(std::sqrt(dot(r, r)), 1e-12);
      for (double& x : r) x /= length;
    }
  }
}

/// Row r of [.., R, D] whose first row of the block is `first`.
std::vector<double> row_of(const RefTensor& t, int64_t row) {
  const int64_t d = t.shape.back();
  return {t.data.begin() + row * d, t.data.begin() + (row + 1) * d};
}

struct Tables {
  const RefTensor *key = nullptr, *value = nullptr;
  int64_t reach = 0;
  std::vector<double> at(const RefTensor& t, int64_t difference) const {
    return row_of(t, std::clamp(difference, -reach, reach) + reach);
  }
};

/// One softmax row over keys k, v with relative terms by `difference(j)` (nothing: none); false when none is
/// visible.
bool attend(const std::vector<double>& q, const Rows& k, const Rows& v, const std::vector<char>& visible,
            double scale, const Tables& tables,
            const std::function<std::optional<int64_t>(size_t)>& difference, const std::vector<double>& extra,
            std::vector<double>& out) {
  std::vector<double> p(k.size(), 0);
  for (size_t j = 0; j < k.size(); ++j) {
    if (!visible[j]) continue;
    p[j] = scale * dot(q, k[j]) + extra[j];
    if (const auto t = difference(j); tables.key && t) p[j] += dot(q, tables.at(*tables.key, *t));
  }
  out.assign(q.size(), 0);
  if (!ref::softmax_row(p, visible)) return false;
  for (size_t j = 0; j < k.size(); ++j) {
    if (!visible[j]) continue;
    std::vector<double> value = v[j];
    if (const auto t = difference(j); tables.value && t) {
      const std::vector<double> r = tables.at(*tables.value, *t);
      for (size_t c = 0; c < value.size(); ++c) value[c] += r[c];
    }
    for (size_t c = 0; c < value.size(); ++c) out[c] += p[j] * value[c];
  }
  return true;
}

/// The w tokens of largest score, ascending.
std::vector<int64_t> top(const std::vector<double>& scores, int64_t w) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&scores](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(w));
  std::sort(order.begin(), order.end());
  return order;
}

/// K rows of x drawn by the seed, moved `steps` times to the normalised mean of the rows nearest to them.
Rows lloyd(const Rows& x, int64_t k, int64_t steps, const std::string& how, uint64_t seed, const char* stream,
           int64_t head) {
  const auto rows = static_cast<int64_t>(x.size());
  std::vector<std::pair<uint64_t, int64_t>> rank;
  for (int64_t i = 0; i < rows; ++i)
    rank.emplace_back(random_bits(seed, stream_of(stream), static_cast<uint64_t>(head * rows + i)), i);
  std::sort(rank.begin(), rank.end());
  Rows mu;
  for (int64_t c = 0; c < k; ++c)
    mu.push_back(x[static_cast<size_t>(rank[static_cast<size_t>(c % rows)].second)]);
  for (int64_t step = 0; step < steps; ++step) {
    Rows sum(mu.size(), std::vector<double>(x[0].size(), 0));
    std::vector<double> count(mu.size(), 0);
    for (const auto& row : x) {
      size_t nearest = 0;
      for (size_t c = 1; c < mu.size(); ++c)
        if (dot(row, mu[c]) > dot(row, mu[nearest])) nearest = c;
      count[nearest] += 1;
      for (size_t e = 0; e < row.size(); ++e) sum[nearest][e] += row[e];
    }
    for (size_t c = 0; c < mu.size(); ++c) {
      if (count[c] == 0) continue;
      Rows mean{sum[c]};
      for (double& e : mean[0]) e /= count[c];
      normalise(mean, how);
      mu[c] = mean[0];
    }
  }
  return mu;
}

RefMap routing_transformer_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                                     const RefMap& weights) {
  const bool core = problem.channels == 0;
  const int64_t heads = params.integer("num_heads"), hr = params.integer("routing_heads"),
                hs = params.integer("cluster_strided_heads");
  const RefTensor& first = inputs.at(core ? "q" : "x");
  const int64_t batch = first.dim(0), n = core ? first.dim(2) : first.dim(1);
  const int64_t d = core ? first.dim(3) : first.dim(2) / heads;
  const bool causal = params.boolean("causal");
  const bool shared = params.is_null("shared_qk") ? causal : params.boolean("shared_qk");
  const int64_t K = params.is_null("num_clusters")
                        ? std::max<int64_t>(1, std::llround(std::sqrt(static_cast<double>(n))))
                        : params.integer("num_clusters");
  const int64_t w = std::min(n, params.is_null("window") ? (n + K - 1) / K : params.integer("window"));
  const int64_t block = params.integer("local_block"), flange = params.integer("local_flange");
  const int64_t padded = core ? n : (n + block - 1) / block * block;
  const std::string& how = params.choice("normalize");
  const double root = 1 / std::sqrt(static_cast<double>(d));
  const double scale = !params.is_null("scale") ? params.number("scale") : how == "layernorm" ? 1.0 : root;
  const bool lsh = params.choice("route") == "lsh", mask_self = params.boolean("mask_self");
  const int64_t memory = params.integer("num_mem_kv");
  const double eps = params.number("scatter_eps");
  const auto tables = [&](const char* rk, const char* rv) {
    Tables t;
    if (params.boolean("relative") && weights.contains(rk))
      t = {&weights.at(rk), &weights.at(rv), params.integer("max_relative_position")};
    return t;
  };

  RefTensor q, k, v;
  if (core) {
    q = inputs.at("q"), v = inputs.at("v");
    if (!shared) k = inputs.at("k");
  } else {
    q = ref::linear(first, weights.at("Wq"), nullptr);
    k = ref::linear(first, weights.at("Wk"), nullptr);
    v = ref::linear(first, weights.at("Wv"), nullptr);
  }
  RefTensor mixed({batch, n, heads, d});
  RefTensor chosen_q({batch, hr, K, w}), chosen_k({batch, hr, K, w}), strided_q({batch, hs, K, w}),
      strided_k({batch, hs, K, w});
  // Centroids: as given, or found among the rows of the input.
  const auto centroids = [&](const char* name, const char* stream, int64_t from, int64_t count, bool alone) {
    if (count == 0 || weights.contains(name)) return count == 0 ? RefTensor() : weights.at(name);
    RefTensor mu({count, K, d});
    for (int64_t h = 0; h < count; ++h) {
      Rows all;
      for (int side = 0; side < (alone ? 1 : 2); ++side)
        for (int64_t b = 0; b < batch; ++b) {
          Rows rows = head_of(side == 0 ? q : k, b, from + h, heads, !core, side == 0 && !core ? root : 1);
          normalise(rows, how);
          all.insert(all.end(), rows.begin(), rows.end());
        }
      const Rows found = lloyd(all, K, params.integer("kmeans_init_iters"), how, problem.seed, stream, h);
      for (int64_t c = 0; c < K; ++c)
        for (int64_t e = 0; e < d; ++e)
          mu[(h * K + c) * d + e] = found[static_cast<size_t>(c)][static_cast<size_t>(e)];
    }
    return mu;
  };
  const RefTensor mu = centroids("mu", "routing_transformer.mu", 0, lsh ? 0 : hr, shared),
                  mu_strided = centroids("mu_strided", "routing_transformer.mu_strided", hr, hs, false);
  const bool update = params.boolean("update_means") && hr > 0;
  // Of the queries, then of keys of their own.
  std::array<RefTensor, 2> counts{RefTensor({hr, K}), RefTensor({hr, K})},
      sums{RefTensor({hr, K, d}), RefTensor({hr, K, d})};
  double loss = 0;

  for (int64_t b = 0; b < batch; ++b) {
#pragma omp parallel for schedule(dynamic) reduction(+ : loss)
    for (int64_t h = 0; h < heads; ++h) {
      const auto head = [&](const RefTensor& t, double f) { return head_of(t, b, h, heads, !core, f); };
      Rows vh = head(v, 1);
      if (h >= hr + hs) {
        const Rows qh = head(q, root), kh = head(k, 1);
        const Tables t = tables("rk_local", "rv_local");
        for (int64_t i = 0; i < n; ++i) {
          const int64_t own = i / block * block;
          std::vector<char> visible(static_cast<size_t>(n));
          for (int64_t j = 0; j < n; ++j)
            visible[static_cast<size_t>(j)] =
                j >= own - flange && (causal ? j <= i : j < own + block + flange);
          std::vector<double> o;
          attend(
              qh[static_cast<size_t>(i)], kh, vh, visible, 1, t,
              [i](size_t j) { return std::optional<int64_t>(static_cast<int64_t>(j) - i); },
              std::vector<double>(static_cast<size_t>(n), 0), o);
          for (int64_t c = 0; c < d; ++c)
            mixed[((b * n + i) * heads + h) * d + c] = o[static_cast<size_t>(c)];
        }
        continue;
      }
      const bool strided = h >= hr, same = shared && !strided;
      const int64_t g = strided ? h - hr : h;
      const std::vector<double> zero(static_cast<size_t>(d), 0);
      const auto prepared = [&](const RefTensor& t, double f) {
        Rows rows = head(t, f);
        normalise(rows, how);
        rows.resize(static_cast<size_t>(padded), zero);
        return rows;
      };
      const Rows zq = prepared(q, core ? 1 : root), zk = same ? zq : prepared(k, 1);
      vh.resize(static_cast<size_t>(padded), zero);

      const auto members = [&](const Rows& z, int64_t c) {
        std::vector<double> s;
        for (const auto& row : z) {
          if (strided) {
            s.push_back(dot(row, row_of(mu_strided, g * K + c)));
          } else if (!lsh) {
            s.push_back(dot(row, row_of(mu, g * K + c)));
          } else {
            int64_t bits = 0, bucket = 0;
            while ((int64_t{2} << bits) <= K) ++bits;
            for (int64_t i = 0; i < bits; ++i)
              if (dot(row, row_of(weights.at("lsh_projections"), g * bits + i)) > 0)
                bucket += int64_t{1} << i;
            s.push_back(bucket == c ? 1 : 0);
          }
        }
        if (!strided) return top(s, w);
        std::vector<int64_t> order(s.size());
        std::iota(order.begin(), order.end(), int64_t{0});
        std::stable_sort(order.begin(), order.end(), [&s](int64_t x, int64_t y) {
          return s[static_cast<size_t>(x)] > s[static_cast<size_t>(y)];
        });
        std::vector<int64_t> taken;
        for (int64_t i = 0; i < w; ++i)
          taken.push_back(order[static_cast<size_t>(i * std::max<int64_t>(1, padded / w))]);
        std::sort(taken.begin(), taken.end());
        return taken;
      };

      Rows sum(static_cast<size_t>(padded), zero);
      std::vector<double> times(static_cast<size_t>(padded), 0);
      const Tables t = strided ? tables("rk_strided", "rv_strided") : tables("rk", "rv");
      for (int64_t c = 0; c < K; ++c) {
        const std::vector<int64_t> iq = members(zq, c), ik = same ? iq : members(zk, c);
        RefTensor &out_q = strided ? strided_q : chosen_q, &out_k = strided ? strided_k : chosen_k;
        for (int64_t i = 0; i < w; ++i) {
          const int64_t at = ((b * (strided ? hs : hr) + g) * K + c) * w + i;
          out_q[at] = static_cast<double>(iq[static_cast<size_t>(i)]);
          out_k[at] = static_cast<double>(ik[static_cast<size_t>(i)]);
        }
        Rows keys, values;
        const int64_t slots = strided ? 0 : memory;
        for (int64_t i = 0; i < slots; ++i) {
          keys.push_back(row_of(weights.at("mem_key"), (g * K + c) * memory + i));
          values.push_back(row_of(weights.at("mem_value"), (g * K + c) * memory + i));
        }
        for (const int64_t j : ik) {
          keys.push_back(zk[static_cast<size_t>(j)]);
          values.push_back(vh[static_cast<size_t>(j)]);
        }
        for (int64_t i = 0; i < w; ++i) {
          const int64_t token = iq[static_cast<size_t>(i)];
          if (token >= n) continue;
          std::vector<char> visible(keys.size(), 1);
          std::vector<double> extra(keys.size(), 0);
          for (int64_t j = 0; j < w; ++j) {
            const int64_t key = ik[static_cast<size_t>(j)];
            visible[static_cast<size_t>(slots + j)] = key < n && (!causal || key <= token);
            if (mask_self && same && i == j) extra[static_cast<size_t>(slots + j)] = -5e4;
          }
          std::vector<double> o;
          if (!attend(
                  zq[static_cast<size_t>(token)], keys, values, visible, scale, t,
                  [&](size_t j) -> std::optional<int64_t> {
                    const int64_t rank = static_cast<int64_t>(j) - slots;
                    if (rank < 0) return std::nullopt;  // memory has no rank
                    return rank - i;
                  },
                  extra, o))
            continue;
          times[static_cast<size_t>(token)] += 1;
          for (int64_t x = 0; x < d; ++x)
            sum[static_cast<size_t>(token)][static_cast<size_t>(x)] += o[static_cast<size_t>(x)];
        }
      }
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < d; ++c)
          mixed[((b * n + i) * heads + h) * d + c] =
              times[static_cast<size_t>(i)] == 0 ? 0
                                                 : sum[static_cast<size_t>(i)][static_cast<size_t>(c)] /
                                                       (times[static_cast<size_t>(i)] + eps);

      if (!update || strided) continue;
      for (size_t side = 0; side < (shared ? 1u : 2u); ++side) {
        const Rows& z = side == 0 ? zq : zk;
        for (int64_t i = 0; i < padded; ++i) {
          const auto& row = z[static_cast<size_t>(i)];
          int64_t nearest = 0;
          double best = -INFINITY;
          for (int64_t c = 0; c < K; ++c) {
            const double s = dot(row, row_of(mu, g * K + c));
            if (s > best) best = s, nearest = c;
          }
          const std::vector<double> own = row_of(mu, g * K + nearest);
          for (int64_t x = 0; x < d; ++x)
            loss += (shared ? 2 : 1) * std::pow(row[static_cast<size_t>(x)] - own[static_cast<size_t>(x)], 2);
          if (i >= n) continue;
          counts[side][g * K + nearest] += 1;
          for (int64_t x = 0; x < d; ++x)
            sums[side][(g * K + nearest) * d + x] += row[static_cast<size_t>(x)];
        }
      }
    }
  }

  RefMap out;
  if (core) {
    RefTensor o({batch, heads, n, d});
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < d; ++c)
            o[((b * heads + h) * n + i) * d + c] = mixed[((b * n + i) * heads + h) * d + c];
    out["out"] = o;
  } else {
    if (params.boolean("head_mix")) mixed = ref::linear(mixed, weights.at("Wm"), nullptr);
    mixed.shape = {batch, n, heads * d};
    out["out"] = ref::linear(mixed, weights.at("Wo"), nullptr);
  }
  if (hr > 0) out["selected_q"] = chosen_q;
  if (hr > 0 && !shared) out["selected_k"] = chosen_k;
  if (hs > 0) out["selected_strided_q"] = strided_q, out["selected_strided_k"] = strided_k;
  if (!update) return out;
  const double decay = params.number("ema_decay"), e = 1e-5;
  RefTensor mu_new({hr, K, d}), count = weights.at("ema_count"), means = weights.at("ema_means");
  for (size_t side = 0; side < (shared ? 1u : 2u); ++side) {
    for (int64_t i = 0; i < count.numel(); ++i) count[i] = decay * count[i] + (1 - decay) * counts[side][i];
    for (int64_t i = 0; i < means.numel(); ++i) means[i] = decay * means[i] + (1 - decay) * sums[side][i];
  }
  for (int64_t h = 0; h < hr; ++h) {
    double total = 0;
    for (int64_t c = 0; c < K; ++c) total += count[h * K + c];
    for (int64_t c = 0; c < K; ++c) {
      const double smooth = (count[h * K + c] + e) / (total + static_cast<double>(K) * e) * total;
      for (int64_t x = 0; x < d; ++x) mu_new[(h * K + c) * d + x] = means[(h * K + c) * d + x] / smooth;
    }
  }
  RefTensor aux({1});
  aux[0] = params.number("commitment") * loss / static_cast<double>(batch * hr * padded * d);
  out["mu_new"] = mu_new, out["ema_count_new"] = count, out["ema_means_new"] = means, out["aux_loss"] = aux;
  return out;
}
ATTNBENCH_REFERENCE(routing_transformer, routing_transformer_reference);

}  // namespace
}  // namespace attnbench
