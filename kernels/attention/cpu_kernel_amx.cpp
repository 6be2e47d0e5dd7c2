// CPU attention kernels for AMX: as avx512bf16, with the products of bf16 tiles on the tile unit. Softmax,
// packing and decoding are that table's.
//
// A tile is 16 rows of 64 bytes; one instruction multiplies 16 rows of 32 bf16 with 16 rows of 16 pairs. S^T
// of 16 keys x 16 queries takes K as it lies in memory (a row a key) and Q^T in pairs, as pack_columns_pairs
// leaves it. O^T of 16 head dims x 16 queries takes V^T, which `interleave` makes of a step (a row a head
// dim, 32 keys a tile), and P^T in pairs. Both run as 2 x 2 tiles: four loads for four products, which take
// twice as long.
#include "kernels/attention/cpu_kernel.hpp"

#if defined(__AMX_BF16__)
// GCC 12 takes the undefined operands inside its own AVX-512 header for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace attnbench::cpu_attention {
namespace {
#include "kernels/attention/cpu_vector_avx512.hpp"

constexpr int kTile = 16;       // rows of a tile, and its 32-bit units a row
constexpr int kDepth = 32;      // bf16 of a tile's row
constexpr int kStepUnits = 32;  // pairs of keys in a step of 64

/// What was written to `p` is in memory: GCC's tile instructions do not say that they read.
inline void settle(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

void begin_thread() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kTile;
  settle(&config);
  _tile_loadconfig(&config);
}
void end_thread() { _tile_release(); }

// Tiles 0 to 3 are sums, 4 and 5 rows of the left operand, 6 and 7 columns of the right one.
template <int R, int C>
inline __attribute__((always_inline)) void zero_sums() {
  _tile_zero(0);
  if constexpr (C > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && C > 1) _tile_zero(3);
}
template <int R, int C>
inline __attribute__((always_inline)) void load_sums(const float* c, int64_t ld) {
  _tile_loadd(0, c, ld * 4);
  if constexpr (C > 1) _tile_loadd(1, c + kTile, ld * 4);
  if constexpr (R > 1) _tile_loadd(2, c + kTile * ld, ld * 4);
  if constexpr (R > 1 && C > 1) _tile_loadd(3, c + kTile * ld + kTile, ld * 4);
}
template <int R, int C>
inline __attribute__((always_inline)) void store_sums(float* c, int64_t ld) {
  _tile_stored(0, c, ld * 4);
  if constexpr (C > 1) _tile_stored(1, c + kTile, ld * 4);
  if constexpr (R > 1) _tile_stored(2, c + kTile * ld, ld * 4);
  if constexpr (R > 1 && C > 1) _tile_stored(3, c + kTile * ld + kTile, ld * 4);
}
/// 16 rows in memory, equally far apart.
struct Rows {
  const char* base;
  int64_t step;
};
template <int R, int C>
inline __attribute__((always_inline)) void multiply(const Rows* a, int64_t at, const float* b, int64_t ldb) {
  _tile_loadd(4, a[0].base + at, a[0].step);
  _tile_loadd(6, b, ldb * 4);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (C > 1) {
    _tile_loadd(7, b + kTile, ldb * 4);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (R > 1) {
    _tile_loadd(5, a[1].base + at, a[1].step);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (C > 1) _tile_dpbf16ps(3, 5, 7);
  }
}

template <int R, int C>
void score_tiles(const float* q, int lanes, int64_t d, const Rows* k, int keys, float* s) {
  settle(q), settle(k[0].base), settle(k[R - 1].base);
  zero_sums<R, C>();
  for (int64_t i = 0; i < d; i += kDepth) multiply<R, C>(k, i * 2, q + i / 2 * lanes, lanes);
  if (keys == R * kTile) return store_sums<R, C>(s, lanes);
  // Rows of keys that are not there are not the caller's to lose.
  alignas(64) float all[R * kTile * C * kTile];
  store_sums<R, C>(all, C * kTile);
  for (int j = 0; j < keys; ++j)
    for (int c = 0; c < C; ++c) V::store(s + j * lanes + c * kTile, V::load(all + (j * C + c) * kTile));
}

template <int R>
void score_rows(const float* q, int lanes, int width, int64_t d, const Rows* k, int keys, float* s) {
  int l = 0;
  for (; l + 2 * kTile <= width; l += 2 * kTile) score_tiles<R, 2>(q + l, lanes, d, k, keys, s + l);
  if (l < width) score_tiles<R, 1>(q + l, lanes, d, k, keys, s + l);
}

/// Rows k[0] to k[keys - 1] where they lie, or, when they are not equally far apart or not 16, copied to
/// `copy`.
Rows rows_of(const void* const* k, int keys, int64_t d, char* copy) {
  const char* first = static_cast<const char*>(k[0]);
  const int64_t step = keys > 1 ? static_cast<const char*>(k[1]) - first : 0;
  bool even = keys == kTile;
  for (int j = 2; j < keys; ++j) even &= static_cast<const char*>(k[j]) - first == j * step;
  if (even) return {first, step};
  for (int j = 0; j < kTile; ++j)
    for (int64_t i = 0; i < d * 2; i += 64)
      _mm512_store_si512(copy + j * d * 2 + i, j < keys
                                                   ? _mm512_loadu_si512(static_cast<const char*>(k[j]) + i)
                                                   : _mm512_setzero_si512());
  return {copy, d * 2};
}

void scores_pairs(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys, float* s) {
  if (d % kDepth != 0) return avx512bf16_kernels().scores_pairs(q, lanes, width, d, k, keys, s);
  alignas(64) char copy[2][kTile * kMaxDim * 2];
  for (int j = 0; j < keys; j += 2 * kTile) {
    const int here = keys - j < 2 * kTile ? keys - j : 2 * kTile, low = here < kTile ? here : kTile;
    Rows rows[2];
    rows[0] = rows_of(k + j, low, d, copy[0]);
    if (here > kTile) {
      rows[1] = rows_of(k + j + kTile, here - kTile, d, copy[1]);
      score_rows<2>(q, lanes, width, d, rows, here, s + int64_t{j} * lanes);
    } else {
      score_rows<1>(q, lanes, width, d, rows, here, s + int64_t{j} * lanes);
    }
  }
}

/// 32 keys x 8 head dims of V, transposed. Eight vectors hold keys u, u + 8, u + 16, u + 24 in their four
/// parts, put there by the loads; joining neighbours of 16, 32 and 64 bits leaves a head dim's 32 keys in
/// order. A transpose in registers alone would need twice the shuffles, of which a core does one a cycle.
template <class Part>
inline __attribute__((always_inline)) void transpose_values(Part part, float* out) {
  __m512i x[8], y[8];
#pragma GCC unroll 8
  for (int u = 0; u < 8; ++u) {
    x[u] = _mm512_castsi128_si512(part(u));
    x[u] = _mm512_inserti32x4(x[u], part(u + 8), 1);
    x[u] = _mm512_inserti32x4(x[u], part(u + 16), 2);
    x[u] = _mm512_inserti32x4(x[u], part(u + 24), 3);
  }
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u) {  // y: keys 2 u and 2 u + 1, head dims 0 to 3, then 4 to 7
    y[u] = _mm512_unpacklo_epi16(x[2 * u], x[2 * u + 1]);
    y[u + 4] = _mm512_unpackhi_epi16(x[2 * u], x[2 * u + 1]);
  }
#pragma GCC unroll 4
  for (int h = 0; h < 4; ++h) {  // x: keys 0 to 3 and 4 to 7, head dims 2 h and 2 h + 1
    const int from = h / 2 * 4;
    x[2 * h] =
        h % 2 ? _mm512_unpackhi_epi32(y[from], y[from + 1]) : _mm512_unpacklo_epi32(y[from], y[from + 1]);
    x[2 * h + 1] = h % 2 ? _mm512_unpackhi_epi32(y[from + 2], y[from + 3])
                         : _mm512_unpacklo_epi32(y[from + 2], y[from + 3]);
  }
#pragma GCC unroll 4
  for (int h = 0; h < 4; ++h) {
    _mm512_storeu_si512(out + (2 * h) * kStepUnits, _mm512_unpacklo_epi64(x[2 * h], x[2 * h + 1]));
    _mm512_storeu_si512(out + (2 * h + 1) * kStepUnits, _mm512_unpackhi_epi64(x[2 * h], x[2 * h + 1]));
  }
}

/// V^T of a step: out[i * 32 + u] = {v[2 u][i], v[2 u + 1][i]}, zeros up to the next 32 keys.
void interleave(const void* const* v, int keys, int64_t e, float* out) {
  if (e % kTile != 0) return avx512bf16_kernels().interleave(v, keys, e, out);
  for (int j = 0; j < keys; j += kDepth, out += kDepth / 2) {
    const bool whole = j + kDepth <= keys;
    for (int64_t i = 0; i < e; i += 8) {
      const auto at = [&](int u) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(v[j + u]) + i * 2));
      };
      if (whole)
        transpose_values(at, out + i * kStepUnits);
      else
        transpose_values([&](int u) { return j + u < keys ? at(u) : _mm_setzero_si128(); },
                         out + i * kStepUnits);
    }
  }
}

