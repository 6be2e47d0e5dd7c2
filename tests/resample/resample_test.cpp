// resize_bicubic against the non-separated 16-tap sum in double, and against facts about the kernel.
#include "kernels/resample/resample.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

double cubic(double t) {
  const double a = -0.75;
  t = std::fabs(t);
  if (t <= 1) return (a + 2) * t * t * t - (a + 3) * t * t + 1;
  if (t < 2) return a * t * t * t - 5 * a * t * t + 8 * a * t - 4 * a;
  return 0;
}

void run_and_check(Context& ctx, const ResizeArgs& a) {
  const int64_t h = a.x.dim(2), w = a.x.dim(3), ho = a.y.dim(2), wo = a.y.dim(3);
  std::vector<double> want;
  for (int64_t p = 0; p < a.x.dim(0) * a.x.dim(1); ++p)
    for (int64_t i = 0; i < ho; ++i)
      for (int64_t j = 0; j < wo; ++j) {
        const double sy =
            (static_cast<double>(i) + 0.5) * static_cast<double>(h) / static_cast<double>(ho) - 0.5;
        const double sx =
            (static_cast<double>(j) + 0.5) * static_cast<double>(w) / static_cast<double>(wo) - 0.5;
        double sum = 0;
        for (int64_t u = static_cast<int64_t>(std::floor(sy)) - 2; u <= std::floor(sy) + 3; ++u)
          for (int64_t v = static_cast<int64_t>(std::floor(sx)) - 2; v <= std::floor(sx) + 3; ++v)
            sum +=
                cubic(sy - static_cast<double>(u)) * cubic(sx - static_cast<double>(v)) *
                get(a.x, (p * h + std::clamp<int64_t>(u, 0, h - 1)) * w + std::clamp<int64_t>(v, 0, w - 1));
        want.push_back(a.clamp01 ? std::clamp(sum, 0.0, 1.0) : sum);
      }
  poison(a.y);
  resize_bicubic(ctx, a);
  check_close(a.y, want, {40 * 0x1p-24 * 2});  // 16 terms with weights of 1.6 in magnitude in all, per axis
}

}  // namespace

TEST_CASE("resizing agrees with the 16-tap sum for any ratio and dtype") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  Random r(101);
  for (const auto& s : {Shape{8, 8, 4, 4}, Shape{5, 7, 10, 21}, Shape{9, 4, 6, 5}, Shape{1, 1, 3, 3},
                        Shape{6, 1, 1, 4}, Shape{31, 17, 31, 17}, Shape{224, 224, 56, 28}}) {
    ResizeArgs a;
    a.x = random(ctx, type, {2, 1, s[0], s[1]}, r, -0.3, 1.3);
    a.y = ctx.allocate(type, {2, 1, s[2], s[3]});
    run_and_check(ctx, a);
    a.clamp01 = true;
    run_and_check(ctx, a);
  }
}

TEST_CASE("resizing to the same size is the identity, a constant stays, halving uses known weights") {
  Context ctx(cpu_backend(), 1);
  Random r(102);
  ResizeArgs a;
  a.x = random(ctx, DType::f32, {1, 2, 5, 6}, r);
  a.y = poisoned(ctx, DType::f32, {1, 2, 5, 6});
  resize_bicubic(ctx, a);
  CHECK(same_bits(a.x, a.y));
  a.y = poisoned(ctx, DType::f32, {1, 2, 9, 4});
  fill(a.x, 0.625);
  resize_bicubic(ctx, a);
  check_close(a.y, std::vector<double>(72, 0.625), {8 * 0x1p-24});
  // Halving samples at t = 1/2 with weights -3/32, 19/32, 19/32, -3/32 of pixels 2 i - 1 .. 2 i + 2: pixel 2
  // is the last of output 0 and the second of output 1.
  a.x = ctx.allocate(DType::f32, {1, 1, 1, 8});
  fill(a.x, 0.0);
  put(a.x, 2, 32.0);
  a.y = poisoned(ctx, DType::f32, {1, 1, 1, 4});
  resize_bicubic(ctx, a);
  CHECK(values(a.y) == std::vector<double>{-3, 19, 0, 0});
}

TEST_CASE("resizing charges its formula, ignores the thread count, refuses misfits") {
  Random r(103);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  ResizeArgs a;
  a.x = random(one, DType::f32, {3, 3, 90, 80}, r);
  a.y = poisoned(one, DType::f32, {3, 3, 120, 50});
  CHECK(charged(one, [&] { resize_bicubic(one, a); }) == Cost{0, 32 * 54000, 0, 4 * 64800, 4 * 54000});
  ResizeArgs b = a;
  b.y = poisoned(one, DType::f32, a.y.shape());
  resize_bicubic(three, b);
  CHECK(same_bits(a.y, b.y));
  b.clamp01 = true;
  CHECK(charged(one, [&] { resize_bicubic(one, b); }).elementwise == 34 * 54000);
  b.y = one.allocate(DType::f32, {3, 2, 120, 50});
  CHECK_THROWS_AS(resize_bicubic(one, b), UsageError);
  b.x = one.allocate(DType::f32, {1, 1, 0, 5});
  b.y = one.allocate(DType::f32, {1, 1, 2, 2});
  CHECK_THROWS_WITH(resize_bicubic(one, b), ContainsSubstring("no pixels"));
  b.y = one.allocate(DType::f32, {1, 1, 0, 2});
  CHECK_NOTHROW(resize_bicubic(one, b));
}
