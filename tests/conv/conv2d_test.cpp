// conv2d and conv1d against sums in double written from the definition, output by output (transposed: input
// by input), and against patch_conv2d where both apply.
#include "kernels/conv/conv.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

int64_t wrap(int64_t i, int64_t n, Border border) {
  if (border == Border::replicate) return std::min(std::max<int64_t>(i, 0), n - 1);
  if (border == Border::circular) return (i % n + n) % n;
  if (border == Border::reflect) {
    while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
  }
  return i >= 0 && i < n ? i : -1;
}

double at(const Tensor& t, bool last, int64_t b, int64_t c, int64_t y, int64_t x) {
  return last ? get(t, b * t.stride(0) + y * t.stride(1) + x * t.stride(2) + c * t.stride(3))
              : get(t, b * t.stride(0) + c * t.stride(1) + y * t.stride(2) + x * t.stride(3));
}

/// Expected values in y's order, and the sums of absolute terms from which rounding bounds follow.
void expect(const Conv2dArgs& a, std::vector<double>& want, std::vector<double>& size) {
  const bool last = a.channels_last;
  const int64_t batch = a.y.dim(0), features = a.y.dim(last ? 3 : 1), ho = a.y.dim(last ? 1 : 2),
                wo = a.y.dim(last ? 2 : 3), channels = a.x.dim(last ? 3 : 1), height = a.x.dim(last ? 1 : 2),
                width = a.x.dim(last ? 2 : 3), kh = a.weight.dim(2), kw = a.weight.dim(3);
  const int64_t gc = channels / a.groups, gf = features / a.groups;
  want.assign(static_cast<size_t>(a.y.numel()), 0.0), size = want;
  const auto slot = [&](int64_t b, int64_t o, int64_t y, int64_t x) {
    return static_cast<size_t>(last ? ((b * ho + y) * wo + x) * features + o
                                    : ((b * features + o) * ho + y) * wo + x);
  };
  const auto add = [&](size_t i, double term) { want[i] += term, size[i] += std::fabs(term); };
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t o = 0; o < features; ++o)
      for (int64_t y = 0; y < ho; ++y)
        for (int64_t x = 0; x < wo; ++x) {
          if (a.bias) add(slot(b, o, y, x), get(a.bias, o));
          if (a.transposed) continue;
          for (int64_t c = 0; c < gc; ++c)
            for (int64_t p = 0; p < kh; ++p)
              for (int64_t q = 0; q < kw; ++q) {
                const int64_t iy = wrap(y * a.stride[0] + p * a.dilation[0] - a.pad[0], height, a.border);
                const int64_t ix = wrap(x * a.stride[1] + q * a.dilation[1] - a.pad[2], width, a.border);
                if (iy >= 0 && ix >= 0)
                  add(slot(b, o, y, x), at(a.x, last, b, o / gf * gc + c, iy, ix) *
                                            get(a.weight, ((o * gc + c) * kh + p) * kw + q));
              }
        }
    if (!a.transposed) continue;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j)
          for (int64_t o = 0; o < gf; ++o)
            for (int64_t p = 0; p < kh; ++p)
              for (int64_t q = 0; q < kw; ++q) {
                const int64_t y = i * a.stride[0] + p * a.dilation[0] - a.pad[0];
                const int64_t x = j * a.stride[1] + q * a.dilation[1] - a.pad[2];
                if (y < 0 || y >= ho || x < 0 || x >= wo) continue;
                add(slot(b, c / gc * gf + o, y, x),
                    at(a.x, last, b, c, i, j) * get(a.weight, ((c * gf + o) * kh + p) * kw + q));
              }
  }
}

void run_and_check(Context& ctx, const Conv2dArgs& a) {
  std::vector<double> want, size;
  expect(a, want, size);
  const double terms = static_cast<double>(a.weight.numel() / std::max<int64_t>(a.weight.dim(0), 1) *
                                               (a.transposed ? a.x.dim(a.channels_last ? 3 : 1) : 1) +
                                           4);
  for (double& s : size) s *= terms * (a.x.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24);
  poison(a.y);
  conv2d(ctx, a);
  check_close(a.y, want, size);
}

Shape grid(bool last, int64_t b, int64_t c, int64_t h, int64_t w) {
  return last ? Shape{b, h, w, c} : Shape{b, c, h, w};
}

