// Scores of sampled queries against gathered key rows, one warp at a time, for the tree search: tensor cores
// for 16-bit types, f32 products for f32. Which keys, and what is kept, is tree_cuda.cu's.
//
// A warp takes columns of keys in tiles of 8. Lane = 4 g + t holds of key g the elements 32 c + 8 t .. + 7 of
// every chunk c: a quad reads 64 or 128 neighbouring bytes straight into registers. A dot product does not
// care for the order of its terms, so these eight elements serve as a lane's share of two m16n8k16 products,
// and queries in shared memory are read by the same rule: one 16-byte read for two products.
#pragma once
#include "kernels/attention/mma.cuh"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/tree_cells.cuh"

namespace attnbench::tree {

/// Elements of a chunk, and chunks of a tile's keys that a lane holds at once.
inline constexpr int kChunk = 32, kChunks = 4;
/// Rows of queries are allocated in multiples of an mma's.
inline constexpr int kRows = 16;
/// Tiles of 8 keys that a warp loads before it uses the first: as many as 64 registers hold next to the sums.
template <class T>
inline constexpr int kTiles = sizeof(T) == 2 ? 2 : 1;

/// Elements between rows of queries in shared memory: an odd number of chunks, so that the two rows of 16-bit
/// elements that eight lanes read lie in different banks.
__host__ __device__ inline int row_stride(int64_t d) {
  return (static_cast<int>((d + kChunk - 1) / kChunk) | 1) * kChunk;
}

/// How rows of keys can be read: `whole`: in 16-byte packs from end to end, D being a multiple of a chunk.
enum class Reading : uint8_t { elements, packs, whole };

/// Elements at .. at + 7 of a row of d, zeros behind its end.
template <class T>
__device__ __forceinline__ void load_eight(T (&x)[8], const T* row, int at, int d, Reading how) {
  constexpr int kPack = kVector<T>;
  if (how == Reading::whole || (how == Reading::packs && at + 8 <= d)) {
    T pack[kPack];
#pragma unroll
    for (int i = 0; i < 8; i += kPack) {
      load_pack(row + at + i, pack);
#pragma unroll
      for (int j = 0; j < kPack; ++j) x[i + j] = pack[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = at + i < d ? row[at + i] : narrow<T>(0.0f);
}

/// A lane's elements of kChunks chunks from chunk `base` on, of each row. One branch for all of them, so that
/// all loads are under way before the first is waited for.
template <class T, int N, class Eight>
__device__ __forceinline__ void load_keys(Eight (&key)[N][kChunks], const T* const (&row)[N], int base,
                                          int chunks, int d, Reading how) {
  const int t = static_cast<int>(threadIdx.x % 4);
  const auto load = [&](Reading reading) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (base + c >= chunks) break;
        T x[8];
        load_eight(x, row[i], (base + c) * kChunk + 8 * t, d, reading);
        memcpy(&key[i][c], x, sizeof x);
      }
  };
  if (how == Reading::whole)
    load(Reading::whole);
  else
    load(how);
}

/// best[i][c]: the largest score of key 2 t + c of tile i over the samples low[that key] .. samples - 1, -inf
/// where there are none; the same in all lanes of that t. row[i] and low[i] are given for key g of tile i;
/// every lane names a row that can be read, also where it asks for nothing.
/// Scores that are NaN do not count. All lanes of the warp must call it.
template <class T>
requires(sizeof(T) == 2) __device__
    void score_keys(const T* queries, int stride, int samples, int d, Reading how,
                    const T* const (&row)[kTiles<T>], const int (&low)[kTiles<T>],
                    float (&best)[kTiles<T>][2]) {
  using cuda_attention::multiply;
  constexpr int N = kTiles<T>;
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const int chunks = (d + kChunk - 1) / kChunk;
  int first[N][2];
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      first[i][c] = __shfl_sync(0xffffffffu, low[i], 4 * (2 * t + c));
      best[i][c] = lowest();
    }
  uint4 key[N][kChunks];
#pragma unroll 1
  for (int m = 0; m < samples; m += 2 * kRows) {
    float sum[2][N][4] = {};
#pragma unroll 1
    for (int base = 0; base < chunks; base += kChunks) {
      // The keys of one base stay in their registers for all samples.
      if (m == 0 || chunks > kChunks) load_keys(key, row, base, chunks, d, how);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (base + c >= chunks) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = m + kRows * half;
          if (r >= samples) break;
          const T* from = queries + (r + g) * stride + (base + c) * kChunk + 8 * t;
          const uint4 upper = *reinterpret_cast<const uint4*>(from),
                      lower = *reinterpret_cast<const uint4*>(from + 8 * stride);
          const uint32_t a[4] = {upper.x, lower.x, upper.y, lower.y},
                         b[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
          for (int i = 0; i < N; ++i) {
            multiply(sum[half][i], a, key[i][c].x, key[i][c].y, T());
            multiply(sum[half][i], b, key[i][c].z, key[i][c].w, T());
          }
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < N; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = m + kRows * half + g + 8 * (e / 2);
          if (r < samples && r >= first[i][e % 2]) best[i][e % 2] = fmaxf(best[i][e % 2], sum[half][i][e]);
        }
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int step = 4; step < 32; step *= 2)
        best[i][c] = fmaxf(best[i][c], __shfl_xor_sync(0xffffffffu, best[i][c], step));
}

template <class T>
requires(sizeof(T) == 4) __device__
    void score_keys(const T* queries, int stride, int samples, int d, Reading how,
                    const T* const (&row)[kTiles<T>], const int (&low)[kTiles<T>],
                    float (&best)[kTiles<T>][2]) {
  constexpr int kAtOnce = 8;  // samples whose sums stay in registers
  const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
  const int chunks = (d + kChunk - 1) / kChunk;
  struct Eight {
    float x[8];
  };
  Eight key[1][kChunks];
  float own = lowest();
#pragma unroll 1
  for (int m = 0; m < samples; m += kAtOnce) {
    float sum[kAtOnce] = {};
#pragma unroll 1
    for (int base = 0; base < chunks; base += kChunks) {
      if (m == 0 || chunks > kChunks) load_keys(key, row, base, chunks, d, how);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (base + c >= chunks) break;
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) {
          if (m + r >= samples) break;
          const float* from = queries + (m + r) * stride + (base + c) * kChunk + 8 * t;
          const float4 x = *reinterpret_cast<const float4*>(from),
                       y = *reinterpret_cast<const float4*>(from + 4);
          const float q[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
          for (int e = 0; e < 8; ++e) sum[r] = fmaf(q[e], key[0][c].x[e], sum[r]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const float dot = warp_reduce<4>(sum[r], Add{});
      if (m + r < samples && m + r >= low[0]) own = fmaxf(own, dot);
    }
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) best[0][c] = __shfl_sync(0xffffffffu, own, 4 * (2 * t + c));
}

}  // namespace attnbench::tree
