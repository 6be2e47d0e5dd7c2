// Generalized neighbourhood attention: the reference by hand, every form of the method against it, closed
// forms, the card's degenerate cases.
#include "methods/neighborhood.hpp"
#include "tests/methods/neighborhood_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kMethod = "generalized_neighborhood_attention";

/// Output of one method as a reference tensor, from the inputs of the seed.
RefTensor output_of(const char* method, const Problem& p, const ParamMap& params) {
  Trial t = make_trial(method, p, params);
  t.run();
  return t.output("o");
}

}  // namespace

TEST_CASE("the reference of generalized neighbourhoods, by hand") {
  using V = std::vector<int64_t>;
  // Bit j of entry i: query i sees key j.
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({4})}, {"stride", ints({2})}}) ==
        V{0x0f, 0x0f, 0x1e, 0x1e, 0x78, 0x78, 0xf0, 0xf0});
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({4})}, {"stride", ints({4})}}) ==
        V{0x0f, 0x0f, 0x0f, 0x0f, 0xf0, 0xf0, 0xf0, 0xf0});
  CHECK(reference_sets(kMethod, grid_problem({8}),
                       {{"window_size", ints({4})}, {"stride", ints({2})}, {"causal", flags({true})}}) ==
        V{0x01, 0x03, 0x07, 0x0f, 0x1c, 0x3c, 0x70, 0xf0});
  // Two groups of four places: dilation 2, windows of 3.
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({3})}, {"dilation", ints({2})}}) ==
        V{0x15, 0x2a, 0x15, 0x2a, 0x54, 0xa8, 0x54, 0xa8});
  // 2 x 3 tokens: rows 3 bits each; window 1 by 2, so the row stays and columns pair up.
  CHECK(reference_sets(kMethod, grid_problem({2, 3}), {{"window_size", ints({1, 2})}}) ==
        V{0b000011, 0b000011, 0b000110, 0b011000, 0b011000, 0b110000});
}

TEST_CASE("every form of generalized_neighborhood_attention agrees with the reference and its closed form") {
  struct Setting {
    std::vector<int64_t> grid, window, stride, dilation;
    std::vector<bool> causal;
    std::vector<int64_t> q_tile, kv_tile;
  };
  const Setting settings[] = {
      {{37}, {9}, {5}, {1}, {false}, {8}, {4}},
      {{41}, {5}, {3}, {3}, {true}, {8}, {16}},
      {{12, 10}, {6, 4}, {3, 2}, {1, 1}, {false, false}, {8, 8}, {8, 4}},
      {{13, 11}, {3, 4}, {1, 2}, {2, 1}, {false, true}, {4, 4}, {2, 8}},
      {{5, 7, 6}, {3, 5, 2}, {2, 1, 2}, {1, 1, 3}, {true, false, false}, {2, 4, 4}, {4, 2, 4}},
      {{4, 16, 16}, {4, 12, 8}, {4, 4, 8}, {1, 1, 1}, {false, false, false}, {4, 4, 4}, {4, 4, 8}},
      {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {false, false}, {16, 16}, {16, 8}},
  };
  const auto& s = settings[GENERATE(0, 1, 2, 3, 4, 5, 6)];
  const bool permute = GENERATE(true, false);
  const std::string kv_tiling = GENERATE("static", "dynamic");
  const int64_t extra = GENERATE(0, 3);
  const DType dtype = extra > 0 || permute ? DType::f32 : GENERATE(DType::f32, DType::bf16, DType::f16);
  ParamMap params{
      {"window_size", ints(s.window)}, {"stride", ints(s.stride)},       {"dilation", ints(s.dilation)},
      {"causal", flags(s.causal)},     {"q_tile_shape", ints(s.q_tile)}, {"kv_tile_shape", ints(s.kv_tile)},
      {"token_permute", permute},      {"kv_tiling", kv_tiling},         {"num_extra_kv", extra}};
  Trial t = make_trial(kMethod, grid_problem(s.grid, 2, 4, 2, 12, dtype), params);
  check_trial(t, 3);
}

