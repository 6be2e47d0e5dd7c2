// hilo: reference, closed form, the card's degenerate cases, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("hilo equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto [h, w, channels, heads, s, alpha] =
      GENERATE(table<int64_t, int64_t, int64_t, int64_t, int, double>({
          {8, 6, 24, 6, 2, 0.5},   // divides; 3 Ch > C: tokens move before the projection
          {8, 6, 40, 5, 2, 0.9},   // divides; 3 Ch < C: projections move
          {9, 7, 32, 4, 2, 0.9},   // padded on both axes
          {6, 7, 20, 4, 3, 0.5},   // padded on one axis
          {5, 4, 16, 4, 7, 0.5},   // a window larger than the grid
          {4, 4, 16, 4, 4, 0.25},  // one window
          {6, 2, 16, 2, 2, 0.5},   // windows follow each other in token order
          {5, 3, 18, 3, 1, 0.4},   // s = 1
          {6, 4, 24, 3, 2, 0.0},   // Hi-Fi only
          {6, 4, 24, 3, 2, 1.0},   // Lo-Fi only
          {5, 5, 24, 3, 2, 0.0},   // Hi-Fi only, padded
          {5, 5, 24, 3, 2, 1.0},   // Lo-Fi only, padded
          {1, 1, 6, 2, 2, 0.5},    // one token, padded to four
      }));
  const int64_t batch = GENERATE(1, 3);
  Trial t = strong_trial("hilo", grid_problem(batch, h, w, channels, heads, dtype),
                         {{"window_size", s}, {"alpha", alpha}});
  INFO("s " << s << ", alpha " << alpha);
  check_trial(t, kLayerRoundings);
}

TEST_CASE("hilo without projection biases and with its own scale") {
  Trial t = strong_trial("hilo", grid_problem(2, 5, 6, 24, 4),
                         {{"qkv_bias", false}, {"qk_scale", 0.7}, {"alpha", 0.5}});
  CHECK_FALSE(t.instance->weights().contains("h_qkv.bias"));
  CHECK_FALSE(t.instance->weights().contains("l_kv.bias"));
  CHECK(t.instance->weights().contains("h_proj.bias"));
  check_trial(t, kLayerRoundings);
}

TEST_CASE("hilo does not depend on the number of threads") {
  Trial one = strong_trial("hilo", grid_problem(3, 7, 8, 24, 3), {{"alpha", 0.4}}, 1);
  Trial two = strong_trial("hilo", grid_problem(3, 7, 8, 24, 3), {{"alpha", 0.4}}, 2);
  one.run(), two.run();
  CHECK(one.output("out").data == two.output("out").data);
}

TEST_CASE("a second run of hilo allocates nothing and gives the same") {
  Trial t = strong_trial("hilo", grid_problem(2, 7, 8, 24, 3));
  t.run();
  const std::vector<double> first = t.output("out").data;
  const int64_t held = t.ctx->memory().current_total, peak = t.ctx->memory().peak_total;
  t.instance->run(*t.ctx);
  CHECK(t.output("out").data == first);
  CHECK(t.ctx->memory().current_total == held);
  CHECK(t.ctx->memory().peak_total == peak);
}

TEST_CASE("hilo counts as its card counts") {
  const ClosedForm f = table_form("hilo");
  CHECK(f.published_macs == 298'296'320);  // published: 298.30 M
  CHECK(f.parameters == 2'198'528);        // published: 2.20 M
  const ClosedForm demo = table_form("hilo", {{"alpha", 0.5}}, 14, 384);
  CHECK(demo.published_macs == 83'467'776);  // LITv2's demo output
  for (const ClosedForm& c : {f, demo}) CHECK(c.cost.matmul == 2 * c.published_macs);
  // The card's row of per-layer counts over alpha at C = 384, in units of 0.01 M.
  const std::vector<std::pair<double, double>> row{{0.0, 116.21}, {0.2, 102.08}, {0.4, 91.17}, {0.5, 83.47},
                                                   {0.7, 78.98},  {0.9, 77.70},  {1.0, 79.63}};
  for (const auto& [alpha, macs] : row) {
    INFO("alpha " << alpha);
    CHECK(static_cast<double>(table_form("hilo", {{"alpha", alpha}}, 14, 384).published_macs) / 1e6 ==
          Approx(macs).margin(0.005));
  }
}

TEST_CASE("hilo truncates the double product of heads and alpha") {
  const auto lo_channels = [](int64_t heads, double alpha) {
    const Trial t = make_trial("hilo", grid_problem(1, 2, 2, heads * 2, heads), {{"alpha", alpha}});
    return t.instance->weights().contains("l_q.weight") ? t.instance->weights().at("l_q.weight").dim(0) / 2
                                                        : 0;
  };
  CHECK(lo_channels(12, 0.9) == 10);
  CHECK(lo_channels(6, 0.5) == 3);
  CHECK(lo_channels(10, 0.3) == 3);
  CHECK(lo_channels(100, 0.29) == 28);  // 100 * 0.29 = 28.999999999999996
  CHECK(lo_channels(3, 0.3) == 0);
}

