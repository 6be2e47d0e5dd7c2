#include "kernels/select/patterns.hpp"

#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

int64_t bytes_of(const Tensor& t) { return t ? t.nbytes() : 0; }

Shape head_of(const Shape& s, int axes) {
  return Shape(std::span<const int64_t>(s.begin(), static_cast<size_t>(s.rank() - axes)));
}
Shape extended(const Shape& s, std::initializer_list<int64_t> more) {
  std::vector<int64_t> dims(s.begin(), s.end());
  dims.insert(dims.end(), more.begin(), more.end());
  return Shape(dims);
}

void check_contiguous(const ArgumentCheck& check, const char* name, const Tensor& t) {
  if (!t.contiguous()) check.fail("'" + std::string(name) + "' must be contiguous");
}

}  // namespace

void line_sums(Context& ctx, const LineSumsArgs& args) {
  const ArgumentCheck check(ctx, "line_sums");
  check.present({{"vertical", args.vertical}, {"slash", args.slash}});
  Shape lines;
  Cost cost;
  int64_t rows = 0;
  if (args.x) {
    check.present({{"x", args.x}});
    if (args.q || args.k) check.fail("'x' and 'q' or 'k' are given; the map is either x or made of q and k");
    check.rank({"x", args.x}, 2, Shape::kMaxRank);
    check.dtype({"x", args.x}, {DType::f32});
    check.packed({"x", args.x});
    lines = extended(head_of(args.x.shape(), 2), {args.x.dim(-1)});
    rows = args.x.dim(-2);
    cost.bytes_read = args.x.nbytes();
  } else {
    check.present({{"q", args.q}, {"k", args.k}});
    check.rank({"q", args.q}, 4, 4);
    check.rank({"k", args.k}, 4, 4);
    check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
    check.same_dtype({"q", args.q}, {"k", args.k});
    check.packed({"q", args.q});
    check.packed({"k", args.k});
    const int64_t heads = args.q.dim(1), kv = args.k.dim(1), n = args.k.dim(2);
    if (args.q.dim(0) != args.k.dim(0) || args.q.dim(3) != args.k.dim(3) || kv < 1 || heads % kv != 0)
      check.fail("'q' " + args.q.shape().str() + " and 'k' " + args.k.shape().str() +
                 " differ in batch or channels, or the heads of 'q' are no multiple of those of 'k'");
    rows = args.q.dim(2);
    if (rows > n)
      check.fail("'q' has " + std::to_string(rows) + " rows, more than the " + std::to_string(n) + " of 'k'");
    lines = Shape{args.q.dim(0), heads, n};
    const int64_t map = lines.numel() * rows;
    cost.matmul = 2 * map * args.q.dim(3);
    cost.special = map;
    cost.elementwise = 4 * map;
    cost.bytes_read = args.q.nbytes() + args.k.nbytes();
  }
  const auto output = [&](const char* name, const Tensor& t) {
    check.dtype({name, t}, {DType::f32});
    check.shape({name, t}, lines);
    check_contiguous(check, name, t);
    for (const auto& [source, from] :
         {std::pair<const char*, const Tensor&>{"x", args.x}, {"q", args.q}, {"k", args.k}})
      if (from) check.disjoint({source, from}, {name, t});
  };
  output("vertical", args.vertical);
  output("slash", args.slash);
  if (rows < 1)
    check.fail("'" + std::string(args.x ? "x" : "q") + "' " + (args.x ? args.x : args.q).shape().str() +
               " has no rows to average");
  cost.elementwise += 2 * lines.numel() * rows;
  cost.bytes_written = args.vertical.nbytes() + args.slash.nbytes();
  ctx.cost().charge(cost);
  if (lines.numel() > 0) ctx.backend().line_sums(ctx, args);
}

void cell_sums(Context& ctx, const CellSumsArgs& args) {
  const ArgumentCheck check(ctx, "cell_sums");
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, 2, Shape::kMaxRank);
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  if (args.rows < 1 || args.columns < 1)
    check.fail("cells are " + std::to_string(args.rows) + " x " + std::to_string(args.columns) +
               "; both must be 1 or more");
  check.shape({"y", args.y},
              extended(head_of(args.x.shape(), 2), {(args.x.dim(-2) + args.rows - 1) / args.rows,
                                                    (args.x.dim(-1) + args.columns - 1) / args.columns}));
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.disjoint({"x", args.x}, {"y", args.y});
  if (args.causal && !args.softmax) check.fail("causal is set without softmax; causal_cells cuts sums");
  Cost cost;
  cost.elementwise = (args.softmax ? 5 : 1) * args.x.numel();
  cost.special = args.softmax ? args.x.numel() : 0;
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().cell_sums(ctx, args);
}

