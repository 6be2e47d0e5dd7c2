// Chains of multiply-adds in registers, compiled once per instruction set. See isa.hpp for the rules.
#include <cstdint>

namespace attnbench::ATTNBENCH_ISA {

#if defined(__AVX512F__)
constexpr int kPeakBytes = 64;
#elif defined(__AVX2__)
constexpr int kPeakBytes = 32;
#else
constexpr int kPeakBytes = 16;
#endif

// 12 chains: Zen and Intel cores need latency 4 x 2 units = 8 (10 on Haswell); 12 + 2 operands fit 16
// registers.
constexpr int kChains = 12;

/// Runs `rounds` x kChains vector multiply-adds, returns the FLOPs done; `sink` gets a value that depends on
/// all of them.
template <class T>
int64_t fma_burst(int64_t rounds, T* sink) {
  typedef T V __attribute__((vector_size(kPeakBytes)));
  constexpr int lanes = kPeakBytes / static_cast<int>(sizeof(T));
  V a, b, c[kChains];
  for (int l = 0; l < lanes; ++l) {
    a[l] = static_cast<T>(0.5) + static_cast<T>(l) * static_cast<T>(1e-3);  // converges: no infinities
    b[l] = static_cast<T>(1e-6);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) c[i] = b * static_cast<T>(i);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) c[i] = c[i] * a + b;
  }
  V s = c[0];
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) s += c[i];
  for (int l = 0; l < lanes; ++l) *sink += s[l];
  return rounds * kChains * lanes * 2;
}

int64_t fma_burst_f32(int64_t rounds, double* sink) {
  float s = 0;
  const int64_t n = fma_burst<float>(rounds, &s);
  *sink += static_cast<double>(s);
  return n;
}
int64_t fma_burst_f64(int64_t rounds, double* sink) { return fma_burst<double>(rounds, sink); }

}  // namespace attnbench::ATTNBENCH_ISA
