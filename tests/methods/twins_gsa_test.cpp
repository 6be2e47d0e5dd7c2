// twins_gsa: reference, closed form; sra under another name.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("twins_gsa equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, ratio] =
      GENERATE(table<int64_t, int64_t, int>({{8, 12, 4}, {7, 9, 2}, {17, 8, 8}, {3, 4, 1}}));
  Trial t =
      strong_trial("twins_gsa", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype), {{"sr_ratio", ratio}});
  INFO(h << " x " << w << ", ratio " << ratio);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("twins_gsa is sra") {
  const Problem p = grid_problem(2, 5, 6, 12, 3);
  const ParamMap params{{"sr_ratio", GENERATE(1, 2)}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("twins_gsa", p, params);
  check_equal(run_layer("twins_gsa", p, params, x, w), run_layer("sra", p, params, x, w));
  CHECK(table_form("twins_gsa", params).cost == table_form("sra", params).cost);
}

TEST_CASE("twins_gsa's rows, pairs and statistics agree") {
  Trial t = strong_trial("twins_gsa", grid_problem(1, 5, 6, 12, 3));
  check_analyses(t, [](int64_t) { return false; });
}

TEST_CASE("twins_gsa refuses what it cannot do") {
  check_refusals("twins_gsa");
  CHECK_THROWS_AS(make_trial("twins_gsa", grid_problem(1, 4, 4, 8, 2), {{"sr_ratio", 8}}), Unsupported);
}
