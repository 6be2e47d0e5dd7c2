#include <algorithm>
#include <cmath>
#include <vector>

#define ATTNBENCH_ISA isa_base
#include "kernels/core/backend.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/spectral_loss/spectral_loss.hpp"
#include "kernels/spectral_loss/spectral_loss_body.hpp"

namespace attnbench {

namespace {

struct Extents {
  int64_t batch, channels, height, width, half;
};

Extents extents_of(const SpectralLossArgs& a) {
  return {a.spectrum.dim(0), a.spectrum.dim(1), a.spectrum.dim(2), a.width, a.spectrum.dim(3)};
}

void require_f32(const Tensor& t, const Shape& shape, const char* what) {
  if (!(t.shape() == shape) || t.dtype() != DType::f32 || !t.contiguous())
    throw UsageError(std::string("spectral_loss: ") + what + " must be contiguous f32 " + shape.str() +
                     ", not " + std::string(name(t.dtype())) + " " + t.shape().str());
}

float power_of(float x, float exponent) {
  if (exponent == 1.0f) return x;
  if (exponent == 2.0f) return x * x;
  return std::pow(x, exponent);
}

/// Maximum that NaN wins, as the weight's definition needs.
float max_or_nan(float a, float b) { return std::isnan(a) || a > b ? a : b; }

/// The unnormalised focal weight of one frequency.
float focal_weight(const SpectralLossArgs& a, float re, float im) {
  const float power = re * re + im * im;
  const float w = a.focal_gamma == 2.0f ? power : power_of(std::sqrt(power), a.focal_gamma);
  return a.focal_log ? std::log1p(w) : w;
}

/// l of one frequency; `most` is the largest focal weight of its plane (or of the batch).
float loss_term(const SpectralLossArgs& a, float re, float im, float most) {
  const float d = std::sqrt(re * re + im * im + 1e-12f);
  const float l = power_of(d, a.gamma);
  if (!a.focal) return l;
  const float w = focal_weight(a, re, im) / most;
  return std::isnan(w) ? 0.0f * l : std::clamp(w, 0.0f, 1.0f) * l;
}

}  // namespace

Cost spectral_loss_cost(const SpectralLossArgs& a) {
  const Extents e = extents_of(a);
  const int64_t n = e.batch * e.channels * e.height * e.width;
  Cost c;
  c.elementwise = n * (4 + (a.mask ? 3 : 1) + (a.focal ? 4 : 0));
  c.special = n * (1 + (a.gamma != 1.0f ? 1 : 0));
  if (a.focal) c.special += n * (1 + (a.focal_gamma != 2.0f ? 1 : 0) + (a.focal_log ? 1 : 0));
  c.bytes_read = a.spectrum.nbytes() + (a.mask ? a.mask.nbytes() : 0);
  c.bytes_written = (a.map ? a.map.nbytes() : 0) + a.loss.nbytes();
  return c;
}

void spectral_loss(Context& ctx, const SpectralLossArgs& a) {
  if (!a.spectrum || a.spectrum.rank() != 5 || a.width < 1 || a.spectrum.dim(3) != a.width / 2 + 1)
    throw UsageError("spectral_loss: spectrum must be [B, C, H, W/2+1, 2] with W = " +
                     std::to_string(a.width) + ", not " + a.spectrum.shape().str());
  const Extents e = extents_of(a);
  require_f32(a.spectrum, {e.batch, e.channels, e.height, e.half, 2}, "spectrum");
  if (a.mask) require_f32(a.mask, {e.batch, e.height, e.width}, "mask");
  if (a.map) require_f32(a.map, {e.batch, e.channels, e.height, e.width}, "map");
  require_f32(a.loss, {1}, "loss");
  ctx.cost().charge(spectral_loss_cost(a));
  ctx.backend().spectral_loss(ctx, a);
}

void CpuBackend::spectral_loss(Context& ctx, const SpectralLossArgs& a) {
  const Extents e = extents_of(a);
  const int64_t planes = e.batch * e.channels;
  const float* spectrum = a.spectrum.data<float>();
  const float* mask = a.mask ? a.mask.data<float>() : nullptr;
  float* map = a.map ? a.map.data<float>() : nullptr;
  const auto row_of = [&](int64_t plane, int64_t ky) {
    return spectrum + (plane * e.height + ky) * e.half * 2;
  };

  // The half spectrum holds every magnitude of the full one.
  std::vector<float> most(static_cast<size_t>(planes), 0.0f);
  if (a.focal) {
#pragma omp parallel for schedule(static) num_threads(ctx.threads())
    for (int64_t plane = 0; plane < planes; ++plane) {
      float m = 0.0f;
      const float* s = row_of(plane, 0);
      for (int64_t i = 0; i < e.height * e.half; ++i)
        m = max_or_nan(m, focal_weight(a, s[2 * i], s[2 * i + 1]));
      most[static_cast<size_t>(plane)] = m;
    }
    if (a.focal_batch_max) {
      float m = 0.0f;
      for (float p : most) m = max_or_nan(m, p);
      std::fill(most.begin(), most.end(), m);
    }
  }

  const int64_t cy = e.height / 2, cx = e.width / 2, rows = planes * e.height;
  const bool plain = !a.focal && a.gamma == 1.0f;
  const auto plain_distances = ATTNBENCH_BEST(distances);
  const auto mirrored_distances = ATTNBENCH_BEST(distances_reversed);
  const auto sum_open = ATTNBENCH_BEST(open_sum);
  std::vector<double> row_sum(static_cast<size_t>(rows), 0.0), row_weight(row_sum.size(), 0.0);
  const std::vector<float> ones(static_cast<size_t>(e.width), 1.0f);
#pragma omp parallel num_threads(ctx.threads())
  {
    std::vector<float> line(static_cast<size_t>(e.width));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t plane = r / e.height, y = r % e.height;
      const int64_t ky = (y - cy + e.height) % e.height;
      const float m = most[static_cast<size_t>(plane)];
      float* l = map ? map + r * e.width : line.data();
      // Columns right of the centre are kx = 0 .. of this row; those left of it mirror kx = cx .. 1 of row
      // -ky, because |X(-k)| = |X(k)| for a real signal.
      const float* direct = row_of(plane, ky);
      const float* mirror = row_of(plane, (e.height - ky) % e.height);
      if (plain) {
        plain_distances(direct, e.width - cx, l + cx);
        mirrored_distances(mirror + 2, cx, l);
      } else {
        for (int64_t x = cx; x < e.width; ++x)
          l[x] = loss_term(a, direct[2 * (x - cx)], direct[2 * (x - cx) + 1], m);
        for (int64_t x = 0; x < cx; ++x)
          l[x] = loss_term(a, mirror[2 * (cx - x)], mirror[2 * (cx - x) + 1], m);
      }
      const float* keep = mask ? mask + (plane / e.channels * e.height + y) * e.width : nullptr;
      row_sum[static_cast<size_t>(r)] = sum_open(l, keep, e.width);
      // The channels share the mask: the first one counts it.
      if (keep && plane % e.channels == 0)
        row_weight[static_cast<size_t>(r)] = sum_open(ones.data(), keep, e.width);
    }
  }
  double sum = 0.0, weight = 0.0;
  for (double s : row_sum) sum += s;
  if (mask) {
    for (double w : row_weight) weight += w;
    weight *= static_cast<double>(e.channels);
  } else {
    weight = static_cast<double>(rows * e.width);
  }
  a.loss.data<float>()[0] = weight == 0.0 ? 0.0f : static_cast<float>(sum / weight);
}

}  // namespace attnbench
