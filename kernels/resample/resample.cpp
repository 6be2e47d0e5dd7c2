#include "kernels/resample/resample.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void resize_bicubic(Context& ctx, const ResizeArgs& args) {
  const ArgumentCheck check(ctx, "resize_bicubic");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.packed({"x", args.x}, 4);
  check.packed({"y", args.y}, 4);
  check.shape({"y", args.y}, {args.x.dim(0), args.x.dim(1), args.y.dim(2), args.y.dim(3)});
  if (args.x.numel() == 0 && args.y.numel() > 0)
    check.fail("an image of shape " + args.x.shape().str() + " has no pixels to interpolate");
  check.disjoint({"x", args.x}, {"y", args.y});
  const int64_t n = args.y.numel();
  Cost cost;
  cost.elementwise = n * (2 * 16 + (args.clamp01 ? 2 : 0));
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().resize_bicubic(ctx, args);
}

}  // namespace attnbench
