// Attention in double precision, one pair at a time, straight from the contract's formulas, and the masks it
// reads written out as a predicate. Shares no code with the operator: its own window arithmetic, its own list
// walking. For tests only.
#pragma once
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention/attention.hpp"

namespace attnbench::attention_test {

inline double element(const Tensor& t, std::initializer_list<int64_t> at) {
  int64_t offset = 0;
  int a = 0;
  for (int64_t i : at) offset += i * t.stride(a++);
  switch (t.dtype()) {
    case DType::f32:
      return t.data<float>()[offset];
    case DType::bf16:
      return static_cast<float>(t.data<bf16>()[offset]);
    case DType::f16:
      return static_cast<float>(t.data<f16>()[offset]);
    case DType::i32:
      return t.data<int32_t>()[offset];
    case DType::u8:
      return t.data<uint8_t>()[offset];
    default:
      return t.data<double>()[offset];
  }
}
/// The index of a group axis: 1 for all, or one entry a group of heads (or batches).
inline int64_t pick(int64_t extent, int64_t index, int64_t total) { return index * extent / total; }

/// Coordinates of a token: row-major, or the digits (groups, tile numbers, places) of a tiled numbering.
inline std::vector<int64_t> place_on_grid(const ElementRule& r, const std::array<int64_t, 3>& tile,
                                          int64_t token) {
  std::vector<int64_t> radix, digit;
  for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a)
    radix.push_back(tile[0] == 0 ? r.grid[a] : r.dilation[a]);
  for (size_t a = 0; tile[0] > 0 && a < static_cast<size_t>(r.rank); ++a) {
    int64_t tiles = 0;
    while (tiles * tile[a] * r.dilation[a] < r.grid[a]) ++tiles;
    radix.push_back(tiles);
  }
  for (size_t a = 0; tile[0] > 0 && a < static_cast<size_t>(r.rank); ++a) radix.push_back(tile[a]);
  digit.resize(radix.size());
  for (size_t x = radix.size(); x-- > 0; token /= radix[x]) digit[x] = token % radix[x];
  const size_t rank = static_cast<size_t>(r.rank);
  if (tile[0] > 0)
    for (size_t a = 0; a < rank; ++a)
      digit[a] += r.dilation[a] * (digit[rank + a] * tile[a] + digit[2 * rank + a]);
  return digit;
}

/// Does the element rule let token i see token j? `si`, `sj` are their slots (bitmaps speak of slots).
inline bool rule_lets(const ElementRule& r, int64_t b, int64_t h, int64_t batch, int64_t heads, int64_t i,
                      int64_t j, int64_t si, int64_t sj, int64_t n, int64_t m) {
  const int64_t off = r.offset == ElementRule::kAlignEnds ? m - n : r.offset;
  if (r.causal && j > i + off) return false;
  if (r.band && !(j < r.sinks)) {
    if (r.left >= 0 && j < i + off - r.left) return false;
    if (r.right >= 0 && j > i + off + r.right) return false;
  }
  // Neighbourhood: list the window of each axis member by member.
  const std::vector<int64_t> at_i = place_on_grid(r, r.q_tile, i), at_j = place_on_grid(r, r.k_tile, j);
  for (int a = r.rank - 1; a >= 0; --a)
    if (at_i[static_cast<size_t>(a)] >= r.grid[static_cast<size_t>(a)]) return false;
  for (int a = r.rank - 1; a >= 0; --a) {
    const auto A = static_cast<size_t>(a);
    const int64_t L = r.grid[A], xi = at_i[A], xj = at_j[A];
    std::vector<int64_t> group;  // coordinates of the query's dilation group
    int64_t me = -1;
    for (int64_t x = xi % r.dilation[A]; x < L; x += r.dilation[A]) {
      if (x == xi) me = static_cast<int64_t>(group.size());
      group.push_back(x);
    }
    const int64_t size = static_cast<int64_t>(group.size());
    const int64_t stride_group = me - me % r.stride[A];
    bool seen = false;
    if (r.causal_axis[A]) {
      const int64_t leader = std::min(stride_group + r.stride[A] - 1, size - 1);
      for (int64_t p = std::max<int64_t>(0, leader - r.window[A] + 1); p <= me; ++p)
        seen |= group[static_cast<size_t>(p)] == xj;
    } else {
      const int64_t leader = std::min(stride_group + r.stride[A] / 2, size - 1);
      int64_t start = leader - r.window[A] / 2;
      while (!r.cut_axis[A] && start + r.window[A] > size) --start;
      while (!r.cut_axis[A] && start < 0) ++start;
      for (int64_t p = start; p < start + r.window[A]; ++p)
        seen |= p >= 0 && p < size && group[static_cast<size_t>(p)] == xj;
    }
    if (!seen) return false;
  }
  if (r.segment_q && element(r.segment_q, {pick(r.segment_q.dim(0), b, batch), i}) !=
                         element(r.segment_k, {pick(r.segment_k.dim(0), b, batch), j}))
    return false;
  if (r.bitmap) {
    const int byte = static_cast<int>(
        element(r.bitmap, {pick(r.bitmap.dim(0), b, batch), pick(r.bitmap.dim(1), h, heads), si, sj / 8}));
    if (!(byte & (1 << (sj % 8)))) return false;
  }
  return true;
}

