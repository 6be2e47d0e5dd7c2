// The vector body of the selective scan as cpu.cpp sees it. Not a contract.
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"
#include "kernels/core/isa.hpp"

namespace attnbench {

/// Channels that one call takes: their state, S rows of this many floats, stays in the first-level cache.
inline constexpr int64_t kScanChannels = 32;

/// One sequence, `channels` <= kScanChannels channels of it, `length` tokens. Rows are `*_step` elements
/// apart (negative steps run backwards). a, state [S][kScanChannels] f32; skip may be null (or kScanChannels
/// floats), z too.
struct ScanRows {
  DType dtype;
  int64_t length, channels, states;
  const void *u, *delta, *b, *c, *z;
  void* y;
  int64_t u_step, delta_step, b_step, c_step, z_step, y_step;
  const float *a, *skip, *bias;  ///< skip and bias may be null
  bool softplus;
  float* state;
};
ATTNBENCH_EACH_ISA(void scan_rows(const ScanRows&))

}  // namespace attnbench
