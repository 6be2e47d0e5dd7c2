// What follows a product while its rows are in the cache, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/gemm/gemm_rows.hpp"

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
void finish(const float* x, const T* bias, T* y, int64_t n) {
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
      return finish<Activation::none>(x, b, to, n);
    case Activation::relu:
      return finish<Activation::relu>(x, b, to, n);
    case Activation::gelu_erf:
      return finish<Activation::gelu_erf>(x, b, to, n);
    case Activation::silu:
      return finish<Activation::silu>(x, b, to, n);
  }
}

}  // namespace

void gemm_finish_row(DType t, const float* x, const void* bias, Activation activation, void* y, int64_t n) {
  if (t == DType::f32) return finish<float>(x, bias, activation, y, n);
  if (t == DType::bf16) return finish<bf16>(x, bias, activation, y, n);
  return finish<f16>(x, bias, activation, y, n);
}

}  // namespace attnbench::ATTNBENCH_ISA
