// Retrieval scores, classes and masks against the reference, and the card's degenerate cases.
#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem rows_problem(int64_t instances, int64_t heads, int64_t steps, int64_t keys,
                     DType dtype = DType::f32) {
  Problem p;
  p.batch = instances;
  p.heads = heads;
  p.length = steps;
  p.kv_length = keys;
  p.causal = true;
  p.dtype = dtype;
  return p;
}

Tensor ids(Context& ctx, const Shape& shape, const std::vector<int32_t>& values) {
  const Tensor t = ctx.allocate(DType::i32, shape);
  std::copy(values.begin(), values.end(), t.data<int32_t>());
  return t;
}

/// One instance of one layer with two heads, prompt 10 11 12 13 14 15, needle 12 13 14 at 2..5. Head 0 looks
/// where `looks` says, head 1 at key 0.
Trial copying(const std::vector<int>& looks, const std::vector<int32_t>& emitted, ParamMap given = {}) {
  given["num_layers"] = 1;
  const auto steps = static_cast<int64_t>(emitted.size()), keys = 6 + steps - 1;
  Trial t = make_trial("retrieval_heads", rows_problem(1, 2, steps, keys), given);
  std::vector<double> rows(static_cast<size_t>(steps * 2 * keys), 0.0);
  for (int64_t s = 0; s < steps; ++s) {
    rows[static_cast<size_t>((s * 2) * keys + looks[static_cast<size_t>(s)])] = 1;
    rows[static_cast<size_t>((s * 2 + 1) * keys)] = 1;
  }
  std::vector<int32_t> needle{12, 13, 14};
  needle.resize(static_cast<size_t>(std::min<int64_t>(steps, 6)), 12);  // as many as the instance declares
  rebind(t, {{"rows", host_tensor(*t.ctx, {1, steps, 1, 2, keys}, rows)},
             {"p", ids(*t.ctx, {1, 6}, {10, 11, 12, 13, 14, 15})},
             {"w", ids(*t.ctx, {1, steps}, emitted)},
             {"needle_ids", ids(*t.ctx, {1, static_cast<int64_t>(needle.size())}, needle)}});
  return t;
}

}  // namespace

TEST_CASE("retrieval_heads rows: every dtype, mode and topk against the reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const int topk = GENERATE(1, 3);
  const std::string mode = GENERATE("reference", "paper");
  Trial t = make_trial("retrieval_heads", rows_problem(3, 5, 7, 31, dtype),
                       {{"num_layers", 3}, {"topk", topk}, {"score_mode", mode}});
  check_trial(t, 0);
  // The estimator recovers the planted heads: those copy with probability 0.8, the others at random.
  const RefTensor mean = t.output("mean_score");
  for (int64_t h = 0; h < 15; ++h) {
    if (h % 7 == 0) CHECK(mean[h] > 0.5);
    if (h % 7 != 0 && topk == 1) CHECK(mean[h] < 0.5);
  }
}

TEST_CASE("retrieval_heads qk: heads, groups, steps and dtypes against the reference") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const int kv = GENERATE(6, 2);
  const std::string mode = GENERATE("uniform", "zero_output");
  for (int mask : {0, 4, -3}) {
    Trial t = make_trial("retrieval_heads", heads_problem(1, 6, kv, 5, 23, 8, true, dtype),
                         {{"num_layers", 3},
                          {"mask_mode", mode},
                          {"mask_topk", mask},
                          {"random_exclude_top", 10},
                          {"topk", mask == 4 ? 2 : 1}});
    check_trial(t, 2);
    if (mask == 0) CHECK(t.output("masked").data == t.output("dense").data);  // bit for bit
    if (mask == 0 && dtype == DType::f32) check_rows_and_stats(t);
  }
  for (const auto& [steps, keys] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 9}, {9, 9}}) {
    Trial t =
        make_trial("retrieval_heads", heads_problem(1, 2, 1, steps, keys, 3, true), {{"num_layers", 1}});
    check_trial(t, 2);
  }
}

