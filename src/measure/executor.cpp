#include "measure/executor.hpp"

#include <algorithm>
#include <cstring>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "measure/environment.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

// ---- stage times
// ----------------------------------------------------------------------------------------------------

void StageTimer::account() {
  synchronize_();
  const double now = clock_.now_s();
  const std::string& stage = stack_.empty() ? std::string() : stack_.back();
  current_[stage] += now - last_;
  last_ = now;
}

void StageTimer::begin_run() {
  stack_.clear();
  current_.clear();
  synchronize_();
  last_ = clock_.now_s();
}

void StageTimer::end_run() {
  account();
  // A stage that a run does not enter takes no time in it.
  for (const std::string& s : order_) runs_[s].push_back(current_[s]);
  runs_[""].push_back(current_[""]);
}

void StageTimer::enter(std::string_view stage) {
  account();
  stack_.emplace_back(stage);
  if (std::find(order_.begin(), order_.end(), stack_.back()) == order_.end()) order_.push_back(stack_.back());
}

void StageTimer::leave(std::string_view) {
  account();
  if (!stack_.empty()) stack_.pop_back();
}

std::vector<std::pair<std::string, double>> StageTimer::medians() const {
  std::vector<std::pair<std::string, double>> m;
  for (const std::string& s : order_) m.emplace_back(s, median(runs_.at(s)));
  if (runs_.contains("")) m.emplace_back("", median(runs_.at("")));
  return m;
}

// ---- the CPU
// --------------------------------------------------------------------------------------------------------

namespace {

/// Writes and reads twice the caches, each thread its share, so that what stood there is gone from every
/// core's own levels and from the shared one.
class CacheFlusher {
 public:
  void flush(int threads) {
    const int64_t bytes =
        std::max<int64_t>(int64_t{32} << 20, 2 * (cache_bytes(3) + threads * cache_bytes(2)));
    if (static_cast<int64_t>(buffer_.size()) * 8 < bytes) buffer_.assign(static_cast<size_t>(bytes / 8), 1);
    uint64_t sum = 0;
    const int64_t n = static_cast<int64_t>(buffer_.size());
    uint64_t* data = buffer_.data();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += ++data[i];
    sum_ = sum;
  }

 private:
  std::vector<uint64_t> buffer_;
  volatile uint64_t sum_ = 0;
};

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const Case& c, const ExecutorSetup& setup)
      : case_(c), setup_(setup), method_(find_method(c.method)) {}
  ~CpuExecutor() override { close(); }

  std::map<std::string, Value> params() override { return resolve().all(); }
  CaseEstimate estimate() override { return estimate_problem(method_, case_.problem, case_.params); }

  double open(int64_t memory_limit) override {
    close();
    memory_limit_ = memory_limit;
    params_ = resolve();
    ctx_ = std::make_unique<Context>(cpu_backend(), setup_.threads);
    ctx_->set_memory_limit(memory_limit);
    instance_ = method_.make(*ctx_, case_.problem, *params_);
    fill_instance(*ctx_, *instance_, case_.problem, setup_.weights_file);
    // Staging of the inputs is not the method's memory.
    ctx_->release_cache();
    ctx_->reset_memory_peaks();
    const double begin = setup_.clock->now_s();
    instance_->prepare(*ctx_);
    return setup_.clock->now_s() - begin;
  }

  Accounting account() override {
    reset_rss_peak();
    poison(*ctx_, instance_->outputs());
    ctx_->cost().reset();
    ctx_->cost().set_exact(true);
    Accounting a;
    a.seconds = run(1);
    ctx_->cost().set_exact(false);
    a.counted = ctx_->cost().total();
    a.by_stage = ctx_->cost().by_stage();
    a.form = instance_->cost();
    const MemoryUse& m = ctx_->memory();
    a.memory.inputs = m.peak_of(MemoryClass::input);
    a.memory.weights = m.peak_of(MemoryClass::weight);
    a.memory.outputs = m.peak_of(MemoryClass::output);
    a.memory.workspace_peak = m.peak_of(MemoryClass::workspace);
    a.memory.total_peak = m.peak_total;
    a.memory.rss_peak = rss_peak();
    a.nan_outputs = count_nan(*ctx_, instance_->outputs());
    return a;
  }

  VerifyOutcome verify(double budget_s) override {
    VerifyOptions o;
    o.budget_s = budget_s;
    o.clock = setup_.clock;
    o.memory_limit = memory_limit_;
    o.weights_file = setup_.weights_file;
    return verify_case(*ctx_, method_, *instance_, case_.problem, case_.params, o);
  }

  std::vector<StageTime> profile(int runs) override {
    StageTimer timer(*setup_.clock, [] {});
    ctx_->set_stage_sink(&timer);
    try {
      for (int i = 0; i < runs; ++i) {
        timer.begin_run();
        instance_->run(*ctx_);
        timer.end_run();
      }
    } catch (...) {
      ctx_->set_stage_sink(nullptr);
      throw;
    }
    ctx_->set_stage_sink(nullptr);
    std::vector<StageTime> stages;
    for (const auto& [stage, seconds] : timer.medians()) stages.push_back({stage, seconds, {}});
    return stages;
  }

  double run(int64_t iterations) override {
    const double begin = setup_.clock->now_s();
    for (int64_t i = 0; i < iterations; ++i) instance_->run(*ctx_);
    return setup_.clock->now_s() - begin;
  }

  void flush_caches() override {
    static CacheFlusher flusher;  // one buffer for all cases
    flusher.flush(ctx_->threads());
  }

  AnalysisResult analyze(const std::string& id, const std::map<std::string, Value>& arguments) override {
    const Analysis& a = find_analysis(id);
    const Params params = resolve_params(id, a.info().params, arguments, case_.problem);
    return a.compute(*ctx_, *instance_, case_.problem, params);
  }

  void close() override {
    instance_.reset();
    ctx_.reset();
  }

 private:
  Params resolve() const {
    check_problem(case_.problem);
    return resolve_params(method_.info().id, method_.info().params, case_.params, case_.problem);
  }

  Case case_;
  ExecutorSetup setup_;
  const Method& method_;
  int64_t memory_limit_ = 0;
  std::optional<Params> params_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Instance> instance_;
};

}  // namespace

std::unique_ptr<Executor> make_executor(const Case& c, const ExecutorSetup& setup) {
  if (c.device == "cpu") return std::make_unique<CpuExecutor>(c, setup);
  throw Unsupported("device '" + c.device + "' cannot be measured yet: only 'cpu' can");
}

}  // namespace attnbench
