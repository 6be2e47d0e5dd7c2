// CpuBackend::attention: tiles of queries against steps of keys, with an online softmax.
//
// A tile is up to 64 (query, head) pairs of one batch and kv head that share their key lists; a step is up to
// 64 keys. For every tile: transpose Q once, then for every step: scores, score terms, softmax, output. What
// a step needs of masks is one 64-bit word per key (bit = lane), computed only where a step is neither fully
// visible nor invisible; cpu_kernel.hpp says how the products run.
//
// Tiles are scheduled dynamically; each is computed by one thread in a fixed order, splits of the keys depend
// on the shape alone, and masses are summed by the owner of a range of keys: so results do not depend on the
// number of threads. Workspace is a few hundred KiB a thread, plus what split keys or masses ask for, which
// is linear in N.
#include <omp.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/attention/cpu_walk.hpp"
#include "kernels/core/cpu_backend.hpp"

namespace attnbench {
namespace {

using namespace cpu_attention;

constexpr double kLn2 = 0.6931471805599453;
constexpr float kInf = std::numeric_limits<float>::infinity();

// Below this many multiply-adds a call takes less time than starting a parallel region is worth (a region
// costs a few microseconds; one core does 10^6 multiply-adds in about 15).
constexpr int64_t kSerialWork = 1'000'000;
// Keys are split when fewer tiles than this exist ...
constexpr int64_t kSplitTiles = 16;
// ... into parts of at least so many keys, at most 32 tasks in all.
constexpr int64_t kSplitKeys = 2048;
constexpr int64_t kSplitTasks = 32;
// Keys that one task of the mass pass owns.
constexpr int64_t kMassKeys = 512;

void load_queries(const Plan& p, const Tile& t, Workspace& w) {
  w.far_next = -1;
  const void* rows[kLanes];
  for (int l = 0; l < t.used; ++l) rows[l] = p.q.at(t.b, t.head_of(l), t.token[l]);
  if (t.by_rows) {
    p.k.widen(p.dtype, rows, t.used, p.s.d, w.q, p.s.d);
    // decode() computes full groups of queries.
    const int64_t begin = t.used * p.s.d, end = kRowQueries * p.s.d;
    std::fill(w.q + begin, w.q + end, 0.0f);
    if (p.pairs) {
      for (int l = 0; l < t.used; ++l)
        std::memcpy(w.q_pairs + l * p.s.d, rows[l], static_cast<size_t>(p.s.d) * sizeof(bf16));
      std::fill(w.q_pairs + begin, w.q_pairs + end, bf16());
    }
  } else if (p.pairs)
    p.k.pack_columns_pairs(rows, t.used, p.s.d, t.lanes, w.q);
  else
    p.k.pack_columns(p.dtype, rows, t.used, p.s.d, t.lanes, w.q);
  if (p.a.bias.slope) {
    const Tensor& slope = p.a.bias.slope;
    for (int l = 0; l < t.lanes; ++l) {
      w.slope[l] = l < t.used ? slope.data<float>()[t.head_of(l) * slope.stride(0)] : 0.0f;
      w.position[l] = l < t.used ? static_cast<float>(t.token[l] + t.offset) : 0.0f;
    }
  }
}

/// The additive terms that come from tables, as S^T.
void fill_bias(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  const ScoreBias& bias = p.a.bias;
  const auto each = [&](auto&& value) {
    for (int j = 0; j < step.keys; ++j)
      for (int l = 0; l < t.lanes; ++l) w.add[j * t.lanes + l] = l < t.used ? value(j, l) : 0.0f;
  };
  if (bias.dense) {
    const Tensor& d = bias.dense;
    const int64_t size = static_cast<int64_t>(size_of(d.dtype()));
    const void* rows[kLanes];
    const int64_t by_batch = d.dim(0) == 1 ? 0 : d.stride(0), by_head = d.dim(1) == 1 ? 0 : d.stride(1);
    const int64_t by_row = d.stride(2), by_key = d.stride(3);
    for (int l = 0; l < t.used; ++l)
      rows[l] =
          static_cast<const char*>(d.raw()) +
          (t.b * by_batch + t.head_of(l) * by_head + t.token[l] * by_row + step.token[0] * by_key) * size;
    if (step.consecutive && by_key == 1) {
      p.k.pack_columns(d.dtype(), rows, t.used, step.keys, t.lanes, w.add);
    } else {
      each([&](int j, int l) {
        const char* x = static_cast<const char*>(rows[l]) + (step.token[j] - step.token[0]) * by_key * size;
        if (d.dtype() == DType::f32) return *reinterpret_cast<const float*>(x);
        if (d.dtype() == DType::bf16) return static_cast<float>(*reinterpret_cast<const bf16*>(x));
        return static_cast<float>(*reinterpret_cast<const f16*>(x));
      });
    }
  }
  if (bias.relative) {
    const Tensor& table = bias.relative;
    const int64_t reach = (table.dim(1) - 1) / 2;
    const float* base = table.data<float>();
    if (!bias.dense) std::fill(w.add, w.add + step.keys * t.lanes, 0.0f);
    const int64_t by_head = table.dim(0) == 1 ? 0 : table.stride(0), by_entry = table.stride(1);
    const auto entry = [&](int64_t head, int64_t distance) {
      return base[head * by_head + (std::clamp(distance, -reach, reach) + reach) * by_entry];
    };
    if (step.consecutive && !p.q_order && t.heads == 1) {
      // Along a row of S^T the distance falls by one a lane: one reversed run of the table serves all keys.
      float run[kKeys + kLanes];
      const int64_t farthest = step.token[step.keys - 1] - t.token[0] - t.offset;
      for (int u = 0; u < step.keys + t.used - 1; ++u) run[u] = entry(t.head, farthest - u);
      for (int j = 0; j < step.keys; ++j)
        for (int l = 0; l < t.used; ++l) w.add[j * t.lanes + l] += run[step.keys - 1 - j + l];
    } else {
      for (int j = 0; j < step.keys; ++j)
        for (int l = 0; l < t.used; ++l)
          w.add[j * t.lanes + l] += entry(t.head_of(l), step.token[j] - t.token[l] - t.offset);
    }
  }
}

/// How far ahead to fetch rows of a cache that streams through: about 8 KiB, which on one core raised plain
/// reading from 33 to 43 GB/s (EPYC, Zen 5).
int64_t ahead_of(const View& t) { return std::max<int64_t>(8, 8192 / t.width) * t.row; }
/// Only where the rows to come follow in memory.
int64_t ahead_of(const Plan& p, const Step& step, const View& t) {
  return step.consecutive && step.keys == kKeys && !p.paged ? ahead_of(t) : 0;
}

// Of a masked step in lane form only a staircase of 16 x 16 corners holds visible pairs (a causal diagonal:
// 10 of 16). The products skip what lies outside: its scores stay unset and the softmax, which looks at the
// mask first, turns them into weights of 0.
constexpr int kCorner = 16;

struct Span {
  int begin = 0, end = 0;
  bool operator==(const Span&) const = default;
};
/// Lanes, in corners, that see some key of [first, last).
Span visible_lanes(const Step& step, int first, int last, int corners) {
  uint64_t any = 0;
  for (int j = first; j < last; ++j) any |= step.bits[j];
  if (corners < 4) any &= (uint64_t{1} << (corners * kCorner)) - 1;
  if (any == 0) return {};
  return {std::countr_zero(any) / kCorner, (63 - std::countl_zero(any)) / kCorner + 1};
}
/// Calls visit(first key, last key, lanes) for runs of corners of keys that the same lanes see.
template <class Visit>
void each_key_run(const Step& step, int lanes, Visit visit) {
  const int corners = lanes / kCorner;
  if (!step.masked) return visit(0, step.keys, Span{0, corners});
  int from = 0;
  Span span = visible_lanes(step, 0, std::min(kCorner, step.keys), corners);
  for (int j = kCorner; j < step.keys; j += kCorner) {
    const Span next = visible_lanes(step, j, std::min(j + kCorner, step.keys), corners);
    if (next == span) continue;
    if (span.begin < span.end) visit(from, j, span);
    from = j, span = next;
  }
  if (span.begin < span.end) visit(from, step.keys, span);
}
/// Calls visit(lanes, first key, last key) for runs of pairs of corners of lanes that see the same keys.
/// Pairs, because products one vector wide are bound by loads.
template <class Visit>
void each_lane_run(const Step& step, int lanes, Visit visit) {
  const int corners = lanes / kCorner;
  if (!step.masked) return visit(Span{0, corners}, 0, step.keys);
  Span keys[4] = {};
  for (int j = 0; j < step.keys; j += kCorner) {
    const int last = std::min(j + kCorner, step.keys);
    uint64_t any = 0;
    for (int i = j; i < last; ++i) any |= step.bits[i];
    for (int c = 0; c < corners; c += 2) {
      if (!((any >> (c * kCorner)) & (c + 1 < corners ? 0xffffffffu : 0xffffu))) continue;
      if (keys[c / 2].end == 0) keys[c / 2].begin = j;
      keys[c / 2].end = last;
    }
  }
  const int pairs = (corners + 1) / 2;
  for (int c = 0; c < pairs;) {
    int to = c + 1;
    while (to < pairs && keys[to] == keys[c]) ++to;
    if (keys[c].end > 0) visit(Span{2 * c, std::min(2 * to, corners)}, keys[c].begin, keys[c].end);
    c = to;
  }
}

/// Rows of a table of relative embeddings for the distances of keys [token, token + keys) and lanes that hold
/// consecutive queries: entry u is for key j and lane l of u = j - l + lanes - 1.
class DistanceRows {
 public:
  DistanceRows(const Plan& p, const Tile& t, const Workspace& w, const Tensor& table, int64_t token, int keys)
      : clip_(p.a.relative.clip), none_(w.none) {
    const auto size = static_cast<int64_t>(size_of(table.dtype()));
    base_ = static_cast<const char*>(table.raw()) + (table.dim(0) == 1 ? 0 : t.head * table.stride(0)) * size;
    step_ = table.stride(1) * size, rows_ = table.dim(1);
    first_ = p.a.relative.origin + token - t.token[0] - t.offset - (t.lanes - 1);
    count_ = keys + t.lanes - 1;
  }
  int count() const { return count_; }
  /// Entries [begin, end) have rows; the others are zero.
  int begin() const { return clip_ ? 0 : static_cast<int>(std::clamp<int64_t>(-first_, 0, count_)); }
  int end() const {
    return clip_ ? count_ : static_cast<int>(std::clamp<int64_t>(rows_ - first_, 0, count_));
  }
  const void* at(int u) const { return row(first_ + u); }
  /// Whether no row of entries [begin(), end()) holds inf or NaN. A thread looks at every row of a table
  /// once: what it knows grows with the walk, which goes from row to row.
  bool finite(const Plan& p, Workspace& w, const Tensor& table, int64_t head) const {
    if (begin() >= end()) return true;
    const int64_t low = index(first_ + begin()), high = index(first_ + end() - 1) + 1;
    if (w.finite_head != head || low > w.finite_end || high < w.finite_begin)
      w.finite_head = head, w.finite_begin = w.finite_end = low;
    const auto look = [&](int64_t from, int64_t to) {
      for (; from < to; ++from) {
        const void* x = base_ + from * step_;
        if (!p.k.finite(p.dtype, &x, 1, table.dim(2))) return false;
      }
      return true;
    };
    if (!look(low, w.finite_begin) || !look(w.finite_end, high)) return false;
    w.finite_begin = std::min(w.finite_begin, low), w.finite_end = std::max(w.finite_end, high);
    return true;
  }
  const void* row(int64_t r) const {
    if (!clip_ && (r < 0 || r >= rows_)) return none_;
    return base_ + index(r) * step_;
  }