TEST_CASE("degenerate 1: s = 1 is msa whatever alpha") {
  const Problem p = grid_problem(2, 5, 3, 16, 4);
  const ParamMap params{{"window_size", 1}, {"alpha", GENERATE(0.0, 0.5, 1.0)}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("hilo", p, params);
  check_equal(run_layer("hilo", p, params, x, w),
              run_layer("msa", p, {}, x,
                        {{"qkv.weight", stacked(w.at("l_q.weight"), w.at("l_kv.weight"))},
                         {"qkv.bias", stacked(w.at("l_q.bias"), w.at("l_kv.bias"))},
                         {"proj.weight", w.at("l_proj.weight")},
                         {"proj.bias", w.at("l_proj.bias")}}));
}

TEST_CASE("degenerate 2: alpha = 0 is window attention, also padded") {
  const int64_t w_grid = GENERATE(6, 7);
  const Problem p = grid_problem(2, 9, w_grid, 16, 4);
  const ParamMap params{{"window_size", 3}, {"alpha", 0.0}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("hilo", p, params);
  REQUIRE(w.size() == 4);
  check_equal(run_layer("hilo", p, params, x, w), run_layer("window", p, {{"win", 3}}, x,
                                                            {{"qkv.weight", w.at("h_qkv.weight")},
                                                             {"qkv.bias", w.at("h_qkv.bias")},
                                                             {"proj.weight", w.at("h_proj.weight")},
                                                             {"proj.bias", w.at("h_proj.bias")}}));
}

TEST_CASE("degenerate 3: one window: Hi-Fi is dense, Lo-Fi one vector") {
  const Problem p = grid_problem(2, 4, 4, 16, 4);
  const RefTensor x = strong_input(p);
  SECTION("Hi-Fi") {
    const ParamMap params{{"window_size", 4}, {"alpha", 0.0}};
    const RefMap w = strong_weights("hilo", p, params);
    check_equal(run_layer("hilo", p, params, x, w), run_layer("msa", p, {}, x,
                                                              {{"qkv.weight", w.at("h_qkv.weight")},
                                                               {"qkv.bias", w.at("h_qkv.bias")},
                                                               {"proj.weight", w.at("h_proj.weight")},
                                                               {"proj.bias", w.at("h_proj.bias")}}));
  }
  SECTION("Lo-Fi") {
    const ParamMap params{{"window_size", 4}, {"alpha", 0.5}};
    const RefMap w = strong_weights("hilo", p, params);
    const Outputs o = run_layer("hilo", p, params, x, w);
    for (int64_t b = 0; b < 2; ++b) {
      // l_proj(v(mean x)) by hand.
      RefTensor mean({1, 16});
      for (int64_t i = 0; i < 16; ++i)
        for (int64_t c = 0; c < 16; ++c) mean[c] += x[(b * 16 + i) * 16 + c] / 16;
      const RefTensor bias = rows_of(w.at("l_kv.bias"), 8, 16);
      const RefTensor v = ref::linear(mean, rows_of(w.at("l_kv.weight"), 8, 16), &bias);
      const RefTensor y = ref::linear(v, w.at("l_proj.weight"), &w.at("l_proj.bias"));
      for (int64_t i = 0; i < 16; ++i)
        for (int64_t c = 0; c < 8; ++c) {
          CHECK(o.reference[(b * 16 + i) * 16 + 8 + c] == Approx(y[c]).epsilon(1e-12));
          CHECK(o.method[(b * 16 + i) * 16 + 8 + c] == Approx(y[c]).margin(1e-5));
        }
    }
  }
}

TEST_CASE("degenerate 4: x constant in every window: Lo-Fi is dense, Hi-Fi is h_proj(v)") {
  const Problem p = grid_problem(2, 6, 4, 16, 4);
  RefTensor x = strong_input(p);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t y = 0; y < 6; ++y)
      for (int64_t z = 0; z < 4; ++z)
        for (int64_t c = 0; c < 16; ++c)
          x[(b * 24 + y * 4 + z) * 16 + c] = x[(b * 24 + y / 2 * 2 * 4 + z / 2 * 2) * 16 + c];
  SECTION("Lo-Fi") {
    const ParamMap params{{"window_size", 2}, {"alpha", 1.0}};
    const RefMap w = strong_weights("hilo", p, params);
    check_equal(run_layer("hilo", p, params, x, w),
                run_layer("msa", p, {}, x,
                          {{"qkv.weight", stacked(w.at("l_q.weight"), w.at("l_kv.weight"))},
                           {"qkv.bias", stacked(w.at("l_q.bias"), w.at("l_kv.bias"))},
                           {"proj.weight", w.at("l_proj.weight")},
                           {"proj.bias", w.at("l_proj.bias")}}));
  }
  SECTION("Hi-Fi") {
    const ParamMap params{{"window_size", 2}, {"alpha", 0.5}};
    const RefMap w = strong_weights("hilo", p, params);
    const Outputs o = run_layer("hilo", p, params, x, w);
    const RefTensor bias = rows_of(w.at("h_qkv.bias"), 16, 24);
    const RefTensor v = ref::linear(x, rows_of(w.at("h_qkv.weight"), 16, 24), &bias);
    const RefTensor y = ref::linear(v, w.at("h_proj.weight"), &w.at("h_proj.bias"));
    for (int64_t r = 0; r < 48; ++r)
      for (int64_t c = 0; c < 8; ++c) {
        CHECK(o.reference[r * 16 + c] == Approx(y[r * 8 + c]).epsilon(1e-12));
        CHECK(o.method[r * 16 + c] == Approx(y[r * 8 + c]).margin(2e-5));
      }
  }
}

TEST_CASE("degenerate 7: zero queries: entropies are ln(s^2) and ln(M)") {
  const Problem p = grid_problem(2, 5, 6, 16, 4);  // padded: 6 x 6, M = 9
  Trial t = strong_trial("hilo", p, {{"alpha", 0.5}});
  TensorMap zero;
  for (const char* name : {"l_q.weight", "l_q.bias"}) {
    const Tensor like = t.instance->weights().at(name);
    zero[name] =
        host_tensor(*t.ctx, like.shape(), std::vector<double>(static_cast<size_t>(like.numel()), 0.0));
  }
  for (const char* name : {"h_qkv.weight", "h_qkv.bias"}) {
    RefTensor v = to_reference(t.instance->weights().at(name));
    for (int64_t i = 0; i < v.numel() / 3; ++i) v[i] = 0;  // the q rows come first
    zero[name] = from_reference(*t.ctx, v, DType::f32);
  }
  rebind(t, {}, zero);
  t.run();
  const std::optional<RowStats> stats = t.instance->row_stats(*t.ctx);
  REQUIRE(stats);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t i = 0; i < 30; ++i) {
        const int64_t at = (b * 4 + h) * 30 + i;
        CHECK(stats->entropy.data<float>()[at] ==
              Approx(h < 2 ? std::log(4.0) : std::log(9.0)).epsilon(1e-6));
        CHECK(stats->visible_keys.data<float>()[at] == (h < 2 ? 4.0f : 9.0f));
      }
}

