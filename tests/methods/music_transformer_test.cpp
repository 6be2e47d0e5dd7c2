// Music Transformer attention: the reference by hand, every form against it, the card's degenerate cases.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem problem(int64_t batch, int64_t heads, int64_t n, int64_t d, DType dtype = DType::f32,
                bool causal = true) {
  return heads_problem(batch, heads, heads, n, n, d, causal, dtype);
}
/// Output of a method on its seeded inputs, with some parameters or tensors replaced.
RefTensor output(const std::string& method, const Problem& p, const ParamMap& given,
                 const TensorMap& inputs = {}, const TensorMap& weights = {}) {
  Trial t = make_trial(method, p, given);
  rebind(t, inputs, weights);
  t.run();
  return t.output("o");
}
const char* const kForms[] = {"skew", "gather", "fused"};

}  // namespace

TEST_CASE("the music_transformer reference, by hand") {
  // d = 1, scale 1, k = 0: logit of query i and key j is q_i e_{i-j}. q = (1, 1, 2), e_0 = ln 2, e_1 = ln 3.
  Problem p = problem(1, 1, 3, 1);
  const RefTensor q = ref_tensor({1, 1, 3, 1}, {1, 1, 2}), k = ref_tensor({1, 1, 3, 1}, {0, 0, 0}),
                  v = ref_tensor({1, 1, 3, 1}, {1, 10, 100}),
                  er = ref_tensor({1, 2, 1}, {std::log(3.0), std::log(2.0)});
  const auto run = [&](const ParamMap& given, const RefMap& weights) {
    ParamMap all{{"scale", 1.0}, {"max_relative_position", 2}};
    for (const auto& [key, value] : given) all[key] = value;
    return find_reference("music_transformer")(p, params_of("music_transformer", p, all),
                                               {{"q", q}, {"k", k}, {"v", v}}, weights)
        .at("o");
  };
  RefTensor o = run({}, {{"Er", er}});
  CHECK(std::abs(o[0] - 1) < 1e-12);
  CHECK(std::abs(o[1] - (3 * 1 + 2 * 10) / 5.0) < 1e-12);
  // Distance 2 lies beyond the table: weight 1 beside 9 and 4; clipped, it is distance 1.
  CHECK(std::abs(o[2] - (1 * 1 + 9 * 10 + 4 * 100) / 14.0) < 1e-12);
  o = run({{"far_distance", "clip"}}, {{"Er", er}});
  CHECK(std::abs(o[2] - (9 * 1 + 9 * 10 + 4 * 100) / 22.0) < 1e-12);
  // Values shift by 5 at distance 1 and by 7 at distance 0.
  o = run({{"relative_values", true}}, {{"Er", er}, {"Ev", ref_tensor({1, 2, 1}, {5, 7})}});
  CHECK(std::abs(o[1] - (3 * 6 + 2 * 17) / 5.0) < 1e-12);
  // Blocks of one: the token and the one before it.
  o = run({{"mode", "local"}, {"block_length", 1}}, {{"Er", er}});
  CHECK(std::abs(o[2] - (9 * 10 + 4 * 100) / 13.0) < 1e-12);
  // Both sides: offset 1 has ln 5, and a token sees what follows.
  p.causal = false;
  o = run({{"causal", false}},
          {{"Er", ref_tensor({1, 3, 1}, {std::log(3.0), std::log(2.0), std::log(5.0)})}});
  CHECK(std::abs(o[0] - (2 * 1 + 5 * 10 + 1 * 100) / 8.0) < 1e-12);
}

