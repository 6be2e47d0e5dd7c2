// rotary on the GPU against the CPU's operator, on strided heads and in place.
#include "kernels/rotary/rotary.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA rotary equals the CPU's") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool interleaved = GENERATE(false, true), in_place = GENERATE(false, true);
  Sides s(*gpu, 614);
  for (const auto& [d, pairs] : std::vector<std::pair<int64_t, int64_t>>{
           {8, 4}, {7, 2}, {128, 64}, {1, 0}, {96, 32}, {64, 8}, {40, 4}, {24, 12}, {128, 0}}) {
    const int64_t b = 2, h = 5, n = 37;
    const auto heads = [&, width = d](const Tensor& t) {
      return t.strided({b, h, n, width}, {n * h * width, width, h * width, 1});
    };
    const Twin x = s.random(type, {b, n, h * d}).view(heads);
    const Twin y = in_place ? x : s.poisoned(type, {b, n, h * d}).view(heads);
    const Twin cosine = s.random(DType::f32, {n, pairs}), sine = s.random(DType::f32, {n, pairs});
    rotary(s.host, {x.host, cosine.host, sine.host, y.host, interleaved});
    rotary(s.device, {x.device, cosine.device, sine.device, y.device, interleaved});
    // Fused or not, a product and a sum differ by roundings of f32; storage may round to the other neighbour.
    check_norm(s.fetch(y), values(y.host),
               4 * epsilon_of(DType::f32) + (type == DType::f32 ? 0 : epsilon_of(type)));
  }
}
