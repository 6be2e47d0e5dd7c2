// CPU attention kernels for AVX2 with FMA and F16C.
#include "kernels/attention/cpu_kernel.hpp"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace attnbench::cpu_attention {
namespace {
struct V {
  static constexpr int N = 8;
  static constexpr int kVectors = 2;
  // 6 x 2: 12 sums, 2 of Q and a broadcast in 16 registers.
  static constexpr int block_rows(int vectors) { return vectors == 2 ? 6 : 10; }
  static constexpr int row_keys(int queries) { return queries <= 1 ? 8 : 4; }
  static constexpr int row_vectors(int queries) {
    return queries <= 1 ? 8 : queries <= 2 ? 4 : queries <= 4 ? 2 : 1;
  }
  static constexpr int kRowRegisters = 16;

  __m256 v;
  static V zero() { return {_mm256_setzero_ps()}; }
  static V set1(float x) { return {_mm256_set1_ps(x)}; }
  static V load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static V load(const bf16* p) {
    const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
  }
  static V load(const f16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static void store(float* p, V x) { _mm256_storeu_ps(p, x.v); }
  static void store(bf16* p, V x) {
    const __m256i u = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    r = _mm256_srli_epi32(r, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(f16* p, V x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  }
  // Exponents below -160 give 0 as well as -160 does; max keeps NaN, which stands second.
  static V clamp(V x) { return {_mm256_max_ps(_mm256_set1_ps(-160.0f), x.v)}; }
  static V fraction(V x) {
    const __m256 y = clamp(x).v;
    return {_mm256_sub_ps(y, _mm256_floor_ps(y))};
  }
  static V scale(V p, V x) {
    // In two steps, so that subnormal results need no special case.
    const __m256i n = _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_min_ps(_mm256_set1_ps(200.0f), clamp(x).v)));
    const __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return {_mm256_mul_ps(_mm256_mul_ps(p.v, power(half)), power(rest))};
  }
  static V keep(uint64_t bits, V x, V y) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i b = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 0xff)), lane);
    return {_mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(b, lane)))};
  }
  static bool any_less(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)) != 0; }
  static uint64_t in_range(int32_t x, const int32_t* low, const int32_t* high, int lanes) {
    const __m256i y = _mm256_set1_epi32(x);
    uint64_t bits = 0;
    for (int l = 0; l < lanes; l += N) {
      const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low + l));
      const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high + l));
      const __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(lo, y), _mm256_cmpgt_epi32(hi, y));
      bits |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(in)))) << l;
    }
    return bits;
  }
  static void sum4(V a, V b, V c, V d, float* out) {
    const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }
  static void sums(const V (&x)[8], float* out) {
    sum4(x[0], x[1], x[2], x[3], out);
    sum4(x[4], x[5], x[6], x[7], out + 4);
  }
  static float largest(V x) {
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
  }
  static void transpose(V (&x)[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
      t[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    __m256 u[8];
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      x[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      x[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }
};
inline V operator+(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
inline V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
/// x, rounded here: the compiler does not fuse what made it with what comes next.
inline V rounded(V x) {
  __asm__("" : "+x"(x.v));
  return x;
}
inline V fms(V a, V b, V c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
// b where a is NaN.
inline V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
inline V abs(V a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline V copysign(V size, V sign) {
  return {_mm256_or_ps(size.v, _mm256_and_ps(sign.v, _mm256_set1_ps(-0.0f)))};
}
inline V select_less(V a, V b, V x, V y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

// clang-format off
#include "kernels/attention/cpu_kernel-inl.hpp"
#include "kernels/attention/cpu_decode-inl.hpp"
// clang-format on
}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels table{"avx2",          false,      nullptr,        nullptr,    pack_columns,
                                 nullptr,         scores,     nullptr,        accumulate, nullptr,
                                 nullptr,         row_scores, row_accumulate, decode,     nullptr,
                                 score_terms,     softmax,    nullptr,        mass,       rescale,
                                 unpack_columns,  widen,      range_bits,     finite,     gather_diagonals,
                                 spread_diagonals};
  return table;
}
}  // namespace attnbench::cpu_attention
#endif
