// The vector bodies of 1-D transforms' pointwise work as signal_cpu.cpp sees them. Not a contract.
#pragma once
#include <cstdint>

#include "kernels/core/isa.hpp"

namespace attnbench {

/// y = a b, or a conj(b), for n complex numbers; y may be a.
ATTNBENCH_EACH_ISA(void complex_product(const float* a, const float* b, float* y, int64_t n, bool conjugate))
ATTNBENCH_EACH_ISA(void complex_magnitude(const float* a, float* y, int64_t n))
/// y[i] = a[i] b[i].
ATTNBENCH_EACH_ISA(void real_product(const float* a, const float* b, float* y, int64_t n))
/// y[i] += a[i] b[i].
ATTNBENCH_EACH_ISA(void add_product(const float* a, const float* b, float* y, int64_t n))

}  // namespace attnbench
