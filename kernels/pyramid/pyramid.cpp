#include "kernels/pyramid/pyramid.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/pyramid/channel.hpp"

namespace attnbench {

Cost pyramid_cost(bool expand, bool subtract, int64_t images, int64_t h, int64_t w, int64_t taps) {
  const int64_t half_h = (h + 1) / 2, half_w = (w + 1) / 2;
  Cost c;
  c.matmul = images * taps * (expand ? half_h * w + h * w : 2 * (h * half_w + half_h * half_w));
  c.elementwise = subtract ? images * (expand ? h * w : half_h * half_w) : 0;
  return c;
}

void pyramid_level(Context& ctx, const PyramidArgs& args) {
  const ArgumentCheck check(ctx, "pyramid_level");
  check.present({{"x", args.x}, {"taps", args.taps}, {"y", args.y}});
  check.rank({"x", args.x}, 3, 3);
  check.rank({"y", args.y}, 3, 3);
  check.rank({"taps", args.taps}, 1, 1);
  if (args.taps.dim(0) % 2 != 1)
    check.fail("there are " + std::to_string(args.taps.dim(0)) + " taps; an odd number is needed");
  const Tensor& fine = args.expand ? args.y : args.x;
  const Tensor& coarse = args.expand ? args.x : args.y;
  const int64_t b = args.x.dim(0), h = fine.dim(1), w = fine.dim(2);
  check.shape({args.expand ? "x" : "y", coarse}, {b, (h + 1) / 2, (w + 1) / 2});
  check.shape({args.expand ? "y" : "x", fine}, {b, h, w});
  for (const NamedTensor& t :
       {NamedTensor{"x", args.x}, NamedTensor{"y", args.y}, NamedTensor{"taps", args.taps}}) {
    check.dtype(t, {DType::f32});
    check.packed(t, t.tensor.rank());
  }
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"taps", args.taps}, {"y", args.y});
  Cost cost = pyramid_cost(args.expand, static_cast<bool>(args.subtract_from), b, h, w, args.taps.dim(0));
  cost.bytes_read = args.x.nbytes() + args.taps.nbytes();
  cost.bytes_written = args.y.nbytes();
  if (args.subtract_from) {
    check.present({{"subtract_from", args.subtract_from}});
    check.dtype({"subtract_from", args.subtract_from}, {DType::f32});
    check.same_shape({"subtract_from", args.subtract_from}, {"y", args.y});
    check.packed({"subtract_from", args.subtract_from}, 3);
    check.same_or_disjoint({"subtract_from", args.subtract_from}, {"y", args.y});
    cost.bytes_read += args.subtract_from.nbytes();
  }
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().pyramid_level(ctx, args);
}

void repair_range(Context& ctx, const RepairRangeArgs& args) {
  const ArgumentCheck check(ctx, "repair_range");
  check.present(
      {{"v", args.v}, {"s", args.s}, {"redraw", args.redraw}, {"sigma", args.sigma}, {"y", args.y}});
  check.rank({"v", args.v}, 2, 2);
  check.rank({"redraw", args.redraw}, 2, 2);
  const int64_t b = args.v.dim(0);
  check.same_shape({"v", args.v}, {"s", args.s});
  check.same_shape({"v", args.v}, {"y", args.y});
  check.shape({"redraw", args.redraw}, {b, args.redraw.dim(1)});
  check.shape({"sigma", args.sigma}, {b});
  for (const NamedTensor& t :
       {NamedTensor{"v", args.v}, NamedTensor{"s", args.s}, NamedTensor{"redraw", args.redraw},
        NamedTensor{"sigma", args.sigma}, NamedTensor{"y", args.y}}) {
    check.dtype(t, {DType::f32});
    check.packed(t);
  }
  if (!(args.gap >= 0.0f && args.gap < 0.5f))
    check.fail("the gap is " + std::to_string(args.gap) + "; it must be in [0, 0.5)");
  check.disjoint({"v", args.v}, {"y", args.y});
  check.disjoint({"redraw", args.redraw}, {"y", args.y});
  check.disjoint({"sigma", args.sigma}, {"y", args.y});
  check.same_or_disjoint({"s", args.s}, {"y", args.y});
  Cost cost;
  cost.elementwise = 3 * args.v.numel();
  cost.bytes_read = args.v.nbytes() + args.s.nbytes() + args.redraw.nbytes() + args.sigma.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().repair_range(ctx, args);
}

void channel_fit(Context& ctx, const ChannelFitArgs& args) {
  const ArgumentCheck check(ctx, "channel_fit");
  check.present({{"accuracy", args.accuracy}, {"threshold", args.threshold}, {"fit", args.fit}});
  check.dtype({"accuracy", args.accuracy}, {DType::f32});
  check.dtype({"threshold", args.threshold}, {DType::i32});
  check.dtype({"fit", args.fit}, {DType::f64});
  check.rank({"accuracy", args.accuracy}, 3, 3);
  const int64_t b = args.accuracy.dim(0), levels = args.accuracy.dim(1), bands = args.accuracy.dim(2);
  if (levels < 2 || bands < 1 || bands > kMostBands)
    check.fail("'accuracy' " + args.accuracy.shape().str() + " must have 2 levels or more and 1 to " +
               std::to_string(kMostBands) + " bands");
  check.shape({"threshold", args.threshold}, {b, bands});
  check.shape({"fit", args.fit}, {7, b});
  check.packed({"accuracy", args.accuracy}, 3);
  check.packed({"threshold", args.threshold}, 2);
  check.packed({"fit", args.fit}, 2);
  check.disjoint({"accuracy", args.accuracy}, {"threshold", args.threshold});
  Cost cost;
  cost.special = b * kChannelMeans * kChannelWidths * bands;
  cost.bytes_read = args.accuracy.nbytes();
  cost.bytes_written = args.threshold.nbytes() + args.fit.nbytes();
  ctx.cost().charge(cost);
  if (b > 0) ctx.backend().channel_fit(ctx, args);
}

}  // namespace attnbench
