#include "kernels/spans/spans.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

void check_packed(const ArgumentCheck& check, NamedTensor t, DType dtype, const Shape& shape) {
  check.present({t});
  check.dtype(t, {dtype});
  check.shape(t, shape);
  check.packed(t, shape.rank());
}

/// Candidates of all queries, from tensors that may live on a device.
int64_t count_candidates(Context& ctx, const SearchSpansArgs& a) {
  const auto host = [&ctx](const Tensor& t) {
    std::vector<int32_t> v(static_cast<size_t>(t.numel()));
    if (!v.empty())
      ctx.backend().copy_bytes(v.data(), DeviceKind::cpu, t.raw(), t.device(), v.size() * sizeof(int32_t));
    return v;
  };
  if (ctx.device() != DeviceKind::cpu) ctx.backend().synchronize();
  const std::vector<int32_t> position = host(a.position), stripes = host(a.stripes);
  const int64_t m = a.k.dim(2);
  int64_t all = 0;
  for (const int64_t t : position) {
    // Keys in [0, M): t + 1 - M < e <= t + 1.
    const auto from = std::lower_bound(stripes.begin(), stripes.end(), t + 2 - m);
    all += std::max<int64_t>(0, std::upper_bound(stripes.begin(), stripes.end(), t + 1) - from);
  }
  return all;
}

}  // namespace

void search_spans(Context& ctx, const SearchSpansArgs& args) {
  const ArgumentCheck check(ctx, "search_spans");
  check.present({{"q", args.q}, {"k", args.k}});
  check.rank({"q", args.q}, 4, 4);
  check.rank({"k", args.k}, 4, 4);
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"q", args.q}, {"k", args.k});
  check.packed({"q", args.q});
  check.packed({"k", args.k});
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3), m = args.k.dim(2);
  if (args.k.dim(0) != b || args.k.dim(3) != d || args.k.dim(1) == 0 || h % args.k.dim(1) != 0)
    check.fail("q " + args.q.shape().str() + " and k " + args.k.shape().str() + " do not go together");
  check_packed(check, {"position", args.position}, DType::i32, {n});
  check.present({{"stripes", args.stripes}, {"anchor", args.anchor}});
  check_packed(check, {"stripes", args.stripes}, DType::i32, {args.stripes.numel()});
  check_packed(check, {"before", args.before}, DType::i32, {m + 1});
  check_packed(check, {"after", args.after}, DType::i32, {m + 1});
  if (args.key_valid) check_packed(check, {"key_valid", args.key_valid}, DType::u8, {b, m});
  if (args.first) check_packed(check, {"first", args.first}, DType::i32, {b});
  if (args.window < 0) check.fail("window " + std::to_string(args.window) + " must be 0 or more");
  check.rank({"anchor", args.anchor}, 4, 4);
  const Shape slots{b, h, n, args.anchor.dim(3)};
  if (slots[3] < 1) check.fail("anchor " + args.anchor.shape().str() + " has no slot");
  check_packed(check, {"anchor", args.anchor}, DType::i32, slots);
  check_packed(check, {"start", args.start}, DType::i32, slots);
  check_packed(check, {"end", args.end}, DType::i32, slots);
  check_packed(check, {"score", args.score}, DType::f32, slots);
  Cost c;
  const int64_t each = args.candidates >= 0 ? args.candidates
                       : ctx.cost().exact() ? count_candidates(ctx, args)
                                            : 0;
  c.matmul = 2 * d * b * h * each;
  c.elementwise = b * h * each;
  c.bytes_read = args.q.nbytes() +
                 std::min(args.k.nbytes(), b * h * each * d * static_cast<int64_t>(size_of(args.k.dtype())));
  for (const Tensor* t :
       {&args.position, &args.stripes, &args.before, &args.after, &args.key_valid, &args.first})
    if (*t) c.bytes_read += t->nbytes();
  c.bytes_written = 4 * args.anchor.nbytes();
  ctx.cost().charge(c);
  if (args.anchor.numel() > 0) ctx.backend().search_spans(ctx, args);
}

void pack_spans(Context& ctx, const PackSpansArgs& args) {
  const ArgumentCheck check(ctx, "pack_spans");
  check.present({{"order", args.order}});
  check.rank({"order", args.order}, 3, 3);
  if (args.block_q < 1 || args.block_k < 1 || args.per_query < 1)
    check.fail("blocks " + std::to_string(args.block_q) + " and " + std::to_string(args.block_k) +
               " and per_query " + std::to_string(args.per_query) + " must be 1 or more");
  const Shape& rows = args.order.shape();
  const Shape tiles{rows[0], rows[1], (rows[2] + args.block_q - 1) / args.block_q};
  Cost c;
  const auto column = [&](const char* what, const Tensor& t, const Shape& shape) {
    check_packed(check, {what, t}, DType::i32, shape);
  };
  column("order", args.order, rows), column("start", args.start, rows), column("end", args.end, rows);
  column("query", args.query, rows), column("place", args.place, rows);
  column("row_begin", args.row_begin, rows), column("row_end", args.row_end, rows);
  column("first_block", args.first_block, tiles), column("blocks", args.blocks, tiles);
  c.bytes_read = 3 * args.order.nbytes();
  c.bytes_written = 4 * args.order.nbytes() + 2 * args.blocks.nbytes();
  ctx.cost().charge(c);
  if (args.order.numel() > 0) ctx.backend().pack_spans(ctx, args);
}

void merge_spans(Context& ctx, const MergeSpansArgs& args) {
  const ArgumentCheck check(ctx, "merge_spans");
  check.present({{"spans", args.spans}, {"score", args.score}, {"o", args.o}});
  check.rank({"o", args.o}, 4, 4);
  check.rank({"score", args.score}, 4, 4);
  check.dtype({"o", args.o}, {DType::f32, DType::bf16, DType::f16});
  const int64_t b = args.o.dim(0), h = args.o.dim(1), n = args.o.dim(2), e = args.o.dim(3),
                slots = args.score.dim(3), p = n * slots;
  check.same_dtype({"spans", args.spans}, {"o", args.o});
  check.shape({"spans", args.spans}, {b, h, p, e});
  check.packed({"spans", args.spans});
  check.packed({"o", args.o});
  check.disjoint({"spans", args.spans}, {"o", args.o});
  check_packed(check, {"score", args.score}, DType::f32, {b, h, n, slots});
  check_packed(check, {"lse", args.lse}, DType::f32, {b, h, p});
  check_packed(check, {"place", args.place}, DType::i32, {b, h, p});
  if (static_cast<bool>(args.shared) != static_cast<bool>(args.shared_lse))
    check.fail("shared and shared_lse come together");
  Cost c;
  if (args.shared) {
    check.present({{"shared", args.shared}});
    check.same_dtype({"shared", args.shared}, {"o", args.o});
    check.same_shape({"shared", args.shared}, {"o", args.o});
    check.packed({"shared", args.shared});
    check.disjoint({"shared", args.shared}, {"o", args.o});
    check_packed(check, {"shared_lse", args.shared_lse}, DType::f32, {b, h, n});
    c.bytes_read += args.shared.nbytes() + args.shared_lse.nbytes();
  }
  c.special = 4 * b * h * p;
  c.elementwise = (2 * e + 4) * b * h * p;
  c.bytes_read += args.spans.nbytes() + args.lse.nbytes() + args.place.nbytes() + args.score.nbytes();
  c.bytes_written = args.o.nbytes();
  ctx.cost().charge(c);
  if (b * h * n > 0) ctx.backend().merge_spans(ctx, args);
}

}  // namespace attnbench
