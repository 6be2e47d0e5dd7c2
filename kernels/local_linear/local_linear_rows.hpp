// The vector bodies of local linear attention, as cpu.cpp sees them: one thread's work on a tile of queries,
// or on a chunk of keys.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// Keys multiplied at a time. At D = 64 a chunk of keys, its transpose, its weights for 64 rows and their
/// products take 32 KiB each: they stay in the second cache level, and what a step of a product reads of them
/// (32 columns) in the first.
inline constexpr int64_t kLocalKeys = 128;

/// Rows [0, rows) of one head and the keys [0, seen) that the last of them sees.
struct LocalLinearTile {
  DType dtype;
  const void* q;
  void* o;
  int64_t q_row, o_row;
  const float* k;             ///< [seen, d], rows of k_row
  const float* k_transposed;  ///< [chunk][d][kLocalKeys]
  const float* v;             ///< [seen, e], rows of v_row
  int64_t k_row, v_row;
  float *omega, *coefficient, *delta, *rho;
  int64_t rho_row;
  int64_t rows, seen, d, e, block, iterations;
  bool causal, absolute, jacobi;
  float scale, lambda, delta_eps, rtol, atol;
  float* work;  ///< local_linear_workspace() floats of this thread
};

/// For tiles of at most `rows` queries.
constexpr int64_t local_linear_workspace(int64_t rows, int64_t keys, int64_t d, int64_t e) {
  const int64_t chunks = (keys + kLocalKeys - 1) / kLocalKeys;
  return rows * ((chunks + 1) * kLocalKeys + 9 * d + e + 8) + kLocalKeys * d + 16;
}

/// to[r][c] = x[r][c] for `rows` rows of n.
ATTNBENCH_EACH_ISA(void local_linear_widen(DType, const void* x, int64_t x_row, int64_t rows, int64_t n,
                                           float* to))
/// transposed[c][r] = k[r][c] for a chunk of `rows` keys, rows of kLocalKeys.
ATTNBENCH_EACH_ISA(void local_linear_transpose(const float* k, int64_t k_row, int64_t rows, int64_t d,
                                               float* transposed))
ATTNBENCH_EACH_ISA(void local_linear_tile(const LocalLinearTile&))

}  // namespace attnbench
