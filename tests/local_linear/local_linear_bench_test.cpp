// FLOP rates of local linear attention beside the multiply-add peak. Hidden: tag [.bench].
#include <cmath>
#include <cstdio>

#include "kernels/core/peak.hpp"
#include "kernels/local_linear/local_linear.hpp"
#include "tests/bench_timing.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("local linear attention rates", "[.bench]") {
  Random r(1);
  for (int threads : {1, 2}) {
    Context ctx(cpu_backend(), threads);
    const double peak = measure_fma_peak(DType::f32, threads);
    std::printf("threads %d: f32 peak %.1f GFLOP/s\n", threads, peak / 1e9);
    for (DType type : {DType::f32, DType::bf16})
      for (const auto& s : {Shape{1, 256, 64}, Shape{1, 2048, 64}, Shape{2, 1024, 128}, Shape{4, 1024, 32}})
        for (int64_t iterations : {8, 32}) {
          LocalLinearArgs a;
          const Shape rows{1, s[0], s[1]}, all{1, s[0], s[1], s[2]};
          a.q = random(ctx, type, all, r), a.k = random(ctx, type, all, r), a.v = random(ctx, type, all, r);
          a.o = ctx.allocate(type, all), a.rho = ctx.allocate(DType::f32, all);
          for (Tensor* t : {&a.omega, &a.coefficient, &a.delta}) *t = ctx.allocate(DType::f32, rows);
          a.scale = 1.0f / std::sqrt(static_cast<float>(s[2]));
          a.block = s[2], a.iterations = iterations;
          const double seconds = best_seconds([&] { local_linear(ctx, a); }, 0.2),
                       rate = static_cast<double>(local_linear_cost(a).matmul) / seconds;
          std::printf(" %s heads %ld, N %ld, D %ld, T %ld: %.3f ms, %.1f GFLOP/s (%.0f%%)\n",
                      name(type).data(), s[0], s[1], s[2], iterations, seconds * 1e3, rate / 1e9,
                      100 * rate / peak);
        }
  }
}
