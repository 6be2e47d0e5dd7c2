#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/norm/norm_body.hpp"

namespace attnbench {

void CpuBackend::normalize(Context& ctx, const NormArgs& args) {
  const auto run = ATTNBENCH_BEST(norm_row);
  const RowOffsets x(args.x, 1), y(args.y, 1);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t n = args.x.dim(-1);
  parallel_range(ctx.threads(), x.count(), std::max<int64_t>(kParallelBytes / (2 * n * size), 1),
                 [&](int64_t begin, int64_t end) {
                   NormRow w{args.kind,         args.x.dtype(), nullptr, args.gain.raw(),
                             args.offset.raw(), nullptr,        n,       args.eps};
                   for (int64_t r = begin; r < end; ++r) {
                     w.x = static_cast<const char*>(args.x.raw()) + x.offset(r) * size;
                     w.y = static_cast<char*>(args.y.raw()) + y.offset(r) * size;
                     run(w);
                   }
                 });
}

}  // namespace attnbench
