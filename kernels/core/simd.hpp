// One vector of floats as wide as the instruction set the file is compiled for, with the storage types loaded
// and stored through it and the special functions of pointwise work. For bodies only: see isa.hpp.
//
// Everything is always inlined and lives in the body's namespace, so nothing compiled for a wider set leaks.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/core/dtype.hpp"

#if !defined(ATTNBENCH_ISA)
#error "define ATTNBENCH_ISA before including a body; see kernels/core/isa.hpp"
#endif
#define ATTNBENCH_INLINE __attribute__((always_inline)) inline

namespace attnbench::ATTNBENCH_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef double D __attribute__((vector_size(kLanes * 8)));

ATTNBENCH_INLINE F splat(float x) { return x - F{}; }
ATTNBENCH_INLINE U as_uint(F x) { return (U)x; }
ATTNBENCH_INLINE F as_float(U x) { return (F)x; }

// ---- storage ---------------------------------------------------------------------------------------------

ATTNBENCH_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
ATTNBENCH_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }

// GCC 12 splits conversions between 16- and 32-bit lanes in halves, so the instructions are named here.
ATTNBENCH_INLINE F load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float((U)_mm512_maskz_cvtepu16_epi32(0xffff, h) << 16);
#elif defined(__AVX2__)
  return as_float((U)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  U16 h;
  std::memcpy(&h, p, sizeof h);
  return as_float(__builtin_convertvector(h, U) << 16);
#endif
}
ATTNBENCH_INLINE void store(bf16* p, F v) {
  const U u = as_uint(v);
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U quiet = v != v ? (u >> 16) | 0x40u : rounded;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)quiet));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)quiet, (__m256i)quiet);  // within halves
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
  const U16 h = __builtin_convertvector(quiet, U16);
  std::memcpy(static_cast<void*>(p), &h, sizeof h);
#endif
}

ATTNBENCH_INLINE F load(const f16* p) {
#if defined(__AVX512F__)
  // The masked forms (of all lanes) avoid GCC's false reports of uninitialised values (its bug 105593).
  return (F)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  F v;
  for (int l = 0; l < kLanes; ++l) v[l] = static_cast<float>(p[l]);
  return v;
#endif
}
ATTNBENCH_INLINE void store(f16* p, F v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int l = 0; l < kLanes; ++l) p[l] = f16(v[l]);
#endif
}

/// The first n <= kLanes elements; the other lanes are 0.
template <class T>
ATTNBENCH_INLINE F load_part(const T* p, int64_t n) {
  alignas(64) unsigned char raw[kLanes * sizeof(T)] = {};
  for (int64_t l = 0; l < kLanes; ++l)
    if (l < n) std::memcpy(raw + l * static_cast<int64_t>(sizeof(T)), p + l, sizeof(T));
  return load(reinterpret_cast<const T*>(raw));
}
template <class T>
ATTNBENCH_INLINE void store_part(T* p, F v, int64_t n) {
  alignas(64) unsigned char raw[kLanes * sizeof(T)];
  store(reinterpret_cast<T*>(raw), v);
  for (int64_t l = 0; l < kLanes; ++l)
    if (l < n) std::memcpy(static_cast<void*>(p + l), raw + l * static_cast<int64_t>(sizeof(T)), sizeof(T));
}
#if defined(__AVX512F__)
ATTNBENCH_INLINE F load_part(const float* p, int64_t n) {
  return (F)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
ATTNBENCH_INLINE void store_part(float* p, F v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
}
#endif

// ---- transposes ------------------------------------------------------------------------------------------

/// Exchanges the blocks of S lanes between rows S apart: one of the log2(kLanes) steps of a transpose.
template <int S>
ATTNBENCH_INLINE void exchange(F* row) {
  I low, high;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) {
    low[l] = (l & S) == 0 ? l : kLanes + l - S;
    high[l] = (l & S) == 0 ? l + S : kLanes + l;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & S) != 0) continue;
    const F a = row[i], b = row[i + S];
    row[i] = __builtin_shuffle(a, b, low);
    row[i + S] = __builtin_shuffle(a, b, high);
  }
}
/// row[i][j] <-> row[j][i] for kLanes vectors.
ATTNBENCH_INLINE void transpose_lanes(F* row) {
  if constexpr (kLanes > 8) exchange<8 % kLanes>(row);
  if constexpr (kLanes > 4) exchange<4 % kLanes>(row);
  exchange<2>(row);
  exchange<1>(row);
}

// ---- reductions over lanes: fixed trees ------------------------------------------------------------------

ATTNBENCH_INLINE float sum_lanes(F v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof v);
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int l = 0; l < w; ++l) x[l] += x[l + w];
  return x[0];
}
/// The largest lane; NaN when one is.
ATTNBENCH_INLINE float max_lanes(F v) {
  float m = v[0];
  for (int l = 1; l < kLanes; ++l) m = (m > v[l] || m != m) ? m : v[l];
  return m;
}

