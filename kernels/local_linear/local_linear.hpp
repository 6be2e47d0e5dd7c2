// Local linear attention as one operator (FlashLLA, arXiv 2510.01450): for each query the intercept of a
// weighted ridge regression of the values on the keys, whose D x D system is solved by conjugate gradients
// that never form it. Not the direct solve: a system eliminated row by row is composed by the method.
//
// q [B, H, N, D], k [B, H, M, D], v [B, H, M, E], o [B, H, N, E] of one dtype (f32, bf16, f16); any strides
// with contiguous last axis, any D and E. Causal rows see keys j <= i + M - N, which needs M >= N. With
// w_ij = exp(scale q_i.k_j - max_j), p = w / sum_j w, kbar = sum_j p k_j and mu = kbar - q_i:
//     Sigma = sum_j p (k_j - q_i)(k_j - q_i)^T + ridge I,   Sigma rho = mu,   delta = 1 - mu.rho,
//     o_i = sum_j p_j (c - r.k_j) v_j,   r = rho / delta,   c = (1 + rho.q_i) / delta.
// Everything is divided by omega = sum_j w: ridge is lambda, or lambda / (omega exp(max)) when `absolute`;
// delta_eps, atol and the guard 1e-10 beside p.Sigma p, which the paper's code adds to what is not divided,
// are scaled to match.
//
// Every iteration is executed; a row rests, its numbers unchanged, from the first iteration on at whose
// beginning r.r <= rtol max(atol / omega^2, mu.mu) or r.r is no number. Whether a row rests is decided from
// r.r of the stored f32 residual, summed in f64, so that a threshold met within rounding moves the answer by
// no more than the residual that rtol allows. All arithmetic on rows is f32 for every dtype: on tensor cores
// operands are split into as many bf16 terms as that takes.
//
// delta is computed as 1 - mu.rho - rho.(residual), the same number of an exact iteration, which stays above
// 0 when f32 stops on the way.
//
// Cost, P the pairs that are visible, T = iterations: 2 P D for the scores, 2 P D for kbar, 4 P D an
// iteration, 2 P D + 2 P E for the output; 2 P D for the diagonal of the preconditioner. Weights that a
// device computes again instead of keeping are its own business and not charged. Memory beside the operands:
// O((N + M) D) on a device, row_tile x M a thread on the CPU.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct LocalLinearArgs {
  Tensor q, k, v, o;
  Tensor omega;        ///< [B, H, N] f32: sum_j w_ij
  Tensor rho;          ///< [B, H, N, D] f32: r
  Tensor coefficient;  ///< [B, H, N] f32: c
  Tensor delta;        ///< [B, H, N] f32
  float scale = 1.0f;
  bool causal = true;
  float lambda = 10.0f;  ///< above 0
  bool absolute = false;
  float delta_eps = 0.0f;  ///< added to |omega delta|
  bool jacobi = false;     ///< residuals are divided by the diagonal of Sigma
  int64_t iterations = 32;
  float rtol = 1e-12f, atol = 1e-12f;  ///< of squared norms
  int64_t block = 0;                   ///< Sigma is cut to diagonal blocks of so many channels; divides D
  int64_t row_tile = 64;               ///< queries whose weights the CPU keeps at a time
};
void local_linear(Context& ctx, const LocalLinearArgs& args);
/// What local_linear charges for these arguments.
Cost local_linear_cost(const LocalLinearArgs& args);

}  // namespace attnbench
