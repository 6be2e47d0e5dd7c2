// The vector body of transpose_copy, as cpu.cpp sees it.
#pragma once
#include <cstdint>

#include "kernels/core/isa.hpp"

namespace attnbench {

/// y[i * y_row + j] = x[j * x_row + i] for i < rows, j < columns, elements of `size` = 2 or 4 bytes.
ATTNBENCH_EACH_ISA(void transpose_plane(int size, const void* x, int64_t x_row, void* y, int64_t y_row,
                                        int64_t rows, int64_t columns))

}  // namespace attnbench
