// solve_spd on the GPU: residuals in double, systems that are not definite.
#include "tests/cuda_check.hpp"
#include "tests/solve/systems.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA solve_spd solves what it is given") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Context host(cpu_backend(), 1), device(*gpu);
  testing::Random r(3);
  for (int64_t n : {1, 2, 5, 31, 32, 33, 64, 128}) {
    SolveSpdArgs here = spd_systems(host, r, 300, n);
    if (n == 5) put(here.a, 2 * 25, -100);  // system 2 is not definite
    SolveSpdArgs there = here;
    for (Tensor* t : {&there.a, &there.b, &there.x}) {
      const Tensor d = device.allocate(DType::f32, t->shape());
      copy(device, *t, d);
      *t = d;
    }
    there.ridge = here.ridge = 0.5f;
    solve_spd(device, there);
    copy(device, there.x, here.x);
    if (n == 5)
      for (int64_t i = 10; i < 15; ++i) {
        CHECK(std::isnan(get(here.x, i)));
        put(here.x, i, 0);
        put(here.b, i, 0);
      }
    INFO("n " << n);
    CHECK(worst_residual(here) <= 8 * epsilon_of(DType::f32));
  }
}
