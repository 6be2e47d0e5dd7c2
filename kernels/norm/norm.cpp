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
  if (args.kind == NormArgs::Kind::l2_norm && (args.gain || args.offset))
    check.fail("l2_norm has neither gain nor offset");
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

void group_norm(Context& ctx, const GroupNormArgs& args) {
  const ArgumentCheck check(ctx, "group_norm");
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, 2, Shape::kMaxRank);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x}, args.x.rank());
  check.packed({"y", args.y}, args.y.rank());
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  const int64_t batch = args.x.dim(0), channels = args.x.dim(args.channels_last ? -1 : 1);
  for (const NamedTensor& t : {NamedTensor{"gain", args.gain}, NamedTensor{"offset", args.offset},
                               NamedTensor{"mean", args.mean}, NamedTensor{"variance", args.variance}}) {
    if (!t.tensor) continue;
    check.present({t});
    if (t.tensor.dtype() != DType::f32) check.same_dtype({"x", args.x}, t);
    check.shape(t, {channels});
    check.packed(t);
    check.disjoint(t, {"y", args.y});
  }
  if (args.gain) check.same_dtype({"x", args.x}, {"gain", args.gain});
  if (args.offset) check.same_dtype({"x", args.x}, {"offset", args.offset});
  const bool given = static_cast<bool>(args.mean);
  if (given != static_cast<bool>(args.variance)) check.fail("mean and variance come together");
  if (given) check.same_dtype({"mean", args.mean}, {"variance", args.variance});
  if (!given && (args.groups < 1 || channels % args.groups != 0))
    check.fail("groups is " + std::to_string(args.groups) + "; it must divide " + std::to_string(channels) +
               " channels");
  if (!(args.eps >= 0.0f)) check.fail("eps is " + std::to_string(args.eps) + "; it must be 0 or more");
  const int64_t n = args.x.numel();
  Cost cost;
  cost.elementwise = n * (given ? 2 : 5);
  cost.special = n == 0 ? 0 : 2 * (given ? channels : batch * args.groups);
  cost.bytes_read = args.x.nbytes();
  for (const Tensor* t : {&args.gain, &args.offset, &args.mean, &args.variance})
    if (*t) cost.bytes_read += t->nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().group_norm(ctx, args);
}

}  // namespace attnbench
