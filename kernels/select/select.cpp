// What every backend shares: argument checks, cost, dispatch.
#include "kernels/select/select.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/select/geometry.hpp"

namespace attnbench {

namespace {

Shape without_last(const Shape& s) {
  return Shape(std::span<const int64_t>(s.begin(), static_cast<size_t>(s.rank() - 1)));
}
Shape with_last(const Shape& s, int64_t last) {
  Shape t = s;
  t[-1] = last;
  return t;
}

int64_t log2_ceil(int64_t n) {
  return n <= 1 ? 0 : static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

int64_t bytes_of(const Tensor& t) { return t ? t.nbytes() : 0; }

void check_indexable(const ArgumentCheck& check, int64_t m, const char* what) {
  if (m > INT32_MAX)
    check.fail(std::string(what) + " of " + std::to_string(m) + " elements exceed i32 indices");
}

/// Scores [..., M] and what may be seen of them.
void check_rows(const ArgumentCheck& check, const Tensor& x, const Visible& v) {
  check.present({{"x", x}});
  check.rank({"x", x}, v.causal ? 2 : 1, Shape::kMaxRank);
  check.packed({"x", x});
  check_indexable(check, x.dim(-1), "rows");
  if (v.limit) {
    check.present({{"visible.limit", v.limit}});
    check.dtype({"visible.limit", v.limit}, {DType::i32});
    check.shape({"visible.limit", v.limit}, without_last(x.shape()));
  }
}

void check_output(const ArgumentCheck& check, const char* name, const Tensor& t, DType dtype,
                  const Shape& shape, const Tensor& x) {
  if (!t) return;
  check.present({{name, t}});
  check.dtype({name, t}, {dtype});
  check.shape({name, t}, shape);
  check.packed({name, t});
  check.disjoint({"x", x}, {name, t});
}

}  // namespace

void top_k(Context& ctx, const TopKArgs& args) {
  const ArgumentCheck check(ctx, "top_k");
  check_rows(check, args.x, args.visible);
  check.dtype({"x", args.x}, {DType::f32});
  if (!args.index && !args.flag) check.fail("one of index and flag must be given");
  if (args.value && !args.index) check.fail("value needs index beside it");
  const int64_t k = args.index ? args.index.dim(-1) : args.k;
  if (k < 0) check.fail("k is " + std::to_string(k) + "; it must be 0 or more");
  const Shape chosen = with_last(args.x.shape(), k);
  check_output(check, "index", args.index, DType::i32, chosen, args.x);
  check_output(check, "value", args.value, DType::f32, chosen, args.x);
  check_output(check, "flag", args.flag, DType::u8, args.x.shape(), args.x);
  if (args.count) {
    check.present({{"count", args.count}});
    check.dtype({"count", args.count}, {DType::i32});
    check.shape({"count", args.count}, without_last(args.x.shape()));
  }
  Cost cost;
  cost.elementwise = args.x.numel();
  cost.bytes_read = bytes_of(args.x) + bytes_of(args.count) + bytes_of(args.visible.limit);
  cost.bytes_written = bytes_of(args.index) + bytes_of(args.value) + bytes_of(args.flag);
  ctx.cost().charge(cost);
  if (without_last(args.x.shape()).numel() == 0 || (args.x.dim(-1) == 0 && k == 0)) return;
  TopKArgs call = args;
  call.k = k;
  ctx.backend().top_k(ctx, call);
}

namespace {

void arg_best(Context& ctx, const char* op, const Tensor& x, const Tensor& index, bool largest) {
  const ArgumentCheck check(ctx, op);
  check.present({{"x", x}, {"index", index}});
  check.rank({"x", x}, 1, Shape::kMaxRank);
  check.shape({"index", index}, without_last(x.shape()));
  TopKArgs args;
  args.x = x;
  args.index = index.reshape(with_last(x.shape(), 1));
  args.largest = largest;
  top_k(ctx, args);
}

}  // namespace

void arg_max(Context& ctx, const Tensor& x, const Tensor& index) { arg_best(ctx, "arg_max", x, index, true); }
void arg_min(Context& ctx, const Tensor& x, const Tensor& index) {
  arg_best(ctx, "arg_min", x, index, false);
}

void argsort(Context& ctx, const ArgsortArgs& args) {
  const ArgumentCheck check(ctx, "argsort");
  check_rows(check, args.x, {});
  check.dtype({"x", args.x}, {DType::f32, DType::i32});
  check.present({{"index", args.index}});
  check_output(check, "index", args.index, DType::i32, args.x.shape(), args.x);
  check_output(check, "value", args.value, args.x.dtype(), args.x.shape(), args.x);
  Cost cost;
  cost.elementwise = args.x.numel() * log2_ceil(args.x.dim(-1));
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = bytes_of(args.index) + bytes_of(args.value);
  ctx.cost().charge(cost);
  if (args.x.numel() > 0) ctx.backend().argsort(ctx, args);
}

void top_p(Context& ctx, const TopPArgs& args) {
  const ArgumentCheck check(ctx, "top_p");
  check_rows(check, args.x, args.visible);
  check.dtype({"x", args.x}, {DType::f32});
  if (!args.count && !args.flag) check.fail("one of count and flag must be given");
  check_output(check, "count", args.count, DType::i32, without_last(args.x.shape()), args.x);
  if (args.count && !args.count.contiguous()) check.fail("count must be contiguous");
  check_output(check, "flag", args.flag, DType::u8, args.x.shape(), args.x);
  if (args.lag < 0 || args.lag > 2)
    check.fail("lag is " + std::to_string(args.lag) + "; it must be 0, 1 or 2");
  if (args.min_keep < 0 || args.forced_first < 0)
    check.fail("min_keep and forced_first must be 0 or more, not " + std::to_string(args.min_keep) + " and " +
               std::to_string(args.forced_first));
  if (args.forced_diagonal && args.x.rank() < 2) check.fail("a diagonal needs rows and columns in x");
  Cost cost;
  cost.elementwise = args.x.numel() * (log2_ceil(args.x.dim(-1)) + 1);
  cost.bytes_read = args.x.nbytes() + bytes_of(args.visible.limit);
  cost.bytes_written = bytes_of(args.count) + bytes_of(args.flag);
  ctx.cost().charge(cost);
  if (without_last(args.x.shape()).numel() > 0) ctx.backend().top_p(ctx, args);
}

void prefix_sum(Context& ctx, const PrefixSumArgs& args) {
  const ArgumentCheck check(ctx, "prefix_sum");
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  check.dtype({"x", args.x}, {DType::f32, DType::i32});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  Cost cost;
  cost.elementwise = args.x.numel();
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.x.numel() > 0) ctx.backend().prefix_sum(ctx, args);
}

void compact_flags(Context& ctx, const CompactArgs& args) {
  const ArgumentCheck check(ctx, "compact_flags");
  check.present({{"flag", args.flag}, {"index", args.index}, {"count", args.count}});
  check.rank({"flag", args.flag}, 1, Shape::kMaxRank);
  check.dtype({"flag", args.flag}, {DType::u8});
  check.packed({"flag", args.flag});
  check_indexable(check, args.flag.dim(-1), "rows");
  check_output(check, "index", args.index, DType::i32,
               with_last(args.flag.shape(), args.index.rank() > 0 ? args.index.dim(-1) : 0), args.flag);
  check_output(check, "count", args.count, DType::i32, without_last(args.flag.shape()), args.flag);
  if (!args.count.contiguous()) check.fail("count must be contiguous");
  Cost cost;
  cost.bytes_read = args.flag.nbytes();
  cost.bytes_written = args.index.nbytes() + args.count.nbytes();
  ctx.cost().charge(cost);
  if (args.count.numel() > 0) ctx.backend().compact_flags(ctx, args);
}

void compare_flags(Context& ctx, const CompareArgs& args) {
  const ArgumentCheck check(ctx, "compare_flags");
  check.present({{"x", args.x}, {"flag", args.flag}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"flag", args.flag}, {DType::u8, DType::i32});
  check.same_shape({"x", args.x}, {"flag", args.flag});
  check.packed({"flag", args.flag});
  check.packed({"x", args.x});
  check.disjoint({"x", args.x}, {"flag", args.flag});
  if (args.z && !args.y) check.fail("z needs y beside it");
  for (const auto& [what, t] : {std::pair<const char*, const Tensor&>{"y", args.y}, {"z", args.z}}) {
    if (!t) continue;
    check.present({{what, t}});
    check.dtype({what, t}, {DType::f32});
    check.same_shape({"x", args.x}, {what, t});
    check.packed({what, t});
    check.disjoint({what, t}, {"flag", args.flag});
  }
  Cost cost;
  cost.elementwise = args.x.numel() * (args.z ? 2 : 1);
  cost.bytes_read = args.x.nbytes() + bytes_of(args.y) + bytes_of(args.z);
  cost.bytes_written = args.flag.nbytes();
  ctx.cost().charge(cost);
  if (args.x.numel() > 0) ctx.backend().compare_flags(ctx, args);
}

namespace {

/// index i32 [1 or B, a divisor of H, entries].
void check_token_index(const ArgumentCheck& check, const Tensor& index, int64_t batch, int64_t heads,
                       int64_t entries) {
  check.dtype({"index", index}, {DType::i32});
  check.rank({"index", index}, 3, 3);
  check.packed({"index", index});
  const bool batches = index.dim(0) == 1 || index.dim(0) == batch;
  const bool groups = index.dim(1) > 0 && heads % index.dim(1) == 0;
  if (!batches || !groups || index.dim(2) != entries)
    check.fail("index has shape " + index.shape().str() + " but must be [1 or " + std::to_string(batch) +
               ", a divisor of " + std::to_string(heads) + ", " + std::to_string(entries) + "]");
}

}  // namespace

void gather_tokens(Context& ctx, const GatherTokensArgs& args) {
  const ArgumentCheck check(ctx, "gather_tokens");
  check.present({{"x", args.x}, {"index", args.index}, {"y", args.y}});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  const int64_t heads = args.y.dim(1);
  if (args.x.dim(0) != args.y.dim(0) || args.x.dim(3) != args.y.dim(3) ||
      (heads > 0 && (args.x.dim(1) == 0 || heads % args.x.dim(1) != 0)))
    check.fail("x " + args.x.shape().str() + " and y " + args.y.shape().str() +
               " must agree in batch and channels, and x's heads must divide y's");
  check_token_index(check, args.index, args.y.dim(0), heads, args.y.dim(2));
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"index", args.index}, {"y", args.y});
  Cost cost;
  cost.bytes_read = args.y.nbytes() + args.index.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.dim(0) * heads * args.y.dim(2) > 0) ctx.backend().gather_tokens(ctx, args);
}

