// Shapes, views and element conversions.
#include "kernels/core/tensor.hpp"

#include <cmath>
#include <limits>

#include "kernels/core/backend.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

TEST_CASE("shapes refuse what 64-bit integers cannot count") {
  REQUIRE(Shape({2, 3}).numel() == 6);
  REQUIRE(Shape({}).numel() == 1);
  REQUIRE(Shape({0, int64_t{1} << 40, 8}).numel() == 0);
  REQUIRE_THROWS_AS(Shape({int64_t{1} << 62, 8}).numel(), UsageError);
  REQUIRE_THROWS_AS(Shape({-1}).numel(), UsageError);
  REQUIRE(Shape({2, 48, 24}).str() == "[2, 48, 24]");
}

TEST_CASE("views share memory and step by their strides") {
  Context ctx(cpu_backend(), 1);
  Tensor t = ctx.allocate(DType::f32, {2, 3, 4});
  for (int i = 0; i < 24; ++i) t.data<float>()[i] = static_cast<float>(i);
  REQUIRE(t.select(0, 1).data<float>()[0] == 12.0f);
  REQUIRE(t.slice(1, 1, 3).data<float>()[0] == 4.0f);
  const Tensor u = t.transpose(1, 2);
  REQUIRE(u.shape() == Shape{2, 4, 3});
  REQUIRE_FALSE(u.contiguous());
  REQUIRE_THROWS_AS(u.reshape({24}), UsageError);
  Tensor v = ctx.allocate(DType::f32, {2, 4, 3});
  copy(ctx, u, v);
  REQUIRE(v.data<float>()[1] == 4.0f);
  REQUIRE_THROWS_AS(t.data<double>(), UsageError);
  REQUIRE_THROWS_AS(t.slice(1, 2, 4), UsageError);
}

TEST_CASE("f16 and bf16 round to nearest even and keep special values") {
  REQUIRE(f16(1.0f).bits == 0x3c00);
  REQUIRE(f16(65504.0f).bits == 0x7bff);
  REQUIRE(f16(65519.9f).bits == 0x7bff);
  REQUIRE(f16(65520.0f).bits == 0x7c00);
  REQUIRE(f16(5.9604645e-08f).bits == 1);
  REQUIRE(f16(2.9802322e-08f).bits == 0);  // a tie goes to even
  REQUIRE(f16(-0.0f).bits == 0x8000);
  REQUIRE(std::isnan(static_cast<float>(f16(std::numeric_limits<float>::quiet_NaN()))));
  for (int b = 0; b < 0x7c00; ++b) {  // every finite value survives the round trip
    f16 h;
    h.bits = static_cast<uint16_t>(b);
    REQUIRE(f16(static_cast<float>(h)).bits == b);
  }
  REQUIRE(bf16(1.0f).bits == 0x3f80);
  REQUIRE(bf16(1.00390625f).bits == 0x3f80);  // a tie goes to even
  REQUIRE(bf16(1.01171875f).bits == 0x3f82);
  REQUIRE(std::isnan(static_cast<float>(bf16(std::numeric_limits<float>::quiet_NaN()))));
  REQUIRE(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::max()))));
}

TEST_CASE("the arena counts what was asked for and reuses freed blocks") {
  Context ctx(cpu_backend(), 1);
  void* first = nullptr;
  {
    Tensor a = ctx.allocate(DType::f32, {1000}, MemoryClass::input);
    first = a.raw();
    REQUIRE(ctx.memory().current_total == 4000);
    REQUIRE(ctx.memory().peak_of(MemoryClass::input) == 4000);
  }
  REQUIRE(ctx.memory().current_total == 0);
  REQUIRE(ctx.memory().peak_total == 4000);
  Tensor b = ctx.allocate(DType::f32, {1001});
  REQUIRE(b.raw() == first);
  ctx.reset_memory_peaks();
  REQUIRE(ctx.memory().peak_total == 4004);
  ctx.set_memory_limit(1 << 20);
  REQUIRE_THROWS_AS(ctx.allocate(DType::u8, {1 << 21}), OutOfMemory);
  ctx.set_memory_limit(0);
  REQUIRE_THROWS_AS(ctx.allocate(DType::f64, {int64_t{1} << 61}), UsageError);
}
