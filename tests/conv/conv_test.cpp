// patch_conv2d against the sum over a patch in double.
#include "kernels/conv/conv.hpp"

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void run_and_check(Context& ctx, const PatchConv2dArgs& a) {
  const int64_t r = a.kernel, channels = a.weight.dim(1);
  const auto pixel = [&](int64_t b, int64_t y, int64_t x, int64_t c) {
    return a.channels_last
               ? get(a.x, b * a.x.stride(0) + y * a.x.stride(1) + x * a.x.stride(2) + c * a.x.stride(3))
               : get(a.x, b * a.x.stride(0) + c * a.x.stride(1) + y * a.x.stride(2) + x * a.x.stride(3));
  };
  std::vector<double> want, slack;
  for (int64_t b = 0; b < a.y.dim(0); ++b)
    for (int64_t i = 0; i < a.y.dim(1); ++i)
      for (int64_t j = 0; j < a.y.dim(2); ++j)
        for (int64_t o = 0; o < a.y.dim(3); ++o) {
          double sum = a.bias ? get(a.bias, o) : 0, size = std::fabs(sum);
          for (int64_t c = 0; c < channels; ++c)
            for (int64_t y = 0; y < r; ++y)
              for (int64_t x = 0; x < r; ++x) {
                const double t =
                    pixel(b, i * r + y, j * r + x, c) * get(a.weight, ((o * channels + c) * r + y) * r + x);
                sum += t, size += std::fabs(t);
              }
          want.push_back(sum);
          slack.push_back(size * static_cast<double>(channels * r * r + 4) *
                          (a.x.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24));
        }
  poison(a.y);
  patch_conv2d(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("patch convolutions agree with double in both layouts, with rows left over") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Context ctx(cpu_backend(), 2);
  Random rnd(91);
  for (int64_t r : {1, 2, 3, 5})
    for (bool last : {true, false})
      for (bool bias : {true, false}) {
        // 24 patches: fewer features reorder the weight, more gather in the weight's order.
        const int64_t c = rnd.integer(1, 9), o = bias ? rnd.integer(1, 20) : rnd.integer(25, 40),
                      h = r * 3 + rnd.integer(0, r - 1), w = r * 4 + rnd.integer(0, r - 1);
        PatchConv2dArgs a;
        a.kernel = r;
        a.channels_last = last;
        a.x = random(ctx, type, last ? Shape{2, h, w, c} : Shape{2, c, h, w}, rnd);
        a.weight = random(ctx, type, {o, c, r, r}, rnd);
        if (bias) a.bias = random(ctx, type, {o}, rnd);
        a.y = ctx.allocate(type, {2, h / r, w / r, o});
        run_and_check(ctx, a);
        if (last) {
          a.x = randomize(padded(ctx, type, {2, h, w, c}, 2, 1), rnd);
          run_and_check(ctx, a);
        }
      }
}

TEST_CASE("a convolution larger than one gathered block") {
  Context ctx(cpu_backend(), 2);
  Random rnd(92);
  PatchConv2dArgs a;
  a.kernel = 2;
  a.channels_last = GENERATE(true, false);
  a.x = random(ctx, DType::f32, a.channels_last ? Shape{3, 90, 75, 5} : Shape{3, 5, 90, 75}, rnd);
  a.weight = random(ctx, DType::f32, {3, 5, 2, 2}, rnd);
  a.y = ctx.allocate(DType::f32, {3, 45, 37, 3});  // 4995 patches
  run_and_check(ctx, a);
}

TEST_CASE("patch convolutions charge their formula and refuse misfits") {
  Context ctx(cpu_backend(), 1);
  Random rnd(93);
  PatchConv2dArgs a;
  a.kernel = 2;
  a.x = random(ctx, DType::f32, {2, 7, 9, 3}, rnd);
  a.weight = random(ctx, DType::f32, {5, 3, 2, 2}, rnd);
  a.bias = random(ctx, DType::f32, {5}, rnd);
  a.y = ctx.allocate(DType::f32, {2, 3, 4, 5});
  const int64_t out = 2 * 3 * 4 * 5;
  // The left-over row and column are not read.
  CHECK(charged(ctx, [&] { patch_conv2d(ctx, a); }) ==
        Cost{2 * out * 12, out, 0, 4 * (2 * 6 * 8 * 3 + 60 + 5), 4 * out});
  const auto refuses = [&](const std::string& word, auto change) {
    PatchConv2dArgs b = a;
    change(b);
    CHECK_THROWS_AS(patch_conv2d(ctx, b), UsageError);
    CHECK_THROWS_WITH(patch_conv2d(ctx, b), ContainsSubstring(word));
  };
  refuses("kernel is 0", [](auto& b) { b.kernel = 0; });
  refuses("[5, 3, 3, 3]", [](auto& b) { b.kernel = 3; });
  refuses("[2, 3, 4, 5]", [&](auto& b) { b.y = ctx.allocate(DType::f32, {2, 4, 4, 5}); });
  refuses("'bias'", [&](auto& b) { b.bias = ctx.allocate(DType::f32, {4}); });
  PatchConv2dArgs tiny = a;  // smaller than the kernel: no patches
  tiny.x = random(ctx, DType::f32, {2, 1, 1, 3}, rnd);
  tiny.y = ctx.allocate(DType::f32, {2, 0, 0, 5});
  CHECK_NOTHROW(patch_conv2d(ctx, tiny));
}
