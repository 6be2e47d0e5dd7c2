// DHSA: boundaries, lists and attention against the reference, the card's degenerate cases, decode, errors.
#include <cmath>
#include <numeric>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

const char* const kMethod = "dhsa";

ParamMap with(ParamMap base, std::initializer_list<std::pair<const std::string, Value>> more) {
  for (const auto& [key, value] : more) base[key] = value;
  return base;
}
template <class Iterator>
ParamMap with(ParamMap base, Iterator begin, Iterator end) {
  base.insert(begin, end);
  return base;
}
ParamMap small(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  return with({{"block_size", 16},
               {"budget", 40},
               {"theta", 0.0},
               {"chunk_beta", 2},
               {"global_tokens", 5},
               {"local_tokens", 12},
               {"instruction_tokens", 20},
               {"predictor_heads", 4},
               {"predictor_hidden", 24}},
              more);
}
ParamMap fixed(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  return with(small({{"boundary_mode", "fixed"}, {"chunk_size", 7}}), more);
}

/// Keys that a row of head 0 sees, from the pair set.
std::vector<int64_t> keys_of(const Trial& t, int64_t row) {
  Intervals found;
  t.instance->pairs()->row(0, 0, row, found);
  std::vector<int64_t> keys;
  for (const Interval& v : found)
    for (int64_t j = v.begin; j < v.end; ++j) keys.push_back(j);
  return keys;
}
std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> v(static_cast<size_t>(std::max<int64_t>(0, end - begin)));
  std::iota(v.begin(), v.end(), begin);
  return v;
}

}  // namespace

TEST_CASE("dhsa agrees with its reference, and its formula with the ledger given the lists") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const auto check = [&](const Problem& p, const ParamMap& params) {
    Trial t = make_trial(kMethod, p, params);
    check_trial(t, 3);
  };
  SECTION("predictor, sizes that divide nothing") {
    check(heads_problem(2, 4, 2, 107, 107, 8, true, dtype), small());
  }
  SECTION("predictor with gated halves, a window, no distance kept") {
    check(heads_problem(1, 2, 2, 90, 90, 8, true, dtype), small({{"predictor_window_pool", true},
                                                                 {"sliding_window", 50},
                                                                 {"use_nms", false},
                                                                 {"boundary_window", 3},
                                                                 {"instruction_tokens", Value()}}));
  }
  SECTION("ratio, whole and local layers") {
    const Value window = GENERATE(Value(), Value(40));
    check(heads_problem(2, 4, 2, 101, 101, 8, true, dtype),
          small({{"boundary_mode", "ratio"}, {"theta", 1.1}, {"sliding_window", window}}));
  }
  SECTION("fixed, every pooling, with and without a window") {
    const char* pooling = GENERATE("avgpool_norm", "avgpool", "maxpool");
    const Value window = GENERATE(Value(), Value(45));
    check(heads_problem(2, 4, 1, 115, 115, 8, true, dtype),
          fixed({{"pooling", pooling}, {"sliding_window", window}, {"scale", 0.5}}));
  }
  SECTION("decode, with and without a window") {
    const Value window = GENERATE(Value(), Value(45));
    check(heads_problem(2, 4, 2, 1, 120, 8, true, dtype), small({{"sliding_window", window}}));
    check(heads_problem(2, 4, 2, 1, 120, 8, true, dtype), fixed({{"sliding_window", window}}));
  }
  SECTION("one token, and fewer than a window") {
    check(heads_problem(1, 2, 1, 1, 1, 8, true, dtype), small());
    check(heads_problem(1, 2, 1, 5, 5, 8, true, dtype), small({{"instruction_tokens", 0}}));
  }
  SECTION("a window narrower than the padding of the last block, an empty list: rows of zeros") {
    check(heads_problem(1, 2, 1, 35, 35, 8, true, dtype), fixed({{"block_size", 32},
                                                                 {"sliding_window", 8},
                                                                 {"global_tokens", 0},
                                                                 {"local_tokens", 3},
                                                                 {"instruction_tokens", 0}}));
  }
}

