// The packed product, compiled once per instruction set; see isa.hpp.
//
// B is packed once per product into panels of kPanel columns; a thread packs a block of A's rows, whole K,
// into panels of kTileRows rows and runs the tile over them. Packing widens bf16 and f16, so all types share
// the f32 tile. The inner loop runs over K without a cut up to kDepth: a step needs 56 bytes of A and 128 of
// B (AVX-512) for 28 multiply-adds, which the second cache level delivers, and C is touched once.
#include "kernels/gemm/gemm_rows.hpp"
#include "kernels/gemm/tile_body.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

template <Activation kActivation>
ATTNBENCH_INLINE F activate(F x) {
  if constexpr (kActivation == Activation::relu) return x < F{} ? F{} : x;  // NaN stays
  if constexpr (kActivation == Activation::gelu_erf) return gelu(x);
  if constexpr (kActivation == Activation::silu) return x * sigmoid(x);
  return x;
}

template <Activation kActivation, class T>
void finish_as(const float* x, const T* bias, T* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F v = load(x + i);
    if (bias) v += load(bias + i);
    store(y + i, activate<kActivation>(v));
  }
  if (const int64_t rest = n - i; rest > 0) {
    F v = load_part(x + i, rest);
    if (bias) v += load_part(bias + i, rest);
    store_part(y + i, activate<kActivation>(v), rest);
  }
}

template <class T>
void finish(const float* x, const void* bias, Activation activation, void* y, int64_t n) {
  const T* b = static_cast<const T*>(bias);
  T* to = static_cast<T*>(y);
  switch (activation) {
    case Activation::none:
      return finish_as<Activation::none>(x, b, to, n);
    case Activation::relu:
      return finish_as<Activation::relu>(x, b, to, n);
    case Activation::gelu_erf:
      return finish_as<Activation::gelu_erf>(x, b, to, n);
    case Activation::silu:
      return finish_as<Activation::silu>(x, b, to, n);
  }
}

constexpr int64_t kPanel = kTileVectors * kLanes;
// Beyond this depth a panel of B (4096 x 128 bytes) would not stay in the second cache level between row
// tiles.
constexpr int64_t kDepth = 4096;
// Columns whose sums are finished together, while they are in the cache.
constexpr int64_t kFinish = 8 * kPanel;

ATTNBENCH_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// out[p * width + r] = scale * x[r * ld + p]: `rows` <= width rows become columns of a panel, padded with
/// zeros. Squares of kLanes x kLanes are transposed in registers. Where a panel is narrower than a vector, a
/// store runs over into the next rows, which are written later, and over the panel's end, where the caller
/// leaves kLanes floats.
template <class T>
void pack_transposed(const T* x, int64_t ld, int64_t rows, int64_t k, int64_t width, float scale,
                     float* out) {
  for (int64_t p0 = 0; p0 < k; p0 += kLanes) {
    const int64_t steps = least(kLanes, k - p0);
    for (int64_t r0 = 0; r0 < width; r0 += kLanes) {
      F square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r0 + r >= rows)
          square[r] = F{};
        else if (steps == kLanes)
          square[r] = load(x + (r0 + r) * ld + p0) * scale;
        else
          square[r] = load_part(x + (r0 + r) * ld + p0, steps) * scale;
      }
      transpose_lanes(square);
      const int64_t columns = least(kLanes, width - r0);
#pragma GCC unroll 16
      for (int p = 0; p < kLanes; ++p) {
        if (p >= steps) break;
        float* to = out + (p0 + p) * width + r0;
        if (columns == kLanes || r0 == 0)
          store(to, square[p]);
        else
          store_part(to, square[p], columns);
      }
    }
  }
}

/// out[p * width + r] = scale * x[p * ld + r]: rows of `count` <= width elements, padded with zeros.
template <class T>
void pack_straight(const T* x, int64_t ld, int64_t count, int64_t k, int64_t width, float scale, float* out) {
  for (int64_t p = 0; p < k; ++p) {
    const T* from = x + p * ld;
    float* to = out + p * width;
    int64_t r = 0;
    for (; r + kLanes <= count; r += kLanes) store(to + r, load(from + r) * scale);
    if (const int64_t rest = count - r; rest > 0) {
      store_part(to + r, load_part(from + r, rest) * scale, rest);
      r += rest;
    }
    for (; r < width; ++r) to[r] = 0.0f;
  }
}

