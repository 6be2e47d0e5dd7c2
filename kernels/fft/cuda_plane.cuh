// Two-dimensional transforms of planes that fit in shared memory: one trip to memory instead of cuFFT's two.
#pragma once
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/fft/fft.hpp"

namespace attnbench {

/// Submits the transform of `args` whose images are the rows of x and y (last axis: an image's numbers).
/// False, with nothing done, where planes do not fit, a size has a prime factor above 13, numbers lie off
/// their places of 8 bytes, or so few large planes would leave most of the card idle.
bool fft2_planes(Context& ctx, const Fft2Args& args, const Tensor& x, const Tensor& y);

}  // namespace attnbench
