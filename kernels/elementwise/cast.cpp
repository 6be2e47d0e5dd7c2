#include "kernels/elementwise/cast.hpp"

#include <algorithm>

#include "kernels/core/backend.hpp"
#include "kernels/core/cpu_backend.hpp"

namespace attnbench {

void cast(Context& ctx, const CastArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  if (!x || !y || !(x.shape() == y.shape()))
    throw UsageError("cast: x " + x.shape().str() + " and y " + y.shape().str() + " differ in shape");
  if (!is_float(x.dtype()) || !is_float(y.dtype()))
    throw UsageError("cast: floating types are wanted, not " + std::string(name(x.dtype())) + " to " +
                     std::string(name(y.dtype())));
  if (!x.contiguous() || !y.contiguous()) throw UsageError("cast: x and y must be contiguous");
  Cost cost;
  cost.bytes_read = x.nbytes();
  cost.bytes_written = y.nbytes();
  ctx.cost().charge(cost);
  if (x.numel() > 0) ctx.backend().cast(ctx, args);
}

void CpuBackend::cast(Context& ctx, const CastArgs& args) {
  // 32K elements: 64 to 256 KB in and out, inside L2, and enough work to outweigh handing it to a thread.
  constexpr int64_t kChunk = int64_t{1} << 15;
  const int64_t n = args.x.numel();
  const auto x_size = static_cast<int64_t>(size_of(args.x.dtype())),
             y_size = static_cast<int64_t>(size_of(args.y.dtype()));
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
#pragma omp parallel for schedule(static) num_threads(ctx.threads())
  for (int64_t begin = 0; begin < n; begin += kChunk)
    convert(x + begin * x_size, args.x.dtype(), y + begin * y_size, args.y.dtype(),
            std::min(kChunk, n - begin));
}

}  // namespace attnbench
