#include "kernels/select/tree.hpp"

#include <algorithm>
#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"

namespace attnbench {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_sizes(const ArgumentCheck& check, int64_t block_q, int64_t block_k, int64_t window) {
  if (block_q < 1 || block_k < 1 || window < 0)
    check.fail("blocks are " + std::to_string(block_q) + " x " + std::to_string(block_k) + " and window " +
               std::to_string(window) + "; blocks hold one token or more, windows none or more");
}

/// Arguments of token lists are what they are to be, of whichever operator.
void check_lists(const ArgumentCheck& check, const TokenListsArgs& args) {
  const BlockList& l = args.lists;
  check.present({{"selected", args.selected},
                 {"count", args.count},
                 {"lists.begin", l.begin},
                 {"lists.count", l.count},
                 {"lists.index", l.index}});
  check_sizes(check, args.block_q, args.block_k, args.window);
  if (args.sinks < 0) check.fail("sinks is " + std::to_string(args.sinks) + "; it must be 0 or more");
  check.rank({"selected", args.selected}, 4, 4);
  const int64_t b = args.selected.dim(0), h = args.selected.dim(1), nq = ceil_div(args.n, args.block_q);
  const int64_t cells = args.selected.dim(3), entries = cells * args.block_k + args.window + args.sinks;
  check.shape({"selected", args.selected}, {b, h, nq, cells});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"count", args.count},
                                {"lists.begin", l.begin},
                                {"lists.count", l.count}})
    check.shape({name, t}, {b, h, nq});
  check.shape({"lists.index", l.index}, {b * h * nq * entries});
  if (l.index.dim(0) > INT32_MAX)
    throw Unsupported("token lists of " + std::to_string(l.index.dim(0)) +
                      " entries exceed the 2^31 - 1 of a list; use "
                      "larger query blocks");
  for (const Tensor* t : {&args.selected, &args.count, &l.begin, &l.count, &l.index}) {
    check.dtype({"selected, count and lists", *t}, {DType::i32});
    if (!t->contiguous()) check.fail("selected, count and lists must be contiguous");
  }
}
Cost lists_cost(const TokenListsArgs& args) {
  Cost cost;
  cost.bytes_read = args.selected.nbytes() + args.count.nbytes();
  cost.bytes_written = args.lists.begin.nbytes() + args.lists.count.nbytes();
  return cost;
}

}  // namespace

int64_t tree_search_dots(const TreeSearchArgs& a) {
  const int64_t n = a.q.dim(2), m = a.k.dim(2), cells = ceil_div(a.keep, a.block_k);
  int64_t dots = 0;
  for (int64_t first = 0; first < n; first += a.block_q) {
    const int64_t rows = std::min(a.block_q, n - first), t = a.causal ? m - n + first + rows : m;
    const int64_t range = std::max<int64_t>(0, t - a.window), blocks = ceil_div(range, a.block_k);
    if (range <= a.keep) continue;
    int64_t rounds = 0;
    while ((cells << rounds) < blocks) ++rounds;
    dots += rounds * 2 * cells * std::max<int64_t>(1, rows / a.stride_q) *
            std::max<int64_t>(1, a.block_k / a.stride_k);
  }
  return dots;
}

void tree_search(Context& ctx, const TreeSearchArgs& args) {
  const ArgumentCheck check(ctx, "tree_search");
  check.present({{"q", args.q}, {"k", args.k}, {"selected", args.selected}, {"count", args.count}});
  check.rank({"q", args.q}, 4, 4);
  check.rank({"k", args.k}, 4, 4);
  check.dtype({"q", args.q}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"q", args.q}, {"k", args.k});
  check.packed({"q", args.q});
  check.packed({"k", args.k});
  check_sizes(check, args.block_q, args.block_k, args.window);
  if (args.stride_q < 1 || args.stride_q > args.block_q || args.stride_k < 1 || args.stride_k > args.block_k)
    check.fail("strides are " + std::to_string(args.stride_q) + " and " + std::to_string(args.stride_k) +
               "; they lie in 1 .. block_q and 1 .. block_k");
  if (args.keep < 1) check.fail("keep is " + std::to_string(args.keep) + "; it must be 1 or more");
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), m = args.k.dim(2);
  if (args.k.dim(0) != b || args.k.dim(3) != args.q.dim(3) || args.k.dim(1) == 0 || h % args.k.dim(1) != 0)
    check.fail("q " + args.q.shape().str() + " and k " + args.k.shape().str() + " do not go together");
  if (args.causal && m < n)
    check.fail(std::to_string(n) + " causal queries need as many keys, not " + std::to_string(m));
  const int64_t nq = ceil_div(n, args.block_q);
  check.shape({"selected", args.selected}, {b, h, nq, ceil_div(args.keep, args.block_k)});
  check.shape({"count", args.count}, {b, h, nq});
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"selected", args.selected}, {"count", args.count}}) {
    check.dtype({name, t}, {DType::i32});
    if (!t.contiguous()) check.fail("'" + std::string(name) + "' must be contiguous");
  }
  Cost cost;
  const int64_t dots = b * h * tree_search_dots(args),
                row = args.q.dim(3) * static_cast<int64_t>(size_of(args.k.dtype()));
  cost.matmul = 2 * args.q.dim(3) * dots;
  // Of a long cache only the representatives are read.
  cost.bytes_read = args.q.nbytes() + std::min(args.k.nbytes(), dots * row);
  cost.bytes_written = args.selected.nbytes() + args.count.nbytes();
  ctx.cost().charge(cost);
  if (args.lists) {
    const TokenListsArgs lists = token_lists_of(args);
    check_lists(check, lists);
    ctx.cost().charge(lists_cost(lists));
  }
  if (args.count.numel() > 0) ctx.backend().tree_search(ctx, args);
}

TokenListsArgs token_lists_of(const TreeSearchArgs& args) {
  TokenListsArgs a;
  a.selected = args.selected, a.count = args.count, a.lists = args.lists;
  a.n = args.q.dim(2), a.m = args.k.dim(2), a.block_q = args.block_q, a.block_k = args.block_k;
  a.window = args.window, a.sinks = args.sinks, a.causal = args.causal;
  return a;
}

void token_lists(Context& ctx, const TokenListsArgs& args) {
  check_lists(ArgumentCheck(ctx, "token_lists"), args);
  ctx.cost().charge(lists_cost(args));
  if (args.count.numel() > 0) ctx.backend().token_lists(ctx, args);
}

}  // namespace attnbench
