// Neighborhood attention: the reference by hand, the implementations against it and against each other,
// closed forms, the card's degenerate cases.
#include <cstring>

#include "kernels/neighborhood/neighborhood.hpp"
#include "methods/neighborhood.hpp"
#include "tests/methods/neighborhood_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kMethod = "neighborhood_attention";

/// The same values in [B, H, tokens, D] and in [B, tokens, H, D].
Tensor heads_first(Context& ctx, const Tensor& t, const std::vector<int64_t>& grid) {
  const int64_t heads = t.dim(-2), d = t.dim(-1), batch = t.dim(0), n = t.numel() / heads / d / batch;
  std::vector<int64_t> dims{batch, heads};
  dims.insert(dims.end(), grid.begin(), grid.end());
  dims.push_back(d);
  const Tensor out = ctx.allocate(t.dtype(), Shape(dims));
  const auto size = static_cast<int64_t>(size_of(t.dtype()));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i)
        std::memcpy(static_cast<char*>(out.raw()) + ((b * heads + h) * n + i) * d * size,
                    static_cast<char*>(t.raw()) + ((b * n + i) * heads + h) * d * size,
                    static_cast<size_t>(d * size));
  return out;
}

struct Setting {
  std::vector<int64_t> grid, window, dilation;
  std::vector<bool> causal;
};
const Setting kSettings[] = {
    {{37}, {9}, {1}, {false}},
    {{37}, {4}, {3}, {true}},
    {{9, 11}, {5, 3}, {1, 3}, {false, false}},
    {{12, 9}, {4, 4}, {1, 2}, {true, false}},
    {{5, 6, 7}, {3, 2, 3}, {1, 2, 1}, {false, false, true}},
};

}  // namespace

TEST_CASE("the reference of neighbourhoods, by hand") {
  using V = std::vector<int64_t>;
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({3})}}) ==
        V{0x07, 0x07, 0x0e, 0x1c, 0x38, 0x70, 0xe0, 0xe0});
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({4})}}) ==
        V{0x0f, 0x0f, 0x0f, 0x1e, 0x3c, 0x78, 0xf0, 0xf0});
  CHECK(reference_sets(kMethod, grid_problem({8}), {{"window_size", ints({3})}, {"causal", flags({true})}}) ==
        V{0x01, 0x03, 0x07, 0x0e, 0x1c, 0x38, 0x70, 0xe0});
  // Groups of different length: 5 tokens, dilation 2: {0, 2, 4} and {1, 3}, windows of 2.
  CHECK(reference_sets(kMethod, grid_problem({5}), {{"window_size", ints({2})}, {"dilation", ints({2})}}) ==
        V{0b00101, 0b01010, 0b00101, 0b01010, 0b10100});
}

TEST_CASE("the bias table by hand: one entry moves the neighbour at its place") {
  // Three tokens, window 3, table of 5: key place - query place + 2.
  const Problem p = grid_problem({3}, 1, 1, 1, 1);
  const Params params = params_of(
      kMethod, p, {{"window_size", ints({3})}, {"implementation", "naive"}, {"rel_pos_bias", true}});
  RefTensor q({1, 1, 3, 1}), k({1, 1, 3, 1}), table({1, 5});
  const RefTensor v = ref_tensor({1, 1, 3, 1}, {1, 10, 100});
  table[3] = 1e3;  // the key right of the query
  const RefTensor o =
      find_reference(kMethod)(p, params, {{"q", q}, {"k", k}, {"v", v}}, {{"rel_pos_bias", table}}).at("o");
  CHECK(o[0] == Approx(10));
  CHECK(o[1] == Approx(100));
  CHECK(o[2] == Approx(37));  // the last one has no key to its right: the mean
}

TEST_CASE("fused neighborhood attention agrees with its reference and its closed form") {
  const Setting& s = kSettings[GENERATE(0, 1, 2, 3, 4)];
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool permute = GENERATE(true, false);
  const std::string kv_tiling = GENERATE("static", "dynamic");
  Trial t = make_trial(kMethod, grid_problem(s.grid, 2, 4, 2, 20, dtype),
                       {{"window_size", ints(s.window)},
                        {"dilation", ints(s.dilation)},
                        {"causal", flags(s.causal)},
                        {"token_permute", permute},
                        {"kv_tiling", kv_tiling},
                        {"num_extra_kv", permute ? 5 : 0}});
  check_trial(t, 4);
}

