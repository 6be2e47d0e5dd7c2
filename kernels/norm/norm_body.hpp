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
  float scale = 1.0f / __builtin_sqrtf(var + w.eps);
  if (w.kind == NormArgs::Kind::l2_norm) {  // var * n is the sum of squares
    const float norm = __builtin_sqrtf(var * n);
    scale = 1.0f / (norm > w.eps || norm != norm ? norm : w.eps);
  }
  const F inverse = splat(scale);
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

template <class T>
void affine(const T* x, T* y, const float* scale, const float* shift, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i < kLanes ? n - i : kLanes;
    if (rest == kLanes)
      store(y + i, load(x + i) * load(scale + i) + load(shift + i));
    else
      store_part(y + i, load_part(x + i, rest) * load_part(scale + i, rest) + load_part(shift + i, rest),
                 rest);
  }
}

template <class T>
void affine_one(const T* x, T* y, float scale, float shift, int64_t n) {
  const F a = splat(scale), b = splat(shift);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * a + b);
  if (i < n) store_part(y + i, load_part(x + i, n - i) * a + b, n - i);
}

template <class T>
void moments(const T* x, int64_t n, double* sum, double* squares) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const D v = __builtin_convertvector(load(x + i), D);
    D s, q;
    std::memcpy(&s, sum + i, sizeof s);
    std::memcpy(&q, squares + i, sizeof q);
    s += v, q += v * v;
    std::memcpy(sum + i, &s, sizeof s);
    std::memcpy(squares + i, &q, sizeof q);
  }
  if (i < n) {
    const F v = load_part(x + i, n - i);
    for (int64_t l = 0; l < n - i; ++l) {
      const auto d = static_cast<double>(v[l]);
      sum[i + l] += d, squares[i + l] += d * d;
    }
  }
}

/// Four sums hide the latency of the additions; they are joined in a fixed order.
template <class T>
void moments_one(const T* x, int64_t n, double* sum, double* squares) {
  D s[4] = {}, q[4] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const int u = static_cast<int>(i / kLanes % 4);
    const D v = __builtin_convertvector(load(x + i), D);
    s[u] += v, q[u] += v * v;
  }
  if (i < n) {
    const D v = __builtin_convertvector(load_part(x + i, n - i), D);
    s[0] += v, q[0] += v * v;
  }
  const D st = (s[0] + s[1]) + (s[2] + s[3]), qt = (q[0] + q[1]) + (q[2] + q[3]);
  for (int l = 0; l < kLanes; ++l) *sum += st[l], *squares += qt[l];
}

}  // namespace

void norm_row(const NormRow& w) {
  if (w.dtype == DType::f32) return row<float>(w);
  if (w.dtype == DType::bf16) return row<bf16>(w);
  return row<f16>(w);
}

void norm_affine(DType t, const void* x, void* y, const float* scale, const float* shift, int64_t n) {
  if (t == DType::f32) return affine(static_cast<const float*>(x), static_cast<float*>(y), scale, shift, n);
  if (t == DType::bf16) return affine(static_cast<const bf16*>(x), static_cast<bf16*>(y), scale, shift, n);
  affine(static_cast<const f16*>(x), static_cast<f16*>(y), scale, shift, n);
}

void norm_affine_one(DType t, const void* x, void* y, float scale, float shift, int64_t n) {
  if (t == DType::f32)
    return affine_one(static_cast<const float*>(x), static_cast<float*>(y), scale, shift, n);
  if (t == DType::bf16)
    return affine_one(static_cast<const bf16*>(x), static_cast<bf16*>(y), scale, shift, n);
  affine_one(static_cast<const f16*>(x), static_cast<f16*>(y), scale, shift, n);
}

void add_moments(DType t, const void* x, int64_t n, double* sum, double* squares) {
  if (t == DType::f32) return moments(static_cast<const float*>(x), n, sum, squares);
  if (t == DType::bf16) return moments(static_cast<const bf16*>(x), n, sum, squares);
  moments(static_cast<const f16*>(x), n, sum, squares);
}

void add_moments_one(DType t, const void* x, int64_t n, double* sum, double* squares) {
  if (t == DType::f32) return moments_one(static_cast<const float*>(x), n, sum, squares);
  if (t == DType::bf16) return moments_one(static_cast<const bf16*>(x), n, sum, squares);
  moments_one(static_cast<const f16*>(x), n, sum, squares);
}

}  // namespace attnbench::ATTNBENCH_ISA
