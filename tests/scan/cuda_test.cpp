// selective_scan, iir, extend and the filters made of transforms on the GPU against the CPU's operators.
#include "kernels/scan/scan.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA selective_scan agrees with the CPU: sizes, types, directions, gates, strides, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 931);
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  for (const auto& [length, d, states] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                          {7, 5, 3},
                                          {40, 129, 16},
                                          {13, 256, 33},
                                          {300, 40, 64}})
    for (bool reverse : {false, true})
      for (bool gated : {false, true}) {
        const auto tokens = [&](int64_t width, double low, double high) {
          return s.random(type, {2, length, 3, width}, low, high).view([](const Tensor& t) {
            return t.transpose(1, 2);
          });
        };
        const Twin u = tokens(d, -1, 1), delta = tokens(d, 0, 1), b = tokens(states, -1, 1),
                   c = tokens(states, -1, 1);
        const Twin a = s.random(DType::f32, {d, states}, -2, 0), skip = s.random(DType::f32, {d}),
                   z = tokens(d, -3, 3);
        const Twin y =
            s.poisoned(type, {2, length, 3, d}).view([](const Tensor& t) { return t.transpose(1, 2); });
        const auto run = [&](Context& ctx, const auto& side) {
          SelectiveScanArgs args;
          args.u = side(u), args.delta = side(delta), args.a = side(a), args.b = side(b), args.c = side(c),
          args.y = side(y);
          if (gated) args.skip = side(skip), args.z = side(z), args.softplus = true, args.bias = side(skip);
          args.reverse = reverse;
          selective_scan(ctx, args);
        };
        run(s.device, [](const Twin& t) { return t.device; });
        run(s.host, [](const Twin& t) { return t.host; });
        INFO(name(type) << " L " << length << ", D " << d << ", S " << states
                        << (reverse ? ", reverse" : ""));
        check_norm(s.fetch(y), values(y.host), 64 * 0x1p-24 + 2 * rounding_of(type));
        if (length == 40) s.check_graph([&] { run(s.device, [](const Twin& t) { return t.device; }); }, {y});
      }
  const Twin u = s.random(DType::f32, {4, 3}), b = s.random(DType::f32, {4, 65}),
             a = s.random(DType::f32, {3, 65}), y = s.poisoned(DType::f32, {4, 3});
  SelectiveScanArgs args;
  args.u = args.delta = u.device, args.a = a.device, args.b = args.c = b.device, args.y = y.device;
  CHECK_THROWS_AS(selective_scan(s.device, args), Unsupported);
}

TEST_CASE("CUDA iir, extend, fir and analytic_signal agree with the CPU") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 932);
  const std::vector<Biquad> few = {{0.2, 0.3, -0.1, -0.5, 0.25}, {1.0, -0.4, 0, 0.3, 0}};
  std::vector<Biquad> many;
  for (int i = 0; i < 7; ++i) many.push_back({0.5 + 0.1 * i, 0.2, -0.3, -0.8 + 0.1 * i, 0.3});
  for (DType type : {DType::f32, DType::f64})
    for (int64_t n : {1, 2, 333})
      for (bool reverse : {false, true})
        for (const auto& sections : {few, many}) {
          const auto inside = [&](const Tensor& t) { return t.slice(1, 1, n + 1); };
          const Twin x = s.random(type, {5, n + 2}).view(inside),
                     y = s.poisoned(type, {5, n + 2}).view(inside);
          iir(s.device, {x.device, y.device, sections, n != 2, reverse});
          iir(s.host, {x.host, y.host, sections, n != 2, reverse});
          INFO(name(type) << " N " << n << (reverse ? ", reverse" : ""));
          check_norm(s.fetch(y), values(y.host), type == DType::f64 ? 1e-12 : 0x1p-23);
          using Mode = ExtendArgs::Mode;
          for (Mode mode : {Mode::zeros, Mode::reflect, Mode::odd, Mode::edge}) {
            const int64_t before = n - 1, after = n / 2;
            const Twin wide = s.poisoned(type, {5, before + n + after});
            extend(s.device, {mode, x.device, wide.device, before, after});
            extend(s.host, {mode, x.host, wide.host, before, after});
            check_norm(s.fetch(wide), values(wide.host), 0x1p-23);
          }
        }
  for (int64_t n : {1, 2, 100, 1001}) {
    const Twin x = s.random(DType::f32, {3, n}), taps = s.random(DType::f32, {9}),
               y = s.poisoned(DType::f32, {3, n}), z = s.poisoned(DType::f32, {3, n, 2});
    for (bool reverse : {false, true}) {
      fir(s.device, {x.device, taps.device, y.device, reverse});
      fir(s.host, {x.host, taps.host, y.host, reverse});
      check_norm(s.fetch(y), values(y.host), 200 * 0x1p-24);
    }
    analytic_signal(s.device, x.device, z.device);
    analytic_signal(s.host, x.host, z.host);
    check_norm(s.fetch(z), values(z.host), 200 * 0x1p-24);
  }
}
