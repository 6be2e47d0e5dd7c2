#include "measure/executor.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "analysis/analysis.hpp"
#include "inputs/inputs.hpp"
#include "kernels/core/cuda_loader.hpp"
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

// ---- stage times of a device
// ----------------------------------------------------------------------------------------------------

namespace {

/// Stage times by marks in the device's stream: the host never waits within a run, so stages keep the overlap
/// of submitting and executing that the timed runs have.
class DeviceStageTimer final : public StageSink {
 public:
  explicit DeviceStageTimer(Backend& backend) : backend_(backend) {}

  void begin_run() {
    stack_.clear();
    segments_.clear();
    open("");
  }
  void end_run() {
    timer().stop();
    std::map<std::string, double> sums;
    for (size_t i = 0; i < segments_.size(); ++i) sums[segments_[i]] += timers_[i]->seconds();
    for (const std::string& s : order_) runs_[s].push_back(sums[s]);
    runs_[""].push_back(sums[""]);
  }
  void enter(std::string_view stage) override {
    timer().stop();
    stack_.emplace_back(stage);
    if (std::find(order_.begin(), order_.end(), stack_.back()) == order_.end())
      order_.push_back(stack_.back());
    open(stack_.back());
  }
  void leave(std::string_view) override {
    timer().stop();
    if (!stack_.empty()) stack_.pop_back();
    open(stack_.empty() ? std::string() : stack_.back());
  }
  std::vector<StageTime> medians() const {
    std::vector<StageTime> m;
    for (const std::string& s : order_) m.push_back({s, median(runs_.at(s)), {}});
    m.push_back({"", median(runs_.at("")), {}});
    return m;
  }

 private:
  DeviceTimer& timer() { return *timers_[segments_.size() - 1]; }
  void open(const std::string& stage) {
    segments_.push_back(stage);
    if (timers_.size() < segments_.size()) timers_.push_back(backend_.make_timer());
    timer().start();
  }

  Backend& backend_;
  std::vector<std::unique_ptr<DeviceTimer>> timers_;  ///< one a segment, kept for the next run
  std::vector<std::string> stack_, order_, segments_;
  std::map<std::string, std::vector<double>> runs_;
};

// ---- a method's instance
// --------------------------------------------------------------------------------------------------------

/// What does not depend on the device.
class MethodExecutor : public Executor {
 public:
  MethodExecutor(const Case& c, const ExecutorSetup& setup, Backend& backend)
      : case_(c), setup_(setup), backend_(backend), method_(find_method(c.method)) {}

  std::map<std::string, Value> params() override { return resolve().all(); }
  CaseEstimate estimate() override {
    return estimate_problem(method_, case_.problem, case_.params, backend_.device());
  }

  double open(int64_t memory_limit) override {
    close();
    memory_limit_ = memory_limit;
    params_ = resolve();
    ctx_ = std::make_unique<Context>(backend_, setup_.threads);
    ctx_->set_memory_limit(memory_limit);
    instance_ = method_.make(*ctx_, case_.problem, *params_);
    fill_instance(*ctx_, *instance_, case_.problem, setup_.weights_file, setup_.inputs);
    // Staging of the inputs is not the method's memory.
    ctx_->release_cache();
    ctx_->reset_memory_peaks();
    backend_.synchronize();
    const double begin = setup_.clock->now_s();
    instance_->prepare(*ctx_);
    backend_.synchronize();
    return setup_.clock->now_s() - begin;
  }