inline bool listed(const BlockList& l, int64_t b, int64_t h, int64_t batch, int64_t heads, int64_t row,
                   int64_t what) {
  if (!l) return false;
  const int64_t gb = pick(l.count.dim(0), b, batch), gh = pick(l.count.dim(1), h, heads);
  const auto begin = static_cast<int64_t>(element(l.begin, {gb, gh, row}));
  const auto count = static_cast<int64_t>(element(l.count, {gb, gh, row}));
  for (int64_t e = begin; e < begin + count; ++e)
    if (static_cast<int64_t>(element(l.index, {e})) == what) return true;
  return false;
}

/// Is the pair of query slot si and key slot sj attended?
inline bool attends(const BlockMask* mask, int64_t b, int64_t h, int64_t batch, int64_t heads, int64_t si,
                    int64_t sj, int64_t n, int64_t m_shape, int64_t m_rule) {
  if (!mask) return true;
  const int64_t i = mask->q_order ? static_cast<int64_t>(element(mask->q_order, {si})) : si;
  const int64_t j = mask->k_order ? static_cast<int64_t>(element(mask->k_order, {sj})) : sj;
  if (mask->row_begin) {
    const int64_t gb = pick(mask->row_begin.dim(0), b, batch), gh = pick(mask->row_begin.dim(1), h, heads);
    if (j < element(mask->row_begin, {gb, gh, i}) || j >= element(mask->row_end, {gb, gh, i})) return false;
  }
  if (mask->key_length && j >= element(mask->key_length, {b})) return false;
  if (mask->key_valid && element(mask->key_valid, {b, j}) == 0) return false;
  (void)m_shape;
  const bool rule = rule_lets(mask->rule, b, h, batch, heads, i, j, si, sj, n, m_rule);
  if (mask->gather) return listed(mask->gather, b, h, batch, heads, si / mask->block_q, sj) && rule;
  if (mask->full || mask->partial) {
    const int64_t row = si / mask->block_q, column = sj / mask->block_k;
    if (listed(mask->full, b, h, batch, heads, row, column)) return true;
    return listed(mask->partial, b, h, batch, heads, row, column) && rule;
  }
  return rule;
}

struct Expected {
  int64_t batch, heads, n, m, e, blocks_q, blocks_k;
  std::vector<double> o, bound;  ///< bound: sum_j p_j |v_j|, the size of what was added up
  std::vector<double> lse, row_max, entropy, mass_key, mass_block;
  std::vector<double> score_size;  ///< largest |q| |k| scale + |bias| of the row: what rounding scales with
  int64_t attended = 0;
};

