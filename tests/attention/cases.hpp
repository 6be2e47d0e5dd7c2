// Random attention calls for tests: shapes, strides, masks, score terms and outputs drawn from a seed, in
// host memory. No tests of its own.
#pragma once
#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/attention/reference.hpp"
#include "tests/catch.hpp"

namespace attnbench::attention_test {

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t integer(int64_t low, int64_t high) {  // inclusive
    return low + static_cast<int64_t>(engine() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return static_cast<double>(engine() >> 11) * 0x1p-53; }
  float normal() {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) *
                              std::cos(6.283185307179586 * uniform()));
  }
};

inline void set(const Tensor& t, int64_t offset, float x) {
  if (t.dtype() == DType::f32) t.data<float>()[offset] = x;
  if (t.dtype() == DType::bf16) t.data<bf16>()[offset] = bf16(x);
  if (t.dtype() == DType::f16) t.data<f16>()[offset] = f16(x);
}

/// A [d0, d1, d2, d3] view of fresh memory with the first three axes in a random order, padded, and with gaps
/// poisoned: what operators meet when q, k and v are slices of one matrix.
inline Tensor fresh(Context& ctx, Random& r, DType dtype, const Shape& shape, bool strided) {
  int axes[3] = {0, 1, 2};
  if (strided)
    for (int i = 2; i > 0; --i) std::swap(axes[i], axes[r.integer(0, i)]);
  int64_t step = shape[3] + (strided ? r.integer(0, 9) : 0);
  Shape strides = shape;
  strides[3] = 1;
  for (int i = 2; i >= 0; --i) {
    strides[axes[i]] = step;
    step *= std::max<int64_t>(1, shape[axes[i]]);
    if (strided) step += r.integer(0, 3) * 8;
  }
  Tensor memory = ctx.allocate(dtype, {step + 1});
  std::memset(memory.raw(), 0xff, static_cast<size_t>(memory.nbytes()));  // NaN in every float type
  return memory.strided(shape, strides, strided ? 1 : 0);
}
template <class F>
inline void fill(const Tensor& t, F&& value) {
  for (int64_t a = 0; a < t.dim(0); ++a)
    for (int64_t b = 0; b < t.dim(1); ++b)
      for (int64_t c = 0; c < t.dim(2); ++c)
        for (int64_t d = 0; d < t.dim(3); ++d)
          set(t, a * t.stride(0) + b * t.stride(1) + c * t.stride(2) + d * t.stride(3), value());
}
inline Tensor ints(Context& ctx, const Shape& shape, const std::vector<int32_t>& v) {
  Tensor t = ctx.allocate(DType::i32, shape);
  REQUIRE(t.numel() == static_cast<int64_t>(v.size()));
  std::copy(v.begin(), v.end(), t.data<int32_t>());
  return t;
}
inline Tensor floats(Context& ctx, const Shape& shape) {
  Tensor t = ctx.allocate(DType::f32, shape);
  std::memset(t.raw(), 0xff, static_cast<size_t>(t.nbytes()));
  return t;
}

struct Case {
  AttentionArgs args;
  BlockMask mask;
  std::string text;
};

