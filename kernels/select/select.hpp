// Choosing: the best columns of score rows, the tokens they name, and the block lists attention visits for
// them. Not attention itself, and not static patterns: those come from make_block_mask
// (attention/block_mask.hpp).
//
// Everything runs on the context's device with shapes known beforehand, so that graphs capture it: what
// depends on the data are counts, flags and entries inside tensors of fixed size, never an allocation or a
// wait.
//
// Order of values, everywhere here: by value, equal values (and -0 and +0) by lower index, NaN above +inf: a
// NaN score is chosen first and shows. Scores are f32 and never rounded; sums over them are taken in f64, so
// that a selection does not depend on the device as long as the scores do not. Results do not depend on the
// number of threads. A "row" is the last axis, packed; the strides of the axes before it are free unless a
// line says otherwise. Outputs may not overlap inputs.
#pragma once
#include "kernels/attention/block_mask.hpp"
#include "kernels/core/context.hpp"

namespace attnbench {

/// Which columns of each row of [..., R, M] take part: the smallest of what is set.
struct Visible {
  Tensor limit;         ///< i32 [..., R] (the rows' shape): columns j < limit; negative counts as 0
  bool causal = false;  ///< row i of axis -2 sees j <= i + offset (as SoftmaxArgs::causal)
  int64_t offset = 0;
};

/// The k best visible columns of each row.
///
/// x f32 [..., M]. index i32 [..., K]: chosen columns; slots beyond what a row has hold -1. value f32 [...,
/// K]: their scores; -inf in empty slots (+inf with `largest` false). flag u8 [..., M]: 1 where chosen, else
/// 0. At least one of index and flag is given; without index, `k` is K. `count` i32 [...]: entries each row
/// wants, cut to [0, K]; without it every row wants K. K may exceed M. Cost: elementwise M a row.
struct TopKArgs {
  enum class Order : uint8_t {
    value,  ///< best first
    index   ///< ascending columns
  };
  Tensor x;
  Tensor index, value, flag;  ///< outputs, optional as above
  Tensor count;               ///< optional
  Visible visible;
  int64_t k = 0;
  bool largest = true;
  Order order = Order::value;
};
void top_k(Context& ctx, const TopKArgs& args);
/// Column of the largest (smallest) element of each row: x f32 [..., M], index i32 [...], -1 when M = 0. NaN
/// counts as the largest: arg_min finds it only in a row that holds nothing else.
void arg_max(Context& ctx, const Tensor& x, const Tensor& index);
void arg_min(Context& ctx, const Tensor& x, const Tensor& index);

/// index[..., r] = column of the r-th element of the sorted row; stable. x f32 or i32 [..., M], index i32 of
/// the same shape. value: x's dtype and shape, the sorted rows; optional. Cost: elementwise M ceil(log2 M) a
/// row.
struct ArgsortArgs {
  Tensor x, index, value;
  bool descending = false;
};
void argsort(Context& ctx, const ArgsortArgs& args);

/// The smallest set of visible columns that holds a share of a row's mass, with the variants papers use.
///
/// Forced columns (j < forced_first, and j = i + visible.offset when forced_diagonal) are kept and counted
/// first: S_0 is the sum of their values. The others follow by descending value; S_r = S_0 + the first r of
/// them. The r-th (r = 1, 2, ...) is kept iff
///     r <= min_keep,  or  r < lag,  or  S_{r - lag} < T  (inclusive: <= T)
/// where T = p, or p times the sum over all visible columns when `share`. So lag 1 keeps the smallest prefix
/// that reaches T, lag 0 with inclusive what stays within T.
/// x f32 [..., M]. count i32 [...]: kept columns, forced ones included. flag u8 [..., M]. At least one is
/// given. Cost: elementwise M ceil(log2 M) + M a row.
struct TopPArgs {
  Tensor x;
  Tensor count, flag;
  Visible visible;
  double p = 0.9;
  bool share = false, inclusive = false;
  int64_t lag = 1;  ///< 0, 1 or 2
  int64_t min_keep = 0, forced_first = 0;
  bool forced_diagonal = false;
};
void top_p(Context& ctx, const TopPArgs& args);

/// y[..., j] = sum of x[..., i] over i <= j (i < j when exclusive). x, y of equal shape, both f32 or both
/// i32; f32 sums are taken in f64 and rounded once per element. y may be x. Cost: elementwise M a row.
struct PrefixSumArgs {
  Tensor x, y;
  bool exclusive = false;
};
void prefix_sum(Context& ctx, const PrefixSumArgs& args);

/// Columns of the non-zero flags of each row, ascending: flag u8 [..., M] -> index i32 [..., K], -1 in the
/// rest, count i32 [...] of all flags. A row with more than K of them keeps its first K and counts K. Cost:
/// bytes.
struct CompactArgs {
  Tensor flag, index, count;
};
void compact_flags(Context& ctx, const CompactArgs& args);

/// flag = x > y (or the other relations), u8 or i32, of equal shapes; without y against `threshold`. With z
/// (magnitudes): |x| against |y| + |z|. x, y, z f32 and flag packed. NaN compares false.
/// Cost: elementwise 1 an element (2 with z).
struct CompareArgs {
  enum class Relation : uint8_t { greater, greater_equal, less, less_equal };
  Relation relation = Relation::greater;
  Tensor x, y, flag;
  float threshold = 0.0f;
  Tensor z;
};
void compare_flags(Context& ctx, const CompareArgs& args);

/// y[b, h, i, :] = x[b, h, index[b, h, i], :]; index -1 writes zeros. x [B, H, N, D] and y [B, H, M, D] of
/// one dtype (any), D packed. index i32 [Gb, Gh, M], Gb in {1, B}, Gh a divisor of H: head h takes list h /
/// (H / Gh). x may have fewer heads than y, Hx a divisor of H: head h reads x's head h / (H / Hx). An index
/// outside [-1, N) throws UsageError on the CPU and gives bytes 0xff (NaN) on CUDA, as gather_rows. Cost:
/// bytes.
struct GatherTokensArgs {
  Tensor x, index, y;
};
void gather_tokens(Context& ctx, const GatherTokensArgs& args);

/// The way back: every row of y [B, H, N, D] that index names is written, the others get 0 (keep: stay).
///   set: y[b, h, index[i], :] = x[b, h, i, :]; of several sources the last i counts
///   add: the sum over all i with that index, in ascending i, in f32, rounded once; with `keep` y's row comes
///   first
/// x [B, H, M, D], weight f32 [B, H, M] or none: a factor of each source row. hits i32 [B, H, N] or none:
/// number of sources of each row. index i32 [Gb, Gh, M] as in gather_tokens; entries outside [0, N) are
/// skipped. dtypes f32, bf16, f16, equal for x and y; D packed, index packed. Cost: add: elementwise M D (2 M
/// D with weight) a head.
struct ScatterTokensArgs {
  enum class Mode : uint8_t { set, add };
  Mode mode = Mode::add;
  Tensor x, index, weight, y, hits;
  bool keep = false;
};
void scatter_tokens(Context& ctx, const ScatterTokensArgs& args);

/// One row for each block of tokens: x [B, H, N, D] -> y [B, H, S, D].
///
/// Blocks are `block` tokens each, S = ceil(N / block), the last one short; or, with `bounds` i32 [1 or B, S
/// + 1], block s holds the tokens bounds[s] <= j < bounds[s + 1] cut to [0, N) (none when bounds[s + 1] < 0:
/// padding).
///   sum, mean, max, min over the real tokens of the block; absolute_deviation: mean of |x - center[s]|
///   (center of y's shape, f32). Divisor of mean and absolute_deviation: the real tokens, or `block` (whole:
///   absent tokens are zeros, also in the deviation: they add |center|), or the root of the real tokens
///   (root).
/// A block without tokens gives 0. f32 sums in token order. x f32, bf16, f16; y f32 or x's dtype; D packed.
/// Cost: elementwise 1 an element read (3 for absolute_deviation) + 1 an element written.
struct PoolTokensArgs {
  enum class Kind : uint8_t { sum, mean, max, min, absolute_deviation };
  enum class Divisor : uint8_t { real, whole, root };
  Kind kind = Kind::mean;
  Divisor divisor = Divisor::real;
  Tensor x, y;
  int64_t block = 0;      ///< 0 with bounds
  Tensor bounds, center;  ///< optional
};
void pool_tokens(Context& ctx, const PoolTokensArgs& args);

/// Block lists on the device: the union of the sources below, cut to what `rule` lets through and split into
/// full and partial blocks.
///
/// NQ = ceil(n / block_q), NK = ceil(m / block_k), groups [Gb, Gh]. Block (r, c) is chosen when any holds:
///   bitmap u8 [Gb, Gh, NQ, NK] is non-zero;          also u8 [NQ, NK] is non-zero (a static map);
///   columns u8 [Gb, Gh, NK] at c is non-zero;        diagonals u8 [Gb, Gh, NK] at r - c >= 0 is non-zero;
///   c < first_columns;    r >= NQ - last_rows;    c = d(r) when `diagonal`;    d(r) - window < c <= d(r)
/// where d(r) is the block of key i + rule.offset of the last query i of r (equal blocks and n = m: r).
/// Of a chosen block: no pair allowed by rule: dropped; every pair inside N x M: full; otherwise partial.
/// `rule` has causal and band parts only (sinks too). Lists are ascending.
///
/// Outputs: full and partial with begin, count i32 [Gb, Gh, NQ] and index i32 [capacity], capacity a multiple
/// of Gb Gh NQ: each row owns capacity / (Gb Gh NQ) entries. A row that needs more throws UsageError on the
/// CPU and loses its highest blocks on CUDA; allocate_block_lists allocates what always suffices. partial may
/// be absent when rule allows everything. selected i32 [Gb, Gh, NQ, NK]: 1 for every listed block; optional.
/// Cost: bytes.
struct BlockListsArgs {
  int64_t n = 0, m = 0, block_q = 64, block_k = 64;
  Tensor bitmap, also, columns, diagonals;  ///< sources, all optional
  bool diagonal = false;
  int64_t window = 0, first_columns = 0, last_rows = 0;
  ElementRule rule;
  BlockList full, partial;
  Tensor selected;
};
void build_block_lists(Context& ctx, const BlockListsArgs& args);
/// Allocates full, partial (and keeps `selected`) for groups [gb, gh]; entries_per_row: an upper bound the
/// caller knows of the blocks a row lists, 0: NK.
void allocate_block_lists(Context& ctx, BlockListsArgs& args, int64_t gb, int64_t gh,
                          int64_t entries_per_row = 0);
/// The mask for `attention` that these arguments fill.
BlockMask block_mask_of(const BlockListsArgs& args);

}  // namespace attnbench
