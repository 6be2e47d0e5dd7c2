// vsa: reference, closed form, the card's degenerate cases, what samples depend on.
#include "tests/methods/vision_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// The layer's maps are channels-first: [B, N, C] as [B, C, Hg, Wg], and back.
RefTensor to_map(const RefTensor& x, const Problem& p, int64_t c) {
  RefTensor y({p.batch, c, p.grid[0], p.grid[1]});
  const int64_t n = p.grid[0] * p.grid[1];
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t ch = 0; ch < c; ++ch) y[(b * c + ch) * n + i] = x[(b * n + i) * c + ch];
  return y;
}
RefTensor to_tokens(const RefTensor& x) {
  const int64_t batch = x.dim(0), c = x.dim(1), n = x.dim(2) * x.dim(3);
  RefTensor y({batch, n, c});
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t ch = 0; ch < c; ++ch) y[(b * n + i) * c + ch] = x[(b * c + ch) * n + i];
  return y;
}

Outputs run_vsa(const Problem& p, const ParamMap& params, const RefTensor& tokens, const RefMap& weights) {
  const Outputs o = run_layer("vsa", p, params, to_map(tokens, p, p.channels), weights);
  return {to_tokens(o.reference), to_tokens(o.method)};
}

void check_is(const Outputs& o, const RefTensor& want, double exact = 1e-12) {
  const Comparison e = compare(o.reference, want), m = compare(o.method, want);
  INFO("reference " << e.worst << ", method " << m.worst);
  CHECK(e.relative_l2 <= exact);
  CHECK(m.relative_l2 <= 4 * tolerance(DType::f32, 0));
}

/// Regressors that predict the given (x, y) offsets and scales whatever the input.
RefMap with_geometry(RefMap w, double ox, double oy, double sx, double sy) {
  for (const char* name : {"offset.weight", "scale.weight"})
    w.at(name).data.assign(w.at(name).data.size(), 0.0);
  for (size_t i = 0; i < w.at("offset.bias").data.size(); ++i) {
    w.at("offset.bias").data[i] = i % 2 ? oy : ox;
    w.at("scale.bias").data[i] = i % 2 ? sy : sx;
  }
  return w;
}

}  // namespace

TEST_CASE("vsa equals its reference and its closed form") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  struct Case {
    int64_t h, w, c, heads;
    ParamMap params;
  };
  const auto [h, w, c, heads, params] = GENERATE(
      Case{8, 12, 16, 2, {{"window_size", 4}, {"cpe", false}}}, Case{9, 13, 24, 3, {{"window_size", 5}}},
      Case{9, 13, 24, 3, {{"window_size", 5}, {"pad_mode", "center"}, {"offset_norm", "unpadded"}}},
      Case{10, 6, 16, 4, {{"window_size", 3}, {"offset_norm", "swapped"}, {"leaky_slope", 0.2}}},
      Case{5,
           4,
           12,
           2,
           {{"window_size", 7}, {"rel_pos_bias", false}, {"qkv_bias", false}}},  // larger than the map
      Case{6, 7, 16, 2, {{"window_size", 2}, {"out_dim", 24}, {"qk_scale", 0.6}, {"pad_mode", "center"}}},
      Case{1, 1, 8, 2, {{"window_size", 2}}});
  for (int64_t batch : {1, 2}) {
    Trial t = make_trial("vsa", grid_problem(batch, h, w, c, heads, dtype), params);
    TensorMap weights;
    for (const TensorSpec& s : t.instance->weight_specs()) {
      RefTensor v = strong_values(s);
      // Regressors of about one window: points leave the map, most stay.
      if (s.name.starts_with("offset") || s.name.starts_with("scale"))
        for (double& e : v.data) e *= 0.4;
      weights[s.name] = from_reference(*t.ctx, v, s.dtype);
    }
    rebind(t, {}, weights);
    check_trial(t, kLayerRoundings);
  }
}