void scatter_tokens(Context& ctx, const ScatterTokensArgs& args) {
  const ArgumentCheck check(ctx, "scatter_tokens");
  check.present({{"x", args.x}, {"index", args.index}, {"y", args.y}});
  check.rank({"x", args.x}, 4, 4);
  check.rank({"y", args.y}, 4, 4);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  const int64_t batch = args.y.dim(0), heads = args.y.dim(1), n = args.y.dim(2), d = args.y.dim(3);
  const int64_t m = args.x.dim(2);
  check.shape({"x", args.x}, {batch, heads, m, d});
  check_token_index(check, args.index, batch, heads, m);
  check.disjoint({"x", args.x}, {"y", args.y});
  check.disjoint({"index", args.index}, {"y", args.y});
  if (args.weight) {
    if (args.mode == ScatterTokensArgs::Mode::set) check.fail("weight belongs to mode add");
    check.present({{"weight", args.weight}});
    check.dtype({"weight", args.weight}, {DType::f32});
    check.shape({"weight", args.weight}, {batch, heads, m});
    check.packed({"weight", args.weight});
    check.disjoint({"weight", args.weight}, {"y", args.y});
  }
  if (args.hits) {
    check.present({{"hits", args.hits}});
    check.dtype({"hits", args.hits}, {DType::i32});
    check.shape({"hits", args.hits}, {batch, heads, n});
    if (!args.hits.contiguous()) check.fail("hits must be contiguous");
  }
  Cost cost;
  if (args.mode == ScatterTokensArgs::Mode::add) cost.elementwise = args.x.numel() * (args.weight ? 2 : 1);
  cost.bytes_read =
      args.x.nbytes() + args.index.nbytes() + bytes_of(args.weight) + (args.keep ? args.y.nbytes() : 0);
  cost.bytes_written = args.y.nbytes() + bytes_of(args.hits);
  ctx.cost().charge(cost);
  if (batch * heads * n > 0) ctx.backend().scatter_tokens(ctx, args);
}

