// twins_lsa: reference, closed form, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("twins_lsa equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, win] = GENERATE(table<int64_t, int64_t, int>({
      {8, 12, 4},
      {9, 11, 4},  // padded, cropped before the projection
      {3, 5, 7},   // never clamped: one window of 49 places
      {1, 1, 7},
  }));
  Trial t = strong_trial("twins_lsa", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype), {{"win", win}});
  INFO(h << " x " << w << ", win " << win);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("twins_lsa projects the cropped grid") {
  CHECK(table_form("twins_lsa").published_macs == table_form("window").published_macs);
  const int64_t c = 768, padded = 21 * 21, kept = 15 * 15;
  const ClosedForm f = table_form("twins_lsa", {}, 15);
  CHECK(f.published_macs == 3 * padded * c * c + 2 * padded * 49 * c + kept * c * c);
  CHECK(f.cost.matmul == 2 * f.published_macs);
  CHECK(f.parameters == 2'362'368);
}

TEST_CASE("twins_lsa is window wherever nothing clamps: the projection commutes with the crop") {
  const Problem p = grid_problem(2, 9, 6, 12, 3);
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("twins_lsa", p, {{"win", 4}});
  check_equal(run_layer("twins_lsa", p, {{"win", 4}}, x, w), run_layer("window", p, {{"win", 4}}, x, w));
}

TEST_CASE("twins_lsa's rows, pairs and statistics agree") {
  Trial t = strong_trial("twins_lsa", grid_problem(2, 4, 6, 12, 3), {{"win", 2}});
  check_analyses(t);
}

TEST_CASE("twins_lsa refuses what it cannot do") {
  check_refusals("twins_lsa");
  CHECK_THROWS_AS(make_trial("twins_lsa", grid_problem(1, 8, 8, 8, 2), {{"shift", 3}}), UsageError);
  CHECK_THROWS_AS(make_trial("twins_lsa", grid_problem(1, 8, 8, 8, 2), {{"clamp_window", true}}), UsageError);
}
