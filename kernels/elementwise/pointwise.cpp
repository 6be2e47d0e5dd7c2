#include "kernels/elementwise/pointwise.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {
namespace {

bool binary(PointwiseArgs::Op op) {
  using Op = PointwiseArgs::Op;
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::silu_mul || op == Op::sigmoid_mul;
}

/// One arithmetic step a multiply-add unit does, as opposed to a function evaluation.
bool simple(PointwiseArgs::Op op) {
  using Op = PointwiseArgs::Op;
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::affine || op == Op::clamp;
}

}  // namespace

void pointwise(Context& ctx, const PointwiseArgs& args) {
  const ArgumentCheck check(ctx, "pointwise");
  check.present({{"a", args.a}, {"y", args.y}});
  check.dtype({"a", args.a}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"a", args.a}, {"y", args.y});
  check.same_shape({"a", args.a}, {"y", args.y});
  check.packed({"a", args.a});
  check.packed({"y", args.y});
  check.same_or_disjoint({"a", args.a}, {"y", args.y});
  if (binary(args.op)) {
    check.present({{"b", args.b}});
    check.same_dtype({"a", args.a}, {"b", args.b});
    check.packed({"b", args.b});
    if (args.b.shape() == args.a.shape()) {
      check.same_or_disjoint({"b", args.b}, {"y", args.y});
    } else {
      if (args.a.rank() == 0 || !(args.b.shape() == Shape{args.a.dim(-1)}))
        check.fail("the tensor 'b' has shape " + args.b.shape().str() + " but must have " +
                   args.a.shape().str() + " or its last axis alone");
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