TEST_CASE("the naive form agrees with its reference and its closed form, extra keys and bias included") {
  const Setting& s = kSettings[GENERATE(0, 1, 2, 3, 4)];
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const int64_t extra = GENERATE(0, 5);
  const bool causal = std::find(s.causal.begin(), s.causal.end(), true) != s.causal.end();
  Trial t = make_trial(kMethod, grid_problem(s.grid, 2, 4, 2, 20, dtype),
                       {{"window_size", ints(s.window)},
                        {"dilation", ints(s.dilation)},
                        {"causal", flags(s.causal)},
                        {"implementation", "naive"},
                        {"rel_pos_bias", !causal},
                        {"num_extra_kv", extra}});
  check_trial(t, 4);
}

TEST_CASE("the GEMM form agrees with its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t extra = GENERATE(0, 3);
  const bool bias = GENERATE(false, true);
  SECTION("a line of three tiles, dilated") {
    Trial t = make_trial(kMethod, grid_problem({150}, 1, 2, 1, 12, dtype),
                         {{"window_size", ints({6})},
                          {"implementation", "gemm"},
                          {"num_extra_kv", extra},
                          {"rel_pos_bias", bias}});
    check_trial(t, 4);
    Trial d = make_trial(kMethod, grid_problem({150}, 1, 2, 1, 12, dtype),
                         {{"window_size", ints({7})},
                          {"dilation", ints({4})},
                          {"implementation", "gemm"},
                          {"num_extra_kv", extra},
                          {"rel_pos_bias", bias}});
    check_trial(d, 4);
  }
  SECTION("a grid, dilated, tiles that divide nothing") {
    Trial t = make_trial(kMethod, grid_problem({23, 19}, 2, 2, 2, 12, dtype),
                         {{"window_size", ints({5})},
                          {"dilation", ints({2})},
                          {"implementation", "gemm"},
                          {"num_extra_kv", extra},
                          {"rel_pos_bias", bias}});
    check_trial(t, 4);
  }
}

TEST_CASE("naive_tiled agrees with its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t window = GENERATE(3, 7, 13);
  Trial t = make_trial(
      kMethod, grid_problem({14, 27}, 1, 2, 1, 32, dtype),
      {{"window_size", ints({window})}, {"implementation", "naive_tiled"}, {"rel_pos_bias", true}});
  check_trial(t, 4);
}

TEST_CASE("every implementation gives the same result on the same values") {
  const Problem p = grid_problem({16, 18}, 2, 2, 2, 32);
  Trial fused = make_trial(kMethod, p, {{"window_size", ints({5})}, {"dilation", ints({2})}});
  fused.run();
  const RefTensor want = to_reference(heads_first(*fused.ctx, fused.instance->outputs().at("o"), p.grid));
  for (const char* form : {"naive", "naive_tiled", "gemm"}) {
    Trial t = make_trial(kMethod, p,
                         {{"window_size", ints({5})}, {"dilation", ints({2})}, {"implementation", form}});
    TensorMap inputs;
    for (const auto& [key, tensor] : fused.instance->inputs())
      inputs[key] = heads_first(*t.ctx, tensor, p.grid);
    rebind(t, inputs);
    t.run();
    RefTensor got = t.output("o");
    got.shape = want.shape;
    INFO(form);
    CHECK(compare(got, want).relative_l2 < 4e-6);
  }
}

