// The machine's ceilings are positive, ordered and refuse what cannot be measured.
#include "kernels/core/peak.hpp"

#include "kernels/core/isa.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;

TEST_CASE("ceilings are positive and ordered") {
  const double wide = measure_fma_peak(DType::f32, 1), narrow = measure_fma_peak(DType::f64, 1);
  CHECK(narrow > 1e8);
  CHECK(wide > 1.2 * narrow);  // twice the lanes; other work on the machine may take a part
  if (has_avx512_bf16()) CHECK(measure_fma_peak(DType::bf16, 1) > 0.5 * wide);
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
