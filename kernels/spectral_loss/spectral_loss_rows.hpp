// The vector bodies of spectral_loss, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/isa.hpp"

namespace attnbench {

/// d[i] = sqrt(re^2 + im^2 + 1e-12) of n interleaved complex numbers.
ATTNBENCH_EACH_ISA(void distances(const float* z, int64_t n, float* d))
/// d[n - 1 - i] of the same numbers: the last comes first.
ATTNBENCH_EACH_ISA(void distances_reversed(const float* z, int64_t n, float* d))
/// Sum of (1 - keep[i]) l[i], or of l[i] where keep is null.
ATTNBENCH_EACH_ISA(double open_sum(const float* l, const float* keep, int64_t n))

}  // namespace attnbench
