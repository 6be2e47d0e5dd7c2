// Which keys each tile of queries sees, in which steps: the call as plain pointers (Plan), a tile with the
// key ranges of its queries, and the walk over lists, bands, sinks, gathers and pages that hands out up to 64
// keys at a time with one 64-bit word per key where not every lane sees every key. No arithmetic on scores or
// values: that is cpu.cpp.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/attention/attention.hpp"
#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/attention/geometry.hpp"
#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/error.hpp"

namespace attnbench::cpu_attention {

inline constexpr double kLog2e = 1.4426950408889634;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// An i32 tensor [Gb, Gh, X] or absent, as pointer arithmetic.
struct Grouped {
  const int32_t* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  int64_t heads_per_group = 1;
  Grouped() = default;
  Grouped(const Tensor& t, int64_t heads) {
    if (!t) return;
    data = t.data<int32_t>();
    batch = t.dim(0) == 1 ? 0 : t.stride(0);
    head = t.stride(1), row = t.stride(2);
    heads_per_group = heads / t.dim(1);
  }
  explicit operator bool() const { return data != nullptr; }
  int32_t at(int64_t b, int64_t h, int64_t i) const {
    return data[b * batch + h / heads_per_group * head + i * row];
  }
};

struct ListView {
  Grouped begin, count;
  const int32_t* index = nullptr;
  int64_t step = 1;
  ListView() = default;
  ListView(const BlockList& l, int64_t heads) {
    if (!l) return;
    begin = Grouped(l.begin, heads), count = Grouped(l.count, heads);
    index = l.index.data<int32_t>();
    step = l.index.stride(0);
  }
  explicit operator bool() const { return static_cast<bool>(count); }
  int64_t entry(int64_t at) const { return index[at * step]; }
};

/// A [B, H, N, D] tensor (or pages) as plain steps in bytes: Tensor's accessors check their axis, which costs
/// as much as a tiny window's arithmetic.
struct View {
  char* base = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  int64_t width = 0;  // bytes of a row
  View() = default;
  explicit View(const Tensor& t) {
    const int64_t size = static_cast<int64_t>(size_of(t.dtype()));
    base = static_cast<char*>(t.raw());
    batch = t.stride(0) * size, head = t.stride(1) * size, row = t.stride(2) * size, width = t.dim(3) * size;
  }
  char* at(int64_t b, int64_t h, int64_t i) const { return base + b * batch + h * head + i * row; }
};

/// A [B, H, N] output, or none.
struct Statistic {
  float* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  Statistic() = default;
  explicit Statistic(const Tensor& t) {
    if (t) data = t.data<float>(), batch = t.stride(0), head = t.stride(1), row = t.stride(2);
  }
  void put(int64_t b, int64_t h, int64_t i, double x) const {
    data[b * batch + h * head + i * row] = static_cast<float>(x);
  }
};

/// What holds for a whole call.
struct Plan {
  const AttentionArgs& a;
  AttentionSizes s;
  const Kernels& k;
  const ElementRule& rule;
  DType dtype;
  int64_t element;  // bytes
  int64_t group;    // heads a kv head
  View q, k_rows, v_rows, o;
  Statistic lse, row_max, row_entropy;

  ListView full, partial, gather;
  Grouped row_begin, row_end;
  const int32_t *q_order = nullptr, *k_order = nullptr, *key_length = nullptr, *segment_q = nullptr,
                *segment_k = nullptr;
  int64_t q_order_step = 1, k_order_step = 1, key_length_step = 1;
  const uint8_t* key_valid = nullptr;
  bool lists, banded, rows, masked_rule, paged;

  int64_t block;  // slots of a query block: tiles do not cross it
  int64_t heads_a_tile;
  int64_t head_groups;  // tiles side by side over the heads of a group
  int64_t tiles_a_block, query_tiles, tiles;
  int64_t lanes;  // of the widest tile, padded
  int64_t parts = 1;
  bool pairs;     // bf16 dot products
  bool terms;     // scores need more than a scale
  bool relative;  // embeddings of the distance
  float to_log2;