TEST_CASE("dhsa v2 agrees with its reference, and its formula with the ledger given the blocks") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const char* variant = GENERATE("v2_topk", "v2_a_shape");
  const auto check = [&](const Problem& p, const ParamMap& params) {
    Trial t = make_trial(kMethod, p, with({{"variant", variant}}, params.begin(), params.end()));
    check_trial(t, 3);
  };
  SECTION("sizes that divide nothing, query blocks longer and shorter than key blocks") {
    const int64_t block = GENERATE(32, 5);
    check(heads_problem(2, 4, 2, 131, 131, 8, true, dtype),
          {{"v2_query_block", block}, {"v2_key_block", 12}, {"density", 0.4}, {"scale", 0.7}});
  }
  SECTION("as published, and one block of keys") {
    check(heads_problem(1, 2, 1, 300, 300, 16, true, dtype), {});
    check(heads_problem(1, 2, 1, 30, 30, 8, true, dtype), {{"density", 0.0}});
  }
  SECTION("decode, and one token") {
    check(heads_problem(2, 4, 2, 1, 121, 8, true, dtype), {{"v2_key_block", 8}});
    check(heads_problem(1, 2, 2, 1, 1, 8, true, dtype), {});
  }
}

TEST_CASE("dhsa v2: a density of 1 is dense, the least lists two blocks or one") {
  const Problem p = heads_problem(1, 2, 1, 96, 96, 8, true);
  const char* variant = GENERATE("v2_topk", "v2_a_shape");
  Trial dense = make_trial(kMethod, p, {{"variant", variant}, {"density", 1.0}});
  check_trial(dense, 3);
  for (int64_t r = 0; r < 96; ++r) CHECK(keys_of(dense, r) == range(0, r + 1));
  // Keys of one direction, longer ones later, queries along it: the last block scores best for every row,
  // and no row but the last block's sees it.
  Trial t = make_trial(kMethod, p,
                       {{"variant", variant}, {"density", 0.0}, {"v2_query_block", 8}, {"v2_key_block", 8}});
  std::vector<double> k(96 * 8, 0.0);
  for (size_t j = 0; j < 96; ++j) k[j * 8] = static_cast<double>(j);
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 96, 2, 8}, std::vector<double>(96 * 16, 1.0))},
             {"k", host_tensor(*t.ctx, {1, 96, 1, 8}, k)}});
  check_trial(t, 3);
  const bool a_shape = std::string(variant) == "v2_a_shape";
  for (int64_t r = 0; r < 96; ++r) {
    std::vector<int64_t> want = a_shape && r >= 8 ? range(0, 8) : std::vector<int64_t>{};
    const int64_t newest = a_shape ? r / 8 * 8 : 88;
    for (int64_t j : range(newest, r + 1)) want.push_back(j);
    CHECK(keys_of(t, r) == want);
  }
  check_rows_and_stats(t);
}

TEST_CASE("dhsa: a budget or a tail as long as the prompt is dense attention") {
  const ParamMap params = GENERATE(small({{"budget", -1}}), small({{"budget", 500}}),
                                   small({{"instruction_tokens", 90}}), small({{"instruction_tokens", 91}}));
  Trial t = make_trial(kMethod, heads_problem(1, 4, 2, 90, 90, 8, true), params);
  check_trial(t, 3);
  for (int64_t r = 0; r < 90; ++r) CHECK(keys_of(t, r) == range(0, r + 1));
  for (double x : t.output("out").data) REQUIRE(std::isfinite(x));
}

TEST_CASE("dhsa: single keys and single rows find the best logits of the mean head") {
  Trial t = make_trial(kMethod, heads_problem(1, 2, 1, 60, 60, 8, true),
                       fixed({{"block_size", 1},
                              {"chunk_size", 1},
                              {"budget", 6},
                              {"global_tokens", 0},
                              {"local_tokens", 0},
                              {"instruction_tokens", 0}}));
  check_trial(t, 3);
  const RefTensor q = to_reference(t.instance->inputs().at("q")),
                  k = to_reference(t.instance->inputs().at("k"));
  for (int64_t r = 0; r < 60; ++r) {
    std::vector<double> s(static_cast<size_t>(r + 1));
    for (int64_t j = 0; j <= r; ++j)
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t d = 0; d < 8; ++d) s[static_cast<size_t>(j)] += q[(r * 2 + h) * 8 + d] * k[j * 8 + d];
    std::vector<int64_t> best = range(0, r + 1);
    std::stable_sort(best.begin(), best.end(), [&](int64_t a, int64_t b) {
      return s[static_cast<size_t>(a)] > s[static_cast<size_t>(b)];
    });
    best.resize(static_cast<size_t>(std::min<int64_t>(6, r + 1)));
    std::sort(best.begin(), best.end());
    CHECK(keys_of(t, r) == best);
  }
}

