// Sliding-window attention: the reference by hand, the method against it, block lists, degenerate windows.
#include "tests/methods/visible_sets.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

std::vector<int64_t> visible_sets(const Problem& p, const ParamMap& given) {
  return testing::visible_sets("sliding_window", p, given);
}

}  // namespace

TEST_CASE("the sliding-window reference, by hand") {
  // Bit j of entry i: query i sees key j.
  CHECK(visible_sets(heads_problem(1, 1, 1, 5, 5, 1, true), {{"window", 1}}) ==
        std::vector<int64_t>{0b00001, 0b00011, 0b00110, 0b01100, 0b11000});
  CHECK(visible_sets(heads_problem(1, 1, 1, 5, 5, 1, false), {{"window", 1}}) ==
        std::vector<int64_t>{0b00011, 0b00111, 0b01110, 0b11100, 0b11000});
  CHECK(visible_sets(heads_problem(1, 1, 1, 5, 5, 1, false), {{"window", 0}, {"right", 2}}) ==
        std::vector<int64_t>{0b00111, 0b01110, 0b11100, 0b11000, 0b10000});
  CHECK(visible_sets(heads_problem(1, 1, 1, 5, 5, 1, true), {{"window", 1}, {"sinks", 2}}) ==
        std::vector<int64_t>{0b00001, 0b00011, 0b00111, 0b01111, 0b11011});
  // Three queries at the end of five keys.
  CHECK(visible_sets(heads_problem(1, 1, 1, 3, 5, 1, true), {{"window", 1}}) ==
        std::vector<int64_t>{0b00110, 0b01100, 0b11000});
}

TEST_CASE("sliding_window agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool causal = GENERATE(false, true);
  const int64_t block_size = GENERATE(0, 16);
  const int64_t sinks = GENERATE(0, 3);
  SECTION("sizes that divide nothing, grouped heads, batch 2") {
    Trial t = make_trial("sliding_window", heads_problem(2, 6, 2, 133, 133, 24, causal, dtype),
                         {{"window", 21}, {"sinks", sinks}, {"block_size", block_size}});
    check_trial(t, 3);
  }
  SECTION("more keys than queries") {
    Trial t = make_trial("sliding_window", heads_problem(1, 2, 1, 19, 71, 16, causal, dtype),
                         {{"window", 9}, {"sinks", sinks}, {"block_size", block_size}});
    check_trial(t, 3);
  }
  SECTION("more queries than keys: the first see sinks or nothing") {
    Trial t = make_trial("sliding_window", heads_problem(1, 2, 2, 71, 19, 16, causal, dtype),
                         {{"window", 9}, {"sinks", sinks}, {"block_size", block_size}});
    check_trial(t, 3);
  }
  SECTION("its own key alone") {
    Trial t = make_trial("sliding_window", heads_problem(1, 1, 1, 40, 40, 8, causal, dtype),
                         {{"window", 0}, {"sinks", sinks}, {"block_size", block_size}});
    check_trial(t, 3);
    if (sinks == 0)
      CHECK(compare(t.output("o"), to_reference(t.instance->inputs().at("v"))).relative_l2 <=
            epsilon_of(dtype));
  }
  SECTION("one token") {
    Trial t = make_trial("sliding_window", heads_problem(1, 1, 1, 1, 1, 8, causal, dtype),
                         {{"sinks", sinks}, {"block_size", block_size}});
    check_trial(t, 3);
  }
}

TEST_CASE("sliding_window with different sides") {
  Trial t =
      make_trial("sliding_window", heads_problem(1, 2, 2, 61, 61, 8, false), {{"window", 2}, {"right", 11}});
  check_trial(t, 3);
}

TEST_CASE("a window beyond the sequence is dense attention") {
  const bool causal = GENERATE(false, true);
  const Problem p = heads_problem(1, 2, 1, 50, 50, 16, causal);
  Trial window = make_trial("sliding_window", p, {{"window", INT64_MAX}}), dense = make_trial("dense", p);
  check_trial(window, 3);
  dense.run();
  CHECK(window.instance->cost().cost.matmul == dense.instance->cost().cost.matmul);
  CHECK(compare(window.output("o"), dense.output("o")).relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("sliding_window cost: closed form of the causal band") {
  // w + 1 keys a query, less the triangle that the start cuts off.
  const int64_t n = 300, w = 31, d = 8;
  Trial t = make_trial("sliding_window", heads_problem(1, 1, 1, n, n, d, true), {{"window", w}});
  CHECK(t.instance->cost().cost.matmul == 4 * d * (n * (w + 1) - w * (w + 1) / 2));
}

TEST_CASE("sliding_window rows, entropies and pairs describe the same weights") {
  Trial t = make_trial("sliding_window", heads_problem(2, 4, 2, 37, 50, 16, GENERATE(false, true)),
                       {{"window", 6}, {"sinks", 2}, {"block_size", GENERATE(0, 8)}});
  check_rows_and_stats(t);
}

TEST_CASE("sliding_window refuses contradictions") {
  const Problem p = heads_problem(1, 2, 2, 8, 8, 4, true);
  CHECK_THROWS_WITH(make_trial("sliding_window", p, {{"right", 1}}), ContainsSubstring("causal"));
  CHECK_NOTHROW(make_trial("sliding_window", p, {{"right", 0}}));
  CHECK_THROWS_AS(make_trial("sliding_window", p, {{"window", -1}}), UsageError);
}
