#include "kernels/select/chunks.hpp"

#include <algorithm>
#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

void check_contiguous(const ArgumentCheck& check, const char* name, const Tensor& t) {
  if (!t.contiguous()) check.fail("'" + std::string(name) + "' must be contiguous");
}

/// Pairs j <= r, j >= r - window of n tokens.
int64_t visible_pairs(int64_t n, int64_t window) {
  if (window < 0 || window >= n) return n * (n + 1) / 2;
  return (window + 1) * (window + 2) / 2 + (n - window - 1) * (window + 1);
}

}  // namespace

void gap_ratios(Context& ctx, const GapRatiosArgs& args) {
  const ArgumentCheck check(ctx, "gap_ratios");
  check.present({{"q", args.q}, {"k", args.k}, {"lse", args.lse}, {"score", args.score}});
  check.rank({"q", args.q}, 4, 4);
  check.rank({"k", args.k}, 4, 4);
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"q", args.q}, {"k", args.k});
  check.packed({"q", args.q});
  check.packed({"k", args.k});
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3);
  const int64_t kv = args.k.dim(1);
  if (kv == 0 || h % kv != 0)
    check.fail("the " + std::to_string(h) + " heads of q are no multiple of the " + std::to_string(kv) +
               " of k");
  check.shape({"k", args.k}, {b, kv, n, d});
  check.dtype({"lse", args.lse}, {DType::f32});
  check.dtype({"score", args.score}, {DType::f32});
  check.shape({"lse", args.lse}, {b, h, n});
  check.shape({"score", args.score}, {b, n});
  check_contiguous(check, "lse", args.lse);
  check_contiguous(check, "score", args.score);
  if (args.w < 1) check.fail("w is " + std::to_string(args.w) + "; it must be 1 or more");
  if (args.window < -1) check.fail("window is " + std::to_string(args.window) + "; -1 stands for none");
  if (args.reach < 0 || (args.reach > 0 && args.reach < 2 * args.w))
    check.fail("reach is " + std::to_string(args.reach) +
               "; it must be 0 (none) or 2 w = " + std::to_string(2 * args.w) + " at least");
  const int64_t pairs = b * h * visible_pairs(n, args.window);
  Cost cost;
  cost.matmul = 2 * d * pairs;
  cost.special = pairs;
  cost.elementwise = 2 * pairs + 4 * args.w * b * n;
  cost.bytes_read = args.q.nbytes() + args.k.nbytes() + args.lse.nbytes();
  cost.bytes_written = args.score.nbytes();
  ctx.cost().charge(cost);
  if (args.score.numel() > 0) ctx.backend().gap_ratios(ctx, args);
}

void pick_spaced(Context& ctx, const PickSpacedArgs& args) {
  const ArgumentCheck check(ctx, "pick_spaced");
  check.present({{"score", args.score}, {"order", args.order}, {"flag", args.flag}});
  check.rank({"score", args.score}, 1, Shape::kMaxRank);
  check.dtype({"score", args.score}, {DType::f32});
  check.dtype({"order", args.order}, {DType::i32});
  check.dtype({"flag", args.flag}, {DType::u8});
  check.same_shape({"score", args.score}, {"order", args.order});
  check.same_shape({"score", args.score}, {"flag", args.flag});
  check.packed({"score", args.score});
  check.packed({"order", args.order});
  check.packed({"flag", args.flag});
  check.disjoint({"score", args.score}, {"flag", args.flag});
  check.disjoint({"order", args.order}, {"flag", args.flag});
  const int64_t m = args.score.dim(-1);
  if (m > INT32_MAX) check.fail("rows of " + std::to_string(m) + " columns exceed 2^31 - 1");
  if (args.spacing < 0) check.fail("spacing is " + std::to_string(args.spacing) + "; it must be 0 or more");
  if (args.forced < -1 || (args.forced >= m && m > 0))
    check.fail("the forced column " + std::to_string(args.forced) + " lies outside of the " +
               std::to_string(m) + " columns");
  Cost cost;
  cost.elementwise = args.score.numel();
  cost.bytes_read = args.score.nbytes() + args.order.nbytes();
  cost.bytes_written = args.flag.nbytes();
  ctx.cost().charge(cost);
  if (args.flag.numel() > 0) ctx.backend().pick_spaced(ctx, args);
}

void chunk_lists(Context& ctx, const ChunkListsArgs& args) {
  const ArgumentCheck check(ctx, "chunk_lists");
  const BlockList& l = args.lists;
  check.present({{"order", args.order},
                 {"bounds", args.bounds},
                 {"tokens", args.tokens},
                 {"lists.begin", l.begin},
                 {"lists.count", l.count},
                 {"lists.index", l.index}});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"order", args.order},
                                {"bounds", args.bounds},
                                {"tokens", args.tokens},
                                {"lists.begin", l.begin},
                                {"lists.count", l.count},
                                {"lists.index", l.index}}) {
    check.dtype({name, t}, {DType::i32});
    check_contiguous(check, name, t);
  }
  check.rank({"order", args.order}, 3, 3);
  check.rank({"tokens", args.tokens}, 3, 3);
  check.rank({"bounds", args.bounds}, 2, 2);
  const int64_t b = args.order.dim(0), q = args.order.dim(1), c = args.order.dim(2), k = args.tokens.dim(2);
  if ((args.bounds.dim(0) != 1 && args.bounds.dim(0) != b) || args.bounds.dim(1) != c + 1)
    check.fail("bounds have shape " + args.bounds.shape().str() + " but must be [1 or " + std::to_string(b) +
               ", " + std::to_string(c + 1) + "]");
  if (args.block_q < 1 || args.n < 1 || args.first < 0 || args.rows < 0 || args.window < 0 ||
      args.recent < 0 || args.leading < 0)
    check.fail("n " + std::to_string(args.n) + " and block_q " + std::to_string(args.block_q) +
               " must be 1 or more, first " + std::to_string(args.first) + ", rows " +
               std::to_string(args.rows) + ", window " + std::to_string(args.window) + ", recent " +
               std::to_string(args.recent) + " and leading " + std::to_string(args.leading) + " 0 or more");
  if (args.first + args.rows > args.n)
    check.fail("rows end at position " + std::to_string(args.first + args.rows) + ", behind the " +
               std::to_string(args.n) + " keys");
  if (q != (args.rows + args.block_q - 1) / args.block_q)
    check.fail("order has " + std::to_string(q) + " query blocks for " + std::to_string(args.rows) +
               " rows in blocks of " + std::to_string(args.block_q));
  if (k > args.n || (args.window > 0 && k > args.window))
    check.fail(std::to_string(k) + " tokens a block are more than keys or window hold");
  check.shape({"tokens", args.tokens}, {b, q, k});
  check.shape({"lists.begin", l.begin}, {b, 1, q});
  check.shape({"lists.count", l.count}, {b, 1, q});
  check.shape({"lists.index", l.index}, {b * q * k});
  if (b * q * k > INT32_MAX)
    throw Unsupported("token lists of " + std::to_string(b * q * k) +
                      " entries exceed the 2^31 - 1 of a list; use larger query blocks");
  Cost cost;
  cost.bytes_read = args.order.nbytes() + args.bounds.nbytes();
  cost.bytes_written = args.tokens.nbytes() + l.begin.nbytes() + l.count.nbytes();
  ctx.cost().charge(cost);
  if (args.lists.count.numel() > 0) ctx.backend().chunk_lists(ctx, args);
}

}  // namespace attnbench
