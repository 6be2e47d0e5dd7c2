// Rows of the spectrum loss, compiled once per instruction set; see isa.hpp. Plain loops that compilers
// vectorise.
#include "kernels/spectral_loss/spectral_loss_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {

void distances(const float* __restrict z, int64_t n, float* __restrict d) {
  for (int64_t i = 0; i < n; ++i)
    d[i] = __builtin_sqrtf(z[2 * i] * z[2 * i] + z[2 * i + 1] * z[2 * i + 1] + 1e-12f);
}

void distances_reversed(const float* __restrict z, int64_t n, float* __restrict d) {
  for (int64_t i = 0; i < n; ++i)
    d[n - 1 - i] = __builtin_sqrtf(z[2 * i] * z[2 * i] + z[2 * i + 1] * z[2 * i + 1] + 1e-12f);
}

double open_sum(const float* __restrict l, const float* __restrict keep, int64_t n) {
  // Sixteen sums hide the latency of the additions; their number fixes the order for every instruction set.
  constexpr int kSums = 16;
  double s[kSums] = {};
  int64_t i = 0;
  if (keep) {
    for (; i + kSums <= n; i += kSums)
      for (int u = 0; u < kSums; ++u) s[u] += static_cast<double>((1.0f - keep[i + u]) * l[i + u]);
    for (; i < n; ++i) s[0] += static_cast<double>((1.0f - keep[i]) * l[i]);
  } else {
    for (; i + kSums <= n; i += kSums)
      for (int u = 0; u < kSums; ++u) s[u] += static_cast<double>(l[i + u]);
    for (; i < n; ++i) s[0] += static_cast<double>(l[i]);
  }
  double sum = 0.0;
  for (int u = 0; u < kSums; ++u) sum += s[u];
  return sum;
}

}  // namespace attnbench::ATTNBENCH_ISA