TEST_CASE("degenerate 1 and 2: regressors of zero make window attention, one window dense attention") {
  const int win = GENERATE(3, 6);
  const Problem p = grid_problem(2, 6, 6, 16, 4);
  const ParamMap params{{"window_size", win}, {"cpe", false}};
  const RefTensor x = strong_input(p);
  const RefMap w = with_geometry(strong_weights("vsa", p, params), 0, 0, 0, 0);
  check_is(run_vsa(p, params, x, w), run_layer("window", p, {{"win", win}, {"rel_pos_bias", true}}, x,
                                               {{"qkv.weight", w.at("qkv.weight")},
                                                {"qkv.bias", w.at("qkv.bias")},
                                                {"proj.weight", w.at("proj.weight")},
                                                {"proj.bias", w.at("proj.bias")},
                                                {"rel_pos_bias_table", w.at("rel_pos_bias_table")}})
                                         .reference);
  // init_regressor zero is that layer from the start.
  Trial t = make_trial("vsa", p, {{"window_size", win}, {"init_regressor", "zero"}});
  for (const char* name : {"offset.weight", "offset.bias", "scale.weight", "scale.bias"})
    for (double v : to_reference(t.instance->weights().at(name)).data) CHECK(v == 0.0);
}

TEST_CASE("degenerate 3: a scale of -1 gathers every key at the window's centre") {
  const Problem p = grid_problem(1, 6, 9, 16, 2);
  const ParamMap params{{"window_size", 3}, {"cpe", false}};
  const RefTensor x = strong_input(p);
  const RefMap w = with_geometry(strong_weights("vsa", p, params), 0, 0, -1, -1);
  const RefTensor bias = rows_of(w.at("qkv.bias"), 32, 48);
  const RefTensor v = ref::linear(x, rows_of(w.at("qkv.weight"), 32, 48), &bias);
  RefTensor centre = v;
  for (int64_t i = 0; i < 54; ++i) {
    const int64_t from = (i / 9 / 3 * 3 + 1) * 9 + i % 9 / 3 * 3 + 1;
    for (int64_t c = 0; c < 16; ++c) centre[i * 16 + c] = v[from * 16 + c];
  }
  check_is(run_vsa(p, params, x, w), ref::linear(centre, w.at("proj.weight"), &w.at("proj.bias")));
}

TEST_CASE("degenerate 4 and 5: an offset of one window, and samples outside the map") {
  const Problem p = grid_problem(1, 6, 9, 16, 2);
  const ParamMap params{{"window_size", 3}, {"cpe", false}};
  const RefTensor x = strong_input(p);
  const RefMap w = strong_weights("vsa", p, params);
  SECTION("one window to the right") {
    // 2 Wp / (Wp - 1) moves the keys by w: exactly the rows of the map moved left by a window.
    const Outputs o = run_vsa(p, params, x, with_geometry(w, 2 * 9.0 / 8.0, 0, 0, 0));
    for (int64_t i = 0; i < 54; ++i)
      if (i % 9 >= 6)
        for (int64_t c = 0; c < 16; ++c) {
          CHECK(o.reference[i * 16 + c] == Approx(w.at("proj.bias")[c]).margin(1e-12));
          CHECK(o.method[i * 16 + c] == Approx(w.at("proj.bias")[c]).margin(1e-4));
        }
    // Keys and values of window jx + 1: by hand for the first query row of head 0.
    const RefTensor qkv = ref::linear(x, w.at("qkv.weight"), &w.at("qkv.bias"));
    RefTensor mixed({1, 16});
    for (int64_t h = 0; h < 2; ++h) {
      std::vector<double> s;
      for (int64_t j = 0; j < 9; ++j) {
        const int64_t key = j / 3 * 9 + 3 + j % 3;
        double dot = 0;
        for (int64_t e = 0; e < 8; ++e) dot += qkv[h * 8 + e] * qkv[key * 48 + 16 + h * 8 + e];
        s.push_back(dot / std::sqrt(8.0) + w.at("rel_pos_bias_table")[((2 - j / 3) * 5 + 2 - j % 3) * 2 + h]);
      }
      ref::softmax_row(s, std::vector<char>(9, 1));
      for (int64_t j = 0; j < 9; ++j)
        for (int64_t e = 0; e < 8; ++e)
          mixed[h * 8 + e] += s[static_cast<size_t>(j)] * qkv[(j / 3 * 9 + 3 + j % 3) * 48 + 32 + h * 8 + e];
    }
    const RefTensor y = ref::linear(mixed, w.at("proj.weight"), &w.at("proj.bias"));
    for (int64_t c = 0; c < 16; ++c) {
      CHECK(o.reference[c] == Approx(y[c]).epsilon(1e-10));
      CHECK(o.method[c] == Approx(y[c]).margin(1e-4));
    }
  }
  SECTION("far outside") {
    const Outputs o = run_vsa(p, params, x, with_geometry(w, 40, -40, 0, 0));
    for (int64_t i = 0; i < 54 * 16; ++i) {
      CHECK(o.reference[i] == w.at("proj.bias")[i % 16]);
      CHECK(o.method[i] == Approx(w.at("proj.bias")[i % 16]).margin(1e-6));
    }
  }
}

