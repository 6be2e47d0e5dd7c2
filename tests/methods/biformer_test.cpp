// biformer: reference, closed form, the card's degenerate cases, analyses.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// run_layer for tensors of the card's rank, with idx.
struct Routed {
  RefMap reference, method;
};
Routed run_routed(const Problem& p, const ParamMap& params, RefTensor x, const RefMap& weights) {
  x.shape = {p.batch, p.grid[0], p.grid[1], p.channels};
  Trial t = make_trial("biformer", p, params);
  TensorMap w;
  for (const auto& [key, value] : weights) w[key] = from_reference(*t.ctx, value, DType::f32);
  t.instance->bind({{"x", from_reference(*t.ctx, x, DType::f32)}}, w);
  t.run();
  Routed r{find_reference("biformer")(p, t.params, {{"x", x}}, weights), {}};
  for (const auto& [key, tensor] : t.instance->outputs()) r.method[key] = to_reference(tensor);
  return r;
}

/// The reference exactly (to double rounding) `want`, the method to its own accuracy.
void check_is(const Routed& r, const RefTensor& want) {
  RefTensor exact = r.reference.at("out"), own = r.method.at("out");
  exact.shape = own.shape = want.shape;
  const Comparison e = compare(exact, want), m = compare(own, want);
  INFO("reference " << e.worst << ", method " << m.worst);
  CHECK(e.relative_l2 <= 1e-13);
  CHECK(m.relative_l2 <= tolerance(DType::f32, 0));
}

}  // namespace

TEST_CASE("biformer equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  struct Case {
    int64_t h, w, c, heads;
    ParamMap params;
  };
  const auto [h, w, c, heads, params] = GENERATE(
      Case{8, 12, 24, 3, {{"n_win", 4}, {"topk", 3}}},
      Case{15, 14, 32, 2, {{"n_win", 7}, {"topk", 5}}},                    // more regions than n_win a side
      Case{5, 9, 16, 4, {{"n_win", 2}, {"topk", 1}, {"side_dwconv", 0}}},  // padded, no convolution
      Case{4, 4, 16, 2, {{"n_win", 4}, {"topk", 7}, {"side_dwconv", 3}}},  // a region is a token
      Case{6, 6, 16, 2, {{"n_win", 1}, {"topk", 1}, {"qk_scale", 0.4}}},   // one region
      Case{1, 1, 8, 2, {{"n_win", 1}, {"topk", 1}}},                       // one token
      Case{6, 5, 24, 3, {{"topk", "all"}}},
      Case{6, 5, 24, 3, {{"topk", "all"}, {"variant", "legacy"}, {"side_dwconv", 3}}},
      Case{10, 13, 32, 4, {{"n_win", 3}, {"topk", 4}, {"variant", "legacy"}, {"side_dwconv", 3}}},
      Case{8, 8, 16, 2, {{"n_win", 4}, {"topk", 3}, {"variant", "legacy"}, {"qk_dim", 8}}},
      Case{8, 9, 16, 2, {{"n_win", 3}, {"topk", 4}, {"variant", "legacy"}, {"soft_routing", true}}},
      Case{8,
           8,
           16,
           2,
           {{"n_win", 2}, {"topk", 2}, {"variant", "legacy"}, {"kv_downsample", "avg"}, {"kv_ratio", 3}}},
      Case{8,
           8,
           16,
           2,
           {{"n_win", 2},
            {"topk", 3},
            {"variant", "legacy"},
            {"kv_downsample", "max"},
            {"kv_ratio", 2},
            {"qk_dim", 24}}},
      Case{7,
           10,
           16,
           2,
           {{"n_win", 2},
            {"topk", 3},
            {"variant", "legacy"},
            {"kv_downsample", "ada_avg"},
            {"kv_per_win", 3}}},
      Case{9,
           6,
           16,
           2,
           {{"n_win", 3},
            {"topk", 4},
            {"variant", "legacy"},
            {"kv_downsample", "ada_max"},
            {"kv_per_win", 2},
            {"soft_routing", true}}});
  for (int64_t batch : {1, 3}) {
    Trial t = strong_trial("biformer", grid_problem(batch, h, w, c, heads, dtype), params);
    check_trial(t, kLayerRoundings);
  }
}

