// reweigh_attention and reweigh_map on the GPU against the CPU's operators.
#include "kernels/attention/reweigh.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Tensor up(Context& device, const Tensor& t) {
  if (!t) return {};
  const Tensor there = device.allocate(t.dtype(), t.shape());
  copy(device, t, there);
  return there;
}
double worst(Context& host, Context& device, const Tensor& there, const Tensor& want) {
  const Tensor here = host.allocate(there.dtype(), there.shape());
  copy(device, there, here);
  double most = 0;
  for (int64_t i = 0; i < here.numel(); ++i) {
    const double error = std::abs(get(here, i) - get(want, i));
    most = std::isnan(error) ? 1e9 : std::max(most, error);
  }
  return most;
}

}  // namespace

TEST_CASE("CUDA reweighing agrees with the CPU, rows without members and whole rows of them included") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool in_place = GENERATE(false, true);
  Context host(cpu_backend(), 1), device(*gpu);
  testing::Random r(6);
  for (int64_t e : {1, 33, 128}) {
    const Shape shape{2, 3, 29, e}, rows{2, 3, 29};
    ReweighAttentionArgs a;
    a.o = random(host, dtype, shape, r), a.o_s = random(host, dtype, shape, r);
    a.lse = random(host, DType::f32, rows, r, -3, 3), a.lse_s = host.allocate(DType::f32, rows);
    for (int64_t i = 0; i < rows.numel(); ++i)
      put(a.lse_s, i,
          i % 7 == 0   ? -std::numeric_limits<double>::infinity()
          : i % 7 == 1 ? get(a.lse, i)
                       : get(a.lse, i) + std::log(r.uniform(0.01, 0.9)));
    a.apply = host.allocate(DType::f32, {2, 3});
    for (int64_t i = 0; i < 6; ++i) put(a.apply, i, i == 4 ? 0 : 1);
    a.beta = 0.3f;
    ReweighAttentionArgs d = a;
    for (Tensor* t : {&d.o, &d.o_s, &d.lse, &d.lse_s, &d.apply}) *t = up(device, *t);
    a.y = poisoned(host, dtype, shape), a.share = poisoned(host, DType::f32, rows),
    a.share_after = poisoned(host, DType::f32, rows);
    d.y = in_place ? d.o : up(device, a.y), d.share = up(device, a.share),
    d.share_after = up(device, a.share_after);
    reweigh_attention(host, a), reweigh_attention(device, d);
    INFO("E " << e);
    CHECK(worst(host, device, d.y, a.y) <= 16 * epsilon_of(dtype) + 64 * epsilon_of(DType::f32));
    CHECK(worst(host, device, d.share, a.share) <= 16 * epsilon_of(DType::f32));
    CHECK(worst(host, device, d.share_after, a.share_after) <= 16 * epsilon_of(DType::f32));
  }
  for (int64_t m : {1, 31, 200}) {
    ReweighMapArgs a;
    a.p = random(host, DType::f32, {2, 3, 29, m}, r, 0, 1.0 / static_cast<double>(m));
    a.members = host.allocate(DType::i32, {2, 3, m});
    for (int64_t i = 0; i < a.members.numel(); ++i)
      a.members.data<int32_t>()[i] = r.integer(0, 2) == 0 ? 9 : 0;
    a.beta = 0.3f;
    ReweighMapArgs d = a;
    d.p = up(device, a.p), d.members = up(device, a.members);
    a.y = poisoned(host, DType::f32, a.p.shape()), a.share = poisoned(host, DType::f32, {2, 3, 29});
    d.y = in_place ? d.p : up(device, a.y), d.share = up(device, a.share);
    reweigh_map(host, a), reweigh_map(device, d);
    INFO("M " << m);
    CHECK(worst(host, device, d.y, a.y) <= 64 * epsilon_of(DType::f32));
    CHECK(worst(host, device, d.share, a.share) <= 16 * epsilon_of(DType::f32));
  }
}
