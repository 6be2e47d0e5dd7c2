// Measuring on a device: graphs, cold caches, sustained loops, memory, ceilings; with a device of scripted
// times.
#include <algorithm>

#include "measure/environment.hpp"
#include "measure/executor.hpp"
#include "measure/roofline.hpp"
#include "measure/runner.hpp"
#include "reference/reference.hpp"
#include "report/format.hpp"
#include "report/json_schema.hpp"
#include "report/results_json.hpp"
#include "report/rows.hpp"
#include "report/schemas.hpp"
#include "tests/catch.hpp"
#include "tests/device/mock_device.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;

namespace {

/// One operator a run; what goes wrong is chosen. on_host: copies to the host within a run. silent: the run
/// that is recorded submits nothing.
class OneProduct final : public Method {
 public:
  OneProduct() {
    info_.id = info_.card = "device_product";
    info_.kinds = {ProblemKind::sequence};
    ParamSpec fault;
    fault.name = "fault";
    fault.type = ParamSpec::Type::choice;
    fault.choices = {"none", "on_host", "silent", "decides", "greedy"};
    fault.default_value = "none";
    info_.params = {fault};
    info_.example.length = 8;
  }
  const MethodInfo& info() const override { return info_; }
  std::unique_ptr<Instance> make(Context& ctx, const Problem& p, const Params& params) const override {
    return std::make_unique<Run>(ctx, p.length, params.choice("fault"));
  }

 private:
  class Run final : public Instance {
   public:
    Run(Context& ctx, int64_t n, std::string fault) : n_(n), fault_(std::move(fault)) {
      input_specs_ = {{"x", {n, n}, DType::f32, Init::normal(), false, ""}};
      out_ = ctx.allocate(DType::f32, {n, n}, MemoryClass::output);
    }
    void run(Context& ctx) override {
      const auto stage = ctx.stage("multiply");
      if (fault_ == "silent" && ++runs_ == 3) return;
      if (fault_ == "greedy") ctx.allocate(DType::u8, {int64_t{1} << 40});
      GemmArgs g;
      g.a = g.b = input("x");
      g.c = out_;
      gemm(ctx, g);
      if (fault_ != "on_host") return;
      float first = 0;
      ctx.backend().copy_bytes(&first, DeviceKind::cpu, out_.raw(), out_.device(), sizeof first);
    }
    TensorMap outputs() const override { return {{"y", out_}}; }
    ClosedForm cost() const override {
      ClosedForm f;
      f.cost = {2 * n_ * n_ * n_, 0, 0, 8 * n_ * n_, 4 * n_ * n_};
      f.data_dependent = fault_ == "greedy";  // so that no estimate sees it coming
      return f;
    }
    bool capturable() const override { return fault_ != "decides"; }

   private:
    int64_t n_;
    std::string fault_;
    int runs_ = 0;
    Tensor out_;
  };
  MethodInfo info_;
};
ATTNBENCH_METHOD(OneProduct);

RefMap product_reference(const Problem&, const Params&, const RefMap& inputs, const RefMap&) {
  const RefTensor& x = inputs.at("x");
  const int64_t n = x.shape[0];
  RefTensor y(x.shape);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < n; ++k) y[i * n + j] += x[i * n + k] * x[k * n + j];
  return {{"y", y}};
}
const bool reference_known = register_reference("device_product", product_reference);

Case product(const std::string& name, const std::string& fault = "none", int64_t n = 8) {
  Case c;
  c.name = c.base_name = name;
  c.method = "device_product";
  c.device = "cuda";
  c.problem.length = n;
  if (fault != "none") c.params["fault"] = fault;
  return c;
}

struct Bench {
  mock::MockDevice device;
  mock::MockClock clock;
  std::unique_ptr<Executor> executor(const Case& c) { return make_executor(c, {&clock, 1, "", &device}); }
};

const auto go_on = [] { return false; };

}  // namespace

