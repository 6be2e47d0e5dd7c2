// FFTW's plans of one transform, made once per process and shared by all operators. CPU only; not a contract.
#pragma once
#include <fftw3.h>

#include <cstdint>

#include "kernels/fft/fft.hpp"

namespace attnbench {

/// What a plan depends on: a grid of 1 x n points is a line.
struct FftwKey {
  Fft2Args::Kind kind;
  int64_t height, width;
  bool aligned = true, in_place = false;
  auto operator<=>(const FftwKey&) const = default;
};
/// A single-threaded plan of one image, to be applied by execute_fftw from any thread (FFTW's planner is not
/// thread-safe, so this is the only place that calls it). x and y are not touched. Throws Unsupported.
fftwf_plan fftw_plan(const FftwKey& key, float* x, float* y);
void execute_fftw(Fft2Args::Kind kind, fftwf_plan plan, float* x, float* y);

}  // namespace attnbench