template <class T>
void pack_b(const GemmProduct& g, int64_t first, int64_t last, float* out) {
  const T* b = static_cast<const T*>(g.b);
  for (int64_t j = first; j < last; j += kPanel, out += kPanel * g.k) {
    const int64_t columns = least(kPanel, last - j);
    if (g.tb)
      pack_transposed(b + j * g.ldb, g.ldb, columns, g.k, kPanel, 1.0f, out);
    else
      pack_straight(b + j, g.ldb, columns, g.k, kPanel, 1.0f, out);
  }
}

template <class T>
void block(const GemmProduct& g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
           float* work) {
  const T* a = static_cast<const T*>(g.a);
  const int64_t m = i1 - i0, tiles = (m + kTileRows - 1) / kTileRows;
  float* packed = work;
  float* sums = work + tiles * kTileRows * g.k;
  const auto row_of = [&](int64_t t) { return t * m / tiles; };  // rows cut evenly, see tile_gemm
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t i = i0 + row_of(t), rows = row_of(t + 1) - row_of(t);
    float* to = packed + t * kTileRows * g.k;
    if (g.ta)
      pack_straight(a + i, g.lda, rows, g.k, kTileRows, g.alpha, to);
    else
      pack_transposed(a + i * g.lda, g.lda, rows, g.k, kTileRows, g.alpha, to);
  }
  const bool in_place = sizeof(T) == 4;
  for (int64_t j = j0; j < j1; j += kFinish) {
    const int64_t width = least(kFinish, j1 - j);
    float* c = in_place ? static_cast<float*>(g.c) + i0 * g.ldc + j : sums;
    const int64_t ldc = in_place ? g.ldc : kFinish;
    if (!in_place && g.accumulate)
      for (int64_t r = 0; r < m; ++r) {
        const T* from = static_cast<const T*>(g.c) + (i0 + r) * g.ldc + j;
        for (int64_t q = 0; q < width; q += kLanes) {
          const int64_t rest = least(kLanes, width - q);
          store(c + r * ldc + q, rest == kLanes ? load(from + q) : load_part(from + q, rest));
        }
      }
    for (int64_t p = 0; p == 0 || p < g.k; p += kDepth) {
      const int64_t depth = least(kDepth, g.k - p);
      const float beta = g.accumulate || p > 0 ? 1.0f : 0.0f;
      for (int64_t q = 0; q < width; q += kPanel) {
        const float* b = panels + (j - j0 + q) * g.k + p * kPanel;
        const int64_t columns = least(kPanel, width - q);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t rows = row_of(t + 1) - row_of(t);
          const float* at = packed + t * kTileRows * g.k + p * kTileRows;
          float* to = c + row_of(t) * ldc + q;
          if (columns == kPanel || !in_place) {  // `sums` has room for a whole last panel
            tile_rows<kTileVectors, false>(rows, depth, at, 1, kTileRows, b, kPanel, to, ldc, beta, 0);
            continue;
          }
          float edge[kTileRows * kPanel];
          if (beta != 0.0f)
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t x = 0; x < kPanel; ++x)
                edge[r * kPanel + x] = x < columns ? to[r * ldc + x] : 0.0f;
          tile_rows<kTileVectors, false>(rows, depth, at, 1, kTileRows, b, kPanel, edge, kPanel, beta, 0);
          for (int64_t r = 0; r < rows; ++r)
            std::memcpy(to + r * ldc, edge + r * kPanel, static_cast<size_t>(columns) * sizeof(float));
        }
      }
    }
    if (in_place && !g.bias && g.activation == Activation::none) continue;
    for (int64_t r = 0; r < m; ++r)
      finish<T>(c + r * ldc, g.bias ? static_cast<const T*>(g.bias) + j : nullptr, g.activation,
                static_cast<T*>(g.c) + (i0 + r) * g.ldc + j, width);
  }
}

