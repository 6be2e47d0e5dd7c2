// avg_pool2d on the GPU against the CPU's operator.
#include "kernels/pool/pool.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// The CPU adds in the same order; compilers may contract differently, and a storage step lies between
/// roundings.
void run_and_check(Sides& s, const Twin& x, const Twin& y, bool adaptive) {
  avg_pool2d(s.device, {x.device, y.device, adaptive});
  avg_pool2d(s.host, {x.host, y.host, adaptive});
  const DType t = y.host.dtype();
  check_norm(s.fetch(y, true), values(y.host_base), t == DType::f32 ? 4 * 0x1p-24 : epsilon_of(t));
}

}  // namespace

TEST_CASE("CUDA avg_pool2d agrees with the CPU: even and uneven cells, odd channels, views") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 501);
  for (const auto& c : {Shape{2, 14, 14, 64, 7, 7}, Shape{3, 6, 9, 13, 2, 3}, Shape{1, 5, 4, 1, 5, 4},
                        Shape{2, 28, 28, 96, 1, 1}, Shape{70, 4, 4, 8, 2, 2}})
    run_and_check(s, s.random(type, {c[0], c[1], c[2], c[3]}), s.poisoned(type, {c[0], c[4], c[5], c[3]}),
                  false);
  for (const auto& c : {Shape{2, 14, 13, 64, 7, 7}, Shape{2, 3, 5, 9, 7, 7}, Shape{1, 23, 17, 40, 4, 5}})
    run_and_check(s, s.random(type, {c[0], c[1], c[2], c[3]}), s.poisoned(type, {c[0], c[4], c[5], c[3]}),
                  true);
  run_and_check(s, s.padded(type, {2, 6, 8, 16}, 8, 8), s.padded_output(type, {2, 3, 4, 16}, 8, 0), false);
  run_and_check(s, s.padded(type, {2, 6, 8, 16}, 1, 2), s.padded_output(type, {2, 3, 4, 16}, 3, 0), false);
  const Twin x = s.random(type, {2, 8, 8, 32}), y = s.poisoned(type, {2, 4, 4, 32});
  s.check_graph([&] { avg_pool2d(s.device, {x.device, y.device, false}); }, {y});
}

TEST_CASE("CUDA pool2d agrees with the CPU: kinds, layouts, padding, adaptive cells, views") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 502);
  for (auto kind : {Pool2dArgs::Kind::max, Pool2dArgs::Kind::average})
    for (bool last : {true, false})
      for (int64_t c : {5, 64})
        for (int how = 0; how < 3; ++how) {
          Pool2dArgs a;
          a.kind = kind, a.channels_last = last, a.kernel = {3, 2}, a.stride = {2, 1}, a.pad = {1, 1, 0, 1};
          a.adaptive = how == 1, a.count_padding = how != 2;
          const int64_t ho = 6, wo = how == 1 ? 17 : 14;
          const Shape in = last ? Shape{3, 11, 14, c} : Shape{3, c, 11, 14};
          const Shape out = last ? Shape{3, ho, wo, c} : Shape{3, c, ho, wo};
          const Twin x = how == 2 ? s.padded(type, in, 1, 2) : s.random(type, in), y = s.poisoned(type, out);
          Pool2dArgs there = a, here = a;
          there.x = x.device, there.y = y.device, here.x = x.host, here.y = y.host;
          pool2d(s.device, there);
          pool2d(s.host, here);
          INFO(in.str() << " way " << how);
          check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 4 * 0x1p-24 : epsilon_of(type));
          if (how == 0) s.check_graph([&] { pool2d(s.device, there); }, {y});
        }
}
