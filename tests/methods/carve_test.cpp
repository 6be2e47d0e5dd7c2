// Contrast, regions, crops and complexities against the reference, and the card's degenerate cases.
#include <algorithm>
#include <array>
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem image(int64_t h, int64_t w, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::image;
  p.size = {h, w};
  p.channels = 3;
  p.dtype = dtype;
  return p;
}

ParamMap small(ParamMap more = {}) {
  more.emplace("layers", Value::List{0, 2});
  more.emplace("max_new_tokens", 3);
  more.emplace("grid_h", 5);
  more.emplace("grid_w", 7);
  return more;
}

Tensor picture(Context& ctx, int64_t h, int64_t w,
               const std::function<std::array<int, 3>(int64_t, int64_t)>& f) {
  const Tensor t = ctx.allocate(DType::i32, {h, w, 3});
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x)
      for (int64_t c = 0; c < 3; ++c)
        t.data<int32_t>()[(y * w + x) * 3 + c] = f(y, x)[static_cast<size_t>(c)];
  return t;
}

}  // namespace

TEST_CASE("carve: every dtype, step mode and rule against the reference, formula equal to the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string steps = GENERATE("full", "first", "last"), rule = GENERATE("max_rule", "top_k");
  for (const std::string score : {"attention_sum", "size", "remove_small"}) {
    Trial t = make_trial("carve", image(31, 26, dtype),
                         small({{"step_mode", steps},
                                {"region_rule", rule},
                                {"region_score", score},
                                {"max_regions", 1},
                                {"top_p", 0.23},
                                {"min_keep_regions", 2},
                                {"outlier_percent", 30.0}}));
    // Divisions and sums of f32; what is stored as f32 owes f32, whatever the maps were rounded to.
    check_trial(t, 0);
    CHECK(t.instance->cost().cost.matmul > 0);
  }
}

TEST_CASE("carve qk: rows from queries and keys") {
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  Problem p = image(20, 33, dtype);
  p.heads = 4;
  p.kv_heads = GENERATE(4, 2);
  p.head_dim = 8;
  p.length = 50;
  Trial t = make_trial("carve", p, small({{"v0", 6}, {"layers", Value::List{1}}}));
  check_trial(t, 0);
  const RefTensor maps = t.output("AQ");
  double sum = 0;
  for (int64_t i = 0; i < 35; ++i) sum += maps[i];
  CHECK(sum < 1);  // the rest of the mass lies on the text
  CHECK(sum > 0.3);
}

TEST_CASE("carve: uniform maps keep the image as it is, bit for bit") {
  for (double top : {0.2, 1.0}) {
    Trial t = make_trial("carve", image(23, 30), small({{"top_p", top}}));
    const std::vector<double> flat(3 * 3 * 35, 1.0 / 35);
    if (top < 1)
      rebind(t,
             {{"AQ", host_tensor(*t.ctx, {3, 3, 35}, flat)}, {"AG", host_tensor(*t.ctx, {3, 3, 35}, flat)}});
    check_trial(t, 0);
    const RefTensor s = t.output("S"), i = to_reference(t.instance->inputs().at("I"));
    if (top < 1)
      for (double v : s.data) CHECK(v == s[0]);
    CHECK(t.output("tau")[0] == *std::min_element(s.data.begin(), s.data.end()));
    for (double v : t.output("mask").data) CHECK(v == 1);
    CHECK(t.output("bbox").data == std::vector<double>{0, 0, 30, 23});
    CHECK(t.output("num_regions")[0] == 1);
    CHECK(t.output("refined").shape == std::vector<int64_t>{23, 30, 3});
    CHECK(t.output("refined").data == i.data);
  }
}

