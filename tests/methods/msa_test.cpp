// msa: dense multi-head self-attention with its projections.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("msa equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("a grid that divides nothing, odd head width") {
    Trial t = strong_trial("msa", grid_problem(3, 5, 7, 27, 3, dtype));
    check_trial(t, kLayerRoundings);
  }
  SECTION("one token") {
    Trial t = strong_trial("msa", grid_problem(2, 1, 1, 8, 2, dtype));
    check_trial(t, kLayerRoundings);
  }
  SECTION("no bias on the projections, own scale, one head") {
    Trial t =
        strong_trial("msa", grid_problem(1, 6, 4, 16, 1, dtype), {{"qkv_bias", false}, {"qk_scale", 0.31}});
    REQUIRE_FALSE(t.instance->weights().contains("qkv.bias"));
    check_trial(t, kLayerRoundings);
  }
}

TEST_CASE("msa does not depend on the number of threads") {
  Trial one = strong_trial("msa", grid_problem(2, 9, 5, 24, 3), {}, 1);
  Trial two = strong_trial("msa", grid_problem(2, 9, 5, 24, 3), {}, 2);
  one.run(), two.run();
  CHECK(one.output("out").data == two.output("out").data);
}

TEST_CASE("msa counts as its card counts") {
  const ClosedForm f = table_form("msa");
  CHECK(f.published_macs == 521'428'992);  // published: 521.43 M
  CHECK(f.cost.matmul == 2 * f.published_macs);
  CHECK(f.parameters == 2'362'368);  // published: 2.36 M
}

TEST_CASE("msa attends to every token") {
  Trial t = strong_trial("msa", grid_problem(2, 3, 5, 8, 2));
  check_analyses(t);
  Intervals set;
  t.instance->pairs()->row(1, 1, 7, set);
  CHECK(set == Intervals{{0, 15}});
}

TEST_CASE("msa refuses what it cannot do") { check_refusals("msa"); }
