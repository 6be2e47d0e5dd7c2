// Weak fall-backs while operators are being written; a strong definition in the operator's folder replaces
// each.
#include "kernels/core/cpu_backend.hpp"

namespace attnbench {
#define X(op, Args) \
  __attribute__((weak)) void CpuBackend::op(Context&, const Args&) { not_implemented(#op); }
ATTNBENCH_OPERATORS(X)
#undef X
}  // namespace attnbench