inline Expected reference(const AttentionArgs& a) {
  Expected x;
  const double inf = std::numeric_limits<double>::infinity();
  const int64_t B = x.batch = a.q.dim(0), H = x.heads = a.q.dim(1), N = x.n = a.q.dim(2), D = a.q.dim(3);
  const int64_t hkv = a.k.dim(1), E = x.e = a.v.dim(3);
  const int64_t M = x.m = a.pages.table ? a.pages.table.dim(1) * a.pages.page_size : a.k.dim(2);
  const int64_t bq = a.mask ? a.mask->block_q : 64, bk = a.mask ? a.mask->block_k : 64;
  x.blocks_q = (N + bq - 1) / bq, x.blocks_k = (M + bk - 1) / bk;
  const auto rows = static_cast<size_t>(B * H * N);
  x.o.assign(rows * static_cast<size_t>(E), 0), x.bound = x.o;
  x.lse.assign(rows, -inf), x.row_max = x.lse, x.entropy.assign(rows, 0), x.score_size.assign(rows, 0);
  x.mass_key.assign(static_cast<size_t>(B * H * M), 0);
  x.mass_block.assign(static_cast<size_t>(B * H * x.blocks_q * x.blocks_k), 0);
  std::vector<double> score(static_cast<size_t>(M)), p(static_cast<size_t>(M));
  std::vector<int64_t> seen;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t si = 0; si < N; ++si) {
        const int64_t i =
            a.mask && a.mask->q_order ? static_cast<int64_t>(element(a.mask->q_order, {si})) : si;
        const int64_t g = h / (H / hkv);
        const int64_t m_rule = a.pages.table ? static_cast<int64_t>(element(a.mask->key_length, {b})) : M;
        const auto row = static_cast<size_t>((b * H + h) * N + i);
        const auto place = [&](int64_t j, int64_t& k0, int64_t& k2) {
          k0 = b, k2 = j;
          if (!a.pages.table) return;
          k0 = static_cast<int64_t>(element(a.pages.table, {b, j / a.pages.page_size}));
          k2 = j % a.pages.page_size;
        };
        seen.clear();
        double top = -inf;
        bool nan = false;
        for (int64_t sj = 0; sj < M; ++sj) {
          if (!attends(a.mask, b, h, B, H, si, sj, N, M, m_rule)) continue;
          const int64_t j =
              a.mask && a.mask->k_order ? static_cast<int64_t>(element(a.mask->k_order, {sj})) : sj;
          int64_t k0, k2;
          place(j, k0, k2);
          double s = 0, size = 0;
          for (int64_t d = 0; d < D; ++d) {
            const double t = element(a.q, {b, h, i, d}) * element(a.k, {k0, g, k2, d});
            s += t, size += std::fabs(t);
          }
          const double away = static_cast<double>(j - i - (m_rule - N));
          const auto embedding = [&](const Tensor& table, int64_t c) {
            int64_t at = a.relative.origin + static_cast<int64_t>(away);
            if (a.relative.clip) at = at < 0 ? 0 : at >= table.dim(1) ? table.dim(1) - 1 : at;
            return at < 0 || at >= table.dim(1) ? 0.0 : element(table, {pick(table.dim(0), h, H), at, c});
          };
          for (int64_t d = 0; a.relative.keys && d < D; ++d) {
            const double t = element(a.q, {b, h, i, d}) * embedding(a.relative.keys, d);
            s += t, size += std::fabs(t);
          }
          s *= a.scale, size *= std::fabs(a.scale);
          if (a.soft_cap > 0)
            s = a.soft_cap * std::tanh(s / a.soft_cap), size = std::min(size, double{a.soft_cap} + size / 8);
          if (a.bias.dense) {
            const double t = element(
                a.bias.dense, {pick(a.bias.dense.dim(0), b, B), pick(a.bias.dense.dim(1), h, H), i, j});
            s += t;
            if (std::isfinite(t)) size += std::fabs(t);
          }
          if (a.bias.slope) {
            const double t = -element(a.bias.slope, {h}) * std::fabs(away);
            s += t, size += std::fabs(t);
          }
          if (a.bias.relative) {
            const int64_t R = (a.bias.relative.dim(1) - 1) / 2;
            const double t =
                element(a.bias.relative, {pick(a.bias.relative.dim(0), h, H),
                                          std::max(-R, std::min(R, static_cast<int64_t>(away))) + R});
            s += t, size += std::fabs(t);
          }
          x.attended += 1;
          if (std::isnan(s)) nan = true;
          seen.push_back(sj);
          score[static_cast<size_t>(sj)] = s;
          top = std::max(top, s);
          x.score_size[row] = std::max(x.score_size[row], size);
        }
        if (seen.empty() || (top == -inf && !nan)) continue;
        const double sink = a.sink_logit ? element(a.sink_logit, {h}) : -inf;
        const double shift = std::max(top, sink);
        double sum = std::exp(sink - shift);
        for (int64_t sj : seen) sum += std::exp(score[static_cast<size_t>(sj)] - shift);
        x.lse[row] = shift + std::log(sum), x.row_max[row] = nan ? std::nan("") : top;
        const auto plogp = [](double q) { return q > 0 ? -q * std::log(q) : q; };
        x.entropy[row] = plogp(std::exp(sink - x.lse[row]));
        for (int64_t sj : seen) {
          const int64_t j =
              a.mask && a.mask->k_order ? static_cast<int64_t>(element(a.mask->k_order, {sj})) : sj;
          int64_t k0, k2;
          place(j, k0, k2);
          const double w = std::exp(score[static_cast<size_t>(sj)] - shift) / sum;
          x.entropy[row] += plogp(w);
          x.mass_key[static_cast<size_t>((b * H + h) * M + j)] += w;
          x.mass_block[static_cast<size_t>(((b * H + h) * x.blocks_q + si / bq) * x.blocks_k + sj / bk)] += w;
          for (int64_t c = 0; c < E; ++c) {
            const double v = element(a.v, {k0, g, k2, c});
            const auto at = row * static_cast<size_t>(E) + static_cast<size_t>(c);
            x.o[at] += w * v, x.bound[at] += std::fabs(w * v);
            if (const Tensor& table = a.relative.values) {
              int64_t r = a.relative.origin + j - i - (m_rule - N);
              if (a.relative.clip) r = r < 0 ? 0 : r >= table.dim(1) ? table.dim(1) - 1 : r;
              if (r < 0 || r >= table.dim(1)) continue;
              const double f = element(table, {pick(table.dim(0), h, H), r, c});
              x.o[at] += w * f, x.bound[at] += std::fabs(w * f);
            }
          }
        }
      }
  return x;
}

