// The positions that a pooling window covers along one axis, for host and device code.
#pragma once
#include <cstdint>

#include "kernels/pool/pool.hpp"

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH __host__ __device__
#else
#define ATTNBENCH_BOTH
#endif

namespace attnbench {

struct PoolAxis {
  int64_t in = 0, out = 0, kernel = 1, stride = 1, before = 0, after = 0;
  bool adaptive = false;

  PoolAxis() = default;
  PoolAxis(const Pool2dArgs& a, int axis) {
    const int at = (a.channels_last ? 1 : 2) + axis;
    in = a.x.dim(at), out = a.y.dim(at);
    const auto i = static_cast<size_t>(axis);
    kernel = a.kernel[i], stride = a.stride[i], before = a.pad[2 * i], after = a.pad[2 * i + 1];
    adaptive = a.adaptive;
  }
  /// Real positions [begin(i), end(i)) of window i.
  ATTNBENCH_BOTH int64_t begin(int64_t i) const {
    if (adaptive) return i * in / out;
    const int64_t at = i * stride - before;
    return at < 0 ? 0 : at;
  }
  ATTNBENCH_BOTH int64_t end(int64_t i) const {
    if (adaptive) return ((i + 1) * in + out - 1) / out;
    const int64_t at = i * stride - before + kernel;
    return at > in ? in : at;
  }
  /// Positions that an average divides by.
  ATTNBENCH_BOTH int64_t counted(int64_t i, bool padding) const {
    return padding && !adaptive ? kernel : end(i) - begin(i);
  }
};

}  // namespace attnbench