TEST_CASE("music_transformer agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const std::string impl = GENERATE(as<std::string>{}, "skew", "gather", "fused");
  const bool values = GENERATE(false, true);
  const bool share = GENERATE(false, true);
  SECTION("global, longer and shorter than the table, panels that do not divide") {
    const int64_t reach = GENERATE(13, 61, 90);
    Trial t = make_trial("music_transformer", problem(2, 3, 61, 12, dtype),
                         {{"impl", impl},
                          {"max_relative_position", reach},
                          {"relative_values", values},
                          {"heads_share_relative_embedding", share},
                          {"far_distance", reach == 13 && share ? "clip" : "zero"},
                          {"query_rows", reach == 90 ? 0 : 17}});
    check_trial(t, 3);
  }
  SECTION("both sides") {
    Trial t = make_trial("music_transformer", problem(2, 2, 37, 8, dtype, false),
                         {{"impl", impl},
                          {"causal", false},
                          {"max_relative_position", share ? 9 : 40},
                          {"relative_values", values},
                          {"heads_share_relative_embedding", share},
                          {"far_distance", values ? "clip" : "zero"},
                          {"query_rows", 10}});
    check_trial(t, 3);
  }
  SECTION("blocks, the last one short") {
    Trial t = make_trial("music_transformer", problem(2, 2, 45, 8, dtype),
                         {{"impl", impl},
                          {"mode", "local"},
                          {"block_length", 7},
                          {"max_relative_position", GENERATE(5, 28)},
                          {"relative_values", values},
                          {"t2t_block0", share},
                          {"heads_share_relative_embedding", share}});
    check_trial(t, 3);
  }
  SECTION("blocks of one token, one token, blocks beyond the sequence") {
    const int64_t n = GENERATE(1, 5);
    Trial t = make_trial("music_transformer", problem(1, 2, n, 8, dtype),
                         {{"impl", impl},
                          {"mode", "local"},
                          {"block_length", share ? 1 : 4},
                          {"relative_values", values},
                          {"t2t_block0", share}});
    check_trial(t, 3);
    Trial whole = make_trial("music_transformer", problem(1, 2, n, 8, dtype),
                             {{"impl", impl}, {"relative_values", values}});
    check_trial(whole, 3);
  }
}

TEST_CASE("long fused rows reuse the distances of the step before") {
  // More keys than two steps of the operator, heads of odd width.
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  Trial t = make_trial("music_transformer", problem(1, 2, 397, 40, dtype),
                       {{"impl", "fused"}, {"max_relative_position", 350}, {"relative_values", true}});
  check_trial(t, 3);
  Trial local = make_trial("music_transformer", problem(1, 1, 397, 33, dtype),
                           {{"impl", "fused"}, {"mode", "local"}, {"block_length", 100}});
  check_trial(local, 3);
}

TEST_CASE("without embeddings music_transformer is causal softmax attention") {
  const Problem p = problem(2, 2, 70, 16);
  Context ctx(cpu_backend(), 1);
  const TensorMap none{{"Er", host_tensor(ctx, {2, 35, 16}, std::vector<double>(2 * 35 * 16, 0.0))}};
  const RefTensor dense = output("dense", p, {});
  for (const char* form : kForms)
    CHECK(compare(output("music_transformer", p, {{"impl", form}}, {}, none), dense).relative_l2 <
          tolerance(DType::f32, 0));
}

TEST_CASE("music_transformer: blocks that cover what is visible equal global attention") {
  const Problem p = problem(1, 2, 32, 8);
  for (const char* form : kForms)
    for (const int64_t block : {16, 17, 40}) {
      const ParamMap global{{"max_relative_position", 32}, {"impl", form}};
      ParamMap local = global;
      local["mode"] = "local", local["block_length"] = block;
      CHECK(
          compare(output("music_transformer", p, local), output("music_transformer", p, global)).relative_l2 <
          tolerance(DType::f32, 0));
    }
}

TEST_CASE("one vector added to every row of the table changes nothing") {
  const Problem p = problem(1, 1, 24, 8);
  Context ctx(cpu_backend(), 1);
  std::vector<double> rows(24 * 8), shifted(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = random_normal(3, 1, i);
    shifted[i] = rows[i] + 0.25 * static_cast<double>(i % 8) - 1;
  }
  for (const char* form : kForms) {
    const ParamMap given{{"max_relative_position", 24}, {"impl", form}};
    const RefTensor a =
        output("music_transformer", p, given, {}, {{"Er", host_tensor(ctx, {1, 24, 8}, rows)}});
    const RefTensor b =
        output("music_transformer", p, given, {}, {{"Er", host_tensor(ctx, {1, 24, 8}, shifted)}});
    // Logits of size 4 are rounded twice.
    CHECK(compare(a, b).relative_l2 < 4 * tolerance(DType::f32, 0));
  }
}