void pool_tokens(Context& ctx, const PoolTokensArgs& args) {
  const ArgumentCheck check(ctx, "pool_tokens");
  using Kind = PoolTokensArgs::Kind;
  check.present({{"x", args.x}, {"y", args.y}});
  check.rank({"x", args.x}, 4, 4);
  check.dtype({"x", args.x}, {DType::f32, DType::bf16, DType::f16});
  check.rank({"y", args.y}, 4, 4);
  if (args.y.dtype() != DType::f32) check.same_dtype({"x", args.x}, {"y", args.y});
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.disjoint({"x", args.x}, {"y", args.y});
  const int64_t batch = args.x.dim(0), n = args.x.dim(2);
  const int64_t blocks = args.bounds ? args.y.dim(2) : args.block > 0 ? (n + args.block - 1) / args.block : 0;
  if (args.bounds) {
    if (args.block != 0)
      check.fail("block is " + std::to_string(args.block) + " beside bounds; give one of them");
    if (args.divisor == PoolTokensArgs::Divisor::whole) check.fail("whole blocks need block, not bounds");
    check.present({{"bounds", args.bounds}});
    check.dtype({"bounds", args.bounds}, {DType::i32});
    check.rank({"bounds", args.bounds}, 2, 2);
    check.packed({"bounds", args.bounds});
    if ((args.bounds.dim(0) != 1 && args.bounds.dim(0) != batch) || args.bounds.dim(1) != blocks + 1)
      check.fail("bounds have shape " + args.bounds.shape().str() + " but must be [1 or " +
                 std::to_string(batch) + ", " + std::to_string(blocks + 1) + "]");
  } else if (args.block < 1) {
    check.fail("block is " + std::to_string(args.block) + "; it must be 1 or more");
  }
  check.shape({"y", args.y}, {batch, args.x.dim(1), blocks, args.x.dim(3)});
  const bool deviation = args.kind == Kind::absolute_deviation;
  if (deviation != static_cast<bool>(args.center))
    check.fail(deviation ? "absolute_deviation needs center" : "center belongs to absolute_deviation");
  if (deviation) {
    check.present({{"center", args.center}});
    check.dtype({"center", args.center}, {DType::f32});
    check.same_shape({"center", args.center}, {"y", args.y});
    check.packed({"center", args.center});
    check.disjoint({"center", args.center}, {"y", args.y});
  }
  Cost cost;
  cost.elementwise = args.x.numel() * (deviation ? 3 : 1) + args.y.numel();
  cost.bytes_read = args.x.nbytes() + bytes_of(args.bounds) + bytes_of(args.center);
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().pool_tokens(ctx, args);
}