 private:
  int64_t index(int64_t r) const { return std::clamp<int64_t>(r, 0, rows_ - 1); }

  const char* base_;
  int64_t step_, rows_, first_;
  int count_;
  bool clip_;
  const void* none_;
};

/// Calls visit(first key, keys) for runs of consecutive key tokens of a step.
template <class Visit>
void each_token_run(const Step& step, Visit visit) {
  if (step.consecutive) return visit(0, step.keys);
  for (int j = 0; j < step.keys;) {
    int to = j + 1;
    while (to < step.keys && step.token[to] == step.token[to - 1] + 1) ++to;
    visit(j, to - j);
    j = to;
  }
}

/// Adds q_i . e_{j-i} to S^T.
void add_relative_keys(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  const Tensor& table = p.a.relative.keys;
  const int64_t d = p.s.d;
  if (p.q_order) {  // distances do not run along the lanes
    float query[kMaxDim], key[kMaxDim];
    const DistanceRows rows(p, t, w, table, t.token[0] + t.offset, 1);
    for (int l = 0; l < t.used; ++l) {
      const void* from = p.q.at(t.b, t.head, t.token[l]);
      p.k.widen(p.dtype, &from, 1, d, query, d);
      for (int j = 0; j < step.keys; ++j) {
        const void* row = rows.row(p.a.relative.origin + step.token[j] - t.token[l] - t.offset);
        if (row == w.none) continue;
        p.k.widen(p.dtype, &row, 1, d, key, d);
        float sum = 0;
        for (int64_t i = 0; i < d; ++i) sum += query[i] * key[i];
        w.s[j * t.lanes + l] += sum;
      }
    }
    return;
  }
  each_token_run(step, [&](int first, int keys) {
    const DistanceRows rows(p, t, w, table, step.token[first], keys);
    // Of what the last step left, all but one distance a key serves again.
    int from = rows.begin(), until = rows.end(), kept = 0;
    if (keys == kKeys && w.far_next == step.token[first]) {
      kept = t.lanes - 1;
      std::memmove(w.far, w.far + int64_t{kKeys} * t.lanes,
                   static_cast<size_t>(int64_t{kept} * t.lanes) * sizeof(float));
      from = std::max(from, kept), until = std::max(until, from);
    }
    w.far_next = step.consecutive && keys == kKeys ? step.token[first] + kKeys : -1;
    std::fill(w.far + kept * t.lanes, w.far + from * t.lanes, 0.0f);
    std::fill(w.far + until * t.lanes, w.far + rows.count() * t.lanes, 0.0f);
    for (int u = from; u < until; u += kKeys) {
      const void* wanted[kKeys];
      const int n = std::min(kKeys, until - u);
      for (int i = 0; i < n; ++i) wanted[i] = rows.at(u + i);
      float* out = w.far + u * t.lanes;
      if (t.by_rows) {
        p.k.row_scores(p.dtype, w.q, d, t.used, d, wanted, n, out, t.lanes, 0);
      } else if (p.pairs) {
        p.k.scores_pairs(w.q, t.lanes, t.lanes, d, wanted, n, out);
      } else {
        if (p.dtype != DType::f32) {
          p.k.widen(p.dtype, wanted, n, d, w.k, d);
          for (int i = 0; i < n; ++i) wanted[i] = w.k + i * d;
        }
        p.k.scores(w.q, t.lanes, t.lanes, d, wanted, n, out);
      }
    }
    p.k.gather_diagonals(w.far, t.lanes, keys, w.s + first * t.lanes);
  });
}

/// O += sum_j p_ij f_{j-i}, pair by pair over the visible ones: for queries in an order, and where a hidden
/// pair's NaN or inf must not meet a weight of 0.
void add_visible_relative_values(const Plan& p, const Tile& t, const Step& step, Workspace& w,
                                 const DistanceRows& rows, int first, int keys) {
  const int64_t e = p.s.e, o_lane = t.by_rows ? e : 1, o_dim = t.by_rows ? 1 : t.lanes;
  float value[kMaxDim];
  for (int j = first; j < first + keys; ++j)
    for (int l = 0; l < t.used; ++l) {
      if (step.masked && !((step.bits[j] >> l) & 1)) continue;
      const void* row = rows.row(p.a.relative.origin + step.token[j] - t.token[l] - t.offset);
      if (row == w.none) continue;
      const float weight = w.s[j * t.lanes + l];
      p.k.widen(p.dtype, &row, 1, e, value, e);
      for (int64_t i = 0; i < e; ++i) w.o[l * o_lane + i * o_dim] += weight * value[i];
    }
}

/// O += P' F with the weights by distance P'; P^T is f32.
void add_relative_values(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  const Tensor& table = p.a.relative.values;
  const int64_t e = p.s.e;
  if (p.q_order)
    return add_visible_relative_values(p, t, step, w, DistanceRows(p, t, w, table, t.token[0] + t.offset, 1),
                                       0, step.keys);
  each_token_run(step, [&](int first, int keys) {
    const DistanceRows rows(p, t, w, table, step.token[first], keys);
    // The band has distances that some lane sees and others do not, without a mask too.
    if (!rows.finite(p, w, table, table.dim(0) == 1 ? 0 : t.head))
      return add_visible_relative_values(p, t, step, w, rows, first, keys);
    p.k.spread_diagonals(w.s + first * t.lanes, t.lanes, keys, w.spread);
    for (int u = rows.begin(); u < rows.end(); u += kKeys) {
      const void* wanted[kKeys];
      const int n = std::min(kKeys, rows.end() - u);
      for (int i = 0; i < n; ++i) wanted[i] = rows.at(u + i);
      const float* weight = w.spread + u * t.lanes;
      if (t.by_rows) {
        p.k.row_accumulate(p.dtype, w.o, e, t.used, e, wanted, n, weight, t.lanes, 0);
        continue;
      }
      if (p.dtype != DType::f32) {
        p.k.widen(p.dtype, wanted, n, e, w.v, e);
        for (int i = 0; i < n; ++i) wanted[i] = w.v + i * e;
      }
      p.k.accumulate(w.o, t.lanes, t.lanes, e, wanted, n, weight);
    }
  });
}

/// S^T of a step, score terms included.
void score_step(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  const void* rows[kKeys];
  if (t.by_rows) {
    p.k.row_scores(p.dtype, w.q, p.s.d, t.used, p.s.d, step.k, step.keys, w.s, t.lanes,
                   ahead_of(p, step, p.k_rows));
  } else {
    const void* const* k = step.k;
    if (p.dtype != DType::f32 && !p.pairs) {
      p.k.widen(p.dtype, step.k, step.keys, p.s.d, w.k, p.s.d);
      for (int j = 0; j < step.keys; ++j) rows[j] = w.k + j * p.s.d;
      k = rows;
    }
    const auto product = p.pairs ? p.k.scores_pairs : p.k.scores;
    each_key_run(step, t.lanes, [&](int first, int last, Span lanes) {
      const int lane = lanes.begin * kCorner;
      product(w.q + lane, t.lanes, (lanes.end - lanes.begin) * kCorner, p.s.d, k + first, last - first,
              w.s + first * t.lanes + lane);
    });
  }
  if (p.a.relative.keys) add_relative_keys(p, t, step, w);
  if (!p.terms) return;
  ScoreTerms terms;
  terms.s = w.s, terms.keys = step.keys, terms.lanes = t.lanes;
  terms.scale = p.a.scale, terms.cap = p.a.soft_cap;
  if (p.a.bias.slope) {
    for (int j = 0; j < step.keys; ++j) w.key_position[j] = static_cast<float>(step.token[j]);
    terms.slope = w.slope, terms.position = w.position, terms.key = w.key_position;
  }
  if (p.a.bias.dense || p.a.bias.relative) {
    fill_bias(p, t, step, w);
    terms.add = w.add;
  }
  p.k.score_terms(terms);
}

/// O += P V, pair by pair over the visible ones: a hidden key's NaN or inf must not meet a weight of 0.
void accumulate_visible(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  float row[kMaxDim];
  const int64_t o_lane = t.by_rows ? p.s.e : 1, o_dim = t.by_rows ? 1 : t.lanes;
  for (int j = 0; j < step.keys; ++j) {
    p.k.widen(p.dtype, step.v + j, 1, p.s.e, row, p.s.e);
    for (int l = 0; l < t.used; ++l) {
      if (!((step.bits[j] >> l) & 1)) continue;
      const float weight = w.s[j * t.lanes + l];
      for (int64_t i = 0; i < p.s.e; ++i) w.o[l * o_lane + i * o_dim] += weight * row[i];
    }
  }
}

/// Keys from which a step of few queries is decode()'s: below, windows of a few tokens, S^T costs less.
constexpr int kDecodeKeys = 32;

bool decodes(const Plan& p, const Tile& t) {
  return t.by_rows && !p.terms && !p.relative && !p.a.row_entropy;
}

/// Everything of a decoding step but its keys.
DecodeStep start_decode(const Plan& p, const Tile& t, Workspace& w) {
  DecodeStep d;
  d.dtype = p.dtype;
  d.q = w.q, d.q_pairs = w.q_pairs, d.queries = t.used;
  d.d = p.s.d, d.e = p.s.e;
  d.to_log2 = p.to_log2;
  d.m = w.m, d.l = w.l, d.o = w.o, d.s = w.s, d.ld = kKeys;
  d.top = p.a.row_max ? w.top : nullptr;
  return d;
}
void run_decode(const Plan& p, const DecodeStep& d) {
  p.pairs&& d.keys % 2 == 0 ? p.k.decode_pairs(d) : p.k.decode(d);
}

void decode_step(const Plan& p, const Tile& t, const Step& step, Workspace& w) {
  DecodeStep d = start_decode(p, t, w);
  d.k = step.k, d.v = step.v, d.keys = step.keys;
  d.ahead_k = ahead_of(p, step, p.k_rows), d.ahead_v = ahead_of(p, step, p.v_rows);
  run_decode(p, d);
}

/// A straight run of keys without a walk, which costs a step what a tenth of its bf16 rows take to arrive.
/// Steps are twice as long where the scores of the queries leave room for it.
void decode_run(const Plan& p, const Tile& t, Workspace& w, int64_t begin, int64_t end) {
  DecodeStep d = start_decode(p, t, w);
  const void *k[2 * kKeys], *v[2 * kKeys];
  d.k = k, d.v = v;
  if (t.used <= kRowQueries / 2) d.ld = 2 * kKeys;
  d.ahead_k = ahead_of(p.k_rows), d.ahead_v = ahead_of(p.v_rows);
  const char *k_row = p.k_rows.at(t.b, t.kv_head, begin), *v_row = p.v_rows.at(t.b, t.kv_head, begin);
  for (; begin < end; begin += d.keys) {
    d.keys = static_cast<int>(std::min<int64_t>(d.ld, end - begin));
    for (int j = 0; j < d.keys; ++j, k_row += p.k_rows.row, v_row += p.v_rows.row) k[j] = k_row, v[j] = v_row;
    run_decode(p, d);
  }
}

/// Weights too small for a normal number are 0 while this lives: multiply-adds of subnormal weights take a
/// hundred times as long, and a mask of -100 makes rows of them. Values and outputs keep their subnormals.
class NoTinyWeights {
 public:
#if defined(__SSE2__)
  NoTinyWeights() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~NoTinyWeights() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  NoTinyWeights() {}
#endif
  NoTinyWeights(const NoTinyWeights&) = delete;
  NoTinyWeights& operator=(const NoTinyWeights&) = delete;
};

void attend_step(const Plan& p, const Tile& t, const Step& step, Workspace& w, bool first) {
  if (decodes(p, t) && !step.masked && step.keys >= kDecodeKeys) return decode_step(p, t, step, w);
  score_step(p, t, step, w);
  const bool careful = step.masked && !p.k.finite(p.dtype, step.v, step.keys, p.s.e);
  SoftmaxStep soft;
  soft.s = w.s, soft.keys = step.keys, soft.lanes = t.lanes;
  soft.to_log2 = p.to_log2;
  soft.mask = step.masked ? step.bits : nullptr;
  soft.m = w.m, soft.l = w.l, soft.alpha = w.alpha;
  soft.t = p.a.row_entropy ? w.t : nullptr;
  soft.top = p.a.row_max ? w.top : nullptr;
  const bool pairs = p.pairs && !t.by_rows && !careful && !p.a.relative.values;
  {
    const NoTinyWeights none;
    pairs ? p.k.softmax_pairs(soft) : p.k.softmax(soft);
  }
  if (soft.moved && !first) {
    if (t.by_rows) {
      for (int l = 0; l < t.used; ++l)
        for (int64_t i = 0; i < p.s.e; ++i) w.o[l * p.s.e + i] *= w.alpha[l];
    } else {
      p.k.rescale(w.o, p.s.e, t.lanes, w.alpha);
    }
  }
  if (careful) {
    accumulate_visible(p, t, step, w);
  } else if (t.by_rows) {
    p.k.row_accumulate(p.dtype, w.o, p.s.e, t.used, p.s.e, step.v, step.keys, w.s, t.lanes,
                       ahead_of(p, step, p.v_rows));
  } else if (pairs) {
    p.k.interleave(step.v, step.keys, p.s.e, w.v);
    each_lane_run(step, t.lanes, [&](Span lanes, int first, int last) {
      const int lane = lanes.begin * kCorner;
      p.k.accumulate_pairs(w.o + lane, t.lanes, (lanes.end - lanes.begin) * kCorner, p.s.e, w.v, first, last,
                           w.s + lane);
    });
  } else {
    const void* rows[kKeys];
    const void* const* v = step.v;
    if (p.dtype != DType::f32) {
      p.k.widen(p.dtype, step.v, step.keys, p.s.e, w.v, p.s.e);
      for (int j = 0; j < step.keys; ++j) rows[j] = w.v + j * p.s.e;
      v = rows;
    }
    each_lane_run(step, t.lanes, [&](Span lanes, int first, int last) {
      const int lane = lanes.begin * kCorner;
      p.k.accumulate(w.o + lane, t.lanes, (lanes.end - lanes.begin) * kCorner, p.s.e, v + first, last - first,
                     w.s + first * t.lanes + lane);
    });
  }
  if (p.a.relative.values) add_relative_values(p, t, step, w);
}

/// A thread's use of a kernel table, from its first tile to its last.
class ThreadState {
 public:
  explicit ThreadState(const Kernels& k) : k_(k) {
    if (k_.begin_thread) k_.begin_thread();
  }
  ~ThreadState() {
    if (k_.end_thread) k_.end_thread();
  }
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;

