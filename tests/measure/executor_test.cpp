#include "measure/executor.hpp"

#include <numeric>

#include "analysis/analysis.hpp"
#include "measure/runner.hpp"
#include "tests/catch.hpp"
#include "tests/measure/fakes.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;

namespace {
Case fake_case(const std::string& name, std::map<std::string, Value> params = {}) {
  fake::doubler();
  Case c;
  c.name = c.base_name = name;
  c.method = "fake_doubler";
  c.device = "cpu";
  c.params = std::move(params);
  c.problem.batch = 3;
  c.problem.length = 1001;
  return c;
}

class SumOfOutputs final : public Analysis {
 public:
  const AnalysisInfo& info() const override {
    static const AnalysisInfo i = [] {
      AnalysisInfo x;
      x.id = "fake_sum";
      ParamSpec p;
      p.name = "scale";
      p.type = ParamSpec::Type::number;
      p.default_value = 1.0;
      x.params = {p};
      return x;
    }();
    return i;
  }
  AnalysisResult compute(Context&, Instance& instance, const Problem&, const Params& params) const override {
    AnalysisResult r;
    r.analysis = "fake_sum";
    const Tensor out = instance.outputs().at("out");
    r.scalars["sum"] =
        params.number("scale") * std::accumulate(out.data<float>(), out.data<float>() + out.numel(), 0.0);
    r.scalars["total"] = instance.outputs().at("total").data<float>()[0];
    return r;
  }
};
ATTNBENCH_ANALYSIS(SumOfOutputs);

/// Follows a chain through 8192 cache lines in scrambled order: each load waits for the one before, so a run
/// takes as long as the level of memory that holds the lines.
class Chaser final : public Method {
 public:
  Chaser() {
    info_.id = info_.card = "fake_chaser";
    info_.kinds = {ProblemKind::sequence};
    info_.dtypes = {DType::f32};
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context& ctx, const Problem&, const Params&) const override {
    return std::make_unique<Run>(ctx);
  }

 private:
  static constexpr int64_t kLines = 8192, kWords = 16;  // 512 KiB
  class Run final : public Instance {
   public:
    explicit Run(Context& ctx)
        : next_(ctx.allocate(DType::i32, {kLines, kWords})),
          out_(ctx.allocate(DType::i32, {1}, MemoryClass::output)) {
      // An odd multiplier and an odd step modulo a power of two visit every line once.
      for (int64_t i = 0; i < kLines; ++i)
        next_.data<int32_t>()[i * kWords] = static_cast<int32_t>((i * 4005 + 2731) % kLines);
    }
    void run(Context&) override {
      int32_t at = 0;
      for (int64_t i = 0; i < kLines; ++i) at = next_.data<int32_t>()[at * kWords];
      out_.data<int32_t>()[0] = at;
    }
    TensorMap outputs() const override { return {{"out", out_}}; }
    ClosedForm cost() const override { return {}; }

   private:
    Tensor next_, out_;
  };
  MethodInfo info_;
};
}  // namespace

TEST_CASE("stage times exclude inner stages and add up to the run") {
  attnbench::mock::MockClock clock;
  StageTimer t(clock, [] {});
  for (int run = 0; run < 3; ++run) {
    const double slow = run == 1 ? 100 : 1;  // one disturbed run does not move the medians
    t.begin_run();
    clock.now += 0.5;
    t.enter("attend");
    clock.now += 2 * slow;
    t.enter("select");
    clock.now += 3;
    t.leave("select");
    clock.now += 1;
    t.leave("attend");
    t.enter("select");
    clock.now += 4;
    t.leave("select");
    t.end_run();
  }
  const auto m = t.medians();
  REQUIRE(m.size() == 3);
  CHECK(m[0].first == "attend");
  CHECK(m[0].second == Approx(3));
  CHECK(m[1].first == "select");
  CHECK(m[1].second == Approx(7));
  CHECK(m[2].first.empty());
  CHECK(m[2].second == Approx(0.5));
}

