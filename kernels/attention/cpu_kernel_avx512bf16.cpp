// CPU attention kernels for AVX-512 with BF16 dot products: f32 as in avx512, bf16 without widening.
#include "kernels/attention/cpu_kernel.hpp"

#if defined(__AVX512BF16__)
// GCC 12 takes the undefined operands inside its own AVX-512 header for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace attnbench::cpu_attention {
namespace {
// The vector type comes first.
// clang-format off
#include "kernels/attention/cpu_vector_avx512.hpp"
#include "kernels/attention/cpu_kernel-inl.hpp"
#include "kernels/attention/cpu_decode-inl.hpp"
// clang-format on
struct PairOp {
  static V mul_add(V acc, V a, V b) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

void scores_pairs(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys, float* s) {
  scores_of<PairOp>(q, lanes, width, d / 2, k, keys, s);
}
void accumulate_pairs(float* o, int lanes, int width, int64_t e, const float* v, int first, int last,
                      const float* p) {
  v += first / 2 * e, p += first / 2 * lanes;
  output_of<PairOp>(
      o, lanes, width, e, [v, e](int j) { return reinterpret_cast<const char*>(v + j * e); },
      (last - first + 1) / 2, p);
}
// Two bf16 head dims are one 32-bit unit already: a transpose of units.
void pack_columns_pairs(const void* const* rows, int n, int64_t d, int lanes, float* out) {
  pack_columns_typed<float>(rows, n, d / 2, lanes, out);
}
// A pair of keys a row: out[(j / 2) * e + i] = {v[j][i], v[j + 1][i]}.
void interleave(const void* const* v, int keys, int64_t e, float* out) {
  for (int j = 0; j < keys; j += 2, out += e) {
    const uint16_t* a = static_cast<const uint16_t*>(v[j]);
    const uint16_t* b = j + 1 < keys ? static_cast<const uint16_t*>(v[j + 1]) : nullptr;
    int64_t i = 0;
    for (; i + 16 <= e; i += 16) {
      const __m512i lo = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)));
      const __m512i hi =
          b ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)))
            : _mm512_setzero_si512();
      _mm512_storeu_si512(out + i, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
    }
    for (; i < e; ++i) {
      const uint32_t unit = a[i] | (b ? static_cast<uint32_t>(b[i]) << 16 : 0u);
      __builtin_memcpy(out + i, &unit, 4);
    }
  }
}
// Decoding: K as it lies in memory is pairs of head dims.
struct PairRows {
  using Element = bf16;
  static constexpr int kElements = 2 * V::N;
  static constexpr int kShared = 8;
  static V load(const bf16* p) { return V::load(reinterpret_cast<const float*>(p)); }
  static V query(const DecodeStep& a, int r, int64_t i) { return load(a.q_pairs + r * a.d + i); }
  static V mul_add(V acc, V x, V y) { return PairOp::mul_add(acc, x, y); }
};
// Two rows of V become pairs of keys by interleaving within 128-bit parts: `even` parts of 4 head dims and
// `odd` ones of every 8. The sums of R queries x NV vectors stand in that order.
template <int R, int NV>
inline void pair_output_block(const DecodeStep& a, int r, int64_t first) {
  V acc[R][NV];
  const auto at = [&](int c, int i) { return a.o + (r + c) * a.e + first + i * V::N; };
#pragma GCC unroll 8
  for (int c = 0; c < R; ++c)
#pragma GCC unroll 8
    for (int i = 0; i < NV; i += 2) {
      const __m512 x = _mm512_loadu_ps(at(c, i)), y = _mm512_loadu_ps(at(c, i + 1));
      acc[c][i].v = _mm512_shuffle_f32x4(x, y, 0x88), acc[c][i + 1].v = _mm512_shuffle_f32x4(x, y, 0xdd);
    }
  for (int j = 0; j < a.keys; j += 2) {
    const auto* x = static_cast<const bf16*>(a.v[j]) + first;
    const auto* y = static_cast<const bf16*>(a.v[j + 1]) + first;
    V v[NV];
#pragma GCC unroll 8
    for (int i = 0; i < NV; i += 2) {
      const __m512i p = _mm512_loadu_si512(x + i * V::N), q = _mm512_loadu_si512(y + i * V::N);
      __builtin_prefetch(reinterpret_cast<const char*>(x + i * V::N) + a.ahead_v);
      __builtin_prefetch(reinterpret_cast<const char*>(y + i * V::N) + a.ahead_v);
      v[i].v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(p, q));
      v[i + 1].v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(p, q));
    }
#pragma GCC unroll 8
    for (int c = 0; c < R; ++c) {
      const V w = V::set1(load_unit(a.s + (r + c) * a.ld, j / 2));
#pragma GCC unroll 8
      for (int i = 0; i < NV; ++i) acc[c][i] = PairOp::mul_add(acc[c][i], w, v[i]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < R; ++c)
#pragma GCC unroll 8
    for (int i = 0; i < NV; i += 2) {
      const __m512 x = acc[c][i].v, y = acc[c][i + 1].v;
      const __m512 low = _mm512_shuffle_f32x4(x, y, 0x44), high = _mm512_shuffle_f32x4(x, y, 0xee);
      _mm512_storeu_ps(at(c, i), _mm512_shuffle_f32x4(low, low, 0xd8));
      _mm512_storeu_ps(at(c, i + 1), _mm512_shuffle_f32x4(high, high, 0xd8));
    }
}
template <int R>
inline void pair_output(const DecodeStep& a, int r) {
  int64_t i = 0;
  const auto columns = [&](auto vectors) {
    constexpr int NV = decltype(vectors)::value;
    for (; i + NV * V::N <= a.e; i += NV * V::N) pair_output_block<R, NV>(a, r, i);
  };
  if constexpr (V::row_vectors(R) >= 8) columns(Count<8>{});
  if constexpr (V::row_vectors(R) >= 4) columns(Count<4>{});
  columns(Count<2>{});
  for (; i < a.e; ++i)
    for (int c = 0; c < R; ++c) {
      const auto* p = reinterpret_cast<const bf16*>(a.s + (r + c) * a.ld);
      float* o = a.o + (r + c) * a.e + i;
      for (int j = 0; j < a.keys; ++j) *o += scalar(p + j) * scalar(static_cast<const bf16*>(a.v[j]) + i);
    }
}
void decode_pairs(const DecodeStep& a) {
  decode_of<PairRows, true>(a, [&](auto rows, int r) { pair_output<decltype(rows)::value>(a, r); });
}

void softmax_pairs(SoftmaxStep& a) { a.t ? softmax_of<true, true>(a) : softmax_of<true, false>(a); }
}  // namespace

const Kernels& avx512bf16_kernels() {
  static constexpr Kernels table{"avx512bf16",       true,       nullptr,        nullptr,    pack_columns,
                                 pack_columns_pairs, scores,     scores_pairs,   accumulate, accumulate_pairs,
                                 interleave,         row_scores, row_accumulate, decode,     decode_pairs,
                                 score_terms,        softmax,    softmax_pairs,  mass,       rescale,
                                 unpack_columns,     widen,      range_bits,     finite,     gather_diagonals,
                                 spread_diagonals};
  return table;
}
}  // namespace attnbench::cpu_attention
#endif