TEST_CASE("a table that knows one distance alone copies the token at that distance") {
  const int64_t n = 40, d = 4, r0 = 6;
  const Problem p = problem(1, 1, n, d);
  Context ctx(cpu_backend(), 1);
  std::vector<double> table(static_cast<size_t>(n * d), 0.0);
  table[static_cast<size_t>((n - 1 - r0) * d)] = 400;
  std::vector<double> ones(static_cast<size_t>(n * d), 1.0), zeros(ones.size(), 0.0);
  for (const char* form : kForms) {
    Trial t = make_trial("music_transformer", p, {{"max_relative_position", n}, {"impl", form}});
    rebind(t, {{"q", host_tensor(ctx, {1, 1, n, d}, ones)}, {"k", host_tensor(ctx, {1, 1, n, d}, zeros)}},
           {{"Er", host_tensor(ctx, {1, n, d}, table)}});
    t.run();
    const RefTensor o = t.output("o"), v = to_reference(t.instance->inputs().at("v"));
    double worst = 0;
    for (int64_t i = r0; i < n; ++i)
      for (int64_t c = 0; c < d; ++c) worst = std::max(worst, std::abs(o[i * d + c] - v[(i - r0) * d + c]));
    CHECK(worst < 1e-6);
  }
}

TEST_CASE("music_transformer costs: the card's figures") {
  const auto cost = [](const Problem& p, const ParamMap& given) {
    return make_trial("music_transformer", p, given).instance->cost();
  };
  const Problem p = problem(1, 1, 128, 16);
  CHECK(cost(p, {{"query_rows", 0}}).cost.matmul == 6 * 128 * 128 * 16);
  CHECK(cost(p, {{"impl", "gather"}}).cost.matmul == 6 * 128 * 128 * 16);
  CHECK(cost(p, {{"impl", "fused"}}).cost.matmul == 3 * 128 * 129 * 16);
  CHECK(cost(p, {{"impl", "fused"}, {"relative_values", true}}).cost.matmul == 4 * 128 * 129 * 16);
  CHECK(cost(p, {{"mode", "local"}, {"block_length", 32}}).cost.matmul == 6 * 16 * 32 * 32 * (2 * 4 - 1));
  CHECK(cost(p, {{"max_relative_position", 50}}).parameters == 50 * 16);
  // N = 2048, b = 512: 1,311,744 visible pairs a head.
  CHECK(cost(problem(1, 1, 2048, 4), {{"mode", "local"}, {"impl", "fused"}}).cost.special == 1311744);
}

TEST_CASE("music_transformer rows, entropies and pairs describe the same weights") {
  const bool local = GENERATE(false, true);
  Trial t = make_trial("music_transformer", problem(2, 2, 43, 8),
                       {{"mode", local ? "local" : "global"},
                        {"block_length", 9},
                        {"impl", GENERATE(as<std::string>{}, "skew", "fused")},
                        {"max_relative_position", 12},
                        {"far_distance", local ? "clip" : "zero"}});
  check_rows_and_stats(t);
}

TEST_CASE("music_transformer refuses what it cannot do") {
  CHECK_THROWS_WITH(make_trial("music_transformer", problem(1, 1, 8, 4), {{"causal", false}}),
                    ContainsSubstring("causal"));
  CHECK_THROWS_WITH(make_trial("music_transformer", problem(1, 1, 8, 4, DType::f32, false),
                               {{"causal", false}, {"mode", "local"}}),
                    ContainsSubstring("local"));
  CHECK_THROWS_AS(make_trial("music_transformer", heads_problem(1, 4, 2, 8, 8, 4, true)), Unsupported);
  CHECK_THROWS_AS(make_trial("music_transformer", heads_problem(1, 2, 2, 8, 9, 4, true)), Unsupported);
}
