// Sums and maxima of grid cells over channel vectors, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/pool/pool_rows.hpp"

namespace attnbench::ATTNBENCH_ISA {
namespace {

template <class T>
void cell(const T* x, int64_t sh, int64_t sw, int64_t height, int64_t width, T* y, int64_t channels,
          float scale) {
  // Four vectors of channels at a time: whole cache lines of every pixel, and sums that stay in registers.
  constexpr int kVectors = 4;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= channels; c += kVectors * kLanes) {
    F s[kVectors] = {};
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < width; ++w)
        for (int v = 0; v < kVectors; ++v) s[v] += load(x + h * sh + w * sw + c + v * kLanes);
    for (int v = 0; v < kVectors; ++v) store(y + c + v * kLanes, s[v] * scale);
  }
  for (; c < channels; c += kLanes) {
    const int64_t rest = channels - c < kLanes ? channels - c : kLanes;
    F s{};
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < width; ++w) {
        const T* p = x + h * sh + w * sw + c;
        s += rest == kLanes ? load(p) : load_part(p, rest);
      }
    if (rest == kLanes)
      store(y + c, s * scale);
    else
      store_part(y + c, s * scale, rest);
  }
}

/// NaN, once seen, stays: it is collected beside the maxima, as in RunningMax.
template <class T>
void cell_max(const T* x, int64_t sh, int64_t sw, int64_t height, int64_t width, T* y, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t rest = channels - c < kLanes ? channels - c : kLanes;
    RunningMax m;
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < width; ++w) {
        const T* p = x + h * sh + w * sw + c;
        m.add(rest == kLanes ? load(p) : load_part(p, rest));
      }
    const F top = m.nan != 0 ? splat(__builtin_nanf("")) : m.top;
    if (rest == kLanes)
      store(y + c, top);
    else
      store_part(y + c, top, rest);
  }
}

}  // namespace

void pool_cell(DType t, const void* x, int64_t sh, int64_t sw, int64_t height, int64_t width, void* y,
               int64_t channels, float scale) {
  if (t == DType::f32)
    return cell(static_cast<const float*>(x), sh, sw, height, width, static_cast<float*>(y), channels, scale);
  if (t == DType::bf16)
    return cell(static_cast<const bf16*>(x), sh, sw, height, width, static_cast<bf16*>(y), channels, scale);
  return cell(static_cast<const f16*>(x), sh, sw, height, width, static_cast<f16*>(y), channels, scale);
}

void pool_cell_max(DType t, const void* x, int64_t sh, int64_t sw, int64_t height, int64_t width, void* y,
                   int64_t channels) {
  if (t == DType::f32)
    return cell_max(static_cast<const float*>(x), sh, sw, height, width, static_cast<float*>(y), channels);
  if (t == DType::bf16)
    return cell_max(static_cast<const bf16*>(x), sh, sw, height, width, static_cast<bf16*>(y), channels);
  return cell_max(static_cast<const f16*>(x), sh, sw, height, width, static_cast<f16*>(y), channels);
}

}  // namespace attnbench::ATTNBENCH_ISA
