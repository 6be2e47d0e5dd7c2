// Products of one query with its neighbours, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/neighborhood/neighborhood_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

template <class T>
void dots(const T* q, const void* const* k, int64_t count, int64_t d, float scale, float* out) {
  for (int64_t t = 0; t < count; ++t) {
    const T* row = static_cast<const T*>(k[t]);
    F s = F{};
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) s += load(q + i) * load(row + i);
    if (const int64_t rest = d - i; rest > 0) s += load_part(q + i, rest) * load_part(row + i, rest);
    float sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += s[l];
    out[t] = scale * sum;
  }
}

template <class T>
void sums(const float* a, const void* const* v, int64_t count, int64_t e, T* o) {
  int64_t i = 0;
  for (; i + kLanes <= e; i += kLanes) {
    F s = F{};
    for (int64_t t = 0; t < count; ++t) s += splat(a[t]) * load(static_cast<const T*>(v[t]) + i);
    store(o + i, s);
  }
  if (const int64_t rest = e - i; rest > 0) {
    F s = F{};
    for (int64_t t = 0; t < count; ++t) s += splat(a[t]) * load_part(static_cast<const T*>(v[t]) + i, rest);
    store_part(o + i, s, rest);
  }
}

template <class T>
void widened(const T* row, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(row + i));
  if (const int64_t rest = n - i; rest > 0) store_part(out + i, load_part(row + i, rest), rest);
}

}  // namespace

void neighborhood_dots(DType t, const void* q, const void* const* k, int64_t count, int64_t d, float scale,
                       float* out) {
  if (t == DType::f32) return dots(static_cast<const float*>(q), k, count, d, scale, out);
  if (t == DType::bf16) return dots(static_cast<const bf16*>(q), k, count, d, scale, out);
  dots(static_cast<const f16*>(q), k, count, d, scale, out);
}
void neighborhood_sum(DType t, const float* a, const void* const* v, int64_t count, int64_t e, void* o) {
  if (t == DType::f32) return sums(a, v, count, e, static_cast<float*>(o));
  if (t == DType::bf16) return sums(a, v, count, e, static_cast<bf16*>(o));
  sums(a, v, count, e, static_cast<f16*>(o));
}
void neighborhood_widen(DType t, const void* row, int64_t n, float* out) {
  if (t == DType::f32) return widened(static_cast<const float*>(row), n, out);
  if (t == DType::bf16) return widened(static_cast<const bf16*>(row), n, out);
  widened(static_cast<const f16*>(row), n, out);
}

}  // namespace attnbench::ATTNBENCH_ISA
