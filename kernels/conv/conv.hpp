// Convolutions over grids and sequences. Not separable filters of one kernel for all channels (resample), nor
// long filters (Toeplitz products by FFT).
//
// Layouts: x [B, Hg, Wg, C] channel-last (channels_last = true) or [B, C, Hg, Wg]. dtypes equal: f32, bf16,
// f16 (f32 accumulation, one rounding) or f64. y may not overlap an input.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// Stride = kernel and no padding ("patch" convolution): patch embeddings, spatial reduction.
///
/// weight [O, C, r, r] (PyTorch's order); bias [O] or none; y [B, floor(Hg/r), floor(Wg/r), O] channel-last.
/// Left-over rows and columns are dropped. Done as a patch gather and one gemm. Cost: matmul 2 B Ho Wo r^2 C
/// O, elementwise B Ho Wo O for a bias.
struct PatchConv2dArgs {
  Tensor x, weight, bias, y;
  int64_t kernel = 1;
  bool channels_last = true;
};
void patch_conv2d(Context& ctx, const PatchConv2dArgs& args);

/// What lies outside the grid. reflect does not repeat the edge.
enum class Border : uint8_t { zeros, reflect, replicate, circular };

/// y[o, i, j] = bias[o] + sum over c, p, q of weight[o, c, p, q] x[c', i s0 + p d0 - top, j s1 + q d1 -
/// left], c' = c within o's group (cross-correlation, as PyTorch's conv2d).
///
/// weight [O, C / groups, kh, kw]; bias [O] or none; y in x's layout with
/// Ho = floor((Hg + top + bottom - d0 (kh - 1) - 1) / s0) + 1. Padding is at least 0, below the extent for
/// reflect and at most the extent for circular.
/// `transposed` is the adjoint (conv_transpose2d): weight [C, O / groups, kh, kw], x[c, i, j] weight[c, o, p,
/// q] is added to y[o, i s0 + p d0 - top, j s1 + q d1 - left], border zeros; Ho = (Hg - 1) s0 - top - bottom
/// + d0 (kh - 1) + 1 + e, where y's shape chooses e (the output padding), 0 <= e < max(s0, d0). x: contiguous
/// last axis, other strides free. y: channel-last pixels evenly spaced, or [O, Ho, Wo] packed. Depthwise
/// convolutions (groups = C = O) run directly, others as a gather and products. Cost: matmul 2 kh kw (C /
/// groups) per output (transposed: 2 kh kw (O / groups) per input), border taps included; elementwise 1 per
/// output for a bias.
struct Conv2dArgs {
  Tensor x, weight, bias, y;
  bool channels_last = true;
  int64_t groups = 1;
  std::array<int64_t, 2> stride = {1, 1}, dilation = {1, 1};
  std::array<int64_t, 4> pad = {0, 0, 0, 0};  ///< top, bottom, left, right
  Border border = Border::zeros;
  bool transposed = false;
};
void conv2d(Context& ctx, const Conv2dArgs& args);
/// The extent that conv2d gives `n` positions; with `transposed`, for e = 0.
int64_t conv_extent(int64_t n, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad_before,
                    int64_t pad_after, bool transposed = false);

/// conv2d over one axis: x [B, L, C] or [B, C, L], weight [O, C / groups, k] (transposed: [C, O / groups,
/// k]).
struct Conv1dArgs {
  Tensor x, weight, bias, y;
  bool channels_last = false;
  int64_t groups = 1, stride = 1, dilation = 1;
  std::array<int64_t, 2> pad = {0, 0};  ///< before, after
  Border border = Border::zeros;
  bool transposed = false;
};
void conv1d(Context& ctx, const Conv1dArgs& args);

}  // namespace attnbench