/// Dot products of kRows rows of A with kColumns rows of B. Lanes are joined in sum_lanes()'s order.
template <int kRows, int kColumns, class T>
void dots(const GemmProduct& g, const T* a, const T* b, float* c, int64_t ldc) {
  F sum[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) sum[r][j] = F{};
  int64_t p = 0;
  for (; p + kLanes <= g.k; p += kLanes) {
    F bv[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) bv[j] = load(b + j * g.ldb + p);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F av = load(a + r * g.lda + p);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sum[r][j] += av * bv[j];
    }
  }
  if (const int64_t rest = g.k - p; rest > 0)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      const F bv = load_part(b + j * g.ldb + p, rest);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][j] += load_part(a + r * g.lda + p, rest) * bv;
    }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) c[r * ldc + j] = sum_lanes(sum[r][j]);
}

template <int kColumns, class T>
void dot_rows(const GemmProduct& g, int64_t rows, const T* a, const T* b, float* c, int64_t ldc) {
  switch (rows) {
    case 1:
      return dots<1, kColumns>(g, a, b, c, ldc);
    case 2:
      return dots<2, kColumns>(g, a, b, c, ldc);
    case 3:
      return dots<3, kColumns>(g, a, b, c, ldc);
    default:
      return dots<4, kColumns>(g, a, b, c, ldc);
  }
}

template <class T>
void dot(const GemmProduct& g, int64_t j0, int64_t j1) {
  // A few columns at a time, finished while they are in the first cache level.
  constexpr int64_t kColumns = 64;
  float sums[kDotRows * kColumns];
  const T* a = static_cast<const T*>(g.a);
  const T* b = static_cast<const T*>(g.b);
  for (int64_t j = j0; j < j1; j += kColumns) {
    const int64_t width = least(kColumns, j1 - j);
    for (int64_t i = 0; i < g.m; i += 4) {
      const int64_t rows = least(4, g.m - i);
      int64_t q = 0;
      for (; q + 4 <= width; q += 4)
        dot_rows<4>(g, rows, a + i * g.lda, b + (j + q) * g.ldb, sums + i * kColumns + q, kColumns);
      for (; q < width; ++q)
        dot_rows<1>(g, rows, a + i * g.lda, b + (j + q) * g.ldb, sums + i * kColumns + q, kColumns);
    }
    for (int64_t i = 0; i < g.m; ++i) {
      float* s = sums + i * kColumns;
      T* to = static_cast<T*>(g.c) + i * g.ldc + j;
      if (g.alpha != 1.0f)
        for (int64_t q = 0; q < width; ++q) s[q] *= g.alpha;
      if (g.accumulate)
        for (int64_t q = 0; q < width; q += kLanes) {
          const int64_t n = least(kLanes, width - q);
          store_part(s + q, load_part(s + q, n) + load_part(to + q, n), n);
        }
      finish<T>(s, g.bias ? static_cast<const T*>(g.bias) + j : nullptr, g.activation, to, width);
    }
  }
}

}  // namespace

GemmTile gemm_tile() { return {kTileRows, kPanel}; }

void gemm_pack_b(const GemmProduct& g, int64_t first, int64_t last, float* out) {
  if (g.dtype == DType::f32) return pack_b<float>(g, first, last, out);
  if (g.dtype == DType::bf16) return pack_b<bf16>(g, first, last, out);
  return pack_b<f16>(g, first, last, out);
}

int64_t gemm_workspace(int64_t rows, int64_t k) {
  const int64_t padded = (rows + kTileRows - 1) / kTileRows * kTileRows;
  return padded * (k + kFinish) + kLanes;
}

void gemm_block(const GemmProduct& g, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const float* panels,
                float* work) {
  if (g.dtype == DType::f32) return block<float>(g, i0, i1, j0, j1, panels, work);
  if (g.dtype == DType::bf16) return block<bf16>(g, i0, i1, j0, j1, panels, work);
  return block<f16>(g, i0, i1, j0, j1, panels, work);
}

void gemm_dot(const GemmProduct& g, int64_t j0, int64_t j1) {
  if (g.dtype == DType::f32) return dot<float>(g, j0, j1);
  if (g.dtype == DType::bf16) return dot<bf16>(g, j0, j1);
  return dot<f16>(g, j0, j1);
}

void gemm_finish_row(DType t, const float* x, const void* bias, Activation activation, void* y, int64_t n) {
  if (t == DType::f32) return finish<float>(x, bias, activation, y, n);
  if (t == DType::bf16) return finish<bf16>(x, bias, activation, y, n);
  return finish<f16>(x, bias, activation, y, n);
}

}  // namespace attnbench::ATTNBENCH_ISA