  Accounting account() override {
    reset_rss_peak();
    poison(*ctx_, instance_->outputs());
    ctx_->cost().reset();
    ctx_->cost().set_exact(true);
    Accounting a;
    a.seconds = run_directly();
    ctx_->cost().set_exact(false);
    a.counted = ctx_->cost().total();
    a.by_stage = ctx_->cost().by_stage();
    a.form = instance_->cost();
    a.decisions = instance_->decisions();
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
    // A smaller instance must not settle anew what this one has settled: it would be other code that is
    // checked.
    std::map<std::string, Value> given = case_.params;
    for (const Decision& d : instance_->decisions()) given[d.param] = d.value;
    return verify_case(*ctx_, method_, *instance_, case_.problem, given, o);
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

 protected:
  /// One execution, launch by launch, timed.
  virtual double run_directly() = 0;

  /// Runs `runs` times with `timer` listening to the stages.
  template <class Timer>
  void run_staged(Timer& timer, int runs) {
    struct Listening {
      Context& ctx;
      ~Listening() { ctx.set_stage_sink(nullptr); }
    } listening{*ctx_};
    ctx_->set_stage_sink(&timer);
    for (int i = 0; i < runs; ++i) {
      timer.begin_run();
      instance_->run(*ctx_);
      timer.end_run();
    }
  }

  Params resolve() const {
    check_problem(case_.problem);
    return resolve_params(method_.info().id, method_.info().params, case_.params, case_.problem);
  }

  Case case_;
  ExecutorSetup setup_;
  Backend& backend_;
  const Method& method_;
  int64_t memory_limit_ = 0;
  std::optional<Params> params_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Instance> instance_;
};

// ---- the CPU
// --------------------------------------------------------------------------------------------------------

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

class CpuExecutor final : public MethodExecutor {
 public:
  using MethodExecutor::MethodExecutor;
  ~CpuExecutor() override { close(); }

  std::vector<StageTime> profile(int runs) override {
    StageTimer timer(*setup_.clock, [] {});
    run_staged(timer, runs);
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

 private:
  double run_directly() override { return run(1); }
};

// ---- devices
// --------------------------------------------------------------------------------------------------------

// A chunk of the sustained loop: short enough that the first one is over before power limits act (tens of
// milliseconds), long enough that the gap between two chunks does not show.
constexpr double kChunkSeconds = 0.02;

/// Runs on a device: replays of a recorded graph where the method allows it, so that the host's launches are
/// not in the samples; otherwise launch by launch. Times are the device's own.
class DeviceExecutor final : public MethodExecutor {
 public:
  using MethodExecutor::MethodExecutor;
  ~DeviceExecutor() override { close(); }

  double open(int64_t memory_limit) override {
    free_before_ = backend_.memory_info().free;
    const double prepare_s = MethodExecutor::open(memory_limit);
    timer_ = backend_.make_timer();
    return prepare_s;
  }

  Accounting account() override {
    Accounting a = MethodExecutor::account();
    // The allocator gives nothing back within a case, so what is taken now is the peak.
    a.memory.device_peak = std::max<int64_t>(free_before_ - backend_.memory_info().free, 0);
    nan_outputs_ = a.nan_outputs;
    return a;
  }

  std::vector<StageTime> profile(int runs) override {
    DeviceStageTimer timer(backend_);
    run_staged(timer, runs);
    return timer.medians();
  }

  double run(int64_t iterations) override {
    if (!submission_known_) record();
    timer_->start();
    submit(iterations);
    timer_->stop();
    return timer_->seconds();
  }

  void flush_caches() override { backend_.flush_cache(); }
  double resolution_s() const override { return timer_ ? timer_->resolution_s() : 0; }
  std::string submission() const override { return graph_ ? "graph" : "stream"; }
  std::vector<std::string> take_warnings() override { return std::exchange(warnings_, {}); }

