// FlexPrefill: the reference by the card's degenerate cases, the method against it, budgets, errors.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem prefill(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n, int64_t d,
                DType dtype = DType::f32) {
  return heads_problem(batch, heads, kv_heads, n, n, d, true, dtype);
}

/// Small blocks and budgets, so that short sequences select.
ParamMap small(std::initializer_list<std::pair<const std::string, Value>> more = {}) {
  ParamMap m{{"block_size", 16}, {"min_budget", 16}, {"budget_unit", 16}, {"gamma", 0.5}};
  for (const auto& [key, value] : more) m[key] = value;
  return m;
}

/// Queries and keys with a few strong columns and a strong diagonal, so that heads differ.
void structure(Trial& t, double column) {
  const Shape qs = t.instance->inputs().at("q").shape(), ks = t.instance->inputs().at("k").shape();
  RefTensor q = to_reference(t.instance->inputs().at("q")), k = to_reference(t.instance->inputs().at("k"));
  for (int64_t i = 0; i < q.numel(); i += qs[3]) q[i] += column;
  for (int64_t i = 0; i < k.numel(); i += ks[3])
    if (i / ks[3] / ks[2] % 37 == 5) k[i] += column;
  rebind(t, {{"q", host_tensor(*t.ctx, qs, q.data, t.problem.dtype)},
             {"k", host_tensor(*t.ctx, ks, k.data, t.problem.dtype)}});
}

}  // namespace

TEST_CASE("flexprefill agrees with its reference, and its formula with the ledger given the selection") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  SECTION("vertical and slash lines, sizes that divide nothing") {
    Trial t = make_trial("flexprefill", prefill(2, 4, 2, 203, 16, dtype), small({{"tau", 0.0}}));
    structure(t, 3);
    check_trial(t, 3);
    CHECK(t.output("query_aware").data == std::vector<double>(8, 0.0));
  }
  SECTION("query-aware heads") {
    Trial t =
        make_trial("flexprefill", prefill(2, 4, 2, 203, 16, dtype), small({{"tau", 0.84}, {"gamma", 0.6}}));
    check_trial(t, 3);
    CHECK(t.output("query_aware").data == std::vector<double>(8, 1.0));
  }
  SECTION("both kinds, interleaved heads, a maximum, the inclusive rule, its own scale") {
    Trial t = make_trial("flexprefill", prefill(1, 6, 2, 150, 8, dtype),
                         small({{"tau", 0.35},
                                {"gqa_interleave", true},
                                {"max_budget", 40},
                                {"cover_inclusive", true},
                                {"softmax_scale", 0.2}}));
    structure(t, 2);
    check_trial(t, 3);
  }
  SECTION("short prompts and one query are dense") {
    Trial t = make_trial("flexprefill", prefill(1, 4, 2, 32, 8, dtype), small());
    check_trial(t, 3);
    CHECK(t.instance->outputs().size() == 1);
    Trial one = make_trial("flexprefill", heads_problem(2, 4, 2, 1, 77, 8, true, dtype), small());
    check_trial(one, 3);
  }
  SECTION("fewer tokens than a block") {
    Trial t =
        make_trial("flexprefill", prefill(1, 2, 1, 11, 8, dtype), small({{"force_dense_below", false}}));
    check_trial(t, 3);
  }
}

TEST_CASE("flexprefill that keeps all lines is dense attention") {
  const double tau = GENERATE(0.0, 0.84);
  Trial t = make_trial("flexprefill", prefill(1, 4, 2, 133, 8), small({{"gamma", 2.0}, {"tau", tau}}));
  check_trial(t, 3);
  Trial dense = make_trial("flexprefill", prefill(1, 4, 2, 133, 8), {{"block_size", 128}});
  dense.run();
  REQUIRE(dense.instance->outputs().size() == 1);
  CHECK(compare(t.output("out"), dense.output("out")).relative_l2 < tolerance(DType::f32, 0));
}

TEST_CASE("flexprefill with one line of each kind: the first block and the own one") {
  Trial t = make_trial("flexprefill", prefill(1, 2, 1, 130, 8), small({{"tau", 0.0}, {"max_budget", 16}}));
  check_trial(t, 3);
  const RefTensor selected = t.output("selected");
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 9; ++i)
      for (int64_t c = 0; c < 9; ++c) CHECK(selected[(h * 9 + i) * 9 + c] == (c == 0 || c == i ? 1.0 : 0.0));
}

TEST_CASE("flexprefill distance: constant keys in blocks and one query predict the probe exactly") {
  // N % b = 0, identical query rows; the causal cut inside the last block is what remains of the difference.
  Trial t = make_trial("flexprefill", prefill(1, 1, 1, 64, 4), small());
  std::vector<double> q, k;
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t d = 0; d < 4; ++d)
      q.push_back(d == 0 ? 1 : 0), k.push_back(d == 0 ? -static_cast<double>(i / 16 == 3) * 40 : 0.1);
  rebind(t, {{"q", host_tensor(*t.ctx, {1, 64, 1, 4}, q)}, {"k", host_tensor(*t.ctx, {1, 64, 1, 4}, k)}});
  t.run();
  // The last block has e^-20 of the mass, so its cut does not show.
  CHECK(t.output("d")[0] < 1e-4);
}

TEST_CASE("flexprefill rows, entropies and pairs describe the selected blocks") {
  Trial t = make_trial("flexprefill", prefill(2, 4, 2, 70, 8), small({{"tau", 0.3}}));
  check_rows_and_stats(t);
}

TEST_CASE("flexprefill refuses what it does not define") {
  Problem p = prefill(1, 2, 1, 64, 8);
  p.causal = false;
  CHECK_THROWS_AS(make_trial("flexprefill", p), Unsupported);
  CHECK_THROWS_WITH(make_trial("flexprefill", heads_problem(1, 2, 1, 8, 16, 8, true)),
                    ContainsSubstring("8 and 16"));
  CHECK_THROWS_AS(make_trial("flexprefill", prefill(1, 2, 1, 64, 8), {{"tau", 1.0}}), UsageError);
  CHECK_THROWS_AS(make_trial("flexprefill", prefill(1, 2, 1, 64, 8), {{"gamma", 0.0}}), UsageError);
}