struct Sizes {
  int64_t c, o, groups, h, w, kh, kw;
  std::array<int64_t, 2> stride, dilation;
  std::array<int64_t, 4> pad;
};

const Sizes kCases[] = {
    {3, 5, 1, 9, 7, 3, 3, {1, 1}, {1, 1}, {1, 1, 1, 1}},     // same
    {4, 6, 2, 8, 11, 3, 2, {2, 3}, {2, 1}, {2, 1, 0, 1}},    // everything uneven
    {5, 5, 5, 10, 37, 5, 3, {1, 1}, {1, 2}, {2, 2, 2, 2}},   // depthwise
    {7, 7, 7, 6, 9, 3, 3, {2, 2}, {1, 1}, {1, 0, 0, 1}},     // depthwise, strided
    {3, 6, 3, 5, 5, 3, 3, {1, 1}, {1, 1}, {1, 1, 1, 1}},     // depthwise with a multiplier
    {20, 17, 1, 5, 6, 1, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}},   // a linear layer
    {2, 3, 1, 1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}},     // one pixel
    {64, 64, 64, 7, 8, 7, 7, {1, 1}, {1, 1}, {3, 3, 3, 3}},  // whole vectors of channels
    {1, 2, 1, 4, 40, 4, 9, {1, 2}, {1, 1}, {0, 0, 3, 2}},    // the kernel as high as the grid
};

}  // namespace

TEST_CASE("conv2d agrees with its definition: groups, strides, dilations, borders, layouts, views") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random rnd(301);
    for (const Sizes& s : kCases)
      for (bool last : {true, false})
        for (Border border : {Border::zeros, Border::reflect, Border::replicate, Border::circular}) {
          if (s.h == 1 && border == Border::reflect) continue;
          Conv2dArgs a;
          a.channels_last = last, a.groups = s.groups, a.stride = s.stride, a.dilation = s.dilation,
          a.pad = s.pad;
          a.border = border;
          const bool views = border == Border::replicate;
          const Shape in = grid(last, 2, s.c, s.h, s.w);
          a.x = views ? randomize(padded(ctx, type, in, 2, 3), rnd) : random(ctx, type, in, rnd);
          a.weight = random(ctx, type, {s.o, s.c / s.groups, s.kh, s.kw}, rnd);
          if (border != Border::circular) a.bias = random(ctx, type, {s.o}, rnd);
          const Shape out =
              grid(last, 2, s.o, conv_extent(s.h, s.kh, s.stride[0], s.dilation[0], s.pad[0], s.pad[1]),
                   conv_extent(s.w, s.kw, s.stride[1], s.dilation[1], s.pad[2], s.pad[3]));
          a.y = views && last ? padded(ctx, type, out, 1, 2) : ctx.allocate(type, out);
          INFO((last ? "channel-last " : "channel-first ")
               << in.str() << " border " << static_cast<int>(border));
          run_and_check(ctx, a);
        }
  });
}

TEST_CASE("transposed convolutions agree with their definition, with output padding") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f64);
  Context ctx(cpu_backend(), 2);
  Random rnd(302);
  for (const Sizes& s : kCases)
    for (bool last : {true, false})
      for (int64_t extra : {0, 1}) {
        Conv2dArgs a;
        a.transposed = true, a.channels_last = last, a.groups = s.groups;
        a.stride = s.stride, a.dilation = s.dilation, a.pad = s.pad;
        const auto extent = [&](int64_t n, int64_t k, size_t axis) {
          const int64_t e = std::max(s.stride[axis], s.dilation[axis]) > 1 ? extra : 0;
          return e + conv_extent(n, k, s.stride[axis], s.dilation[axis], s.pad[2 * axis], s.pad[2 * axis + 1],
                                 true);
        };
        const Shape in = grid(last, 2, s.c, s.h, s.w);
        a.x = extra ? randomize(padded(ctx, type, in, 1, 1), rnd) : random(ctx, type, in, rnd);
        a.weight = random(ctx, type, {s.c, s.o / s.groups, s.kh, s.kw}, rnd);
        if (extra) a.bias = random(ctx, type, {s.o}, rnd);
        a.y = ctx.allocate(type, grid(last, 2, s.o, extent(s.h, s.kh, 0), extent(s.w, s.kw, 1)));
        INFO((last ? "channel-last " : "channel-first ") << in.str() << " -> " << a.y.shape().str());
        run_and_check(ctx, a);
      }
}

