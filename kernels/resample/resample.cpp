#include "kernels/resample/resample.hpp"

#include <limits>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/resample/taps.hpp"

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

void resize(Context& ctx, const ResampleArgs& args) {
  using Kind = ResampleArgs::Kind;
  const ArgumentCheck check(ctx, "resize");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.packed({"x", args.x}, 4);
  check.packed({"y", args.y}, 4);
  const int channel = args.channels_last ? 3 : 1;
  if (args.x.dim(0) != args.y.dim(0) || args.x.dim(channel) != args.y.dim(channel))
    check.fail("'x' " + args.x.shape().str() + " and 'y' " + args.y.shape().str() +
               " differ in batch or channels");
  if (args.x.numel() == 0 && args.y.numel() > 0)
    check.fail("an image of shape " + args.x.shape().str() + " has no pixels to interpolate");
  if (args.kind == Kind::lanczos && !args.antialias) check.fail("lanczos is antialiased: set antialias");
  if (args.antialias && args.align_corners) check.fail("antialias and align_corners exclude each other");
  if (args.antialias && args.kind == Kind::nearest) check.fail("nearest has no antialias");
  check.disjoint({"x", args.x}, {"y", args.y});
  const TapAxis rows(args, 0), columns(args, 1);
  for (int64_t n : {rows.in, columns.in})
    if (n > std::numeric_limits<int32_t>::max())
      check.fail("the image " + args.x.shape().str() + " has an axis beyond 2^31 - 1 pixels");
  const int64_t n = args.y.numel();
  Cost cost;
  if (n > 0 && args.kind != Kind::nearest)
    cost.elementwise =
        args.kind == Kind::bilinear && !args.antialias ? 7 * n : 2 * n * rows.count() * columns.count();
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().resize(ctx, args);
}

void sample_points(Context& ctx, const SamplePointsArgs& args) {
  const ArgumentCheck check(ctx, "sample_points");
  check.present({{"x", args.x}, {"points", args.points}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.dtype({"points", args.points}, {DType::f32});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 5, 5);
  check.rank({"points", args.points}, 4, 4);
  const int64_t batch = args.x.dim(0), groups = args.points.dim(1), width = args.x.dim(4);
  check.shape({"points", args.points}, {batch, groups, args.points.dim(2), 2});
  check.shape({"y", args.y}, {batch, groups, args.points.dim(2), width});
  if (args.x.dim(1) != groups && args.x.dim(1) != 1)
    check.fail("'x' " + args.x.shape().str() + " has neither one group nor the " + std::to_string(groups) +
               " of 'points'");
  check.packed({"x", args.x});
  check.packed({"points", args.points}, 4);
  check.packed({"y", args.y});
  if (args.clamp && args.x.numel() == 0 && args.y.numel() > 0)
    check.fail("'x' " + args.x.shape().str() + " has no edge to clamp to");
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"points", args.points}, {"y", args.y});
  const int64_t points = batch * groups * args.points.dim(2);
  Cost cost;
  cost.elementwise = points * (8 * width + 8);
  cost.bytes_read = args.x.nbytes() + args.points.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().sample_points(ctx, args);
}

}  // namespace attnbench
