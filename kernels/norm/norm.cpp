#include "kernels/norm/norm.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void normalize(Context& ctx, const NormArgs& args) {
  const ArgumentCheck check(ctx, "normalize");
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  const int64_t channels = args.x.dim(-1);
  for (const NamedTensor& t : {NamedTensor{"gain", args.gain}, NamedTensor{"offset", args.offset}}) {
    if (!t.tensor) continue;
    check.present({t});
    check.same_dtype({"x", args.x}, t);
    check.shape(t, {channels});
    check.packed(t);
    check.disjoint(t, {"y", args.y});
  }
  if (!(args.eps >= 0.0f)) check.fail("eps is " + std::to_string(args.eps) + "; it must be 0 or more");
  const int64_t n = args.x.numel(), rows = channels > 0 ? n / channels : 0;
  Cost cost;
  cost.elementwise = n * (args.kind == NormArgs::Kind::layer_norm ? 5 : 4);
  cost.special = 2 * rows;
  cost.bytes_read =
      args.x.nbytes() + (args.gain ? args.gain.nbytes() : 0) + (args.offset ? args.offset.nbytes() : 0);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().normalize(ctx, args);
}

}  // namespace attnbench
