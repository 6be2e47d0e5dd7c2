// Rows that one group of threads reads several times: kept in registers as far as they fit, re-read beyond.
// For row statistics (norm, softmax); a row's threads are a quarter of a warp, a warp or a whole block.
#pragma once
#include "kernels/core/cuda_kernel.cuh"

namespace attnbench {

/// f32 values of a row that each thread keeps: half of the 64 registers that leave two blocks of 512 threads
/// to a multiprocessor.
inline constexpr int kRowValues = 32;

/// Row of n elements read by kGroup threads in packs of N (which divides n), kValues of each thread's kept.
/// pass(f) calls f(values, column) for every pack of this thread, f may change the values that are kept.
template <class T, int N, int kGroup, int kValues = kRowValues>
class CachedRow {
 public:
  static constexpr int kTiles = kValues / N;

  __device__ CachedRow(const T* x, int64_t n) : x_(x), n_(n) {
    column_ = static_cast<int64_t>(threadIdx.x % kGroup) * N;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      if (column_ + t * kGroup * N < n_) load_wide(x_ + column_ + t * kGroup * N, cache_[t]);
  }
  template <class F>
  __device__ void pass(const F& f) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      if (column_ + t * kGroup * N < n_) f(cache_[t], column_ + t * kGroup * N);
#pragma unroll 1
    for (int64_t c = column_ + kTiles * kGroup * N; c < n_; c += kGroup * N) {
      float v[N];
      load_wide(x_ + c, v);
      f(v, c);
    }
  }

 private:
  const T* x_;
  int64_t n_, column_;
  float cache_[kTiles][N];
};

template <int kGroup, class Op>
__device__ float group_reduce(float x, Op op) {
  if constexpr (kGroup <= 32)
    return warp_reduce<kGroup>(x, op);
  else
    return block_reduce<kGroup>(x, op);
}

/// Threads of a block in which groups of kGroup threads work.
template <int kGroup>
inline constexpr int kRowThreads = kGroup < 128 ? 128 : kGroup;
/// Blocks that a multiprocessor shall hold, so that some load while others reduce: 768 threads of 80
/// registers, or two blocks of 512.
template <int kGroup>
inline constexpr int kRowBlocks = kGroup == 512 ? 2 : 768 / kRowThreads<kGroup>;

/// Calls f(row, n or 0) for the rows of this thread's group; all threads of a warp make the same number of
/// calls, those without a row with n = 0.
template <int kGroup, class F>
__device__ void for_rows(int64_t count, int64_t n, const F& f) {
  constexpr int kGroups = kRowThreads<kGroup> / kGroup, kTogether = kGroup < 32 ? 32 / kGroup : 1;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGroups;
  const int within = static_cast<int>(threadIdx.x / kGroup) % kTogether;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kGroup; r - within < count;
       r += step)
    f(r < count ? r : 0, r < count ? n : 0);
}

/// Calls launch(pack, group), integral constants, for rows of n elements that allow 16-byte accesses or not.
/// A group is the smallest that keeps the whole row in registers. (Eight lanes read 128 bytes at once only by
/// packs.)
template <class T, class Launch>
void choose_row_kernel(int64_t n, bool packs, const Launch& launch) {
  const auto with_pack = [&](auto pack) {
    if constexpr (decltype(pack)::value > 1)
      if (n <= 8 * kRowValues) return launch(pack, std::integral_constant<int, 8>{});
    if (n <= 32 * kRowValues) return launch(pack, std::integral_constant<int, 32>{});
    if (n <= 128 * kRowValues) return launch(pack, std::integral_constant<int, 128>{});
    launch(pack, std::integral_constant<int, 512>{});
  };
  if (packs)
    with_pack(std::integral_constant<int, kVector<T>>{});
  else
    with_pack(std::integral_constant<int, 1>{});
}

}  // namespace attnbench