TEST_CASE("biformer routes by hand: two regions that choose each other") {
  // One channel, q = k = x and v = 10 x: rows of regions hold 1, 1 | -2, -2: A = [1 -2; -2 4].
  const Problem p = grid_problem(1, 1, 4, 1, 1);
  Problem q = p;
  q.grid = {2, 4};
  const ParamMap params{{"n_win", 2}, {"topk", 1}, {"side_dwconv", 0}};
  const RefTensor x = ref_tensor({1, 8, 1}, {1, 1, -2, -2, 3, 3, -4, -4});
  const RefMap w{{"qkv.weight", ref_tensor({3, 1}, {1, -1, 10})},
                 {"qkv.bias", ref_tensor({3}, {0, 0, 1})},
                 {"wo.weight", ref_tensor({1, 1}, {1})},
                 {"wo.bias", ref_tensor({1}, {0.5})}};
  // k = -x: regions of positive means answer negative ones: largest q k is with the most negative x.
  const Routed r = run_routed(q, params, x, w);
  CHECK(r.reference.at("idx").data == std::vector<double>{3, 2, 3, 2});
  CHECK(r.method.at("idx").data == std::vector<double>{3, 2, 3, 2});
  // Values are equal inside regions: o = 10 x + 1 of the chosen one.
  check_is(r, ref_tensor({1, 8, 1}, {-38.5, -38.5, 31.5, 31.5, -38.5, -38.5, 31.5, 31.5}));
}

