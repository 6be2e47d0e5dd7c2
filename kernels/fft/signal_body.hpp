// Pointwise work between transforms, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/fft/signal_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {

void complex_product(const float* a, const float* b, float* y, int64_t n, bool conjugate) {
  // (ar + i ai)(br +- i bi): swapped neighbours times the imaginary part, with alternating signs.
  I swap, even, odd;
  F sign;
  for (int l = 0; l < kLanes; ++l) {
    swap[l] = l ^ 1, even[l] = l & ~1, odd[l] = l | 1;
    sign[l] = ((l & 1) != 0) == conjugate ? -1.0f : 1.0f;
  }
  const auto product = [&](F x, F w) __attribute__((always_inline)) {
    return x * __builtin_shuffle(w, even) + __builtin_shuffle(x, swap) * (__builtin_shuffle(w, odd) * sign);
  };
  int64_t i = 0;
  const int64_t floats = 2 * n;
  for (; i + kLanes <= floats; i += kLanes) store(y + i, product(load(a + i), load(b + i)));
  if (const int64_t rest = floats - i; rest > 0)
    store_part(y + i, product(load_part(a + i, rest), load_part(b + i, rest)), rest);
}

void complex_magnitude(const float* a, float* y, int64_t n) {
  // The larger part is factored out: squares of 1e30 overflow, those of 1e-30 vanish.
  for (int64_t i = 0; i < n; ++i) {
    const float re = __builtin_fabsf(a[2 * i]), im = __builtin_fabsf(a[2 * i + 1]);
    const float most = re > im ? re : im, least = re > im ? im : re;
    const float ratio = most > 0.0f && most < __builtin_inff() ? least / most : 0.0f;
    const float r = most * __builtin_sqrtf(1.0f + ratio * ratio);
    y[i] = re != re || im != im ? __builtin_nanf("") : r;
  }
}

void real_product(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
}

void add_product(const float* a, const float* b, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a[i] * b[i];
}

}  // namespace attnbench::ATTNBENCH_ISA
