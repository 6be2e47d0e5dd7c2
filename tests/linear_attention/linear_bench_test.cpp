// FLOP rates of the forms of linear attention beside the multiply-add peak. Hidden: tag [.bench].
#include <cstdio>

#include "kernels/core/peak.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "tests/bench_timing.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Form = LinearAttentionArgs::Form;

TEST_CASE("linear attention rates", "[.bench]") {
  Random r(1);
  for (int threads : {1, 2}) {
    Context ctx(cpu_backend(), threads);
    const double peak = measure_fma_peak(DType::f32, threads);
    std::printf("threads %d: f32 peak %.1f GFLOP/s\n", threads, peak / 1e9);
    for (DType type : {DType::f32, DType::bf16})
      for (const auto& s : {Shape{8, 2048, 128}, Shape{1, 4096, 128}, Shape{16, 2048, 64}}) {
        LinearAttentionArgs a;
        a.q = random(ctx, type, {1, s[0], s[1], s[2]}, r);
        a.k = random(ctx, type, {1, s[0], s[1], s[2]}, r);
        a.v = random(ctx, type, {1, s[0], s[1], s[2]}, r);
        a.o = ctx.allocate(type, {1, s[0], s[1], s[2]});
        a.log_decay = random(ctx, DType::f32, {s[0]}, r, -0.1, 0);
        std::printf(" %s heads %ld, N %ld, D %ld:", name(type).data(), s[0], s[1], s[2]);
        for (const auto& [form, text, block] : {std::tuple{Form::chunk, "chunk 64", 64},
                                                {Form::chunk, "chunk 128", 128},
                                                {Form::parallel, "parallel", 64},
                                                {Form::recurrent, "recurrent", 64},
                                                {Form::quadratic, "quadratic", 64}}) {
          a.form = form;
          a.block_size = block;
          const double rate = static_cast<double>(linear_attention_cost(a).matmul) /
                              best_seconds([&] { linear_attention(ctx, a); }, 0.2);
          std::printf("  %s %.1f (%.0f%%)", text, rate / 1e9, 100 * rate / peak);
        }
        std::printf(" GFLOP/s\n");
      }
  }
}
