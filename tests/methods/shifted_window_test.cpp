// shifted_window: reference, closed form, mask, degenerate cases, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("shifted_window equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, win, shift, table_on, rebuild] = GENERATE(table<int64_t, int64_t, int, int, bool, bool>({
      {8, 12, 4, 2, false, false},  // every mask pattern
      {8, 12, 4, 1, false, true},
      {9, 10, 4, 2, true, false},  // padded: padding rolls along
      {9, 10, 4, 3, true, true},
      {14, 5, 4, 3, false, false},
      {3, 9, 3, 2, true, false},   // clamped: no shift left
      {5, 6, 4, 0, false, false},  // no shift: window
      {6, 4, 3, 2, false, false},
  }));
  Trial t =
      strong_trial("shifted_window", grid_problem(GENERATE(1, 3), h, w, 15, 3, dtype),
                   {{"win", win}, {"shift", shift}, {"rel_pos_bias", table_on}, {"rebuild_mask", rebuild}});
  INFO(h << " x " << w << ", win " << win << ", shift " << shift << ", table " << table_on);
  CHECK(t.instance->capturable() == !rebuild);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("one unclamped window still has its four regions") {
  Trial t = strong_trial("shifted_window", grid_problem(2, 4, 3, 12, 3),
                         {{"win", 4}, {"shift", 1}, {"clamp_window", false}});
  check_trial(t, kLayerRoundings);
}

TEST_CASE("shifted_window counts as window does") {
  const ClosedForm f = table_form("shifted_window");
  CHECK(f.published_macs == 477'173'760);
  CHECK(f.cost.matmul == 2 * f.published_macs);
  CHECK(f.parameters == 2'362'368);
}

TEST_CASE("degenerate 6: no shift is window") {
  const Problem p = grid_problem(2, 9, 8, 12, 3);
  const ParamMap params{{"win", 4}, {"shift", 0}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("window", p, params);
  check_equal(run_layer("shifted_window", p, params, x, w), run_layer("window", p, {{"win", 4}}, x, w));
}

TEST_CASE("the mask is -100, not -inf: enough score overcomes it") {
  // One 2 x 2 window with shift 1: four regions of one token each. Queries and keys of 16 make scores differ
  // by more than 100 between keys, so the masked best key wins over a token's own.
  const Problem p = grid_problem(1, 2, 2, 1, 1);
  const ParamMap params{{"win", 2}, {"shift", 1}, {"clamp_window", false}, {"qkv_bias", false}};
  const RefMap w{{"qkv.weight",
                  [] {
                    RefTensor t({3, 1});
                    t.data = {16, 16, 1};
                    return t;
                  }()},
                 {"proj.weight",
                  [] {
                    RefTensor t({1, 1});
                    t.data = {1};
                    return t;
                  }()},
                 {"proj.bias", RefTensor({1})}};
  RefTensor x({1, 4, 1});
  x.data = {1, 0.2, 0.1, 2};
  const Outputs o = run_layer("shifted_window", p, params, x, w);
  // Token 0: q = 16, own score 256, token 3: 512 - 100 = 412 wins. Token 2: q = 1.6, own 2.56, token 3: 51.2
  // - 100.
  CHECK(o.reference[0] == Approx(2.0));
  CHECK(o.method[0] == Approx(2.0));
  CHECK(o.reference[2] == Approx(0.1));
  CHECK(o.method[2] == Approx(0.1));
}

TEST_CASE("shifted_window's rows, pairs and statistics agree") {
  SECTION("divisible") {
    Trial t = strong_trial("shifted_window", grid_problem(2, 6, 6, 12, 3), {{"win", 3}, {"shift", 1}});
    check_analyses(t);
  }
  SECTION("padded") {
    Trial t = strong_trial("shifted_window", grid_problem(2, 5, 7, 12, 3),
                           {{"win", 3}, {"shift", 2}, {"rel_pos_bias", true}});
    check_analyses(t, [](int64_t) { return false; });
  }
}

TEST_CASE("shifted_window's dependencies stop at the region's edge") {
  const Trial t = make_trial("shifted_window", grid_problem(1, 4, 4, 4, 1), {{"win", 2}, {"shift", 1}});
  const PairSet p = *t.instance->pairs();
  Intervals set;
  p.row(0, 0, 5, set);  // (1, 1): the interior window (1..2) x (1..2)
  CHECK(set == Intervals{{5, 7}, {9, 11}});
  p.row(0, 0, 4, set);  // (1, 0): rolled to the last column; rows 1..2 with column 3 in another region
  CHECK(set == Intervals{{4, 5}, {8, 9}});
  p.row(0, 0, 0, set);  // the corner: alone
  CHECK(set == Intervals{{0, 1}});
  p.row(0, 0, 13, set);  // (3, 1): the bottom window, its upper region
  CHECK(set == Intervals{{13, 15}});
}

TEST_CASE("shifted_window refuses what it cannot do") {
  check_refusals("shifted_window");
  CHECK_THROWS_AS(make_trial("shifted_window", grid_problem(1, 8, 8, 8, 2), {{"win", 3}, {"shift", 3}}),
                  UsageError);
}
