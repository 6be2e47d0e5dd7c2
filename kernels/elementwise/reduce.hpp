// Full or row reductions with a result that does not depend on the number of threads (fixed tree over fixed
// chunks).
//
// x [..., C], contiguous; weight: same shape or none (weighted sum). y: [] or [1] for `all`, else x's shape
// without its last axis. Sums are accumulated in f64. NaN propagates through sum, mean and max. Cost:
// elementwise 1 (2 with weight) per element.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

struct ReduceArgs {
  enum class Op : uint8_t { sum, mean, max };
  Op op = Op::sum;
  Tensor x, weight, y;
  bool all = true;
};
void reduce(Context& ctx, const ReduceArgs& args);

/// One number for each line along any axis: y has x's shape without `axis`, or with extent 1 there.
///
/// sum, mean, max, min, squares (sum of squares), norm (its root), variance and deviation (biased, its root).
/// Sums in f64 in a fixed order, rounded once; NaN propagates. x packed, f32, bf16 or f16; y packed, f32 or
/// x's dtype. An axis of no elements has a sum, squares and norm only. Cost: elementwise 1 per element of x
/// (2 for squares, norm, 3 for variance and deviation), special 1 per root.
struct ReduceAxisArgs {
  enum class Op : uint8_t { sum, mean, max, min, squares, norm, variance, deviation };
  Op op = Op::sum;
  Tensor x, y;
  int axis = -1;
};
void reduce_axis(Context& ctx, const ReduceAxisArgs& args);

}  // namespace attnbench
