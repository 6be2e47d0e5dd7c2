// The n-D neighbourhood rule as arithmetic: what a query coordinate sees on an axis, and how tokens are
// numbered on the grid. No tensors, no masks.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/attention/block_mask.hpp"

namespace attnbench {

/// Coordinates visible from one query coordinate: first, first + step, ..., below end.
struct AxisWindow {
  int64_t first = 0, end = 0, step = 1;
  bool contains(int64_t x) const { return x >= first && x < end && (x - first) % step == 0; }
  int64_t count() const { return end > first ? (end - first + step - 1) / step : 0; }
};

/// NATTEN's window of coordinate x on axis `a`: within the dilation group g = x mod d of length Lg, position
/// p = x / d, the stride group's leader decides where the window starts.
inline AxisWindow axis_window(const ElementRule& r, int a, int64_t x) {
  const size_t i = static_cast<size_t>(a);
  const int64_t length = r.grid[i], w = r.window[i], d = r.dilation[i], s = r.stride[i];
  const int64_t g = x % d, p = x / d, group = (length - g + d - 1) / d;
  int64_t begin, end;
  if (r.causal_axis[i]) {
    const int64_t leader = std::min(p / s * s + s - 1, group - 1);
    begin = std::max<int64_t>(leader - w + 1, 0);
    end = p + 1;
  } else {
    const int64_t leader = std::min(p / s * s + s / 2, group - 1);
    begin = leader - w / 2;
    if (!r.cut_axis[i]) begin = std::min(begin, std::max<int64_t>(group - w, 0));
    // Cut, the window ends where it would; shifted, it keeps its length.
    end = std::min((r.cut_axis[i] ? begin : std::max<int64_t>(begin, 0)) + w, group);
    begin = std::max<int64_t>(begin, 0);
  }
  return {begin * d + g, (end - 1) * d + g + 1, d};
}

using AxisExtents = std::array<int64_t, 3>;

/// Whether tokens are numbered tile by tile (see ElementRule::q_tile).
inline bool is_tiled(const AxisExtents& tile) { return tile[0] > 0; }
/// Tiles on axis `a`, of one dilation group.
inline int64_t tiles_on_axis(const ElementRule& r, const AxisExtents& tile, size_t a) {
  const int64_t step = tile[a] * r.dilation[a];
  return (r.grid[a] + step - 1) / step;
}
/// Coordinates on axis `a`, padded ones included.
inline int64_t padded_extent(const ElementRule& r, const AxisExtents& tile, size_t a) {
  return is_tiled(tile) ? tiles_on_axis(r, tile, a) * tile[a] * r.dilation[a] : r.grid[a];
}
inline int64_t padded_tokens(const ElementRule& r, const AxisExtents& tile) {
  int64_t n = 1;
  for (int a = 0; a < r.rank; ++a) n *= padded_extent(r, tile, static_cast<size_t>(a));
  return n;
}

/// Coordinates of a token; beyond the grid on some axis when it is padding.
inline AxisExtents grid_coordinates(const ElementRule& r, int64_t token,
                                    const AxisExtents& tile = {0, 0, 0}) {
  AxisExtents x{0, 0, 0};
  if (!is_tiled(tile)) {
    for (size_t a = static_cast<size_t>(r.rank); a-- > 0; token /= r.grid[a]) x[a] = token % r.grid[a];
    return x;
  }
  AxisExtents place{0, 0, 0};
  for (size_t a = static_cast<size_t>(r.rank); a-- > 0; token /= tile[a]) place[a] = token % tile[a];
  for (size_t a = static_cast<size_t>(r.rank); a-- > 0;) {
    const int64_t tiles = tiles_on_axis(r, tile, a);
    place[a] += token % tiles * tile[a];
    token /= tiles;
  }
  for (size_t a = static_cast<size_t>(r.rank); a-- > 0; token /= r.dilation[a])
    x[a] = place[a] * r.dilation[a] + token % r.dilation[a];
  return x;
}
/// The token at coordinates within the padded grid.
inline int64_t grid_token(const ElementRule& r, const AxisExtents& x, const AxisExtents& tile) {
  const size_t rank = static_cast<size_t>(r.rank);
  int64_t token = 0;
  if (!is_tiled(tile)) {
    for (size_t a = 0; a < rank; ++a) token = token * r.grid[a] + x[a];
    return token;
  }
  for (size_t a = 0; a < rank; ++a) token = token * r.dilation[a] + x[a] % r.dilation[a];
  for (size_t a = 0; a < rank; ++a)
    token = token * tiles_on_axis(r, tile, a) + x[a] / r.dilation[a] / tile[a];
  for (size_t a = 0; a < rank; ++a) token = token * tile[a] + x[a] / r.dilation[a] % tile[a];
  return token;
}
inline bool in_grid(const ElementRule& r, const AxisExtents& x) {
  for (size_t a = 0; a < static_cast<size_t>(r.rank); ++a)
    if (x[a] >= r.grid[a]) return false;
  return true;
}

}  // namespace attnbench