  Plan(const AttentionArgs& args, const ElementRule& no_rule, bool one_head)
      : a(args), s(attention_sizes(args)), k(kernels()), rule(args.mask ? args.mask->rule : no_rule) {
    dtype = a.q.dtype();
    element = static_cast<int64_t>(size_of(dtype));
    group = s.heads / s.kv_heads;
    q = View(a.q), k_rows = View(a.k), v_rows = View(a.v), o = View(a.o);
    lse = Statistic(a.lse), row_max = Statistic(a.row_max), row_entropy = Statistic(a.row_entropy);
    paged = static_cast<bool>(a.pages.table);
    int64_t list_heads = 1;  // how finely lists tell heads apart
    if (const BlockMask* m = a.mask) {
      full = ListView(m->full, s.heads), partial = ListView(m->partial, s.heads);
      gather = ListView(m->gather, s.heads);
      for (const BlockList* l : {&m->full, &m->partial, &m->gather})
        if (*l) list_heads = std::max(list_heads, l->count.dim(1));
      row_begin = Grouped(m->row_begin, s.heads), row_end = Grouped(m->row_end, s.heads);
      if (m->q_order) q_order = m->q_order.data<int32_t>(), q_order_step = m->q_order.stride(0);
      if (m->k_order) k_order = m->k_order.data<int32_t>(), k_order_step = m->k_order.stride(0);
      if (m->key_length)
        key_length = m->key_length.data<int32_t>(), key_length_step = m->key_length.stride(0);
      if (m->key_valid) key_valid = m->key_valid.data<uint8_t>();
      if (rule.segment_q)
        segment_q = rule.segment_q.data<int32_t>(), segment_k = rule.segment_k.data<int32_t>();
    }
    lists = full || partial;
    banded = rule.causal || rule.band;
    rows = static_cast<bool>(row_begin);
    masked_rule = !rule.allows_all();

    const bool by_block = lists || gather || a.mass_per_block;
    block = std::min(by_block ? s.block_q : int64_t{kLanes}, std::max<int64_t>(s.n, 1));
    const int64_t slots = std::min<int64_t>(block, kLanes);
    heads_a_tile = 1;
    relative = a.relative.keys || a.relative.values;
    // Distances run along the lanes of one head.
    if (!one_head && !relative && (list_heads == 1 || list_heads == s.kv_heads))
      heads_a_tile = std::clamp<int64_t>(kLanes / slots, 1, group);
    head_groups = ceil_div(group, heads_a_tile);
    tiles_a_block = ceil_div(block, kLanes);
    query_tiles = ceil_div(s.n, block) * tiles_a_block;
    tiles = s.batch * s.kv_heads * head_groups * query_tiles;
    lanes = round_up(slots * heads_a_tile, 16);

    pairs = dtype == DType::bf16 && k.bf16_pairs && s.d % 2 == 0;
    // A scale that is not positive turns the order of scores around, so it is applied before the maximum.
    terms = a.soft_cap > 0 || a.bias.dense || a.bias.slope || a.bias.relative || !(a.scale > 0);
    to_log2 = static_cast<float>(terms ? kLog2e : a.scale * kLog2e);
  }