/// The maximum of a stream of vectors, NaN if one was seen. NaN is collected beside the chain of maxima,
/// which is then one instruction long; callers keep several in flight.
struct RunningMax {
  F top;
  I nan{};
  ATTNBENCH_INLINE RunningMax() : top(splat(-__builtin_inff())) {}
  ATTNBENCH_INLINE void add(F v) {
    top = top > v ? top : v;
    nan |= v != v;
  }
  ATTNBENCH_INLINE float result() const { return max_lanes(nan != 0 ? splat(__builtin_nanf("")) : top); }
};
/// Of n elements.
template <class T>
ATTNBENCH_INLINE float max_of_row(const T* x, int64_t n) {
  RunningMax m[4];
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) m[u].add(load(x + i + u * kLanes));
  for (; i + kLanes <= n; i += kLanes) m[0].add(load(x + i));
  if (const int64_t rest = n - i; rest > 0) {
    F v = load_part(x + i, rest);
    for (int l = 0; l < kLanes; ++l)
      if (l >= rest) v[l] = -__builtin_inff();
    m[1].add(v);
  }
  for (int u = 1; u < 4; ++u) {
    m[0].top = m[0].top > m[u].top ? m[0].top : m[u].top;
    m[0].nan |= m[u].nan;
  }
  return m[0].result();
}

// ---- special functions -----------------------------------------------------------------------------------

/// Rounds to the nearest integer, for |x| < 2^22.
ATTNBENCH_INLINE F round_near(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (F)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F magic = splat(12582912.0f);  // 1.5 * 2^23 pushes the fraction out of the mantissa
  F y = x + magic;
  asm("" : "+m"(y));  // the compiler may not fold the pair away
  return y - magic;
#endif
}

/// Whether all lanes of a comparison hold.
ATTNBENCH_INLINE bool all_true(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) == 0xff;
#else
  int32_t all = -1;
  for (int l = 0; l < kLanes; ++l) all &= mask[l];
  return all != 0;
#endif
}

/// e^x within 2 ulp; overflows to infinity, underflows gradually, NaN stays.
ATTNBENCH_INLINE F exp(F x) {
  // Beyond these bounds the result is infinity or rounds to 0, and the exponent arithmetic stays in range.
  const F c = x < splat(-104.0f) ? splat(-104.0f) : (x > splat(89.0f) ? splat(89.0f) : x);
  const F n = round_near(c * splat(1.44269504f));
  // ln 2 in two parts, the first with 15 trailing zero bits, so n * hi is exact.
  const F r = (c - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  // Degree 6 minimax on [-ln2/2, ln2/2]: the relative error of the polynomial is below 2^-25.
  F p = splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n reaches -150 and 128, outside a float's exponent.
  const I e = __builtin_convertvector(n, I);
  const I half = e >> 1;
  const F scale_a = (F)((half + 127) << 23), scale_b = (F)((e - half + 127) << 23);
  return x != x ? x : p * scale_a * scale_b;
}

ATTNBENCH_INLINE F sqrt(F x) {
#if defined(__AVX512F__)
  return (F)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)x);
#else
  for (int l = 0; l < kLanes; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}

/// ln x within 2 ulp, subnormals included: x = 2^n m with m in [sqrt(1/2), sqrt(2)), and the classic
/// single-precision polynomial of ln(1 + (m - 1)).
ATTNBENCH_INLINE F log(F x) {
  const F scaled = x < splat(1.17549435e-38f) ? x * 8388608.0f : x;  // 2^23
  const F shift = x < splat(1.17549435e-38f) ? splat(-23.0f) : F{};
  const U u = as_uint(scaled);
  F n = __builtin_convertvector((I)(u >> 23) - 126, F) + shift;
  F m = as_float((u & 0x007fffffu) | 0x3f000000u);  // [1/2, 1)
  const I low = m < splat(0.707106781f);
  n = low ? n - 1.0f : n;
  const F f = (low ? m + m : m) - 1.0f;
  const F s = f * f;
  F p = splat(7.0376836292e-2f);
  p = p * f - splat(1.1514610310e-1f);
  p = p * f + splat(1.1676998740e-1f);
  p = p * f - splat(1.2420140846e-1f);
  p = p * f + splat(1.4249322787e-1f);
  p = p * f - splat(1.6668057665e-1f);
  p = p * f + splat(2.0000714765e-1f);
  p = p * f - splat(2.4999993993e-1f);
  p = p * f + splat(3.3333331174e-1f);
  // ln 2 in two parts, as in exp.
  F y = p * f * s + n * splat(-2.12194440e-4f) - 0.5f * s;
  y = (f + y) + n * splat(0.693359375f);
  const F inf = splat(__builtin_inff());
  y = x == inf ? inf : y;
  y = x == F{} ? -inf : y;
  return x < F{} || x != x ? splat(__builtin_nanf("")) : y;
}
/// ln(1 + u) for u >= 0: the rounding of 1 + u is divided out.
ATTNBENCH_INLINE F log1p(F u) {
  const F w = 1.0f + u, d = w - 1.0f;
  return d == F{} ? u : log(w) * (u / d);
}
/// e^x - 1; near 0 the rounding of e^x is divided out (Kahan), and where that is all of it the answer is x.
ATTNBENCH_INLINE F expm1(F x) {
  const F e = exp(x), d = e - 1.0f;
  const F near = d * (x / log(e));
  const F y = x < splat(-1.0f) || x > splat(1.0f) ? d : near;
  return d == F{} ? x : y;
}
/// (e^2|x| - 1) / (e^2|x| + 1) with x's sign; 1 from 10 on, where it rounds to 1.
ATTNBENCH_INLINE F tanh(F x) {
  const F a = as_float(as_uint(x) & 0x7fffffffu);
  const F c = a > splat(10.0f) ? splat(10.0f) : a;
  const F e = expm1(c + c);
  return as_float((as_uint(x) & 0x80000000u) | as_uint(e / (e + 2.0f)));
}

