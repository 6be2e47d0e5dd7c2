// The vector bodies of gemm, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"
#include "kernels/gemm/gemm.hpp"

namespace attnbench {

/// y = act(x + bias) for n elements; y is f32 (in place allowed) or a narrower type. bias may be null.
ATTNBENCH_EACH_ISA(void gemm_finish_row(DType, const float* x, const void* bias, Activation, void* y,
                                        int64_t n))

}  // namespace attnbench