  int64_t keys_of(int64_t b) const { return key_length ? key_length[b * key_length_step] : s.m; }
  /// The M that rules and biases align to.
  int64_t aligned_keys(int64_t b) const { return a.pages.table ? keys_of(b) : s.m; }
  int64_t query_token(int64_t slot) const { return q_order ? q_order[slot * q_order_step] : slot; }
  int64_t key_token(int64_t slot) const { return k_order ? k_order[slot * k_order_step] : slot; }
};

/// Throws when lists, orders, lengths or pages name what is not there: their data is not trusted.
inline void check_data(const Plan& p) {
  const auto refuse = [](const std::string& what) { throw UsageError("attention: " + what); };
  const BlockMask* mask = p.a.mask;
  if (!mask) return;
  const auto check_list = [&](const char* what, const ListView& l, const BlockList& list, int64_t limit) {
    if (!l) return;
    const int64_t size = list.index.dim(0);
    for (int64_t b = 0; b < list.count.dim(0); ++b)
      for (int64_t g = 0; g < list.count.dim(1); ++g)
        for (int64_t r = 0; r < list.count.dim(2); ++r) {
          const int64_t h = g * l.count.heads_per_group;
          const int64_t begin = l.begin.at(b, h, r), count = l.count.at(b, h, r);
          if (count < 0 || begin < 0 || begin + count > size)
            refuse(std::string(what) + " list of query block " + std::to_string(r) + " covers [" +
                   std::to_string(begin) + ", " + std::to_string(begin + count) + ") of an index of " +
                   std::to_string(size));
          for (int64_t e = begin; e < begin + count; ++e)
            if (l.entry(e) < 0 || l.entry(e) >= limit)
              refuse(std::string(what) + " list of query block " + std::to_string(r) + " names " +
                     std::to_string(l.entry(e)) + ", outside [0, " + std::to_string(limit) + ")");
        }
  };
  check_list("mask.full", p.full, mask->full, ceil_div(p.s.m, p.s.block_k));
  check_list("mask.partial", p.partial, mask->partial, ceil_div(p.s.m, p.s.block_k));
  check_list("mask.gather", p.gather, mask->gather, p.s.m);
  for (int64_t b = 0; p.key_length && b < p.s.batch; ++b)
    if (p.keys_of(b) < 0 || p.keys_of(b) > p.s.m)
      refuse("mask.key_length of batch " + std::to_string(b) + " is " + std::to_string(p.keys_of(b)) +
             ", outside [0, " + std::to_string(p.s.m) + "]");
  for (int64_t i = 0; p.q_order && i < p.s.n; ++i)
    if (p.query_token(i) < 0 || p.query_token(i) >= p.s.n)
      refuse("mask.q_order names token " + std::to_string(p.query_token(i)) + ", outside [0, " +
             std::to_string(p.s.n) + ")");
  for (int64_t j = 0; p.k_order && j < p.s.m; ++j)
    if (p.key_token(j) < 0 || p.key_token(j) >= p.s.m)
      refuse("mask.k_order names token " + std::to_string(p.key_token(j)) + ", outside [0, " +
             std::to_string(p.s.m) + ")");
  if (p.a.pages.table) {
    const Tensor& table = p.a.pages.table;
    for (int64_t b = 0; b < p.s.batch; ++b)
      for (int64_t i = 0; i < ceil_div(p.keys_of(b), p.a.pages.page_size); ++i) {
        const int32_t page = table.data<int32_t>()[b * table.stride(0) + i * table.stride(1)];
        if (page < 0 || page >= p.a.k.dim(0))
          refuse("pages.table of batch " + std::to_string(b) + " names page " + std::to_string(page) +
                 ", outside [0, " + std::to_string(p.a.k.dim(0)) + ")");
      }
  }
}

/// One thread's memory, carved from a single allocation.
struct Workspace {
  float *q, *s, *o, *k, *v, *add;  // see layout()
  float *far, *spread, *none;      // relative embeddings: products by distance, weights by distance, zeros
  int64_t far_next = -1;           // key token at which `far` can go on; -1: it holds nothing
  // Rows of relative.values known to be finite, and of which head of the table.
  int64_t finite_head = -1, finite_begin = 0, finite_end = 0;
  bf16* q_pairs;
  float *m, *l, *t, *top, *alpha, *weight, *slope, *position, *key_position;
  uint64_t* axis[3] = {nullptr, nullptr, nullptr};  // neighbourhood bits by coordinate
  int64_t axis_low[3] = {0, 0, 0}, axis_high[3] = {0, 0, 0};