TEST_CASE("closed forms: W keys a query, and whole tiles for the fused and GEMM forms") {
  const Problem p = grid_problem({32, 48}, 2, 3, 3, 16);
  const auto matmul = [&](ParamMap params) {
    params["window_size"] = ints({5});
    return make_trial(kMethod, p, params).instance->cost().cost.matmul;
  };
  CHECK(matmul({{"implementation", "naive"}}) == 4 * 2 * 3 * (32 * 48) * 25 * 16);
  // Radius 2: tiles of 6 by 6, a halo of 4 but at the borders. By axis: tiles of 6 see 8 or 10 coordinates, 2
  // at the end of 32 see 5 (a window) and those of 48 divide evenly.
  const int64_t rows = 6 * 8 + 4 * 6 * 10 + 2 * 5, columns = 2 * 6 * 8 + 6 * 6 * 10;
  CHECK(matmul({{"implementation", "gemm"}}) == 4 * 2 * 3 * rows * columns * 16);
  const NeighborhoodForm f =
      dynamic_cast<const NeighborhoodPattern&>(*make_trial(kMethod, p, {{"window_size", ints({5})}}).instance)
          .neighborhood();
  CHECK(matmul({}) == 4 * 2 * 3 * 16 * 64 * 64 * simulate_gna(f.pattern).visited_sum);
}

TEST_CASE("stride 1 of the generalized form is neighborhood attention") {
  const Problem p = grid_problem({7, 6, 5}, 1, 2, 1, 8);
  const ParamMap params{{"window_size", ints({3, 2, 5})}, {"causal", flags({false, true, false})}};
  Trial a = make_trial(kMethod, p, params), b = make_trial("generalized_neighborhood_attention", p, params);
  a.run(), b.run();
  CHECK(compare(a.output("o"), b.output("o")).relative_l2 < 2e-6);
}

TEST_CASE("a window of one key returns its value; a window of everything is dense attention") {
  const std::string form = GENERATE("fused", "naive");
  Trial one = make_trial(kMethod, grid_problem({5, 6}, 1, 2, 2, 8),
                         {{"window_size", ints({1})}, {"implementation", form}});
  one.run();
  CHECK(compare(one.output("o"), to_reference(one.instance->inputs().at("v"))).max_absolute < 1e-6);
  Trial all = make_trial(kMethod, grid_problem({5, 6}, 1, 2, 2, 8),
                         {{"window_size", ints({5, 6})}, {"implementation", form}});
  check_trial(all, 3);
  if (form == "fused") CHECK(all.instance->cost().cost.matmul == 2 * 4 * 8 * 30 * 30);
  Problem line = grid_problem({20}, 1, 2, 2, 8);
  line.causal = true;
  Trial causal = make_trial(kMethod, line, {{"window_size", ints({20})}, {"implementation", form}});
  check_trial(causal, 3);
}

TEST_CASE("axes of one coordinate do not matter") {
  const Problem line = grid_problem({15}, 1, 2, 2, 8), grid = grid_problem({1, 15}, 1, 2, 2, 8);
  Trial a = make_trial(kMethod, line, {{"window_size", ints({5})}, {"dilation", ints({2})}});
  Trial b = make_trial(kMethod, grid, {{"window_size", ints({1, 5})}, {"dilation", ints({1, 2})}});
  TensorMap inputs;
  for (const auto& [key, t] : a.instance->inputs()) inputs[key] = t.reshape({1, 1, 15, 2, 8});
  rebind(b, inputs);
  a.run(), b.run();
  RefTensor got = b.output("o");
  got.shape = {1, 15, 2, 8};
  CHECK(compare(got, a.output("o")).relative_l2 < 2e-6);
}

TEST_CASE("dilation that divides the grid is a neighbourhood of each interleaved part") {
  const Problem whole = grid_problem({12}, 1, 1, 1, 8), part = grid_problem({4}, 1, 1, 1, 8);
  Trial a = make_trial(kMethod, whole, {{"window_size", ints({3})}, {"dilation", ints({3})}});
  a.run();
  const RefTensor want = a.output("o");
  for (int64_t g = 0; g < 3; ++g) {
    Trial b = make_trial(kMethod, part, {{"window_size", ints({3})}});
    TensorMap inputs;
    for (const auto& [key, t] : a.instance->inputs()) {
      const RefTensor x = to_reference(t);
      std::vector<double> v;
      for (int64_t i = g; i < 12; i += 3)
        for (int64_t c = 0; c < 8; ++c) v.push_back(x[i * 8 + c]);
      inputs[key] = host_tensor(*b.ctx, {1, 4, 1, 8}, v);
    }
    rebind(b, inputs);
    b.run();
    const RefTensor got = b.output("o");
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t c = 0; c < 8; ++c) CHECK(got[i * 8 + c] == Approx(want[(i * 3 + g) * 8 + c]).margin(1e-6));
  }
}