/// Compares every output of a call with the reference; returns what is wrong first, with its place, or "".
///
/// Where the bounds come from. With u = 2^-24: a score is a dot product of D terms and a few additive terms,
/// so |ds| <= (D + 8) u size with size = sum |q k| scale + |bias|; all scores of a row move p by at most
/// exp(2 ds) - 1, so o by 2 ds sum p |v|, plus the sums over keys, (M + 8) u sum p |v|, plus exp's 2 ulp. The
/// worst case never occurs; random signs give the square root of the counts, times 8 for the tail of
/// thousands of cases. Stored types add half an ulp of the result, and products of 16-bit types round p as
/// well: `product_rounding` is the largest relative step of that (half an epsilon), 0 for f32.
inline std::string compare(const AttentionArgs& a, const Expected& x, double product_rounding) {
  const double u = 5.9604644775390625e-08, eps = epsilon_of(a.o.dtype()) / 2;
  const double D = static_cast<double>(a.q.dim(3)), M = static_cast<double>(x.m);
  const auto differs = [](double got, double want, double bound) {
    if (std::isnan(want)) return !std::isnan(got);
    if (std::isinf(want)) return got != want;
    return !(std::fabs(got - want) <= bound);
  };
  const auto say = [](const char* what, std::initializer_list<int64_t> at, double got, double want,
                      double bound) {
    std::string s = std::string(what) + "[";
    for (int64_t i : at) s += std::to_string(i) + " ";
    char text[160];
    std::snprintf(text, sizeof text, "] = %.9g, expected %.9g, off by %.3g, bound %.3g", got, want,
                  got - want, bound);
    return s + text;
  };
  for (int64_t b = 0; b < x.batch; ++b)
    for (int64_t h = 0; h < x.heads; ++h) {
      double head_noise = 0;
      for (int64_t i = 0; i < x.n; ++i) {
        const auto row = static_cast<size_t>((b * x.heads + h) * x.n + i);
        const double ds = 8 * (std::sqrt(D) + 8) * u * (x.score_size[row] + 1);
        const double sums = 8 * (std::sqrt(M) + 8) * u;
        const double dp = 2 * ds + sums + 3 * product_rounding;
        head_noise = std::max(head_noise, dp);
        for (int64_t c = 0; c < x.e; ++c) {
          const auto at = row * static_cast<size_t>(x.e) + static_cast<size_t>(c);
          const double want = x.o[at], got = element(a.o, {b, h, i, c});
          const double tiny = a.o.dtype() == DType::f16 ? 6e-8 : 1e-37;  // subnormals of the stored type
          const double bound = x.bound[at] * dp + std::fabs(want) * eps * 1.01 + tiny;
          if (differs(got, want, bound)) return say("o", {b, h, i, c}, got, want, bound);
        }
        const double lse_bound = ds + sums + 4 * u * std::fabs(std::isfinite(x.lse[row]) ? x.lse[row] : 0);
        if (a.lse && differs(element(a.lse, {b, h, i}), x.lse[row], lse_bound))
          return say("lse", {b, h, i}, element(a.lse, {b, h, i}), x.lse[row], lse_bound);
        if (a.row_max && differs(element(a.row_max, {b, h, i}), x.row_max[row], lse_bound))
          return say("row_max", {b, h, i}, element(a.row_max, {b, h, i}), x.row_max[row], lse_bound);
        // dH = -sum dp (ln p + 1), and sum p |ln p| <= ln M.
        const double entropy_bound = (2 * ds + sums) * (2 + std::log(M + 2)) + 4 * ds;
        if (a.row_entropy && differs(element(a.row_entropy, {b, h, i}), x.entropy[row], entropy_bound))
          return say("row_entropy", {b, h, i}, element(a.row_entropy, {b, h, i}), x.entropy[row],
                     entropy_bound);
      }
      const double f32_noise = head_noise;
      for (int64_t j = 0; a.mass_per_key && j < x.m; ++j) {
        const double want = x.mass_key[static_cast<size_t>((b * x.heads + h) * x.m + j)];
        const double got = element(a.mass_per_key, {b, h, j});
        const double bound = std::fabs(want) * f32_noise + 1e-30;
        if (differs(got, want, bound)) return say("mass_per_key", {b, h, j}, got, want, bound);
      }
      for (int64_t r = 0; a.mass_per_block && r < x.blocks_q; ++r)
        for (int64_t c = 0; c < x.blocks_k; ++c) {
          const double want =
              x.mass_block[static_cast<size_t>(((b * x.heads + h) * x.blocks_q + r) * x.blocks_k + c)];
          const double got = element(a.mass_per_block, {b, h, r, c});
          const double bound = std::fabs(want) * f32_noise + 1e-30;
          if (differs(got, want, bound)) return say("mass_per_block", {b, h, r, c}, got, want, bound);
        }
    }
  return "";
}

}  // namespace attnbench::attention_test
