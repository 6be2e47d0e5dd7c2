// Small positive definite systems: residuals against the matrix, a ridge, one that is not definite, every
// size.
#include "kernels/solve/solve.hpp"

#include "tests/op_testing.hpp"
#include "tests/solve/systems.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("solve_spd solves what it is given, upper triangles unread") {
  Context ctx(cpu_backend(), 2);
  testing::Random r(3);
  for (int64_t n : {1, 2, 5, 17, 64, 128}) {
    SolveSpdArgs a = spd_systems(ctx, r, 7, n);
    for (const float ridge : {0.0f, 2.5f}) {
      a.ridge = ridge;
      poison(a.x);
      ctx.cost().reset();
      solve_spd(ctx, a);
      INFO("n " << n << " ridge " << ridge);
      CHECK(worst_residual(a) <= 8 * epsilon_of(DType::f32));
      CHECK(ctx.cost().total().matmul == 7 * (n * n * n / 3 + 2 * n * n));
    }
    a.ridge = 0;
    a.x = a.b;  // in place
    const std::vector<double> b = values(a.b);
    SolveSpdArgs apart = a;
    apart.b = random(ctx, DType::f32, a.b.shape(), r);
    for (size_t i = 0; i < b.size(); ++i) put(apart.b, static_cast<int64_t>(i), b[i]);
    apart.x = poisoned(ctx, DType::f32, a.b.shape());
    solve_spd(ctx, apart);
    solve_spd(ctx, a);
    CHECK(values(a.x) == values(apart.x));
  }
}

TEST_CASE("solve_spd by hand, and systems that are not positive definite") {
  Context ctx(cpu_backend(), 1);
  SolveSpdArgs a;
  a.a = ctx.allocate(DType::f32, {2, 2, 2}), a.b = ctx.allocate(DType::f32, {2, 2}),
  a.x = poisoned(ctx, DType::f32, {2, 2});
  const float m[] = {4, 99, 2, 3, 1, 0, 2, 1}, b[] = {10, 8, 1, 1};
  std::copy(m, m + 8, a.a.data<float>()), std::copy(b, b + 4, a.b.data<float>());
  solve_spd(ctx, a);  // 4x + 2y = 10, 2x + 3y = 8
  CHECK(a.x.data<float>()[0] == Approx(1.75));
  CHECK(a.x.data<float>()[1] == Approx(1.5));
  CHECK(std::isnan(a.x.data<float>()[2]));  // 1 * 1 < 2 * 2
  CHECK(std::isnan(a.x.data<float>()[3]));
  a.a = ctx.allocate(DType::f32, {1, 200, 200});
  CHECK_THROWS_WITH(solve_spd(ctx, a), ContainsSubstring("128"));
}
