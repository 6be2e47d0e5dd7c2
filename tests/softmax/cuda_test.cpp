// softmax on the GPU against the CPU's operator: every group size, causal offsets, empty rows, special
// values.
#include "kernels/softmax/softmax.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void run_and_check(Sides& s, SoftmaxArgs args, const Twin& x, const Twin& y) {
  args.x = x.device, args.y = y.device;
  softmax(s.device, args);
  args.x = x.host, args.y = y.host;
  softmax(s.host, args);
  // Exponentials to two units in the last place, trees of M additions, a storage step between two roundings.
  const double storage = y.host.dtype() == DType::f32 ? 0.0 : epsilon_of(y.host.dtype());
  check_norm(s.fetch(y, true), values(y.host_base),
             storage + 0x1p-21 + 4 * std::sqrt(x.host.dim(-1)) * 0x1p-24);
}

}  // namespace

TEST_CASE("CUDA softmax agrees with the CPU for rows of every length, causal or not") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 401);
  for (int64_t m : {1,    3,    8,    49,   64,   256,  264,   1000,  1024,  1025,
                    1032, 2040, 2048, 2056, 4096, 4097, 16384, 16385, 40000, 40001})
    for (bool causal : {false, true}) {
      SoftmaxArgs args;
      args.causal = causal;
      args.causal_offset = m - 5;
      INFO("M " << m << " causal " << causal);
      run_and_check(s, args, s.random(type, {3, 5, m}, -8, 8), s.poisoned(type, {3, 5, m}));
    }
}

TEST_CASE("CUDA softmax clears what rows do not see in its input, too") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 403);
  for (int64_t m : {5, 64, 500, 2048, 9000})
    for (int64_t offset : {int64_t{-2}, int64_t{0}, m / 2}) {
      SoftmaxArgs args;
      args.causal = args.clear_hidden = true;
      args.causal_offset = offset;
      const Twin x = s.random(DType::f32, {2, 7, m}, -8, 8);
      run_and_check(s, args, x, s.poisoned(DType::f32, {2, 7, m}));
      CHECK(same_bits(s.fetch(x), x.host));
      if (offset + 7 < m) CHECK(get(x.host, 7 * m - 1) == 0.0);
    }
}

TEST_CASE("CUDA softmax: rows that see nothing, extreme offsets, NaN and infinity, views, in place") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16);
  Sides s(*gpu, 402);
  SoftmaxArgs args;
  args.causal = true;
  for (int64_t offset : {int64_t{-1}, int64_t{-4}, int64_t{-100}, std::numeric_limits<int64_t>::min(),
                         std::numeric_limits<int64_t>::max(), int64_t{0}, int64_t{3}}) {
    args.causal_offset = offset;
    INFO("offset " << offset);
    run_and_check(s, args, s.random(type, {2, 7, 72}), s.poisoned(type, {2, 7, 72}));
    run_and_check(s, args, s.padded(type, {2, 7, 33}, 1, 4), s.padded_output(type, {2, 7, 33}, 2, 1));
  }
  args.causal = false;
  for (int64_t m : {40, 1000, 2000, 4000, 20000}) {
    const Tensor t = random(s.host, type, {5, m}, s.r, -3, 3);
    fill(t.select(0, 0), -kInfinity);
    put(t, m + 1, std::numeric_limits<double>::quiet_NaN());
    put(t, 2 * m + 7, kInfinity);
    put(t, 3 * m + 9, -kInfinity);
    fill(t.select(0, 4), -kInfinity);
    put(t, 5 * m - 1, std::numeric_limits<double>::quiet_NaN());
    const Twin x = s.upload(t);
    run_and_check(s, args, x, s.poisoned(type, {5, m}));
    run_and_check(s, args, x, x);
  }
  const Twin x = s.random(type, {3, 50, 50}), y = s.poisoned(type, {3, 50, 50});
  args.causal = true, args.causal_offset = 0, args.x = x.device, args.y = y.device;
  s.check_graph([&] { softmax(s.device, args); }, {y});
}
