// Rates of gemm beside direct BLAS calls and the multiply-add peak. Hidden: run with the tag [.bench].
#include <cblas.h>

#include <cstdio>

#include "kernels/core/peak.hpp"
#include "kernels/gemm/gemm.hpp"
#include "tests/bench_timing.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("gemm rates", "[.bench]") {
  std::printf("OpenBLAS core: %s\n", openblas_get_corename());
  Random r(1);
  for (int threads : {1, 2}) {
    Context ctx(cpu_backend(), threads);
    openblas_set_num_threads(threads);
    std::printf("threads %d: f32 peak %.1f, bf16 peak %.1f GFLOP/s\n", threads,
                measure_fma_peak(DType::f32, threads) / 1e9,
                has_avx512_bf16() ? measure_fma_peak(DType::bf16, threads) / 1e9 : 0.0);
    for (const auto& s : {Shape{12544, 768, 768}, Shape{12544, 1536, 768}, Shape{12544, 2304, 768},
                          Shape{12544, 640, 768}, Shape{3136, 768, 3072}, Shape{196, 768, 768},
                          Shape{1024, 1024, 1024}, Shape{49, 768, 768}, Shape{1, 4096, 4096}}) {
      const double flops =
          2.0 * static_cast<double>(s[0]) * static_cast<double>(s[1]) * static_cast<double>(s[2]);
      std::printf("M %6ld N %5ld K %5ld:", s[0], s[1], s[2]);
      for (DType type : {DType::f32, DType::bf16}) {
        GemmArgs g;
        g.a = random(ctx, type, {s[0], s[2]}, r);
        g.b = random(ctx, type, {s[1], s[2]}, r);
        g.b_transposed = true;
        g.c = ctx.allocate(type, {s[0], s[1]});
        std::printf("  %s %.1f", name(type).data(), flops / best_seconds([&] { gemm(ctx, g); }) / 1e9);
        if (type == DType::f32) {
          std::printf(" (BLAS %.1f)",
                      flops / best_seconds([&] {
                        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(s[0]),
                                    static_cast<int>(s[1]), static_cast<int>(s[2]), 1.0f, g.a.data<float>(),
                                    static_cast<int>(s[2]), g.b.data<float>(), static_cast<int>(s[2]), 0.0f,
                                    g.c.data<float>(), static_cast<int>(s[1]));
                      }) / 1e9);
          g.bias = random(ctx, type, {s[1]}, r);
          g.activation = Activation::gelu_erf;
          std::printf(" +bias+gelu %.1f", flops / best_seconds([&] { gemm(ctx, g); }) / 1e9);
        }
      }
      std::printf(" GFLOP/s\n");
    }
    for (const auto& s : {Shape{4096, 49, 49, 32}, Shape{4096, 4, 4, 64}, Shape{768, 196, 196, 64}}) {
      GemmArgs g;
      g.a = random(ctx, DType::f32, {s[0], s[1], s[3]}, r);
      g.b = random(ctx, DType::f32, {s[0], s[2], s[3]}, r);
      g.b_transposed = true;
      g.c = ctx.allocate(DType::f32, {s[0], s[1], s[2]});
      const double flops = 2.0 * static_cast<double>(g.c.numel()) * static_cast<double>(s[3]);
      const double t = best_seconds([&] { gemm(ctx, g); });
      std::printf("batch %ld of %ld x %ld x %ld: %.1f GFLOP/s, %.0f ns each\n", s[0], s[1], s[2], s[3],
                  flops / t / 1e9, t / static_cast<double>(s[0]) * 1e9);
    }
  }
}
