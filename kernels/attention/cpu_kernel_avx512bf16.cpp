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
// clang-format on
struct PairOp {
  static V mul_add(V acc, V a, V b) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

void scores_pairs(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys, float* s) {
  scores_of<PairOp>(q, lanes, width, d / 2, k, keys, s);
}
void accumulate_pairs(float* o, int lanes, int width, int64_t e, const float* v, int keys, const float* p) {
  output_of<PairOp>(
      o, lanes, width, e, [v, e](int j) { return reinterpret_cast<const char*>(v + j * e); }, (keys + 1) / 2,
      p);
}
// Two bf16 head dims are one 32-bit unit already: a transpose of units.
void pack_columns_pairs(const void* const* rows, int n, int64_t d, int lanes, float* out) {
  pack_columns_typed<float>(rows, n, d / 2, lanes, out);
}
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
void softmax_pairs(SoftmaxStep& a) { a.t ? softmax_of<true, true>(a) : softmax_of<true, false>(a); }
}  // namespace

const Kernels& avx512bf16_kernels() {
  static constexpr Kernels table{"avx512bf16",   true,          pack_columns,   pack_columns_pairs,
                                 scores,         scores_pairs,  accumulate,     accumulate_pairs,
                                 interleave,     row_scores,    row_accumulate, score_terms,
                                 softmax,        softmax_pairs, mass,           rescale,
                                 unpack_columns, widen,         range_bits,     finite};
  return table;
}
}  // namespace attnbench::cpu_attention
#endif
