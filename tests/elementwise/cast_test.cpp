// The cast operator against single conversions.
#include "kernels/elementwise/cast.hpp"

#include <algorithm>
#include <limits>

#include "kernels/core/backend.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("cast converts every pair of floating types and charges bytes only") {
  Context ctx(cpu_backend(), 2);
  const int64_t n = 70001;  // more than two chunks, not a multiple of anything
  Tensor x = ctx.allocate(DType::f32, {n}), y = ctx.allocate(DType::bf16, {n}),
         z = ctx.allocate(DType::f64, {n});
  for (int64_t i = 0; i < n; ++i) x.data<float>()[i] = static_cast<float>(i) * 0.37f - 9000.0f;
  std::fill_n(y.data<bf16>(), n, bf16(std::numeric_limits<float>::quiet_NaN()));
  cast(ctx, {x, y});
  cast(ctx, {y, z});
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float want = static_cast<float>(bf16(x.data<float>()[i]));
    wrong += static_cast<float>(y.data<bf16>()[i]) != want || z.data<double>()[i] != double(want);
  }
  CHECK(wrong == 0);
  CHECK(ctx.cost().total().flops() == 0);
  CHECK(ctx.cost().total().bytes() == n * (4 + 2) + n * (2 + 8));
  CHECK_THROWS_AS(cast(ctx, {x, ctx.allocate(DType::f32, {n - 1})}), UsageError);
  CHECK_THROWS_AS(cast(ctx, {x, ctx.allocate(DType::i32, {n})}), UsageError);
}
