#include <cstring>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/softmax/softmax.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/softmax/softmax_body.hpp"

namespace attnbench {

void CpuBackend::softmax(Context& ctx, const SoftmaxArgs& args) {
  const auto run = ATTNBENCH_BEST(softmax_row);
  const RowOffsets x(args.x, 1), y(args.y, 1);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t n = args.x.dim(-1), queries = args.causal ? args.x.dim(-2) : 1;
  parallel_range(ctx.threads(), x.count(), std::max<int64_t>(kParallelBytes / (2 * n * size), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     // Clamped before the addition, so that no offset overflows.
                     const int64_t i = r % queries;
                     const int64_t offset = std::clamp<int64_t>(args.causal_offset, -queries - 1, n);
                     const int64_t visible = args.causal ? std::clamp<int64_t>(i + offset + 1, 0, n) : n;
                     run(args.x.dtype(), static_cast<const char*>(args.x.raw()) + x.offset(r) * size,
                         static_cast<char*>(args.y.raw()) + y.offset(r) * size, visible, n);
                     if (args.clear_hidden)
                       std::memset(static_cast<char*>(args.x.raw()) + (x.offset(r) + visible) * size, 0,
                                   static_cast<size_t>((n - visible) * size));
                   }
                 });
}

}  // namespace attnbench
