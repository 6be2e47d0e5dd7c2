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
                        Shape{2, 1, 100, 8, 9, 8}, Shape{2, 3, 64, 64, 64, 64}, Shape{2, 2, 70, 75, 140, 150},
                        Shape{1, 2, 140, 200, 35, 100}, Shape{300, 3, 16, 40, 48, 20}})
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

TEST_CASE("CUDA resize agrees with the CPU: kinds, ratios, layouts") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Kind = ResampleArgs::Kind;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 802);
  for (Kind kind : {Kind::nearest, Kind::bilinear, Kind::bicubic, Kind::lanczos})
    for (bool antialias : {false, true})
      for (bool last : {true, false})
        for (const Shape& c :
             {Shape{5, 7, 10, 14}, Shape{19, 18, 4, 3}, Shape{1, 1, 3, 2}, Shape{7, 9, 11, 2}}) {
          if (antialias ? kind == Kind::nearest : kind == Kind::lanczos) continue;
          ResampleArgs a;
          a.kind = kind, a.antialias = antialias, a.channels_last = last;
          const Twin x = s.random(type, last ? Shape{2, c[0], c[1], 3} : Shape{2, 3, c[0], c[1]});
          const Twin y = s.poisoned(type, last ? Shape{2, c[2], c[3], 3} : Shape{2, 3, c[2], c[3]});
          ResampleArgs there = a, here = a;
          there.x = x.device, there.y = y.device, here.x = x.host, here.y = y.host;
          resize(s.device, there);
          resize(s.host, here);
          INFO("kind " << static_cast<int>(kind) << (antialias ? " antialiased " : " ") << c.str());
          check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 32 * 0x1p-24 : epsilon_of(type));
          if (c[0] == 5) s.check_graph([&] { resize(s.device, there); }, {y});
        }
}

TEST_CASE("CUDA sample_points agrees with the CPU: views, points outside, NaN") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 803);
  for (bool clamp : {false, true})
    for (int64_t d : {5, 32})
      for (int64_t gx : {1, 3}) {
        const Twin tokens =
            d == 5 ? s.padded(type, {2, 6, 7, gx, d}, 1, 2) : s.random(type, {2, 6, 7, gx, d});
        const Twin x = tokens.view([](const Tensor& t) { return t.permute({0, 3, 1, 2, 4}); });
        Tensor at = random(s.host, DType::f32, {2, 3, 50, 2}, s.r, -3, 9);
        put(at, 4, std::numeric_limits<double>::infinity());
        put(at, 9, -1e30);
        put(at, 20, std::numeric_limits<double>::quiet_NaN());
        const Twin points = s.upload(at), y = s.poisoned(type, {2, 3, 50, d});
        sample_points(s.device, {x.device, points.device, y.device, clamp});
        sample_points(s.host, {x.host, points.host, y.host, clamp});
        check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 16 * 0x1p-24 : epsilon_of(type));
        s.check_graph([&] { sample_points(s.device, {x.device, points.device, y.device, clamp}); }, {y});
      }
}
