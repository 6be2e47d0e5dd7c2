// Pointwise work on spectra, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/fft/fft_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {

void scale_run(float* x, int64_t n, float s) {
  for (int64_t i = 0; i < n; ++i) x[i] *= s;
}

void mask_run(float* x, const float* mask, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[2 * i] *= mask[i];
    x[2 * i + 1] *= mask[i];
  }
}

}  // namespace attnbench::ATTNBENCH_ISA