struct Sizes {
  int64_t b = 1, h = 1, hkv = 1, n = 1, m = 1, d = 16, e = 16;
  DType dtype = DType::f32;
};
/// Plain q, k, v, o and every output, without a mask.
inline void base_case(Case& c, Context& ctx, Random& r, const Sizes& s, bool strided, bool outputs,
                      float logit = 1.0f) {
  AttentionArgs& a = c.args;
  a.q = fresh(ctx, r, s.dtype, {s.b, s.h, s.n, s.d}, strided);
  a.k = fresh(ctx, r, s.dtype, {s.b, s.hkv, s.m, s.d}, strided);
  a.v = fresh(ctx, r, s.dtype, {s.b, s.hkv, s.m, s.e}, strided);
  a.o = fresh(ctx, r, s.dtype, {s.b, s.h, s.n, s.e}, strided);
  fill(a.q, [&] { return r.normal() * logit; });
  fill(a.k, [&] { return r.normal(); });
  fill(a.v, [&] { return r.normal(); });
  a.scale = 1.0f / std::sqrt(static_cast<float>(s.d));
  if (outputs) {
    a.lse = floats(ctx, {s.b, s.h, s.n});
    a.row_max = floats(ctx, {s.b, s.h, s.n});
    a.row_entropy = floats(ctx, {s.b, s.h, s.n});
  }
}
/// A dense bias of 0 and -huge. By rows: the first tiles wholly blocked, all after a stretch, every third key
/// and, where f32 keeps nothing of a score beside the bias, all keys: such a row takes the mean.
inline void blocked_rows(Case& c, Context& ctx, DType dtype, int64_t n, float huge) {
  Random r(static_cast<uint64_t>(n) + 7);
  const int64_t m = 200;
  base_case(c, ctx, r, {1, 2, 2, n, m, 24, 20, dtype}, false, n != 1);
  c.args.bias.dense = floats(ctx, {1, 2, n, m});
  float* bias = c.args.bias.dense.data<float>();
  for (int64_t row = 0; row < 2 * n; ++row) {
    const int64_t kind = (row + (n == 1)) % (huge > 1e11f ? 4 : 3);
    for (int64_t j = 0; j < m; ++j) {
      const bool blocked = kind == 0 ? j < 150 : kind == 1 ? j > 60 : kind == 2 ? j % 3 == 0 : true;
      bias[row * m + j] = blocked ? -huge : 0.0f;
    }
  }
}
inline void add_masses(Case& c, Context& ctx, bool key, bool block) {
  const AttentionArgs& a = c.args;
  const int64_t m = a.pages.table ? a.pages.table.dim(1) * a.pages.page_size : a.k.dim(2);
  const int64_t bq = a.mask ? a.mask->block_q : 64, bk = a.mask ? a.mask->block_k : 64;
  if (key) c.args.mass_per_key = floats(ctx, {a.q.dim(0), a.q.dim(1), m});
  if (block)
    c.args.mass_per_block =
        floats(ctx, {a.q.dim(0), a.q.dim(1), (a.q.dim(2) + bq - 1) / bq, (m + bk - 1) / bk});
}
/// Random lists: every block of each row in none, the full or the partial list.
inline void random_lists(BlockMask& m, Context& ctx, Random& r, const Sizes& s) {
  const int64_t gb = r.chance(0.5) ? 1 : s.b, gh = r.chance(0.4) ? 1 : r.chance(0.5) ? s.hkv : s.h;
  const int64_t rows = (s.n + m.block_q - 1) / m.block_q, columns = (s.m + m.block_k - 1) / m.block_k;
  std::vector<int32_t> begin[2], count[2], index[2];
  const double density = r.uniform();
  for (int64_t i = 0; i < gb * gh * rows; ++i) {
    std::vector<int32_t> entries[2];
    for (int64_t b = 0; b < columns; ++b)
      if (r.chance(density)) entries[r.integer(0, 1)].push_back(static_cast<int32_t>(b));
    for (int l = 0; l < 2; ++l) {
      std::shuffle(entries[l].begin(), entries[l].end(), r.engine);
      begin[l].push_back(static_cast<int32_t>(index[l].size()));
      count[l].push_back(static_cast<int32_t>(entries[l].size()));
      index[l].insert(index[l].end(), entries[l].begin(), entries[l].end());
    }
  }
  BlockList* lists[2] = {&m.full, &m.partial};
  const int only = r.chance(0.2) ? static_cast<int>(r.integer(0, 1)) : -1;
  for (int l = 0; l < 2; ++l)
    if (only < 0 || only == l)
      *lists[l] = {ints(ctx, {gb, gh, rows}, begin[l]), ints(ctx, {gb, gh, rows}, count[l]),
                   ints(ctx, {static_cast<int64_t>(index[l].size())}, index[l])};
}
inline void random_gather(Case& c, Context& ctx, Random& r, const Sizes& s) {
  BlockMask& m = c.mask;
  m.block_q = r.integer(1, 70), m.block_k = r.integer(1, 70);
  const int64_t gb = r.chance(0.5) ? 1 : s.b, gh = r.chance(0.5) ? 1 : s.h;
  const int64_t rows = (s.n + m.block_q - 1) / m.block_q;
  std::vector<int32_t> begin, count, index, keys(static_cast<size_t>(s.m));
  for (size_t j = 0; j < keys.size(); ++j) keys[j] = static_cast<int32_t>(j);
  for (int64_t i = 0; i < gb * gh * rows; ++i) {
    std::shuffle(keys.begin(), keys.end(), r.engine);
    const int64_t take = r.integer(0, s.m);
    begin.push_back(static_cast<int32_t>(index.size()));
    count.push_back(static_cast<int32_t>(take));
    index.insert(index.end(), keys.begin(), keys.begin() + take);
  }
  m.gather = {ints(ctx, {gb, gh, rows}, begin), ints(ctx, {gb, gh, rows}, count),
              ints(ctx, {static_cast<int64_t>(index.size())}, index)};
}
inline void random_rule(Case& c, Context& ctx, Random& r, Sizes& s, std::string& text) {
  ElementRule& rule = c.mask.rule;
  const bool tiled = rule.q_tile[0] > 0 || rule.k_tile[0] > 0;
  if (!tiled && r.chance(0.4)) rule.causal = true, text += " causal";
  if (!tiled && r.chance(0.3)) {
    rule.band = true;
    rule.left = r.integer(-1, s.m), rule.right = r.chance(0.5) ? r.integer(-1, 20) : r.integer(-1, s.m);
    rule.sinks = r.chance(0.5) ? r.integer(0, 5) : 0;
    text += " band " + std::to_string(rule.left) + " " + std::to_string(rule.right) + " sinks " +
            std::to_string(rule.sinks);
  }
  if ((rule.causal || rule.band) && r.chance(0.3))
    rule.offset = r.integer(-s.n, s.m), text += " offset " + std::to_string(rule.offset);
  if (r.chance(0.2)) {
    const auto ids = [&](int64_t length) {
      const int64_t g = r.chance(0.5) ? 1 : s.b;
      std::vector<int32_t> v;
      for (int64_t i = 0; i < g * length; ++i)
        v.push_back(static_cast<int32_t>(r.integer(0, 2) * 1000 - 1000));
      return ints(ctx, {g, length}, v);
    };
    rule.segment_q = ids(s.n), rule.segment_k = ids(s.m);
    text += " segments";
  }
  if (r.chance(0.2)) {
    rule.bitmap =
        ctx.allocate(DType::u8, {r.chance(0.5) ? 1 : s.b, r.chance(0.5) ? 1 : s.h, s.n, (s.m + 7) / 8});
    for (int64_t i = 0; i < rule.bitmap.numel(); ++i)
      rule.bitmap.data<uint8_t>()[i] = static_cast<uint8_t>(r.integer(0, 255));
    text += " bitmap";
  }
}
inline void random_neighbourhood(Case& c, Random& r, Sizes& s, std::string& text) {
  ElementRule& rule = c.mask.rule;
  rule.rank = static_cast<int>(r.integer(1, 3));
  s.n = 1;
  text += " neighbourhood";
  for (int a = 0; a < rule.rank; ++a) {
    const auto i = static_cast<size_t>(a);
    rule.grid[i] = r.integer(1, rule.rank == 1 ? 150 : rule.rank == 2 ? 14 : 6);
    rule.dilation[i] = r.chance(0.5) ? 1 : r.integer(1, std::min<int64_t>(3, rule.grid[i]));
    rule.causal_axis[i] = r.chance(0.3);
    rule.cut_axis[i] = !rule.causal_axis[i] && r.chance(0.3);
    // A window that is cut may be longer than its axis.
    rule.window[i] = r.integer(1, (rule.cut_axis[i] ? 2 : 1) * rule.grid[i] / rule.dilation[i]);
    rule.stride[i] = r.chance(0.5) ? 1 : r.integer(1, rule.window[i]);
    s.n *= rule.grid[i];
    text += " " + std::to_string(rule.grid[i]) + "/" + std::to_string(rule.window[i]) + "/" +
            std::to_string(rule.dilation[i]) + "/" + std::to_string(rule.stride[i]) +
            (rule.causal_axis[i] ? "c"
             : rule.cut_axis[i]  ? "x"
                                 : "");
  }
  s.m = s.n;
}
inline int64_t padded_tokens_of(const ElementRule& rule, const std::array<int64_t, 3>& tile) {
  int64_t tokens = 1;
  for (int a = 0; a < rule.rank; ++a) {
    const auto i = static_cast<size_t>(a);
    const int64_t step = tile[i] * rule.dilation[i];
    tokens *= (rule.grid[i] + step - 1) / step * step;
  }
  return tokens;
}
/// Stores the tokens of a neighbourhood tile by tile, on one side or both.
inline void random_tiles(Case& c, Random& r, Sizes& s, std::string& text) {
  ElementRule& rule = c.mask.rule;
  const int sides = static_cast<int>(r.integer(1, 3));
  for (int side = 1; side <= 2; ++side) {
    if (!(sides & side)) continue;
    std::array<int64_t, 3>& tile = side == 1 ? rule.q_tile : rule.k_tile;
    text += side == 1 ? " q tiles" : " k tiles";
    for (int a = 0; a < rule.rank; ++a) {
      tile[static_cast<size_t>(a)] = r.integer(1, rule.rank == 1 ? 40 : 5);
      text += " " + std::to_string(tile[static_cast<size_t>(a)]);
    }
    (side == 1 ? s.n : s.m) = padded_tokens_of(rule, tile);
  }
}
inline Tensor random_order(Context& ctx, Random& r, int64_t length) {
  std::vector<int32_t> v(static_cast<size_t>(length));
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<int32_t>(i);
  std::shuffle(v.begin(), v.end(), r.engine);
  return ints(ctx, {length}, v);
}

