#include "kernels/routing/routing.hpp"

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

void head_gates(Context& ctx, const HeadGatesArgs& args) {
  const ArgumentCheck check(ctx, "head_gates");
  check.present({{"gates", args.gates}});
  check.dtype({"gates", args.gates}, {DType::f32});
  check.rank({"gates", args.gates}, 2, 2);
  check.packed({"gates", args.gates});
  const int64_t rows = args.gates.dim(0), heads = args.gates.dim(1), shared = args.shared_heads,
                routed = heads - shared;
  if (shared < 0 || routed < 0)
    check.fail("shared_heads " + std::to_string(shared) + " must lie in [0, " + std::to_string(heads) + "]");
  if (args.keep < 0 || args.keep > routed)
    check.fail("keep " + std::to_string(args.keep) + " must lie in [0, " + std::to_string(routed) + "]");
  if (args.keep > 0 && !args.routed) check.fail("keep " + std::to_string(args.keep) + " needs routed scores");
  const auto scores = [&](const char* what, const Tensor& t, int64_t columns) {
    if (!t) return;
    check.present({{what, t}});
    check.dtype({what, t}, {DType::f32});
    check.shape({what, t}, {rows, columns});
    check.packed({what, t});
    check.disjoint({what, t}, {"gates", args.gates});
    if (args.selected) check.disjoint({what, t}, {"selected", args.selected});
  };
  scores("routed", args.routed, routed);
  scores("shared", args.shared, shared);
  scores("balance", args.balance, 2);
  if (args.selected) {
    check.present({{"selected", args.selected}});
    check.dtype({"selected", args.selected}, {DType::i32});
    check.shape({"selected", args.selected}, {rows, heads});
    check.packed({"selected", args.selected});
  }
  Cost c;
  for (const Tensor* t : {&args.routed, &args.shared, &args.balance}) {
    if (!*t) continue;
    c.bytes_read += t->nbytes();
    if (args.norm != HeadGatesArgs::Norm::binary) c.special += t->numel();
  }
  c.elementwise = rows * ((args.routed ? routed : 0) + 6 * heads);
  c.bytes_written = args.gates.nbytes() + (args.selected ? args.selected.nbytes() : 0);
  ctx.cost().charge(c);
  if (rows > 0 && heads > 0) ctx.backend().head_gates(ctx, args);
}

void pack_queries(Context& ctx, const PackQueriesArgs& args) {
  const ArgumentCheck check(ctx, "pack_queries");
  check.present({{"gates", args.gates},
                 {"index", args.index},
                 {"weight", args.weight},
                 {"row_begin", args.row_begin},
                 {"row_end", args.row_end},
                 {"count", args.count}});
  check.dtype({"gates", args.gates}, {DType::f32});
  check.rank({"gates", args.gates}, 3, 3);
  if (args.block_q < 1 || args.block_k < 1)
    check.fail("blocks hold one token or more, not " + std::to_string(args.block_q) + " and " +
               std::to_string(args.block_k));
  if (args.keys < 0 || args.keys > INT32_MAX)
    check.fail("keys " + std::to_string(args.keys) + " must lie in [0, 2^31)");
  const int64_t b = args.gates.dim(0), n = args.gates.dim(1), h = args.gates.dim(2);
  const auto output = [&](const char* what, const Tensor& t, DType dtype, const Shape& shape) {
    check.dtype({what, t}, {dtype});
    check.shape({what, t}, shape);
    check.packed({what, t}, shape.rank());
    check.disjoint({"gates", args.gates}, {what, t});
  };
  output("index", args.index, DType::i32, {b, h, n});
  output("weight", args.weight, DType::f32, {b, h, n});
  output("row_begin", args.row_begin, DType::i32, {b, h, n});
  output("row_end", args.row_end, DType::i32, {b, h, n});
  output("count", args.count, DType::i32, {b, h, (n + args.block_q - 1) / args.block_q});
  if (args.total) {
    check.present({{"total", args.total}});
    output("total", args.total, DType::i32, {b, h});
  }
  Cost c;
  c.bytes_read = args.gates.nbytes();
  for (const Tensor* t :
       {&args.index, &args.weight, &args.row_begin, &args.row_end, &args.count, &args.total})
    if (*t) c.bytes_written += t->nbytes();
  ctx.cost().charge(c);
  if (b * h > 0) ctx.backend().pack_queries(ctx, args);
}

void member_ranges(Context& ctx, const MemberRangesArgs& args) {
  const ArgumentCheck check(ctx, "member_ranges");
  check.present({{"index_q", args.index_q},
                 {"index_k", args.index_k},
                 {"row_begin", args.row_begin},
                 {"row_end", args.row_end},
                 {"weight", args.weight}});
  check.rank({"index_q", args.index_q}, 3, 3);
  check.rank({"index_k", args.index_k}, 3, 3);
  const int64_t b = args.index_q.dim(0), l = args.index_q.dim(1), wq = args.index_q.dim(2),
                wk = args.index_k.dim(2);
  if (args.memory < 0) check.fail("memory " + std::to_string(args.memory) + " must be 0 or more");
  const auto packed = [&](const char* what, const Tensor& t, DType dtype, const Shape& shape) {
    check.present({{what, t}});
    check.dtype({what, t}, {dtype});
    check.shape({what, t}, shape);
    check.packed({what, t}, shape.rank());
  };
  packed("index_q", args.index_q, DType::i32, {b, l, wq});
  packed("index_k", args.index_k, DType::i32, {b, l, wk});
  packed("row_begin", args.row_begin, DType::i32, {b, l, wq});
  packed("row_end", args.row_end, DType::i32, {b, l, wq});
  packed("weight", args.weight, DType::f32, {b, l, wq});
  if (args.bias) packed("bias", args.bias, DType::f32, {b, l, wq, args.memory + wk});
  Cost c;
  c.bytes_read = args.index_q.nbytes() + args.index_k.nbytes();
  for (const Tensor* t : {&args.row_begin, &args.row_end, &args.weight, &args.bias})
    if (*t) c.bytes_written += t->nbytes();
  ctx.cost().charge(c);
  if (b * l * wq > 0) ctx.backend().member_ranges(ctx, args);
}

}  // namespace attnbench
