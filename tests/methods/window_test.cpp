// window: reference, closed form, degenerate cases, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("window equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, win, table_on] = GENERATE(table<int64_t, int64_t, int, bool>({
      {8, 12, 4, false},  // divides
      {9, 10, 4, false},  // padded on both axes: the projection runs on padding too
      {9, 10, 4, true},
      {8, 4, 4, true},  // clamped to 4, windows follow each other in token order
      {3, 5, 7, true},  // clamped to 3: the table has 5 x 5 rows
      {1, 6, 2, false},
      {1, 1, 7, true},
  }));
  Trial t = strong_trial("window", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype),
                         {{"win", win}, {"rel_pos_bias", table_on}});
  INFO(h << " x " << w << ", win " << win << ", table " << table_on);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("an unclamped window pads small grids") {
  Trial t =
      strong_trial("window", grid_problem(2, 3, 5, 12, 3),
                   {{"clamp_window", false}, {"rel_pos_bias", true}, {"qkv_bias", false}, {"qk_scale", 0.4}});
  CHECK(t.instance->weights().at("rel_pos_bias_table").shape() == Shape{169, 3});
  CHECK(t.instance->keys(0) == 49);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("window counts as its card counts") {
  const ClosedForm f = table_form("window");
  CHECK(f.published_macs == 477'173'760);  // published: 477.17 M
  CHECK(f.cost.matmul == 2 * f.published_macs);
  CHECK(f.parameters == 2'362'368);  // published: 2.36 M
  // 15 x 15 becomes 21 x 21.
  CHECK(table_form("window", {}, 15).published_macs * 196 == f.published_macs * 441);
  CHECK(table_form("window", {{"rel_pos_bias", true}}).parameters == 2'362'368 + 169 * 12);
}

TEST_CASE("degenerate 6: a window over the whole grid, clamped, is msa") {
  const int64_t side = GENERATE(4, 7);
  const Problem p = grid_problem(2, side, side, 12, 3);
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("window", p, {{"win", 7}});
  check_equal(run_layer("window", p, {{"win", 7}}, x, w), run_layer("msa", p, {}, x, w));
}

TEST_CASE("window with a shift is shifted_window") {
  const Problem p = grid_problem(2, 9, 8, 12, 3);
  const ParamMap params{{"win", 4}, {"shift", 2}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("window", p, params);
  check_equal(run_layer("window", p, params, x, w), run_layer("shifted_window", p, params, x, w));
}

TEST_CASE("a constant table changes nothing, a peaked one picks its offset") {
  const Problem p = grid_problem(1, 4, 4, 4, 2);
  const RefTensor x = strong_input(p);
  const ParamMap params{{"win", 2}, {"rel_pos_bias", true}};
  RefMap w = strong_weights("window", p, params);
  RefMap plain = w;
  plain.erase("rel_pos_bias_table");
  for (double& v : w.at("rel_pos_bias_table").data) v = 2.5;
  const Outputs flat = run_layer("window", p, params, x, w);
  check_equal(flat, run_layer("window", p, {{"win", 2}}, x, plain));
  // Query at (0, 0) of a window, key at (1, 1): yq - yk = xq - xk = -1, row (-1 + 1) * 3 + (-1 + 1) = 0.
  for (double& v : w.at("rel_pos_bias_table").data) v = 0;
  w.at("rel_pos_bias_table")[0] = w.at("rel_pos_bias_table")[1] = 80;
  const Outputs peaked = run_layer("window", p, params, x, w);
  const RefTensor bias = rows_of(w.at("qkv.bias"), 8, 12);
  const RefTensor v = ref::linear(x, rows_of(w.at("qkv.weight"), 8, 12), &bias);
  const RefTensor y = ref::linear(v, w.at("proj.weight"), &w.at("proj.bias"));
  for (int64_t c = 0; c < 4; ++c) {
    CHECK(peaked.reference[c] == Approx(y[(1 * 4 + 1) * 4 + c]).epsilon(1e-9));  // token (0,0) reads (1,1)
    CHECK(peaked.method[c] == Approx(y[(1 * 4 + 1) * 4 + c]).margin(1e-5));
  }
}

TEST_CASE("window's rows, pairs and statistics agree") {
  SECTION("divisible") {
    Trial t = strong_trial("window", grid_problem(2, 4, 6, 12, 3), {{"win", 2}, {"rel_pos_bias", true}});
    check_analyses(t);
  }
  SECTION("padded") {
    Trial t = strong_trial("window", grid_problem(2, 5, 4, 12, 3), {{"win", 3}});
    check_analyses(t, [](int64_t) { return false; });
    CHECK(t.instance->keys(0) == 36);
    Intervals set;
    t.instance->pairs()->row(0, 0, 4 * 4 + 3, set);  // the corner window holds (3, 3) and (4, 3)
    CHECK(set == Intervals{{15, 16}, {19, 20}});
    std::vector<float> p;
    REQUIRE(t.instance->rows(*t.ctx, 0, 0, 19, 20, p));
    double padding = 0;  // columns of the padded 6 x 6 grid that are no tokens
    for (int64_t y = 3; y < 6; ++y)
      for (int64_t x = 3; x < 6; ++x)
        if (y > 4 || x > 3) padding += p[static_cast<size_t>(y * 6 + x)];
    CHECK(padding > 0.01);  // padded tokens carry the biases and are not masked
  }
}

TEST_CASE("window refuses what it cannot do") {
  check_refusals("window");
  const Problem p = grid_problem(1, 8, 8, 8, 2);
  CHECK_THROWS_AS(make_trial("window", p, {{"shift", 7}}), UsageError);
  CHECK_THROWS_AS(make_trial("window", p, {{"shift", -1}}), UsageError);
  CHECK_THROWS_AS(make_trial("window", p, {{"win", 0}}), UsageError);
  CHECK_THROWS_AS(make_trial("window", p, {{"window_size", 2}}), UsageError);
}
