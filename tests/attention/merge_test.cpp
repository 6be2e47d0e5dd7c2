// Joining two attention results: against double precision, one side empty, in place; and two halves of the
// keys against the whole.
#include "kernels/attention/merge.hpp"

#include "kernels/attention/attention.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {
constexpr float kInf = std::numeric_limits<float>::infinity();
}

TEST_CASE("merge_attention agrees with double precision; what has no weight may hold anything") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool in_place = GENERATE(false, true);
  Context ctx(cpu_backend(), 2);
  testing::Random r(7);
  const Shape shape{2, 3, 37, 19}, rows{2, 3, 37};
  MergeAttentionArgs a;
  a.o_a = random(ctx, dtype, shape, r), a.o_b = random(ctx, dtype, shape, r);
  a.lse_a = random(ctx, DType::f32, rows, r, -30, 30), a.lse_b = random(ctx, DType::f32, rows, r, -30, 30);
  for (int64_t row : {0, 50, 221}) a.lse_a.data<float>()[row] = -kInf;
  for (int64_t row : {1, 50}) a.lse_b.data<float>()[row] = -kInf;
  for (int64_t c = 0; c < 19; ++c) {  // rows without weight
    put(a.o_a, c, std::numeric_limits<double>::quiet_NaN());
    put(a.o_b, 19 + c, std::numeric_limits<double>::quiet_NaN());
  }
  std::vector<double> want, want_lse;
  for (int64_t row = 0; row < rows.numel(); ++row) {
    const double la = get(a.lse_a, row), lb = get(a.lse_b, row), top = std::max(la, lb);
    const double ea = top == -kInf ? 0 : std::exp(la - top), eb = top == -kInf ? 0 : std::exp(lb - top);
    want_lse.push_back(top == -kInf ? -kInf : top + std::log(ea + eb));
    for (int64_t c = 0; c < 19; ++c) {
      const double x = get(a.o_a, row * 19 + c), y = get(a.o_b, row * 19 + c);
      want.push_back(top == -kInf ? 0 : ((ea > 0 ? ea * x : 0) + (eb > 0 ? eb * y : 0)) / (ea + eb));
    }
  }
  a.o = in_place ? a.o_a : poisoned(ctx, dtype, shape);
  a.lse = in_place ? a.lse_b : poisoned(ctx, DType::f32, rows);
  ctx.cost().reset();
  merge_attention(ctx, a);
  double worst = 0, worst_lse = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(get(a.o, static_cast<int64_t>(i)) - want[i]);
    worst = std::isnan(error) ? kInf : std::max(worst, error);
  }
  for (size_t i = 0; i < want_lse.size(); ++i) {
    const double got = get(a.lse, static_cast<int64_t>(i));
    worst_lse = got == want_lse[i] ? worst_lse : std::max(worst_lse, std::abs(got - want_lse[i]));
  }
  // Values up to 1: one rounding to storage, and f32 weights that sum to 1.
  CHECK(worst <= epsilon_of(dtype) / 2 + 4 * epsilon_of(DType::f32));
  CHECK(worst_lse <= 64 * epsilon_of(DType::f32));
  CHECK(ctx.cost().total().special == 3 * rows.numel());
  CHECK(ctx.cost().total().elementwise == 3 * shape.numel());
}

TEST_CASE("attention over two halves of the keys, joined, is attention over all of them") {
  Context ctx(cpu_backend(), 2);
  testing::Random r(8);
  AttentionArgs all;
  all.q = random(ctx, DType::f32, {1, 2, 50, 16}, r), all.k = random(ctx, DType::f32, {1, 2, 90, 16}, r);
  all.v = random(ctx, DType::f32, {1, 2, 90, 8}, r);
  all.o = poisoned(ctx, DType::f32, {1, 2, 50, 8}), all.lse = poisoned(ctx, DType::f32, {1, 2, 50});
  AttentionArgs a = all, b = all;
  a.k = all.k.slice(2, 0, 33), a.v = all.v.slice(2, 0, 33), b.k = all.k.slice(2, 33, 90),
  b.v = all.v.slice(2, 33, 90);
  for (AttentionArgs* x : {&a, &b})
    x->o = poisoned(ctx, DType::f32, {1, 2, 50, 8}), x->lse = poisoned(ctx, DType::f32, {1, 2, 50});
  attention(ctx, all), attention(ctx, a), attention(ctx, b);
  merge_attention(ctx, {a.o, a.lse, b.o, b.lse, a.o, a.lse});
  // Rounding of sums of up to 90 terms, values and weights up to 1.
  check_close(a.o, values(all.o), {1e-5});
  check_close(a.lse, values(all.lse), {1e-5});
}

TEST_CASE("merge_attention refuses shapes that do not fit") {
  Context ctx(cpu_backend(), 1);
  testing::Random r(9);
  MergeAttentionArgs a;
  a.o_a = random(ctx, DType::f32, {1, 1, 4, 8}, r), a.o_b = random(ctx, DType::f32, {1, 1, 4, 8}, r);
  a.o = poisoned(ctx, DType::f32, {1, 1, 4, 8});
  a.lse_a = random(ctx, DType::f32, {1, 1, 4}, r), a.lse_b = random(ctx, DType::f32, {1, 1, 3}, r);
  CHECK_THROWS_WITH(merge_attention(ctx, a), ContainsSubstring("lse_b"));
  a.lse_b = a.lse_a, a.o_b = random(ctx, DType::bf16, {1, 1, 4, 8}, r);
  CHECK_THROWS_WITH(merge_attention(ctx, a), ContainsSubstring("o_b"));
}