  static int64_t layout(const Plan& p, char* base, Workspace* w) {
    int64_t at = 0;
    const auto take = [&](auto*& field, int64_t count) {
      using T = std::remove_reference_t<decltype(*field)>;
      if (base) field = reinterpret_cast<T*>(base + at);
      at += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    };
    Workspace scratch;
    Workspace& x = w ? *w : scratch;
    take(x.q, p.s.d * p.lanes);
    take(x.s, int64_t{kKeys} * p.lanes);
    take(x.o, p.s.e * p.lanes);
    take(x.k, p.dtype == DType::f32 || p.pairs ? 0 : kKeys * p.s.d);
    take(x.v, p.dtype == DType::f32 ? 0 : kKeys * p.s.e);
    take(x.q_pairs, p.pairs ? kRowQueries * p.s.d : 0);
    // Distances of a step: one fewer than its keys and lanes together.
    take(x.far, p.a.relative.keys ? int64_t{kKeys + kLanes} * p.lanes : 0);
    take(x.spread, p.a.relative.values ? int64_t{kKeys + kLanes} * p.lanes : 0);
    take(x.none, p.relative ? std::max(p.s.d, p.s.e) : 0);
    take(x.add, p.a.bias.dense || p.a.bias.relative ? int64_t{kKeys} * p.lanes : 0);
    for (float** f : {&x.m, &x.l, &x.t, &x.top, &x.alpha, &x.weight, &x.slope, &x.position, &x.key_position})
      take(*f, kLanes);
    for (int i = 0; i < p.rule.rank; ++i)
      take(x.axis[i], padded_extent(p.rule, p.rule.k_tile, static_cast<size_t>(i)));
    // A page apart from the next thread's, and off its cache sets.
    return round_up(at, 4096) + 4096 + 256;
  }
  Workspace() = default;
  Workspace(const Plan& p, char* base) {
    layout(p, base, this);
    // Lanes that no query uses are computed too; finite contents keep them cheap.
    std::memset(s, 0, static_cast<size_t>(kKeys * p.lanes) * sizeof(float));
    if (p.a.relative.keys)
      std::memset(far, 0, static_cast<size_t>((kKeys + kLanes) * p.lanes) * sizeof(float));
    if (p.relative) std::memset(none, 0, static_cast<size_t>(std::max(p.s.d, p.s.e)) * sizeof(float));
    for (int i = 0; i < p.rule.rank; ++i) {
      const int64_t extent = padded_extent(p.rule, p.rule.k_tile, static_cast<size_t>(i));
      std::memset(axis[i], 0, static_cast<size_t>(extent) * sizeof(uint64_t));
    }
  }
};

/// The queries of one tile, and the key ranges each of them may see.
struct Tile {
  int64_t b = 0, kv_head = 0, head = 0;  // head: the first one
  int64_t heads = 0, slot = 0, slots = 0;
  int64_t row = 0;  // query block
  int used = 0, lanes = 0;
  bool by_rows = false;  // row form
  int64_t offset = 0;    // of rules and biases
  int64_t keys = 0;      // valid length

  alignas(64) int32_t token[kLanes];
  int32_t lane_head[kLanes], lane_slot[kLanes];
  // Visible key tokens by the rule and the row range; of the sinks; and by the row range alone.
  alignas(64) int32_t low[kLanes], high[kLanes], sink_low[kLanes], sink_high[kLanes], row_low[kLanes],
      row_high[kLanes];
  int32_t min_low = 0, max_low = 0, min_high = 0, max_high = 0, max_sink = 0, max_row_low = 0,
          min_row_high = 0;
  int32_t segment[kLanes];

