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

}  // namespace attnbench
