// The selective scan along time with channels in lanes, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/scan/scan_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

template <class T>
float one(const T* p) {
  return static_cast<float>(*p);
}
#if defined(__F16C__)
inline float one(const f16* p) { return _cvtsh_ss(p->bits); }
#endif
inline float one(const bf16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + t), t = e^-|x| in (0, 1].
ATTNBENCH_INLINE F softplus(F x) {
  const F size = as_float(as_uint(x) & 0x7fffffffu);
  const F t = exp(-size), y = 1.0f + t;
  // ln y on [sqrt(1/2), sqrt(2)] by the classic single-precision polynomial, after halving what is above.
  const I high = y > splat(1.41421356f);
  const F z = (high != 0 ? 0.5f * y : y) - 1.0f;
  F p = splat(7.0376836292e-2f);
  p = p * z - splat(1.1514610310e-1f);
  p = p * z + splat(1.1676998740e-1f);
  p = p * z - splat(1.2420140846e-1f);
  p = p * z + splat(1.4249322787e-1f);
  p = p * z - splat(1.6668057665e-1f);
  p = p * z + splat(2.0000714765e-1f);
  p = p * z - splat(2.4999993993e-1f);
  p = p * z + splat(3.3333331174e-1f);
  const F e = high != 0 ? splat(1.0f) : F{};
  const F square = z * z;
  const F ln = z + (p * z * square - e * splat(2.12194440e-4f) - 0.5f * square) + e * splat(0.693359375f);
  // What 1 + t has rounded away is put back: ln(1 + t) = t ln y / (y - 1).
  const F gap = y - 1.0f;
  const F small = gap == 0.0f ? t : ln * (t / (gap == 0.0f ? splat(1.0f) : gap));
  return (x > 0.0f ? x : F{}) + small + (x != x ? x : F{});
}

template <class T>
void scan(const ScanRows& w) {
  constexpr int64_t kVectors = kScanChannels / kLanes;
  const auto get = [&](const T* row, int64_t c) __attribute__((always_inline)) {
    const int64_t rest = w.channels - c;
    return rest >= kLanes ? load(row + c) : rest > 0 ? load_part(row + c, rest) : F{};
  };
  const T* u = static_cast<const T*>(w.u);
  const T* delta = static_cast<const T*>(w.delta);
  const T* b = static_cast<const T*>(w.b);
  const T* c = static_cast<const T*>(w.c);
  const T* z = static_cast<const T*>(w.z);
  T* y = static_cast<T*>(w.y);
  for (int64_t t = 0; t < w.length; ++t) {
    F dt[kVectors], du[kVectors], sum[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      const F x = get(u, v * kLanes);
      dt[v] = get(delta, v * kLanes);
      if (w.softplus) dt[v] = softplus(w.bias ? dt[v] + load(w.bias + v * kLanes) : dt[v]);
      du[v] = dt[v] * x;
      sum[v] = w.skip ? load(w.skip + v * kLanes) * x : F{};
    }
    for (int64_t s = 0; s < w.states; ++s) {
      const F bs = splat(one(b + s)), cs = splat(one(c + s));
      const float* a = w.a + s * kScanChannels;
      float* h = w.state + s * kScanChannels;
      for (int64_t v = 0; v < kVectors; ++v) {
        const F next = exp(dt[v] * load(a + v * kLanes)) * load(h + v * kLanes) + du[v] * bs;
        store(h + v * kLanes, next);
        sum[v] += cs * next;
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t at = v * kLanes, rest = w.channels - at;
      if (rest <= 0) break;
      F r = sum[v];
      if (z) {
        const F g = get(z, at);
        r = r * (g * sigmoid(g));
      }
      if (rest >= kLanes)
        store(y + at, r);
      else
        store_part(y + at, r, rest);
    }
    u += w.u_step, delta += w.delta_step, b += w.b_step, c += w.c_step, y += w.y_step;
    if (z) z += w.z_step;
  }
}

}  // namespace

void scan_rows(const ScanRows& w) {
  if (w.dtype == DType::f32) return scan<float>(w);
  if (w.dtype == DType::bf16) return scan<bf16>(w);
  scan<f16>(w);
}

}  // namespace attnbench::ATTNBENCH_ISA
