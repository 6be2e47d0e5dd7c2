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
