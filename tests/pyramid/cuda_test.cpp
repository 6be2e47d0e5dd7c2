// Pyramid steps and range repair on the GPU against the CPU's operators.
#include "kernels/pyramid/pyramid.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA pyramid_level agrees with the CPU: odd and single extents, both directions, subtraction") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1201);
  for (bool expand : {false, true})
    for (bool subtract : {false, true})
      for (int64_t k : {1, 3, 5})
        for (const auto& g : {Shape{8, 8}, Shape{7, 12}, Shape{9, 5}, Shape{1, 6}, Shape{4, 1}, Shape{33, 70},
                              Shape{224, 223}}) {
          const Shape fine{3, g[0], g[1]}, coarse{3, (g[0] + 1) / 2, (g[1] + 1) / 2};
          const Twin x = s.random(DType::f32, expand ? coarse : fine),
                     taps = s.random(DType::f32, {k}, 0.1, 1);
          const Twin y = s.poisoned(DType::f32, expand ? fine : coarse);
          const Twin from = subtract ? s.random(DType::f32, expand ? fine : coarse) : Twin{};
          pyramid_level(s.device, {x.device, taps.device, y.device, from.device, expand});
          pyramid_level(s.host, {x.host, taps.host, y.host, from.host, expand});
          INFO("expand " << expand << " subtract " << subtract << " taps " << k << " " << g.str());
          // Two sums of K products and one difference; cancellation costs at most the sum of sizes.
          check_norm(s.fetch(y), values(y.host), 8 * static_cast<double>(2 * k + 1) * 0x1p-24);
        }
}

TEST_CASE("CUDA repair_range agrees with the CPU where pixels move, redraw and stay") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1202);
  for (int64_t p : {1, 31, 200, 1025}) {
    const Twin v = s.random(DType::f32, {3, p}, 0, 1), noise = s.random(DType::f32, {3, p}, -0.9, 0.9);
    const Twin redraw = s.random(DType::f32, {3, 40}, -2, 2), y = s.poisoned(DType::f32, {3, p});
    const Tensor sigmas = s.host.allocate(DType::f32, {3});
    sigmas.data<float>()[0] = 0.3f, sigmas.data<float>()[1] = 0.0f, sigmas.data<float>()[2] = 0.9f;
    const Twin sigma = s.upload(sigmas);
    repair_range(s.device, {v.device, noise.device, redraw.device, sigma.device, y.device, 0.1f});
    repair_range(s.host, {v.host, noise.host, redraw.host, sigma.host, y.host, 0.1f});
    INFO("pixels " << p);
    check_norm(s.fetch(y), values(y.host), 4 * 0x1p-24);
  }
}
