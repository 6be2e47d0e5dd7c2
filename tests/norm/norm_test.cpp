// normalize against two-pass statistics in double.
#include "kernels/norm/norm.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = NormArgs::Kind;

namespace {

void run_and_check(Context& ctx, const NormArgs& a) {
  const std::vector<double> x = values(a.x);
  const auto n = static_cast<size_t>(a.x.dim(-1));
  std::vector<double> want, slack;
  for (size_t row = 0; row < x.size() / n; ++row) {
    double mean = 0, var = 0, size = 0;
    for (size_t i = 0; i < n; ++i) mean += x[row * n + i] / static_cast<double>(n);
    for (size_t i = 0; i < n; ++i) size = std::max(size, std::fabs(x[row * n + i]));
    if (a.kind == Kind::rms_norm) mean = 0;
    for (size_t i = 0; i < n; ++i) var += std::pow(x[row * n + i] - mean, 2) / static_cast<double>(n);
    const double inverse = 1 / std::sqrt(var + static_cast<double>(a.eps));
    for (size_t i = 0; i < n; ++i) {
      const double gain = a.gain ? get(a.gain, static_cast<int64_t>(i)) : 1;
      const double offset = a.offset ? get(a.offset, static_cast<int64_t>(i)) : 0;
      const double y = (x[row * n + i] - mean) * inverse;
      want.push_back(y * gain + offset);
      // The mean is off by about an f32 step of the largest element; sums of n terms over 64 lanes round
      // seldom.
      slack.push_back(std::fabs(gain) * (8 * 0x1p-24 * size * inverse * 2 + 16 * 0x1p-24 * std::fabs(y)) +
                      4 * 0x1p-24 * std::fabs(want.back()) + 1e-9);
    }
  }
  if (a.y.raw() != a.x.raw()) poison(a.y);
  normalize(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("norms agree with double for every kind, dtype, width and layout") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(51);
    for (Kind kind : {Kind::layer_norm, Kind::rms_norm})
      for (int64_t n : {1, 2, 15, 16, 17, 64, 100, 777})
        for (int parts = 0; parts < 4; ++parts) {
          NormArgs a;
          a.kind = kind;
          a.x = random(ctx, type, {3, 2, n}, r, -1, 3);
          a.y = ctx.allocate(type, {3, 2, n});
          if (parts & 1) a.gain = random(ctx, type, {n}, r);
          if (parts & 2) a.offset = random(ctx, type, {n}, r);
          run_and_check(ctx, a);
          a.y = a.x;
          run_and_check(ctx, a);
          a.x = randomize(padded(ctx, type, {2, 3, n}, 1, 3), r).transpose(0, 1);
          a.y = padded(ctx, type, {3, 2, n}, 2, 2);
          run_and_check(ctx, a);
        }
  });
}

TEST_CASE("a large common offset does not spoil the variance") {
  Context ctx(cpu_backend(), 1);
  NormArgs a;
  a.x = ctx.allocate(DType::f32, {1, 512});
  a.y = ctx.allocate(DType::f32, {1, 512});
  // 4096 +- 1 exactly: mean 4096, variance 1; a sum-of-squares formula loses all of it.
  for (int64_t i = 0; i < 512; ++i) put(a.x, i, 4096 + (i % 2 ? 1 : -1));
  a.eps = 0;
  normalize(ctx, a);
  for (int64_t i = 0; i < 512; ++i) CHECK(get(a.y, i) == (i % 2 ? 1 : -1));
}

TEST_CASE("a constant row gives the offset, and NaN spoils its own row only") {
  Context ctx(cpu_backend(), 1);
  Random r(52);
  NormArgs a;
  a.x = random(ctx, DType::f32, {3, 33}, r);
  a.y = ctx.allocate(DType::f32, {3, 33});
  put(a.x, 40, std::numeric_limits<double>::quiet_NaN());
  for (int64_t i = 0; i < 33; ++i) put(a.x, i, 0.25);
  normalize(ctx, a);
  for (int64_t i = 0; i < 99; ++i) {
    if (i < 33) CHECK(get(a.y, i) == 0.0);
    CHECK(std::isnan(get(a.y, i)) == (i >= 33 && i < 66));
  }
}

TEST_CASE("norms charge their formula, ignore the thread count, refuse misfits") {
  Random r(53);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  NormArgs a;
  a.x = random(one, DType::bf16, {2000, 96}, r);
  a.y = poisoned(one, DType::bf16, {2000, 96});
  a.gain = random(one, DType::bf16, {96}, r);
  CHECK(charged(one, [&] { normalize(one, a); }) == Cost{0, 5 * 192000, 4000, 2 * 192000 + 192, 2 * 192000});
  NormArgs b = a;
  b.y = poisoned(one, DType::bf16, {2000, 96});
  normalize(three, b);
  CHECK(same_bits(a.y, b.y));
  b.kind = Kind::rms_norm;
  CHECK(charged(one, [&] { normalize(one, b); }).elementwise == 4 * 192000);
  b.gain = random(one, DType::bf16, {95}, r);
  CHECK_THROWS_WITH(normalize(one, b), ContainsSubstring("[96]"));
  b = a;
  b.eps = -1;
  CHECK_THROWS_WITH(normalize(one, b), ContainsSubstring("eps"));
  b = a;
  b.y = a.gain;
  CHECK_THROWS_AS(normalize(one, b), UsageError);
  b = a;
  b.x = one.allocate(DType::bf16, {4, 0});
  b.y = one.allocate(DType::bf16, {4, 0});
  b.gain = {};
  CHECK_NOTHROW(normalize(one, b));
}
