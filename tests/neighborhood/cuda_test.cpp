// The unfused neighbourhood operators and merge_attention on the GPU against double precision on the host.
#include "kernels/attention/merge.hpp"
#include "kernels/neighborhood/neighborhood.hpp"
#include "tests/cuda_check.hpp"
#include "tests/neighborhood/cases.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using neighborhood_test::Case;

namespace {

/// A packed host copy of a view.
Tensor packed(Context& host, const Tensor& t) {
  const Tensor out = host.allocate(t.dtype(), t.shape());
  int64_t at = 0;
  each(t, [&](int64_t offset) { put(out, at++, get(t, offset)); });
  return out;
}
/// The tensor on the device: heads-first, or as a view of [B, N, H, D].
Tensor upload(Context& host, Context& device, const Tensor& t, bool heads_last) {
  const Tensor order = heads_last ? t.permute({0, 2, 1, 3}) : t;
  const Tensor here = packed(host, order), there = device.allocate(t.dtype(), here.shape());
  copy(device, here, there);
  return heads_last ? there.permute({0, 2, 1, 3}) : there;
}
Tensor plain(Context& host, Context& device, const Tensor& t) {
  if (!t) return {};
  const Tensor here = packed(host, t), there = device.allocate(t.dtype(), here.shape());
  copy(device, here, there);
  return there;
}
Tensor fetch(Context& host, Context& device, const Tensor& t) {
  const Tensor here = host.allocate(t.dtype(), t.shape());
  copy(device, t, here);
  return here;
}

}  // namespace

TEST_CASE("CUDA neighbourhood scores and values agree with double precision in every form") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context host(cpu_backend(), 1), device(*gpu);
  for (uint64_t seed = 0; seed < 90; ++seed) {
    const auto kernel = static_cast<NeighborhoodKernel>(seed % 3);
    if (kernel == NeighborhoodKernel::gemm && dtype == DType::f32) continue;
    testing::Random r(seed);
    Case c(host, r, dtype, kernel);
    // Tensor cores take weights in the storage type.
    if (kernel == NeighborhoodKernel::gemm) c.probability_rounding = epsilon_of(dtype) / 2;
    INFO("seed " << seed << ":" << c.text);
    const bool inside = seed % 2 == 0;
    NeighborhoodScoresArgs s = c.scores;
    s.q = upload(host, device, s.q, inside), s.k = upload(host, device, s.k, inside);
    s.a = plain(host, device, s.a), s.bias = plain(host, device, s.bias);
    neighborhood_scores(device, s);
    const auto [worst, bound] = c.check_scores(fetch(host, device, s.a));
    CHECK(worst <= bound);
    NeighborhoodValuesArgs v = c.values;
    v.v = upload(host, device, v.v, inside), v.a = plain(host, device, v.a), v.o = plain(host, device, v.o);
    neighborhood_values(device, v);
    const auto [worst_value, value_bound] = c.check_values(fetch(host, device, v.o));
    CHECK(worst_value <= value_bound);
  }
}