TEST_CASE("samples are graph replays on the device's clock") {
  Bench b;
  const auto e = b.executor(product("A"));
  e->open(0);
  const Accounting a = e->account();
  CHECK(a.seconds == Approx(1e-3));
  CHECK(a.counted == a.form.cost);
  CHECK(a.nan_outputs == 0);
  CHECK(a.memory.device_peak >= a.memory.total_peak);
  CHECK(e->verify(1.0).result.passed);
  CHECK(e->run(5) == Approx(5e-3));
  CHECK(e->submission() == "graph");
  CHECK(e->resolution_s() == 1e-7);
  const int before = b.device.replays;
  CHECK(e->run(7) == Approx(7e-3));
  CHECK(b.device.replays == before + 7);
  CHECK(e->take_warnings().empty());
  e->flush_caches();
  CHECK(b.device.flushes == 1);
  const std::vector<StageTime> stages = e->profile(3);
  REQUIRE(stages.size() == 2);
  CHECK(stages[0].stage == "multiply");
  CHECK(stages[0].median_s == Approx(1e-3));
  CHECK(stages[1].stage.empty());
  CHECK(stages[1].median_s == Approx(0).margin(1e-12));
  e->close();
  CHECK(b.device.memory_info().free == b.device.total_bytes);
}

TEST_CASE("runs that no graph can hold are launched, with the reason") {
  const auto [fault, why] =
      GENERATE(table<std::string, std::string>({{"on_host", "a copy between host and device waits"},
                                                {"decides", "decides on the host"},
                                                {"silent", "leaves 64 elements of the outputs unwritten"}}));
  Bench b;
  const auto e = b.executor(product("A", fault));
  e->open(0);
  e->account();
  CHECK(e->run(2) == Approx(2e-3));
  CHECK(e->submission() == "stream");
  const std::vector<std::string> warnings = e->take_warnings();
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring(why));
  CHECK(e->take_warnings().empty());
}

TEST_CASE("a long loop shows what power limits do, and in which state") {
  Bench b;
  const auto e = b.executor(product("A"));
  e->open(0);
  e->account();
  e->run(1);
  const double begin = b.device.now_s;
  b.device.operator_s = [&](double now) { return now < begin + 0.1 ? 1e-3 : 1.2e-3; };
  b.device.state.sm_clock_mhz = 1980;
  b.device.state.power_w = 690.5;
  b.device.state.throttle = {"power cap"};
  const auto s = e->sustain(1.0, go_on);
  REQUIRE(s);
  CHECK(s->burst_s == Approx(1e-3));
  CHECK(s->sustained_s == Approx(1.2e-3));
  CHECK(s->loop_s >= 1.0);
  CHECK(s->loop_s < 1.1);
  CHECK(s->differs());
  CHECK(s->state.at("sm_clock_last_mhz") == Value(1980));
  CHECK(s->state.at("power_w") == Value(690.5));
  CHECK(s->state.at("throttle") == Value("power cap"));
  CHECK_FALSE(s->state.contains("temperature_c"));

  b.device.operator_s = [](double) { return 1e-3; };
  b.device.state = {};
  b.device.state.why = "no sensors";
  const auto calm = e->sustain(0.5, go_on);
  REQUIRE(calm);
  CHECK_FALSE(calm->differs());
  CHECK(calm->state == std::map<std::string, Value>{{"why", "no sensors"}});
  CHECK_FALSE(e->sustain(1.0, [] { return true; }));
}

TEST_CASE("a device that is not there is the case's reason") {
  SteadyClock clock;
  std::string why;
  if (find_backend("cuda", why)) return;  // tests/device/cuda_test.cpp is for this machine
  try {
    make_executor(product("A"), {&clock, 1, "", nullptr});
    FAIL("no device, no executor");
  } catch (const DeviceAbsent& e) {
    CHECK_THAT(std::string(e.what()), ContainsSubstring(why));
  }
}

