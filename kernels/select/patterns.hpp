// What selections measure of score maps before they choose: sums along columns and diagonals, cells,
// distances of distributions, counts with clamps, and what they do with the rest: masked weights,
// block-constant corrections. Not choosing itself: select.hpp. As there, rows are packed, scores f32, sums
// f64 rounded once, fixed shapes.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Means along the lines of probability maps: x f32 [..., R, N],
///   vertical[..., j] = (1 / R) sum_i x[..., i, j]
///   slash[..., c]    = (1 / R) sum_i x[..., i, c - (R - 1) + i], columns below 0 counting as 0
/// both f32 [..., N], contiguous; entry N - 1 of slash is the main diagonal when row R - 1 belongs to token N
/// - 1. Without x the map is the causal attention of the last R of N queries, x = softmax(scale q k^T) with
/// row i seeing j <= N - R + i, and CUDA never stores it: q [B, H, R, D], k [B, Hkv, N, D] of one dtype, D
/// packed, H a multiple of Hkv, R <= N; vertical and slash [B, H, N]; probabilities f32, of which CUDA sums
/// up to 16 in f32. Cost: elementwise 2 R N a map; without x also matmul 2 R N D, special R N and
/// elementwise 4 R N, as if every score were computed once (CUDA computes them twice), and of the bytes no
/// map.
struct LineSumsArgs {
  Tensor x, vertical, slash;
  Tensor q = {}, k = {};
  float scale = 1.0f;
};
void line_sums(Context& ctx, const LineSumsArgs& args);

/// Sums over cells of rows x columns, the last ones short: x f32 [..., R, C] -> y f32 [..., ceil(R / rows),
/// ceil(C / columns)], both with packed rows. With `causal_cells`, cells above the diagonal of cells get 0
/// and are not read. With `softmax` the sums are those of the rows' softmax, causal or not as in SoftmaxArgs,
/// and x holds nothing of use afterwards. Cost: elementwise R C a map; softmax: elementwise 4 R C and special
/// R C more.
struct CellSumsArgs {
  Tensor x, y;
  int64_t rows = 1, columns = 1;
  bool causal_cells = false;
  bool softmax = false, causal = false;
  int64_t causal_offset = 0;
};
void cell_sums(Context& ctx, const CellSumsArgs& args);

/// Square root of the Jensen-Shannon divergence (natural logarithm) of each pair of rows: a, b f32 [..., n]
/// -> distance f32 [...]; 0 ln 0 = 0. below i32 [...]: 1 where the distance is less than `threshold`;
/// optional. Both contiguous. Cost: special 2 n + 1, elementwise 6 n a row.
struct DistanceArgs {
  Tensor a, b, distance, below;
  double threshold = 0;
};
void js_distance(Context& ctx, const DistanceArgs& args);

/// y = flag ? when_set : clamp((x + before) / divisor + after, low, high), i32, of equal shapes, contiguous.
/// x is
/// >= 0, x + before too; the division drops the remainder. Without x: 0; without flag: unset. y may be x.
/// Cost: elementwise 1 an element.
struct CountRuleArgs {
  Tensor x, flag, y;
  int32_t before = 0, divisor = 1, after = 0, low = 0, high = INT32_MAX, when_set = 0;
};
void count_rule(Context& ctx, const CountRuleArgs& args);

/// y = x where (first != 0) == first_set and (second != 0) == second_set, else 0. x, y f32, first and second
/// u8 or i32 of one shape, all contiguous; second optional. y may be x. Cost: bytes.
struct MaskValuesArgs {
  Tensor x, first, second, y;
  bool first_set = true, second_set = true;
};
void mask_values(Context& ctx, const MaskValuesArgs& args);

/// A correction that is constant in blocks of tokens: y[b, h, t, :] = factor[b, h, t / block] x[b, h, t, :] +
/// add[b, h, t / block, :]. x, y [B, H, N, D] of one float dtype, D packed, y may be x; factor f32 [B, H, S]
/// and add f32 [B, H, S, D], S = ceil(N / block), both with packed last axes. Arithmetic in f32. Cost:
/// elementwise 2 an element.
struct BlockAffineArgs {
  Tensor x, factor, add, y;
  int64_t block = 1;
};
void block_affine(Context& ctx, const BlockAffineArgs& args);

}  // namespace attnbench