  int64_t head_of(int lane) const { return lane_head[lane]; }
};

/// Up to 64 keys, and which lanes see them.
struct Step {
  int keys = 0;
  bool masked = false;
  bool consecutive = true;  // tokens (and slots) follow each other
  alignas(64) int32_t token[kKeys];
  int32_t slot_data[kKeys];
  const int32_t* slot = token;  // the tokens themselves unless order or validity tell them apart
  const void* k[kKeys];
  const void* v[kKeys];
  uint64_t bits[kKeys];
};

inline bool make_tile(const Plan& p, int64_t index, Tile& t) {
  // Later query tiles see more keys under causal rules: they go first.
  const int64_t query_tile = p.query_tiles - 1 - index % p.query_tiles;
  int64_t rest = index / p.query_tiles;
  const int64_t head_group = rest % p.head_groups;
  rest /= p.head_groups;
  t.kv_head = rest % p.s.kv_heads, t.b = rest / p.s.kv_heads;
  t.row = query_tile / p.tiles_a_block;
  t.slot = t.row * p.block + query_tile % p.tiles_a_block * kLanes;
  t.slots = std::min({int64_t{kLanes}, p.s.n - t.slot, (t.row + 1) * p.block - t.slot});
  if (t.slots <= 0) return false;
  t.head = t.kv_head * p.group + head_group * p.heads_a_tile;
  t.heads = std::min(p.heads_a_tile, p.group - head_group * p.heads_a_tile);
  t.used = static_cast<int>(t.slots * t.heads);
  t.lanes = static_cast<int>(round_up(t.used, 16));
  t.by_rows = t.used <= kRowQueries;
  t.keys = std::min(p.keys_of(t.b), p.s.m);
  const int64_t aligned = p.aligned_keys(t.b);
  t.offset = aligned - p.s.n;

  for (int64_t h = 0, l = 0; h < t.heads; ++h)
    for (int64_t i = 0; i < t.slots; ++i, ++l) {
      t.lane_head[l] = static_cast<int32_t>(t.head + h);
      t.lane_slot[l] = static_cast<int32_t>(t.slot + i);
      t.token[l] = static_cast<int32_t>(p.query_token(t.slot + i));
    }

  const bool ranges = p.banded || p.rows;
  if (ranges) {
    int32_t min_low = INT32_MAX, max_low = 0, min_high = INT32_MAX, max_high = 0, max_sink = 0,
            max_row_low = 0, min_row_high = INT32_MAX;
    for (int l = 0; l < t.lanes; ++l) {
      if (l >= t.used) {
        t.low[l] = t.high[l] = t.sink_low[l] = t.sink_high[l] = t.row_low[l] = t.row_high[l] = 0;
        continue;
      }
      const int64_t i = t.token[l];
      int64_t low = 0, high = t.keys, row_low = 0, row_high = t.keys;
      if (p.rows) {
        row_low = std::max<int64_t>(0, p.row_begin.at(t.b, t.head_of(l), i));
        row_high = std::min<int64_t>(t.keys, p.row_end.at(t.b, t.head_of(l), i));
      }
      if (p.banded) {
        const KeyRange r = band_range(p.rule, i, p.s.n, aligned);
        low = r.begin, high = r.end;
      }
      low = std::max(low, row_low), high = std::min(high, row_high);
      if (low >= high) low = high = 0;
      if (row_low >= row_high) row_low = row_high = 0;
      int64_t sink_high = 0;
      if (p.rule.band && p.rule.sinks > 0) {
        sink_high = std::min(p.rule.sinks, row_high);
        if (p.rule.causal) {
          const int64_t offset = p.rule.offset == ElementRule::kAlignEnds ? t.offset : p.rule.offset;
          sink_high = std::clamp<int64_t>(i + offset + 1, 0, sink_high);
        }
      }
      t.low[l] = static_cast<int32_t>(low), t.high[l] = static_cast<int32_t>(high);
      t.row_low[l] = static_cast<int32_t>(row_low), t.row_high[l] = static_cast<int32_t>(row_high);
      t.sink_low[l] = t.row_low[l], t.sink_high[l] = static_cast<int32_t>(sink_high);
      if (low < high) min_low = std::min(min_low, t.low[l]);
      max_low = std::max(max_low, t.low[l]);
      min_high = std::min(min_high, t.high[l]), max_high = std::max(max_high, t.high[l]);
      max_sink = std::max(max_sink, t.sink_high[l]);
      max_row_low = std::max(max_row_low, t.row_low[l]), min_row_high = std::min(min_row_high, t.row_high[l]);
    }
    t.min_low = min_low == INT32_MAX ? 0 : min_low;
    t.max_low = max_low, t.min_high = min_high, t.max_high = max_high, t.max_sink = max_sink;
    t.max_row_low = max_row_low, t.min_row_high = min_row_high;
  }
  if (p.segment_q) {
    const Tensor& ids = p.rule.segment_q;
    for (int l = 0; l < t.lanes; ++l) {
      const int32_t id =
          l < t.used ? p.segment_q[(ids.dim(0) == 1 ? 0 : t.b) * ids.stride(0) + t.token[l] * ids.stride(1)]
                     : 0;
      t.segment[l] = id;
    }
  }
  return true;
}

/// Bits of every coordinate that a window of this tile's queries covers, by axis.
inline void fill_axes(const Plan& p, const Tile& t, Workspace& w) {
  for (int a = 0; a < p.rule.rank; ++a) {
    uint64_t* bits = w.axis[a];
    std::fill(bits + w.axis_low[a], bits + w.axis_high[a], 0);
    int64_t low = p.rule.grid[static_cast<size_t>(a)], high = 0;
    for (int l = 0; l < t.used; ++l) {
      const AxisExtents at = grid_coordinates(p.rule, t.token[l], p.rule.q_tile);
      if (!in_grid(p.rule, at)) continue;
      const AxisWindow x = axis_window(p.rule, a, at[static_cast<size_t>(a)]);
      for (int64_t c = x.first; c < x.end; c += x.step) bits[c] |= uint64_t{1} << l;
      low = std::min(low, x.first), high = std::max(high, x.end);
    }
    w.axis_low[a] = std::min(low, high), w.axis_high[a] = high;
  }
}

inline void and_bits(const uint64_t* more, Step& step) {
  if (step.masked)
    for (int j = 0; j < step.keys; ++j) step.bits[j] &= more[j];
  else
    std::copy(more, more + step.keys, step.bits);
  step.masked = true;
}

/// 64 x 64 bits: row r's bit c becomes row c's bit r.
inline void transpose_bits(uint64_t* x) {
  uint64_t mask = 0x00000000ffffffffull;
  for (int w = 32; w != 0; w >>= 1, mask ^= mask << w)
    for (int i = 0; i < 64; i = ((i | w) + 1) & ~w) {
      const uint64_t t = ((x[i] >> w) ^ x[i | w]) & mask;
      x[i] ^= t << w;
      x[i | w] ^= t;
    }
}

inline void bitmap_bits(const Plan& p, const Tile& t, const Step& step, uint64_t* bits) {
  const Tensor& map = p.rule.bitmap;
  const uint8_t* base = map.data<uint8_t>() + (map.dim(0) == 1 ? 0 : t.b) * map.stride(0);
  uint64_t rows[64] = {};
  const int64_t first = step.slot[0], bytes = map.dim(3);
  for (int l = 0; l < t.used; ++l) {
    const uint8_t* row =
        base + (map.dim(1) == 1 ? 0 : t.head_of(l)) * map.stride(1) + t.lane_slot[l] * map.stride(2);
    if (step.consecutive) {
      uint64_t x = 0;
      const int64_t at = first >> 3, shift = first & 7;
      const int64_t take = std::min<int64_t>(8, bytes - at);
      for (int64_t i = 0; i < take; ++i) x |= static_cast<uint64_t>(row[at + i]) << (8 * i);
      x >>= shift;
      if (shift && at + 8 < bytes) x |= static_cast<uint64_t>(row[at + 8]) << (64 - shift);
      rows[l] = x;
    } else {
      for (int j = 0; j < step.keys; ++j)
        rows[l] |= static_cast<uint64_t>((row[step.slot[j] >> 3] >> (step.slot[j] & 7)) & 1) << j;
    }
  }
  transpose_bits(rows);
  std::copy(rows, rows + step.keys, bits);
}

/// Fills step.bits; false when no lane sees any of the keys.
inline bool mask_step(const Plan& p, const Tile& t, const Workspace& w, bool with_rule, Step& step) {
  step.masked = false;
  uint64_t more[kKeys];
  const int32_t first = step.token[0], last = step.token[step.keys - 1];
  if (with_rule ? p.banded || p.rows : p.rows) {
    const int32_t* low = with_rule ? t.low : t.row_low;
    const int32_t* high = with_rule ? t.high : t.row_high;
    const bool all = step.consecutive && first >= (with_rule ? t.max_low : t.max_row_low) &&
                     last < (with_rule ? t.min_high : t.min_row_high);
    if (!all) {
      p.k.range_bits(step.token, step.keys, low, high, t.lanes, step.bits);
      if (with_rule && t.max_sink > 0) {
        p.k.range_bits(step.token, step.keys, t.sink_low, t.sink_high, t.lanes, more);
        for (int j = 0; j < step.keys; ++j) step.bits[j] |= more[j];
      }
      step.masked = true;
    }
  }
  if (with_rule && p.rule.rank > 0) {
    const int rank = p.rule.rank;
    const size_t last_axis = static_cast<size_t>(rank - 1);
    // Along a row of the grid, or of a tile, only the last coordinate moves.
    const bool tiled = is_tiled(p.rule.k_tile);
    const int64_t run = tiled ? p.rule.k_tile[last_axis] : p.rule.grid[last_axis];
    const int64_t stride = tiled ? p.rule.dilation[last_axis] : 1;
    AxisExtents x{};
    int64_t left = 0;
    for (int j = 0; j < step.keys; ++j) {
      if (j > 0 && left > 0 && step.token[j] == step.token[j - 1] + 1) {
        x[last_axis] += stride, --left;
      } else {
        x = grid_coordinates(p.rule, step.token[j], p.rule.k_tile);
        left = run - 1 - (tiled ? x[last_axis] / stride % run : x[last_axis]);
      }
      uint64_t seen = w.axis[0][x[0]];
      if (rank > 1) seen &= w.axis[1][x[1]];
      if (rank > 2) seen &= w.axis[2][x[2]];
      more[j] = seen;
    }
    and_bits(more, step);
  }
  if (with_rule && p.segment_q) {
    const Tensor& ids = p.rule.segment_k;
    const int32_t* row = p.segment_k + (ids.dim(0) == 1 ? 0 : t.b) * ids.stride(0);
    for (int j = 0; j < step.keys; ++j) {
      const int32_t id = row[step.token[j] * ids.stride(1)];
      if (j > 0 && id == row[step.token[j - 1] * ids.stride(1)]) {
        more[j] = more[j - 1];
        continue;
      }
      more[j] = 0;
      for (int l = 0; l < t.used; ++l) more[j] |= static_cast<uint64_t>(t.segment[l] == id) << l;
    }
    and_bits(more, step);
  }
  if (with_rule && p.rule.bitmap) {
    bitmap_bits(p, t, step, more);
    and_bits(more, step);
  }
  if (!step.masked) return true;
  const uint64_t lanes = t.used == 64 ? ~uint64_t{0} : (uint64_t{1} << t.used) - 1;
  uint64_t any = 0, all = lanes;
  for (int j = 0; j < step.keys; ++j) any |= step.bits[j], all &= step.bits[j];
  if (all == lanes) step.masked = false;
  return (any & lanes) != 0;
}

/// Share `part` of `parts` of the keys of a tile, restricted to slots [slot_begin, slot_end).
struct Portion {
  int64_t part = 0, parts = 1;
  int64_t slot_begin = 0, slot_end = INT64_MAX;