namespace {

int64_t blocks_of(int64_t tokens, int64_t block) { return (tokens + block - 1) / block; }

void check_block_sizes(const ArgumentCheck& check, const BlockListsArgs& a) {
  if (a.n < 0 || a.m < 0 || a.n > INT32_MAX || a.m > INT32_MAX)
    check.fail("n and m are " + std::to_string(a.n) + " and " + std::to_string(a.m) +
               "; they must lie in [0, 2^31)");
  if (a.block_q < 1 || a.block_k < 1)
    check.fail("blocks hold one token or more, not " + std::to_string(a.block_q) + " x " +
               std::to_string(a.block_k));
}

}  // namespace

void build_block_lists(Context& ctx, const BlockListsArgs& args) {
  const ArgumentCheck check(ctx, "build_block_lists");
  check_block_sizes(check, args);
  const ElementRule& rule = args.rule;
  if (rule.rank > 0 || rule.segment_q || rule.bitmap)
    check.fail("the rule of a built list has causal and band parts only");
  if (rule.band && (rule.left < -1 || rule.right < -1 || rule.sinks < 0))
    check.fail("rule.left, rule.right and rule.sinks are " + std::to_string(rule.left) + ", " +
               std::to_string(rule.right) + " and " + std::to_string(rule.sinks) +
               "; sides are -1 (open), 0 or more, sinks 0 or more");
  if (args.window < 0 || args.first_columns < 0 || args.last_rows < 0)
    check.fail("window, first_columns and last_rows must be 0 or more");
  check.present(
      {{"full.begin", args.full.begin}, {"full.count", args.full.count}, {"full.index", args.full.index}});
  if (!args.partial && !rule.allows_all()) check.fail("a rule needs the partial list");
  check.rank({"full.count", args.full.count}, 3, 3);
  const int64_t gb = args.full.count.dim(0), gh = args.full.count.dim(1);
  const int64_t nq = blocks_of(args.n, args.block_q), nk = blocks_of(args.m, args.block_k);
  const Shape groups{gb, gh, nq}, map{gb, gh, nq, nk}, lines{gb, gh, nk};
  const auto list = [&](const char* begin, const char* count, const char* index, const BlockList& l) {
    if (!l) return;
    check.present({{begin, l.begin}, {count, l.count}, {index, l.index}});
    for (const auto& [what, t] : {std::pair{begin, &l.begin}, std::pair{count, &l.count}}) {
      check.dtype({what, *t}, {DType::i32});
      check.shape({what, *t}, groups);
      if (!t->contiguous()) check.fail(std::string(what) + " must be contiguous");
    }
    check.dtype({index, l.index}, {DType::i32});
    check.rank({index, l.index}, 1, 1);
    check.packed({index, l.index});
    check_indexable(check, l.index.dim(0), "lists");
    if (groups.numel() > 0 && l.index.dim(0) % groups.numel() != 0)
      check.fail(std::string(index) + " has " + std::to_string(l.index.dim(0)) +
                 " entries, not a multiple of " + std::to_string(groups.numel()) + " rows");
  };
  list("full.begin", "full.count", "full.index", args.full);
  list("partial.begin", "partial.count", "partial.index", args.partial);
  const auto source = [&](const char* what, const Tensor& t, const Shape& shape) {
    if (!t) return;
    check.present({{what, t}});
    check.dtype({what, t}, {DType::u8});
    check.shape({what, t}, shape);
    if (!t.contiguous()) check.fail(std::string(what) + " must be contiguous");
  };
  source("bitmap", args.bitmap, map);
  source("also", args.also, {nq, nk});
  source("columns", args.columns, lines);
  source("diagonals", args.diagonals, lines);
  if (args.selected) {
    check.present({{"selected", args.selected}});
    check.dtype({"selected", args.selected}, {DType::i32});
    check.shape({"selected", args.selected}, map);
    if (!args.selected.contiguous()) check.fail("selected must be contiguous");
  }
  Cost cost;
  cost.bytes_read =
      bytes_of(args.bitmap) + bytes_of(args.also) + bytes_of(args.columns) + bytes_of(args.diagonals);
  cost.bytes_written = (args.partial ? 4 : 2) * groups.numel() * 4 + bytes_of(args.selected);
  ctx.cost().charge(cost);
  if (groups.numel() > 0) ctx.backend().build_block_lists(ctx, args);
}

