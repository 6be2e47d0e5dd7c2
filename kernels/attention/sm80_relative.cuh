// Relative embeddings in the mma.sync kernel: the band of distances between a tile's rows and keys in shared
// memory, and the way between weights by key and weights by distance in registers. No kernel.
//
// Row r and key c of a tile meet at entry c - r + kRows - 1 of its band. From one tile to the next along the
// keys the band moves by kKeys entries, so it lives in a ring, where the next tile's new entries have room
// beside it. A warp's 16 rows need 16 + kKeys - 1 entries, a multiple of 16 after the band's first: with row
// i of the warp and entry y of those, c = y - 15 + i.
#pragma once
#include "kernels/attention/rows.cuh"
#include "kernels/attention/sm80_places.cuh"

namespace attnbench::cuda_attention {
namespace {

/// One head's table of embeddings.
template <class T>
struct Table {
  const T* data = nullptr;
  int64_t step = 0, rows = 0;
  int width = 0;
};

/// Calls visit(entry, chunk, place in the ring) for what this thread copies of entries [from, kBand) of a
/// band that starts at row `ring`; Values: in the places of values.
template <class T, class C, bool Values, class Visit>
__device__ __forceinline__ void each_band_chunk(int from, int ring, Visit visit) {
  constexpr int kStep = kThreads / C::kChunks;
  static_assert(kThreads % C::kChunks == 0 && C::kKeys % kStep == 0 && C::kRows % kStep == 0);
  const int chunk = threadIdx.x % C::kChunks;
#pragma unroll 2
  for (int y = from + static_cast<int>(threadIdx.x) / C::kChunks; y < C::kBand; y += kStep) {
    const int row = ring + y < C::kRing ? ring + y : ring + y - C::kRing;
    visit(
        y, chunk,
        Values && sizeof(T) == 4 ? value_place_of<C::kChunks>(row, chunk) : place_of<C::kChunks>(row, chunk));
  }
}
/// `away`: the distance of entry 0.
template <class T, class C, bool Values>
__device__ __forceinline__ void load_band(const Params& p, const TensorPlan& plan, const Table<T>& table,
                                          int64_t away, int from, int ring, uint32_t to) {
  each_band_chunk<T, C, Values>(from, ring, [&](int y, int chunk, uint32_t place) {
    const int64_t r = relative_row(p, table.rows, away + y);
    const int skip = chunk * C::kPerChunk, count = r < 0 ? 0 : table.width - skip;
    load_chunk<T>(to + place, table.data + (count > 0 ? r * table.step + skip : 0), count,
                  plan.tables_aligned);
  });
}
/// Whether what this thread has copied of a band of values holds inf or NaN.
template <class T, class C>
__device__ __forceinline__ bool has_odd_band(uint32_t values, int from, int ring) {
  bool odd = false;
  each_band_chunk<T, C, true>(
      from, ring, [&](int, int, uint32_t place) { odd = odd || has_odd<T>(load_shared4(values + place)); });
  return odd;
}

// C fragments of 16 rows: thread 4 g + t has rows g and g + 8, so a diagonal stays within its quad. With
// u = 7 - g, key 2 t + c of row g + 8 is entry 2 t + c + u, and one of row g is eight further on. So an
// element comes from the register of parity c + u of a thread u / 2 further on, of the next eight entries
// where the quad ends.

/// s[i][c] += far[i][c + 15 - i].
template <int NTiles>
__device__ __forceinline__ void add_diagonals(float (&s)[NTiles][4], const float (&far)[NTiles + 2][4]) {
  const int lane = threadIdx.x % 32, t = lane % 4, u = 7 - lane / 4;
  const bool odd = u & 1;
  const int h[2] = {u >> 1, (u + 1) >> 1};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int from = (lane & ~3) | ((t + h[c]) & 3);
    const bool same = t >= h[c];  // what this thread gives away
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < NTiles; ++j) {
        const float(&a)[4] = far[j + 1 - half];
        const float(&b)[4] = far[j + 2 - half];
        const float low = same ? a[2 * half] : b[2 * half], high = same ? a[2 * half + 1] : b[2 * half + 1];
        s[j][2 * half + c] += __shfl_sync(kAllLanes, odd == (c == 0) ? high : low, from);
      }
  }
}
/// far[i][y] = s[i][y - 15 + i], 0 where there is no such key.
template <int NTiles>
__device__ __forceinline__ void spread_diagonals(float (&far)[NTiles + 2][4], const float (&s)[NTiles][4]) {
  const int lane = threadIdx.x % 32, t = lane % 4, u = 7 - lane / 4;
  const bool odd = u & 1;
  const int h[2] = {(u + 1) >> 1, u >> 1};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int from = (lane & ~3) | ((t - h[c]) & 3);
    const bool same = t + h[c] < 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < NTiles + 2; ++j) {
        const int at = j - 1 + half;
        const auto key = [&](int n, int i) { return n >= 0 && n < NTiles ? s[n][2 * half + i] : 0.0f; };
        const float low = same ? key(at, 0) : key(at - 1, 0), high = same ? key(at, 1) : key(at - 1, 1);
        far[j][2 * half + c] = __shfl_sync(kAllLanes, odd == (c == 0) ? high : low, from);
      }
  }
}

}  // namespace
}  // namespace attnbench::cuda_attention