  std::optional<Sustained> sustain(double loop_s, const std::function<bool()>& stop) override {
    const double once = run(1);
    const auto chunk = static_cast<int64_t>(std::clamp(kChunkSeconds / std::max(once, 1e-9), 1.0, 1e6));
    Sustained s;
    std::vector<double> each;
    std::optional<DeviceState> first;
    DeviceState last;
    double power = 0;
    std::set<std::string> throttle;
    while (s.loop_s < loop_s && !stop()) {
      timer_->start();
      submit(chunk);
      timer_->stop();
      last = backend_.read_state();  // while it runs: an idle device shows idle clocks
      if (!first) first = last;
      power = std::max(power, last.power_w.value_or(0));
      throttle.insert(last.throttle.begin(), last.throttle.end());
      const double took = timer_->seconds();
      if (!(took > 0)) return std::nullopt;
      each.push_back(took / static_cast<double>(chunk));
      s.loop_s += took;
    }
    if (each.empty()) return std::nullopt;
    s.burst_s = each.front();
    s.sustained_s =
        median(std::vector<double>(each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2), each.end()));
    const auto put = [&s](const char* key, const auto& v) {
      if (v) s.state[key] = *v;
    };
    put("sm_clock_first_mhz", first->sm_clock_mhz);
    put("sm_clock_last_mhz", last.sm_clock_mhz);
    put("sm_clock_max_mhz", last.sm_clock_max_mhz);
    put("memory_clock_mhz", last.memory_clock_mhz);
    put("temperature_c", last.temperature_c);
    put("power_limit_w", last.power_limit_w);
    if (power > 0) s.state["power_w"] = power;
    std::string words;
    for (const std::string& w : throttle) words += (words.empty() ? "" : ", ") + w;
    if (last.why.empty())
      s.state["throttle"] = words.empty() ? "none" : words;
    else
      s.state["why"] = last.why;
    return s;
  }

  void close() override {
    graph_.reset();
    submission_known_ = false;
    // Freed memory must not be in use any more; what a failed run left behind has been reported by then.
    try {
      if (ctx_) backend_.synchronize();
    } catch (const Error&) {
    }
    MethodExecutor::close();
    timer_.reset();
  }

 private:
  double run_directly() override {
    timer_->start();
    instance_->run(*ctx_);
    timer_->stop();
    return timer_->seconds();
  }

  void submit(int64_t iterations) {
    if (graph_)
      graph_->replay(iterations);
    else
      for (int64_t i = 0; i < iterations; ++i) instance_->run(*ctx_);
  }

  /// Records a run as a graph and checks that a replay does what a run did.
  void record() {
    submission_known_ = true;
    const auto launched = [this](const std::string& why) {
      graph_.reset();
      warnings_.push_back(
          "launched run by run instead of as a recorded graph, so gaps between short kernels may be in the "
          "time: " +
          why);
    };
    if (!instance_->capturable()) return launched("the method decides on the host within a run");
    instance_->run(*ctx_);  // the second run: from here on the arena holds every block that a run needs
    try {
      graph_ = backend_.capture([this] { instance_->run(*ctx_); });
    } catch (const Unsupported& e) {
      return launched(e.what());
    }
    poison(*ctx_, instance_->outputs());
    graph_->replay(1);
    backend_.synchronize();
    if (const int64_t n = count_nan(*ctx_, instance_->outputs()); n > nan_outputs_)
      launched("a replay leaves " + std::to_string(n) + " elements of the outputs unwritten");
  }

  int64_t free_before_ = 0, nan_outputs_ = 0;
  std::unique_ptr<DeviceTimer> timer_;
  std::unique_ptr<DeviceGraph> graph_;
  bool submission_known_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace

std::unique_ptr<Executor> make_executor(const Case& c, const ExecutorSetup& setup) {
  if (c.device == "cpu") return std::make_unique<CpuExecutor>(c, setup, cpu_backend());
  std::string why;
  Backend* backend = setup.backend;
  if (!backend && c.device == "cuda") backend = cuda_backend(why);
  if (!backend)
    throw DeviceAbsent("the device '" + c.device + "' is not usable here" +
                       (why.empty() ? ": only cpu and cuda can be measured" : ": " + why));
  return std::make_unique<DeviceExecutor>(c, setup, *backend);
}

}  // namespace attnbench
