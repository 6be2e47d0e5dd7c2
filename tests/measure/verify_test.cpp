#include "measure/verify.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inputs/inputs.hpp"
#include "tests/catch.hpp"
#include "tests/measure/fakes.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;

namespace {
Problem sequence(int64_t batch, int64_t length) {
  Problem p;
  p.batch = batch;
  p.length = length;
  return p;
}

/// Runs the method once over poison and verifies it.
VerifyOutcome verified(const Method& m, const Problem& p, const std::map<std::string, Value>& given,
                       const VerifyOptions& options = {}) {
  Context ctx(cpu_backend(), 1);
  const Params params = resolve_params(m.info().id, m.info().params, given, p);
  const auto instance = m.make(ctx, p, params);
  fill_instance(ctx, *instance, p);
  poison(ctx, instance->outputs());
  instance->run(ctx);
  return verify_case(ctx, m, *instance, p, given, options);
}
/// Says that 0.4 s have gone by, whenever it is asked.
class Ticking final : public Clock {
 public:
  double now_s() override { return t += 0.4; }
  double resolution_s() const override { return 1e-9; }
  double overhead_s() const override { return 0; }
  double t = 0;
};
}  // namespace

TEST_CASE("a right result passes at its own shape") {
  const VerifyOutcome v = verified(fake::doubler(), sequence(3, 17), {});
  CHECK(v.checked);
  CHECK(v.result.passed);
  CHECK(v.result.how == "own shape");
  CHECK(v.result.tolerance == 1e-5);
  REQUIRE(v.result.relative_l2.size() == 2);
  CHECK(v.result.relative_l2.at("out") == 0.0);
  CHECK(v.result.relative_l2.at("total") < 1e-5);
  CHECK(v.result.worst.empty());
}

TEST_CASE("a wrong element fails with its place") {
  const VerifyOutcome v = verified(fake::doubler(), sequence(3, 17), {{"fault", "wrong"}});
  CHECK(v.checked);
  CHECK_FALSE(v.result.passed);
  CHECK(v.result.relative_l2.at("out") > 1e-3);
  CHECK_THAT(v.result.worst, ContainsSubstring("out[1, 8]: "));
  CHECK_THAT(v.result.worst, ContainsSubstring(" instead of "));
}

TEST_CASE("what is never written cannot pass for a result") {
  const VerifyOutcome v = verified(fake::doubler(), sequence(3, 17), {{"fault", "lazy"}});
  CHECK_FALSE(v.result.passed);
  CHECK(std::isinf(v.result.relative_l2.at("out")));
  CHECK_THAT(v.result.worst, ContainsSubstring("out[2, 16]: "));
}

TEST_CASE("NaN matches only NaN") {
  CHECK_FALSE(verified(fake::doubler(), sequence(1, 5), {{"fault", "nan"}}).result.passed);
}

TEST_CASE("a near tie in the reference asks for other inputs; a wrong choice still fails") {
  // The gap between the first seed's values, so that x[0] ties with x[1] + gap there.
  Context ctx(cpu_backend(), 1);
  const TensorSpec x{"x", {1, 2}, DType::f32, Init::normal(), false, ""};
  const Problem p = sequence(1, 2);
  const Tensor drawn = make_tensor(ctx, x, p.seed, MemoryClass::input);
  const double gap =
      static_cast<double>(drawn.data<float>()[0]) - static_cast<double>(drawn.data<float>()[1]);
  const VerifyOutcome v = verified(fake::chooser(), p, {{"gap", gap}});
  CHECK(v.checked);
  CHECK(v.result.passed);
  CHECK(v.result.how == "own shape; seed 1: rounding decides before it");
  const VerifyOutcome wrong = verified(fake::chooser(), p, {{"gap", gap}, {"inverted", true}});
  CHECK(wrong.checked);
  CHECK_FALSE(wrong.result.passed);
  // No tie near: nothing is drawn again for a wrong answer.
  const VerifyOutcome plain = verified(fake::chooser(), p, {{"gap", gap + 0.5}, {"inverted", true}});
  CHECK_FALSE(plain.result.passed);
  CHECK(plain.result.how == "own shape");
}

