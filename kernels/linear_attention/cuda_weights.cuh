// What the tensor-core kernels of linear attention share: powers of lambda, f16's scales by powers of two,
// and 16-bit operands times weights. No kernels.
#pragma once
#include "kernels/attention/mma.cuh"
#include "kernels/core/cuda_kernel.cuh"

namespace attnbench::cuda_linear {

/// lambda^p. f32 is enough here: exp2f errs by 2 ulp, the operands by 2^-12 and more.
struct Decay {
  float log2;

  __device__ Decay(float log_decay, bool causal)
      // What the contract forbids cannot be refused from here: the head becomes NaN.
      : log2(log_decay <= 0.0f && (causal || log_decay == 0.0f)
                 ? static_cast<float>(static_cast<double>(log_decay) * 1.4426950408889634)
                 : NAN) {}
  __device__ float at(int64_t p) const {
    if (isnan(log2)) return NAN;
    return p == 0 ? 1.0f : exp2f(static_cast<float>(p) * log2);  // lambda = 0: 0^0 = 1
  }
};

__device__ __forceinline__ float power_of_two(int x) { return __int_as_float((x + 127) << 23); }
/// x for which 2^-x times a largest value of m lies in [2^14, 2^15), within what f32 can scale by.
__device__ __forceinline__ int range_shift(float m) {
  const int exponent = ((__float_as_int(m) >> 23) & 255) - 127;
  return max(exponent - 14, -100);
}

/// Two packed elements times two factors, rounded again.
template <class T>
__device__ __forceinline__ uint32_t weigh(uint32_t x, float low, float high) {
  T pair[2];
  memcpy(pair, &x, sizeof x);
  return cuda_attention::pack(widen(pair[0]) * low, widen(pair[1]) * high, T{});
}

}  // namespace attnbench::cuda_linear
