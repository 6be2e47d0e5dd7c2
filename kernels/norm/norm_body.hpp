// Row normalisation over vectors, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/norm/norm_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

/// Sum over the row of f(element), with four sums in flight and a fixed order. The padding of the
/// last vector does not count.
template <class T, class Term>
ATTNBENCH_INLINE float sum_row(const T* x, int64_t n, const Term& term) {
  F s[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) s[u] += term(load(x + i + u * kLanes));
  for (; i + kLanes <= n; i += kLanes) s[0] += term(load(x + i));
  if (const int64_t rest = n - i; rest > 0) {
    F v = term(load_part(x + i, rest));
    for (int l = 0; l < kLanes; ++l)
      if (l >= rest) v[l] = 0.0f;
    s[1] += v;
  }
  return sum_lanes((s[0] + s[1]) + (s[2] + s[3]));
}

template <class T>
void row(const NormRow& w) {
  const T* x = static_cast<const T*>(w.x);
  const T* gain = static_cast<const T*>(w.gain);
  const T* offset = static_cast<const T*>(w.offset);
  T* y = static_cast<T*>(w.y);
  const float n = static_cast<float>(w.n);
  // The second pass subtracts the mean first: a sum of squares minus n mean^2 would cancel.
  const float mean = w.kind == NormArgs::Kind::layer_norm
                         ? sum_row(
                               x, w.n, [](F v) __attribute__((always_inline)) { return v; }) /
                               n
                         : 0.0f;
  const F m = splat(mean);
  const float var = sum_row(
                        x, w.n, [m](F v) __attribute__((always_inline)) { return (v - m) * (v - m); }) /
                    n;
  const F inverse = splat(1.0f / __builtin_sqrtf(var + w.eps));
  int64_t i = 0;
  for (; i + kLanes <= w.n; i += kLanes) {
    F v = (load(x + i) - m) * inverse;
    if (gain) v *= load(gain + i);
    if (offset) v += load(offset + i);
    store(y + i, v);
  }
  if (const int64_t rest = w.n - i; rest > 0) {
    F v = (load_part(x + i, rest) - m) * inverse;
    if (gain) v *= load_part(gain + i, rest);
    if (offset) v += load_part(offset + i, rest);
    store_part(y + i, v, rest);
  }
}

}  // namespace

void norm_row(const NormRow& w) {
  if (w.dtype == DType::f32) return row<float>(w);
  if (w.dtype == DType::bf16) return row<bf16>(w);
  return row<f16>(w);
}

}  // namespace attnbench::ATTNBENCH_ISA
