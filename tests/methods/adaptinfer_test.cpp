// AdaptInfer: scores by hand, the method against its reference, the card's degenerate cases and counters.
#include <cmath>

#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

Problem prefill(int64_t batch, int64_t heads, int64_t n, int64_t d, DType dtype = DType::f32,
                int64_t kv_heads = 0, bool causal = true) {
  return heads_problem(batch, heads, kv_heads ? kv_heads : heads, n, n, d, causal, dtype);
}

ParamMap parts(int64_t p, int64_t v, int64_t t, Value keep, ParamMap more = {}) {
  more["prompt_tokens"] = p;
  more["vision_tokens"] = v;
  more["text_tokens"] = t;
  more["keep"] = Value::List{std::move(keep)};
  return more;
}

void check(Trial& t) {
  t.run();
  const RefMap want = t.reference();
  for (const auto& [name, tensor] : t.instance->outputs()) {
    INFO(t.problem.str() << ", " << name);
    REQUIRE(want.contains(name));
    REQUIRE(to_reference(tensor).shape == want.at(name).shape);
    const Comparison c = compare(to_reference(tensor), want.at(name));
    INFO(c.worst);
    // Products of two probabilities, each of a softmax over scores in f32.
    CHECK(c.relative_l2 <= (name == "scores" ? 64 * epsilon_of(DType::f32) : 0));
  }
  const Cost counted = t.ctx->cost().total(), formula = t.instance->cost().cost;
  CHECK(counted.matmul == formula.matmul);
  CHECK(counted.special == formula.special);
  if (t.instance->cost().data_dependent) return;
  CHECK(counted.elementwise == formula.elementwise);
  CHECK(counted.bytes_read == formula.bytes_read);
  CHECK(counted.bytes_written == formula.bytes_written);
}

RefMap reference(const Problem& p, const ParamMap& given, RefMap inputs) {
  return find_reference("adaptinfer")(p, params_of("adaptinfer", p, given), inputs, {});
}

}  // namespace

TEST_CASE("AdaptInfer's scores, by hand") {
  // Equal keys: row i of the map is uniform over its i + 1 tokens. P 1, V 2, T 2: rows of 4 and 5 tokens.
  // M = [1/4 0; 1/5 1/5], S = [1/4 1/5; 1/5 1/5], w = (9/20, 8/20); X rows 1/4 and 1/5.
  const Problem p = prefill(1, 1, 5, 2);
  const RefTensor zero({1, 1, 5, 2});
  const RefMap out = reference(p, parts(1, 2, 2, 1), {{"q", zero}, {"k", zero}});
  for (int64_t v = 0; v < 2; ++v) CHECK(out.at("scores")[v] == Approx(0.45 * 0.25 + 0.4 * 0.2));
  CHECK(out.at("kept").data == std::vector<double>{0});  // ties: the lower index
  CHECK(out.at("kept_tokens").data == std::vector<double>{0, 1, 3, 4});
  // lb 0: all weights 0.85 / 2 a column.
  const RefMap flat = reference(p, parts(1, 2, 2, 1, {{"lb", 0}}), {{"q", zero}, {"k", zero}});
  CHECK(flat.at("scores")[0] == Approx(0.425 * 0.45));
}

TEST_CASE("adaptinfer agrees with its reference, and its formula with the ledger") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f16);
  const char* impl = GENERATE("fused_plus_rows", "full_map");
  SECTION("batch 2, grouped heads") {
    Trial t = make_trial("adaptinfer", prefill(2, 6, 62, 16, dtype, 2),
                         parts(5, 48, 9, 20, {{"attention_impl", impl}, {"lb", GENERATE(1.0, 0.4, 0.0)}}));
    check(t);
  }
  SECTION("shares, one head, no prompt, not causal") {
    Trial t = make_trial("adaptinfer", prefill(1, 1, 41, 8, dtype, 1, false),
                         parts(0, 34, 7, 0.3, {{"attention_impl", impl}, {"allow_full", true}}));
    check(t);
  }
  SECTION("nothing kept; one text token") {
    Trial t =
        make_trial("adaptinfer", prefill(2, 3, 30, 8, dtype), parts(4, 25, 1, 0, {{"attention_impl", impl}}));
    check(t);
  }
  SECTION("every head alike") {
    Trial t = make_trial("adaptinfer", prefill(2, 4, 50, 8, dtype, 2),
                         parts(3, 36, 11, 0.4, {{"attention_impl", impl}, {"scorer", "uniform"}}));
    check(t);
  }
  SECTION("raters, one and two batch elements") {
    Problem p = prefill(GENERATE(1, 2), 4, 50, 8, dtype);
    p.channels = 12;
    Trial t = make_trial("adaptinfer", p,
                         parts(3, 36, 11, 10, {{"attention_impl", impl}, {"scorer", "selected_text"}}));
    check(t);
  }
}