TEST_CASE("dhsa: chunks of one length score alike with and without the norm") {
  const Problem p = heads_problem(1, 2, 2, 96, 96, 8, true);
  Trial a = make_trial(kMethod, p, fixed({{"chunk_size", 8}})),
        b = make_trial(kMethod, p, fixed({{"chunk_size", 8}, {"pooling", "avgpool"}}));
  a.run(), b.run();
  CHECK(a.output("lists").data == b.output("lists").data);
}

TEST_CASE("dhsa: chunks as long as blocks are block-sparse attention with its diagonal") {
  Trial t = make_trial(kMethod, heads_problem(1, 2, 1, 96, 96, 8, true),
                       fixed({{"chunk_size", 16},
                              {"budget", 48},
                              {"global_tokens", 0},
                              {"local_tokens", 16},
                              {"instruction_tokens", 0}}));
  check_trial(t, 3);
  const RefTensor lists = t.output("lists");
  for (int64_t m = 0; m < 6; ++m) {
    std::map<int64_t, int64_t> blocks;
    for (int64_t i = 0; i < 48; ++i) {
      const auto j = static_cast<int64_t>(lists[m * 48 + i]);
      if (j < (m + 1) * 16) ++blocks[j / 16];
    }
    CHECK(blocks[m] == 16);
    CHECK(static_cast<int64_t>(blocks.size()) == std::min<int64_t>(3, m + 1));
    for (const auto& [block, count] : blocks) CHECK(count == 16);
  }
}

TEST_CASE("dhsa: newest tokens alone, first tokens alone") {
  const Problem p = heads_problem(1, 2, 1, 70, 70, 8, true);
  Trial newest = make_trial(
      kMethod, p,
      fixed({{"budget", 20}, {"local_tokens", 20}, {"global_tokens", 0}, {"instruction_tokens", Value()}}));
  check_trial(newest, 3);
  for (int64_t r = 0; r < 70; ++r) {
    const int64_t end = std::min<int64_t>(70, (r / 16 + 1) * 16);
    CHECK(keys_of(newest, r) == range(std::max<int64_t>(0, end - 20), r + 1));
  }
  Trial first = make_trial(
      kMethod, p,
      fixed({{"budget", 20}, {"local_tokens", 0}, {"global_tokens", 20}, {"instruction_tokens", 0}}));
  check_trial(first, 3);
  for (int64_t r = 0; r < 70; ++r) CHECK(keys_of(first, r) == range(0, std::min<int64_t>(20, r + 1)));
}

TEST_CASE("dhsa: of equal keys the longest chunks win, or without the norm the leftmost") {
  // The last block's chunks: [0, 14), ..., of which the last is short; queries and keys are positive.
  const bool norm = GENERATE(true, false);
  Trial t = make_trial(kMethod, heads_problem(1, 1, 1, 64, 64, 4, true),
                       fixed({{"chunk_size", 60},
                              {"budget", 4},
                              {"global_tokens", 0},
                              {"local_tokens", 0},
                              {"instruction_tokens", 0},
                              {"block_size", 64},
                              {"pooling", norm ? "avgpool_norm" : "avgpool"}}));
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 64, 1, 4}, std::vector<double>(256, 0.5))},
             {"k", host_tensor(*t.ctx, {1, 64, 1, 4}, std::vector<double>(256, 0.5))}});
  check_trial(t, 3);
  CHECK(t.output("lists").data == std::vector<double>{0, 1, 2, 3});
  // Queries against the keys: short chunks win where length counts.
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 64, 1, 4}, std::vector<double>(256, -0.5))}});
  check_trial(t, 3);
  CHECK(t.output("lists").data ==
        (norm ? std::vector<double>{60, 61, 62, 63} : std::vector<double>{0, 1, 2, 3}));
}

