// Rotary position embedding: rotates pairs of channels of queries and keys by angles that the caller
// tabulated. Not a table maker: which position and which frequency an angle belongs to is the caller's
// choice.
//
// For token n and pair i < R / 2 with a = x[.., n, first(i)], b = x[.., n, second(i)]:
//   y[.., n, first(i)]  = a cos[n, i] - b sin[n, i]
//   y[.., n, second(i)] = b cos[n, i] + a sin[n, i]
//   halves (Llama, GPT-NeoX):  first(i) = i, second(i) = i + R / 2      interleaved (RoFormer): 2i, 2i + 1
// Channels from R on are copied. Source: RoFormer, arXiv 2104.09864.
//
// x, y [..., N, D] of rank 2 to 4 and equal shape, any strides with a contiguous last axis; y may be x. f32,
// bf16, f16, arithmetic in f32. cosine, sine f32 [N, R / 2], rows of any stride, R even and at most D. Cost:
// elementwise 3 per rotated element (four products and two sums a pair).
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct RotaryArgs {
  Tensor x, cosine, sine, y;
  bool interleaved = false;
};
void rotary(Context& ctx, const RotaryArgs& args);

}  // namespace attnbench
