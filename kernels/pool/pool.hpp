// Pooling of grids: averages and maxima of windows. Not of tokens by blocks (select/select.hpp).
#pragma once
#include <array>

#include "kernels/core/context.hpp"

namespace attnbench {

/// Average pooling of channel-last grids: x [B, Hg, Wg, C] -> y [B, Ho, Wo, C], contiguous C.
///
/// With `adaptive` false the kernel is (Hg / Ho) x (Wg / Wo), which must divide evenly (hilo's Lo-Fi pooling,
/// arXiv 2205.13213). With `adaptive` true, cell i covers rows floor(i Hg / Ho) .. ceil((i + 1) Hg / Ho) - 1,
/// so cells may overlap or repeat, also for Ho > Hg. Cost: elementwise: one addition per element read and one
/// multiplication per output.
struct AvgPool2dArgs {
  Tensor x, y;
  bool adaptive = false;
};
void avg_pool2d(Context& ctx, const AvgPool2dArgs& args);

/// Maximum (NaN when there is one) or average of windows, in either layout: x [B, Hg, Wg, C] or [B, C, Hg,
/// Wg], y in x's layout.
///
/// Windows of `kernel` positions every `stride`, over `pad` (before, after) positions around the grid:
/// Ho = floor((Hg + pads - kernel) / stride) + 1. Padding is never a maximum; an average counts it as zeros
/// with `count_padding`, and divides by the real positions without. Every window must hold a real position.
/// With `adaptive` windows are the cells of avg_pool2d, and kernel, stride and pad are ignored; a global pool
/// is an adaptive one to 1 x 1. Sums in f32 in row-major order. Last axis of x contiguous, of y too; other
/// strides free. dtypes f32, bf16, f16, equal. Cost: elementwise: 1 per real position of every window, and 1
/// per output of an average.
struct Pool2dArgs {
  enum class Kind : uint8_t { max, average };
  Kind kind = Kind::max;
  Tensor x, y;
  bool channels_last = true, adaptive = false, count_padding = true;
  std::array<int64_t, 2> kernel = {1, 1}, stride = {1, 1};
  std::array<int64_t, 4> pad = {0, 0, 0, 0};  ///< top, bottom, left, right
};
void pool2d(Context& ctx, const Pool2dArgs& args);

}  // namespace attnbench
