// The vector body of normalize, as cpu.cpp sees it.
#pragma once
#include <cstdint>

#include "kernels/core/isa.hpp"
#include "kernels/norm/norm.hpp"

namespace attnbench {

/// One row of n elements; gain and offset may be null.
struct NormRow {
  NormArgs::Kind kind;
  DType dtype;
  const void *x, *gain, *offset;
  void* y;
  int64_t n;
  float eps;
};
ATTNBENCH_EACH_ISA(void norm_row(const NormRow&))

/// y[i] = x[i] scale[i] + shift[i], or with one scale and shift for all; y may be x.
ATTNBENCH_EACH_ISA(void norm_affine(DType, const void* x, void* y, const float* scale, const float* shift,
                                    int64_t n))
ATTNBENCH_EACH_ISA(void norm_affine_one(DType, const void* x, void* y, float scale, float shift, int64_t n))
/// sum[i] += x[i], squares[i] += x[i]^2; or all into one of each.
ATTNBENCH_EACH_ISA(void add_moments(DType, const void* x, int64_t n, double* sum, double* squares))
ATTNBENCH_EACH_ISA(void add_moments_one(DType, const void* x, int64_t n, double* sum, double* squares))

}  // namespace attnbench
