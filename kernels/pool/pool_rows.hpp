// The vector body of avg_pool2d, as cpu.cpp sees it.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// y[c] = scale * sum over the height x width cell at x, strides in elements.
ATTNBENCH_EACH_ISA(void pool_cell(DType, const void* x, int64_t stride_h, int64_t stride_w, int64_t height,
                                  int64_t width, void* y, int64_t channels, float scale))

/// The same with the maximum, NaN when there is one.
ATTNBENCH_EACH_ISA(void pool_cell_max(DType, const void* x, int64_t sh, int64_t sw, int64_t height,
                                      int64_t width, void* y, int64_t channels))

}  // namespace attnbench
