// The vector bodies of the unfused neighbourhood products, as cpu.cpp sees them.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// out[t] = scale * (q . k[t]) for `count` rows of d elements.
ATTNBENCH_EACH_ISA(void neighborhood_dots(DType, const void* q, const void* const* k, int64_t count,
                                          int64_t d, float scale, float* out))
/// o = sum over t of a[t] * v[t], rows of e elements; o has the dtype of v.
ATTNBENCH_EACH_ISA(void neighborhood_sum(DType, const float* a, const void* const* v, int64_t count,
                                         int64_t e, void* o))
/// The row as f32.
ATTNBENCH_EACH_ISA(void neighborhood_widen(DType, const void* row, int64_t n, float* out))

}  // namespace attnbench
