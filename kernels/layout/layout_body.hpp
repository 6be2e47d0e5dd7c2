// Transposes of planes by squares in registers, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/layout/layout_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

// Elements only move; 16-bit ones travel in 32-bit lanes.
ATTNBENCH_INLINE F take(const uint32_t* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
ATTNBENCH_INLINE void give(uint32_t* p, F v) { std::memcpy(p, &v, sizeof v); }
ATTNBENCH_INLINE F take(const uint16_t* p) {
  return as_float(as_uint(load(reinterpret_cast<const bf16*>(p))) >> 16);
}
ATTNBENCH_INLINE void give(uint16_t* p, F v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
  const U16 h = __builtin_convertvector(as_uint(v), U16);
  std::memcpy(p, &h, sizeof h);
#endif
}

template <class T>
void plane(const T* x, int64_t x_row, T* y, int64_t y_row, int64_t rows, int64_t columns) {
  const int64_t whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (int64_t j = 0; j < whole_columns; j += kLanes)
    for (int64_t i = 0; i < whole_rows; i += kLanes) {
      F square[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) square[l] = take(x + (j + l) * x_row + i);
      transpose_lanes(square);
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) give(y + (i + l) * y_row + j, square[l]);
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      y[i * y_row + j] = x[j * x_row + i];
}

}  // namespace

void transpose_plane(int size, const void* x, int64_t x_row, void* y, int64_t y_row, int64_t rows,
                     int64_t columns) {
  if (size == 4)
    return plane(static_cast<const uint32_t*>(x), x_row, static_cast<uint32_t*>(y), y_row, rows, columns);
  return plane(static_cast<const uint16_t*>(x), x_row, static_cast<uint16_t*>(y), y_row, rows, columns);
}

}  // namespace attnbench::ATTNBENCH_ISA