TEST_CASE("poison covers floats and integers, views included") {
  Context ctx(cpu_backend(), 1);
  for (const DType t : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    const Tensor a = ctx.allocate(t, {3, 5});
    std::memset(a.raw(), 0, static_cast<size_t>(a.nbytes()));
    poison(ctx, {{"a", a}});
    CHECK(count_nan(ctx, {{"a", a}}) == 15);
  }
  const Tensor i = ctx.allocate(DType::i32, {4});
  std::memset(i.raw(), 0, 16);
  poison(ctx, {{"i", i}});
  CHECK(*std::min_element(i.data<int32_t>(), i.data<int32_t>() + 4) > 1000000);
  const Tensor whole = ctx.allocate(DType::f32, {4, 6});
  std::memset(whole.raw(), 0, static_cast<size_t>(whole.nbytes()));
  poison(ctx, {{"view", whole.transpose(0, 1).slice(1, 1, 3)}});
  CHECK(count_nan(ctx, {{"whole", whole}}) == 12);
}

TEST_CASE("without a reference nothing is checked, and it says so") {
  const VerifyOutcome v = verified(fake::unchecked(), sequence(1, 4), {});
  CHECK_FALSE(v.checked);
  CHECK_FALSE(v.result.passed);
  CHECK_THAT(v.result.how, ContainsSubstring("no double-precision reference"));
}

TEST_CASE("a slow reference is run at a reduced shape, which is stated") {
  // 4 x 8 x 4096^2 pairs would take seconds by the guess; each halving is timed by a clock that says 0.4 s.
  Ticking clock;
  VerifyOptions o;
  o.clock = &clock;
  const VerifyOutcome v = verified(fake::doubler(), sequence(8, 4096), {}, o);
  CHECK(v.checked);
  CHECK(v.result.passed);
  CHECK(v.result.how.starts_with("reduced shape: sequence batch 2, length "));
  // A fault that only shows at the own shape's middle is in every shape here, so it is found at any.
  const VerifyOutcome bad = verified(fake::doubler(), sequence(8, 4096), {{"fault", "wrong"}}, o);
  CHECK_FALSE(bad.result.passed);
  CHECK(bad.result.how.starts_with("reduced shape"));
}

TEST_CASE("sizes refused only once the tensors are known give way to the next larger one") {
  Ticking clock;
  VerifyOptions o;
  o.clock = &clock;
  o.budget_s = 0.5;  // the first shape that runs took most of it
  const VerifyOutcome v = verified(fake::doubler(), sequence(8, 4096), {{"least", 4096}}, o);
  CHECK(v.checked);
  CHECK(v.result.passed);
  CHECK_THAT(v.result.how, ContainsSubstring("reduced shape: sequence batch 2, length 4096"));
  const VerifyOutcome bad =
      verified(fake::doubler(), sequence(8, 4096), {{"least", 4096}, {"fault", "wrong"}}, o);
  CHECK(bad.checked);
  CHECK_FALSE(bad.result.passed);
  // Every smaller one refused: its own shape.
  CHECK(verified(fake::doubler(), sequence(8, 4096), {{"least", 5000}}, o).result.how == "own shape");
}

TEST_CASE("a reference that turns out quick is followed up to the own shape") {
  attnbench::mock::MockClock still;
  VerifyOptions o;
  o.clock = &still;
  CHECK(verified(fake::doubler(), sequence(8, 4096), {}, o).result.how == "own shape");
}

TEST_CASE("shapes shrink as the method accepts: batch first, to two, then lengths, then to one") {
  const std::vector<Problem> chain = reduced_problems(fake::doubler(), sequence(16, 64), {{"divisor", 16}});
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (const Problem& p : chain) shapes.emplace_back(p.batch, p.length);
  CHECK(shapes == std::vector<std::pair<int64_t, int64_t>>{
                      {16, 64}, {8, 64}, {4, 64}, {2, 64}, {2, 32}, {2, 16}, {1, 16}});
}

TEST_CASE("a case beyond every budget stays unverified") {
  VerifyOptions o;
  o.budget_s = 1e-12;
  const VerifyOutcome v = verified(fake::doubler(), sequence(2, 64), {{"divisor", 64}}, o);
  CHECK_FALSE(v.checked);
  CHECK_THAT(v.result.how, ContainsSubstring("not verified: the reference would need"));
}

