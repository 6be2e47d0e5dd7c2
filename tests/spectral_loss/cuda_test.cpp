// spectral_loss on the GPU against the CPU's operator: every option, map and loss.
#include "kernels/spectral_loss/spectral_loss.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void run_and_check(Sides& s, SpectralLossArgs args, const Twin& spectrum, const Twin& mask, const Twin& map) {
  const Twin loss = s.poisoned(DType::f32, {1});
  args.spectrum = spectrum.device, args.mask = mask.device, args.map = map.device, args.loss = loss.device;
  spectral_loss(s.device, args);
  args.spectrum = spectrum.host, args.mask = mask.host, args.map = map.host, args.loss = loss.host;
  spectral_loss(s.host, args);
  // Terms are a root and at most two powers in f32, a few units in the last place each (powf: 4); sums are
  // f64.
  constexpr double kTerms = 32 * 0x1p-24;
  if (map) check_norm(s.fetch(map), values(map.host), kTerms);
  check_norm(s.fetch(loss), values(loss.host), kTerms);
}

}  // namespace

TEST_CASE("CUDA spectral_loss agrees with the CPU for every option and odd grids") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 951);
  for (const auto& g :
       {Shape{2, 3, 16, 16}, Shape{1, 1, 7, 9}, Shape{2, 2, 1, 5}, Shape{3, 1, 6, 1}, Shape{4, 3, 90, 61}})
    for (int options = 0; options < 48; ++options) {
      SpectralLossArgs args;
      args.width = g[3];
      args.gamma = options % 3 == 0 ? 1.0f : options % 3 == 1 ? 2.0f : 0.7f;
      args.focal = options / 3 % 4 > 0, args.focal_log = options / 3 % 4 == 2,
      args.focal_batch_max = options / 3 % 4 == 3;
      args.focal_gamma = options % 2 == 0 ? 1.0f : options % 3 == 1 ? 2.0f : 1.3f;
      const Twin spectrum = s.random(DType::f32, {g[0], g[1], g[2], g[3] / 2 + 1, 2}, -2, 2);
      const Twin mask = options / 12 % 2 ? s.random(DType::f32, {g[0], g[2], g[3]}, 0, 1) : Twin{};
      const Twin map = options / 24 ? s.poisoned(DType::f32, g) : Twin{};
      INFO(g.str() << " options " << options);
      run_and_check(s, args, spectrum, mask, map);
    }
}

TEST_CASE("CUDA spectral_loss: nothing masked, zero and NaN spectra, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 952);
  SpectralLossArgs args;
  args.width = 10;
  const Tensor kept = s.host.allocate(DType::f32, {2, 8, 10});
  fill(kept, 1.0);
  run_and_check(s, args, s.random(DType::f32, {2, 3, 8, 6, 2}), s.upload(kept),
                s.poisoned(DType::f32, {2, 3, 8, 10}));
  const Tensor zero = s.host.allocate(DType::f32, {2, 3, 8, 6, 2});
  fill(zero, 0.0);
  for (bool batch_max : {false, true}) {
    args.focal = true, args.focal_batch_max = batch_max;
    run_and_check(s, args, s.upload(zero), {}, s.poisoned(DType::f32, {2, 3, 8, 10}));
    const Tensor nan = random(s.host, DType::f32, {2, 3, 8, 6, 2}, s.r);
    put(nan, 100, std::numeric_limits<double>::quiet_NaN());
    run_and_check(s, args, s.upload(nan), {}, s.poisoned(DType::f32, {2, 3, 8, 10}));
  }
  const Twin spectrum = s.random(DType::f32, {2, 3, 8, 6, 2}), loss = s.poisoned(DType::f32, {1}),
             map = s.poisoned(DType::f32, {2, 3, 8, 10});
  args.spectrum = spectrum.device, args.loss = loss.device, args.map = map.device;
  s.check_graph([&] { spectral_loss(s.device, args); }, {loss, map});
}
