// A small f32 product with strided A, for operands that sit in the caches: the building block of chunked
// kernels. Not a packed large GEMM (see gemm_body.hpp). Compiled once per instruction set; see isa.hpp.
#pragma once
#include "kernels/core/simd.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

// Accumulators are kTileRows x kTileVectors vectors. AVX-512 has 32 registers: 14 x 2 sums, 2 vectors of B,
// and A as a broadcast memory operand. AVX2 has 16: 6 x 2 sums, 2 of B, 1 broadcast of A. Either way a step
// of the inner loop issues twice as many multiply-adds as loads of A, so the multiply-add units are the
// limit.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;

/// C[kRows x n] = beta C + A[kRows x k] B[k x n] (beta 0 never reads C) for n <= kVecs * kLanes. Every
/// element of C is one chain of multiply-adds over k whatever the tile it falls in, so results do not depend
/// on how work is cut.
template <int kRows, int kVecs, bool kPart>
void tile(int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, float* c,
          int64_t ldc, float beta, int64_t part) {
  F sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      if (beta == 0.0f)
        sum[r][v] = F{};
      else if (kPart && v == kVecs - 1)
        sum[r][v] = load_part(c + r * ldc + v * kLanes, part) * beta;
      else
        sum[r][v] = load(c + r * ldc + v * kLanes) * beta;
    }
  for (int64_t p = 0; p < k; ++p) {
    F bv[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v)
      bv[v] = kPart && v == kVecs - 1 ? load_part(b + p * ldb + v * kLanes, part)
                                      : load(b + p * ldb + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F av = splat(a[r * a_row + p * a_col]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[r][v] += av * bv[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      if (kPart && v == kVecs - 1)
        store_part(c + r * ldc + v * kLanes, sum[r][v], part);
      else
        store(c + r * ldc + v * kLanes, sum[r][v]);
    }
}

template <int kVecs, bool kPart>
void tile_rows(int64_t rows, int64_t k, const float* a, int64_t a_row, int64_t a_col, const float* b,
               int64_t ldb, float* c, int64_t ldc, float beta, int64_t part) {
  switch (rows) {
#define ATTNBENCH_ROWS(n)                                                                                \
  case n:                                                                                                \
    if constexpr (n <= kTileRows) tile<n, kVecs, kPart>(k, a, a_row, a_col, b, ldb, c, ldc, beta, part); \
    break;
    ATTNBENCH_ROWS(1)
    ATTNBENCH_ROWS(2)
    ATTNBENCH_ROWS(3)
    ATTNBENCH_ROWS(4)
    ATTNBENCH_ROWS(5)
    ATTNBENCH_ROWS(6)
    ATTNBENCH_ROWS(7)
    ATTNBENCH_ROWS(8)
    ATTNBENCH_ROWS(9)
    ATTNBENCH_ROWS(10)
    ATTNBENCH_ROWS(11)
    ATTNBENCH_ROWS(12)
    ATTNBENCH_ROWS(13)
    ATTNBENCH_ROWS(14)
#undef ATTNBENCH_ROWS
  }
}

/// C[m x n] = beta C + A B with A[i, p] at a[i * a_row + p * a_col], row-major B and C. Rows are cut evenly:
/// a last tile of one row would run at a fraction of the speed.
[[maybe_unused]] void tile_gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_col,
                                const float* b, int64_t ldb, float* c, int64_t ldc, float beta) {
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  constexpr int64_t kWidth = kTileVectors * kLanes;
  for (int64_t j = 0; j < n; j += kWidth) {
    const int64_t width = n - j < kWidth ? n - j : kWidth;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = t * m / tiles, rows = (t + 1) * m / tiles - i;
      const float* at = a + i * a_row;
      float* to = c + i * ldc + j;
      if (width == kWidth)
        tile_rows<2, false>(rows, k, at, a_row, a_col, b + j, ldb, to, ldc, beta, 0);
      else if (width > kLanes)
        tile_rows<2, true>(rows, k, at, a_row, a_col, b + j, ldb, to, ldc, beta, width - kLanes);
      else if (width == kLanes)
        tile_rows<1, false>(rows, k, at, a_row, a_col, b + j, ldb, to, ldc, beta, 0);
      else
        tile_rows<1, true>(rows, k, at, a_row, a_col, b + j, ldb, to, ldc, beta, width);
    }
  }
}

}  // namespace
}  // namespace attnbench::ATTNBENCH_ISA
