#include "kernels/features/features.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {
namespace {

Shape with_last(const Shape& s, int64_t last) {
  Shape t = s;
  t[-1] = last;
  return t;
}

}  // namespace

void unit_rows(Context& ctx, const UnitRowsArgs& args) {
  const ArgumentCheck check(ctx, "unit_rows");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.dtype({"y", args.y}, {DType::f32, args.x.dtype()});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  if (!(args.floor >= 0))
    check.fail("the floor is " + std::to_string(args.floor) + "; it must not be negative");
  const int64_t n = args.x.numel(), c = args.x.dim(-1), rows = c > 0 ? n / c : 0;
  Cost cost;
  using Kind = UnitRowsArgs::Kind;
  cost.elementwise = (args.kind == Kind::scale ? 1 : args.like ? 5 : 3) * n;
  cost.special = args.kind == Kind::norm ? 2 * rows : 0;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  if (args.gain) {
    check.present({{"gain", args.gain}});
    check.dtype({"gain", args.gain}, {DType::f32});
    Shape one = args.x.shape();
    check.shape({"gain", args.gain},
                Shape(std::span<const int64_t>(one.begin(), static_cast<size_t>(one.rank() - 1))));
    check.disjoint({"gain", args.gain}, {"y", args.y});
    cost.bytes_read += args.gain.nbytes();
  }
  if (args.like) {
    if (args.kind != Kind::norm) check.fail("only rows of a given norm take 'like'");
    check.present({{"like", args.like}});
    check.same_dtype({"x", args.x}, {"like", args.like});
    check.same_shape({"x", args.x}, {"like", args.like});
    check.packed({"like", args.like});
    check.same_or_disjoint({"like", args.like}, {"y", args.y});
    cost.bytes_read += args.like.nbytes();
  }
  ctx.cost().charge(cost);
  if (n > 0) ctx.backend().unit_rows(ctx, args);
}

Cost feature_map_cost(FeatureMapArgs::Kind kind, int64_t rows, int64_t d, int64_t m) {
  using Kind = FeatureMapArgs::Kind;
  const int64_t f = kind == Kind::trigonometric ? 2 * m : m;
  Cost c;
  c.elementwise = rows * ((kind == Kind::relu ? 0 : 2 * d) + 2 * f);
  c.special = kind == Kind::relu ? 0 : rows * f;
  return c;
}

void feature_map(Context& ctx, const FeatureMapArgs& args) {
  const ArgumentCheck check(ctx, "feature_map");
  check.present({{"x", args.x}, {"p", args.p}, {"y", args.y}});
  for (const NamedTensor& t :
       {NamedTensor{"x", args.x}, NamedTensor{"p", args.p}, NamedTensor{"y", args.y}}) {
    check.dtype(t, {DType::f32});
    check.rank(t, 1, Shape::kMaxRank);
    check.packed(t);
  }
  const int64_t d = args.x.dim(-1), m = args.p.dim(-1);
  const bool twice = args.kind == FeatureMapArgs::Kind::trigonometric;
  if (args.p.rank() != args.x.rank())
    check.fail("'p' " + args.p.shape().str() + " and 'x' " + args.x.shape().str() + " differ in their axes");
  check.shape({"p", args.p}, with_last(args.x.shape(), m));
  check.shape({"y", args.y}, with_last(args.x.shape(), twice ? 2 * m : m));
  check.disjoint({"x", args.x}, {"y", args.y});
  if (twice)
    check.disjoint({"p", args.p}, {"y", args.y});
  else
    check.same_or_disjoint({"p", args.p}, {"y", args.y});
  const int64_t rows = m > 0 ? args.p.numel() / m : 0;
  Cost cost = feature_map_cost(args.kind, rows, d, m);
  cost.bytes_read = args.p.nbytes() + (args.kind == FeatureMapArgs::Kind::relu ? 0 : args.x.nbytes());
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().feature_map(ctx, args);
}

void divide_by_last(Context& ctx, const DivideByLastArgs& args) {
  const ArgumentCheck check(ctx, "divide_by_last");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  const int64_t e = args.x.dim(-1) - 1;
  if (e < 0) check.fail("'x' " + args.x.shape().str() + " has no last column");
  check.shape({"y", args.y}, with_last(args.x.shape(), e));
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x.slice(-1, 0, e)}, {"y", args.y});
  Cost cost;
  cost.special = args.y.numel();
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().divide_by_last(ctx, args);
}

}  // namespace attnbench
