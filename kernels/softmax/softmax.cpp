#include "kernels/softmax/softmax.hpp"

#include <algorithm>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

/// Bytes of the keys that rows do not see.
int64_t hidden_bytes(const SoftmaxArgs& args) {
  const int64_t rows = args.x.dim(-2), n = args.x.dim(-1);
  const int64_t offset = std::clamp<int64_t>(args.causal_offset, -rows - 1, n);
  int64_t hidden = 0;
  for (int64_t i = 0; i < rows; ++i) hidden += n - std::clamp<int64_t>(i + offset + 1, 0, n);
  const int64_t elements = rows * n;
  return elements == 0 ? 0 : args.x.nbytes() / elements * hidden;
}

}  // namespace

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
  if (args.clear_hidden && (!args.causal || args.x.raw() == args.y.raw()))
    check.fail("clear_hidden wants a causal softmax and a y that is not x");
  const int64_t n = args.x.numel();
  Cost cost;
  cost.elementwise = 4 * n;
  cost.special = n;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes() + (args.clear_hidden ? hidden_bytes(args) : 0);
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().softmax(ctx, args);
}

}  // namespace attnbench