  /// This portion's share of `total` things, cut at multiples of `unit`.
  std::pair<int64_t, int64_t> share(int64_t total, int64_t unit) const {
    if (parts == 1) return {0, total};
    const int64_t units = ceil_div(total, unit);
    return {std::min(total, part * units / parts * unit), std::min(total, (part + 1) * units / parts * unit)};
  }
};

/// The keys of a tile whose queries all see one run of keys that follow each other in memory; empty where it
/// takes a walk to find them.
inline std::pair<int64_t, int64_t> straight_run(const Plan& p, const Tile& t) {
  if (p.paged || p.lists || p.gather || p.k_order || p.key_valid || p.rule.rank > 0 || p.segment_q ||
      p.rule.bitmap)
    return {0, 0};
  if (!p.banded && !p.rows) return {0, t.keys};
  if (t.min_low != t.max_low || t.min_high != t.max_high || t.max_sink > 0) return {0, 0};
  return {t.min_low, std::max(t.min_low, t.max_high)};
}

/// Calls visit(step) for all keys that some query of the tile may see, in a fixed order.
template <class Visit>
class Walk {
 public:
  Walk(const Plan& p, const Tile& t, Workspace& w, const Portion& portion, Step& step, Visit visit)
      : p_(p), t_(t), w_(w), portion_(portion), step_(step), visit_(visit) {
    step_.keys = 0;
    step_.consecutive = true;
    if (p.k_order == nullptr && portion_.slot_end > t.keys) portion_.slot_end = t.keys;
    if (!p.paged) k_base_ = p.k_rows.at(t.b, t.kv_head, 0), v_base_ = p.v_rows.at(t.b, t.kv_head, 0);
    k_step_ = p.k_rows.row, v_step_ = p.v_rows.row;
  }

