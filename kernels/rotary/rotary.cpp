#include "kernels/rotary/rotary.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void rotary(Context& ctx, const RotaryArgs& args) {
  const ArgumentCheck check(ctx, "rotary");
  check.present({{"x", args.x}, {"cosine", args.cosine}, {"sine", args.sine}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.dtype({"cosine", args.cosine}, {DType::f32});
  check.dtype({"sine", args.sine}, {DType::f32});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 2, 4);
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  check.rank({"cosine", args.cosine}, 2, 2);
  check.same_shape({"cosine", args.cosine}, {"sine", args.sine});
  check.packed({"cosine", args.cosine});
  check.packed({"sine", args.sine});
  check.disjoint({"cosine", args.cosine}, {"y", args.y});
  check.disjoint({"sine", args.sine}, {"y", args.y});
  if (args.cosine.dim(0) != args.x.dim(-2))
    check.fail("the tensor 'cosine' has shape " + args.cosine.shape().str() +
               " but needs a row for each of " + std::to_string(args.x.dim(-2)) + " tokens");
  if (2 * args.cosine.dim(1) > args.x.dim(-1))
    check.fail("the tensor 'cosine' has shape " + args.cosine.shape().str() + ": " +
               std::to_string(args.cosine.dim(1)) + " pairs do not fit " + std::to_string(args.x.dim(-1)) +
               " channels");
  const int64_t n = args.x.numel(), width = args.x.dim(-1);
  Cost cost;
  cost.elementwise = width > 0 ? n / width * 2 * args.cosine.dim(1) * 3 : 0;
  cost.bytes_read = args.x.nbytes() + args.cosine.nbytes() + args.sine.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().rotary(ctx, args);
}

}  // namespace attnbench