TEST_CASE("degenerate 6: a constant map under samples inside it gives v") {
  const Problem p = grid_problem(1, 9, 9, 16, 2);
  const ParamMap params{{"window_size", 3}, {"cpe", false}};
  RefTensor x = strong_input(p);
  for (int64_t i = 0; i < x.numel(); ++i) x[i] = x[i % 16];
  const RefMap w = with_geometry(strong_weights("vsa", p, params), 0.1, -0.15, -0.7, -0.6);
  const RefTensor bias = rows_of(w.at("qkv.bias"), 32, 48);
  check_is(run_vsa(p, params, x, w), ref::linear(ref::linear(x, rows_of(w.at("qkv.weight"), 32, 48), &bias),
                                                 w.at("proj.weight"), &w.at("proj.bias")));
}

TEST_CASE("degenerate 7: zero queries and no table: uniform attention, entropy ln w^2") {
  Trial t = strong_trial("vsa", grid_problem(2, 6, 7, 16, 2), {{"window_size", 3}, {"rel_pos_bias", false}});
  RefTensor weight = to_reference(t.instance->weights().at("qkv.weight"));
  RefTensor bias = to_reference(t.instance->weights().at("qkv.bias"));
  for (int64_t i = 0; i < 16 * 16; ++i) weight[i] = 0;
  for (int64_t i = 0; i < 16; ++i) bias[i] = 0;
  rebind(t, {},
         {{"qkv.weight", from_reference(*t.ctx, weight, DType::f32)},
          {"qkv.bias", from_reference(*t.ctx, bias, DType::f32)}});
  t.run();
  const auto stats = t.instance->row_stats(*t.ctx);
  REQUIRE(stats);
  for (int64_t i = 0; i < stats->entropy.numel(); ++i)
    CHECK(stats->entropy.data<float>()[i] == Approx(std::log(9.0)).margin(1e-5));
}