TEST_CASE("rows, entropies and pairs of a neighbourhood describe the same weights") {
  const std::string form = GENERATE("fused", "naive");
  Trial t = make_trial(kMethod, grid_problem({9, 10}, 2, 2, 1, 8),
                       {{"window_size", ints({3, 4})}, {"dilation", ints({2, 1})}, {"implementation", form}});
  check_rows_and_stats(t);
  // The interior's W keys, at every query.
  Intervals row;
  for (int64_t i = 0; i < 90; ++i) {
    t.instance->pairs()->row(0, 0, i, row);
    int64_t keys = 0;
    for (const Interval& v : row) keys += v.end - v.begin;
    CHECK(keys == 12);
  }
}

TEST_CASE(
    "the reach of stacked neighbourhoods grows by k - 1 a layer, and alternating dilation covers the line") {
  Trial t = make_trial(kMethod, grid_problem({101}), {{"window_size", ints({7})}});
  const auto reach = [](const std::vector<PairSet>& layers, int64_t from, int64_t tokens) {
    std::vector<char> now(static_cast<size_t>(tokens), 0);
    now[static_cast<size_t>(from)] = 1;
    std::vector<int64_t> sizes;
    Intervals row;
    for (const PairSet& layer : layers) {
      std::vector<char> next(static_cast<size_t>(tokens), 0);
      for (int64_t i = 0; i < tokens; ++i) {
        if (!now[static_cast<size_t>(i)]) continue;
        layer.row(0, 0, i, row);
        for (const Interval& v : row)
          for (int64_t j = v.begin; j < v.end; ++j) next[static_cast<size_t>(j)] = 1;
      }
      now = next;
      sizes.push_back(std::count(now.begin(), now.end(), 1));
    }
    return sizes;
  };
  const PairSet near = *t.instance->pairs();
  CHECK(reach({near, near, near, near, near}, 50, 101) == std::vector<int64_t>{7, 13, 19, 25, 31});
  // DiNAT: dilation 1, then floor(L / k), covers a line of k^2 tokens in two layers.
  Trial local = make_trial(kMethod, grid_problem({49}), {{"window_size", ints({7})}});
  Trial far = make_trial(kMethod, grid_problem({49}), {{"window_size", ints({7})}, {"dilation", ints({7})}});
  for (int64_t i = 0; i < 49; ++i)
    CHECK(reach({*local.instance->pairs(), *far.instance->pairs()}, i, 49) == std::vector<int64_t>{7, 49});
}

TEST_CASE("neighborhood_attention says what it cannot do") {
  const auto make = [](Problem p, ParamMap params) { return make_trial(kMethod, p, params); };
  const Problem grid = grid_problem({20, 20}), box = grid_problem({8, 8, 8});
  CHECK_THROWS_WITH(make(grid, {{"rel_pos_bias", true}}), ContainsSubstring("fused"));
  CHECK_THROWS_WITH(
      make(grid, {{"rel_pos_bias", true}, {"implementation", "naive"}, {"causal", flags({true, false})}}),
      ContainsSubstring("causal"));
  CHECK_THROWS_WITH(make(box, {{"implementation", "gemm"}}), ContainsSubstring("one or two axes"));
  CHECK_THROWS_WITH(make(grid, {{"implementation", "gemm"}, {"window_size", ints({3, 5})}}),
                    ContainsSubstring("equal windows"));
  CHECK_THROWS_WITH(make(grid, {{"implementation", "naive_tiled"}}), ContainsSubstring("head_dim 32"));
  CHECK_THROWS_WITH(make(grid, {{"q_tile_shape", ints({5, 5})}}), ContainsSubstring("32, 64, 128"));
  CHECK_THROWS_WITH(make(grid, {{"kv_tile_shape", ints({4, 8})}}), ContainsSubstring("64, 128"));
  CHECK_THROWS_WITH(make(grid, {{"scale", 0.0}}), ContainsSubstring("scale"));
  CHECK_THROWS_WITH(make(grid, {{"window_size", ints({11})}, {"dilation", ints({2})}}),
                    ContainsSubstring("window 11"));
}