TEST_CASE("AdaptInfer's degenerate cases") {
  const Problem p = prefill(1, 3, 40, 8);
  SECTION("2: scores are linear in lb, and lb 0 weighs all text rows alike") {
    const auto scores = [&](double lb) {
      Trial t = make_trial("adaptinfer", p, parts(2, 30, 8, 12, {{"lb", lb}}));
      t.run();
      return t.output("scores");
    };
    const RefTensor one = scores(1), none = scores(0), some = scores(0.25);
    for (int64_t v = 0; v < 30; ++v) CHECK(some[v] == Approx(0.25 * one[v] + 0.75 * none[v]).epsilon(1e-4));
    // The unweighted sum of the text's attention, from rows that dense attention reports.
    Trial dense = make_trial("dense", p);
    Trial t = make_trial("adaptinfer", p, parts(2, 30, 8, 12));
    rebind(dense, {{"q", t.instance->inputs().at("q")}, {"k", t.instance->inputs().at("k")}});
    std::vector<double> sum(30, 0);
    std::vector<float> rows;
    for (int64_t h = 0; h < 3; ++h) {
      REQUIRE(dense.instance->rows(*dense.ctx, 0, h, 32, 40, rows));
      for (int64_t i = 0; i < 8; ++i)
        for (int64_t v = 0; v < 30; ++v)
          sum[static_cast<size_t>(v)] += static_cast<double>(rows[static_cast<size_t>(i * 40 + 2 + v)]);
    }
    for (int64_t v = 1; v < 30; ++v)
      CHECK(none[v] / none[0] == Approx(sum[static_cast<size_t>(v)] / sum[0]).epsilon(1e-4));
  }
  SECTION("4: nothing kept: prompt and text alone") {
    Trial t = make_trial("adaptinfer", p, parts(2, 30, 8, 0));
    t.run();
    CHECK(t.output("kept_tokens").data == std::vector<double>{0, 1, 32, 33, 34, 35, 36, 37, 38, 39});
  }
  SECTION("5: equal vision keys: the first are kept") {
    Trial t = make_trial("adaptinfer", p, parts(2, 30, 8, 4));
    RefTensor k = to_reference(t.instance->inputs().at("k"));
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t v = 0; v < 30; ++v)
        for (int64_t c = 0; c < 8; ++c) k[(h * 40 + 2 + v) * 8 + c] = k[(h * 40 + 2) * 8 + c];
    rebind(t, {{"k", host_tensor(*t.ctx, {1, 3, 40, 8}, k.data)}});
    t.run();
    CHECK(t.output("kept").data == std::vector<double>{0, 1, 2, 3});
  }
  SECTION("the cap of V - 1, and shares") {
    const auto kept = [&](Value keep, bool full) {
      return make_trial("adaptinfer", p, parts(2, 30, 8, std::move(keep), {{"allow_full", full}}))
          .instance->outputs()
          .at("kept")
          .dim(1);
    };
    CHECK(kept(30, false) == 29);
    CHECK(kept(30, true) == 30);
    CHECK(kept(99, true) == 30);
    CHECK(kept(1.0, false) == 29);
    CHECK(kept(0.5, false) == 15);
    CHECK(kept(0.01, false) == 1);
  }
}

TEST_CASE("the prefill stack's MACs are the card's") {
  // d 4096, m 11008, 32 layers, 664 tokens.
  Problem p = prefill(1, 32, 664, 128);
  Context ctx(cpu_backend(), 1);
  const Method& m = find_method("adaptinfer");
  const auto tera = [&](const ParamMap& given) {
    return static_cast<double>(m.make(ctx, p, resolve_params("adaptinfer", m.info().params, given, p))
                                   ->cost()
                                   .published_macs) *
           1e-12;
  };
  const Value::List all{Value(576), Value(576), Value(576)};
  CHECK(tera({{"keep", all}, {"allow_full", true}}) == Approx(4.416).margin(0.0005));
  CHECK(tera({{"budget", "128"}}) == Approx(1.538).margin(0.0005));
  CHECK(tera({{"budget", "64"}}) == Approx(1.119).margin(0.0005));
  CHECK(tera({{"budget", "48"}}) == Approx(1.013).margin(0.0005));
  CHECK(tera({{"budget", "32"}}) == Approx(0.910).margin(0.0005));
}

TEST_CASE("adaptinfer says what does not fit") {
  const Problem p = prefill(1, 2, 20, 8);
  CHECK_THROWS_WITH(make_trial("adaptinfer", p, parts(2, 10, 9, 3)), ContainsSubstring("make 21 tokens"));
  CHECK_THROWS_WITH(make_trial("adaptinfer", p, parts(2, 10, 8, 1.5)), ContainsSubstring("1.5"));
  CHECK_THROWS_WITH(
      make_trial("adaptinfer", p,
                 {{"prompt_tokens", 2}, {"vision_tokens", 10}, {"text_tokens", 8}, {"budget", "custom"}}),
      ContainsSubstring("custom"));
  CHECK_THROWS_WITH(
      make_trial("adaptinfer", p, parts(2, 10, 8, 3, {{"prune_layers", Value::List{Value(5), Value(5)}}})),
      ContainsSubstring("prune_layers"));
}
