// Reference of `retrieval_heads`: both entries and the score file, in double precision.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "inputs/inputs.hpp"
#include "reference/reference.hpp"

namespace attnbench {
namespace {

struct Sizes {
  int64_t layers, heads, steps, keys, prompt, needle, topk;
};

/// Keys by falling weight, ties by lower index; -1 beyond those visible.
std::vector<int64_t> best(const std::vector<double>& weights, int64_t visible, int64_t k) {
  std::vector<int64_t> out;
  std::set<int64_t> taken;
  while (static_cast<int64_t>(out.size()) < k) {
    int64_t at = -1;
    for (int64_t j = 0; j < visible; ++j)
      if (!taken.contains(j) &&
          (at < 0 || weights[static_cast<size_t>(j)] > weights[static_cast<size_t>(at)]))
        at = j;
    out.push_back(at);
    taken.insert(at);
  }
  return out;
}

std::pair<int64_t, int64_t> locate(const std::vector<double>& p, const std::vector<double>& needle,
                                   double match) {
  const std::set<double> ids(needle.begin(), needle.end());
  const auto n = static_cast<int64_t>(needle.size()), length = static_cast<int64_t>(p.size());
  for (int64_t i = 0; i < length; ++i) {
    std::set<double> common;
    for (int64_t j = i; j < std::min(i + n, length); ++j)
      if (ids.contains(p[static_cast<size_t>(j)])) common.insert(p[static_cast<size_t>(j)]);
    if (static_cast<double>(common.size()) / static_cast<double>(ids.size()) > match) return {i, i + n};
  }
  return {-1, -1};
}

/// (reference, paper) score of one head from the keys it chose at each step.
std::pair<double, double> scores_of(const std::vector<std::vector<int64_t>>& chosen,
                                    const std::vector<double>& p, const std::vector<double>& w,
                                    std::pair<int64_t, int64_t> range) {
  if (range.first < 0) return {0, 0};
  double copies = 0;
  std::set<int64_t> positions;
  for (size_t t = 0; t < chosen.size(); ++t)
    for (int64_t j : chosen[t]) {
      const bool inside = j >= range.first && j < range.second && j < static_cast<int64_t>(p.size());
      if (!inside || p[static_cast<size_t>(j)] != w[t]) continue;
      copies += 1;
      positions.insert(j);
      break;
    }
  const auto n = static_cast<double>(range.second - range.first);
  return {copies / n, static_cast<double>(positions.size()) / n};
}

void add_statistics(RefMap& out, const Params& params, int64_t layers, int64_t heads,
                    const std::vector<double>& shown, const std::vector<double>& mean,
                    const std::vector<double>& frequency) {
  const int64_t all = layers * heads;
  RefTensor m({layers, heads}), f({layers, heads}), classes({layers, heads}), order({all, 2});
  std::vector<char> used(static_cast<size_t>(all), 0);
  for (int64_t h = 0; h < all; ++h) {
    const auto at = static_cast<size_t>(h);
    m[h] = shown[at];
    f[h] = frequency[at];
    classes[h] = mean[at] >= params.number("threshold");
    int64_t top = -1;
    double most = -1;
    for (int64_t c = 0; c < all; ++c) {
      const double v = std::round(mean[static_cast<size_t>(c)] * 1e9);
      if (!used[static_cast<size_t>(c)] && v > most) most = v, top = c;
    }
    used[static_cast<size_t>(top)] = 1;
    order[2 * h] = static_cast<double>(top / heads);
    order[2 * h + 1] = static_cast<double>(top % heads);
  }
  out["mean_score"] = m;
  out["activation_frequency"] = f;
  out["retrieval_heads"] = classes;
  out["top_k_order"] = order;
}

std::vector<double> slice(const RefTensor& t, int64_t begin, int64_t count) {
  return {t.data.begin() + begin, t.data.begin() + begin + count};
}

RefMap rows_reference(const Params& params, const RefMap& inputs) {
  const RefTensor &rows = inputs.at("rows"), &p = inputs.at("p"), &w = inputs.at("w"),
                  &ids = inputs.at("needle_ids");
  const int64_t instances = rows.dim(0), steps = rows.dim(1), layers = rows.dim(2), heads = rows.dim(3),
                keys = rows.dim(4), prompt = p.dim(1), n = ids.dim(1), k = params.integer("topk"),
                all = layers * heads;
  RefTensor range({instances, 2}), reference({instances, layers, heads}), paper({instances, layers, heads}),
      selected({instances, steps, layers, heads, k}), recall({instances}), counted({instances});
  std::vector<double> mean(static_cast<size_t>(all)), mean_paper(static_cast<size_t>(all)),
      frequency(static_cast<size_t>(all));
  double count = 0;
  for (int64_t i = 0; i < instances; ++i) {
    const std::vector<double> tokens = slice(p, i * prompt, prompt), emitted = slice(w, i * steps, steps),
                              needle = slice(ids, i * n, n);
    const auto where = locate(tokens, needle, params.number("needle_match"));
    range[2 * i] = static_cast<double>(where.first);
    range[2 * i + 1] = static_cast<double>(where.second);
    double hits = 0;
    for (double id : std::set<double>(needle.begin(), needle.end()))
      hits += std::min(static_cast<double>(std::count(needle.begin(), needle.end(), id)),
                       static_cast<double>(std::count(emitted.begin(), emitted.end(), id)));
    recall[i] = hits / static_cast<double>(n);
    counted[i] = recall[i] > params.number("success_recall");
    count += counted[i];
    for (int64_t h = 0; h < all; ++h) {
      std::vector<std::vector<int64_t>> chosen;
      for (int64_t t = 0; t < steps; ++t) {
        chosen.push_back(best(slice(rows, ((i * steps + t) * all + h) * keys, keys), prompt + t, k));
        for (int64_t r = 0; r < k; ++r)
          selected[((i * steps + t) * all + h) * k + r] =
              static_cast<double>(chosen.back()[static_cast<size_t>(r)]);
      }
      const auto [a, b] = scores_of(chosen, tokens, emitted, where);
      reference[i * all + h] = a;
      paper[i * all + h] = b;
      if (counted[i] == 0) continue;
      mean[static_cast<size_t>(h)] += a;
      mean_paper[static_cast<size_t>(h)] += b;
      frequency[static_cast<size_t>(h)] += a > 0;
    }
  }
  if (count > 0)
    for (size_t h = 0; h < mean.size(); ++h) mean[h] /= count, mean_paper[h] /= count, frequency[h] /= count;
  RefMap out{{"needle_range", range}, {"score_reference", reference},
             {"score_paper", paper},  {"selected", selected},
             {"recall", recall},      {"counted", counted}};
  add_statistics(out, params, layers, heads, mean, params.choice("score_mode") == "paper" ? mean_paper : mean,
                 frequency);
  RefTensor m({layers, heads});
  m.data = mean_paper;
  out["mean_score_paper"] = m;
  return out;
}

RefMap qk_reference(const Params& params, const RefMap& inputs) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t steps = q.dim(0), layers = q.dim(1), heads = q.dim(2), d = q.dim(3), keys = k.dim(1),
                kv = k.dim(2), prompt = keys - steps + 1, topk = params.integer("topk"), all = layers * heads;
  RefTensor dense(q.shape), uniform(q.shape), reference({layers, heads}), paper({layers, heads});
  RefTensor selected(topk == 1 ? std::vector<int64_t>{steps, layers, heads}
                               : std::vector<int64_t>{steps, layers, heads, topk});
  const std::vector<double> p = inputs.at("p").data, w = inputs.at("w").data,
                            needle = inputs.at("needle_ids").data;
  const auto where = locate(p, needle, params.number("needle_match"));
#pragma omp parallel for schedule(dynamic)
  for (int64_t lh = 0; lh < all; ++lh) {
    const int64_t l = lh / heads, h = lh % heads, g = h / (heads / kv);
    std::vector<std::vector<int64_t>> chosen;
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t row = (t * all + lh) * d, visible = prompt + t;
      std::vector<double> z(static_cast<size_t>(visible), 0.0);
      for (int64_t j = 0; j < visible; ++j)
        for (int64_t c = 0; c < d; ++c)
          z[static_cast<size_t>(j)] +=
              q[row + c] * k[((l * keys + j) * kv + g) * d + c] / std::sqrt(static_cast<double>(d));
      chosen.push_back(best(z, visible, topk));
      for (int64_t r = 0; r < topk; ++r)
        selected[(t * all + lh) * topk + r] = static_cast<double>(chosen.back()[static_cast<size_t>(r)]);
      const std::vector<char> seen(static_cast<size_t>(visible), 1);
      ref::softmax_row(z, seen);
      for (int64_t j = 0; j < visible; ++j)
        for (int64_t c = 0; c < d; ++c) {
          const double value = v[((l * keys + j) * kv + g) * d + c];
          dense[row + c] += z[static_cast<size_t>(j)] * value;
          uniform[row + c] += value / static_cast<double>(visible);
        }
    }
    const auto [a, b] = scores_of(chosen, p, w, where);
    reference[lh] = a;
    paper[lh] = b;
  }
  // The masked heads: listed, or the best, or random ones from outside the best.
  std::set<int64_t> masked;
  const int64_t wanted = params.integer("mask_topk");
  if (inputs.contains("block_list")) {
    const RefTensor& list = inputs.at("block_list");
    for (int64_t i = 0; i < list.dim(0); ++i)
      masked.insert(static_cast<int64_t>(list[2 * i]) * heads + static_cast<int64_t>(list[2 * i + 1]));
  } else if (wanted != 0) {
    RefMap ranked;
    const std::vector<double>& score = params.choice("score_mode") == "paper" ? paper.data : reference.data;
    add_statistics(ranked, params, layers, heads, score, score, score);
    const RefTensor& order = ranked.at("top_k_order");
    std::vector<int64_t> from;
    for (int64_t i = 0; i < all; ++i)
      from.push_back(static_cast<int64_t>(order[2 * i]) * heads + static_cast<int64_t>(order[2 * i + 1]));
    if (wanted < 0) {
      from.erase(from.begin(), from.begin() + std::min(params.integer("random_exclude_top"), all));
      const auto key = [&](int64_t h) {
        return random_bits(static_cast<uint64_t>(params.integer("seed")), stream_of("random heads"),
                           static_cast<uint64_t>(h));
      };
      std::sort(from.begin(), from.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    }
    for (size_t i = 0; i < from.size() && static_cast<int64_t>(masked.size()) < std::abs(wanted); ++i)
      masked.insert(from[i]);
  }
  RefTensor zero = dense, mean = dense;
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t lh : masked)
      for (int64_t c = 0; c < d; ++c) {
        const int64_t at = (t * all + lh) * d + c;
        zero[at] = 0;
        mean[at] = uniform[at];
      }
  RefTensor range({2});
  range[0] = static_cast<double>(where.first);
  range[1] = static_cast<double>(where.second);
  return {{"needle_range", range}, {"score_reference", reference},
          {"score_paper", paper},  {"selected", selected},
          {"dense", dense},        {"masked", params.choice("mask_mode") == "uniform" ? mean : zero},
          {"masked_zero", zero}};
}

RefMap file_reference(const Params& params) {
  std::ifstream f(params.text("scores_file"));
  const nlohmann::json j = nlohmann::json::parse(f);
  const int64_t layers = params.integer("num_layers"), heads = params.integer("num_heads");
  std::vector<double> mean, frequency;
  for (int64_t l = 0; l < layers; ++l)
    for (int64_t h = 0; h < heads; ++h) {
      const auto list = j.at(std::to_string(l) + "-" + std::to_string(h)).get<std::vector<double>>();
      double sum = 0, active = 0;
      for (double v : list) sum += v, active += v > 0;
      const double n = list.empty() ? 1.0 : static_cast<double>(list.size());
      mean.push_back(sum / n);
      frequency.push_back(active / n);
    }
  RefMap out;
  add_statistics(out, params, layers, heads, mean, mean, frequency);
  return out;
}

RefMap retrieval_reference(const Problem& problem, const Params& params, const RefMap& inputs,
                           const RefMap&) {
  if (!params.text("scores_file").empty()) return file_reference(params);
  return problem.head_dim == 0 ? rows_reference(params, inputs) : qk_reference(params, inputs);
}
ATTNBENCH_REFERENCE(retrieval_heads, retrieval_reference);

}  // namespace
}  // namespace attnbench