namespace {
Suite suite_of(std::vector<Case> cases) {
  Suite s;
  s.name = "device";
  s.resolved_text = "suite: device";
  s.measure.max_time_s = 0.05;
  s.measure.threads = 1;
  s.cases = std::move(cases);
  return s;
}
RunOptions options_for(mock::MockDevice& device) {
  RunOptions o;
  o.backend = [&device](const std::string&) { return &device; };
  o.roofline_file = "";
  return o;
}
}  // namespace

TEST_CASE("a suite runs on the device from estimate to report") {
  mock::MockDevice device;
  Suite s =
      suite_of({product("slow", "none", 12), product("base", "none", 12), product("stubborn", "on_host")});
  s.baseline = "base";
  mock::Listener l;
  const RunResult r = run_suite(s, options_for(device), l);
  for (const std::string& w : l.warnings) FAIL_CHECK(w);
  REQUIRE(r.cases.size() == 3);
  for (const CaseResult& c : r.cases) {
    INFO(c.spec.name << ": " << c.reason);
    CHECK(c.status == CaseStatus::ok);
    REQUIRE(c.time);
    CHECK(c.time->median_s == Approx(1e-3));
    CHECK(c.time->iterations_per_sample == 1);  // cold
    REQUIRE(c.sustained);
    REQUIRE(c.memory);
    CHECK(c.memory->device_peak > 0);
    REQUIRE(c.bound);
  }
  CHECK(device.flushes >= 30);
  CHECK(mock::result_of(r, "slow").time->submission == "graph");
  CHECK(mock::result_of(r, "slow").ratio->value == Approx(1));
  CHECK(mock::result_of(r, "slow").ratio->pairs >= 10);
  CHECK(mock::result_of(r, "stubborn").time->submission == "stream");
  CHECK_THAT(mock::result_of(r, "stubborn").warnings.at(0), ContainsSubstring("a copy between host"));
  CHECK(r.environment.values.at("gpu") == Value("Mock 9000"));
  CHECK(r.environment.values.at("cuda_driver") == Value("13.0"));
  CHECK(r.environment.machine_id != collect_environment(1).machine_id);
  CHECK(r.roofline.gflops.contains("cuda/f32"));
  CHECK(r.roofline.gbytes_per_s.at("cuda") == Approx(2000));
  CHECK(r.roofline.gbytes_per_s.at("cuda/read") == Approx(2200));
  CHECK(r.roofline.gbytes_per_s.at("cuda/l2") == Approx(8000));
  for (const std::string& v : validate_json(schemas().at("results"), to_json(r))) FAIL_CHECK(v);
  CHECK(to_json(run_from_json(to_json(r), "r")) == to_json(r));
}

TEST_CASE("the table shows a sustained time only where it differs") {
  RunResult r;
  r.cases.resize(2);
  for (CaseResult& c : r.cases) {
    c.time = Timing{};
    c.time->median_s = c.time->ci_low_s = c.time->ci_high_s = 1e-3;
    c.time->converged = true;
    c.sustained = Sustained{1e-3, 1.02e-3, 1.0, {}};
  }
  const auto has_column = [&] {
    const ReportTable t = case_table(r);
    return std::any_of(t.columns.begin(), t.columns.end(),
                       [](const auto& c) { return c.title == "sustained"; });
  };
  CHECK_FALSE(has_column());
  r.cases[1].sustained->sustained_s = 1.15e-3;
  CHECK(has_column());
  CHECK_THAT(find_format("table").write(r, {}), ContainsSubstring("(+15%)"));
}

TEST_CASE("hot samples hold replays back to back, without flushing") {
  mock::MockDevice device;
  device.operator_s = [](double) { return 1e-5; };
  Suite s = suite_of({product("A")});
  s.measure.cache = "hot";
  RunOptions o = options_for(device);
  o.roofline = RunOptions::RooflinePolicy::off;
  mock::Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(r.cases[0].time->iterations_per_sample >= 100);
  CHECK(device.flushes == 0);
}

