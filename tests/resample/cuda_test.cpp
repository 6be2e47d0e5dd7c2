// resize_bicubic on the GPU against the CPU's operator.
#include "kernels/resample/resample.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA resize_bicubic agrees with the CPU: up, down, odd ratios, single pixels, clamping") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 801);
  for (const auto& c : {Shape{2, 3, 16, 24, 8, 12}, Shape{1, 2, 7, 5, 21, 20}, Shape{3, 1, 33, 17, 10, 40},
                        Shape{1, 1, 1, 1, 4, 5}, Shape{1, 1, 2, 3, 1, 1}, Shape{1, 2, 40, 9, 93, 33},
                        Shape{2, 1, 100, 8, 9, 8}, Shape{2, 3, 64, 64, 64, 64}})
    for (bool clamp : {false, true}) {
      const Twin x = s.random(type, {c[0], c[1], c[2], c[3]}, -0.5, 1.5);
      const Twin y = s.poisoned(type, {c[0], c[1], c[4], c[5]});
      resize_bicubic(s.device, {x.device, y.device, clamp});
      resize_bicubic(s.host, {x.host, y.host, clamp});
      INFO(c.str());
      // Taps are the same to a rounding; sixteen products of up to 1.5 with weights below 1.4 in one order.
      std::vector<double> want = values(y.host), tolerance;
      const double storage = type == DType::f32 ? 0.0 : epsilon_of(type);
      for (double w : want) tolerance.push_back(16 * 0x1p-22 + storage * std::fabs(w));
      check_close(s.fetch(y), want, tolerance);
    }
  const Tensor t = random(s.host, type, {1, 1, 8, 8}, s.r);
  put(t, 27, std::numeric_limits<double>::quiet_NaN());
  const Twin x = s.upload(t), y = s.poisoned(type, {1, 1, 16, 16});
  resize_bicubic(s.device, {x.device, y.device, true});
  resize_bicubic(s.host, {x.host, y.host, true});
  check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 0x1p-20 : epsilon_of(type));
  s.check_graph([&] { resize_bicubic(s.device, {x.device, y.device, false}); }, {y});
}
