#include "kernels/softmax/softmax.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void softmax(Context& ctx, const SoftmaxArgs& args) {
  const ArgumentCheck check(ctx, "softmax");
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, args.causal ? 2 : 1, Shape::kMaxRank);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  const int64_t n = args.x.numel();
  Cost cost;
  cost.elementwise = 4 * n;
  cost.special = n;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().softmax(ctx, args);
}

}  // namespace attnbench