/// Weights of keys [j, last) as 16 rows of pairs: where they lie, or copied with zeros behind the last.
struct Weights {
  const float* p;
  int64_t ld;
};
Weights weights_of(const float* p, int lanes, int width, int j, int last, float* copy) {
  p += j / 2 * lanes;
  if (last - j >= kDepth) return {p, lanes};
  for (int u = 0; u < kTile; ++u)
    for (int l = 0; l < width; l += V::N)
      V::store(copy + u * kLanes + l, u < (last - j + 1) / 2 ? V::load(p + u * lanes + l) : V::zero());
  return {copy, kLanes};
}

template <int R, int C>
void output_tiles(float* o, int lanes, const Rows* v, const Weights* p, int parts, int column) {
  settle(o), settle(v[0].base);
  for (int i = 0; i < parts; ++i) settle(p[i].p);
  load_sums<R, C>(o, lanes);
  for (int i = 0; i < parts; ++i) multiply<R, C>(v, i * 64, p[i].p + column, p[i].ld);
  store_sums<R, C>(o, lanes);
}

void accumulate_pairs(float* o, int lanes, int width, int64_t e, const float* v, int first, int last,
                      const float* p) {
  if (e % kTile != 0) return avx512bf16_kernels().accumulate_pairs(o, lanes, width, e, v, first, last, p);
  first = first / kDepth * kDepth;  // weights before the first are 0
  alignas(64) float copy[kTile * kLanes];
  Weights weights[kKeys / kDepth];
  int parts = 0;
  for (int j = first; j < last; j += kDepth) weights[parts++] = weights_of(p, lanes, width, j, last, copy);
  constexpr int64_t kStep = kStepUnits * 4;
  for (int64_t i = 0; i < e; i += 2 * kTile) {
    const char* at = reinterpret_cast<const char*>(v + i * kStepUnits + first / 2);
    const Rows rows[2] = {{at, kStep}, {at + kTile * kStep, kStep}};
    const bool both = i + kTile < e;
    float* to = o + i * lanes;
    int l = 0;
    for (; l + 2 * kTile <= width; l += 2 * kTile)
      both ? output_tiles<2, 2>(to + l, lanes, rows, weights, parts, l)
           : output_tiles<1, 2>(to + l, lanes, rows, weights, parts, l);
    if (l < width)
      both ? output_tiles<2, 1>(to + l, lanes, rows, weights, parts, l)
           : output_tiles<1, 1>(to + l, lanes, rows, weights, parts, l);
  }
}

Kernels make_table() {
  Kernels table = avx512bf16_kernels();
  table.name = "amx";
  table.begin_thread = begin_thread, table.end_thread = end_thread;
  table.scores_pairs = scores_pairs, table.accumulate_pairs = accumulate_pairs, table.interleave = interleave;
  return table;
}
}  // namespace

const Kernels& amx_kernels() {
  static const Kernels table = make_table();
  return table;
}
}  // namespace attnbench::cpu_attention
#endif
