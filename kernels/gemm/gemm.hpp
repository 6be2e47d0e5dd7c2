// Matrix product with bias and activation: C = act(alpha * A B + bias), batched and strided.
//
// Shapes: a [..., M, K], b [..., K, N] (b_transposed: [..., N, K], the [out, in] orientation of linear
// layers), c [..., M, N]. Leading batch axes of a and c must be equal; b has the same or none (shared). The
// last axis of every operand is contiguous; the row stride is free. bias [N] or none, added before the
// activation. dtypes: a, b, c equal: f32, bf16, f16 (f32 accumulation, one rounding at the end) or f64; or
// a, b narrow and c f32, not rounded, no bias. Any extent may be 0 (K = 0: act(bias)). c must not alias a or
// b. Cost: matmul 2 M N K per batch; elementwise M N for a bias; special M N for an activation.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

enum class Activation : uint8_t { none, relu, gelu_erf, silu };

struct GemmArgs {
  Tensor a, b, c;
  Tensor bias = {};  ///< optional
  bool b_transposed = false;
  bool a_transposed = false;  ///< a is stored [..., K, M]
  float alpha = 1.0f;
  bool accumulate = false;  ///< adds to what c holds (before bias and activation)
  Activation activation = Activation::none;
};
void gemm(Context& ctx, const GemmArgs& args);

/// y = x W^T + bias, the linear layer: x [..., K], weight [N, K], y [..., N]; x, y with contiguous rows.
void linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y,
            Activation activation = Activation::none);

}  // namespace attnbench