TEST_CASE("hilo's rows, pairs and statistics agree") {
  SECTION("divisible") {
    Trial t = strong_trial("hilo", grid_problem(2, 4, 6, 16, 4), {{"alpha", 0.5}});
    check_analyses(t, [](int64_t h) { return h < 2; });
    CHECK(t.instance->keys(0) == 24);
    CHECK(t.instance->keys(2) == 6);
  }
  SECTION("padded") {
    Trial t = strong_trial("hilo", grid_problem(2, 5, 3, 16, 4), {{"alpha", 0.75}});
    check_analyses(t, [](int64_t) { return false; });
    CHECK(t.instance->keys(0) == 24);  // the padded grid
  }
  SECTION("Lo-Fi only") {
    Trial t = strong_trial("hilo", grid_problem(1, 4, 4, 16, 2), {{"alpha", 1.0}});
    check_analyses(t, [](int64_t) { return false; });
  }
}

TEST_CASE("hilo's dependencies: the window for Hi-Fi, everything for Lo-Fi") {
  const Trial t = make_trial("hilo", grid_problem(1, 5, 5, 16, 4), {{"alpha", 0.5}});
  const PairSet p = *t.instance->pairs();
  CHECK(p.same_for_all_batches);
  Intervals set;
  p.row(0, 0, 1 * 5 + 3, set);  // window rows 0..1, columns 2..3
  CHECK(set == Intervals{{2, 4}, {7, 9}});
  p.row(0, 1, 4 * 5 + 4, set);  // the last window: three of its four places are padding
  CHECK(set == Intervals{{24, 25}});
  p.row(0, 2, 0, set);
  CHECK(set == Intervals{{0, 25}});
}

TEST_CASE("hilo refuses what it cannot do") {
  check_refusals("hilo");
  const Problem p = grid_problem(1, 4, 4, 8, 2);
  CHECK_THROWS_AS(make_trial("hilo", p, {{"alpha", 1.01}}), UsageError);
  CHECK_THROWS_AS(make_trial("hilo", p, {{"alpha", -0.1}}), UsageError);
  CHECK_THROWS_AS(make_trial("hilo", p, {{"window_size", 0}}), UsageError);
  CHECK_THROWS_AS(make_trial("hilo", p, {{"sr_ratio", 2}}), UsageError);
}
