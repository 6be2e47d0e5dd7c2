#include "kernels/elementwise/pointwise.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {
namespace {

/// One arithmetic step a multiply-add unit does, as opposed to a function evaluation.
bool simple(PointwiseArgs::Op op) {
  using Op = PointwiseArgs::Op;
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::affine || op == Op::clamp ||
         op == Op::max || op == Op::min || op == Op::abs || op == Op::square;
}

/// y's rank with extents that equal y's or are 1.
bool broadcasts(const Shape& t, const Shape& y) {
  if (t.rank() != y.rank()) return false;
  for (int i = 0; i < t.rank(); ++i)
    if (t[i] != y[i] && t[i] != 1) return false;
  return true;
}

}  // namespace

void pointwise(Context& ctx, const PointwiseArgs& args) {
  const ArgumentCheck check(ctx, "pointwise");
  check.present({{"a", args.a}, {"y", args.y}});
  check.dtype({"a", args.a}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"a", args.a}, {"y", args.y});
  check.packed({"a", args.a});
  check.packed({"y", args.y});
  if (args.a.shape() == args.y.shape()) {
    check.same_or_disjoint({"a", args.a}, {"y", args.y});
  } else {
    if (!broadcasts(args.a.shape(), args.y.shape())) check.same_shape({"a", args.a}, {"y", args.y});
    check.disjoint({"a", args.a}, {"y", args.y});
  }
  if (is_binary(args.op)) {
    check.present({{"b", args.b}});
    check.same_dtype({"a", args.a}, {"b", args.b});
    check.packed({"b", args.b});
    if (args.b.shape() == args.y.shape()) {
      check.same_or_disjoint({"b", args.b}, {"y", args.y});
    } else {
      const bool row = args.y.rank() > 0 && args.b.shape() == Shape{args.y.dim(-1)};
      if (!row && !broadcasts(args.b.shape(), args.y.shape()))
        check.fail("the tensor 'b' has shape " + args.b.shape().str() + " but must have " +
                   args.y.shape().str() + ", its last axis alone, or extents of 1 in place of others");
      check.disjoint({"b", args.b}, {"y", args.y});
    }
  } else if (args.b) {
    check.fail("the tensor 'b' is given to a function of one argument");
  }
  const int64_t n = args.y.numel();
  Cost cost;
  (simple(args.op) ? cost.elementwise : cost.special) = n;
  cost.bytes_read = args.a.nbytes() + (args.b ? args.b.nbytes() : 0);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().pointwise(ctx, args);
}

}  // namespace attnbench