TEST_CASE("accounting sees cost by stage, memory by class and poison") {
  SteadyClock clock;
  const auto e = make_executor(fake_case("A", {{"workspace", 4096}}), {&clock, 1, ""});
  CHECK(e->open(0) >= 0);
  const Accounting a = e->account();
  const int64_t n = 3003;
  CHECK(a.counted == a.form.cost);
  CHECK(a.by_stage.at("select").elementwise == n);
  CHECK(a.by_stage.at("attend").matmul == 2 * n);
  CHECK(a.memory.inputs == 4 * n);
  CHECK(a.memory.weights == 4);
  CHECK(a.memory.outputs == 4 * n + 4);
  CHECK(a.memory.workspace_peak == 4096);
  CHECK(a.memory.total_peak == 8 * n + 8 + 4096);
  CHECK(a.memory.rss_peak > 0);
  CHECK(a.nan_outputs == 0);
  CHECK(e->estimate().total() == a.memory.total_peak);
  CHECK(e->verify(1.0).result.passed);
  CHECK(e->run(100) > 0);
  const std::vector<StageTime> stages = e->profile(3);
  REQUIRE(stages.size() == 3);
  CHECK(stages[0].stage == "select");
  CHECK(stages[1].stage == "attend");
  CHECK(stages[1].median_s > 0);
  const AnalysisResult one = e->analyze("fake_sum", {}), three = e->analyze("fake_sum", {{"scale", 3.0}});
  CHECK(one.scalars.at("sum") == Approx(2 * one.scalars.at("total")).margin(1e-2));
  CHECK(three.scalars.at("sum") == Approx(3 * one.scalars.at("sum")));
  CHECK_THROWS_AS(e->analyze("fake_sum", {{"scael", 3.0}}), UsageError);
  e->close();
  e->close();

  const auto lazy = make_executor(fake_case("L", {{"fault", "lazy"}}), {&clock, 1, ""});
  lazy->open(0);
  CHECK(lazy->account().nan_outputs == 1);
}

TEST_CASE("the memory limit binds") {
  SteadyClock clock;
  const auto e = make_executor(fake_case("A", {{"workspace", 1 << 20}}), {&clock, 1, ""});
  e->open(1 << 19);
  CHECK_THROWS_AS(e->account(), OutOfMemory);
  e->close();
  CHECK_THROWS_AS(e->open(1000), OutOfMemory);
}

TEST_CASE("devices that cannot be measured say so") {
  SteadyClock clock;
  Case c = fake_case("A");
  c.device = "abacus";
  CHECK_THROWS_AS(make_executor(c, {&clock, 1, ""}), DeviceAbsent);
}

TEST_CASE("a suite of real cases runs end to end") {
  Suite s;
  s.name = "fakes";
  s.baseline = "base";
  s.measure.max_time_s = 0.3;
  s.measure.precision = 0.2;
  s.measure.threads = 1;
  s.analyses = {"fake_sum"};
  s.analysis_params["fake_sum"]["scale"] = 2.0;
  s.cases = {fake_case("base"), fake_case("same"), fake_case("wrong", {{"fault", "wrong"}}),
             fake_case("costly", {{"fault", "costly"}}), fake_case("big", {{"workspace", int64_t{1} << 40}})};
  s.cases.push_back(fake_case("unchecked"));
  s.cases.back().method = fake::unchecked().info().id;
  RunOptions o;
  o.roofline = RunOptions::RooflinePolicy::off;
  o.memory_limit = int64_t{1} << 30;
  attnbench::mock::Listener l;
  const RunResult r = run_suite(s, o, l);
  REQUIRE(r.cases.size() == 6);
  const CaseResult& same = mock::result_of(r, "same");
  CHECK(same.status == CaseStatus::ok);
  CHECK(same.verification->passed);
  CHECK(same.formula_matches);
  CHECK(same.parameters == 1);
  CHECK(same.memory->outputs == 4 * 3003 + 4);
  CHECK(same.params.at("fault") == Value("none"));
  REQUIRE(same.ratio);
  CHECK(same.ratio->value > 0.5);
  CHECK(same.ratio->value < 2.0);
  CHECK(same.time->median_s > 0);
  CHECK(same.time->iterations_per_sample > 1);
  CHECK(same.analyses.at(0).scalars.count("sum") == 1);
  CHECK(same.stages.size() >= 2);
  CHECK(mock::result_of(r, "wrong").status == CaseStatus::failed);
  CHECK_FALSE(mock::result_of(r, "wrong").time);
  CHECK_FALSE(mock::result_of(r, "costly").formula_matches);
  CHECK(mock::result_of(r, "big").status == CaseStatus::skipped);
  CHECK_THAT(mock::result_of(r, "big").reason, ContainsSubstring("1.0 TiB"));
  CHECK(mock::result_of(r, "unchecked").status == CaseStatus::unverified);
  CHECK(r.environment.machine_id.size() == 16);
  CHECK(r.started_at.size() == 20);
}

TEST_CASE("a cold sample really flushes") {
  static const bool registered = register_method(std::make_unique<Chaser>());
  REQUIRE(registered);
  SteadyClock clock;
  Case c = fake_case("A");
  c.method = "fake_chaser";
  const auto e = make_executor(c, {&clock, 1, ""});
  e->open(0);
  e->run(3);
  double hot = 1e9, cold = 1e9;
  for (int i = 0; i < 7; ++i) {
    hot = std::min(hot, e->run(1));
    e->flush_caches();
    cold = std::min(cold, e->run(1));
    e->run(1);
  }
  // A load from memory takes several times one from the second-level cache.
  CHECK(cold > 2 * hot);
}
