#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/pool/pool.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/pool/pool_body.hpp"

namespace attnbench {

void CpuBackend::avg_pool2d(Context& ctx, const AvgPool2dArgs& args) {
  const auto run = ATTNBENCH_BEST(pool_cell);
  const Tensor &x = args.x, &y = args.y;
  const auto size = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t height = x.dim(1), width = x.dim(2), channels = x.dim(3), ho = y.dim(1), wo = y.dim(2);
  // Cells that do not overlap are the adaptive ones whose borders divide evenly.
  const auto first = [](int64_t i, int64_t in, int64_t out) { return i * in / out; };
  const auto last = [](int64_t i, int64_t in, int64_t out) { return ((i + 1) * in + out - 1) / out; };
  const int64_t cell_bytes = channels * size * (1 + std::max<int64_t>(height * width / (ho * wo), 1));
  parallel_range(
      ctx.threads(), y.dim(0) * ho * wo, std::max<int64_t>(kParallelBytes / cell_bytes, 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / (ho * wo), oy = i / wo % ho, ox = i % wo;
          const int64_t h0 = first(oy, height, ho), h1 = last(oy, height, ho);
          const int64_t w0 = first(ox, width, wo), w1 = last(ox, width, wo);
          run(x.dtype(),
              static_cast<const char*>(x.raw()) +
                  (b * x.stride(0) + h0 * x.stride(1) + w0 * x.stride(2)) * size,
              x.stride(1), x.stride(2), h1 - h0, w1 - w0,
              static_cast<char*>(y.raw()) + (b * y.stride(0) + oy * y.stride(1) + ox * y.stride(2)) * size,
              channels, 1.0f / static_cast<float>((h1 - h0) * (w1 - w0)));
        }
      });
}

}  // namespace attnbench
