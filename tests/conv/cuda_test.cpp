// patch_conv2d on the GPU against the CPU's f64 operator on the same rounded inputs.
#include "kernels/conv/conv.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA patch_conv2d agrees with the CPU in f64: layouts, left-over pixels, biases, views") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 701);
  for (const auto& c : {Shape{2, 16, 16, 3, 24, 4}, Shape{1, 17, 23, 5, 7, 3}, Shape{3, 8, 8, 32, 40, 2},
                        Shape{2, 9, 7, 64, 64, 1}, Shape{1, 28, 28, 48, 96, 7}})
    for (bool last : {false, true})
      for (bool strided : {false, true}) {
        const int64_t r = c[5], k = c[3] * r * r;
        const Shape shape = last ? Shape{c[0], c[1], c[2], c[3]} : Shape{c[0], c[3], c[1], c[2]};
        const Twin x = strided ? s.padded(type, shape, 1, 3) : s.random(type, shape);
        const Twin weight = s.random(type, {c[4], c[3], r, r}),
                   bias = strided ? Twin{} : s.random(type, {c[4]});
        const Twin y = s.poisoned(type, {c[0], c[1] / r, c[2] / r, c[4]});
        patch_conv2d(s.device, {x.device, weight.device, bias.device, y.device, r, last});
        const Tensor want = s.host.allocate(DType::f64, y.host.shape());
        patch_conv2d(s.host, {in_f64(s.host, x.host), in_f64(s.host, weight.host),
                              bias ? in_f64(s.host, bias.host) : Tensor(), want, r, last});
        INFO(c.str() << (last ? " channels last" : " channels first") << (strided ? ", strided" : ""));
        const double storage = type == DType::f32 ? 0.0 : rounding_of(type);
        check_norm(s.fetch(y), values(want), storage + 4 * (std::sqrt(static_cast<double>(k)) + 2) * 0x1p-24);
      }
  const Twin x = s.random(type, {2, 16, 16, 8}), weight = s.random(type, {24, 8, 4, 4});
  const Twin y = s.poisoned(type, {2, 4, 4, 24});
  s.check_graph([&] { patch_conv2d(s.device, {x.device, weight.device, {}, y.device, 4, true}); }, {y});
}

TEST_CASE("CUDA conv2d agrees with the CPU in f64: groups, borders, layouts, transposed, views") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 702);
  struct Case {
    int64_t b, c, o, groups, h, w, kh, kw;
    std::array<int64_t, 2> stride, dilation;
    std::array<int64_t, 4> pad;
  };
  for (const Case& c : {Case{2, 16, 24, 1, 14, 13, 3, 3, {1, 1}, {1, 1}, {1, 1, 1, 1}},
                        Case{1, 12, 8, 4, 9, 21, 3, 2, {2, 3}, {2, 1}, {2, 1, 0, 1}},
                        Case{2, 64, 64, 64, 11, 10, 5, 5, {1, 1}, {1, 1}, {2, 2, 2, 2}},
                        Case{1, 7, 7, 7, 9, 12, 3, 3, {2, 1}, {1, 2}, {1, 0, 2, 2}},
                        Case{2, 20, 17, 1, 6, 5, 1, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}},
                        Case{1, 3, 6, 3, 1, 40, 1, 7, {1, 2}, {1, 1}, {0, 0, 3, 3}}})
    for (bool last : {false, true})
      for (int how = 0; how < 5; ++how) {  // the four borders, then transposed
        Conv2dArgs a;
        a.channels_last = last, a.groups = c.groups, a.stride = c.stride, a.dilation = c.dilation,
        a.pad = c.pad;
        a.transposed = how == 4;
        a.border = a.transposed ? Border::zeros : static_cast<Border>(how);
        const auto grid = [&](int64_t channels, int64_t h, int64_t w) {
          return last ? Shape{c.b, h, w, channels} : Shape{c.b, channels, h, w};
        };
        const Shape in = grid(c.c, c.h, c.w);
        const Twin x = how % 2 ? s.padded(type, in, 1, 3) : s.random(type, in);
        const Twin weight =
            s.random(type, {a.transposed ? c.c : c.o, (a.transposed ? c.o : c.c) / c.groups, c.kh, c.kw});
        const Twin bias = how == 1 ? Twin{} : s.random(type, {c.o});
        const auto extent = [&](int64_t n, int64_t k, size_t axis) {
          return conv_extent(n, k, c.stride[axis], c.dilation[axis], c.pad[2 * axis], c.pad[2 * axis + 1],
                             a.transposed);
        };
        const Twin y = s.poisoned(type, grid(c.o, extent(c.h, c.kh, 0), extent(c.w, c.kw, 1)));
        Conv2dArgs there = a, here = a;
        there.x = x.device, there.weight = weight.device, there.bias = bias.device, there.y = y.device;
        conv2d(s.device, there);
        here.x = in_f64(s.host, x.host), here.weight = in_f64(s.host, weight.host);
        if (bias) here.bias = in_f64(s.host, bias.host);
        here.y = s.host.allocate(DType::f64, y.host.shape());
        conv2d(s.host, here);
        INFO(in.str() << (last ? " channels last" : " channels first") << ", way " << how);
        const double storage = type == DType::f32 ? 0.0 : rounding_of(type);
        const auto k = static_cast<double>(weight.host.numel() / weight.host.dim(0));
        check_norm(s.fetch(y), values(here.y), storage + 4 * (std::sqrt(k) + 2) * 0x1p-24);
        if (how == 0) s.check_graph([&] { conv2d(s.device, there); }, {y});
      }
}
