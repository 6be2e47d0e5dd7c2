// What the selection kernels share: the order of scores as integers, visible columns, sums over a block in
// column order. Not visible outside the CUDA module.
#pragma once
#include <cub/block/block_scan.cuh>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/select.hpp"

namespace attnbench::select {

/// Threads that share a row, and the columns that each takes of a chunk of it.
inline constexpr int kThreads = 256;
inline constexpr int kItems = 4;
inline constexpr int kChunk = kThreads * kItems;

/// Grows with the value; -0 and +0 are one, NaN is above everything (cpu.cpp has the same).
__device__ inline uint32_t order_of(float x) {
  if (isnan(x)) return 0xffffffffu;
  const uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
  return u >> 31 ? ~u : u | 0x80000000u;
}
__device__ inline uint32_t order_of(int32_t x) { return static_cast<uint32_t>(x) ^ 0x80000000u; }

/// Visible columns of each row: [0, end).
struct DeviceVisible {
  bool causal = false;
  int64_t offset = 0, m = 0;
  Divisor rows;
  const int32_t* limit = nullptr;
  DeviceRows limits;

  DeviceVisible(const Tensor& x, const Visible& v)
      : causal(v.causal), offset(v.offset), m(x.dim(-1)), rows(x.rank() > 1 ? x.dim(-2) : 1) {
    if (!v.limit) return;
    limit = v.limit.data<int32_t>();
    limits = DeviceRows(v.limit, 0);
  }
  __device__ int64_t query(int64_t row) const { return row - rows.of(row) * rows.n; }
  __device__ int64_t end(int64_t row) const {
    int64_t end = m;
    if (causal) end = min(end, query(row) + offset + 1);
    if (limit) end = min(end, static_cast<int64_t>(limit[limits.offset(row)]));
    return max(end, int64_t{0});
  }
};

/// Where a set of best columns ends: it holds the keys below `key` and, of those equal to it, the first
/// `ties` in column order.
struct Cut {
  uint32_t key;
  int ties;

  /// Whether a lane's key is in the set, for 32 neighbouring columns at a time in ascending order; `lower`:
  /// mask of the lanes before, `met`: keys equal to the cut so far. All lanes of the warp call it.
  __device__ bool takes(uint32_t own, bool visible, unsigned lower, int& met) const {
    const bool tie = visible && own == key;
    const unsigned tied = __ballot_sync(0xffffffffu, tie);
    const bool chosen = visible && (own < key || (tie && met + __popc(tied & lower) < ties));
    met += __popc(tied);
    return chosen;
  }
};

/// The cut behind the `want` smallest of a warp's keys; lane l holds those of the columns l, l + 32, ..., of
/// which `seen` are visible; the others are 0xffffffff. Bit by bit from the highest; done as soon as all keys
/// that begin alike are wanted, which distinct keys reach long before the last bit.
template <int kPer>
__device__ Cut best_of(const uint32_t (&key)[kPer], int want, int seen) {
  if (want <= 0) return {0, 0};
  if (want >= seen) return {0xffffffffu, seen};
  uint32_t prefix = 0;
  int need = want;  // of the keys that begin with the prefix
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t begin = prefix >> bit;  // ends in 0: the keys behind the row, all ones, never match
    int own = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) own += key[i] >> bit == begin;
    const int matching = __reduce_add_sync(0xffffffffu, own);
    if (need == matching) return {prefix + (1u << bit), 0};
    if (need > matching) need -= matching, prefix |= 1u << bit;
  }
  return {prefix, need};
}

/// Sorts each of `rows` rows of m keys, stable: the sorted keys (optional) and the column each came from.
/// m < 2^31.
void sort_rows(Context& ctx, uint32_t* keys, int64_t rows, int64_t m, uint32_t* sorted, int32_t* columns);

}  // namespace attnbench::select
