// Rectified SpaAttn: curve, selection and correction against the reference, the card's degenerate cases,
// errors.
#include <cmath>
#include <set>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem video(int64_t batch, int64_t heads, std::vector<int64_t> grid, int64_t d, DType dtype = DType::f32) {
  Problem p;
  p.kind = ProblemKind::video;
  p.batch = batch, p.heads = heads, p.head_dim = d;
  p.grid = std::move(grid);
  p.dtype = dtype;
  return p;
}

ParamMap small(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  ParamMap m{{"block_size", 16}, {"drop_rate", 0.75}};
  for (const auto& [key, value] : more) m[key] = value;
  return m;
}

RefTensor dense(const Trial& t) {
  Problem p =
      heads_problem(t.problem.batch, t.problem.heads, t.problem.heads, 0, 0, t.problem.head_dim, false);
  p.length = t.instance->inputs().at("q").dim(2);
  p.kv_length = p.length;
  return find_reference("dense")(p, params_of("dense", p), to_reference(t.instance->inputs()), {}).at("o");
}

}  // namespace

TEST_CASE(
    "rectified_spaattn agrees with its reference, and its formula with the ledger given the selection") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("video alone, a short last block, first frame") {
    Trial t =
        make_trial("rectified_spaattn", video(2, 2, {3, 7, 9}, 8, dtype), small({{"first_frame_blocks", 3}}));
    check_trial(t, 4, true);
  }
  SECTION("text behind whole blocks, some of it padding") {
    Trial t = make_trial("rectified_spaattn", video(1, 2, {4, 6, 8}, 16, dtype),
                         small({{"text_tokens", 21}, {"text_valid", 13}}));
    check_trial(t, 4, true);
  }
  SECTION("text behind a short block") {
    Trial t = make_trial("rectified_spaattn", video(2, 1, {3, 5, 7}, 8, dtype),
                         small({{"text_tokens", 20}, {"p_keep", 0.1}}));
    check_trial(t, 4, true);
  }
  SECTION("a text slot without valid text") {
    Trial t = make_trial("rectified_spaattn", video(1, 2, {2, 6, 8}, 8, dtype),
                         small({{"text_tokens", 5}, {"text_valid", 0}}));
    check_trial(t, 4, true);
  }
  SECTION("without correction, in rows, on an image") {
    Problem p = video(1, 2, {9, 13}, 8, dtype);
    p.kind = ProblemKind::image;
    Trial t =
        make_trial("rectified_spaattn", p, small({{"ipar", false}, {"order", "linear"}, {"scale", 0.4}}));
    check_trial(t, 4, true);
  }
  SECTION("all or no dropped blocks rectified") {
    Trial t = make_trial("rectified_spaattn", video(1, 2, {3, 8, 8}, 8, dtype),
                         small({{"gapr", GENERATE("all", "none")}, {"neighbours", false}, {"p_keep", 0.0}}));
    check_trial(t, 4, true);
  }
}

TEST_CASE("the curve visits every token once, in steps to neighbours where all extents are even") {
  const std::vector<int64_t> grid =
      GENERATE(std::vector<int64_t>{4, 6, 8}, std::vector<int64_t>{2, 2, 2}, std::vector<int64_t>{3, 5, 7},
               std::vector<int64_t>{1, 9, 4}, std::vector<int64_t>{6, 1, 1}, std::vector<int64_t>{8, 2, 12});
  Trial t = make_trial("rectified_spaattn", video(1, 1, grid, 4), small());
  t.run();
  const RefTensor order = t.output("curve_order");
  std::set<double> seen(order.data.begin(), order.data.end());
  CHECK(static_cast<int64_t>(seen.size()) == grid[0] * grid[1] * grid[2]);
  CHECK(*seen.begin() == 0);
  const bool even = grid[0] % 2 == 0 && grid[1] % 2 == 0 && grid[2] % 2 == 0;
  for (int64_t i = 1; even && i < order.numel(); ++i) {
    const auto a = static_cast<int64_t>(order[i - 1]), b = static_cast<int64_t>(order[i]);
    const int64_t h = grid[1], w = grid[2];
    const int64_t steps =
        std::abs(a / (h * w) - b / (h * w)) + std::abs(a / w % h - b / w % h) + std::abs(a % w - b % w);
    CHECK(steps == 1);
  }
}

TEST_CASE("rectified_spaattn: keeping everything is dense attention") {
  const ParamMap given =
      GENERATE(ParamMap{{"p_keep", 1.5}}, ParamMap{{"drop_rate", 0.0}}, ParamMap{{"block_size", 1}});
  ParamMap all = given;
  all.emplace("block_size", 16);
  // Blocks of one token: pooled weights are the weights, so dropped tokens come back exactly.
  Trial t = make_trial("rectified_spaattn", video(1, 2, {2, 6, 8}, 8), all);
  check_trial(t, 3);
  CHECK(compare(t.output("out"), dense(t)).relative_l2 < 2 * tolerance(DType::f32, 0));
}