TEST_CASE("carve: a constant general map, scaled question maps, one step, all regions") {
  const auto with = [](const ParamMap& given, double scale, bool flat_general, int steps = 3) {
    ParamMap all = small(given);
    all["max_new_tokens"] = steps;
    Trial t = make_trial("carve", image(31, 26), all);
    RefTensor q = to_reference(t.instance->inputs().at("AQ"));
    for (double& v : q.data) v *= scale;
    TensorMap inputs{{"AQ", host_tensor(*t.ctx, {steps, 3, 35}, q.data)}};
    if (flat_general)
      inputs["AG"] =
          host_tensor(*t.ctx, {steps, 3, 35}, std::vector<double>(static_cast<size_t>(steps * 105), 0.25));
    rebind(t, inputs);
    t.run();
    return t;
  };
  const Trial flat = with({}, 1, true), large = with({{"lam", 1e6}}, 1, false);
  CHECK(flat.output("mask").data == large.output("mask").data);
  CHECK(flat.output("bbox").data == large.output("bbox").data);
  const Trial one = with({}, 1, false), two = with({}, 2, false);
  CHECK(one.output("mask").data == two.output("mask").data);
  CHECK(one.output("entropy_question").data == two.output("entropy_question").data);
  const Trial full = with({}, 1, false, 1), first = with({{"step_mode", "first"}}, 1, false, 1),
              last = with({{"step_mode", "last"}}, 1, false, 1);
  CHECK(full.output("S").data == first.output("S").data);
  CHECK(full.output("S").data == last.output("S").data);
  const Trial every = with({{"region_rule", "top_k"}, {"max_regions", 1000}}, 1, false);
  const RefTensor s = every.output("S"), mask = every.output("mask");
  for (int64_t i = 0; i < s.numel(); ++i) CHECK(mask[i] == (s[i] >= every.output("tau")[0]));
}

TEST_CASE("carve: entropies and complexities by hand") {
  Trial t = make_trial("carve", image(12, 36), small({{"layers", Value::List{0}}, {"max_new_tokens", 1}}));
  std::vector<double> one(35, 0.0);
  one[4] = 0.7;
  rebind(t, {{"AQ", host_tensor(*t.ctx, {1, 1, 35}, one)},
             {"AG", host_tensor(*t.ctx, {1, 1, 35}, std::vector<double>(35, 0.01))},
             {"I", picture(*t.ctx, 12, 36, [](int64_t, int64_t) {
                return std::array<int, 3>{40, 90, 200};
              })}});
  check_trial(t, 0);
  CHECK(t.output("entropy_question")[0] == 0);
  CHECK(t.output("entropy_general")[0] == Approx(std::log(35.0)).epsilon(1e-6));
  CHECK(t.output("entropy")[0] == 0);
  CHECK(t.output("Tc")[0] == 0);
  CHECK(t.output("Cc")[0] == 0);
  // Six hues in equal numbers over six bins, and the five edges between their columns.
  const std::array<std::array<int, 3>, 6> hues{
      {{255, 0, 0}, {255, 255, 0}, {0, 255, 0}, {0, 255, 255}, {0, 0, 255}, {255, 0, 255}}};
  Trial bars = make_trial("carve", image(12, 36), small({{"hue_bins", 6}}));
  rebind(bars, {{"I", picture(*bars.ctx, 12, 36,
                              [&](int64_t, int64_t x) { return hues[static_cast<size_t>(x / 6)]; })}});
  check_trial(bars, 0);
  CHECK(bars.output("Cc")[0] == Approx(1).epsilon(1e-6));
  // Greys 76, 226, 150, 179, 29, 105: steps of 150, 76, 29, 150, 76 times 4 against 200; one pixel wide each.
  CHECK(bars.output("Tc")[0] == Approx(4.0 / 36).epsilon(1e-6));
  Trial raw = make_trial("carve", image(12, 36),
                         small({{"entropy_normalise", false}, {"entropy_source", "general"}}));
  check_trial(raw, 0);
}

TEST_CASE("carve: shapes of maps that are no declared grid, and layers beyond the stack") {
  Trial t = make_trial("carve", image(40, 40),
                       small({{"grid_h", 16}, {"grid_w", 16}, {"layers", Value::List{1, 1, 2}}}));
  check_trial(t, 0);
  CHECK_THROWS_WITH(make_trial("carve", image(4, 40), small()), ContainsSubstring("larger than the image"));
}

TEST_CASE("carve says what it cannot do") {
  const auto make = [](const Problem& p, const ParamMap& given) {
    return make_trial("carve", p, small(given));
  };
  Problem p = image(30, 30);
  CHECK_NOTHROW(make(p, {}));
  CHECK_THROWS_WITH(make(p, {{"top_p", 0.0}}), ContainsSubstring("top_p"));
  CHECK_THROWS_WITH(make(p, {{"lam", 0.0}}), ContainsSubstring("lam"));
  CHECK_THROWS_WITH(make(p, {{"canny_low", 300.0}}), ContainsSubstring("canny_low: 300.0 is above"));
  CHECK_THROWS_WITH(make(p, {{"layers", Value::List{1.5}}}), ContainsSubstring("1.5 is no layer"));
  p.batch = 2;
  CHECK_THROWS_AS(make(p, {}), Unsupported);
  Problem causal = image(30, 30);
  causal.causal = true;
  CHECK_THROWS_AS(make(causal, {}), Unsupported);
}
