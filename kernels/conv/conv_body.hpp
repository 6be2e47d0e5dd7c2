// Depthwise convolutions over vectors of channels or columns, compiled once per instruction set; see isa.hpp.
#include "kernels/conv/conv_rows.hpp"
#include "kernels/core/simd.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

template <class T>
void pixel(const void* const* taps, int64_t count, const float* weight, const float* bias, T* y, int64_t n) {
  // Four sums of one tap each would wait for their additions; four vectors of channels do not.
  constexpr int kVectors = 4;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= n; c += kVectors * kLanes) {
    F s[kVectors] = {};
    if (bias)
      for (int v = 0; v < kVectors; ++v) s[v] = load(bias + c + v * kLanes);
    for (int64_t t = 0; t < count; ++t) {
      if (!taps[t]) continue;
      const T* x = static_cast<const T*>(taps[t]) + c;
      const float* w = weight + t * n + c;
      for (int v = 0; v < kVectors; ++v) s[v] += load(x + v * kLanes) * load(w + v * kLanes);
    }
    for (int v = 0; v < kVectors; ++v) store(y + c + v * kLanes, s[v]);
  }
  for (; c < n; c += kLanes) {
    const int64_t rest = n - c < kLanes ? n - c : kLanes;
    F s = bias ? load_part(bias + c, rest) : F{};
    for (int64_t t = 0; t < count; ++t)
      if (taps[t])
        s += load_part(static_cast<const T*>(taps[t]) + c, rest) * load_part(weight + t * n + c, rest);
    store_part(y + c, s, rest);
  }
}

template <class T>
void row(const float* const* rows, int64_t height, int64_t width, const float* weight, float bias,
         int64_t stride, int64_t dilation, T* y, int64_t n) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      F a = splat(bias), b = a;
      for (int64_t p = 0; p < height; ++p)
        for (int64_t q = 0; q < width; ++q) {
          const F w = splat(weight[p * width + q]);
          a += load(rows[p] + i + q * dilation) * w;
          b += load(rows[p] + i + kLanes + q * dilation) * w;
        }
      store(y + i, a);
      store(y + i + kLanes, b);
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t rest = n - i < kLanes ? n - i : kLanes;
    F a = splat(bias);
    for (int64_t p = 0; p < height; ++p)
      for (int64_t q = 0; q < width; ++q) {
        const float* x = rows[p] + i * stride + q * dilation;
        F v{};
        for (int64_t l = 0; l < kLanes; ++l)
          if (l < rest) v[l] = x[l * stride];
        a += v * splat(weight[p * width + q]);
      }
    store_part(y + i, a, rest);
  }
}

}  // namespace

void depthwise_pixel(DType t, const void* const* taps, int64_t count, const float* weight, const float* bias,
                     void* y, int64_t n) {
  if (t == DType::f32) return pixel(taps, count, weight, bias, static_cast<float*>(y), n);
  if (t == DType::bf16) return pixel(taps, count, weight, bias, static_cast<bf16*>(y), n);
  return pixel(taps, count, weight, bias, static_cast<f16*>(y), n);
}

void depthwise_row(DType t, const float* const* rows, int64_t height, int64_t width, const float* weight,
                   float bias, int64_t stride, int64_t dilation, void* y, int64_t n) {
  if (t == DType::f32)
    return row(rows, height, width, weight, bias, stride, dilation, static_cast<float*>(y), n);
  if (t == DType::bf16)
    return row(rows, height, width, weight, bias, stride, dilation, static_cast<bf16*>(y), n);
  return row(rows, height, width, weight, bias, stride, dilation, static_cast<f16*>(y), n);
}

}  // namespace attnbench::ATTNBENCH_ISA