TEST_CASE(
    "retrieval_heads: rows on the right token score 1, others 0, and repeats count twice in the reference") {
  Trial right = copying({2, 3, 4}, {12, 13, 14});
  check_trial(right, 0);
  CHECK(right.output("score_reference").data == std::vector<double>{1, 0});
  CHECK(right.output("score_paper").data == std::vector<double>{1, 0});
  CHECK(right.output("needle_range").data == std::vector<double>{2, 5});
  CHECK(right.output("recall").data == std::vector<double>{1});
  CHECK(right.output("retrieval_heads").data == std::vector<double>{1, 0});
  Trial wrong = copying({3, 4, 2}, {12, 13, 14});  // in the needle, but not the emitted token
  wrong.run();
  CHECK(wrong.output("score_reference").data == std::vector<double>{0, 0});
  // The needle twice: six steps of a needle of six ids whose distinct ids are three.
  Trial twice = copying({2, 3, 4, 2, 3, 4}, {12, 13, 14, 12, 13, 14});
  check_trial(twice, 0);
  CHECK(twice.output("score_reference")[0] == 2 * twice.output("score_paper")[0]);
  Trial none = copying({2, 3, 4}, {12, 13, 14}, {{"success_recall", 0.5}});
  rebind(none, {{"needle_ids", ids(*none.ctx, {1, 3}, {97, 98, 99})}});
  check_trial(none, 0);
  CHECK(none.output("needle_range").data == std::vector<double>{-1, -1});
  CHECK(none.output("score_reference").data == std::vector<double>{0, 0});
  CHECK(none.output("counted").data == std::vector<double>{0});
  CHECK(none.output("mean_score").data == std::vector<double>{0, 0});
}

TEST_CASE("retrieval_heads: thresholds, topk of all keys and ties") {
  Trial all = copying({2, 3, 4}, {12, 13, 14}, {{"threshold", 0.0}});
  all.run();
  CHECK(all.output("retrieval_heads").data == std::vector<double>{1, 1});
  CHECK(all.output("top_k_order").data == std::vector<double>{0, 0, 0, 1});
  Trial most = copying({0, 0, 0}, {12, 99, 14}, {{"topk", 6}});
  most.run();  // a head copies wherever the needle holds the token
  CHECK(most.output("score_reference")[0] == Approx(2.0 / 3));
  CHECK(most.output("score_reference")[1] == Approx(2.0 / 3));
  Trial flat = copying({0, 0, 0}, {12, 13, 14});
  rebind(flat, {{"rows", host_tensor(*flat.ctx, {1, 3, 1, 2, 8}, std::vector<double>(48, 0.125))}});
  flat.run();
  for (double j : flat.output("selected").data) CHECK(j == 0);
}

TEST_CASE(
    "retrieval_heads: masks of equal keys, of zero values and of all heads; duplicated heads score alike") {
  Trial t = make_trial("retrieval_heads", heads_problem(1, 2, 1, 3, 8, 4, true),
                       {{"num_layers", 1}, {"mask_topk", 2}});
  const auto same_keys = [&](double v) {
    return host_tensor(*t.ctx, {1, 8, 1, 4}, std::vector<double>(32, v));
  };
  rebind(t, {{"k", same_keys(0.3)}});
  t.run();
  CHECK(compare(t.output("masked"), t.output("dense")).relative_l2 < 1e-6);
  const RefTensor v = to_reference(t.instance->inputs().at("v")), masked = t.output("masked");
  for (int64_t step = 0; step < 3; ++step)
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t c = 0; c < 4; ++c) {
        double mean = 0;
        for (int64_t j = 0; j < 6 + step; ++j) mean += v[j * 4 + c] / static_cast<double>(6 + step);
        CHECK(masked[(step * 2 + h) * 4 + c] == Approx(mean).margin(1e-6));
      }
  rebind(t, {{"v", same_keys(0)}});
  t.run();
  CHECK(t.output("masked_zero").data == t.output("dense").data);
  Trial twins = make_trial("retrieval_heads", heads_problem(1, 4, 2, 3, 20, 4, true), {{"num_layers", 1}});
  RefTensor q = to_reference(twins.instance->inputs().at("q"));
  for (int64_t s = 0; s < 3; ++s)
    for (int64_t g = 0; g < 2; ++g)
      for (int64_t c = 0; c < 4; ++c) q[(s * 4 + 2 * g + 1) * 4 + c] = q[(s * 4 + 2 * g) * 4 + c];
  rebind(twins, {{"q", host_tensor(*twins.ctx, {3, 1, 4, 4}, q.data)}});
  twins.run();
  const RefTensor selected = twins.output("selected");
  for (int64_t s = 0; s < 3; ++s)
    for (int64_t g = 0; g < 2; ++g) CHECK(selected[s * 4 + 2 * g] == selected[s * 4 + 2 * g + 1]);
}

