// cuFFT's plans, cached by shape with their workspace from the context; shared by all operators of this
// folder.
#pragma once
#include <cufft.h>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/fft/fft.hpp"

namespace attnbench {

/// A batch of height x width grids (1 x n: lines), `*_distance` elements of the side's own type apart.
struct CufftKey {
  Fft2Args::Kind kind;
  int64_t height, width, batch, x_distance, y_distance;
  auto operator<=>(const CufftKey&) const = default;
};
/// Submits the transform; half_to_real may overwrite x. Throws Unsupported, OutOfMemory or Error.
void execute_cufft(Context& ctx, const CufftKey& key, float* x, float* y);

}  // namespace attnbench
