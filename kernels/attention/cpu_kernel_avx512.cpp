// CPU attention kernels for AVX-512 (F, BW, VL, DQ).
#include "kernels/attention/cpu_kernel.hpp"

#if defined(__AVX512F__)
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
}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels table{"avx512",        false,      nullptr,        nullptr,    pack_columns,
                                 nullptr,         scores,     nullptr,        accumulate, nullptr,
                                 nullptr,         row_scores, row_accumulate, decode,     nullptr,
                                 score_terms,     softmax,    nullptr,        mass,       rescale,
                                 unpack_columns,  widen,      range_bits,     finite,     gather_diagonals,
                                 spread_diagonals};
  return table;
}
}  // namespace attnbench::cpu_attention
#endif