TEST_CASE("retrieval_heads: statistics of a score file, and what is wrong with one") {
  const std::string path = (std::filesystem::temp_directory_path() / "attnbench_scores.json").string();
  const auto with = [&](const std::string& text, const ParamMap& more = {}) {
    std::ofstream(path) << text;
    ParamMap given{{"num_layers", 2}, {"num_heads", 2}, {"scores_file", path}};
    for (const auto& [k, v] : more) given[k] = v;
    Problem p;
    p.heads = 2;
    Trial t = make_trial("retrieval_heads", p, given);
    check_trial(t, 0);
    return t;
  };
  const Trial t = with(R"({"0-0": [0, 0.5], "0-1": [0, 0], "1-0": [0.9, 0.3], "1-1": [0.05, 0.05]})");
  CHECK(compare(t.output("mean_score"), ref_tensor({2, 2}, {0.25, 0, 0.6, 0.05})).relative_l2 < 1e-6);
  CHECK(t.output("activation_frequency").data == std::vector<double>{0.5, 0, 1, 1});
  CHECK(t.output("retrieval_heads").data == std::vector<double>{1, 0, 1, 0});
  CHECK(t.output("top_k_order").data == std::vector<double>{1, 0, 0, 0, 1, 1, 0, 1});
  CHECK_THROWS_WITH(with(R"({"0-0": [0]})"), ContainsSubstring("1 of 4 heads"));
  CHECK_THROWS_WITH(with(R"({"0-2": [0]})"), ContainsSubstring("'0-2' is no head"));
  CHECK_THROWS_WITH(with(R"({"0-0": [0], "0-1": [0, 1]})"), ContainsSubstring("'0-1' has 2 scores"));
  CHECK_THROWS_WITH(with("[]"), ContainsSubstring("an object"));
  std::filesystem::remove(path);
}

TEST_CASE("retrieval_heads says what it cannot do") {
  const Problem p = rows_problem(1, 2, 4, 9);
  const auto make = [](const Problem& q, const ParamMap& given) {
    return make_trial("retrieval_heads", q, given);
  };
  CHECK_NOTHROW(make(p, {{"num_layers", 1}}));
  CHECK_THROWS_WITH(make(rows_problem(1, 2, 9, 4), {}), ContainsSubstring("4 keys are fewer than 9 steps"));
  CHECK_THROWS_WITH(make(p, {{"topk", 10}}), ContainsSubstring("topk: 10 exceeds the 9 keys"));
  CHECK_THROWS_AS(make(heads_problem(2, 2, 2, 4, 9, 4, true), {}), Unsupported);
  CHECK_THROWS_AS(make(heads_problem(1, 2, 2, 4, 9, 4, false), {}), Unsupported);
  CHECK_THROWS_AS(make(p, {{"scores_file", "/nowhere/at/all.json"}}), Unsupported);
  CHECK_THROWS_AS(make(p, {{"mask_topk", 3}, {"num_layers", 1}}), UsageError);
}
