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
