// avg_pool2d against cell sums in double.
#include "kernels/pool/pool.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

double at(const Tensor& t, int64_t b, int64_t y, int64_t x, int64_t c) {
  return get(t, b * t.stride(0) + y * t.stride(1) + x * t.stride(2) + c);
}

/// Also counts the elements read, which the charge must equal.
int64_t run_and_check(Context& ctx, const AvgPool2dArgs& a) {
  const int64_t h = a.x.dim(1), w = a.x.dim(2), ho = a.y.dim(1), wo = a.y.dim(2);
  std::vector<double> want;
  int64_t reads = 0;
  for (int64_t b = 0; b < a.y.dim(0); ++b)
    for (int64_t i = 0; i < ho; ++i)
      for (int64_t j = 0; j < wo; ++j)
        for (int64_t c = 0; c < a.y.dim(3); ++c) {
          double sum = 0;
          int64_t n = 0;
          for (int64_t y = 0; y < h; ++y)
            for (int64_t x = 0; x < w; ++x) {
              // Row y is in cell i when the intervals [y, y+1) and [i h / ho, (i+1) h / ho) meet.
              if (y * ho >= (i + 1) * h || (y + 1) * ho <= i * h) continue;
              if (x * wo >= (j + 1) * w || (x + 1) * wo <= j * w) continue;
              sum += at(a.x, b, y, x, c);
              ++n;
            }
          reads += n;
          want.push_back(sum / static_cast<double>(n));
        }
  poison(a.y);
  avg_pool2d(ctx, a);
  check_close(a.y, want, {static_cast<double>(h * w + 3) * 0x1p-24});
  return reads;
}

}  // namespace

TEST_CASE("pools agree with double for every dtype, odd channels, adaptive and strided grids") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(71);
    for (int64_t c : {1, 5, 16, 67, 130}) {
      AvgPool2dArgs a;
      a.x = random(ctx, type, {2, 6, 9, c}, r);
      a.y = ctx.allocate(type, {2, 3, 3, c});
      run_and_check(ctx, a);
      a.adaptive = true;
      for (const auto& o : {Shape{4, 5}, Shape{6, 9}, Shape{1, 1}, Shape{7, 20}}) {
        a.y = padded(ctx, type, {2, o[0], o[1], c}, 1, 2);
        run_and_check(ctx, a);
      }
      // Channels 3.. of a wider grid, rows and columns cropped.
      a.x = random(ctx, type, {2, 8, 10, c + 4}, r).slice(1, 1, 7).slice(2, 0, 9).slice(3, 3, 3 + c);
      a.y = ctx.allocate(type, {2, 4, 4, c});
      run_and_check(ctx, a);
    }
  });
}

TEST_CASE("pools charge what they read, ignore the thread count, refuse misfits") {
  Random r(72);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  AvgPool2dArgs a;
  a.adaptive = true;
  a.x = random(one, DType::f32, {3, 50, 40, 70}, r);
  a.y = poisoned(one, DType::f32, {3, 7, 9, 70});
  one.cost().reset();
  const int64_t reads = run_and_check(one, a);
  CHECK(one.cost().total() == Cost{0, reads + a.y.numel(), 0, a.x.nbytes(), a.y.nbytes()});
  AvgPool2dArgs b = a;
  b.y = poisoned(one, DType::f32, a.y.shape());
  avg_pool2d(three, b);
  CHECK(same_bits(a.y, b.y));
  b.adaptive = false;
  CHECK_THROWS_WITH(avg_pool2d(one, b), ContainsSubstring("output extent 7 does not divide"));
  b = a;
  b.y = one.allocate(DType::f32, {3, 7, 9, 69});
  CHECK_THROWS_AS(avg_pool2d(one, b), UsageError);
  b.x = one.allocate(DType::f32, {1, 0, 4, 3});
  b.y = one.allocate(DType::f32, {1, 2, 2, 3});
  CHECK_THROWS_WITH(avg_pool2d(one, b), ContainsSubstring("nothing to average"));
  b.y = one.allocate(DType::f32, {1, 0, 2, 3});
  CHECK_NOTHROW(avg_pool2d(one, b));
}
