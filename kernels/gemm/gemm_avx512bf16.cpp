// bf16 products by vdpbf16ps: pairs of steps of k, twice the multiply-adds of f32 vectors. Entered only where
// has_avx512_bf16(). The instruction takes subnormal inputs and sums as 0, which no tolerance of bf16 sees.
#define ATTNBENCH_ISA isa_avx512bf16
#include "kernels/core/simd.hpp"
#include "kernels/gemm/gemm_rows.hpp"

namespace attnbench {
namespace isa_avx512bf16 {
#if defined(__AVX512BF16__)
namespace {

// As in gemm_body.hpp: 14 x 2 sums, whole K up to a panel of 2 x 4096 x 64 bytes, columns finished in the
// cache.
constexpr int kRows = 14;
constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kDepth = 4096;
constexpr int64_t kFinish = 8 * kPanel;

ATTNBENCH_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ATTNBENCH_INLINE int64_t pairs(int64_t k) { return (k + 1) / 2; }

/// Pairs of bf16 as lanes of 32 bits; an odd last element is paired with 0.
ATTNBENCH_INLINE F load_pairs(const bf16* x, int64_t elements) {
  if (elements >= kPanel) return (F)_mm512_loadu_si512(x);
  alignas(64) uint16_t raw[kPanel] = {};
  std::memcpy(raw, static_cast<const void*>(x), static_cast<size_t>(elements) * sizeof(bf16));
  return (F)_mm512_load_si512(raw);
}

/// Lines of `count` <= width rows, contiguous in k, become columns of a panel of pairs.
void pack_lines(const bf16* x, int64_t ld, int64_t count, int64_t k, int64_t width, float* out) {
  for (int64_t p = 0; p < k; p += kPanel)
    for (int64_t r0 = 0; r0 < width; r0 += kLanes) {
      F square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        square[r] = r0 + r < count ? load_pairs(x + (r0 + r) * ld + p, least(kPanel, k - p)) : F{};
      transpose_lanes(square);
      const int64_t steps = least(kLanes, pairs(k - p));
#pragma GCC unroll 16
      for (int s = 0; s < kLanes; ++s) {
        if (s >= steps) break;
        store(out + (p / 2 + s) * width + r0, square[s]);  // see pack_transposed on running over
      }
    }
}

/// Rows of `count` <= width elements per step of k: two steps are interleaved.
void pack_steps(const bf16* x, int64_t ld, int64_t count, int64_t k, int64_t width, float* out) {
  for (int64_t p = 0; p < k; p += 2)
    for (int64_t r = 0; r < width; r += kLanes) {
      const int64_t n = count - r < 0 ? 0 : least(kLanes, count - r);
      const auto line = [&](int64_t step) __attribute__((always_inline)) {
        const bf16* from = x + step * ld + r;
        return step < k && n > 0 ? as_uint(n == kLanes ? load(from) : load_part(from, n)) : U{};
      };
      store(out + p / 2 * width + r, as_float((line(p) >> 16) | line(p + 1)));
    }
}

template <int R>
void tile(int64_t steps, const float* a, const float* b, float* c, int64_t ldc, bool add) {
  __m512 sum[R][2];
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
    sum[r][0] = add ? _mm512_loadu_ps(c + r * ldc) : _mm512_setzero_ps();
    sum[r][1] = add ? _mm512_loadu_ps(c + r * ldc + kLanes) : _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < steps; ++p) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + p * kPanel);
    const __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + p * kPanel + kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const __m512bh av = (__m512bh)_mm512_set1_ps(a[p * kRows + r]);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], av, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], av, b1);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
    _mm512_storeu_ps(c + r * ldc, sum[r][0]);
    _mm512_storeu_ps(c + r * ldc + kLanes, sum[r][1]);
  }
}

void tile_rows(int64_t rows, int64_t steps, const float* a, const float* b, float* c, int64_t ldc, bool add) {
  switch (rows) {
#define ATTNBENCH_ROWS(n) \
  case n:                 \
    return tile<n>(steps, a, b, c, ldc, add);
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

}  // namespace

GemmTile gemm_tile() { return {kRows, kPanel}; }

void gemm_pack_b(const GemmProduct& g, int64_t first, int64_t last, float* out) {
  const bf16* b = static_cast<const bf16*>(g.b);
  // Panels stay k floats apart per column, as the f32 ones, so that callers need not know.
  for (int64_t j = first; j < last; j += kPanel, out += kPanel * g.k) {
    const int64_t columns = least(kPanel, last - j);
    if (g.tb)
      pack_lines(b + j * g.ldb, g.ldb, columns, g.k, kPanel, out);
    else
      pack_steps(b + j, g.ldb, columns, g.k, kPanel, out);
  }
}

int64_t gemm_workspace(int64_t rows, int64_t k) {
  return (rows + kRows - 1) / kRows * kRows * (pairs(k) + kFinish) + kLanes;
}

void gemm_block(const GemmProduct& g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
                float* work) {
  const bf16* a = static_cast<const bf16*>(g.a);
  const int64_t m = i1 - i0, tiles = (m + kRows - 1) / kRows, steps = pairs(g.k);
  float* packed = work;
  float* sums = work + tiles * kRows * steps;
  const auto row_of = [&](int64_t t) __attribute__((always_inline)) { return t * m / tiles; };
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t i = i0 + row_of(t), rows = row_of(t + 1) - row_of(t);
    if (g.ta)
      pack_steps(a + i, g.lda, rows, g.k, kRows, packed + t * kRows * steps);
    else
      pack_lines(a + i * g.lda, g.lda, rows, g.k, kRows, packed + t * kRows * steps);
  }
  for (int64_t j = j0; j < j1; j += kFinish) {
    const int64_t width = least(kFinish, j1 - j);
    if (g.accumulate)
      for (int64_t r = 0; r < m; ++r) {
        const bf16* from = static_cast<const bf16*>(g.c) + (i0 + r) * g.ldc + j;
        for (int64_t q = 0; q < width; q += kLanes) {
          const int64_t rest = least(kLanes, width - q);
          store(sums + r * kFinish + q, rest == kLanes ? load(from + q) : load_part(from + q, rest));
        }
      }
    for (int64_t p = 0; p == 0 || p < steps; p += kDepth)
      for (int64_t q = 0; q < width; q += kPanel)
        for (int64_t t = 0; t < tiles; ++t)
          tile_rows(row_of(t + 1) - row_of(t), least(kDepth, steps - p), packed + (t * steps + p) * kRows,
                    panels + (j - j0 + q) * g.k + p * kPanel, sums + row_of(t) * kFinish + q, kFinish,
                    g.accumulate || p > 0);
    for (int64_t r = 0; r < m; ++r)
      isa_avx512::gemm_finish_row(DType::bf16, sums + r * kFinish,
                                  g.bias ? static_cast<const bf16*>(g.bias) + j : nullptr, g.activation,
                                  static_cast<bf16*>(g.c) + (i0 + r) * g.ldc + j, width);
  }
}
#else
GemmTile gemm_tile() { return {1, 1}; }
void gemm_pack_b(const GemmProduct&, int64_t, int64_t, float*) {}
int64_t gemm_workspace(int64_t, int64_t) { return 0; }
void gemm_block(const GemmProduct&, int64_t, int64_t, int64_t, int64_t, const float*, float*) {}
#endif
}  // namespace isa_avx512bf16
}  // namespace attnbench
