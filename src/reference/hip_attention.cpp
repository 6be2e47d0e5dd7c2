// Reference of `hip_attention`: the card's search and attention in double, keys asked one by one.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/reference.hpp"

namespace attnbench {
namespace {

/// The hash that draws a `random` representative, as the operator's header defines it.
uint32_t drawn(uint32_t seed, uint32_t head, uint32_t block, uint32_t round, uint32_t start) {
  uint32_t x = seed * 0x9e3779b1u + head;
  const uint32_t parts[3] = {block, round, start};
  for (uint32_t v : parts) {
    x = (x ^ (x >> 16)) * 0x7feb352du + v;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
  }
  return x ^ (x >> 16);
}

struct Cell {
  int64_t start, size;
};

RefMap hip_reference(const Problem&, const Params& params, const RefMap& inputs, const RefMap&) {
  const RefTensor &q = inputs.at("q"), &k = inputs.at("k"), &v = inputs.at("v");
  const int64_t batch = q.dim(0), Tq = q.dim(1), heads = q.dim(2), D = q.dim(3), Tk = k.dim(1),
                kv_heads = k.dim(2);
  const bool causal = params.boolean("causal");
  const int64_t bq = params.integer("block_size_q"), sq = params.integer("block_stride_q");
  const int64_t bk = params.integer("block_size_k"), sk = params.integer("block_stride_k");
  const int64_t keep = params.integer("mask_k"), w = params.integer("sliding_window"),
                sinks = params.integer("sink_tokens");
  const int64_t Kb = (keep + bk - 1) / bk, nq = (Tq + bq - 1) / bq;
  const std::string& representative = params.choice("representative");
  const double scale = 1.0 / std::sqrt(static_cast<double>(D));
  RefTensor out(q.shape), selected({batch, heads, nq, Kb}), count({batch, heads, nq});
  std::fill(selected.data.begin(), selected.data.end(), -1.0);
  for (int64_t bh = 0; bh < batch * heads; ++bh) {
    const int64_t b = bh / heads, h = bh % heads, kv = h / (heads / kv_heads);
    const auto logit = [&](int64_t r, int64_t j) {
      double s = 0;
      for (int64_t d = 0; d < D; ++d)
        s += scale * q[((b * Tq + r) * heads + h) * D + d] * k[((b * Tk + j) * kv_heads + kv) * D + d];
      return s;
    };
    const auto position = [&](int64_t r) { return Tk - Tq + r; };
    for (int64_t m = 0; m < nq; ++m) {
      const int64_t first = m * bq, last = std::min(Tq, first + bq), rows = last - first;
      const int64_t t = causal ? position(last - 1) + 1 : Tk, T = std::max<int64_t>(0, t - w),
                    nb = (T + bk - 1) / bk;
      std::vector<int64_t> sampled;
      for (int64_t r = first + sq - 1; r < last; r += sq) sampled.push_back(r);
      if (rows < sq) sampled = {last - 1};
      const auto block_score = [&](int64_t r) {
        double best = -INFINITY;
        for (int64_t j = r * bk + sk - 1; j < std::min(T, (r + 1) * bk); j += sk)
          for (int64_t i : sampled)
            if (!causal || j <= position(i)) best = std::max(best, logit(i, j));
        return best;
      };
      std::vector<int64_t> chosen;
      if (T <= keep) {
        chosen.resize(static_cast<size_t>(nb));
        std::iota(chosen.begin(), chosen.end(), int64_t{0});
      } else {
        std::vector<Cell> cells;
        for (int64_t i = 0; i < Kb; ++i) cells.push_back({nb * i / Kb, nb * (i + 1) / Kb - nb * i / Kb});
        uint32_t round = 0;
        for (double gs = static_cast<double>(nb) / static_cast<double>(Kb); gs > 1; gs /= 2, ++round) {
          std::vector<Cell> children;
          for (const Cell& c : cells) {
            if (c.size / 2 > 0) children.push_back({c.start, c.size / 2});
            children.push_back({c.start + c.size / 2, c.size - c.size / 2});
          }
          std::vector<double> score;
          for (const Cell& c : children) {
            if (representative == "oracle") {
              double best = -INFINITY;
              for (int64_t r = c.start; r < c.start + c.size; ++r) best = std::max(best, block_score(r));
              score.push_back(best);
              continue;
            }
            const int64_t at =
                representative == "first"    ? 0
                : representative == "center" ? c.size / 2
                : representative == "last"
                    ? c.size - 1
                    : static_cast<int64_t>(drawn(static_cast<uint32_t>(params.integer("seed")),
                                                 static_cast<uint32_t>(bh), static_cast<uint32_t>(m), round,
                                                 static_cast<uint32_t>(c.start)) %
                                           static_cast<uint32_t>(c.size));
            score.push_back(block_score(c.start + at));
          }
          std::vector<Cell> kept;
          for (size_t i = 0; i < children.size(); ++i) {
            int64_t before = 0;
            for (size_t o = 0; o < children.size(); ++o)
              before +=
                  score[o] > score[i] || (score[o] == score[i] && children[o].start < children[i].start);
            if (before < Kb) kept.push_back(children[i]);
          }
          cells = kept;
        }
        for (const Cell& c : cells) chosen.push_back(c.start);
        std::sort(chosen.begin(), chosen.end());
      }
      count[bh * nq + m] = static_cast<double>(chosen.size());
      std::vector<char> listed(static_cast<size_t>(Tk), 0);
      for (size_t i = 0; i < chosen.size(); ++i) {
        selected[(bh * nq + m) * Kb + static_cast<int64_t>(i)] = static_cast<double>(chosen[i]);
        for (int64_t j = chosen[i] * bk; j < std::min(T, (chosen[i] + 1) * bk); ++j)
          listed[static_cast<size_t>(j)] = 1;
      }
      for (int64_t j = 0; j < t; ++j)
        if ((w > 0 && j >= t - w) || j < sinks) listed[static_cast<size_t>(j)] = 1;
      for (int64_t r = first; r < last; ++r) {
        const int64_t end = causal ? position(r) + 1 : Tk;
        std::vector<double> p(static_cast<size_t>(Tk));
        std::vector<char> visible(static_cast<size_t>(Tk));
        for (int64_t j = 0; j < end; ++j) {
          visible[static_cast<size_t>(j)] =
              listed[static_cast<size_t>(j)] || position(r) < params.integer("dense_queries");
          if (visible[static_cast<size_t>(j)]) p[static_cast<size_t>(j)] = logit(r, j);
        }
        if (!ref::softmax_row(p, visible)) continue;
        for (int64_t j = 0; j < end; ++j)
          for (int64_t d = 0; d < D && visible[static_cast<size_t>(j)]; ++d)
            out[((b * Tq + r) * heads + h) * D + d] +=
                p[static_cast<size_t>(j)] * v[((b * Tk + j) * kv_heads + kv) * D + d];
      }
    }
  }
  return {{"out", out}, {"selected", selected}, {"selected_count", count}};
}
ATTNBENCH_REFERENCE(hip_attention, hip_reference);

}  // namespace
}  // namespace attnbench