void allocate_block_lists(Context& ctx, BlockListsArgs& args, int64_t gb, int64_t gh,
                          int64_t entries_per_row) {
  const ArgumentCheck check(ctx, "allocate_block_lists");
  check_block_sizes(check, args);
  const int64_t nq = blocks_of(args.n, args.block_q), nk = blocks_of(args.m, args.block_k),
                rows = gb * gh * nq;
  const auto list = [&](int64_t per_row) {
    if (rows * per_row > INT32_MAX)
      throw Unsupported("block lists of " + std::to_string(rows) + " rows with " + std::to_string(per_row) +
                        " entries each exceed the 2^31 - 1 entries of a list; use larger blocks");
    BlockList l;
    l.begin = ctx.allocate(DType::i32, {gb, gh, nq});
    l.count = ctx.allocate(DType::i32, {gb, gh, nq});
    l.index = ctx.allocate(DType::i32, {rows * per_row});
    return l;
  };
  args.full = list(entries_per_row > 0 ? std::min(entries_per_row, nk) : nk);
  args.partial = {};
  if (args.rule.allows_all()) return;
  const BlockGeometry geometry(args.rule, args.n, args.m, args.block_q, args.block_k);
  args.partial = list(std::min(geometry.partial_bound(), nk));
}

BlockMask block_mask_of(const BlockListsArgs& args) {
  BlockMask mask;
  mask.block_q = args.block_q, mask.block_k = args.block_k;
  mask.full = args.full;
  mask.partial = args.partial;
  mask.rule = args.rule;
  return mask;
}

}  // namespace attnbench
