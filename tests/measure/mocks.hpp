// A clock that stands still, and executors whose times come from a script: rules, orders, resume and failures
// are tested in milliseconds.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "measure/executor.hpp"
#include "measure/runner.hpp"

namespace attnbench::mock {

/// Moves only when told. One step is a nanosecond.
class MockClock final : public Clock {
 public:
  double now_s() override { return now; }
  double resolution_s() const override { return 1e-9; }
  double overhead_s() const override { return 0; }
  double now = 1000;
};

/// What happens to one case, by name.
struct Script {
  /// Seconds of the n-th call of run() (from 0, warm-up included) for one iteration.
  std::function<double(int64_t call)> seconds = [](int64_t) { return 0.02; };
  std::map<std::string, Value> params;
  CaseEstimate estimate;
  Accounting accounting;
  VerifyOutcome verification{true, {"own shape", true, 1e-5, {{"out", 1e-7}}, ""}};
  std::function<void()> on_params, on_open, on_account, on_verify;  ///< may throw
  std::function<void(int64_t call)> on_run;
  std::function<AnalysisResult(const std::string&)> on_analyze;
  double open_bytes = 0;
  std::optional<Sustained> sustained;
};

/// Shared by all executors of a test: the clock they move and the log of what they were asked to do.
struct World {
  MockClock clock;
  std::map<std::string, Script> scripts;
  std::vector<std::string> log;

  Script& operator[](const std::string& name) { return scripts[name]; }
  int count(const std::string& entry) const {
    int n = 0;
    for (const std::string& e : log) n += e == entry;
    return n;
  }
  /// The timed runs only: names, in order, of run() calls after the last other event.
  std::vector<std::string> entries_with(const std::string& prefix) const {
    std::vector<std::string> v;
    for (const std::string& e : log)
      if (e.starts_with(prefix)) v.push_back(e);
    return v;
  }
};

class MockExecutor final : public Executor {
 public:
  MockExecutor(World& world, std::string name)
      : world_(world), name_(std::move(name)), script_(world.scripts[name_]) {}

  std::map<std::string, Value> params() override {
    if (script_.on_params) script_.on_params();
    return script_.params;
  }
  CaseEstimate estimate() override {
    world_.log.push_back("estimate " + name_);
    return script_.estimate;
  }
  double open(int64_t memory_limit) override {
    world_.log.push_back("open " + name_);
    limit_ = memory_limit;
    if (script_.on_open) script_.on_open();
    open_ = true;
    return 0;
  }
  Accounting account() override {
    world_.log.push_back("account " + name_);
    if (script_.on_account) script_.on_account();
    return script_.accounting;
  }
  VerifyOutcome verify(double) override {
    world_.log.push_back("verify " + name_);
    if (script_.on_verify) script_.on_verify();
    return script_.verification;
  }
  std::vector<StageTime> profile(int runs) override {
    world_.log.push_back("profile " + name_ + " x" + std::to_string(runs));
    std::vector<StageTime> stages;
    for (const auto& [stage, cost] : script_.accounting.by_stage) stages.push_back({stage, 0.01, {}});
    return stages;
  }
  double run(int64_t iterations) override {
    if (!open_) throw Error("run() of a case that is not open");
    world_.log.push_back("run " + name_ + (iterations == 1 ? "" : " x" + std::to_string(iterations)));
    if (script_.on_run) script_.on_run(calls_);
    const double s = script_.seconds(calls_++) * static_cast<double>(iterations);
    world_.clock.now += s;
    return s;
  }
  void flush_caches() override {
    world_.log.push_back("flush");
    world_.clock.now += 0.001;
  }
  AnalysisResult analyze(const std::string& analysis, const std::map<std::string, Value>&) override {
    world_.log.push_back("analyze " + name_ + " " + analysis);
    if (script_.on_analyze) return script_.on_analyze(analysis);
    AnalysisResult r;
    r.analysis = analysis;
    r.scalars["value"] = 1;
    return r;
  }
  std::optional<Sustained> sustain(double, const std::function<bool()>&) override {
    world_.log.push_back("sustain " + name_);
    return script_.sustained;
  }
  void close() override {
    if (open_) world_.log.push_back("close " + name_);
    open_ = false;
  }

 private:
  World& world_;
  std::string name_;
  Script& script_;
  int64_t limit_ = 0, calls_ = 0;
  bool open_ = false;
};

inline ExecutorFactory factory(World& world) {
  return
      [&world](const Case& c, const ExecutorSetup&) { return std::make_unique<MockExecutor>(world, c.name); };
}

/// Keeps everything it hears.
class Listener : public RunObserver {
 public:
  void run_started(const RunResult& r) override { started = true, reused = r.cases.size(); }
  void case_started(size_t, size_t, const Case& c, std::optional<double>) override {
    begun.push_back(c.name);
  }
  void case_finished(const CaseResult& c) override {
    finished.push_back(c);
    if (on_finished) on_finished(c);
  }
  void warning(const std::string& text) override { warnings.push_back(text); }

  bool started = false;
  size_t reused = 0;
  std::vector<std::string> begun, warnings;
  std::vector<CaseResult> finished;
  std::function<void(const CaseResult&)> on_finished;
};

/// A machine with round ceilings: 100 GFLOP/s, 10 GB/s from memory and ten times that from caches.
class MockProbe final : public PeakProbe {
 public:
  double fma_gflops(DType dtype, int) override {
    ++fma_calls;
    if (dtype == DType::f16) throw Unsupported("no f16 arithmetic");
    return dtype == DType::bf16 ? 200 : fma;
  }
  double gemm_gflops(DType, int) override { return 90; }
  double copy_gbytes_per_s(int, int64_t bytes) override {
    ++copy_calls;
    return bytes >= (int64_t{64} << 20) ? 10 : 100;
  }
  double fma = 100;
  int fma_calls = 0, copy_calls = 0;
};

inline Case make_case(const std::string& name, const std::string& method = "mock") {
  Case c;
  c.name = c.base_name = name;
  c.method = method;
  c.device = "cpu";
  c.problem.length = 64;
  c.problem.heads = 2;
  c.problem.head_dim = 16;
  return c;
}

inline Suite make_suite(const std::vector<std::string>& names, const std::string& baseline = "") {
  Suite s;
  s.name = "mock";
  s.baseline = baseline;
  s.resolved_text = "suite: mock";
  s.measure.max_time_s = 1.0;
  s.measure.threads = 1;
  for (const std::string& n : names) s.cases.push_back(make_case(n));
  return s;
}

inline RunOptions make_options(World& world) {
  RunOptions o;
  o.clock = &world.clock;
  o.executor = factory(world);
  o.roofline = RunOptions::RooflinePolicy::off;
  o.memory_limit = int64_t{1} << 40;
  return o;
}

inline const CaseResult& result_of(const RunResult& r, const std::string& name) {
  for (const CaseResult& c : r.cases)
    if (c.spec.name == name) return c;
  throw Error("no result of case '" + name + "'");
}

}  // namespace attnbench::mock
