// What the device code of all operators shares: element types, 16-byte accesses, row offsets, activations,
// sums over threads. No kernels; not visible outside the CUDA module.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "kernels/core/cuda_backend.cuh"

namespace attnbench {

template <class T>
struct Type {
  using type = T;
};

/// Calls f(Type<T>) with the device's type of t: f32, bf16 or f16.
template <class F>
void by_float_type(DType t, const F& f) {
  switch (t) {
    case DType::f32:
      return f(Type<float>{});
    case DType::bf16:
      return f(Type<__nv_bfloat16>{});
    case DType::f16:
      return f(Type<__half>{});
    default:
      throw Unsupported("a CUDA kernel for f32, bf16 and f16 was given " + std::string(name(t)));
  }
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

/// Rounds to nearest even.
template <class T>
__device__ T narrow(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else
    return __float2bfloat16_rn(x);
}

// ---- memory -----------------------------------------------------------------------------------------------

template <int kBytes>
struct Raw;
template <>
struct Raw<1> {
  using type = uint8_t;
};
template <>
struct Raw<2> {
  using type = uint16_t;
};
template <>
struct Raw<4> {
  using type = uint32_t;
};
template <>
struct Raw<8> {
  using type = uint2;
};
template <>
struct Raw<16> {
  using type = uint4;
};

/// Elements of T in one 16-byte access.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

/// N elements by one access of N * sizeof(T) <= 16 bytes, to which p is aligned.
template <int N, class T>
__device__ void load_pack(const T* p, T (&v)[N]) {
  const auto raw = *reinterpret_cast<const typename Raw<N * sizeof(T)>::type*>(p);
  memcpy(v, &raw, sizeof raw);
}
template <int N, class T>
__device__ void store_pack(T* p, const T (&v)[N]) {
  typename Raw<N * sizeof(T)>::type raw;
  memcpy(&raw, v, sizeof raw);
  *reinterpret_cast<typename Raw<N * sizeof(T)>::type*>(p) = raw;
}
template <int N, class T>
__device__ void load_wide(const T* p, float (&v)[N]) {
  T t[N];
  load_pack(p, t);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = widen(t[i]);
}
/// Eight elements of T that were loaded as one.
template <class T>
__device__ __forceinline__ void widen_pack(const uint4& x, float (&to)[8]) {
  T eight[8];
  memcpy(eight, &x, sizeof x);
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = widen(eight[i]);
}
template <int N, class T>
__device__ void store_narrow(T* p, const float (&v)[N]) {
  T t[N];
#pragma unroll
  for (int i = 0; i < N; ++i) t[i] = narrow<T>(v[i]);
  store_pack(p, t);
}

/// Packs that a thread loads before it uses the first: with 1024 threads on a multiprocessor 64 KiB are under
/// way, more than the product of latency and bandwidth of any card so far.
inline constexpr int kBatch = 4;

/// i / n for i, n >= 0; a 64-bit division takes ten times as long as a 32-bit one.
__device__ inline int64_t divide(int64_t i, int64_t n) {
  if (((i | n) >> 32) == 0) return static_cast<uint32_t>(i) / static_cast<uint32_t>(n);
  return i / n;
}

/// Division by a number known before the launch: a multiplication and a shift for dividends below 2^31, where
/// the quotient is floor(i m / 2^(32 + shift)) with m = ceil(2^(32 + shift) / n) and 2^shift >= n / 2: the
/// error of m adds less than i / 2^31 < 1 of 1 / n to the exact quotient, too little to reach the next
/// integer.
struct Divisor {
  int64_t n = 1;
  uint32_t multiplier = 0, shift = 0;  // multiplier 0: n is 1, or too large

  Divisor() = default;
  explicit Divisor(int64_t by) : n(by) {
    if (by < 2 || by >> 31 != 0) return;
    while (int64_t{2} << shift < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (32 + shift)) + static_cast<uint64_t>(by) - 1) /
                                       static_cast<uint64_t>(by));
  }
  /// floor(i / n) for i >= 0.
  __device__ int64_t of(int64_t i) const {
    if (i >> 31 == 0 && multiplier != 0) return __umulhi(static_cast<uint32_t>(i), multiplier) >> shift;
    return n == 1 ? i : divide(i, n);
  }
};

/// Element offsets of all positions of the outer axes of a tensor, as RowOffsets (rows.hpp) gives them on the
/// host; passed to kernels by value.
struct DeviceRows {
  int64_t count = 1;
  int64_t extent[Shape::kMaxRank] = {}, stride[Shape::kMaxRank] = {};
  Divisor by[Shape::kMaxRank];
  int rank = 0;

  DeviceRows() = default;
  DeviceRows(const Tensor& t, int inner) {
    for (int i = 0; i < t.rank() - inner; ++i) {
      const int64_t n = t.dim(i), step = t.stride(i);
      count *= n;
      if (n == 1) continue;
      if (rank > 0 && stride[rank - 1] == step * n) {
        extent[rank - 1] *= n;
        stride[rank - 1] = step;
      } else {
        extent[rank] = n;
        stride[rank++] = step;
      }
    }
    for (int r = 0; r < rank; ++r) by[r] = Divisor(extent[r]);
  }
  __device__ int64_t offset(int64_t i) const {
    int64_t at = 0;
    for (int r = rank - 1; r > 0; --r) {
      const int64_t outer = by[r].of(i);
      at += (i - outer * extent[r]) * stride[r];
      i = outer;
    }
    return rank == 0 ? 0 : at + i * stride[0];
  }
};

/// Whether every row of t can be read in packs of `bytes`: base, strides and row length are multiples of it.
inline bool packable(const Tensor& t, int64_t bytes) {
  const auto size = static_cast<int64_t>(size_of(t.dtype()));
  if (reinterpret_cast<uintptr_t>(t.raw()) % static_cast<uintptr_t>(bytes) != 0) return false;
  if (t.rank() > 0 && t.dim(-1) * size % bytes != 0) return false;
  for (int i = 0; i < t.rank() - 1; ++i)
    if (t.dim(i) > 1 && t.stride(i) * size % bytes != 0) return false;
  return true;
}

/// The same elements as one row where that is possible, so that only the whole length must divide into packs.
inline Tensor flattened(const Tensor& t) { return t.contiguous() ? t.reshape({t.numel()}) : t; }

// ---- arithmetic -------------------------------------------------------------------------------------------

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
/// erfc keeps its relative precision where 1 + erf would cancel.
__device__ inline float gelu(float x) { return 0.5f * x * erfcf(x * -0.70710678118654752f); }

/// The maximum that NaN wins; one instruction.
__device__ inline float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
__device__ inline double max_or_nan(double a, double b) { return a > b || isnan(a) ? a : b; }

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return max_or_nan(a, b);
  }
};

/// The result over kLanes neighbouring lanes, the same in each, in an order that is always the same. All
/// lanes of the warp must call it.
template <int kLanes = 32, class T, class Op>
__device__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, x, step);
    // The lower lane's value comes first in both lanes, so that both get the same bits.
    x = (threadIdx.x & step) ? op(other, x) : op(x, other);
  }
  return x;
}

/// The same over the threads of a one-dimensional block of kThreads; all of them must call it.
template <int kThreads, class T, class Op>
__device__ T block_reduce(T x, Op op) {
  __shared__ T part[kThreads / 32];
  x = warp_reduce(x, op);
  if constexpr (kThreads > 32) {
    __syncthreads();  // the last reduction's parts have been read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
#pragma unroll
    for (int i = 1; i < kThreads / 32; ++i) x = op(x, part[i]);
  }
  return x;
}

}  // namespace attnbench