TEST_CASE("degenerate 1 and 2: all regions, or one, are dense attention") {
  const auto [n_win, topk] = GENERATE(table<int, int>({{3, 9}, {1, 1}}));
  const Problem p = grid_problem(2, 6, 9, 16, 4);
  ParamMap params{{"n_win", n_win}, {"topk", topk}, {"side_dwconv", 0}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("biformer", p, params);
  const Outputs dense = run_layer("msa", p, {{"qk_scale", 0.25}}, x,
                                  {{"qkv.weight", w.at("qkv.weight")},
                                   {"qkv.bias", w.at("qkv.bias")},
                                   {"proj.weight", w.at("wo.weight")},
                                   {"proj.bias", w.at("wo.bias")}});
  check_is(run_routed(p, params, x, w), dense.reference);
  // With the convolution the difference is wo without bias of lepe(v): the same as of topk all.
  params["side_dwconv"] = 5;
  RefMap full = strong_weights("biformer", p, params);
  const Routed routed = run_routed(p, params, x, full);
  full["qkv.bias"].data.assign(full["qkv.bias"].data.size(), 0.0);
  const Routed biasless = run_routed(p, params, x, full);
  full.erase("qkv.bias");
  const Routed all = run_routed(p, {{"topk", "all"}, {"qk_scale", 0.25}}, x, full);
  check_is(biasless, all.reference.at("out"));
  CHECK(compare(routed.reference.at("out"), all.reference.at("out")).relative_l2 > 1e-3);
}

TEST_CASE("degenerate 3: regions of one token are top-k attention by the head-summed logit") {
  const Problem p = grid_problem(1, 4, 4, 8, 2);
  const ParamMap params{{"n_win", 4}, {"topk", 3}, {"side_dwconv", 0}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("biformer", p, params);
  const Routed r = run_routed(p, params, x, w);
  const RefTensor qkv = ref::linear(x, w.at("qkv.weight"), &w.at("qkv.bias"));
  for (int64_t i = 0; i < 16; ++i) {
    std::vector<std::pair<double, int64_t>> best;
    for (int64_t j = 0; j < 16; ++j) {
      double s = 0;
      for (int64_t c = 0; c < 8; ++c) s += qkv[i * 24 + c] * qkv[j * 24 + 8 + c];
      best.emplace_back(-s, j);
    }
    std::sort(best.begin(), best.end());
    std::vector<int64_t> want{best[0].second, best[1].second, best[2].second};
    std::sort(want.begin(), want.end());
    for (int64_t k = 0; k < 3; ++k) {
      CHECK(r.reference.at("idx")[i * 3 + k] == static_cast<double>(want[static_cast<size_t>(k)]));
      CHECK(r.method.at("idx")[i * 3 + k] == static_cast<double>(want[static_cast<size_t>(k)]));
    }
  }
}

TEST_CASE("degenerate 4: without the convolution, regions permute with the input") {
  const Problem p = grid_problem(1, 6, 6, 16, 2);
  const ParamMap params{{"n_win", 3}, {"topk", 2}, {"side_dwconv", 0}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("biformer", p, params);
  const int64_t to[9] = {4, 0, 8, 1, 7, 2, 6, 3, 5};
  const auto moved = [&](const RefTensor& t) {
    RefTensor y = t;
    for (int64_t i = 0; i < 36; ++i) {
      const int64_t r = to[i / 6 / 2 * 3 + i % 6 / 2], row = r / 3 * 2 + i / 6 % 2,
                    column = r % 3 * 2 + i % 6 % 2;
      for (int64_t c = 0; c < 16; ++c) y[(row * 6 + column) * 16 + c] = t[i * 16 + c];
    }
    return y;
  };
  check_is(run_routed(p, params, moved(x), w), moved(run_routed(p, params, x, w).reference.at("out")));
}

TEST_CASE("degenerate 5: regions that choose themselves are windows") {
  const Problem p = grid_problem(2, 6, 6, 16, 4);
  const ParamMap params{{"n_win", 2}, {"topk", 1}, {"side_dwconv", 0}};
  // Region means along four axes dominate, and q_r . k_r' is largest at itself.
  RefTensor x = strong_input(p);
  for (int64_t i = 0; i < x.numel(); ++i) x[i] *= 0.1;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t t = 0; t < 36; ++t) x[(b * 36 + t) * 16 + t / 6 / 3 * 2 + t % 6 / 3] += 5;
  RefMap w = strong_weights("biformer", p, params);
  for (int64_t r = 0; r < 32; ++r)
    for (int64_t c = 0; c < 16; ++c) w["qkv.weight"][r * 16 + c] = r % 16 == c ? 1.0 : 0.0;
  const Routed r = run_routed(p, params, x, w);
  CHECK(r.method.at("idx").data == std::vector<double>{0, 1, 2, 3, 0, 1, 2, 3});
  check_is(r, run_layer("window", p, {{"win", 3}, {"qk_scale", 0.25}}, x,
                        {{"qkv.weight", w.at("qkv.weight")},
                         {"qkv.bias", w.at("qkv.bias")},
                         {"proj.weight", w.at("wo.weight")},
                         {"proj.bias", w.at("wo.bias")}})
                  .reference);
}

TEST_CASE("degenerate 6: scaled queries, or a vector added to all keys, leave the routing") {
  const Problem p = grid_problem(2, 9, 8, 16, 4);
  const ParamMap params{{"n_win", 4}, {"topk", 4}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("biformer", p, params);
  const RefTensor idx = run_routed(p, params, x, w).method.at("idx");
  RefMap scaled = w, shifted = w;
  for (int64_t i = 0; i < 16 * 16; ++i) scaled["qkv.weight"][i] *= 3;
  for (int64_t i = 0; i < 16; ++i) scaled["qkv.bias"][i] *= 3, shifted["qkv.bias"][16 + i] += 0.5;
  CHECK(run_routed(p, params, x, scaled).method.at("idx").data == idx.data);
  CHECK(run_routed(p, params, x, shifted).method.at("idx").data == idx.data);
}

TEST_CASE("degenerate 7: a constant map ties everywhere: the first regions, and o = v") {
  const Problem p = grid_problem(1, 6, 6, 16, 2);
  const ParamMap params{{"n_win", 3}, {"topk", 4}, {"side_dwconv", 0}};
  RefTensor x = strong_input(p);
  for (int64_t i = 0; i < x.numel(); ++i) x[i] = x[i % 16];
  const RefMap w = strong_weights("biformer", p, params);
  const Routed r = run_routed(p, params, x, w);
  for (int64_t i = 0; i < 36; ++i) CHECK(r.method.at("idx")[i] == static_cast<double>(i % 4));
  const RefTensor bias = rows_of(w.at("qkv.bias"), 32, 48);
  check_is(r, ref::linear(ref::linear(x, rows_of(w.at("qkv.weight"), 32, 48), &bias), w.at("wo.weight"),
                          &w.at("wo.bias")));
}

TEST_CASE("degenerate 8: the variants agree where S divides") {
  const Problem p = grid_problem(2, 8, 12, 16, 2);
  const ParamMap nchw{{"n_win", 4}, {"topk", 3}}, legacy{{"n_win", 4}, {"topk", 3}, {"variant", "legacy"}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("biformer", p, nchw);
  const Routed a = run_routed(p, nchw, x, w), b = run_routed(p, legacy, x, w);
  check_is(b, a.reference.at("out"));
  CHECK(a.method.at("idx").data == b.method.at("idx").data);
}

TEST_CASE("biformer counts as its card counts") {
  Context ctx(cpu_backend(), 1);
  const auto form = [&](int64_t side, int64_t c, int topk) {
    const Problem p = grid_problem(1, side, side, c, c / 32);
    const ParamMap params{{"n_win", 7}, {"topk", topk}};
    return find_method("biformer").make(ctx, p, params_of("biformer", p, params))->cost();
  };
  // Projections, routing, attention and convolution of the three stages at 224 pixels.
  CHECK(form(56, 64, 1).published_macs == 51'380'224 + 153'664 + 25'690'112 + 5'017'600);
  CHECK(form(28, 128, 4).published_macs == 51'380'224 + 307'328 + 12'845'056 + 2'508'800);
  CHECK(form(14, 256, 16).published_macs == 51'380'224 + 614'656 + 6'422'528 + 1'254'400);
  CHECK(form(56, 64, 1).parameters == 4 * 64 * 64 + 4 * 64 + 25 * 64 + 64);
}

TEST_CASE("biformer's pairs, rows and statistics agree") {
  Trial t = strong_trial("biformer", grid_problem(2, 8, 8, 16, 2), {{"n_win", 4}, {"topk", 3}});
  t.run();
  const auto pairs = t.instance->pairs();
  REQUIRE(pairs);
  const RefTensor idx = t.output("idx");
  Intervals set;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t i = 0; i < 64; ++i) {
      pairs->row(b, 1, i, set);
      std::vector<char> in(64, 0);
      int64_t last = -1;
      for (const Interval& s : set) {
        REQUIRE(s.begin > last);
        last = s.end;
        for (int64_t j = s.begin; j < s.end; ++j) in[static_cast<size_t>(j)] = 1;
      }
      const int64_t region = i / 8 / 2 * 4 + i % 8 / 2;
      std::vector<float> row;
      REQUIRE(t.instance->rows(*t.ctx, b, 1, i, i + 1, row));
      REQUIRE(row.size() == 64);
      double sum = 0;
      for (int64_t j = 0; j < 64; ++j) {
        bool chosen = false;
        for (int64_t k = 0; k < 3; ++k)
          chosen = chosen || idx[(b * 16 + region) * 3 + k] == static_cast<double>(j / 8 / 2 * 4 + j % 8 / 2);
        CHECK(static_cast<bool>(in[static_cast<size_t>(j)]) == chosen);
        CHECK((row[static_cast<size_t>(j)] > 0) == chosen);
        sum += static_cast<double>(row[static_cast<size_t>(j)]);
      }
      CHECK(sum == Approx(1.0).margin(1e-5));
    }
  const auto stats = t.instance->row_stats(*t.ctx);
  REQUIRE(stats);
  CHECK(stats->visible_keys.data<float>()[0] == 12.0f);
  CHECK(stats->entropy.data<float>()[5] <= std::log(12.0f) + 1e-4f);
}

TEST_CASE("biformer refuses what its variants do not have") {
  check_refusals("biformer");
  const Problem p = grid_problem(1, 6, 7, 8, 2);
  const auto refuses = [&](const ParamMap& params, const std::string& word) {
    CHECK_THROWS_AS(make_trial("biformer", p, params), UsageError);
    CHECK_THROWS_WITH(make_trial("biformer", p, params), ContainsSubstring(word));
  };
  refuses({{"n_win", 8}}, "n_win 8 is more than the grid 6 x 7");
  refuses({{"n_win", 2}, {"topk", 99}}, "regions");
  refuses({{"n_win", 2}, {"side_dwconv", 4}}, "side_dwconv 4 is even");
  refuses({{"n_win", 2}, {"qk_dim", 4}}, "variant legacy alone");
  refuses({{"n_win", 2}, {"soft_routing", true}}, "variant legacy alone");
  refuses({{"n_win", 2}, {"kv_downsample", "avg"}}, "variant legacy alone");
  refuses({{"n_win", 2}, {"variant", "legacy"}, {"auto_pad", false}}, "set auto_pad");
  refuses({{"n_win", 2}, {"variant", "legacy"}, {"kv_downsample", "max"}, {"kv_ratio", 9}}, "leaves no keys");
  refuses({{"topk", "all"}, {"variant", "legacy"}, {"soft_routing", true}}, "does not route");
  refuses({{"topk", "some"}}, "a whole number or all is wanted");
}

TEST_CASE("biformer does not depend on the number of threads") {
  const ParamMap params{{"n_win", 3}, {"topk", 4}};
  Trial one = strong_trial("biformer", grid_problem(3, 7, 8, 24, 3), params, 1);
  Trial two = strong_trial("biformer", grid_problem(3, 7, 8, 24, 3), params, 2);
  one.run(), two.run();
  CHECK(one.output("out").data == two.output("out").data);
  const std::vector<double> first = one.output("out").data;
  const int64_t held = one.ctx->memory().current_total;
  one.instance->run(*one.ctx);
  CHECK(one.output("out").data == first);
  CHECK(one.ctx->memory().current_total == held);
}
