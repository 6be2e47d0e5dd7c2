// One axis of the n-D neighbourhood rule as arithmetic; what a query coordinate sees. No tensors, no masks.
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

/// Coordinates of a row-major token.
inline std::array<int64_t, 3> grid_coordinates(const ElementRule& r, int64_t token) {
  std::array<int64_t, 3> x{0, 0, 0};
  for (int a = r.rank - 1; a >= 0; --a) {
    x[static_cast<size_t>(a)] = token % r.grid[static_cast<size_t>(a)];
    token /= r.grid[static_cast<size_t>(a)];
  }
  return x;
}

}  // namespace attnbench