inline void random_terms(AttentionArgs& a, Context& ctx, Random& r, const Sizes& s, std::string& text) {
  if (r.chance(0.15)) a.soft_cap = r.chance(0.5) ? 2.0f : 30.0f, text += " cap";
  if (r.chance(0.2)) {
    const DType t = r.chance(0.5) ? DType::f32 : s.dtype;
    a.bias.dense = fresh(ctx, r, t, {r.chance(0.5) ? 1 : s.b, r.chance(0.5) ? 1 : s.h, s.n, s.m}, true);
    fill(a.bias.dense, [&] { return r.chance(0.1) ? -std::numeric_limits<float>::infinity() : r.normal(); });
    if (r.chance(0.2)) a.bias.dense = a.bias.dense.strided(a.bias.dense.shape(), {0, 0, 0, 1});
    text += " dense";
  }
  if (r.chance(0.15)) {
    a.bias.slope = floats(ctx, {s.h});
    for (int64_t h = 0; h < s.h; ++h) a.bias.slope.data<float>()[h] = static_cast<float>(r.uniform());
    text += " slope";
  }
  if (r.chance(0.15)) {
    const int64_t reach = r.integer(0, std::max(s.n, s.m));
    a.bias.relative = floats(ctx, {r.chance(0.5) ? 1 : s.h, 2 * reach + 1});
    for (int64_t i = 0; i < a.bias.relative.numel(); ++i) a.bias.relative.data<float>()[i] = r.normal();
    text += " relative";
  }
}