TEST_CASE("single-dimensional tiling gives the same result over other blocks") {
  const Problem p = grid_problem({12, 20}, 1, 2, 1, 8);
  ParamMap params{{"window_size", ints({5, 7})},
                  {"stride", ints({2, 3})},
                  {"q_tile_shape", ints({4, 8})},
                  {"kv_tile_shape", ints({4, 8})}};
  Trial multi = make_trial(kMethod, p, params);
  params["tiling"] = "single_dim";
  Trial single = make_trial(kMethod, p, params);
  check_trial(multi, 3);
  check_trial(single, 3);
  // The simulator's sum is what runs: whole tiles of 32 x 32 pairs for two heads.
  GnaProblem g = dynamic_cast<const NeighborhoodPattern&>(*single.instance).neighborhood().pattern;
  CHECK(multi.instance->cost().cost.special == 2 * 32 * 32 * simulate_gna(g).visited_sum);
  g.single_dim = true, g.q_tile = g.kv_tile = {32};
  // 240 tokens: the last tile of queries and that of keys hold 16.
  CHECK(single.instance->cost().cost.special <= 2 * 32 * 32 * simulate_gna(g).visited_sum);
}

TEST_CASE("tiles that divide the grid execute the simulator's sum in both orders") {
  const Problem p = grid_problem({8, 16, 16}, 1, 1, 1, 8);
  ParamMap params{{"window_size", ints({4, 8, 9})},
                  {"stride", ints({2, 4, 1})},
                  {"q_tile_shape", ints({2, 4, 8})},
                  {"kv_tile_shape", ints({4, 4, 4})}};
  Trial copied = make_trial(kMethod, p, params);
  params["token_permute"] = false;
  Trial ordered = make_trial(kMethod, p, params);
  const GnaProblem& g = dynamic_cast<const NeighborhoodPattern&>(*copied.instance).neighborhood().pattern;
  CHECK(copied.instance->cost().cost.special == 64 * 64 * simulate_gna(g).visited_sum);
  CHECK(ordered.instance->cost().cost.special == 64 * 64 * simulate_gna(g).visited_sum);
  params["kv_tiling"] = "dynamic";
  Trial moving = make_trial(kMethod, p, params);
  CHECK(moving.instance->cost().cost.special < ordered.instance->cost().cost.special);
}

TEST_CASE("a window as long as the grid is dense attention for any stride") {
  const int64_t stride = GENERATE(1, 3, 12);
  Problem p = grid_problem({12}, 2, 4, 2, 8);
  const ParamMap params{{"window_size", ints({12})}, {"stride", ints({stride})}};
  Trial gna = make_trial(kMethod, p, params);
  check_trial(gna, 3);
  CHECK(gna.instance->cost().cost.matmul == 2 * 4 * 4 * 8 * 12 * 12);
  p.causal = true;
  Trial causal = make_trial(kMethod, p, {{"window_size", ints({12})}});
  check_trial(causal, 3);
  CHECK(causal.instance->cost().cost.special == 2 * 4 * 12 * 13 / 2);
}

TEST_CASE("stride = window dividing the grid is dense attention in each block") {
  // 2 x 2 blocks of 4 x 6 tokens: heads-last tensors of one block are dense attention of 24 tokens.
  const Problem p = grid_problem({8, 12}, 1, 2, 2, 8);
  Trial t = make_trial(kMethod, p, {{"window_size", ints({4, 6})}, {"stride", ints({4, 6})}});
  check_trial(t, 3);
  const auto pairs = t.instance->pairs();
  Intervals row, first;
  for (int64_t i = 0; i < 96; ++i) {
    pairs->row(0, 0, i, row);
    const int64_t leader = i / 12 / 4 * 4 * 12 + i % 12 / 6 * 6;
    pairs->row(0, 0, leader, first);
    CHECK(row == first);
    int64_t keys = 0;
    for (const Interval& v : row) keys += v.end - v.begin;
    CHECK(keys == 24);
  }
}

