#include "kernels/layout/layout.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void gather_rows(Context& ctx, const GatherRowsArgs& args) {
  const ArgumentCheck check(ctx, "gather_rows");
  check.present({{"x", args.x}, {"index", args.index}, {"y", args.y}});
  check.rank({"x", args.x}, 3, 3);
  check.rank({"index", args.index}, 1, 1);
  check.dtype({"index", args.index}, {DType::i32});
  check.packed({"index", args.index});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.shape({"y", args.y}, {args.x.dim(0), args.index.dim(0), args.x.dim(2)});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"index", args.index}, {"y", args.y});
  Cost cost;
  cost.bytes_read = args.y.nbytes() + args.index.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  // Also with an empty result: the backend checks the indices, which live on its device.
  if (args.index.numel() > 0) ctx.backend().gather_rows(ctx, args);
}

void transpose_copy(Context& ctx, const TransposeCopyArgs& args) {
  const ArgumentCheck check(ctx, "transpose_copy");
  check.present({{"x", args.x}, {"y", args.y}});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.disjoint({"x", args.x}, {"y", args.y});
  Cost cost;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().transpose_copy(ctx, args);
}

}  // namespace attnbench