/// Tables of embeddings [1 or H, rows, width] that end before, at and behind the distances there are.
/// `which`: 0 keys, 1 values, 2 both.
inline void random_embeddings(AttentionArgs& a, Context& ctx, Random& r, const Sizes& s, int which,
                              std::string& text) {
  const auto table = [&](int64_t width) {
    const Tensor t =
        fresh(ctx, r, s.dtype, {1, r.chance(0.5) ? 1 : s.h, r.integer(1, s.n + s.m), width}, true);
    fill(t, [&] { return r.normal(); });
    return t.select(0, 0);
  };
  if (which != 1) a.relative.keys = table(s.d);
  if (which != 0) a.relative.values = table(s.e);
  a.relative.origin = r.integer(-3, s.n + s.m);
  a.relative.clip = r.chance(0.4);
  text += which == 0 ? " relative keys" : which == 1 ? " relative values" : " relative keys and values";
}
/// Relative embeddings of which single elements are NaN, of values also inf, under a plain or a random mask.
inline void odd_embeddings(Case& c, Context& ctx, Random& r) {
  Sizes s;
  s.hkv = r.integer(1, 2), s.h = s.hkv * r.integer(1, 2);
  s.n = r.chance(0.3) ? r.integer(1, 8) : r.integer(30, 150), s.m = r.integer(1, 200);
  s.d = r.integer(1, 40), s.e = r.integer(1, 40);
  s.dtype = r.chance(0.4) ? DType::f32 : r.chance(0.5) ? DType::bf16 : DType::f16;
  base_case(c, ctx, r, s, r.chance(0.5), true);
  random_embeddings(c.args, ctx, r, s, static_cast<int>(r.integer(0, 2)), c.text);
  if (r.chance(0.7)) c.args.mask = &c.mask, random_rule(c, ctx, r, s, c.text);
  for (const bool values : {false, true}) {
    const Tensor& t = values ? c.args.relative.values : c.args.relative.keys;
    for (int64_t i = t ? r.integer(1, 3) : 0; i > 0; --i) {
      const int64_t head = r.integer(0, t.dim(0) - 1), row = r.integer(0, t.dim(1) - 1);
      set(t, head * t.stride(0) + row * t.stride(1) + r.integer(0, t.dim(2) - 1),
          values && r.chance(0.5) ? std::numeric_limits<float>::infinity()
                                  : std::numeric_limits<float>::quiet_NaN());
    }
  }
  c.text += " H" + std::to_string(s.h) + " N" + std::to_string(s.n) + " M" + std::to_string(s.m) + " D" +
            std::to_string(s.d) + " E" + std::to_string(s.e) + " " + std::string(name(s.dtype));
}