TEST_CASE("what does not fit the device is skipped with its estimate, and the run goes on") {
  mock::MockDevice device;
  device.total_bytes = int64_t{8} << 20;
  Suite s = suite_of({product("large", "none", 2048), product("greedy", "greedy"), product("small")});
  RunOptions o = options_for(device);
  o.roofline = RunOptions::RooflinePolicy::off;
  mock::Listener l;
  const RunResult r = run_suite(s, o, l);
  CHECK(mock::result_of(r, "large").status == CaseStatus::skipped);
  CHECK_THAT(mock::result_of(r, "large").reason, ContainsSubstring("needs about 32.0 MiB"));
  CHECK(mock::result_of(r, "greedy").status == CaseStatus::skipped);
  CHECK_THAT(mock::result_of(r, "greedy").reason, ContainsSubstring("the case was estimated at at least"));
  CHECK(mock::result_of(r, "small").status == CaseStatus::ok);
}

TEST_CASE("long loops wait until every case of the group is sampled") {
  mock::World w;
  Suite s = mock::make_suite({"a", "b"}, "a");
  for (Case& c : s.cases) c.device = "cuda";
  w["a"].sustained = Sustained{0.02, 0.02, 1.0, {}};
  mock::Listener l;
  const RunResult r = run_suite(s, mock::make_options(w), l);
  const auto first = std::find(w.log.begin(), w.log.end(), "sustain a");
  REQUIRE(first != w.log.end());
  CHECK(std::none_of(first, w.log.end(), [](const std::string& e) { return e.starts_with("run "); }));
  CHECK(mock::result_of(r, "a").sustained == w["a"].sustained);
  CHECK_FALSE(mock::result_of(r, "b").sustained);
}

TEST_CASE("the ids of CPU cases do not know what auto means elsewhere") {
  MeasureConfig m;
  CHECK(m.cache_on("cpu") == "hot");
  CHECK(m.cache_on("cuda") == "cold");
  m.cache = "hot";
  CHECK(m.cache_on("cuda") == "hot");
}

TEST_CASE("ceilings of a device: 16-bit types by product, f32 by what matrix units reach") {
  mock::MockDevice device;
  const auto probe = device_peak_probe(device);
  CHECK(probe->device() == "cuda");
  CHECK_FALSE(probe->threaded());
  CHECK(probe->level_capacity("l2", 8) == int64_t{1} << 20);
  Ceilings c(*probe, "");
  CHECK(c.gbytes_per_s(8, "l2") == Approx(8000));
  CHECK(c.gbytes_per_s(8, "read") == Approx(2200));
  CHECK(c.roofline().gbytes_per_s.contains("cuda/read"));
  // Reading alone may be faster than copying: that is no error, and no cache either.
  const Cost reads{0, 1, 0, 2'100'000'000'000, 0};
  const auto fast = [&](double seconds, int64_t resident) {
    return place_under_ceilings(c, reads, seconds, DType::f32, 1, resident);
  };
  c.fma_gflops(DType::f32, 1);
  const BoundOutcome o = fast(1.0, int64_t{1} << 40);
  CHECK(o.inconsistent.empty());
  CHECK(o.bound.percent_of_ceiling == Approx(100 * 2100 / 2000.0).margin(6));
  CHECK_FALSE(fast(0.1, int64_t{1} << 40).inconsistent.empty());
  // What stays in the cache is judged by the cache.
  CHECK(fast(1.0, int64_t{1} << 18).bound.percent_of_ceiling == Approx(100 * 2100 / 8000.0));
}

TEST_CASE("the CPU's ceilings are kept whatever GPU is there") {
  Environment e;
  e.values = {{"cpu_model", "EPYC"}};
  e.machine_id = machine_id(e.values);
  const std::string alone = roofline_id(e, "cpu");
  CHECK(alone == e.machine_id);
  e.values["gpu"] = "H100";
  e.machine_id = machine_id(e.values);
  CHECK(roofline_id(e, "cpu") == alone);
  CHECK(roofline_id(e, "cuda") == e.machine_id + "-cuda");
}

