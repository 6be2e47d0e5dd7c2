// normalize on the GPU against the CPU's operator: every group size, packed and odd rows, views, in place.
#include "kernels/norm/norm.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

void run_and_check(Sides& s, NormArgs args, const Twin& x, const Twin& y, const Twin& gain,
                   const Twin& offset) {
  args.x = x.device, args.y = y.device, args.gain = gain.device, args.offset = offset.device;
  normalize(s.device, args);
  args.x = x.host, args.y = y.host, args.gain = gain.host, args.offset = offset.host;
  normalize(s.host, args);
  // Both sum C terms in f32 by trees and round once: sqrt(C) roundings cover either, one storage step their
  // difference.
  const double c = static_cast<double>(x.host.dim(-1));
  const double storage = y.host.dtype() == DType::f32 ? 0.0 : epsilon_of(y.host.dtype());
  check_norm(s.fetch(y, true), values(y.host_base), storage + 4 * (std::sqrt(c) + 4) * 0x1p-24);
}

}  // namespace

TEST_CASE("CUDA normalize agrees with the CPU for rows of every length") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 301);
  // Around the borders between groups of 8, 32, 128 and 512 threads, and beyond what 512 keep in registers.
  for (int64_t c :
       {1, 3, 8, 49, 64, 256, 264, 768, 1000, 1024, 1025, 2048, 4096, 4097, 4104, 16384, 16385, 40000, 40001})
    for (NormArgs::Kind kind : {NormArgs::Kind::layer_norm, NormArgs::Kind::rms_norm}) {
      NormArgs args;
      args.kind = kind;
      const bool affine = c % 2 == 0;
      INFO("C " << c);
      run_and_check(s, args, s.random(type, {2, 3, c}, -1, 3), s.poisoned(type, {2, 3, c}),
                    affine ? s.random(type, {c}) : Twin{}, affine ? s.random(type, {c}) : Twin{});
    }
}

TEST_CASE("CUDA normalize: many rows, strided rows, in place, NaN rows, a large common offset") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16);
  Sides s(*gpu, 302);
  NormArgs args;
  run_and_check(s, args, s.random(type, {20000, 48}), s.poisoned(type, {20000, 48}), {},
                s.random(type, {48}));
  run_and_check(s, args, s.padded(type, {5, 7, 100}, 1, 2), s.padded_output(type, {5, 7, 100}, 2, 3), {}, {});
  run_and_check(s, args, s.padded(type, {5, 7, 104}, 8, 8), s.padded_output(type, {5, 7, 104}, 8, 16), {},
                {});
  for (int64_t c : {96, 5000, 30000}) {
    const Twin x = s.random(type, {6, c});
    run_and_check(s, args, x, x, {}, {});
  }
  const Tensor t = random(s.host, type, {4, 200}, s.r);
  put(t, 250, std::numeric_limits<double>::quiet_NaN());
  put(t, 450, std::numeric_limits<double>::infinity());
  run_and_check(s, args, s.upload(t), s.poisoned(type, {4, 200}), {}, {});
  // One pass over squares would cancel here: the deviation is 1e-3 of the mean.
  if (type == DType::f32) {
    const Twin x = s.random(type, {8, 4096}, 100.0, 100.3), y = s.poisoned(type, {8, 4096});
    args.x = x.device, args.y = y.device;
    normalize(s.device, args);
    const std::vector<double> in = values(x.host);
    std::vector<double> want;
    for (size_t r = 0; r < 8; ++r) {
      double mean = 0, var = 0;
      for (size_t i = 0; i < 4096; ++i) mean += in[r * 4096 + i] / 4096;
      for (size_t i = 0; i < 4096; ++i) var += std::pow(in[r * 4096 + i] - mean, 2) / 4096;
      for (size_t i = 0; i < 4096; ++i) want.push_back((in[r * 4096 + i] - mean) / std::sqrt(var + 1e-5));
    }
    // The mean's own rounding, 2^-24 of 100 several times over, against a deviation of 0.087.
    check_norm(s.fetch(y), want, 8 * 0x1p-24 * 100 / 0.087);
  }
  const Twin x = s.random(type, {50, 700}), y = s.poisoned(type, {50, 700});
  args.x = x.device, args.y = y.device;
  s.check_graph([&] { normalize(s.device, args); }, {y});
}

TEST_CASE(
    "CUDA group_norm and l2_norm agree with the CPU: groups, layouts, running statistics, long regions") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 503);
  for (bool last : {true, false})
    for (int64_t groups : {1, 4, 24, 0})  // 0: running statistics
      for (int64_t positions : {1, 35, 9000}) {
        GroupNormArgs a;
        a.channels_last = last, a.groups = std::max<int64_t>(groups, 1);
        const Shape shape = last ? Shape{2, positions, 24} : Shape{2, 24, positions};
        const Twin x = s.random(type, shape, -2, 3), y = s.poisoned(type, shape);
        const Twin gain = s.random(type, {24}), offset = s.random(type, {24});
        const Twin mean = s.random(DType::f32, {24}), variance = s.random(DType::f32, {24}, 0.1, 2);
        GroupNormArgs there = a, here = a;
        there.x = x.device, there.y = y.device, there.gain = gain.device, there.offset = offset.device;
        here.x = x.host, here.y = y.host, here.gain = gain.host, here.offset = offset.host;
        if (groups == 0) {
          there.mean = mean.device, there.variance = variance.device;
          here.mean = mean.host, here.variance = variance.host;
        }
        group_norm(s.device, there);
        group_norm(s.host, here);
        INFO(shape.str() << " groups " << groups << (last ? " last" : " first"));
        check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 16 * 0x1p-24 : epsilon_of(type));
        if (positions == 35) s.check_graph([&] { group_norm(s.device, there); }, {y});
      }
  for (int64_t n : {1, 17, 64, 3000}) {
    NormArgs there, here;
    there.kind = here.kind = NormArgs::Kind::l2_norm, there.eps = here.eps = 1e-12f;
    const Twin x = s.random(type, {5, n}), y = s.poisoned(type, {5, n});
    there.x = x.device, there.y = y.device, here.x = x.host, here.y = y.host;
    normalize(s.device, there);
    normalize(s.host, here);
    check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 32 * 0x1p-24 : epsilon_of(type));
  }
}
