// The vector body of softmax, as cpu.cpp sees it.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// y[0, visible) = softmax(x[0, visible)), y[visible, n) = 0; y may be x.
ATTNBENCH_EACH_ISA(void softmax_row(DType, const void* x, void* y, int64_t visible, int64_t n))

}  // namespace attnbench