void js_distance(Context& ctx, const DistanceArgs& args) {
  const ArgumentCheck check(ctx, "js_distance");
  check.present({{"a", args.a}, {"b", args.b}, {"distance", args.distance}});
  check.rank({"a", args.a}, 1, Shape::kMaxRank);
  check.dtype({"a", args.a}, {DType::f32});
  check.dtype({"b", args.b}, {DType::f32});
  check.same_shape({"a", args.a}, {"b", args.b});
  check.packed({"a", args.a});
  check.packed({"b", args.b});
  const Shape rows = head_of(args.a.shape(), 1);
  check.dtype({"distance", args.distance}, {DType::f32});
  check.shape({"distance", args.distance}, rows);
  check_contiguous(check, "distance", args.distance);
  if (args.below) {
    check.present({{"below", args.below}});
    check.dtype({"below", args.below}, {DType::i32});
    check.shape({"below", args.below}, rows);
    check_contiguous(check, "below", args.below);
  }
  Cost cost;
  cost.special = 2 * args.a.numel() + rows.numel();
  cost.elementwise = 6 * args.a.numel();
  cost.bytes_read = args.a.nbytes() + args.b.nbytes();
  cost.bytes_written = args.distance.nbytes() + bytes_of(args.below);
  ctx.cost().charge(cost);
  if (rows.numel() > 0) ctx.backend().js_distance(ctx, args);
}

void count_rule(Context& ctx, const CountRuleArgs& args) {
  const ArgumentCheck check(ctx, "count_rule");
  check.present({{"y", args.y}});
  check.dtype({"y", args.y}, {DType::i32});
  check_contiguous(check, "y", args.y);
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"x", args.x}, {"flag", args.flag}}) {
    if (!t) continue;
    check.present({{name, t}});
    check.dtype({name, t}, {DType::i32});
    check.same_shape({name, t}, {"y", args.y});
    check_contiguous(check, name, t);
  }
  if (args.divisor < 1) check.fail("divisor is " + std::to_string(args.divisor) + "; it must be 1 or more");
  if (args.low > args.high)
    check.fail("low " + std::to_string(args.low) + " is above high " + std::to_string(args.high));
  Cost cost;
  cost.elementwise = args.y.numel();
  cost.bytes_read = bytes_of(args.x) + bytes_of(args.flag);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().count_rule(ctx, args);
}

void mask_values(Context& ctx, const MaskValuesArgs& args) {
  const ArgumentCheck check(ctx, "mask_values");
  check.present({{"x", args.x}, {"first", args.first}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  check.same_shape({"x", args.x}, {"y", args.y});
  check_contiguous(check, "x", args.x);
  check_contiguous(check, "y", args.y);
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"first", args.first}, {"second", args.second}}) {
    if (!t) continue;
    check.present({{name, t}});
    check.dtype({name, t}, {DType::u8, DType::i32});
    check.same_shape({name, t}, {"x", args.x});
    check_contiguous(check, name, t);
    check.disjoint({name, t}, {"y", args.y});
  }
  Cost cost;
  cost.bytes_read = args.x.nbytes() + args.first.nbytes() + bytes_of(args.second);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().mask_values(ctx, args);
}

void block_affine(Context& ctx, const BlockAffineArgs& args) {
  const ArgumentCheck check(ctx, "block_affine");
  check.present({{"x", args.x}, {"factor", args.factor}, {"add", args.add}, {"y", args.y}});
  check.rank({"x", args.x}, 4, 4);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  if (args.block < 1) check.fail("block is " + std::to_string(args.block) + "; it must be 1 or more");
  const int64_t b = args.x.dim(0), h = args.x.dim(1), s = (args.x.dim(2) + args.block - 1) / args.block;
  check.dtype({"factor", args.factor}, {DType::f32});
  check.dtype({"add", args.add}, {DType::f32});
  check.shape({"factor", args.factor}, {b, h, s});
  check.shape({"add", args.add}, {b, h, s, args.x.dim(3)});
  check.packed({"factor", args.factor});
  check.packed({"add", args.add});
  Cost cost;
  cost.elementwise = 2 * args.x.numel();
  cost.bytes_read = args.x.nbytes() + args.factor.nbytes() + args.add.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().block_affine(ctx, args);
}

}  // namespace attnbench
