#include "kernels/elementwise/reduce.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void reduce(Context& ctx, const ReduceArgs& args) {
  const ArgumentCheck check(ctx, "reduce");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16, DType::f64});
  if (args.y.dtype() != args.x.dtype()) check.dtype({"y", args.y}, {DType::f32, DType::f64});
  check.packed({"x", args.x}, args.x.rank());
  check.packed({"y", args.y}, args.y.rank());
  check.disjoint({"x", args.x}, {"y", args.y});
  if (args.weight) {
    check.present({{"weight", args.weight}});
    if (args.op != ReduceArgs::Op::sum) check.fail("the tensor 'weight' is for sums only");
    check.same_dtype({"x", args.x}, {"weight", args.weight});
    check.same_shape({"x", args.x}, {"weight", args.weight});
    check.packed({"weight", args.weight}, args.weight.rank());
    check.disjoint({"weight", args.weight}, {"y", args.y});
  }
  if (args.all) {
    if (args.y.numel() != 1 || args.y.rank() > 1)
      check.fail("the tensor 'y' has shape " + args.y.shape().str() + " but must have [] or [1]");
  } else {
    if (args.x.rank() < 1) check.fail("a scalar has no rows to reduce");
    check.shape({"y", args.y}, Shape(std::span<const int64_t>(args.x.shape().begin(), args.x.rank() - 1)));
  }
  const bool empty_rows = args.x.numel() == 0 && args.y.numel() > 0;
  if (empty_rows && args.op != ReduceArgs::Op::sum)
    check.fail("the mean or maximum of no elements is undefined; 'x' has shape " + args.x.shape().str());
  Cost cost;
  cost.elementwise = args.x.numel() * (args.weight ? 2 : 1);
  cost.bytes_read = args.x.nbytes() + (args.weight ? args.weight.nbytes() : 0);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().reduce(ctx, args);
}

}  // namespace attnbench