TEST_CASE("dhsa boundaries by hand: equal scores are taken from the left, apart, up to the cap") {
  Trial t = make_trial(kMethod, heads_problem(1, 2, 2, 64, 64, 8, true),
                       small({{"chunk_beta", 1}, {"instruction_tokens", 20}, {"theta", 1.0}}));
  set_weights(t, {"mlp1_weight"}, 0.0);
  set_weights(t, {"mlp1_bias"}, 2.0);
  check_trial(t, 3);
  // Gap 44 is forced; 3, 12 and 21 follow, then the cap of 1 * (64 / 16) entries ends it.
  CHECK(t.output("boundaries").data == std::vector<double>{0, 4, 13, 22, 45, 64});
  // Nothing above theta: the forced boundary alone; without a tail, one chunk.
  set_weights(t, {"mlp1_bias"}, 0.5);
  check_trial(t, 3);
  CHECK(t.output("boundaries").data == std::vector<double>{0, 45, 64});
  Trial none = make_trial(kMethod, heads_problem(1, 2, 2, 64, 64, 8, true),
                          small({{"instruction_tokens", 0}, {"theta", 1e6}}));
  check_trial(none, 3);
  CHECK(none.output("boundaries").data == std::vector<double>{0, 64});
}

TEST_CASE("dhsa rows, entropies and pairs describe the lists") {
  Trial t = make_trial(kMethod, heads_problem(2, 4, 2, 61, 61, 8, true), small({{"instruction_tokens", 0}}));
  check_rows_and_stats(t);
  // With a tail the rows come from two calls.
  Trial two = make_trial(kMethod, heads_problem(1, 2, 1, 61, 61, 8, true), small({{"budget", 25}}));
  two.run();
  std::vector<float> rows;
  REQUIRE(two.instance->rows(*two.ctx, 0, 1, 30, 60, rows));
  REQUIRE(rows.size() == 30 * 61);
  for (int64_t r = 30; r < 60; ++r) {
    const std::vector<int64_t> keys = keys_of(two, r);
    std::vector<int64_t> seen;
    double sum = 0;
    for (int64_t j = 0; j < 61; ++j) {
      const auto p = static_cast<double>(rows[static_cast<size_t>((r - 30) * 61 + j)]);
      sum += p;
      if (p > 0) seen.push_back(j);
    }
    CHECK(seen == keys);
    CHECK(sum == Approx(1));
  }
}

TEST_CASE("dhsa counts the predictor's parameters as the card does") {
  Problem p = heads_problem(1, 8, 4, 64, 64, 256, true);
  CHECK(make_trial(kMethod, p).instance->cost().parameters == 5249793);
}

TEST_CASE("dhsa refuses contradictions, naming them") {
  const Problem p = heads_problem(1, 2, 1, 64, 64, 8, true);
  const auto make = [&](const ParamMap& m) { make_only(kMethod, p, m); };
  CHECK_THROWS_WITH(make(small({{"budget", 16}})), ContainsSubstring("dhsa.budget: 16"));
  CHECK_THROWS_WITH(make(small({{"budget", 0}})), ContainsSubstring("dhsa.budget: 0"));
  CHECK_THROWS_WITH(make(small({{"predictor_heads", 3}})), ContainsSubstring("predictor_heads: 3"));
  CHECK_THROWS_WITH(
      make(small({{"boundary_mode", "ratio"}, {"sliding_window", 16}, {"boundary_window", 2049}})),
      ContainsSubstring("boundary_window 2049"));
  CHECK_THROWS_AS(make(small({{"pooling", "sum"}})), UsageError);
  CHECK_THROWS_AS(make_only(kMethod, heads_problem(1, 2, 1, 64, 64, 8, false), small()), Unsupported);
  CHECK_THROWS_AS(make_only(kMethod, heads_problem(1, 2, 1, 10, 64, 8, true), small()), Unsupported);
  CHECK_THROWS_AS(
      make_only(kMethod, heads_problem(1, 2, 1, 1, 64, 8, true), small({{"boundary_mode", "ratio"}})),
      Unsupported);
}