TEST_CASE("CUDA neighbourhood products at sizes beyond one piece of a tile") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Context host(cpu_backend(), 2), device(*gpu);
  testing::Random r(17);
  // A radius of 23 has tiles of 33 x 33 queries: 18 pieces of 64; 200 dims are 13 fragments.
  NeighborhoodScoresArgs s;
  s.rule.rank = 2, s.rule.grid = {70, 75, 1}, s.rule.window = {47, 47, 1};
  s.kernel = NeighborhoodKernel::gemm, s.scale = 0.07f;
  s.q = random(host, DType::bf16, {1, 2, 5250, 200}, r),
  s.k = random(host, DType::bf16, {1, 1, 5250, 200}, r);
  s.a = poisoned(host, DType::f32, {1, 2, 5250, 47 * 47});
  neighborhood_scores(host, s);
  NeighborhoodScoresArgs there = s;
  there.q = plain(host, device, s.q), there.k = plain(host, device, s.k), there.a = plain(host, device, s.a);
  neighborhood_scores(device, there);
  const Tensor got = fetch(host, device, there.a);
  double worst = 0;
  for (int64_t i = 0; i < got.numel(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(got.data<float>()[i] - s.a.data<float>()[i])));
  CHECK(worst <= 0.07 * 200 * 204 * epsilon_of(DType::f32));

  NeighborhoodValuesArgs v;
  v.rule = s.rule, v.kernel = s.kernel;
  v.a = random(host, DType::f32, {1, 2, 5250, 47 * 47}, r, 0, 1.0 / 2209);
  v.v = random(host, DType::bf16, {1, 1, 5250, 200}, r), v.o = poisoned(host, DType::bf16, {1, 2, 5250, 200});
  neighborhood_values(host, v);
  NeighborhoodValuesArgs v_there = v;
  v_there.a = plain(host, device, v.a), v_there.v = plain(host, device, v.v),
  v_there.o = plain(host, device, v.o);
  neighborhood_values(device, v_there);
  const Tensor o = fetch(host, device, v_there.o);
  worst = 0;
  for (int64_t i = 0; i < o.numel(); ++i) worst = std::max(worst, std::abs(get(o, i) - get(v.o, i)));
  // Weights that sum to at most 1, each rounded to bf16, and one rounding of each result.
  CHECK(worst <= 2 * epsilon_of(DType::bf16));
}

TEST_CASE("CUDA neighbourhood products refuse f32 on tensor cores") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Context host(cpu_backend(), 1), device(*gpu);
  testing::Random r(2);
  Case c(host, r, DType::f32, NeighborhoodKernel::gemm);
  NeighborhoodScoresArgs s = c.scores;
  s.q = plain(host, device, s.q), s.k = plain(host, device, s.k);
  s.a = plain(host, device, s.a), s.bias = plain(host, device, s.bias);
  CHECK_THROWS_AS(neighborhood_scores(device, s), Unsupported);
}

TEST_CASE("CUDA merge_attention agrees with the CPU, one side empty included") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool in_place = GENERATE(false, true);
  Context host(cpu_backend(), 1), device(*gpu);
  testing::Random r(5);
  for (int64_t e : {1, 19, 64, 200}) {
    const Shape shape{2, 3, 37, e}, rows{2, 3, 37};
    MergeAttentionArgs a;
    a.o_a = random(host, dtype, shape, r), a.o_b = random(host, dtype, shape, r);
    a.lse_a = random(host, DType::f32, rows, r, -20, 20),
    a.lse_b = random(host, DType::f32, rows, r, -20, 20);
    const float inf = std::numeric_limits<float>::infinity();
    for (int64_t row : {0, 50}) a.lse_a.data<float>()[row] = -inf;
    for (int64_t row : {1, 50}) a.lse_b.data<float>()[row] = -inf;
    for (int64_t c = 0; c < e; ++c) put(a.o_a, c, std::numeric_limits<double>::quiet_NaN());
    MergeAttentionArgs d = a;
    d.o_a = plain(host, device, a.o_a), d.o_b = plain(host, device, a.o_b);
    d.lse_a = plain(host, device, a.lse_a), d.lse_b = plain(host, device, a.lse_b);
    a.o = poisoned(host, dtype, shape), a.lse = poisoned(host, DType::f32, rows);
    d.o = in_place ? d.o_b : plain(host, device, a.o),
    d.lse = in_place ? d.lse_a : plain(host, device, a.lse);
    merge_attention(host, a), merge_attention(device, d);
    const Tensor o = fetch(host, device, d.o), lse = fetch(host, device, d.lse);
    double worst = 0, worst_lse = 0;
    for (int64_t i = 0; i < o.numel(); ++i) {
      const double error = std::abs(get(o, i) - get(a.o, i));
      worst = std::isnan(error) ? 1e9 : std::max(worst, error);
    }
    for (int64_t i = 0; i < lse.numel(); ++i)
      if (get(lse, i) != get(a.lse, i))
        worst_lse = std::max(worst_lse, std::abs(get(lse, i) - get(a.lse, i)));
    CHECK(worst <= epsilon_of(dtype) + 8 * epsilon_of(DType::f32));
    CHECK(worst_lse <= 64 * epsilon_of(DType::f32));
  }
}