 private:
  const Kernels& k_;
};

/// Where the mass pass finds each row's maximum and 1 / sum: [B, H, N] each.
struct RowSums {
  float *max = nullptr, *weight = nullptr;
};

template <class T>
void write_row(const float* o, float weight, int64_t e, void* out) {
  for (int64_t i = 0; i < e; ++i) static_cast<T*>(out)[i] = T(o[i] * weight);
}

/// Adds the sink, normalises, writes o and what was asked for.
void finish_tile(const Plan& p, const Tile& t, Workspace& w, const RowSums& sums) {
  void* rows[kLanes];
  for (int l = 0; l < t.used; ++l) {
    const int64_t h = t.head_of(l), i = t.token[l];
    rows[l] = p.o.at(t.b, h, i);
    const float m = w.m[l];
    float sum = w.l[l], share = 1.0f, top = m, logs = w.t[l];
    // m = -inf with a sum of 0: the row attends to nothing, and a sink alone changes nothing.
    const bool empty = m == -kInf && sum == 0.0f;
    if (p.a.sink_logit && !empty) {
      const float sink =
          static_cast<float>(p.a.sink_logit.data<float>()[h * p.a.sink_logit.stride(0)] * kLog2e);
      top = std::max(m, sink);
      share = std::exp2(m - top);
      const float extra = std::exp2(sink - top);
      logs =
          share * (logs + (share > 0 ? (m - top) * sum : 0.0f)) + (extra > 0 ? extra * (sink - top) : 0.0f);
      sum = sum * share + extra;
    }
    w.weight[l] = empty ? 0.0f : share / sum;
    if (p.lse.data) p.lse.put(t.b, h, i, empty ? -kInf : (top + std::log2(static_cast<double>(sum))) * kLn2);
    if (p.row_max.data) p.row_max.put(t.b, h, i, std::isnan(sum) && w.top[l] != kInf ? sum : w.top[l] * kLn2);
    if (p.row_entropy.data)
      p.row_entropy.put(
          t.b, h, i,
          empty ? 0.0 : (std::log2(static_cast<double>(sum)) - static_cast<double>(logs) / sum) * kLn2);
    if (sums.max) {
      const int64_t at = (t.b * p.s.heads + h) * p.s.n + i;
      sums.max[at] = empty ? -kInf : m;
      sums.weight[at] = w.weight[l];
    }
  }
  if (!t.by_rows) {
    for (int l = t.used; l < t.lanes; ++l) w.weight[l] = 0.0f;
    p.k.unpack_columns(p.dtype, w.o, t.lanes, t.used, p.s.e, w.weight, rows);
    return;
  }
  for (int l = 0; l < t.used; ++l) {
    const float* row = w.o + l * p.s.e;
    if (p.dtype == DType::f32)
      write_row<float>(row, w.weight[l], p.s.e, rows[l]);
    else if (p.dtype == DType::bf16)
      write_row<bf16>(row, w.weight[l], p.s.e, rows[l]);
    else
      write_row<f16>(row, w.weight[l], p.s.e, rows[l]);
  }
}

void start_tile(const Plan& p, const Tile& t, Workspace& w) {
  std::fill(w.m, w.m + t.lanes, -kInf);
  std::fill(w.top, w.top + t.lanes, -kInf);
  std::fill(w.l, w.l + t.lanes, 0.0f);
  std::fill(w.t, w.t + t.lanes, 0.0f);
  std::fill(w.o, w.o + t.lanes * p.s.e, 0.0f);
}

void attend_portion(const Plan& p, const Tile& t, Workspace& w, const Portion& portion, Step& step) {
  load_queries(p, t, w);
  start_tile(p, t, w);
  if (decodes(p, t)) {
    const auto [low, high] = straight_run(p, t);
    if (high - low >= kDecodeKeys) {
      const auto [from, to] = portion.share(high - low, kKeys);
      return decode_run(p, t, w, low + from, low + to);
    }
  }
  bool first = true;
  walk(p, t, w, portion, step, [&](const Step& s) {
    attend_step(p, t, s, w, first);
    first = false;
  });
}

/// Asks for what the tile after `task` reads and writes, where tiles are so small that the processor's own
/// prefetching never gets going (windows: a few rows of each of thousands of heads).
void prefetch_tile(const Plan& p, int64_t index) {
  const int64_t query_tile = p.query_tiles - 1 - index % p.query_tiles;
  int64_t rest = index / p.query_tiles;
  const int64_t head_group = rest % p.head_groups;
  rest /= p.head_groups;
  const int64_t kv_head = rest % p.s.kv_heads, b = rest / p.s.kv_heads;
  const int64_t first_head = kv_head * p.group + head_group * p.heads_a_tile;
  const int64_t heads = std::min(p.heads_a_tile, p.group - head_group * p.heads_a_tile);
  const int64_t slot = query_tile * kLanes, slots = std::min<int64_t>(kLanes, p.s.n - slot);
  const auto ask = [&](const View& v, int64_t head, int64_t row, int64_t rows) {
    const char* at = v.at(b, head, row);
    for (int64_t i = 0; i < rows; ++i, at += v.row)
      for (int64_t c = 0; c < v.width; c += 64) __builtin_prefetch(at + c);
  };
  for (int64_t h = first_head; h < first_head + heads; ++h)
    ask(p.q, h, slot, slots), ask(p.o, h, slot, slots);
  if (query_tile == p.query_tiles - 1 && head_group == 0)
    ask(p.k_rows, kv_head, 0, p.s.m), ask(p.v_rows, kv_head, 0, p.s.m);
}

/// The split results of one tile, m, l, t and O by part, become one.
void combine_parts(const Plan& p, const Tile& t, Workspace& w, const float* parts, int64_t stride) {
  start_tile(p, t, w);
  const int64_t size = (t.by_rows ? t.used : t.lanes) * p.s.e;
  for (int64_t part = 0; part < p.parts; ++part) {
    const float *m = parts + part * stride, *l = m + kLanes, *lt = l + kLanes, *tops = lt + kLanes,
                *o = tops + kLanes;
    float old_share[kLanes], new_share[kLanes];
    for (int i = 0; i < t.used; ++i) {
      const float top = std::max(w.m[i], m[i]);
      if (top == -kInf) {
        // Nothing seen so far; but a sum may be NaN already.
        old_share[i] = new_share[i] = 1.0f;
      } else {
        old_share[i] = std::exp2(w.m[i] - top), new_share[i] = std::exp2(m[i] - top);
      }
      const auto shifted = [&](float logs, float sum, float from, float share) {
        return share * (logs + (from == -kInf ? 0.0f : (from - top) * sum));
      };
      w.t[i] = shifted(w.t[i], w.l[i], w.m[i], old_share[i]) + shifted(lt[i], l[i], m[i], new_share[i]);
      w.l[i] = w.l[i] * old_share[i] + l[i] * new_share[i];
      w.m[i] = top;
      w.top[i] = std::max(w.top[i], tops[i]);
    }
    for (int64_t x = 0; x < size; ++x) {
      const int64_t lane = t.by_rows ? x / p.s.e : x % t.lanes;
      if (lane < t.used) w.o[x] = w.o[x] * old_share[lane] + o[x] * new_share[lane];
    }
  }
}

/// Masses of the keys [slot_begin, slot_end) of one head, over all queries in order.
void mass_range(const Plan& p, int64_t b, int64_t h, int64_t slot_begin, int64_t slot_end,
                const RowSums& sums, Workspace& w, double* key_mass, double* block_mass, Tile& t,
                Step& step) {
  const int64_t width = slot_end - slot_begin;
  const int64_t first_block = slot_begin / p.s.block_k,
                blocks = ceil_div(slot_end, p.s.block_k) - first_block;
  std::fill(key_mass, key_mass + width, 0.0);
  const int64_t base = (b * p.s.kv_heads * p.head_groups + h) * p.query_tiles;  // one head a tile
  int64_t row = -1;
  std::fill(block_mass, block_mass + blocks, 0.0);
  const auto flush_row = [&] {
    if (row < 0 || !p.a.mass_per_block) return;
    const Tensor& out = p.a.mass_per_block;
    for (int64_t c = 0; c < blocks; ++c)
      out.data<float>()[b * out.stride(0) + h * out.stride(1) + row * out.stride(2) +
                        (first_block + c) * out.stride(3)] = static_cast<float>(block_mass[c]);
    std::fill(block_mass, block_mass + blocks, 0.0);
  };
  for (int64_t q = p.query_tiles - 1; q >= 0; --q) {  // tiles count from the end
    if (!make_tile(p, base + q, t)) continue;
    if (t.row != row) {
      flush_row();
      row = t.row;
    }
    for (int l = 0; l < t.lanes; ++l) {
      const int64_t at = (b * p.s.heads + h) * p.s.n + (l < t.used ? t.token[l] : 0);
      w.m[l] = l < t.used ? sums.max[at] : -kInf;
      w.weight[l] = l < t.used ? sums.weight[at] : 0.0f;
    }
    bool loaded = false;
    Portion portion;
    portion.slot_begin = slot_begin, portion.slot_end = slot_end;
    walk(p, t, w, portion, step, [&](const Step& s) {
      if (!loaded) load_queries(p, t, w);
      loaded = true;
      score_step(p, t, s, w);
      SoftmaxStep soft;
      soft.s = w.s, soft.keys = s.keys, soft.lanes = t.lanes, soft.to_log2 = p.to_log2;
      soft.mask = s.masked ? s.bits : nullptr;
      soft.m = w.m;
      float mass[kKeys];
      p.k.mass(soft, w.weight, mass);
      for (int j = 0; j < s.keys; ++j) {
        key_mass[s.slot[j] - slot_begin] += mass[j];
        block_mass[s.slot[j] / p.s.block_k - first_block] += mass[j];
      }
    });
  }
  flush_row();
  if (const Tensor& out = p.a.mass_per_key)
    for (int64_t s = 0; s < width; ++s)
      out.data<float>()[b * out.stride(0) + h * out.stride(1) + p.key_token(slot_begin + s) * out.stride(2)] =
          static_cast<float>(key_mass[s]);
}

}  // namespace

void CpuBackend::library_attention(Context&, const AttentionArgs&) {
  throw Unsupported(
      "library_attention: no library's fused attention is linked on the CPU; its attention is "
      "this project's own");
}

void CpuBackend::attention(Context& ctx, const AttentionArgs& args) {
  const ElementRule no_rule;
  Plan p(args, no_rule, false);
  check_data(p);
  const AttentionSizes& s = p.s;
  if (s.batch == 0 || s.n == 0) {
    for (const Tensor* t : {&args.mass_per_key, &args.mass_per_block})
      if (*t && t->numel() > 0) {
        Tensor zero = ctx.allocate(DType::f32, t->shape());
        std::memset(zero.raw(), 0, static_cast<size_t>(zero.nbytes()));
        copy(ctx, zero, *t);
      }
    return;
  }

  const double work = static_cast<double>(s.batch) * static_cast<double>(s.heads) * static_cast<double>(s.n) *
                      static_cast<double>(s.m) * static_cast<double>(s.d + s.e);
  const int threads = work < kSerialWork ? 1 : ctx.threads();
  if (args.split_keys > 0)
    p.parts = std::min<int64_t>(args.split_keys, std::max<int64_t>(1, s.m));
  else if (p.tiles <= kSplitTiles)
    p.parts = std::clamp<int64_t>(std::min(kSplitTasks / p.tiles, s.m / kSplitKeys), 1, kSplitTasks);

  const bool mass = args.mass_per_key || args.mass_per_block;
  RowSums sums;
  Tensor sums_memory;
  if (mass) {
    sums_memory = ctx.allocate(DType::f32, {2, s.batch, s.heads, s.n});
    sums.max = sums_memory.data<float>();
    sums.weight = sums.max + s.batch * s.heads * s.n;
  }
  const int64_t part_floats = 4 * kLanes + p.lanes * s.e;
  Tensor parts_memory;
  float* parts = nullptr;
  if (p.parts > 1) {
    parts_memory = ctx.allocate(DType::f32, {p.tiles, p.parts, part_floats});
    parts = parts_memory.data<float>();
  }
  const int64_t space = Workspace::layout(p, nullptr, nullptr);
  Tensor memory = ctx.allocate(DType::u8, {threads, space});
  char* base = static_cast<char*>(memory.raw());
  const int64_t tasks = p.tiles * p.parts;
  // Many tiny tiles: hand out several at once, still leaving some 32 hand-outs a thread to even out.
  const int chunk = static_cast<int>(std::clamp<int64_t>(tasks / (int64_t{threads} * 32), 1, 64));

  // Only where a tile is the whole of a small head, and the call's data is more than a core's L2 keeps.
  const bool ahead = p.block == std::min<int64_t>(kLanes, s.n) && s.m <= 256 && !args.mask &&
                     !args.pages.table && tasks > 1 && args.q.numel() * p.element > (128 << 10);

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const ThreadState state(p.k);
    Workspace w(p, base + omp_get_thread_num() * space);
    Tile tile;
    Step step;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t task = 0; task < tasks; ++task) {
      if (!make_tile(p, task / p.parts, tile)) continue;
      Portion portion;
      portion.part = task % p.parts, portion.parts = p.parts;
      if (ahead && task + 1 < tasks) prefetch_tile(p, task + 1);
      attend_portion(p, tile, w, portion, step);
      if (p.parts == 1) {
        finish_tile(p, tile, w, sums);
      } else {
        float* out = parts + task * part_floats;
        std::copy(w.m, w.m + tile.used, out);
        std::copy(w.l, w.l + tile.used, out + kLanes);
        std::copy(w.t, w.t + tile.used, out + 2 * kLanes);
        std::copy(w.top, w.top + tile.used, out + 3 * kLanes);
        std::copy(w.o, w.o + (tile.by_rows ? tile.used : tile.lanes) * s.e, out + 4 * kLanes);
      }
    }
    if (p.parts > 1) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < p.tiles; ++t) {
        if (!make_tile(p, t, tile)) continue;
        combine_parts(p, tile, w, parts + t * p.parts * part_floats, part_floats);
        finish_tile(p, tile, w, sums);
      }
    }
  }

  if (!mass) return;
  const Plan one(args, no_rule, true);
  const int64_t one_space = Workspace::layout(one, nullptr, nullptr);
  const int64_t width = round_up(std::max(kMassKeys, s.block_k), s.block_k);
  const int64_t ranges = ceil_div(s.m, width);
  Tensor mass_memory = ctx.allocate(DType::f64, {threads, width + width / s.block_k + 8});
  Tensor more = ctx.allocate(DType::u8, {threads, one_space});
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const ThreadState state(one.k);
    Workspace w(one, static_cast<char*>(more.raw()) + omp_get_thread_num() * one_space);
    double* key_mass = mass_memory.data<double>() + omp_get_thread_num() * mass_memory.dim(1);
    Tile tile;
    Step step;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < s.batch * s.heads * ranges; ++task) {
      const int64_t r = task % ranges, bh = task / ranges;
      mass_range(one, bh / s.heads, bh % s.heads, r * width, std::min(s.m, (r + 1) * width), sums, w,
                 key_mass, key_mass + width, tile, step);
    }
  }
}

}  // namespace attnbench