namespace {
Case dense(const char* impl, DType dtype = DType::bf16) {
  Case c;
  c.name = c.base_name = "dense";
  c.method = "dense";
  c.device = "cuda";
  c.params["impl"] = impl;
  c.problem.dtype = dtype;
  c.problem.heads = 2, c.problem.length = 24, c.problem.head_dim = 16;
  return c;
}
}  // namespace

TEST_CASE("dense takes the faster of engine and library, and its results say which") {
  for (const bool library_wins : {true, false}) {
    Bench b;
    b.device.has_library = true;
    b.device.operator_s = [&](double) {
      return (b.device.running == "library_attention") == library_wins ? 1e-3 : 2e-3;
    };
    Suite suite = suite_of({dense("auto")});
    RunOptions o = options_for(b.device);
    o.roofline = RunOptions::RooflinePolicy::off;
    mock::Listener nobody;
    const RunResult run = run_suite(suite, o, nobody);
    REQUIRE(run.cases.size() == 1);
    const CaseResult& c = run.cases[0];
    INFO(c.reason);
    CHECK(c.status == CaseStatus::ok);
    REQUIRE(c.decisions.size() == 1);
    CHECK(c.decisions[0].param == "impl");
    CHECK(c.decisions[0].value.str() == (library_wins ? "cudnn" : "engine"));
    CHECK(c.decisions[0].why == (library_wins ? "engine 2 ms, cudnn 1 ms" : "engine 1 ms, cudnn 2 ms"));
    CHECK(c.time->median_s == Approx(1e-3));  // what was chosen is what was timed
    CHECK(c.formula_matches);
    CHECK(run_from_json(to_json(run), "x").cases[0].decisions == c.decisions);
  }
}

TEST_CASE("without a library dense is the engine, and cudnn is unsupported with the reason") {
  Bench b;
  Suite suite = suite_of({dense("auto"), dense("cudnn"), dense("cudnn", DType::f32), dense("engine")});
  RunOptions o = options_for(b.device);
  o.roofline = RunOptions::RooflinePolicy::off;
  mock::Listener nobody;
  const RunResult run = run_suite(suite, o, nobody);
  REQUIRE(run.cases.size() == 4);
  CHECK(run.cases[0].status == CaseStatus::ok);
  REQUIRE(run.cases[0].decisions.size() == 1);
  CHECK(run.cases[0].decisions[0].value.str() == "engine");
  CHECK_THAT(run.cases[0].decisions[0].why, ContainsSubstring("library_attention"));
  CHECK(run.cases[1].status == CaseStatus::unsupported);
  CHECK_THAT(run.cases[1].reason, ContainsSubstring("library_attention"));
  CHECK(run.cases[2].status == CaseStatus::unsupported);
  CHECK_THAT(run.cases[2].reason, ContainsSubstring("f32"));
  CHECK(run.cases[3].status == CaseStatus::ok);
  CHECK(run.cases[3].decisions.empty());
}

TEST_CASE("what is verified at smaller shapes is what was chosen at the own one") {
  Bench b;
  b.device.has_library = true;
  int64_t engine_calls = 0, library_calls = 0;
  double library_s = 1e-3;
  b.device.operator_s = [&](double) {
    const bool library = b.device.running == "library_attention";
    library_calls += library, engine_calls += b.device.running == "attention";
    return library ? library_s : 2e-3;
  };
  Case c = dense("auto");
  c.problem.length = 256;
  const auto e = b.executor(c);
  e->open(0);
  const Accounting a = e->account();
  REQUIRE(a.decisions.at(0).value.str() == "cudnn");
  CHECK(engine_calls > 0);  // it was tried
  // From here on the engine would be the faster one, and choosing anew would take it.
  library_s = 3e-3;
  engine_calls = library_calls = 0;
  const VerifyOutcome v = e->verify(0.001);  // too little for the own shape at once
  CHECK(v.result.passed);
  CHECK(library_calls >= 2);  // a plan and a run for each smaller shape
  CHECK(engine_calls == 0);
}
