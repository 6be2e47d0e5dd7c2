// A sweep of local linear attention over the keys, as cuda.cu calls it. Not the rows' vector work.
//
// Operands are planes of bf16: a number is the sum of its terms, each the rounding of what the ones before it
// leave (1 term holds a bf16, 2 an f16, 3 an f32), and a product is the sum of the products of terms whose
// numbers add up to less than the longer operand has terms: 2^-16 of it is left out with 2 terms, 2^-24
// with 3.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/core/cuda_backend.cuh"

namespace attnbench::cuda_local_linear {

/// Planes [heads][terms][rows][width], rows of `width` = D rounded up, zero beyond D.
struct Planes {
  const __nv_bfloat16* data = nullptr;
  int terms = 0;
  int64_t rows = 0;
};

enum class Sweep : uint8_t {
  mean,     ///< y = sum_j exp(l_j - m) k_j, with m and sum_j exp(l_j - m) of the keys that a split has
  squares,  ///< y = sum_j w_j u_j, with `values` the planes of u
  product,  ///< y = sum_j w_j (k_j.p - shift) k_j
  output,   ///< y = sum_j w_j (k_j.p - shift) v_j
};

/// Rows of a block of the kernel, and of a block of partial sums.
inline constexpr int kRows = 64;

struct SweepArgs {
  Sweep what = Sweep::mean;
  int width = 0;        ///< of all planes: 64, 128, or for the kernel without tensor cores any multiple of 64
  int dtype_terms = 1;  ///< of q and k
  int work_terms = 2;   ///< of p and of weights
  Planes q, k, p, values;
  int64_t heads = 0, n = 0, m = 0;
  bool causal = false;
  /// Channels [channel_begin, channel_end) of p count; the others are taken as 0.
  int channel_begin = 0, channel_end = 0;
  float scale2 = 1.0f;           ///< log2(e) times the factor of q.k
  const float* top = nullptr;    ///< [heads, n]: the row's largest logit in units of log2
  const float* shift = nullptr;  ///< [heads, n]
  /// Of split s: y [split][heads][n][width], most and sum [split][heads][n]. A split has `tiles` tiles of
  /// `tile_keys` keys; row blocks have only as many splits as they see keys for.
  float *y = nullptr, *most = nullptr, *sum = nullptr;
  int64_t tile_keys = 64, tiles = 0, splits = 1;
};

__host__ __device__ inline int64_t keys_seen(const SweepArgs& a, int64_t row) {
  return a.causal ? row + 1 + a.m - a.n : a.m;
}
/// Splits of the block of rows that `row` is in.
__host__ __device__ inline int64_t splits_of(const SweepArgs& a, int64_t row) {
  const int64_t end = (row / kRows + 1) * kRows, seen = keys_seen(a, (end < a.n ? end : a.n) - 1);
  const int64_t span = a.tile_keys * a.tiles;
  return (seen + span - 1) / span;
}

/// Keys of a tile for these sizes; decides tile_keys.
int64_t keys_of_tile(int width, int dtype_terms);
void sweep(Context& ctx, const SweepArgs& args);

}  // namespace attnbench::cuda_local_linear
