// Pointwise work: y = f(a, b), with broadcasting of b, in one read and one write.
//
// a, y [..., C] of equal shape with contiguous rows (y may be a or b). b: same shape, or [C] broadcast over
// the rows, or none for unary functions. dtypes equal; arithmetic in f32. Cost: elementwise 1 per element for
// add, sub, mul, scale, clamp; special 1 per element for the others.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct PointwiseArgs {
  enum class Op : uint8_t {
    add,
    sub,
    mul,     // binary
    affine,  // alpha * a + beta
    clamp,   // min(max(a, alpha), beta)
    relu,
    gelu_erf,
    gelu_tanh,  // a sigmoid(sqrt(8 / pi) (a + 0.044715 a^3)): GPT-2's approximation of gelu_erf
    silu,
    sigmoid,
    exp,
    cos,
    sin,
    silu_mul,     // silu(a) * b
    sigmoid_mul,  // sigmoid(a) * b
  };
  Op op = Op::add;
  Tensor a, b, y;
  float alpha = 1.0f, beta = 0.0f;
};
void pointwise(Context& ctx, const PointwiseArgs& args);

}  // namespace attnbench
