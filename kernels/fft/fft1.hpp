// Batched one-dimensional Fourier transforms of any length, pointwise work on complex tensors, and products
// with Toeplitz matrices through them. Images go through fft.hpp.
//
// Complex tensors are f32 with a trailing axis of 2 (re, im); arithmetic is f32 whatever a method's dtype.
// Cost of a transform (matmul class, by the usual convention): 5 n log2 n per complex line of n points, half
// for a real one, rounded to the nearest integer.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Transforms of `length` = n points along the last axis (before the axis of 2); other axes are the batch,
/// with any strides.
///   real_to_half:  x [..., m], m <= n, zeros behind it        -> y [..., n/2+1, 2]
///   half_to_real:  x [..., n/2+1, 2]                          -> y [..., m], m <= n: the first m points
///   complex:       x [..., m, 2], m <= n, zeros behind it     -> y [..., k, 2], k <= n: the first k points
/// half_to_real reads x as the half of a Hermitian line: the imaginary parts of bin 0 and, for even n, of bin
/// n/2 are ignored. Forward uses exp(-i...), nothing is normalised; every output is multiplied by `scale`. x
/// is not changed; y may be x for complex kinds of equal shapes. Cost: transforms of n points; x read and y
/// written once.
struct Fft1Args {
  enum class Kind : uint8_t { real_to_half, half_to_real, complex_forward, complex_inverse };
  Kind kind = Kind::real_to_half;
  Tensor x, y;
  int64_t length = 0;
  float scale = 1.0f;
};
void fft1(Context& ctx, const Fft1Args& args);
/// The formula that fft1 charges for `batch` lines.
int64_t fft1_flops(Fft1Args::Kind kind, int64_t batch, int64_t length);

/// Pointwise work on complex tensors, in f32.
///   multiply       y = a b                     multiply_conj  y = a conj(b)
///   divide         y = a conj(b) / (|b|^2 + eps^2), 0 where that denominator is 0 (eps = 0: a / b)
///   magnitude      y = |a|^power, real         angle          y = arg a in (-pi, pi], real; arg 0 = 0
///   polar          y = a^power (cos b + i sin b), a and b real (a not negative unless power is 1)
/// a [..., 2] and y [..., 2] of equal shape, or without the axis of 2 where real; b has their shape, or fewer
/// leading axes, or extents of 1, which are broadcast. angle reads an imaginary part of at most `snap` |a| as
/// +0, so that a real number's angle is 0 or pi whatever rounding left in its imaginary part. Rows are
/// packed, other strides are free; y may be a. Cost: multiply elementwise 6; divide elementwise 9 and special
/// 2; magnitude elementwise 3, special 1; angle special 1; polar elementwise 2, special 2 - per complex
/// number.
struct ComplexArgs {
  enum class Op : uint8_t { multiply, multiply_conj, divide, magnitude, angle, polar };
  Op op = Op::multiply;
  Tensor a, b, y;
  float eps = 0.0f;
  float snap = 0.0f;
  float power = 1.0f;
};
void complex_pointwise(Context& ctx, const ComplexArgs& args);
/// What complex_pointwise charges for n complex numbers, without bytes.
Cost complex_pointwise_cost(ComplexArgs::Op op, int64_t n);

/// y_i = sum_j c(j - i) x_j along the last axis: x [..., M], y [..., N] (f32), c [..., N + M - 1] at index
/// j - i + N - 1, its leading axes those of x or extents of 1 (one kernel for many lines) with the same rank.
/// Through a circulant of at least N + M - 1 points. A composition: charges fft1, complex_pointwise and
/// transpose_copy.
struct ToeplitzArgs {
  Tensor c, x, y;
};
void toeplitz_product(Context& ctx, const ToeplitzArgs& args);
/// The circulant's length for N outputs and M inputs: the next power of two from N + M - 1 on.
int64_t toeplitz_length(int64_t outputs, int64_t inputs);

/// Linear attention with relative positions by FFT (kernelized_rpe, arXiv 2106.12566, Algorithm 1):
///   o_i = (q_i . sum_j c(j - i) k_j v_j^T) / (q_i . sum_j c(j - i) k_j)
/// q [B, H, N, F], k [B, H, M, F]: features; v [B, H, M, E]; o [B, H, N, E]; all f32 with packed rows. c is
/// given by the spectrum of its circulant, [H or 1, Lh, Lw/2+1, 2] f32, scaled by 1 / (Lh Lw): tokens are a
/// grid, N = q_grid[0] q_grid[1], M = k_grid[0] k_grid[1] (a sequence has one row), whose lines of k are
/// padded with zeros to Lh x Lw = fft[0] x fft[1]. A denominator that is not positive counts as 1. `chunk`
/// features are in flight at a time on a device; a CPU thread holds one line, so it has no use for it. Cost
/// per head: forward and inverse real transform of Lh Lw points (fft2_flops) and elementwise 6 per bin for F
/// (E + 1) lines; elementwise M F E (outer products) + 2 N F (E + 1) (sums over features); special N E
/// (divisions); operands once.
struct ToeplitzAttentionArgs {
  Tensor q, k, v, spectrum, o;
  int64_t q_grid[2] = {1, 0}, k_grid[2] = {1, 0}, fft[2] = {1, 0};
  int64_t chunk = 8;
};
void toeplitz_attention(Context& ctx, const ToeplitzAttentionArgs& args);
/// What toeplitz_attention charges for these arguments.
Cost toeplitz_attention_cost(const ToeplitzAttentionArgs& args);

}  // namespace attnbench