TEST_CASE("a transposed convolution is the adjoint of the convolution") {
  Context ctx(cpu_backend(), 2);
  Random rnd(303);
  Conv2dArgs a;
  a.stride = {2, 1}, a.dilation = {1, 2}, a.pad = {1, 0, 2, 1}, a.groups = 2;
  a.x = random(ctx, DType::f64, {2, 7, 9, 4}, rnd);
  a.weight = random(ctx, DType::f64, {6, 2, 3, 3}, rnd);
  a.y = ctx.allocate(DType::f64, {2, conv_extent(7, 3, 2, 1, 1, 0), conv_extent(9, 3, 1, 2, 2, 1), 6});
  conv2d(ctx, a);
  Conv2dArgs t = a;
  t.transposed = true;
  t.x = random(ctx, DType::f64, a.y.shape(), rnd);
  t.y = ctx.allocate(DType::f64, a.x.shape());
  conv2d(ctx, t);
  double left = 0, right = 0;
  for (int64_t i = 0; i < a.y.numel(); ++i) left += get(a.y, i) * get(t.x, i);
  for (int64_t i = 0; i < a.x.numel(); ++i) right += get(a.x, i) * get(t.y, i);
  CHECK(std::fabs(left - right) < 1e-11);
}

TEST_CASE("conv2d larger than one gathered block agrees with the patch convolution") {
  Context ctx(cpu_backend(), 2);
  Random rnd(304);
  const bool last = GENERATE(true, false);
  const Tensor x = random(ctx, DType::f32, grid(last, 1, 32, 252, 248), rnd);
  const Tensor weight = random(ctx, DType::f32, {5, 32, 2, 2}, rnd), bias = random(ctx, DType::f32, {5}, rnd);
  const Tensor patches = poisoned(ctx, DType::f32, {1, 126, 124, 5});
  patch_conv2d(ctx, {x, weight, bias, patches, 2, last});
  Conv2dArgs a;
  a.x = x, a.weight = weight, a.bias = bias, a.channels_last = last, a.stride = {2, 2};
  a.y = poisoned(ctx, DType::f32, grid(last, 1, 5, 126, 124));
  conv2d(ctx, a);
  const Tensor y = last ? a.y : a.y.permute({0, 2, 3, 1});
  check_close(y, values(patches), {128 * 130 * 0x1p-24});
}

TEST_CASE("conv1d is conv2d over one row, in both layouts, causal and circular") {
  Context ctx(cpu_backend(), 2);
  Random rnd(305);
  for (bool last : {true, false})
    for (bool transposed : {false, true}) {
      Conv1dArgs a;
      a.channels_last = last, a.transposed = transposed, a.dilation = 2, a.stride = transposed ? 3 : 1;
      a.pad = {4, 0};
      a.border = transposed ? Border::zeros : Border::circular;
      a.x = random(ctx, DType::f32, last ? Shape{2, 13, 4} : Shape{2, 4, 13}, rnd);
      a.weight = random(ctx, DType::f32, transposed ? Shape{4, 5, 3} : Shape{5, 4, 3}, rnd);
      const int64_t n = conv_extent(13, 3, a.stride, 2, 4, 0, transposed);
      a.y = poisoned(ctx, DType::f32, last ? Shape{2, n, 5} : Shape{2, 5, n});
      conv1d(ctx, a);
      std::vector<double> want(static_cast<size_t>(a.y.numel()), 0.0);
      const auto x = [&](int64_t b, int64_t c, int64_t i) {
        return get(a.x, last ? (b * 13 + i) * 4 + c : (b * 4 + c) * 13 + i);
      };
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t c = 0; c < 4; ++c)
          for (int64_t o = 0; o < 5; ++o)
            for (int64_t i = 0; i < n; ++i)
              for (int64_t p = 0; p < 3; ++p) {
                double& slot = want[static_cast<size_t>(last ? (b * n + i) * 5 + o : (b * 5 + o) * n + i)];
                if (!transposed) {
                  slot += x(b, c, (i + 2 * p - 4 + 13) % 13) * get(a.weight, (o * 4 + c) * 3 + p);
                } else {
                  for (int64_t j = 0; j < 13; ++j)
                    if (j * 3 + 2 * p - 4 == i) slot += x(b, c, j) * get(a.weight, (c * 5 + o) * 3 + p);
                }
              }
      check_close(a.y, want, {32 * 0x1p-24});
    }
}

