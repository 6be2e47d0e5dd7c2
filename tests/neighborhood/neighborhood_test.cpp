// The unfused neighbourhood operators against double precision, in every form, on views and odd sizes.
#include "kernels/neighborhood/neighborhood.hpp"

#include "tests/neighborhood/cases.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using neighborhood_test::Case;

TEST_CASE("neighbourhood scores and values agree with double precision in every form") {
  Context ctx(cpu_backend(), 2);
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  int64_t seen[3] = {};
  for (uint64_t seed = 0; seed < 150; ++seed) {
    testing::Random r(seed);
    const Case c(ctx, r, dtype, static_cast<NeighborhoodKernel>(seed % 3));
    ++seen[seed % 3];
    INFO("seed " << seed << ": " << c.text);
    ctx.cost().reset();
    neighborhood_scores(ctx, c.scores);
    const Cost scores = ctx.cost().total();
    const auto [worst, bound] = c.check_scores(c.scores.a);
    CHECK(worst <= bound);
    ctx.cost().reset();
    neighborhood_values(ctx, c.values);
    const auto [worst_value, value_bound] = c.check_values(c.values.o);
    CHECK(worst_value <= value_bound);
    if (c.scores.kernel != NeighborhoodKernel::gemm) {
      CHECK(scores.matmul == 2 * c.scores.q.dim(3) * c.pairs);
      CHECK(ctx.cost().total().matmul == 2 * c.values.v.dim(3) * c.pairs);
    } else {
      CHECK(scores.matmul >= 2 * c.scores.q.dim(3) * c.pairs);
    }
    CHECK(scores.bytes_written == c.scores.a.nbytes());
  }
  CHECK(seen[2] == 50);
}

TEST_CASE("what lies behind the columns of a neighbourhood's scores stays") {
  Context ctx(cpu_backend(), 1);
  testing::Random r(3);
  Case c(ctx, r, DType::f32, NeighborhoodKernel::gemm);
  const Shape s = c.scores.a.shape();
  const Tensor wide = ctx.allocate(DType::f32, {s[0], s[1], s[2], s[3] + 5});
  fill(wide, 7.0);
  c.scores.a = wide.slice(3, 0, s[3]);
  for (const NeighborhoodKernel form : {NeighborhoodKernel::naive, NeighborhoodKernel::gemm}) {
    c.scores.kernel = form;
    neighborhood_scores(ctx, c.scores);
    const auto [worst, bound] = c.check_scores(c.scores.a);
    CHECK(worst <= bound);
    for (double x : values(wide.slice(3, s[3], s[3] + 5))) CHECK(x == 7.0);
  }
}

TEST_CASE("sides of the GEMM form's tiles are the published ones") {
  CHECK(neighborhood_gemm_tile(1, 2047) == 64);
  const int64_t sides[] = {7, 6, 5, 7, 6, 10, 9, 11, 13, 12, 14, 13, 14, 17, 17, 17, 22, 22, 23, 22, 22, 23};
  for (int64_t radius = 1; radius <= 22; ++radius)
    CHECK(neighborhood_gemm_tile(2, 2 * radius + 1) == sides[radius - 1]);
  for (int64_t radius = 23; radius <= 31; ++radius) CHECK(neighborhood_gemm_tile(2, 2 * radius + 1) == 33);
}

TEST_CASE("the unfused operators refuse what they do not compute") {
  Context ctx(cpu_backend(), 1);
  testing::Random r(4);
  Case c(ctx, r, DType::f32, NeighborhoodKernel::gemm);
  c.scores.rule.causal_axis[0] = true;
  CHECK_THROWS_AS(neighborhood_scores(ctx, c.scores), Unsupported);
  c.scores.rule.causal_axis[0] = false;
  c.scores.rule.window[0] = c.scores.rule.grid[0] + 1;
  CHECK_THROWS_WITH(neighborhood_scores(ctx, c.scores), ContainsSubstring("window"));
  c.scores.rule = c.values.rule;
  c.scores.rule.causal = true;
  CHECK_THROWS_WITH(neighborhood_scores(ctx, c.scores), ContainsSubstring("nothing else"));
  c.values.kernel = NeighborhoodKernel::tiled;
  CHECK_THROWS_AS(neighborhood_values(ctx, c.values), Unsupported);
}
