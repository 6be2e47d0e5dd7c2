// PowerAttention: its reference by hand, the method against it, the card's degenerate cases, counts and
// reach.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/methods/visible_sets.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

std::vector<int64_t> sets(const Problem& p, const ParamMap& given) {
  return visible_sets("power_attention", p, given);
}

/// Card, Cost: blocks read by query block t with one sink.
int64_t card_row(int64_t t, int64_t window) {
  int64_t r = std::min(window, t + 1);
  for (int64_t e = 1; e <= t; e *= 2) r += e >= window;
  const bool power = t > 0 && (t & (t - 1)) == 0;
  return r + (t >= window && !power);
}

/// Blocks reachable from the last one after 1, 2, ... layers, until nothing is added; block_size 1.
std::vector<int64_t> reach(const PairSet& pairs) {
  std::set<int64_t> reached{pairs.queries - 1};
  std::vector<int64_t> sizes;
  Intervals row;
  for (;;) {
    std::set<int64_t> next = reached;
    for (const int64_t i : reached) {
      pairs.row(0, 0, i, row);
      for (const Interval& v : row)
        for (int64_t j = v.begin; j < v.end; ++j) next.insert(j);
    }
    if (next == reached) return sizes;
    reached = next;
    sizes.push_back(static_cast<int64_t>(reached.size()));
  }
}

double difference(Trial& a, Trial& b) {
  a.run();
  b.run();
  return compare(a.output("o"), b.output("o")).relative_l2;
}

}  // namespace

TEST_CASE("the power-attention reference, by hand") {
  const Problem p = heads_problem(1, 1, 1, 9, 9, 1, true);
  // Blocks of one token, no sink: i, i - 1, i - 2, i - 4, i - 8.
  const std::vector<int64_t> powers = sets(p, {{"block_size", 1}, {"window_blocks", 1}, {"sink_blocks", 0}});
  CHECK(powers[0] == keys_word({0}));
  CHECK(powers[3] == keys_word({3, 2, 1}));
  CHECK(powers[5] == keys_word({5, 4, 3, 1}));
  CHECK(powers[8] == keys_word({8, 7, 6, 4, 0}));
  for (int64_t i = 1; i < 9; ++i)  // card, degenerate case 6: 1 + floor(log2 i) + 1 keys
    CHECK(__builtin_popcountll(static_cast<uint64_t>(powers[static_cast<size_t>(i)])) ==
          2 + static_cast<int>(std::floor(std::log2(static_cast<double>(i)))));

  // Blocks of two tokens: query 7 is the second of block 3: blocks 3, 2, 1 and the sink; query 6 not key 7.
  const Problem eight = heads_problem(1, 1, 1, 8, 8, 1, true);
  const std::vector<int64_t> two = sets(eight, {{"block_size", 2}, {"window_blocks", 1}, {"sink_blocks", 0}});
  CHECK(two[7] == keys_word({7, 6, 5, 4, 3, 2}));
  CHECK(two[6] == keys_word({6, 5, 4, 3, 2}));
  CHECK(sets(eight, {{"block_size", 2}, {"window_blocks", 1}, {"power_blocks", false}})[7] ==
        keys_word({7, 6, 1, 0}));

  // Not causal: distances both ways.
  CHECK(sets(heads_problem(1, 1, 1, 9, 9, 1, false),
             {{"block_size", 1}, {"window_blocks", 1}, {"sink_blocks", 0}})[3] ==
        keys_word({3, 2, 4, 1, 5, 7}));

  const auto pattern = [](const char* word) {
    return ParamMap{{"block_size", 1}, {"pattern", word}, {"stride_blocks", 7}};
  };
  const Problem long_one = heads_problem(1, 1, 1, 30, 30, 1, true);
  CHECK(sets(long_one, pattern("sliding_window"))[29] == keys_word({29, 28, 27, 26, 25, 24, 23, 22, 21, 0}));
  CHECK(sets(long_one, pattern("stride_slash"))[29] == keys_word({29, 28, 27, 26, 25, 24, 22, 15, 8, 1, 0}));
  CHECK(sets(long_one, pattern("dilated"))[29] == keys_word({29, 27, 25, 23, 21, 19, 17, 15, 13, 11}));
  // 20 = 0b10100. x < 8: 16 .. 20; x in 8 .. 15 would need 24 .. 31; x in 16 .. 31, y = 20 | c a multiple of
  // four: 0, 4, 8, 12.
  CHECK(sets(long_one, pattern("longnet"))[20] == keys_word({16, 17, 18, 19, 20, 0, 4, 8, 12}));
}