TEST_CASE("convolutions do not depend on the thread count") {
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  Random rnd(306);
  for (bool last : {true, false})
    for (int64_t groups : {int64_t{1}, int64_t{48}}) {
      Conv2dArgs a;
      a.channels_last = last, a.groups = groups, a.pad = {1, 1, 1, 1};
      a.x = random(one, DType::bf16, grid(last, 2, 48, 40, 41), rnd);
      a.weight = random(one, DType::bf16, {48, 48 / groups, 3, 3}, rnd);
      a.bias = random(one, DType::bf16, {48}, rnd);
      a.y = poisoned(one, DType::bf16, a.x.shape());
      Conv2dArgs b = a;
      b.y = poisoned(one, DType::bf16, a.x.shape());
      conv2d(one, a);
      conv2d(three, b);
      CHECK(same_bits(a.y, b.y));
    }
}

TEST_CASE("convolutions charge their formula and refuse misfits") {
  Context ctx(cpu_backend(), 1);
  Random rnd(307);
  Conv2dArgs a;
  a.groups = 2, a.pad = {1, 1, 1, 1};
  a.x = random(ctx, DType::f32, {2, 7, 9, 4}, rnd);
  a.weight = random(ctx, DType::f32, {6, 2, 3, 3}, rnd);
  a.bias = random(ctx, DType::f32, {6}, rnd);
  a.y = ctx.allocate(DType::f32, {2, 7, 9, 6});
  const int64_t out = 2 * 7 * 9 * 6, in = 2 * 7 * 9 * 4;
  CHECK(charged(ctx, [&] { conv2d(ctx, a); }) == Cost{2 * out * 18, out, 0, 4 * (in + 108 + 6), 4 * out});
  Conv2dArgs t = a;
  t.transposed = true;
  t.weight = random(ctx, DType::f32, {4, 3, 3, 3}, rnd);
  CHECK(charged(ctx, [&] { conv2d(ctx, t); }) == Cost{2 * in * 27, out, 0, 4 * (in + 108 + 6), 4 * out});
  const auto refuses = [&](const std::string& word, auto change) {
    Conv2dArgs b = a;
    change(b);
    CHECK_THROWS_AS(conv2d(ctx, b), UsageError);
    CHECK_THROWS_WITH(conv2d(ctx, b), ContainsSubstring(word));
  };
  refuses("groups is 3", [](auto& b) { b.groups = 3; });
  refuses("are 0 and 1", [](auto& b) { b.stride[0] = 0; });
  refuses("-1", [](auto& b) { b.pad[3] = -1; });
  refuses("reflected padding of 9", [](auto& b) { b.border = Border::reflect, b.pad = {1, 1, 9, 0}; });
  refuses("circular padding of 8", [](auto& b) { b.border = Border::circular, b.pad = {8, 0, 1, 1}; });
  refuses("[2, 7, 9, 6]", [&](auto& b) { b.y = ctx.allocate(DType::f32, {2, 7, 8, 6}); });
  refuses("[6, 2, 3, 3]", [&](auto& b) { b.weight = ctx.allocate(DType::f32, {6, 4, 3, 3}); });
  refuses("transposed convolution has no border", [&](auto& b) {
    b = t;
    b.border = Border::replicate;
  });
  refuses("evenly spaced", [&](auto& b) { b.y = ctx.allocate(DType::f32, {2, 7, 11, 6}).slice(2, 0, 9); });
  refuses("height of y is 9", [&](auto& b) {
    b = t;
    b.y = ctx.allocate(DType::f32, {2, 9, 9, 6});
  });
  Conv2dArgs small = a;  // the kernel does not fit: no outputs
  small.pad = {0, 0, 0, 0};
  small.x = random(ctx, DType::f32, {2, 2, 9, 4}, rnd);
  small.y = ctx.allocate(DType::f32, {2, 0, 7, 6});
  CHECK_NOTHROW(conv2d(ctx, small));
}
