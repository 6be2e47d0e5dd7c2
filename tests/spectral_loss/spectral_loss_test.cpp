// The spectrum loss against sums written out in double precision.
#include "kernels/spectral_loss/spectral_loss.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/backend.hpp"
#include "kernels/core/isa.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// A half spectrum of a real signal: free values, but the self-conjugate columns are made Hermitian.
Tensor hermitian(Context& ctx, int64_t planes, int64_t h, int64_t w, float scale) {
  const int64_t half = w / 2 + 1;
  Tensor s = ctx.allocate(DType::f32, {1, planes, h, half, 2});
  float* p = s.data<float>();
  for (int64_t i = 0; i < s.numel(); ++i)
    p[i] = scale * std::sin(static_cast<float>(i) * 0.7f + 0.3f * static_cast<float>(i % 7));
  for (int64_t c = 0; c < planes; ++c)
    for (int64_t x = 0; x < half; ++x) {
      if (x != 0 && 2 * x != w) continue;
      for (int64_t y = 0; y < h; ++y) {
        const int64_t mirror = (h - y) % h;
        if (mirror < y) continue;
        float* a = p + ((c * h + y) * half + x) * 2;
        float* b = p + ((c * h + mirror) * half + x) * 2;
        if (mirror == y) a[1] = 0.0f;
        b[0] = a[0];
        b[1] = -a[1];
      }
    }
  return s;
}

/// |X|^2 at centred position (y, x) of the full grid.
double power_at(const Tensor& s, int64_t plane, int64_t y, int64_t x, int64_t h, int64_t w) {
  const int64_t half = w / 2 + 1;
  int64_t ky = (y - h / 2 + h) % h, kx = (x - w / 2 + w) % w;
  if (kx > w / 2) ky = (h - ky) % h, kx = w - kx;
  const float* p = s.data<float>() + ((plane * h + ky) * half + kx) * 2;
  return double(p[0]) * p[0] + double(p[1]) * p[1];
}

}  // namespace

TEST_CASE("spectral_loss agrees with the sum written out") {
  Context ctx(cpu_backend(), 2);
  const int64_t h = GENERATE(5, 6), w = GENERATE(7, 8, 1, 41), c = 3;
  const float gamma = GENERATE(1.0f, 2.0f, 1.5f);
  const int focal = GENERATE(0, 1, 2, 3);  // off, plane maximum, batch maximum with log, focal_gamma 2
  const bool masked = GENERATE(true, false);
  limit_isa(GENERATE(Isa::base, Isa::avx2, Isa::avx512));
  Tensor s = hermitian(ctx, c, h, w, 2.0f);
  SpectralLossArgs args;
  args.spectrum = s;
  args.width = w;
  args.gamma = gamma;
  args.focal = focal > 0;
  args.focal_batch_max = args.focal_log = focal == 2;
  args.focal_gamma = focal == 3 ? 2.0f : focal == 2 ? 0.5f : 1.0f;
  args.map = ctx.allocate(DType::f32, {1, c, h, w});
  args.loss = ctx.allocate(DType::f32, {1});
  std::fill_n(args.map.data<float>(), args.map.numel(), kNaN);
  args.loss.data<float>()[0] = kNaN;
  if (masked) {
    args.mask = ctx.allocate(DType::f32, {1, h, w});
    for (int64_t i = 0; i < h * w; ++i) args.mask.data<float>()[i] = i % 3 == 0 ? 1.0f : 0.0f;
  }
  spectral_loss(ctx, args);

  std::vector<double> most(static_cast<size_t>(c), 0.0);
  double batch_most = 0;
  const auto weight = [&](double power) {
    const double v = std::pow(power, args.focal_gamma / 2.0);
    return args.focal_log ? std::log(1 + v) : v;
  };
  for (int64_t p = 0; p < c; ++p)
    for (int64_t i = 0; i < h * w; ++i) {
      double& m = most[static_cast<size_t>(p)];
      m = std::max(m, weight(power_at(s, p, i / w, i % w, h, w)));
      batch_most = std::max(batch_most, m);
    }
  double sum = 0, count = 0, worst = 0;
  for (int64_t p = 0; p < c; ++p)
    for (int64_t i = 0; i < h * w; ++i) {
      const double power = power_at(s, p, i / w, i % w, h, w);
      double l = std::pow(power + 1e-12, gamma / 2.0);
      if (args.focal) l *= weight(power) / (args.focal_batch_max ? batch_most : most[static_cast<size_t>(p)]);
      const double keep = masked ? args.mask.data<float>()[i] : 0.0;
      sum += (1 - keep) * l;
      count += 1 - keep;
      worst = std::max(worst, std::abs(l - args.map.data<float>()[p * h * w + i]) / (1e-12 + l));
    }
  // Ten roundings of 2^-24 (squares, sum, root, powers, division, product), doubled by the exponents.
  CHECK(worst < 20 * 6e-8);
  const double want = count > 0 ? sum / count : 0.0;
  CHECK(std::abs(args.loss.data<float>()[0] - want) <= 20 * 6e-8 * want);
  CHECK(ctx.cost().total() == spectral_loss_cost(args));
  limit_isa(Isa::avx512);
  CHECK(ctx.cost().total().bytes_written == 4 * (c * h * w + 1));
}

TEST_CASE("spectral_loss: equal images, nothing masked, NaN") {
  Context ctx(cpu_backend(), 1);
  SpectralLossArgs args;
  args.width = 4;
  args.spectrum = ctx.allocate(DType::f32, {2, 1, 3, 3, 2});
  std::fill_n(args.spectrum.data<float>(), args.spectrum.numel(), 0.0f);
  args.loss = ctx.allocate(DType::f32, {1});
  args.loss.data<float>()[0] = kNaN;
  SECTION("equal images give 1e-6") {
    spectral_loss(ctx, args);
    CHECK(args.loss.data<float>()[0] == Approx(1e-6).epsilon(1e-6));
  }
  SECTION("the focal weight of equal images is 0/0, which counts as 0") {
    args.focal = true;
    spectral_loss(ctx, args);
    CHECK(args.loss.data<float>()[0] == 0.0f);
  }
  SECTION("an empty masked set gives 0") {
    args.mask = ctx.allocate(DType::f32, {2, 3, 4});
    std::fill_n(args.mask.data<float>(), args.mask.numel(), 1.0f);
    spectral_loss(ctx, args);
    CHECK(args.loss.data<float>()[0] == 0.0f);
  }
  SECTION("NaN reaches the loss") {
    args.spectrum.data<float>()[5] = kNaN;
    args.focal = GENERATE(false, true);
    spectral_loss(ctx, args);
    CHECK(std::isnan(args.loss.data<float>()[0]));
  }
  SECTION("wrong shapes are refused") {
    args.width = 6;
    CHECK_THROWS_AS(spectral_loss(ctx, args), UsageError);
  }
}
