// Batches of small symmetric positive definite systems: (A + ridge I) x = b by Cholesky, in double.
//
// a f32 [..., n, n], packed: the lower triangle is read; b, x f32 [..., n], packed; x may be b. 1 <= n <=
// 128. A system that is not positive definite (a pivot that is not above 0) gives NaN in all of its x. Cost:
// matmul floor(n^3 / 3) + 2 n^2 a system, special 2 n (root and reciprocal of a pivot).
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct SolveSpdArgs {
  Tensor a, b, x;
  float ridge = 0.0f;
};
void solve_spd(Context& ctx, const SolveSpdArgs& args);

}  // namespace attnbench
