// vdpbf16ps chains; entered only where has_avx512_bf16() says so.
#include <cstdint>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace attnbench::isa_avx512bf16 {

int64_t bf16_burst(int64_t rounds, double* sink) {
#if defined(__AVX512BF16__)
  constexpr int kChains = 16;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_set1_epi32(0x33803380);
  __m512 c[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) c[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      c[i] = _mm512_dpbf16_ps(c[i], a, b);
    }
  }
  __m512 s = c[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) s = _mm512_add_ps(s, c[i]);
  float lanes[16];
  _mm512_storeu_ps(lanes, s);
  for (float x : lanes) *sink += static_cast<double>(x);
  return rounds * kChains * 32 * 2;  // 32 products a vector, added in pairs to 16 sums
#else
  (void)rounds, (void)sink;
  return 0;
#endif
}

}  // namespace attnbench::isa_avx512bf16
