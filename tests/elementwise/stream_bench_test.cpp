// Bytes per second of the memory-bound operators beside a copy of the same size. Hidden: tag [.bench].
#include <cstdio>

#include "kernels/core/peak.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/softmax/softmax.hpp"
#include "tests/bench_timing.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("bytes per second of memory-bound operators", "[.bench]") {
  Random r(1);
  for (int threads : {1, 2}) {
    Context ctx(cpu_backend(), threads);
    const double copy_rate = measure_copy_bandwidth(threads, int64_t{128} << 20);
    std::printf("threads %d: copy of 128 MiB %.1f GB/s\n", threads, copy_rate / 1e9);
    const auto report = [&](const char* what, auto&& f) {
      ctx.cost().reset();
      f();
      const double bytes = static_cast<double>(ctx.cost().total().bytes());
      const double rate = bytes / best_seconds(f);
      std::printf("  %-36s %6.1f GB/s, %3.0f%% of copy (%.0f MiB)\n", what, rate / 1e9,
                  100 * rate / copy_rate, bytes / 1048576);
    };
    for (DType type : {DType::f32, DType::bf16}) {
      const int64_t rows = type == DType::f32 ? 32768 : 65536, c = 768;
      const Tensor x = ctx.allocate(type, {rows, c}), y = ctx.allocate(type, {rows, c}),
                   b = random(ctx, type, {c}, r);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < c; ++j)
          put(x, i * c + j, static_cast<double>((i * 7 + j * 13) % 97) / 48 - 1);
      fill(y, 0);
      std::printf(" %s\n", name(type).data());
      using Op = PointwiseArgs::Op;
      for (const auto& [op, text] : {std::pair{Op::affine, "affine"},
                                     {Op::relu, "relu"},
                                     {Op::gelu_erf, "gelu"},
                                     {Op::silu, "silu"},
                                     {Op::exp, "exp"},
                                     {Op::cos, "cos"}}) {
        PointwiseArgs p{op, x, {}, y, 0.5f, 1.0f};
        report(text, [&] { pointwise(ctx, p); });
      }
      PointwiseArgs add{Op::add, x, b, y, 1, 0};
      report("add, one row for all", [&] { pointwise(ctx, add); });
      PointwiseArgs mul{Op::silu_mul, x, x, y, 1, 0};
      report("silu_mul", [&] { pointwise(ctx, mul); });
      NormArgs norm{NormArgs::Kind::layer_norm, x, y, b, b, 1e-5f};
      report("layer_norm", [&] { normalize(ctx, norm); });
      norm.kind = NormArgs::Kind::rms_norm;
      report("rms_norm", [&] { normalize(ctx, norm); });
      SoftmaxArgs s{x, y, false, 0};
      report("softmax", [&] { softmax(ctx, s); });
      const Tensor sum = ctx.allocate(DType::f64, {1}), sums = ctx.allocate(DType::f32, {rows});
      ReduceArgs all{ReduceArgs::Op::sum, x, {}, sum, true}, max{ReduceArgs::Op::max, x, {}, sums, false};
      report("sum of all", [&] { reduce(ctx, all); });
      report("max of rows", [&] { reduce(ctx, max); });
      const Tensor grid = x.reshape({rows / 256, 16, 16, c}),
                   half = ctx.allocate(type, {rows / 256, 8, 8, c});
      report("avg_pool2d 2x2", [&] { avg_pool2d(ctx, {grid, half, false}); });
      report("transpose [N, C] to [C, N]", [&] {
        transpose_copy(ctx, {x.transpose(0, 1), y.reshape({c, rows})});
      });
      report("heads [B, N, H, D] to [B, H, N, D]", [&] {
        transpose_copy(ctx, {x.reshape({rows / 256, 256, 12, 64}).transpose(1, 2),
                             y.reshape({rows / 256, 12, 256, 64})});
      });
      const Tensor index = ctx.allocate(DType::i32, {256});
      for (int i = 0; i < 256; ++i) put(index, i, (i * 37) % 256);
      report("gather_rows", [&] {
        gather_rows(ctx, {x.reshape({rows / 256, 256, c}), index, y.reshape({rows / 256, 256, c})});
      });
    }
    for (const auto& g : {Shape{64, 3, 224, 224}, Shape{4096, 1, 28, 28}, Shape{2, 1, 2048, 2048}}) {
      const Tensor x = random(ctx, DType::f32, g, r), y = ctx.allocate(DType::f32, g);
      const Tensor s = ctx.allocate(DType::f32, {g[0], g[1], g[2], g[3] / 2 + 1, 2});
      const Tensor mask = random(ctx, DType::f32, {g[0], g[2], g[3]}, r);
      const float scale = 1.0f / static_cast<float>(g[2] * g[3]);
      std::printf(" grid %s\n", g.str().c_str());
      const auto forward = [&] { fft2(ctx, {Fft2Args::Kind::real_to_half, x, s, g[2], g[3], 1.0f}); };
      const auto back = [&] { fft2(ctx, {Fft2Args::Kind::half_to_real, s, y, g[2], g[3], scale}); };
      report("real to half", forward);
      report("half to real", back);
      report("spectral_mask", [&] { spectral_mask(ctx, {s, mask, g[3]}); });
      report("resize to half", [&, small = ctx.allocate(DType::f32, {g[0], g[1], g[2] / 2, g[3] / 2})] {
        resize_bicubic(ctx, {x, small, true});
      });
      // The corruption pipeline by the count of eight passes over the images: read and write of each row and
      // column pass, forward and back.
      const double t = best_seconds([&] {
        forward();
        spectral_mask(ctx, {s, mask, g[3]});
        back();
      });
      std::printf("  %-36s %6.1f GB/s, %3.0f%% of copy\n", "pipeline, 8-pass count",
                  8.0 * static_cast<double>(x.nbytes()) / t / 1e9,
                  800.0 * static_cast<double>(x.nbytes()) / t / copy_rate);
    }
  }
}
