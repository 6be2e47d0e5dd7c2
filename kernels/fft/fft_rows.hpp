// The vector bodies of the spectral operators, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/isa.hpp"

namespace attnbench {

/// x[i] *= s for n floats.
ATTNBENCH_EACH_ISA(void scale_run(float* x, int64_t n, float s))
/// Complex x[i] *= mask[i] for n pairs.
ATTNBENCH_EACH_ISA(void mask_run(float* x, const float* mask, int64_t n))

}  // namespace attnbench
