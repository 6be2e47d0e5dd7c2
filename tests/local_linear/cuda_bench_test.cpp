// FLOP rates of local linear attention on the GPU. Hidden: tag [.bench].
#include <cmath>
#include <cstdio>

#include "kernels/local_linear/local_linear.hpp"
#include "tests/bench_timing.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA: local linear attention rates", "[.bench]") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 1);
  for (DType type : {DType::f32, DType::bf16, DType::f16})
    for (const auto& x : {Shape{1, 256, 64}, Shape{1, 2048, 64}, Shape{1, 8192, 64}, Shape{16, 4096, 64},
                          Shape{16, 4096, 128}})
      for (const bool jacobi : {false, true}) {
        LocalLinearArgs a;
        const Shape rows{1, x[0], x[1]}, all{1, x[0], x[1], x[2]};
        a.q = s.random(type, all).device, a.k = s.random(type, all).device, a.v = s.random(type, all).device;
        a.o = s.device.allocate(type, all), a.rho = s.device.allocate(DType::f32, all);
        for (Tensor* t : {&a.omega, &a.coefficient, &a.delta}) *t = s.device.allocate(DType::f32, rows);
        a.scale = 1.0f / std::sqrt(static_cast<float>(x[2]));
        a.block = x[2], a.iterations = 8, a.jacobi = jacobi;
        const double seconds = best_seconds(
            [&] {
              local_linear(s.device, a);
              gpu->synchronize();
            },
            0.1);
        std::printf("%s heads %ld, N %ld, D %ld%s: %.3f ms, %.1f TFLOP/s\n", name(type).data(), x[0], x[1],
                    x[2], jacobi ? ", jacobi" : "", seconds * 1e3,
                    static_cast<double>(local_linear_cost(a).matmul) / seconds / 1e12);
      }
}
