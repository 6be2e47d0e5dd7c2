// Which input position a padded one stands for, for host and device code.
#pragma once
#include <cstdint>

#include "kernels/conv/conv.hpp"

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH __host__ __device__
#else
#define ATTNBENCH_BOTH
#endif

namespace attnbench {

/// i in [-pad, n + pad) of an axis of n positions; -1 where the border is 0.
ATTNBENCH_BOTH inline int64_t border_source(int64_t i, int64_t n, Border border) {
  if (i >= 0 && i < n) return i;
  switch (border) {
    case Border::reflect:
      return i < 0 ? -i : 2 * (n - 1) - i;
    case Border::replicate:
      return i < 0 ? 0 : n - 1;
    case Border::circular:
      return i < 0 ? i + n : i - n;
    default:
      return -1;
  }
}

/// Axes of a grid tensor in either layout.
struct GridAxes {
  int channel, height, width;
  explicit GridAxes(bool channels_last)
      : channel(channels_last ? 3 : 1), height(channels_last ? 1 : 2), width(channels_last ? 2 : 3) {}
};

}  // namespace attnbench
