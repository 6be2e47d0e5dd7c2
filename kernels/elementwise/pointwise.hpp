// Pointwise work: y = f(a, b), with broadcasting, in one read and one write.
//
// y [..., C] with contiguous rows. a and b: y's shape; or y's rank with extents of 1 where they are repeated
// (a per-channel gain [1, C, 1, 1], a row's scalar [..., 1]); b also [C], repeated over the rows. Strides of
// all but the last axis are free. y may be a or b where those have its shape. dtypes equal; arithmetic in
// f32. Cost: elementwise 1 per element for add, sub, mul, max, min, affine, clamp, abs, square; special 1 per
// element for the others.
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
    gelu_mul,     // gelu_erf(a) * b
    div,          // a / b
    max,          // NaN when either is
    min,
    prelu,  // a < 0 ? b a : a
    abs,
    square,
    sqrt,
    rsqrt,
    log,
    tanh,
    softplus,    // log(1 + e^a)
    elu,         // a < 0 ? alpha (e^a - 1) : a
    leaky_relu,  // a < 0 ? alpha a : a
    pow,         // a^alpha, as C's pow
  };
  Op op = Op::add;
  Tensor a, b, y;
  float alpha = 1.0f, beta = 0.0f;
};
void pointwise(Context& ctx, const PointwiseArgs& args);

/// Whether f reads b.
constexpr bool is_binary(PointwiseArgs::Op op) {
  using Op = PointwiseArgs::Op;
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::silu_mul || op == Op::sigmoid_mul ||
         op == Op::gelu_mul || op == Op::div || op == Op::max || op == Op::min || op == Op::prelu;
}

}  // namespace attnbench