/// Relative embeddings in the shapes and under the masks that tiles of 64 rows and 32 or 64 keys meet: ends
/// inside tiles, jumps between blocks of keys, rows without keys. Also what leads away from such tiles.
inline void relative_case(Case& c, Context& ctx, uint64_t seed) {
  Random r(seed);
  Sizes s;
  s.b = r.integer(1, 2), s.hkv = r.integer(1, 2), s.h = s.hkv * r.integer(1, 3);
  s.n = r.chance(0.15) ? r.integer(1, 5) : r.integer(30, 290);
  s.m = r.chance(0.4) ? s.n : r.integer(1, 330);
  const int64_t widths[] = {8, 40, 64, 65, 100, 128};
  s.d = r.chance(0.8) ? widths[r.integer(0, 5)] : r.integer(1, 140);
  s.e = r.chance(0.7) ? s.d : r.integer(1, 128);
  s.dtype = r.chance(0.4) ? DType::f32 : r.chance(0.6) ? DType::bf16 : DType::f16;
  c.text = "relative seed " + std::to_string(seed) + ":";
  base_case(c, ctx, r, s, r.chance(0.4), r.chance(0.3));
  random_embeddings(c.args, ctx, r, s, r.chance(0.5) ? 0 : static_cast<int>(r.integer(1, 2)), c.text);
  if (r.chance(0.5)) c.args.relative.origin = c.args.relative.keys ? c.args.relative.keys.dim(1) - 1 : 0;
  c.args.mask = &c.mask;
  const int kind = static_cast<int>(r.integer(0, 7));
  if (kind == 1 || kind == 2) c.mask.rule.causal = true, c.text += " causal";
  if (kind == 3) {
    c.mask.rule.band = true, c.mask.rule.left = r.integer(0, 80), c.mask.rule.right = r.integer(-1, 80);
    c.mask.rule.sinks = r.integer(0, 70);
    c.text += " band " + std::to_string(c.mask.rule.left) + " sinks " + std::to_string(c.mask.rule.sinks);
  }
  if (kind == 4) random_rule(c, ctx, r, s, c.text);
  if (kind == 5 || kind == 6) {
    const int64_t blocks[] = {16, 32, 64, 128, r.integer(1, 100)};
    c.mask.block_q = blocks[r.integer(0, 4)], c.mask.block_k = blocks[r.integer(0, 4)];
    c.mask.rule.causal = kind == 6;
    random_lists(c.mask, ctx, r, s);
    c.text += " lists " + std::to_string(c.mask.block_q) + "x" + std::to_string(c.mask.block_k);
  }
  if (kind == 7) {
    const int which = static_cast<int>(r.integer(0, 2));
    if (which == 0) random_gather(c, ctx, r, s), c.text += " gather";
    if (which == 1) c.mask.q_order = random_order(ctx, r, s.n), c.text += " q_order";
    if (which == 2) c.mask.k_order = random_order(ctx, r, s.m), c.text += " k_order";
  }
  if (r.chance(0.2)) {
    std::vector<int32_t> lengths;
    for (int64_t b = 0; b < s.b; ++b) lengths.push_back(static_cast<int32_t>(r.integer(0, s.m)));
    c.mask.key_length = ints(ctx, {s.b}, lengths);
    c.text += " length";
  }
  if (r.chance(0.2)) random_terms(c.args, ctx, r, s, c.text);
  if (r.chance(0.05)) c.args.scale = -c.args.scale;
  if (r.chance(0.2)) c.args.split_keys = r.integer(1, 5), c.text += " split";
  add_masses(c, ctx, r.chance(0.1), r.chance(0.1));
  c.text += " B" + std::to_string(s.b) + " H" + std::to_string(s.h) + "/" + std::to_string(s.hkv) + " N" +
            std::to_string(s.n) + " M" + std::to_string(s.m) + " D" + std::to_string(s.d) + " E" +
            std::to_string(s.e) + " " + std::string(name(s.dtype));
}