namespace {
Problem in_heads(int64_t batch, int64_t heads, int64_t length) {
  Problem p = sequence(batch, length);
  p.heads = heads, p.head_dim = 4;
  return p;
}
/// Beyond the budget by the guess, so that rows are sampled: no shape is small enough for it.
VerifyOptions hurried() {
  static Ticking clock;
  VerifyOptions o;
  o.clock = &clock;
  o.budget_s = 1e-9, o.refuse_budgets = 1e10;
  return o;
}
/// As above, but every reduced shape is refused as well.
VerifyOptions only_rows() {
  VerifyOptions o = hurried();
  o.budget_s = 1e-12;
  static attnbench::mock::MockClock still;
  o.clock = &still;
  o.refuse_budgets = 1;
  return o;
}
}  // namespace

TEST_CASE("where all rows would take too long, a sample is compared at the own shape and says so") {
  const VerifyOutcome v = verified(fake::row_doubler(), in_heads(2, 3, 4096), {}, hurried());
  CHECK(v.checked);
  CHECK(v.result.passed);
  REQUIRE(v.result.sampled);
  CHECK(v.result.sampled->of == 2 * 3 * 4096);
  CHECK(v.result.sampled->rows >= 2 + 2 * 6);
  CHECK(v.result.sampled->rows < v.result.sampled->of);
  CHECK_THAT(v.result.how,
             ContainsSubstring(" of 24576 rows at its own shape; whole at the reduced shape: "));
  // Enough time: whole.
  CHECK_FALSE(verified(fake::row_doubler(), in_heads(2, 3, 64), {}, {}).result.sampled);
  // A reference that is no rows stays as it was.
  CHECK_FALSE(verified(fake::doubler(), sequence(8, 4096), {}, hurried()).result.sampled);
}

TEST_CASE("a sample alone verifies a case that no reduced shape could") {
  Ticking clock;
  VerifyOptions o = only_rows();
  o.clock = &clock;
  const VerifyOutcome v = verified(fake::row_doubler(), in_heads(1, 3, 512), {}, o);
  CHECK(v.checked);
  CHECK(v.result.passed);
  CHECK(v.result.sampled);
  CHECK(v.result.how == "sampled: 8 of 1536 rows at its own shape");
  // More heads than rows that fit into all that is allowed: no verification.
  const VerifyOutcome few = verified(fake::row_doubler(), in_heads(8, 3, 512), {}, o);
  CHECK_FALSE(few.checked);
  CHECK_THAT(few.result.how, ContainsSubstring("the 50 rows that a sample must have do not fit"));
}

TEST_CASE("a sample catches what is wrong in one head") {
  for (int64_t head = 0; head < 6; ++head) {
    // The reduced shapes have fewer heads: those pass.
    const VerifyOutcome v =
        verified(fake::row_doubler(), in_heads(2, 3, 4096), {{"fault", "head"}, {"at", head}}, hurried());
    CHECK(v.checked);
    CHECK_FALSE(v.result.passed);
    CHECK_THAT(v.result.worst, ContainsSubstring("o["));
  }
}

TEST_CASE("a sample catches one wrong row at the end, and a wrong border of a tile") {
  const int64_t last = 2 * 3 * 4096 - 1;
  const VerifyOutcome end =
      verified(fake::row_doubler(), in_heads(2, 3, 4096), {{"fault", "lone_row"}, {"at", last}}, hurried());
  CHECK_FALSE(end.result.passed);
  CHECK_THAT(end.result.worst, ContainsSubstring("o[1, 2, 4095, "));
  VerifyOptions o = only_rows();
  o.budget_s = 1e-7;  // rows cost no time by this clock: all are taken
  const VerifyOutcome border =
      verified(fake::row_doubler(), in_heads(2, 3, 4096), {{"fault", "row"}, {"at", 48}}, o);
  CHECK_FALSE(border.result.passed);
}

TEST_CASE("one wrong row among many fails by itself where the error of all is small") {
  // bf16 allows 2e-2 of all rows: one in 24576 that is off by 200% moves it by 1.3e-2.
  Problem p = in_heads(2, 3, 4096);
  p.dtype = DType::bf16;
  VerifyOptions o = only_rows();
  o.budget_s = 1e-7;
  const VerifyOutcome v = verified(fake::row_doubler(), p, {{"fault", "lone_row"}, {"at", int64_t{7777}}}, o);
  CHECK(v.result.how == "own shape");  // all rows fit
  CHECK(v.result.relative_l2.at("o") < 2e-2);
  CHECK_FALSE(v.result.passed);
  CHECK_THAT(v.result.worst, ContainsSubstring("in a row that is off by more than 4 tolerances by itself"));
}

