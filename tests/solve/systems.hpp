// Random positive definite systems and how well an answer solves them, in double; for tests of every backend.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/solve/solve.hpp"
#include "tests/op_testing.hpp"

namespace attnbench::testing {

/// `count` systems of n unknowns: G G^T + n / 4 of random G, NaN above the diagonal.
inline SolveSpdArgs spd_systems(Context& ctx, Random& r, int64_t count, int64_t n) {
  SolveSpdArgs a;
  a.a = ctx.allocate(DType::f32, {count, n, n});
  a.b = random(ctx, DType::f32, {count, n}, r), a.x = poisoned(ctx, DType::f32, {count, n});
  for (int64_t s = 0; s < count; ++s) {
    const std::vector<double> g = values(random(ctx, DType::f32, {n, n}, r));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = i == j ? 0.25 * static_cast<double>(n) : 0;
        for (int64_t k = 0; k < n; ++k)
          sum += g[static_cast<size_t>(i * n + k)] * g[static_cast<size_t>(j * n + k)];
        put(a.a, (s * n + i) * n + j, j > i ? std::numeric_limits<double>::quiet_NaN() : sum);
      }
  }
  return a;
}

/// Largest |(A + ridge I) x - b| over |A| |x| + |b|, row by row: what rounding x once to f32 leaves.
inline double worst_residual(const SolveSpdArgs& args) {
  const int64_t n = args.a.dim(-1), systems = args.b.numel() / n;
  double worst = 0;
  for (int64_t s = 0; s < systems; ++s)
    for (int64_t i = 0; i < n; ++i) {
      double sum = -get(args.b, s * n + i), size = std::abs(sum);
      for (int64_t j = 0; j < n; ++j) {
        double a = get(args.a, (s * n + std::max(i, j)) * n + std::min(i, j));
        if (i == j) a += static_cast<double>(args.ridge);
        sum += a * get(args.x, s * n + j), size += std::abs(a * get(args.x, s * n + j));
      }
      const double error = size == 0 ? 0 : std::abs(sum) / size;
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  return worst;
}

}  // namespace attnbench::testing
