// The machine's ceilings are positive and refuse what cannot be measured.
#include "kernels/core/peak.hpp"

#include "kernels/core/isa.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;

// How the rates compare with each other is the machine's business and that of whatever else runs on it:
// `roofline` shows it, no test times it. The bounds below are those of a unit or a counting mistake.
TEST_CASE("ceilings are positive") {
  CHECK(measure_fma_peak(DType::f32, 1) > 1e8);
  CHECK(measure_fma_peak(DType::f64, 1) > 1e8);
  if (has_avx512_bf16()) CHECK(measure_fma_peak(DType::bf16, 1) > 1e8);
  Context ctx(cpu_backend(), 1);
  for (DType type : {DType::f32, DType::f64, DType::bf16}) CHECK(measure_gemm_rate(ctx, type, 64) > 1e7);
  CHECK(ctx.memory().current_total == 0);
  CHECK(measure_copy_bandwidth(1, int64_t{32} << 20) > 1e8);
  CHECK(measure_copy_bandwidth(3, 1) > 0);
}

TEST_CASE("what cannot be measured is refused") {
  Context ctx(cpu_backend(), 1);
  CHECK_THROWS_AS(measure_fma_peak(DType::i32, 1), Unsupported);
  CHECK_THROWS_AS(measure_fma_peak(DType::f32, -1), UsageError);
  CHECK_THROWS_AS(measure_gemm_rate(ctx, DType::f32, 0), UsageError);
  CHECK_THROWS_AS(measure_copy_bandwidth(1, 0), UsageError);
  limit_isa(Isa::avx2);
  CHECK_THROWS_AS(measure_fma_peak(DType::bf16, 1), Unsupported);
  limit_isa(Isa::avx512);
}
