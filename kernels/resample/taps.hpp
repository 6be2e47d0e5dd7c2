// The taps of one output position along one axis, for host and device code; see ResampleArgs.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/resample/resample.hpp"

#if defined(__CUDACC__)
#define ATTNBENCH_BOTH __host__ __device__
#else
#define ATTNBENCH_BOTH
#endif

namespace attnbench {

struct TapAxis {
  int64_t in = 0, out = 0;
  ResampleArgs::Kind kind = ResampleArgs::Kind::bilinear;
  bool antialias = false, align_corners = false;

  TapAxis() = default;
  TapAxis(const ResampleArgs& a, int axis)
      : kind(a.kind), antialias(a.antialias), align_corners(a.align_corners) {
    const int at = (a.channels_last ? 1 : 2) + axis;
    in = a.x.dim(at), out = a.y.dim(at);
  }
  double stretch() const {
    const double ratio = static_cast<double>(in) / static_cast<double>(out);
    return antialias && ratio > 1.0 ? ratio : 1.0;
  }
  /// Taps per output, the same for all: those outside have weight 0.
  int64_t count() const {
    using Kind = ResampleArgs::Kind;
    if (kind == Kind::nearest) return 1;
    const double radius = kind == Kind::bilinear ? 1.0 : kind == Kind::bicubic ? 2.0 : 3.0;
    return 2 * static_cast<int64_t>(std::ceil(radius * stretch()));
  }

  ATTNBENCH_BOTH static double keys(double t, double a) {
    t = t < 0 ? -t : t;
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    if (t < 2) return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
    return 0.0;
  }
  ATTNBENCH_BOTH static double sinc(double t) {
    if (t == 0.0) return 1.0;
    const double p = t * 3.14159265358979323846;
    return sin(p) / p;
  }
  ATTNBENCH_BOTH double weight(double t) const {
    using Kind = ResampleArgs::Kind;
    const double d = t < 0 ? -t : t;
    if (kind == Kind::bilinear) return d < 1 ? 1 - d : 0.0;
    if (kind == Kind::bicubic) return keys(t, antialias ? -0.5 : -0.75);
    return d < 3 ? sinc(t) * sinc(t / 3) : 0.0;
  }

  /// Fills `taps` positions and weights (f32) of output i; at[j] is always inside.
  ATTNBENCH_BOTH void fill(int64_t i, int64_t taps, double stretched, int32_t* at, float* w) const {
    using Kind = ResampleArgs::Kind;
    const auto inside = [&](int64_t p) { return static_cast<int32_t>(p < 0 ? 0 : p >= in ? in - 1 : p); };
    if (kind == Kind::nearest) {
      at[0] = inside(i * in / out);
      w[0] = 1.0f;
      return;
    }
    const double ratio = static_cast<double>(in) / static_cast<double>(out);
    double u = (static_cast<double>(i) + 0.5) * ratio - 0.5;
    if (align_corners)
      u = out == 1 ? 0.0
                   : static_cast<double>(i) * (static_cast<double>(in - 1) / static_cast<double>(out - 1));
    if (kind == Kind::bilinear && !antialias && u < 0) u = 0.0;
    // floor(u) is the last position at or before u; half of the taps are there or before.
    const double low = floor(u);
    const int64_t first = static_cast<int64_t>(low) - taps / 2 + 1;
    if (!antialias) {
      for (int64_t j = 0; j < taps; ++j) {
        at[j] = inside(first + j);
        w[j] = static_cast<float>(weight(static_cast<double>(first + j) - u));
      }
      return;
    }
    double sum = 0.0;
    for (int64_t j = 0; j < taps; ++j) {
      const int64_t p = first + j;
      if (p >= 0 && p < in) sum += weight((static_cast<double>(p) - u) / stretched);
    }
    for (int64_t j = 0; j < taps; ++j) {
      const int64_t p = first + j;
      at[j] = inside(p);
      w[j] = p >= 0 && p < in ? static_cast<float>(weight((static_cast<double>(p) - u) / stretched) / sum)
                              : 0.0f;
    }
  }
};

}  // namespace attnbench