/// One random mixture. Case numbers are seeds: a failing one can be run alone.
inline void random_case(Case& c, Context& ctx, uint64_t seed) {
  Random r(seed);
  Sizes s;
  const int kind = static_cast<int>(r.integer(0, 9));
  s.b = r.integer(1, 3);
  s.hkv = r.integer(1, 3), s.h = s.hkv * (r.chance(0.5) ? 1 : r.integer(1, 4));
  s.n = r.chance(0.2) ? r.integer(1, 4) : r.chance(0.7) ? r.integer(1, 70) : r.integer(60, 150);
  s.m = r.chance(0.3) ? s.n : r.chance(0.7) ? r.integer(1, 80) : r.integer(60, 200);
  s.d = r.chance(0.3) ? 16 * r.integer(1, 4) : r.integer(1, 40);
  s.e = r.chance(0.4) ? s.d : r.integer(1, 40);
  if (r.chance(0.02)) s.d = r.integer(120, 300);
  s.dtype = r.chance(0.5) ? DType::f32 : r.chance(0.6) ? DType::bf16 : DType::f16;
  std::string& text = c.text;
  text = "seed " + std::to_string(seed) + ":";
  const bool masked = kind >= 2;
  if (masked && r.chance(0.2)) {
    random_neighbourhood(c, r, s, text);
    if (r.chance(0.5)) random_tiles(c, r, s, text);
  }
  const bool tiled = c.mask.rule.q_tile[0] > 0 || c.mask.rule.k_tile[0] > 0;
  const float logit = r.chance(0.1) ? 30.0f : 1.0f;
  base_case(c, ctx, r, s, r.chance(0.6), r.chance(0.5), logit);
  AttentionArgs& a = c.args;
  if (masked) {
    a.mask = &c.mask;
    random_rule(c, ctx, r, s, text);
    if (kind >= 4 && kind <= 6) {
      c.mask.block_q = r.chance(0.5) ? 64 : r.integer(1, 70),
      c.mask.block_k = r.chance(0.5) ? 64 : r.integer(1, 70);
      random_lists(c.mask, ctx, r, s), text += " lists";
    }
    if (kind == 7) random_gather(c, ctx, r, s), text += " gather";
    if (kind < 4 && r.chance(0.5)) c.mask.block_q = r.integer(1, 70), c.mask.block_k = r.integer(1, 70);
    if (!tiled && r.chance(0.2)) c.mask.q_order = random_order(ctx, r, s.n), text += " q_order";
    if (!tiled && r.chance(0.2)) c.mask.k_order = random_order(ctx, r, s.m), text += " k_order";
    if (r.chance(0.15)) {
      const int64_t gb = r.chance(0.5) ? 1 : s.b, gh = r.chance(0.5) ? 1 : r.chance(0.5) ? s.hkv : s.h;
      std::vector<int32_t> begin, end;
      for (int64_t i = 0; i < gb * gh * s.n; ++i) {
        begin.push_back(static_cast<int32_t>(r.integer(-3, s.m)));
        end.push_back(static_cast<int32_t>(r.integer(-3, s.m + 3)));
      }
      c.mask.row_begin = ints(ctx, {gb, gh, s.n}, begin), c.mask.row_end = ints(ctx, {gb, gh, s.n}, end);
      text += " rows";
    }
    if (r.chance(0.2)) {
      std::vector<int32_t> v;
      for (int64_t b = 0; b < s.b; ++b) v.push_back(static_cast<int32_t>(r.integer(0, s.m)));
      c.mask.key_length = ints(ctx, {s.b}, v);
      text += " length";
    }
    if (r.chance(0.2)) {
      c.mask.key_valid = ctx.allocate(DType::u8, {s.b, s.m});
      for (int64_t i = 0; i < s.b * s.m; ++i) c.mask.key_valid.data<uint8_t>()[i] = r.chance(0.7) ? 3 : 0;
      text += " valid";
    }
    if (c.mask.rule.rank == 0 && !c.mask.k_order && r.chance(0.15)) {  // pages
      const int64_t size = r.integer(1, 20), per = (s.m + size - 1) / size, extra = r.integer(0, 3);
      a.pages.page_size = size;
      std::vector<int32_t> table(static_cast<size_t>(s.b * per)), lengths;
      for (size_t i = 0; i < table.size(); ++i)
        table[i] = static_cast<int32_t>(i) + static_cast<int32_t>(extra);
      std::shuffle(table.begin(), table.end(), r.engine);
      // A page of the same M as the mask's tensors.
      if (per * size == s.m) {
        a.pages.table = ints(ctx, {s.b, per}, table);
        const int64_t pages = s.b * per + extra;
        a.k = fresh(ctx, r, s.dtype, {pages, s.hkv, size, s.d}, true);
        a.v = fresh(ctx, r, s.dtype, {pages, s.hkv, size, s.e}, true);
        fill(a.k, [&] { return r.normal(); });
        fill(a.v, [&] { return r.normal(); });
        for (int64_t b = 0; b < s.b; ++b) lengths.push_back(static_cast<int32_t>(r.integer(0, s.m)));
        c.mask.key_length = ints(ctx, {s.b}, lengths);
        text += " pages";
      }
    }
  }
  random_terms(a, ctx, r, s, text);
  if (r.chance(0.2)) random_embeddings(a, ctx, r, s, static_cast<int>(r.integer(0, 2)), text);
  if (r.chance(0.15)) {
    a.sink_logit = floats(ctx, {s.h});
    for (int64_t h = 0; h < s.h; ++h) a.sink_logit.data<float>()[h] = 3 * r.normal();
    text += " sink";
  }
  if (r.chance(0.05)) a.scale = -a.scale;
  if (r.chance(0.2)) a.split_keys = r.integer(1, 5), text += " split " + std::to_string(a.split_keys);
  add_masses(c, ctx, r.chance(0.3), r.chance(0.2));
  text += " B" + std::to_string(s.b) + " H" + std::to_string(s.h) + "/" + std::to_string(s.hkv) + " N" +
          std::to_string(s.n) + " M" + std::to_string(s.m) + " D" + std::to_string(s.d) + " E" +
          std::to_string(s.e) + " " + std::string(name(s.dtype)) + " block " +
          std::to_string(c.mask.block_q) + "x" + std::to_string(c.mask.block_k);
}

}  // namespace attnbench::attention_test
