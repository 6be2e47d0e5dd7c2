// Two-dimensional transforms with one line per vector lane: the plan, and the vector bodies as cpu.cpp sees
// them.
//
// kLanes rows (real: twice as many, two in one complex line), then kLanes columns at a time are transformed
// together. All lanes do the same arithmetic, so every butterfly is plain vector code and twiddles are
// broadcasts; rows are brought into lanes by transposes in registers. Between the passes the image is kept as
// blocks of kLanes columns: element (row, column) of the half spectrum lies at [row][column / kLanes][re,
// im][column % kLanes].
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/core/isa.hpp"
#include "kernels/fft/fft.hpp"

namespace attnbench {

/// One pass of a Stockham transform: radix butterflies over `m` twiddles and `s` finished elements.
struct FftStage {
  int radix;
  int64_t m, s;
  const float* twiddles;   ///< [m][radix - 1][cos, -sin] of 2 pi p k / (m radix)
  const float* butterfly;  ///< [radix][cos, sin] of 2 pi j / radix, for odd radices
};

/// A 1-D complex transform of n points.
struct FftLine {
  static constexpr int kMaxStages = 24;
  int64_t n = 0;
  int stages = 0;
  FftStage stage[kMaxStages];
};

struct FftGrid {
  FftLine row, column;  ///< along the width and along the height
  int64_t height, width;
  int64_t columns;  ///< complex columns: width, or width / 2 + 1 for real grids
};

/// Vector lanes, which fix the layout between the passes.
ATTNBENCH_EACH_ISA(int64_t fft_lanes())
/// Row group `group` (of 2 kLanes rows for real grids, kLanes for complex ones).
ATTNBENCH_EACH_ISA(void fft_rows(const FftGrid&, Fft2Args::Kind, const float* x, float* y, float* middle,
                                 int64_t middle_row, int64_t group, float scale, float* scratch))
/// Column block `block` of kLanes columns.
ATTNBENCH_EACH_ISA(void fft_columns(const FftGrid&, Fft2Args::Kind, const float* x, float* y, float* middle,
                                    int64_t middle_row, int64_t block, float scale, float* scratch))

/// x[i] *= s for n floats.
ATTNBENCH_EACH_ISA(void scale_run(float* x, int64_t n, float s))
/// x[i] *= mask[i] for n floats.
ATTNBENCH_EACH_ISA(void mask_run(float* x, const float* mask, int64_t n))

}  // namespace attnbench