TEST_CASE("rectified_spaattn: constant blocks are rectified exactly") {
  Trial t = make_trial("rectified_spaattn", video(1, 1, {2, 8, 8}, 8),
                       small({{"neighbours", false}, {"drop_rate", 1.0}, {"p_keep", 0.0}}));
  RefTensor q = to_reference(t.instance->inputs().at("q")), k = to_reference(t.instance->inputs().at("k"));
  for (RefTensor* x : {&q, &k})
    for (int64_t i = 0; i < x->numel(); ++i) (*x)[i] = (*x)[i / 128 * 128 + i % 8];
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 1, 128, 8}, q.data)},
             {"k", host_tensor(*t.ctx, {1, 1, 128, 8}, k.data)}});
  check_trial(t, 3);
  double kept = 0;
  for (double x : t.output("selected").data) kept += x;
  CHECK(kept == 8);  // one block a row
  CHECK(compare(t.output("out"), dense(t)).relative_l2 < 2 * tolerance(DType::f32, 0));
}

TEST_CASE("rectified_spaattn: weights sum to one, and without rectified blocks the correction vanishes") {
  Trial t = make_trial("rectified_spaattn", video(1, 2, {3, 8, 8}, 8), small({{"text_tokens", 16}}));
  rebind(t, {{"v", host_tensor(*t.ctx, {1, 2, 208, 8}, std::vector<double>(2 * 208 * 8, 3.0))}});
  t.run();
  for (double x : t.output("out").data) CHECK(std::abs(x - 3.0) < 1e-5);
  Trial none = make_trial("rectified_spaattn", t.problem, small({{"text_tokens", 16}, {"gapr", "none"}}));
  Trial plain = make_trial("rectified_spaattn", t.problem, small({{"text_tokens", 16}, {"ipar", false}}));
  none.run(), plain.run();
  CHECK(compare(none.output("out"), plain.output("out")).relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("rectified_spaattn rows are the effective weights: they reproduce the output") {
  Trial t = make_trial("rectified_spaattn", video(1, 2, {3, 5, 8}, 8),
                       small({{"text_tokens", 19}, {"text_valid", 11}}));
  t.run();
  const int64_t tokens = 139;
  const RefTensor v = to_reference(t.instance->inputs().at("v")), out = t.output("out");
  RefTensor got(out.shape);
  std::vector<float> rows;
  Intervals seen;
  for (int64_t h = 0; h < 2; ++h) {
    REQUIRE(t.instance->rows(*t.ctx, 0, h, 0, tokens, rows));
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t j = 0; j < tokens; ++j)
        for (int64_t d = 0; d < 8; ++d)
          got[(h * tokens + i) * 8 + d] +=
              static_cast<double>(rows[static_cast<size_t>(i * tokens + j)]) * v[(h * tokens + j) * 8 + d];
      t.instance->pairs()->row(0, h, i, seen);
      CHECK(seen.empty() == (i >= 120 + 11));
    }
  }
  CHECK(compare(got, out).relative_l2 < 4 * tolerance(DType::f32, 0));
}

TEST_CASE("rectified_spaattn: counts of the card's worked examples") {
  // HunyuanVideo, 128 frames at 720p: 900 blocks, neighbour sets of 2.1 % on average.
  Trial t = make_trial("rectified_spaattn", video(1, 1, {32, 45, 80}, 1), {{"text_tokens", 256}});
  const TensorMap outputs = t.instance->outputs();
  CHECK(outputs.at("P").shape() == Shape{1, 1, 900, 901});
}

TEST_CASE("rectified_spaattn refuses contradictions, naming them") {
  const Problem p = video(1, 2, {2, 4, 4}, 8);
  CHECK_THROWS_WITH(make_trial("rectified_spaattn", p, {{"text_valid", 3}}), ContainsSubstring("3 of 0"));
  CHECK_THROWS_WITH(make_trial("rectified_spaattn", p, {{"grid", Value::List{2, 4, 5}}}),
                    ContainsSubstring("32 tokens"));
  Problem causal = p;
  causal.causal = true;
  CHECK_THROWS_AS(make_trial("rectified_spaattn", causal), Unsupported);
  Problem grouped = p;
  grouped.kv_heads = 1;
  CHECK_THROWS_AS(make_trial("rectified_spaattn", grouped), Unsupported);
}
