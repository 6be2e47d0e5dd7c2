// Weak fall-backs while operators are being written; a strong definition in the operator's folder replaces
// each.
#include "kernels/attention/attention.hpp"
#include "kernels/conv/conv.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/softmax/softmax.hpp"

namespace attnbench {
#define X(op, Args) \
  __attribute__((weak)) void CpuBackend::op(Context&, const Args&) { not_implemented(#op); }
ATTNBENCH_OPERATORS(X)
#undef X

// The free functions, so that methods link before their operators are there.
#define X(op, Args) \
  __attribute__((weak)) void op(Context& ctx, const Args& args) { ctx.backend().op(ctx, args); }
ATTNBENCH_OPERATORS(X)
#undef X

namespace {
[[noreturn]] void missing(const char* what) {
  throw Unsupported(std::string(what) + " is not implemented yet");
}
}  // namespace
__attribute__((weak)) bool rule_allows(const ElementRule&, int64_t, int64_t, int64_t, int64_t, int64_t,
                                       int64_t) {
  missing("rule_allows");
}
__attribute__((weak)) BlockMask make_block_mask(Context&, const ElementRule&, int64_t, int64_t, int64_t,
                                                int64_t, const Tensor&, const Tensor&) {
  missing("make_block_mask");
}
__attribute__((weak)) void linear(Context&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  Activation) {
  missing("linear");
}
__attribute__((weak)) int64_t fft2_flops(Fft2Args::Kind, int64_t, int64_t, int64_t) { missing("fft2_flops"); }
__attribute__((weak)) Cost attention_cost(const AttentionArgs&) { missing("attention_cost"); }
__attribute__((weak)) Cost linear_attention_cost(const LinearAttentionArgs&) {
  missing("linear_attention_cost");
}
}  // namespace attnbench
