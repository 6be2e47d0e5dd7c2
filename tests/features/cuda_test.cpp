// Rows and features of kernelized attention on the GPU against the CPU's operators.
#include "kernels/features/features.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// A few roundings of f32 an element, whatever the length: sums are f64, functions good to about 2 ulp.
constexpr double kElement = 8 * 0x1p-24;

}  // namespace

TEST_CASE("CUDA unit_rows agrees with the CPU: kinds, types, odd widths, gains, strides, in place") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1101);
  using Kind = UnitRowsArgs::Kind;
  for (Kind kind : {Kind::norm, Kind::mean, Kind::scale})
    for (DType type : {DType::f32, DType::bf16, DType::f16})
      for (int64_t c : {1, 3, 16, 33, 64, 257, 1030})
        for (bool gained : {false, true}) {
          // Without gain the result has the type of x, and may round to either neighbour.
          const DType to = gained ? DType::f32 : type;
          const Twin x = s.padded(type, {2, 5, c}, 3, 2), y = s.padded_output(to, {2, 5, c}, 1, 2);
          const Twin like = kind == Kind::norm && gained ? s.random(type, {2, 5, c}) : Twin{};
          const Twin gain = gained ? s.random(DType::f32, {2, 5}, 0.5, 2) : Twin{};
          UnitRowsArgs there, here;
          there.x = x.device, here.x = x.host, there.y = y.device, here.y = y.host;
          there.like = like.device, here.like = like.host, there.gain = gain.device, here.gain = gain.host;
          there.floor = here.floor = 1e-6f, there.kind = here.kind = kind;
          there.alpha = here.alpha = 0.75f, there.beta = here.beta = 0.25f;
          unit_rows(s.device, there);
          unit_rows(s.host, here);
          INFO("kind " << static_cast<int>(kind) << " " << name(type) << " width " << c << " gain "
                       << gained);
          check_norm(s.fetch(y, true), values(y.host_base), to == DType::f32 ? kElement : epsilon_of(to));
        }
  // In place, a row of zeros among them.
  const Tensor rows = random(s.host, DType::f32, {7, 48}, s.r);
  fill(rows.slice(0, 2, 3), 0.0);
  const Twin z = s.upload(rows);
  UnitRowsArgs there, here;
  there.x = there.y = z.device, here.x = here.y = z.host, there.floor = here.floor = 1e-6f;
  unit_rows(s.device, there);
  unit_rows(s.host, here);
  check_norm(s.fetch(z), values(z.host), kElement);
}

TEST_CASE("CUDA feature_map and divide_by_last agree with the CPU") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1102);
  using Kind = FeatureMapArgs::Kind;
  for (Kind kind : {Kind::exponential, Kind::trigonometric, Kind::relu})
    for (const auto& g : {Shape{1, 1}, Shape{16, 8}, Shape{33, 7}, Shape{64, 64}, Shape{130, 100}}) {
      const int64_t d = g[0], m = g[1], f = kind == Kind::trigonometric ? 2 * m : m;
      const Twin x = s.padded(DType::f32, {3, 9, d}, 1, 2, -0.5, 0.5),
                 p = s.random(DType::f32, {3, 9, m}, -3, 3);
      const Twin y = s.padded_output(DType::f32, {3, 9, f}, 1, 4);
      feature_map(s.device, {kind, x.device, p.device, y.device});
      feature_map(s.host, {kind, x.host, p.host, y.host});
      INFO("kind " << static_cast<int>(kind) << " D, m " << g.str());
      // The exponent is up to D / 8 + 3 large, and its roundings become relative errors of the feature.
      const double exponent = kind == Kind::exponential ? 3 + static_cast<double>(d) / 8 : 0;
      check_norm(s.fetch(y, true), values(y.host_base), kElement * (1 + exponent));
    }
  for (int64_t e : {1, 5, 32, 65}) {
    const Twin x = s.random(DType::f32, {4, 11, e + 1}), y = s.padded_output(DType::f32, {4, 11, e}, 2, 1);
    divide_by_last(s.device, {x.device, y.device});
    divide_by_last(s.host, {x.host, y.host});
    INFO("E " << e);
    check_norm(s.fetch(y, true), values(y.host_base), kElement);
    const auto front = [&](const Tensor& t) { return t.slice(-1, 0, e); };
    const Twin within = x.view(front);
    divide_by_last(s.device, {x.device, within.device});
    divide_by_last(s.host, {x.host, within.host});
    check_norm(s.fetch(x), values(x.host), kElement);
  }
}