TEST_CASE("a decoding call is the last row of the prefill") {
  const ParamMap given{{"block_size", 4}, {"window_blocks", 2}};
  const int64_t m = GENERATE(1, 3, 4, 5, 21, 32, 37);
  const std::vector<int64_t> all = sets(heads_problem(1, 1, 1, m, m, 1, true), given);
  CHECK(sets(heads_problem(1, 1, 1, 1, m, 1, true), given).back() == all.back());
  if (m > 5) {  // chunked prefill
    const std::vector<int64_t> last = sets(heads_problem(1, 1, 1, 5, m, 1, true), given);
    CHECK(last == std::vector<int64_t>(all.end() - 5, all.end()));
  }
}

TEST_CASE("power_attention agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(true, false);
  SECTION("sizes that divide nothing, grouped heads, batch 2") {
    Trial t = make_trial("power_attention", heads_problem(2, 6, 2, 301, 301, 24, causal, dtype),
                         {{"block_size", 16}, {"window_blocks", 2}});
    check_trial(t, 3);
  }
  SECTION("every pattern, more than one of longnet's groups") {
    const char* pattern = GENERATE("power", "sliding_window", "stride_slash", "dilated", "longnet");
    Trial t = make_trial("power_attention", heads_problem(1, 2, 1, 611, 611, 16, causal, dtype),
                         {{"block_size", 4}, {"pattern", pattern}, {"stride_blocks", 11}});
    check_trial(t, 3);
  }
  SECTION("a cache whose end the chunk does not meet at a block") {
    Trial t = make_trial("power_attention", heads_problem(2, 4, 2, 75, 333, 8, causal, dtype),
                         {{"block_size", 16}});
    check_trial(t, 3);
  }
  SECTION("a cache whose end the chunk meets at a block") {
    Trial t = make_trial("power_attention", heads_problem(1, 2, 2, 77, 333, 8, causal, dtype),
                         {{"block_size", 16}});
    check_trial(t, 3);
  }
  SECTION("decoding") {
    Trial t =
        make_trial("power_attention", heads_problem(2, 4, 1, 1, 333, 8, causal, dtype), {{"block_size", 16}});
    check_trial(t, 3);
  }
  SECTION("decoding, few keys of a long cache") {
    Trial t = make_trial("power_attention", heads_problem(2, 4, 2, 1, 2048, 8, causal, dtype),
                         {{"block_size", 16}, {"window_blocks", 1}});
    check_trial(t, 3);
  }
  SECTION("one token, no sink, any scale") {
    Trial t = make_trial("power_attention", heads_problem(1, 1, 1, 1, 1, 8, causal, dtype),
                         {{"sink_blocks", 0}, {"scale", 0.7}});
    check_trial(t, 3);
  }
}

TEST_CASE("power_attention's degenerate cases") {
  const Problem p = heads_problem(1, 2, 1, 150, 150, 16, true);
  const auto power = [&](const ParamMap& given) { return make_trial("power_attention", p, given); };
  const double same = tolerance(DType::f32, 0);
  SECTION("1, 2, 7: a window or a block over everything is dense causal attention") {
    Trial dense = make_trial("dense", p);
    Trial window = power({{"block_size", 16}, {"window_blocks", 10}});
    Trial block = power({{"block_size", 150}});
    Trial larger = power({{"block_size", INT64_MAX}, {"window_blocks", INT64_MAX}});
    CHECK(difference(window, dense) < same);
    CHECK(difference(block, dense) < same);
    CHECK(difference(larger, dense) < same);
  }
  SECTION("3: windows of 1, 2 and 3 are one mask") {
    Trial one = power({{"block_size", 8}, {"window_blocks", 1}});
    Trial two = power({{"block_size", 8}, {"window_blocks", 2}});
    Trial three = power({{"block_size", 8}, {"window_blocks", 3}});
    CHECK(difference(one, two) == 0);
    CHECK(difference(one, three) == 0);
    CHECK(one.instance->cost().cost.matmul == three.instance->cost().cost.matmul);
  }
  SECTION("4: without powers, the sliding-window pattern") {
    Trial a = power({{"block_size", 8}, {"window_blocks", 9}, {"power_blocks", false}});
    Trial b = power({{"block_size", 8}, {"pattern", "sliding_window"}});
    CHECK(difference(a, b) == 0);
  }
  SECTION("5: independent attention of every block") {
    Trial t = power({{"block_size", 30}, {"window_blocks", 1}, {"sink_blocks", 0}, {"power_blocks", false}});
    t.run();
    const RefTensor o = t.output("o");
    Trial first = make_trial("dense", heads_problem(1, 2, 1, 30, 30, 16, true));
    TensorMap part;
    for (const auto& [key, tensor] : t.instance->inputs()) part[key] = tensor.slice(2, 90, 120);
    rebind(first, part);
    first.run();
    const RefTensor want = first.output("o");
    double worst = 0;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 30; ++i)
        for (int64_t c = 0; c < 16; ++c)
          worst = std::max(worst, std::abs(o[(h * 150 + 90 + i) * 16 + c] - want[(h * 30 + i) * 16 + c]));
    CHECK(worst < 1e-5);
  }
  SECTION("8: equal values come back") {
    Trial t = power({{"block_size", 8}});
    rebind(t, {{"v", host_tensor(*t.ctx, {1, 1, 150, 16}, std::vector<double>(150 * 16, 3.0))}});
    t.run();
    for (const double x : t.output("o").data) CHECK(std::abs(x - 3) < 1e-5);
  }
}