TEST_CASE("vsa depends on exactly the tokens under its samples") {
  // Moving one value changes a query's output only where pairs() lists the token; geometry is kept fixed.
  const Problem p = grid_problem(1, 6, 8, 8, 2);
  const ParamMap params{{"window_size", 3}, {"cpe", false}};
  const RefMap w = with_geometry(strong_weights("vsa", p, params), 0.35, -0.2, 0.4, -0.3);
  RefTensor x = strong_input(p);
  Trial t = make_trial("vsa", p, params);
  TensorMap bound;
  for (const auto& [key, value] : w) bound[key] = from_reference(*t.ctx, value, DType::f32);
  t.instance->bind({{"x", from_reference(*t.ctx, to_map(x, p, 8), DType::f32)}}, bound);
  t.run();
  const auto pairs = t.instance->pairs();
  REQUIRE(pairs);
  const RefTensor before = run_vsa(p, params, x, w).reference;
  for (int64_t j : {0, 10, 27, 47}) {
    RefTensor moved = x;
    for (int64_t c = 0; c < 8; ++c) moved[j * 8 + c] += 1;
    const RefTensor after = run_vsa(p, params, moved, w).reference;
    for (int64_t i = 0; i < 48; ++i) {
      if (i == j) continue;  // its own query moved
      bool listed = false, changed = false;
      for (int64_t h = 0; h < 2; ++h) {
        Intervals set;
        pairs->row(0, h, i, set);
        for (const Interval& s : set) listed = listed || (s.begin <= j && j < s.end);
      }
      for (int64_t c = 0; c < 8; ++c)
        changed = changed || std::fabs(after[i * 8 + c] - before[i * 8 + c]) > 1e-12;
      INFO("query " << i << ", token " << j);
      CHECK(listed == changed);
    }
  }
  std::vector<float> row;
  REQUIRE(t.instance->rows(*t.ctx, 0, 1, 5, 6, row));
  REQUIRE(row.size() == 9);
  double sum = 0;
  for (float v : row) sum += static_cast<double>(v);
  CHECK(sum == Approx(1.0).margin(1e-5));
}

TEST_CASE("vsa counts as its card counts") {
  Context ctx(cpu_backend(), 1);
  const auto form = [&](int64_t side, int64_t c, int64_t heads, bool cpe) {
    const Problem p = grid_problem(1, side, side, c, heads);
    return find_method("vsa").make(ctx, p, params_of("vsa", p, {{"cpe", cpe}}))->cost();
  };
  // 14 x 14, C 768, H 12, w 7: base 477.17 M, position encoding 7.38, regressors 0.147, sampling 1.204.
  const ClosedForm f = form(14, 768, 12, true);
  CHECK(f.published_macs == 477'173'760 + 7'375'872 + 147'456 + 1'204'224);
  CHECK(form(14, 768, 12, false).published_macs == f.published_macs - 7'375'872);
  CHECK(f.parameters == 4 * 768 * 768 + 4 * 768 + 169 * 12 + 4 * 12 * 768 + 4 * 12 + 50 * 768);
  // Extra parameters of the Swin-T host over window attention, summed over its layers.
  int64_t extra = 0;
  const int64_t depth[4] = {2, 2, 6, 2};
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t c = 96 << i, h = 3 << i, base = 4 * c * c + 4 * c + 169 * h;
    extra += depth[i] * (form(56 >> i, c, h, true).parameters - base);
  }
  CHECK(extra == 490'920);
}

TEST_CASE("vsa refuses what it cannot divide") {
  check_refusals("vsa");
  const Problem p = grid_problem(1, 4, 9, 8, 2);
  CHECK_THROWS_WITH(make_trial("vsa", p, {{"window_size", 5}, {"offset_norm", "unpadded"}}),
                    ContainsSubstring("of which window_size 5 has none"));
  CHECK_THROWS_WITH(make_trial("vsa", p, {{"out_dim", 9}}), ContainsSubstring("out_dim 9 is not divisible"));
  CHECK_THROWS_AS(make_trial("vsa", p, {{"window_size", 1}}), UsageError);
}

TEST_CASE("vsa does not depend on the number of threads, and runs again without allocating") {
  Trial one = strong_trial("vsa", grid_problem(3, 7, 8, 24, 3), {{"window_size", 3}}, 1);
  Trial two = strong_trial("vsa", grid_problem(3, 7, 8, 24, 3), {{"window_size", 3}}, 2);
  one.run(), two.run();
  CHECK(one.output("out").data == two.output("out").data);
  const std::vector<double> first = one.output("out").data;
  one.instance->run(*one.ctx);
  const int64_t held = one.ctx->memory().current_total;
  one.instance->run(*one.ctx);
  CHECK(one.output("out").data == first);
  CHECK(one.ctx->memory().current_total == held);
}
