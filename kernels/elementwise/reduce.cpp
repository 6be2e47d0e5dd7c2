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

void reduce_axis(Context& ctx, const ReduceAxisArgs& args) {
  using Op = ReduceAxisArgs::Op;
  const ArgumentCheck check(ctx, "reduce_axis");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  if (args.y.dtype() != args.x.dtype()) check.dtype({"y", args.y}, {DType::f32});
  check.packed({"x", args.x}, args.x.rank());
  check.packed({"y", args.y}, args.y.rank());
  check.disjoint({"x", args.x}, {"y", args.y});
  const int rank = args.x.rank(), axis = args.axis < 0 ? args.axis + rank : args.axis;
  if (axis < 0 || axis >= rank)
    check.fail("axis " + std::to_string(args.axis) + " is outside 'x' " + args.x.shape().str());
  std::array<int64_t, Shape::kMaxRank> without{};
  Shape kept = args.x.shape();
  kept[axis] = 1;
  size_t n = 0;
  for (int i = 0; i < rank; ++i)
    if (i != axis) without[n++] = args.x.dim(i);
  if (!(args.y.shape() == kept))
    check.shape({"y", args.y}, Shape(std::span<const int64_t>(without.data(), n)));
  const bool sums = args.op == Op::sum || args.op == Op::squares || args.op == Op::norm;
  if (args.x.dim(axis) == 0 && args.y.numel() > 0 && !sums)
    check.fail("'x' " + args.x.shape().str() + " has no elements along axis " + std::to_string(axis));
  const bool spread = args.op == Op::variance || args.op == Op::deviation;
  const bool root = args.op == Op::norm || args.op == Op::deviation;
  Cost cost;
  cost.elementwise = args.x.numel() * (spread ? 3 : args.op == Op::squares || args.op == Op::norm ? 2 : 1);
  cost.special = root ? args.y.numel() : 0;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().reduce_axis(ctx, args);
}

}  // namespace attnbench