  void run() {
    if (p_.rule.rank > 0) fill_axes(p_, t_, w_);
    if (p_.gather) {
      const int64_t begin = p_.gather.begin.at(t_.b, t_.head, t_.row);
      const auto [from, to] = share(p_.gather.count.at(t_.b, t_.head, t_.row), kKeys);
      with_rule_ = true;
      for (int64_t e = from; e < to; ++e) {
        const int64_t slot = p_.gather.entry(begin + e);
        push(slot, slot + 1);
      }
      flush();
      return;
    }
    if (p_.lists) {
      const int64_t full = p_.full ? p_.full.count.at(t_.b, t_.head, t_.row) : 0;
      const int64_t partial = p_.partial ? p_.partial.count.at(t_.b, t_.head, t_.row) : 0;
      const auto [from, to] = share(full + partial, 1);
      with_rule_ = false;
      if (full > 0) blocks(p_.full, std::min(from, full), std::min(to, full));
      flush();
      with_rule_ = true;
      if (partial > 0) blocks(p_.partial, std::max(from - full, int64_t{0}), std::max(to - full, int64_t{0}));
      flush();
      return;
    }
    // No lists: from the lowest to the highest visible key, after the sinks below them.
    int64_t low = 0, high = p_.s.m, sinks = 0;
    if (p_.k_order == nullptr) {
      high = t_.keys;
      if (p_.banded || p_.rows) {
        low = t_.min_low, high = std::min<int64_t>(high, t_.max_high);
        sinks = std::min<int64_t>(t_.max_sink, t_.keys);
      }
      if (p_.rule.rank > 0 && !is_tiled(p_.rule.k_tile)) {
        int64_t inner = 1;
        for (int a = 1; a < p_.rule.rank; ++a) inner *= p_.rule.grid[static_cast<size_t>(a)];
        low = std::max(low, w_.axis_low[0] * inner), high = std::min(high, w_.axis_high[0] * inner);
      }
    }
    if (low >= high) low = high = sinks;
    sinks = std::min(sinks, low);
    const auto [from, to] = share(sinks + high - low, kKeys);
    with_rule_ = true;
    push(std::min(from, sinks), std::min(to, sinks));
    flush();
    push(low + std::max(from - sinks, int64_t{0}), low + std::max(to - sinks, int64_t{0}));
    flush();
  }