TEST_CASE(
    "transposing the grid transposes the output; constant values stay; extra keys of -inf change nothing") {
  const Problem p = grid_problem({6, 9}, 1, 1, 1, 8), turned = grid_problem({9, 6}, 1, 1, 1, 8);
  const ParamMap params{{"window_size", ints({3, 5})}, {"stride", ints({2, 1})}};
  Trial a = make_trial(kMethod, p, params);
  Trial b = make_trial(kMethod, turned, {{"window_size", ints({5, 3})}, {"stride", ints({1, 2})}});
  TensorMap inputs;
  for (const auto& [key, t] : a.instance->inputs()) {
    const RefTensor x = to_reference(t);
    std::vector<double> v(static_cast<size_t>(x.numel()));
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t j = 0; j < 9; ++j)
        for (int64_t c = 0; c < 8; ++c) v[static_cast<size_t>((j * 6 + i) * 8 + c)] = x[(i * 9 + j) * 8 + c];
    inputs[key] = host_tensor(*b.ctx, {1, 9, 6, 1, 8}, v);
  }
  rebind(b, inputs);
  a.run(), b.run();
  const RefTensor x = a.output("o"), y = b.output("o");
  double worst = 0;
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 9; ++j)
      for (int64_t c = 0; c < 8; ++c)
        worst = std::max(worst, std::abs(x[(i * 9 + j) * 8 + c] - y[(j * 6 + i) * 8 + c]));
  CHECK(worst < 1e-5);

  rebind(a, {{"v", host_tensor(*a.ctx, {1, 6, 9, 1, 8}, std::vector<double>(6 * 9 * 8, 0.25))}});
  a.run();
  const RefTensor constant = a.output("o");
  for (double v : constant.data) CHECK(v == Approx(0.25));

  ParamMap more = params;
  more["num_extra_kv"] = 4;
  Trial extra = make_trial(kMethod, p, more);
  Trial plain = make_trial(kMethod, p, params);
  // Keys far against every query: q = (1, 0, ...), extra k = (-1e6, 0, ...).
  std::vector<double> q(6 * 9 * 8), far(4 * 8);
  for (size_t i = 0; i < q.size(); ++i) q[i] = i % 8 == 0 ? 1.0 : 0.01 * static_cast<double>(i % 7);
  for (size_t i = 0; i < far.size(); i += 8) far[i] = -1e6;
  rebind(extra, {{"q", host_tensor(*extra.ctx, {1, 6, 9, 1, 8}, q)},
                 {"extra_k", host_tensor(*extra.ctx, {1, 4, 1, 8}, far)}});
  rebind(plain, {{"q", host_tensor(*plain.ctx, {1, 6, 9, 1, 8}, q)}});
  extra.run(), plain.run();
  CHECK(compare(extra.output("o"), plain.output("o")).relative_l2 < 1e-6);
}

TEST_CASE("rows, entropies and pairs of a generalized neighbourhood describe the same weights") {
  Trial t = make_trial(kMethod, grid_problem({5, 6, 4}, 2, 2, 1, 8),
                       {{"window_size", ints({3, 4, 2})},
                        {"stride", ints({1, 2, 2})},
                        {"dilation", ints({1, 1, 2})},
                        {"causal", flags({true, false, false})}});
  check_rows_and_stats(t);
}

TEST_CASE("generalized_neighborhood_attention refuses what is no neighbourhood, naming it") {
  const Problem p = grid_problem({12, 10});
  CHECK_THROWS_WITH(make_trial(kMethod, p, {{"window_size", ints({13, 4})}}), ContainsSubstring("window 13"));
  CHECK_THROWS_WITH(make_trial(kMethod, p, {{"window_size", ints({4, 4})}, {"stride", ints({5, 1})}}),
                    ContainsSubstring("stride 5"));
  CHECK_THROWS_WITH(make_trial(kMethod, p, {{"window_size", ints({4, 4, 4})}}), ContainsSubstring("2 axes"));
  CHECK_THROWS_WITH(make_trial(kMethod, p, {{"rank", 3}}), ContainsSubstring("rank"));
  CHECK_THROWS_WITH(make_trial(kMethod, p, {{"causal", ints({1, 0})}}), ContainsSubstring("true and false"));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_WITH(make_trial(kMethod, causal, {{"causal", flags({false, false})}}),
                    ContainsSubstring("problem.causal"));
  Problem cross = grid_problem({12});
  cross.kv_length = 20;
  CHECK_THROWS_AS(make_trial(kMethod, cross, {}), Unsupported);
  // One entry stands for every axis.
  CHECK_NOTHROW(make_trial(kMethod, p, {{"window_size", ints({4})}}));
}
