// The vector bodies of pointwise and reduce, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"
#include "kernels/elementwise/pointwise.hpp"

namespace attnbench {

/// `rows` rows of `n` elements, a row stride (in elements) per operand; b is null for unary functions. Within
/// a row a and b are elements (step 1) or one repeated scalar (step 0).
struct PointwiseRows {
  PointwiseArgs::Op op;
  DType dtype;
  const void *a, *b;
  void* y;
  int64_t stride_a, stride_b, stride_y, step_a, step_b, rows, n;
  float alpha, beta;
};
ATTNBENCH_EACH_ISA(void pointwise_rows(const PointwiseRows&))

/// Sum in f64 of n elements, times the weights if not null.
ATTNBENCH_EACH_ISA(double sum_run(DType, const void* x, const void* weight, int64_t n))
/// Maximum of n >= 1 elements; NaN when there is one.
ATTNBENCH_EACH_ISA(float max_run(DType, const void* x, int64_t n))

}  // namespace attnbench
