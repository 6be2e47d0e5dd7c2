// The vector bodies of depthwise convolutions, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// Channel-last: y[c] = bias[c] + sum over t of taps[t][c] weight[t * n + c]; null taps are 0, bias may be
/// null.
ATTNBENCH_EACH_ISA(void depthwise_pixel(DType, const void* const* taps, int64_t count, const float* weight,
                                        const float* bias, void* y, int64_t n))
/// Channel-first: y[i] = bias + sum over rows p and taps q of weight[p * width + q] rows[p][i * stride + q *
/// dilation], i < n.
ATTNBENCH_EACH_ISA(void depthwise_row(DType, const float* const* rows, int64_t height, int64_t width,
                                      const float* weight, float bias, int64_t stride, int64_t dilation,
                                      void* y, int64_t n))

}  // namespace attnbench
