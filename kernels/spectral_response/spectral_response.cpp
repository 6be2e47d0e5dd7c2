#include "kernels/spectral_response/spectral_response.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

Cost transfer_statistics_cost(const TransferStatisticsArgs& args) {
  const int64_t b = args.y.dim(0), ch = args.y.dim(1), t = args.y.dim(2), f = args.y.dim(3),
                pairs = ch * (ch - 1) / 2, cells = b * t * f;
  Cost c;
  c.elementwise = cells * (22 * ch + 8 * pairs);
  c.special = cells * (ch + 1) + 2 * b * f * pairs;
  c.bytes_read = args.x.nbytes() + args.y.nbytes();
  c.bytes_written = args.r.nbytes() + args.phi.nbytes() + args.csd.nbytes() + args.coef.nbytes() +
                    (args.h ? args.h.nbytes() : 0);
  return c;
}

void transfer_statistics(Context& ctx, const TransferStatisticsArgs& args) {
  const ArgumentCheck check(ctx, "transfer_statistics");
  check.present({{"x", args.x},
                 {"y", args.y},
                 {"r", args.r},
                 {"phi", args.phi},
                 {"csd", args.csd},
                 {"coef", args.coef}});
  check.rank({"y", args.y}, 5, 5);
  const int64_t b = args.y.dim(0), ch = args.y.dim(1), t = args.y.dim(2), f = args.y.dim(3);
  if (args.n_fft < 1 || f != args.n_fft / 2 + 1 || args.y.dim(4) != 2)
    check.fail("'y' " + args.y.shape().str() + " is no spectrum of " + std::to_string(args.n_fft) +
               " points");
  if (t < 1) check.fail("'y' " + args.y.shape().str() + " has no frame to average");
  if (args.eps < 0) check.fail("eps is " + std::to_string(args.eps) + "; it must not be negative");
  const int64_t pairs = ch * (ch - 1) / 2;
  const auto tensor = [&](NamedTensor n, const Shape& shape) {
    check.dtype(n, {DType::f32});
    check.shape(n, shape);
    check.packed(n, shape.rank());
  };
  tensor({"x", args.x}, {b, t, f, 2});
  tensor({"y", args.y}, {b, ch, t, f, 2});
  tensor({"r", args.r}, {b, ch, f});
  tensor({"phi", args.phi}, {b, ch, f});
  tensor({"csd", args.csd}, {b, pairs, f});
  tensor({"coef", args.coef}, {b, pairs, f});
  if (args.h) {
    check.present({{"h", args.h}});
    tensor({"h", args.h}, {b, ch, f, t, 2});
  }
  for (const NamedTensor& out :
       {NamedTensor{"r", args.r}, NamedTensor{"phi", args.phi}, NamedTensor{"csd", args.csd},
        NamedTensor{"coef", args.coef}, NamedTensor{"h", args.h}}) {
    if (!out.tensor) continue;
    check.disjoint({"x", args.x}, out);
    check.disjoint({"y", args.y}, out);
  }
  ctx.cost().charge(transfer_statistics_cost(args));
  if (args.r.numel() > 0) ctx.backend().transfer_statistics(ctx, args);
}

void find_peaks(Context& ctx, const FindPeaksArgs& args) {
  const ArgumentCheck check(ctx, "find_peaks");
  check.present({{"x", args.x}, {"index", args.index}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"index", args.index}, {DType::i32});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  check.rank({"index", args.index}, args.x.rank(), args.x.rank());
  for (int i = 0; i + 1 < args.x.rank(); ++i)
    if (args.x.dim(i) != args.index.dim(i))
      check.fail("'x' " + args.x.shape().str() + " and 'index' " + args.index.shape().str() +
                 " differ in their batch axes");
  check.packed({"x", args.x});
  check.packed({"index", args.index});
  if (args.width) {
    check.present({{"width", args.width}});
    check.dtype({"width", args.width}, {DType::f32});
    check.same_shape({"index", args.index}, {"width", args.width});
    check.packed({"width", args.width});
    check.disjoint({"x", args.x}, {"width", args.width});
  }
  check.disjoint({"x", args.x}, {"index", args.index});
  if (args.distance < 1)
    check.fail("the distance is " + std::to_string(args.distance) + "; it must be 1 or more");
  if (args.x.dim(-1) >= int64_t{1} << 31)
    check.fail("a row of " + std::to_string(args.x.dim(-1)) + " points is longer than i32 counts");
  Cost cost;
  cost.elementwise = 4 * args.x.numel();
  cost.special = args.log10 ? args.x.numel() : 0;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.index.nbytes() + (args.width ? args.width.nbytes() : 0);
  ctx.cost().charge(cost);
  if (args.index.numel() > 0) ctx.backend().find_peaks(ctx, args);
}

void histogram(Context& ctx, const HistogramArgs& args) {
  const ArgumentCheck check(ctx, "histogram");
  check.present({{"index", args.index}, {"counts", args.counts}, {"edges", args.edges}});
  check.dtype({"index", args.index}, {DType::i32});
  check.dtype({"counts", args.counts}, {DType::i32});
  check.dtype({"edges", args.edges}, {DType::f32});
  check.rank({"index", args.index}, 3, 3);
  check.rank({"counts", args.counts}, 2, 2);
  const int64_t channels = args.index.dim(1), bins = args.counts.dim(1);
  if (bins < 1) check.fail("there are no bins");
  check.shape({"counts", args.counts}, {channels, bins});
  check.shape({"edges", args.edges}, {channels, bins + 1});
  check.packed({"index", args.index}, 3);
  check.packed({"counts", args.counts}, 2);
  check.packed({"edges", args.edges}, 2);
  check.disjoint({"index", args.index}, {"counts", args.counts});
  check.disjoint({"index", args.index}, {"edges", args.edges});
  Cost cost;
  cost.elementwise = 2 * args.index.numel();
  cost.bytes_read = args.index.nbytes();
  cost.bytes_written = args.counts.nbytes() + args.edges.nbytes();
  ctx.cost().charge(cost);
  if (channels > 0) ctx.backend().histogram(ctx, args);
}

}  // namespace attnbench