TEST_CASE("rows of a reference are those of the whole") {
  const std::vector<std::string> methods = {"dense",
                                            "sliding_window",
                                            "random_blocks",
                                            "power_attention",
                                            "radial_attention",
                                            "neighborhood_attention",
                                            "generalized_neighborhood_attention"};
  for (const std::string& id : methods) {
    CAPTURE(id);
    const Method& m = find_method(id);
    const Problem& p = m.info().example;
    const Params params = resolve_params(id, m.info().params, m.info().example_params, p);
    Context ctx(cpu_backend(), 1);
    const auto instance = m.make(ctx, p, params);
    fill_instance(ctx, *instance, p);
    const RefMap in = to_reference(instance->inputs()), w = to_reference(instance->weights());
    const RefMap whole = find_reference(id)(p, params, in, w);
    REQUIRE(find_row_reference(id));
    const RefTensor& all = whole.at("o");
    const int64_t width = all.shape.back(), last = all.numel() / width - 1;
    const std::vector<int64_t> rows{last, 0, last / 3, last / 2};
    const RefMap some = find_row_reference(id)(p, params, in, w, rows);
    for (size_t r = 0; r < rows.size(); ++r)
      for (int64_t c = 0; c < width; ++c)
        CHECK(some.at("o")[static_cast<int64_t>(r) * width + c] == all[rows[r] * width + c]);
  }
}

TEST_CASE("odd batches and heads are rounded up, key heads shrink with their groups") {
  const auto heads_of = [](const Problem& p) {
    std::vector<std::pair<int64_t, int64_t>> v;
    for (const Problem& q : reduced_problems(find_method("dense"), p, {}))
      v.emplace_back(q.heads, q.kv_heads);
    v.erase(std::unique(v.begin(), v.end()), v.end());
    return v;
  };
  using Chain = std::vector<std::pair<int64_t, int64_t>>;
  CHECK(heads_of(in_heads(1, 24, 8)) == Chain{{24, 0}, {12, 0}, {6, 0}, {3, 0}, {2, 0}, {1, 0}});
  CHECK(heads_of(in_heads(1, 7, 8)) == Chain{{7, 0}, {4, 0}, {2, 0}, {1, 0}});
  Problem grouped = in_heads(5, 12, 8);
  grouped.kv_heads = 3;
  CHECK(heads_of(grouped) == Chain{{12, 3}, {8, 2}, {4, 1}, {2, 1}, {1, 1}});
  std::vector<int64_t> batches;
  for (const Problem& q : reduced_problems(find_method("dense"), grouped, {})) batches.push_back(q.batch);
  batches.erase(std::unique(batches.begin(), batches.end()), batches.end());
  CHECK(batches == std::vector<int64_t>{5, 3, 2, 1});
}

TEST_CASE("a method is verified at its example and the variations that it takes") {
  Context ctx(cpu_backend(), 1);
  const std::vector<MethodCheck> rows = verify_method(ctx, fake::doubler(), DType::f32);
  std::vector<std::string> names;
  for (const MethodCheck& r : rows) {
    names.push_back(r.variation);
    CHECK(r.status == CaseStatus::ok);
    CHECK(r.outcome.result.passed);
  }
  CHECK(names == std::vector<std::string>{"example", "batch of three", "odd sizes", "one token"});
  const std::vector<MethodCheck> no = verify_method(ctx, fake::doubler(), DType::bf16);
  REQUIRE(no.size() == 1);
  CHECK(no[0].status == CaseStatus::unsupported);
  CHECK_THAT(no[0].reason, ContainsSubstring("does not run in bf16"));
  CHECK(verify_method(ctx, fake::unchecked(), DType::f32)[0].status == CaseStatus::unverified);
}

TEST_CASE("tolerances are the stated ones") {
  CHECK(tolerance_of(DType::f32) == 1e-5);
  CHECK(tolerance_of(DType::bf16) == 2e-2);
  CHECK(tolerance_of(DType::f16) == 4e-3);
  CHECK_THROWS_AS(tolerance_of(DType::i32), UsageError);
}
