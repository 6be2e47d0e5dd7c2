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

}  // namespace attnbench