 private:
  std::pair<int64_t, int64_t> share(int64_t total, int64_t unit) const { return portion_.share(total, unit); }

  void blocks(const ListView& list, int64_t from, int64_t to) {
    const int64_t begin = list.begin.at(t_.b, t_.head, t_.row);
    for (int64_t e = from; e < to; ++e) {
      const int64_t block = list.entry(begin + e);
      push(block * p_.s.block_k, std::min(p_.s.m, (block + 1) * p_.s.block_k));
    }
  }

  void push(int64_t from, int64_t to) {
    from = std::max(from, portion_.slot_begin), to = std::min(to, portion_.slot_end);
    const uint8_t* valid = p_.key_valid ? p_.key_valid + t_.b * p_.a.mask->key_valid.stride(0) : nullptr;
    if (valid || p_.k_order) {
      for (; from < to; ++from) {
        const int64_t token = p_.key_token(from);
        if (token >= t_.keys || (valid && !valid[token * p_.a.mask->key_valid.stride(1)])) continue;
        const int n = step_.keys;
        if (n > 0 && (token != step_.token[n - 1] + 1 || from != step_.slot_data[n - 1] + 1))
          step_.consecutive = false;
        step_.slot_data[n] = static_cast<int32_t>(from);
        step_.token[n] = static_cast<int32_t>(token);
        if (++step_.keys == kKeys) flush();
      }
      return;
    }
    while (from < to) {
      const int n = step_.keys;
      const int take = static_cast<int>(std::min<int64_t>(kKeys - n, to - from));
      const int32_t first = static_cast<int32_t>(from);
      if (n > 0 && first != step_.token[n - 1] + 1) step_.consecutive = false;
      for (int i = 0; i < take; ++i) step_.token[n + i] = first + i;
      step_.keys += take, from += take;
      if (step_.keys == kKeys) flush();
    }
  }

  void flush() {
    if (step_.keys == 0) return;
    step_.slot = p_.key_valid || p_.k_order ? step_.slot_data : step_.token;
    if (mask_step(p_, t_, w_, with_rule_, step_)) {
      if (p_.paged) {
        const Tensor& table = p_.a.pages.table;
        const int32_t* pages = table.data<int32_t>() + t_.b * table.stride(0);
        const int64_t size = p_.a.pages.page_size;
        for (int j = 0; j < step_.keys; ++j) {
          const int64_t page = pages[step_.token[j] / size * table.stride(1)], row = step_.token[j] % size;
          step_.k[j] = p_.k_rows.at(page, t_.kv_head, row);
          step_.v[j] = p_.v_rows.at(page, t_.kv_head, row);
        }
      } else if (step_.consecutive) {
        const char *k = k_base_ + step_.token[0] * k_step_, *v = v_base_ + step_.token[0] * v_step_;
        for (int j = 0; j < step_.keys; ++j, k += k_step_, v += v_step_) step_.k[j] = k, step_.v[j] = v;
      } else {
        for (int j = 0; j < step_.keys; ++j) {
          step_.k[j] = k_base_ + step_.token[j] * k_step_;
          step_.v[j] = v_base_ + step_.token[j] * v_step_;
        }
      }
      visit_(step_);
    }
    step_.keys = 0;
    step_.consecutive = true;
  }

  const Plan& p_;
  const Tile& t_;
  Workspace& w_;
  Portion portion_;
  Step& step_;
  Visit visit_;
  bool with_rule_ = true;
  const char *k_base_ = nullptr, *v_base_ = nullptr;
  int64_t k_step_ = 0, v_step_ = 0;
};
template <class Visit>
void walk(const Plan& p, const Tile& t, Workspace& w, const Portion& portion, Step& step, Visit visit) {
  Walk<Visit>(p, t, w, portion, step, visit).run();
}

}  // namespace attnbench::cpu_attention