TEST_CASE("power_attention reads as many blocks as its card counts") {
  std::ifstream file(ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/power_attention/counts.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  REQUIRE(golden["counts"].size() == 4);
  for (const auto& c : golden["counts"]) {
    const int64_t n = c["n_blocks"], window = c["window_blocks"];
    int64_t sum = 0, most = 0;
    for (int64_t t = 0; t < n; ++t) {
      sum += card_row(t, window);
      most = std::max(most, card_row(t, window));
    }
    CHECK(sum == c["sum_rows"]);
    CHECK(most == c["max_row"]);
    // Two tokens a block: 4 b^2 D B H sum r.
    Trial t = make_trial("power_attention", heads_problem(3, 2, 1, 2 * n, 2 * n, 8, true),
                         {{"block_size", 2}, {"window_blocks", window}});
    CHECK(t.instance->cost().cost.matmul == 4 * 4 * 8 * 3 * 2 * sum);
  }
}

TEST_CASE("power_attention's patterns reach as far as breadth-first search finds") {
  std::ifstream file(ATTNBENCH_SOURCE_DIR "/tests/golden/oracles/power_attention/counts.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  REQUIRE(golden["reach"].size() == 10);
  for (const auto& c : golden["reach"]) {
    const int64_t n = c["n_blocks"];
    INFO(c["pattern"].get<std::string>() << ' ' << n);
    Trial t = make_trial("power_attention", heads_problem(1, 1, 1, n, n, 4, true),
                         {{"block_size", 1}, {"pattern", c["pattern"].get<std::string>()}});
    CHECK(reach(*t.instance->pairs()) == c["reach_from_last_block"].get<std::vector<int64_t>>());
    CHECK(t.instance->cost().cost.special == c["sum_rows"].get<int64_t>());
  }
}

TEST_CASE("power attention covers every distance whose popcount is at most the number of layers") {
  // Card: hence all distances up to 2^(d + 1) - 2 after d layers.
  const int64_t n = 256;
  Trial t = make_trial("power_attention", heads_problem(1, 1, 1, n, n, 4, true),
                       {{"block_size", 1}, {"window_blocks", 1}, {"sink_blocks", 0}});
  const PairSet pairs = *t.instance->pairs();
  std::set<int64_t> reached{n - 1};
  Intervals row;
  for (int d = 1; d <= 8; ++d) {
    std::set<int64_t> next = reached;
    for (const int64_t i : reached) {
      pairs.row(0, 0, i, row);
      for (const Interval& v : row)
        for (int64_t j = v.begin; j < v.end; ++j) next.insert(j);
    }
    reached = next;
    int64_t first_hole = n;
    for (int64_t distance = 0; distance < n; ++distance) {
      const bool covered = reached.count(n - 1 - distance) > 0;
      CHECK(covered == (__builtin_popcountll(static_cast<uint64_t>(distance)) <= d));
      if (!covered) first_hole = std::min(first_hole, distance);
    }
    CHECK(first_hole == std::min(n, (int64_t{2} << d) - 1));
  }
}

TEST_CASE("power_attention rows, entropies and pairs describe the same weights") {
  const bool causal = GENERATE(true, false);
  Trial whole =
      make_trial("power_attention", heads_problem(2, 4, 2, 83, 83, 16, causal), {{"block_size", 8}});
  check_rows_and_stats(whole);
  Trial split =
      make_trial("power_attention", heads_problem(2, 4, 2, 40, 83, 16, causal), {{"block_size", 8}});
  check_rows_and_stats(split);
}

TEST_CASE("power_attention refuses contradictions") {
  CHECK_THROWS_WITH(make_trial("power_attention", heads_problem(1, 2, 2, 9, 8, 4, true)),
                    ContainsSubstring("9 queries have no place among 8 keys"));
  const Problem p = heads_problem(1, 2, 2, 8, 8, 4, true);
  CHECK_THROWS_WITH(make_trial("power_attention", p, {{"causal", false}}), ContainsSubstring("causal"));
  CHECK_THROWS_WITH(make_trial("power_attention", p, {{"num_kv_heads", 1}}), ContainsSubstring("kv_heads"));
  CHECK_THROWS_AS(make_trial("power_attention", p, {{"window_blocks", 0}}), UsageError);
  CHECK_THROWS_WITH(make_trial("power_attention", p, {{"pattern", "dilate"}}),
                    ContainsSubstring("'dilated'"));
}
