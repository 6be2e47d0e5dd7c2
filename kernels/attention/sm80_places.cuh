// Where rows lie in the shared memory of the mma.sync kernels, and how single pieces of them get there and
// are looked at. No tiles' worth of anything: that is sm80_kernel.cuh and sm80_relative.cuh.
#pragma once
#include "kernels/attention/mma.cuh"
#include "kernels/attention/sm80.cuh"

namespace attnbench::cuda_attention {
namespace {

/// Byte offset of a chunk in a tile of rows.
template <int Chunks>
__device__ __forceinline__ uint32_t place_of(int row, int chunk) {
  // Rows of 64 bytes: two of them fill the banks, so pairs of rows take turns.
  const int turn = Chunks >= 8 ? row & 7 : (row >> 1) & 3;
  return static_cast<uint32_t>((row * Chunks + (chunk ^ turn)) * 16);
}
/// f32 values are read word by word, rows 2 t and 2 t + 1 by thread t of a quad: turns that keep those four
/// rows and two neighbouring chunks apart.
template <int Chunks>
__device__ __forceinline__ uint32_t value_place_of(int row, int chunk) {
  return static_cast<uint32_t>((row * Chunks + (chunk ^ (((row >> 1) & 3) << 1))) * 16);
}

/// 16 bytes of a row into shared memory: `count` valid elements, zeros behind them.
template <class T>
__device__ __forceinline__ void load_chunk(uint32_t to, const T* from, int count, bool aligned) {
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));
  count = count < 0 ? 0 : count < kPerChunk ? count : kPerChunk;
  if (aligned) {
    copy_async(to, from, count * static_cast<int>(sizeof(T)));
    return;
  }
  alignas(16) T x[kPerChunk];
#pragma unroll
  for (int i = 0; i < kPerChunk; ++i) x[i] = i < count ? from[i] : from_float<T>(0.0f);
  store_shared(to, *reinterpret_cast<const uint4*>(x));
}

/// Whether 16 bytes of values hold one that is not finite.
template <class T>
__device__ __forceinline__ bool is_odd(uint32_t x) {
  constexpr uint32_t kMask = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;
  if constexpr (sizeof(T) == 4) return (x & 0x7f800000u) == 0x7f800000u;
  return (x & kMask) == kMask || ((x >> 16) & kMask) == kMask;
}
template <class T>
__device__ __forceinline__ bool has_odd(uint4 x) {
  return is_odd<T>(x.x) || is_odd<T>(x.y) || is_odd<T>(x.z) || is_odd<T>(x.w);
}
/// Zeros in place of what is not finite.
template <class T>
__device__ __forceinline__ uint32_t finite_part(uint32_t x) {
  if constexpr (sizeof(T) == 4) return is_odd<T>(x) ? 0u : x;
  constexpr uint32_t kMask = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;
  if ((x & kMask) == kMask) x &= 0xffff0000u;
  if (((x >> 16) & kMask) == kMask) x &= 0xffffu;
  return x;
}
/// Two neighbouring elements of a row of a tile of values.
template <class T, class C>
__device__ __forceinline__ void load_two_values(float (&v)[2], uint32_t tile, int row, int column) {
  const int chunk = column / C::kPerChunk, inside = column % C::kPerChunk;
  if constexpr (sizeof(T) == 4) {
    const uint32_t from = tile + value_place_of<C::kChunks>(row, chunk) + inside * 4;
    v[0] = __uint_as_float(load_shared(from)), v[1] = __uint_as_float(load_shared(from + 4));
  } else {
    const uint32_t both = load_shared(tile + place_of<C::kChunks>(row, chunk) + inside * 2);
    T x[2];
    *reinterpret_cast<uint32_t*>(x) = both;
    v[0] = to_float(x[0]), v[1] = to_float(x[1]);
  }
}

}  // namespace
}  // namespace attnbench::cuda_attention