ATTNBENCH_INLINE F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }

/// erf within 1e-7 absolute: an odd polynomial below 1, 1 - t-polynomial * exp(-x^2) above.
ATTNBENCH_INLINE F erf(F x) {
  const F a = (F)((U)x & 0x7fffffffu);
  const F s = x * x;
  // Taylor series of erf(x) / x in x^2: eleven terms leave 1.0^22 / (23 * 11!) * 2/sqrt(pi) = 1.2e-9.
  F q = splat(1.4807192e-08f);
  q = q * s - splat(1.6365844e-07f);
  q = q * s + splat(1.6462114e-06f);
  q = q * s - splat(1.4925650e-05f);
  q = q * s + splat(1.2055332e-04f);
  q = q * s - splat(8.5483270e-04f);
  q = q * s + splat(5.2239776e-03f);
  q = q * s - splat(2.6866171e-02f);
  q = q * s + splat(1.1283792e-01f);
  q = q * s - splat(3.7612639e-01f);
  q = q * s + splat(1.1283792e+00f);
  // Abramowitz and Stegun 7.1.26 has 1.5e-7 of error for all x >= 0, a fifth of it from x = 1 on.
  const F t = 1.0f / (1.0f + splat(0.3275911f) * a);
  F w = splat(1.061405429f);
  w = w * t - splat(1.453152027f);
  w = w * t + splat(1.421413741f);
  w = w * t - splat(0.284496736f);
  w = w * t + splat(0.254829592f);
  const F tail = 1.0f - w * t * exp(-s);
  const F signed_tail = (F)(((U)x & 0x80000000u) | (U)tail);
  return a < splat(1.0f) ? q * x : (x != x ? x : signed_tail);
}

ATTNBENCH_INLINE F gelu(F x) { return 0.5f * x * (1.0f + erf(x * splat(0.70710678f))); }

/// sin (quarter = 0) or cos (quarter = 1). The argument is reduced in double, which keeps it exact to 2^-30
/// up to 2^20; larger arguments, infinities and NaN are passed to the C library's functions by the caller.
constexpr float kTrigLimit = 1048576.0f;
ATTNBENCH_INLINE F sin_quarter(F x, int quarter) {
  const D d = __builtin_convertvector(x, D);
  const F n = round_near(x * splat(0.63661977f));
  const D nd = __builtin_convertvector(n, D);
  // pi/2 in two parts; n * first is exact (33 + 20 bits).
  const F r = __builtin_convertvector((d - nd * 1.57079632673412561417) - nd * 6.07710050650619224932e-11, F);
  const I q = __builtin_convertvector(n, I) + quarter;
  const F s = r * r;
  // The classic single-precision minimax polynomials on [-pi/4, pi/4].
  F sine = splat(-1.9515295891e-4f);
  sine = sine * s + splat(8.3321608736e-3f);
  sine = sine * s - splat(1.6666654611e-1f);
  sine = sine * s * r + r;
  F cosine = splat(2.443315711809948e-5f);
  cosine = cosine * s - splat(1.388731625493765e-3f);
  cosine = cosine * s + splat(4.166664568298827e-2f);
  cosine = cosine * s * s - 0.5f * s + 1.0f;
  const F y = (q & 1) != 0 ? cosine : sine;
  return (F)((U)y ^ ((U)(q & 2) << 30));
}

}  // namespace attnbench::ATTNBENCH_ISA
