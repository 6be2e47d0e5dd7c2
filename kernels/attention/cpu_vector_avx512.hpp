// The AVX-512 vector type of the CPU attention kernels. Included inside an unnamed namespace by targets that
// are compiled for AVX-512 F, BW, VL and DQ; not a general SIMD library.
struct V {
  static constexpr int N = 16;
  static constexpr int kVectors = 4;  // vectors of lanes a register block may span
  // Keys (or head dims) a register block: sums fill 24 to 28 of 32 registers; 14 sums still cover the
  // latency of 4 at two multiply-adds a cycle.
  static constexpr int block_rows(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 14;
  }
  static constexpr int row_keys(int queries) { return queries <= 2 ? 8 : 4; }
  static constexpr int row_vectors(int queries) { return queries <= 2 ? 8 : queries <= 4 ? 4 : 2; }
  static constexpr int kRowRegisters = 32;

  __m512 v;
  static V zero() { return {_mm512_setzero_ps()}; }
  static V set1(float x) { return {_mm512_set1_ps(x)}; }
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V load(const bf16* p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
  }
  static V load(const f16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static void store(float* p, V x) { _mm512_storeu_ps(p, x.v); }
  static void store(bf16* p, V x) {
    // Round to nearest even; NaN becomes quiet instead of rounding into infinity.
    const __m512i u = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
  }
  static void store(f16* p, V x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  }
  // x - floor(x), 0 for infinities.
  static V fraction(V x) { return {_mm512_reduce_ps(x.v, 0x09)}; }
  // p * 2^floor(x), subnormals and saturation included.
  static V scale(V p, V x) { return {_mm512_scalef_ps(p.v, x.v)}; }
  // x where the bit is set, else y.
  static V keep(uint64_t bits, V x, V y) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(bits), y.v, x.v)};
  }
  static bool any_less(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) != 0; }
  static uint64_t in_range(int32_t x, const int32_t* low, const int32_t* high, int lanes) {
    const __m512i y = _mm512_set1_epi32(x);
    uint64_t bits = 0;
    for (int l = 0; l < lanes; l += N) {
      const __mmask16 above = _mm512_cmple_epi32_mask(_mm512_loadu_si512(low + l), y);
      bits |= static_cast<uint64_t>(_mm512_mask_cmplt_epi32_mask(above, y, _mm512_loadu_si512(high + l)))
              << l;
    }
    return bits;
  }
  // Sums over the lanes of four vectors.
  static void sum4(V a, V b, V c, V d, float* out) {
    const auto half = [](__m512 x) {
      return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    };
    const __m256 ab = _mm256_hadd_ps(half(a.v), half(b.v)), cd = _mm256_hadd_ps(half(c.v), half(d.v));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }
  // out[i] = sum over the lanes of x[i]: three rounds of adding halves that are interleaved on the way.
  static void sums(const V (&x)[16], float* out) {
    __m512 a[8], b[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i].v, x[2 * i + 1].v),
                           _mm512_unpackhi_ps(x[2 * i].v, x[2 * i + 1].v));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512d lo = _mm512_castps_pd(a[2 * i]), hi = _mm512_castps_pd(a[2 * i + 1]);
      b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi)));
    }
    // Every 128-bit part of b[i] holds part sums of x[4 i] .. x[4 i + 3].
    const auto fold = [](__m512 lo, __m512 hi) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd));
    };
    _mm512_storeu_ps(out, fold(fold(b[0], b[1]), fold(b[2], b[3])));
  }
  static float largest(V x) { return _mm512_reduce_max_ps(x.v); }
  static void transpose(V (&x)[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
    }
    __m512 u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 4) {
      const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]),
                    c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
      u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // u[4 r + c], 128-bit part p: rows 4 r .. 4 r + 3 of column 4 p + c.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                   b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
      const __m512 e = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd),
                   f = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
      x[c].v = _mm512_shuffle_f32x4(a, b, 0x88);
      x[8 + c].v = _mm512_shuffle_f32x4(a, b, 0xdd);
      x[4 + c].v = _mm512_shuffle_f32x4(e, f, 0x88);
      x[12 + c].v = _mm512_shuffle_f32x4(e, f, 0xdd);
    }
  }
#ifdef __AVX512BF16__
  // The 32 numbers of x, then y, as bf16 in order.
  static V neighbours(V x, V y) {
    return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y.v, x.v)))};
  }
  // bf16 of lo in the low half of each unit, of hi in the high half.
  static V pair(V lo, V hi) {
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(hi.v, lo.v));  // lo's 16, then hi's
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))};
  }
#endif
};
inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// x, rounded here: the compiler does not fuse what made it with what comes next.
inline V rounded(V x) {
  __asm__("" : "+v"(x.v));
  return x;
}
inline V fms(V a, V b, V c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
// b where a is NaN.
inline V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V abs(V a) { return {_mm512_abs_ps(a.v)}; }
inline V copysign(V size, V sign) {
  return {_mm512_or_ps(size.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
}
inline V select_less(V a, V b, V x, V y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
