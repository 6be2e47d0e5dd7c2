#include "measure/runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <set>
#include <type_traits>

#include "measure/case_id.hpp"
#include "measure/environment.hpp"
#include "measure/plan.hpp"
#include "measure/statistics.hpp"

namespace attnbench {

namespace {

/// "1.5 GiB", "320 KiB".
std::string size_text(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double x = static_cast<double>(bytes);
  size_t u = 0;
  while (std::abs(x) >= 1024 && u + 1 < std::size(units)) x /= 1024, ++u;
  return u == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", x, units[u]);
}

// The profile pass may take this share of a case's time, and no more runs than a median of stages needs.
constexpr double kProfileShare = 0.05;
constexpr int kProfileRuns = 5;
// Uncovered time below this share of a run is not worth a line among the stages.
constexpr double kUncoveredShare = 0.01;
// A prepare() that does nothing still takes some nanoseconds to call.
constexpr double kPrepareSeen = 1e-6;
// Power limits of cards act within tenths of a second, temperatures follow later. The loop that shows it
// takes at most this share of a case's time: with `--quick` it would else be as long as the samples.
constexpr double kSustainSeconds = 1.0, kSustainShare = 0.25;
// Inputs of a device's cases that stay on the host for the next case take at most this share of what is free.
constexpr double kCachedInputs = 0.125;
// Fewer pairs have no interval.
constexpr size_t kLeastPairs = 3;

/// A case on its way through the run.
struct Work {
  CaseResult result;
  std::unique_ptr<Executor> executor;
  CaseEstimate estimate;
  bool planned = false;  ///< to be run: not reused, not refused while planning
  bool final = false;
};

class Run {
 public:
  Run(const Suite& suite, const RunOptions& options, RunObserver& observer)
      : options_(options), observer_(observer), clock_(options.clock ? *options.clock : steady_) {
    run_.suite = suite;
    if (options.threads) run_.suite.measure.threads = *options.threads;
    if (run_.suite.measure.threads < 0)
      throw UsageError(
          fmt::format("threads: 0 (all) or more are wanted, not {}", run_.suite.measure.threads));
    threads_ = run_.suite.measure.threads > 0 ? run_.suite.measure.threads : allowed_cpus();
    for (const Case& c : run_.suite.cases)
      if (!backends_.contains(c.device)) backends_[c.device] = backend_for(c.device);
    for (const auto& [device, backend] : backends_)
      memory_limit_[device] = options.memory_limit > 0 ? options.memory_limit
                              : backend                ? usable_memory(*backend)
                                                       : usable_memory();
    make_ = options.executor ? options.executor : ExecutorFactory(make_executor);
  }

  RunResult go() {
    run_.started_at = utc_now();
    run_.suite_hash = hash_text(run_.suite.resolved_text);
    run_.environment = collect_environment(run_.suite.measure.threads, device());
    started_s_ = clock_.now_s();
    identify();
    measure_ceilings();
    for (const Work& w : work_)
      if (w.final) run_.cases.push_back(w.result);
    observer_.run_started(run_);
    estimate();
    for (const std::vector<size_t>& group : comparison_groups(run_.suite)) {
      if (stopped()) break;
      run_group(group);
    }
    run_.interrupted =
        stopped() && std::any_of(work_.begin(), work_.end(), [](const Work& w) { return !w.final; });
    run_.cases.clear();
    for (Work& w : work_)
      if (w.final) run_.cases.push_back(std::move(w.result));
    collect_ceilings();
    if (options_.evaluate_claim && !run_.interrupted)
      for (const Claim& claim : run_.suite.claims) run_.claims.push_back(evaluate(claim));
    run_.finished_at = utc_now();
    return std::move(run_);
  }

 private:
  bool stopped() const { return options_.stop && options_.stop->load(std::memory_order_relaxed); }
  bool measures(const char* what) const {
    const auto& m = run_.suite.measures;
    return m.empty() || std::find(m.begin(), m.end(), what) != m.end();
  }

  Backend* backend_for(const std::string& device) const {
    if (device == "cpu") return &cpu_backend();
    if (options_.backend) return options_.backend(device);
    std::string why;  // the executor says it, case by case
    return options_.executor ? nullptr : find_backend(device, why);
  }
  /// The first device besides the CPU that takes part.
  Backend* device() const {
    for (const auto& [name, backend] : backends_)
      if (backend && name != "cpu") return backend;
    return nullptr;
  }
  int64_t limit_of(const Work& w) const { return memory_limit_.at(w.result.spec.device); }

  // ---- planning ----

  /// Executors, resolved parameters and ids; takes over what an interrupted run has finished.
  void identify() {
    std::map<std::pair<std::string, std::string>, const CaseResult*> finished;
    for (const CaseResult& c : options_.finished)
      if (c.status != CaseStatus::failed) finished[{c.id, c.spec.name}] = &c;
    std::map<std::string, int> seen;
    work_.resize(run_.suite.cases.size());
    for (size_t i = 0; i < work_.size(); ++i) {
      Work& w = work_[i];
      w.result.spec = run_.suite.cases[i];
      w.result.params = w.result.spec.params;
      std::exception_ptr refusal;
      try {
        Backend* backend = backends_.at(w.result.spec.device);
        w.executor = make_(w.result.spec,
                           {&clock_, run_.suite.measure.threads, options_.weights_file, backend, &inputs_});
        w.result.params = w.executor->params();
      } catch (...) {
        refusal = std::current_exception();
      }
      w.result.id = case_id(w.result.spec, w.result.params, run_.suite.measure);
      // The same case under two names (an A/A test) is two results; the second is told apart by its number.
      if (const int n = ++seen[w.result.id]; n > 1) w.result.id += "-" + std::to_string(n);
      if (const auto it = finished.find({w.result.id, w.result.spec.name}); it != finished.end()) {
        w.result = *it->second;
        w.executor.reset();
        w.final = true;
        continue;
      }
      w.planned = true;
      if (refusal) refused_.emplace_back(i, refusal);
    }
  }

  /// Sizes of what is left to run; ends what cannot be run at all.
  void estimate() {
    for (const auto& [i, refusal] : refused_) {
      explain(work_[i], refusal);
      finish(work_[i]);
    }
    for (Work& w : work_) {
      if (!w.planned || w.final) continue;
      try {
        w.estimate = w.executor->estimate();
      } catch (...) {
        explain(w, std::current_exception());
        finish(w);
        continue;
      }
      const CaseEstimate& e = w.estimate;
      w.result.formula = e.formula;
      w.result.published_macs = e.published_macs;
      w.result.parameters = e.parameters;
      if (e.status != CaseStatus::ok) {
        w.result.status = e.status;
        w.result.reason = e.reason;
        finish(w);
      } else if (const int64_t limit = limit_of(w); limit > 0 && e.total() > limit) {
        w.result.status = CaseStatus::skipped;
        w.result.reason = fmt::format(
            "the case needs about {} (inputs {}, weights {}, outputs {}, workspace {}{}), and {} may be used",
            size_text(e.total()), size_text(e.inputs), size_text(e.weights), size_text(e.outputs),
            e.workspace_known ? "" : "at least ", size_text(e.workspace), size_text(limit));
        finish(w);
      }
    }
  }

  /// Before the first case rather than between the samples of one.
  void measure_ceilings() {
    if (options_.roofline == RunOptions::RooflinePolicy::off || !measures("time")) return;
    std::map<std::string, std::set<DType>> dtypes;
    for (const Work& w : work_)
      if (w.planned) dtypes[w.result.spec.device].insert(w.result.spec.problem.dtype);
    for (const auto& [device, types] : dtypes) {
      if (!backends_.at(device)) continue;
      try {
        Ceilings& c =
            ceilings_.emplace(device, Ceilings(probe_of(device), roofline_file(device))).first->second;
        if (options_.roofline == RunOptions::RooflinePolicy::remeasure)
          c.measure_all({types.begin(), types.end()}, threads_);
        for (const DType t : types) {
          c.fma_gflops(t, threads_);
          c.gemm_gflops(t, threads_);  // for claims about it; there may be none
        }
        for (const std::string& level : c.probe().levels())
          if (level.empty() || level == "read" || c.probe().level_capacity(level, threads_) > 0)
            c.gbytes_per_s(threads_, level);
      } catch (const std::exception& e) {
        observer_.warning(fmt::format("no result on {} carries its percentage of the machine's ceilings: {}",
                                      device, e.what()));
        ceilings_.erase(device);
      }
    }
    collect_ceilings();
  }

  PeakProbe& probe_of(const std::string& device) {
    if (device == "cpu") return options_.probe ? *options_.probe : cpu_peak_probe();
    if (options_.device_probe) return *options_.device_probe;
    return *(probes_[device] = device_peak_probe(*backends_.at(device)));
  }

  std::string roofline_file(const std::string& device) const {
    if (!options_.roofline_file) return roofline_cache_file(roofline_id(run_.environment, device));
    return device == "cpu" || options_.roofline_file->empty() ? *options_.roofline_file
                                                              : *options_.roofline_file + "-" + device;
  }

  /// The ceilings of all devices as one.
  void collect_ceilings() {
    run_.roofline = {};
    run_.roofline.from_cache = !ceilings_.empty();
    for (auto& [device, c] : ceilings_) {
      const Roofline& r = c.roofline();
      run_.roofline.gflops.insert(r.gflops.begin(), r.gflops.end());
      run_.roofline.gbytes_per_s.insert(r.gbytes_per_s.begin(), r.gbytes_per_s.end());
      run_.roofline.measured_at = std::max(run_.roofline.measured_at, r.measured_at);
      run_.roofline.from_cache = run_.roofline.from_cache && r.from_cache;
      for (const std::string& text : c.take_warnings()) observer_.warning(text);
    }
  }

  // ---- running ----

  void run_group(const std::vector<size_t>& group) {
    std::vector<size_t> members;
    std::optional<size_t> baseline;
    for (const size_t i : group) {
      if (work_[i].planned && !work_[i].final) members.push_back(i);
      const auto b = baseline_of(run_.suite, i);
      if (b) baseline = b;
    }
    std::vector<int64_t> bytes(work_.size());
    for (const size_t i : members) bytes[i] = work_[i].estimate.total();
    // Members on different devices are counted as if they shared the smaller one.
    int64_t limit = 0;
    for (const size_t i : members)
      if (const int64_t l = limit_of(work_[i]); l > 0) limit = limit > 0 ? std::min(limit, l) : l;
    const std::vector<Batch> batches = fit_into_memory(members, baseline, bytes, limit);
    for (const Batch& batch : batches) {
      if (batches.size() > 1)
        for (const size_t i : batch.members)
          if (baseline != i && !batch.partner &&
              std::find(batch.members.begin(), batch.members.end(), baseline.value_or(i)) ==
                  batch.members.end())
            measured_apart(work_[i]);
      std::vector<size_t> alone = run_batch(batch, baseline);
      for (const size_t i : alone) {
        if (stopped()) return;
        measured_apart(work_[i]);
        run_batch({{i}, std::nullopt}, baseline);
      }
      if (stopped()) return;
    }
  }

  void measured_apart(Work& w) {
    w.result.warnings.push_back(fmt::format(
        "measured apart from the cases that it is compared with, because they do not fit into {} together: "
        "drift of the machine between them is in the ratio",
        size_text(limit_of(w))));
  }

  /// Returns the members that ran out of memory beside the others and deserve a try alone.
  std::vector<size_t> run_batch(const Batch& batch, std::optional<size_t> baseline) {
    std::vector<size_t> ready, alone;
    int64_t used = 0;
    const bool shared = batch.members.size() > 1 || batch.partner;
    if (batch.partner) {
      Work& b = work_[*batch.partner];
      try {
        if (b.result.time) {
          b.executor->open(limit_of(b));
          used += b.estimate.total();
          ready.push_back(*batch.partner);
        }
      } catch (...) {
        b.executor->close();
      }
    }
    for (const size_t i : batch.members) {
      if (stopped()) break;
      Work& w = work_[i];
      observer_.case_started(i, work_.size(), w.result.spec, eta());
      try {
        const int64_t limit = limit_of(w);
        open_and_check(w, limit > 0 ? std::max<int64_t>(limit - used, 1) : 0);
        if (w.result.status == CaseStatus::ok || w.result.status == CaseStatus::unverified) {
          if (measures("time")) {
            used += w.result.memory ? w.result.memory->total_peak : 0;
            ready.push_back(i);
            continue;
          }
          if (!analyze(w)) break;
        }
      } catch (const OutOfMemory&) {
        if (shared) {
          w.executor->close();
          alone.push_back(i);
          continue;
        }
        explain(w, std::current_exception());
      } catch (...) {
        explain(w, std::current_exception());
      }
      finish(w);
    }
    if (!ready.empty() && !stopped()) sample(ready, batch.partner, baseline);
    // What is not final was interrupted, or was only a partner.
    for (const size_t i : ready) work_[i].executor->close();
    return alone;
  }

  /// From nothing to ready for sampling: instance, accounting, verification, stages.
  void open_and_check(Work& w, int64_t limit) {
    CaseResult& r = w.result;
    r.status = CaseStatus::ok;
    const double prepare_s = spent(w, "open", [&] { return w.executor->open(limit); });
    if (prepare_s >= kPrepareSeen) r.prepare_s = prepare_s;

    const Accounting a = spent(w, "account", [&] { return w.executor->account(); });
    r.counted = a.counted;
    r.formula = a.form.cost;
    r.published_macs = a.form.published_macs;
    r.parameters = a.form.parameters;
    r.decisions = a.decisions;
    r.memory = a.memory;
    r.formula_matches = a.counted == a.form.cost;
    if (!r.formula_matches && !a.form.data_dependent) {
      const auto text = [](const Cost& c) {
        return fmt::format("{} + {} + {} FLOPs (matmul, elementwise, special), {} + {} bytes (read, written)",
                           c.matmul, c.elementwise, c.special, c.bytes_read, c.bytes_written);
      };
      r.warnings.push_back("the counted cost differs from the closed form: counted " + text(a.counted) +
                           ", formula " + text(a.form.cost));
    }

    if (options_.verify) {
      const VerifyOutcome v =
          spent(w, "verify", [&] { return w.executor->verify(options_.verify_budget_s); });
      r.verification = v.result;
      if (!v.checked) {
        r.status = CaseStatus::unverified;
        r.reason = v.result.how;
      } else if (!v.result.passed) {
        r.status = CaseStatus::failed;
        r.reason = fmt::format("verification failed ({}, tolerance {:.2g}): {}", v.result.how,
                               v.result.tolerance, v.result.worst);
        return;
      }
      // The own shape was run too. Without file inputs nothing but an unwritten or broken element is NaN
      // there.
      const bool elsewhere = v.checked && v.result.how != "own shape";
      if (a.nan_outputs > 0 && elsewhere && v.nan_expected) {
        r.warnings.push_back(
            fmt::format("{} elements of the outputs are NaN at the case's own shape; the reference has such "
                        "elements as well, but whether these are the same was not compared",
                        a.nan_outputs));
      } else if (a.nan_outputs > 0 && v.result.how != "own shape" && r.spec.problem.inputs.file.empty()) {
        r.status = CaseStatus::failed;
        r.reason = fmt::format("{} elements of the outputs are NaN at the case's own shape ({})",
                               a.nan_outputs, v.result.how);
        r.verification->passed = false;
        return;
      }
    } else {
      r.status = CaseStatus::unverified;
      r.reason = "verification was switched off";
    }

    const bool staged =
        std::any_of(a.by_stage.begin(), a.by_stage.end(), [](const auto& s) { return !s.first.empty(); });
    if (staged && measures("time")) {
      const double affordable = kProfileShare * run_.suite.measure.max_time_s / std::max(a.seconds, 1e-9);
      const int runs = static_cast<int>(std::clamp(affordable, 1.0, static_cast<double>(kProfileRuns)));
      r.stages = spent(w, "profile", [&] { return w.executor->profile(runs); });
      double total = 0;
      for (const StageTime& s : r.stages) total += s.median_s;
      for (StageTime& s : r.stages)
        if (const auto it = a.by_stage.find(s.stage); it != a.by_stage.end()) s.cost = it->second;
      std::erase_if(r.stages, [&](const StageTime& s) {
        return s.stage.empty() && s.cost == Cost{} && s.median_s <= kUncoveredShare * total;
      });
      for (StageTime& s : r.stages)
        if (s.stage.empty()) s.stage = "other";
    }
  }

  void sample(const std::vector<size_t>& ready, std::optional<size_t> partner,
              std::optional<size_t> baseline) {
    std::vector<Sampler::Member> members;
    std::optional<size_t> at;
    for (size_t k = 0; k < ready.size(); ++k) {
      const Work& w = work_[ready[k]];
      members.push_back({w.result.spec.name, w.executor.get(),
                         run_.suite.measure.cache_on(w.result.spec.device) == "cold"});
      if (baseline == ready[k]) at = k;
    }
    // A device's long loop would heat it for those that are still sampled: it waits until all are done.
    std::vector<size_t> to_sustain;
    Sampler sampler(run_.suite.measure, clock_, options_.stop);
    double since_s = clock_.now_s();
    sampler.run(members, at, [&](size_t k, const std::vector<Samples>& all) {
      const size_t i = ready[k];
      if (partner == i) return;
      Work& w = work_[i];
      charge(w, "sample", since_s);
      try {
        if (all[k].failure) std::rethrow_exception(all[k].failure);
        timed(w, all[k]);
        compare(w, all[k], baseline, at ? &all[*at] : nullptr);
        if (w.result.spec.device != "cpu") {
          to_sustain.push_back(i);
          since_s = clock_.now_s();
          return;
        }
        if (!analyze(w)) return;
      } catch (...) {
        explain(w, std::current_exception());
      }
      finish(w);
      since_s = clock_.now_s();
    });
    for (const size_t i : to_sustain) {
      Work& w = work_[i];
      try {
        const double loop_s = std::min(kSustainSeconds, kSustainShare * run_.suite.measure.max_time_s);
        w.result.sustained =
            spent(w, "sustain", [&] { return w.executor->sustain(loop_s, [this] { return stopped(); }); });
        if (!analyze(w)) continue;
      } catch (...) {
        explain(w, std::current_exception());
      }
      finish(w);
    }
  }

  void timed(Work& w, const Samples& s) {
    CaseResult& r = w.result;
    const MeasureConfig& m = run_.suite.measure;
    Timing t = summarize(s.seconds, s.iterations, m.keep_samples);
    t.converged = s.converged;
    t.submission = w.executor->submission();
    for (std::string& text : w.executor->take_warnings()) r.warnings.push_back(std::move(text));
    r.warnings.insert(r.warnings.end(), s.warnings.begin(), s.warnings.end());
    if (!t.converged) {
      const double half = std::max(t.ci_high_s - t.median_s, t.median_s - t.ci_low_s) / t.median_s;
      r.warnings.push_back(
          fmt::format("not converged: the median is known to ±{:.2g}% after {} samples, {:.2g}% are wanted; "
                      "raise max_time ({:.3g} s)"
                      " or quieten the machine",
                      100 * half, t.samples, 100 * m.precision, m.max_time_s));
    }
    r.time = t;
    const auto ceilings = ceilings_.find(r.spec.device);
    if (ceilings == ceilings_.end()) return;
    const MemoryBytes mem = r.memory.value_or(MemoryBytes{});
    const BoundOutcome o = place_under_ceilings(ceilings->second, r.counted, t.median_s, r.spec.problem.dtype,
                                                threads_, mem.total_peak);
    if (o.inconsistent.empty()) {
      r.bound = o.bound;
    } else {
      r.status = CaseStatus::inconsistent;
      r.reason = o.inconsistent;
    }
  }

  void compare(Work& w, const Samples& mine, std::optional<size_t> baseline, const Samples* its) {
    if (!baseline || work_[*baseline].result.id == w.result.id) return;
    const auto own = baseline_of(run_.suite, static_cast<size_t>(&w - work_.data()));
    if (own != baseline || w.result.status == CaseStatus::inconsistent) return;
    const CaseResult& b = work_[*baseline].result;
    if (b.status == CaseStatus::inconsistent) return;
    if (its && !its->failure) {
      const Pairs p = pair_samples(*its, mine);
      if (p.subject_s.size() >= kLeastPairs) {
        w.result.ratio = paired_ratio(p.baseline_s, p.subject_s);
        w.result.ratio->baseline = b.spec.name;
        return;
      }
    }
    if (b.time) {
      w.result.ratio = unpaired_ratio(*b.time, *w.result.time);
      w.result.ratio->baseline = b.spec.name;
      w.result.warnings.push_back(fmt::format(
          "the ratio to '{}' is not from interleaved samples: drift of the machine is in it", b.spec.name));
    } else {
      w.result.warnings.push_back(
          fmt::format("no ratio: the baseline '{}' is {}", b.spec.name,
                      b.reason.empty() ? "not measured" : std::string(name(b.status))));
    }
  }

  /// False when the stop flag cut it short: the case is not final then, and resuming runs it again.
  bool analyze(Work& w) {
    if (run_.suite.analyses.empty()) return true;
    return spent(w, "analyze", [&] { return analyses_of(w); });
  }

  bool analyses_of(Work& w) {
    for (const std::string& id : run_.suite.analyses) {
      if (stopped()) return false;
      try {
        const auto given = run_.suite.analysis_params.find(id);
        w.result.analyses.push_back(w.executor->analyze(
            id, given == run_.suite.analysis_params.end() ? std::map<std::string, Value>{} : given->second));
      } catch (const std::bad_alloc&) {
        w.result.warnings.push_back(fmt::format("analysis '{}': the memory did not suffice", id));
      } catch (const std::exception& e) {
        w.result.warnings.push_back(fmt::format("analysis '{}': {}", id, e.what()));
      }
    }
    return true;
  }

  // ---- where the run's own time goes ----

  void charge(Work& w, const char* phase, double since_s) {
    if (const double s = clock_.now_s() - since_s; s > 0) w.result.elapsed_s[phase] += s;
  }

  /// Charged when it throws as well: what failed late was paid for too.
  template <class F>
  std::invoke_result_t<F> spent(Work& w, const char* phase, const F& work) {
    const double since_s = clock_.now_s();
    try {
      auto result = work();
      charge(w, phase, since_s);
      return result;
    } catch (...) {
      charge(w, phase, since_s);
      throw;
    }
  }

  // ---- ends ----

  /// Turns an exception into status and reason.
  static void explain(Work& w, const std::exception_ptr& failure) {
    CaseResult& r = w.result;
    try {
      std::rethrow_exception(failure);
    } catch (const Unsupported& e) {
      r.status = CaseStatus::unsupported;
      r.reason = e.what();
    } catch (const DeviceAbsent& e) {
      r.status = CaseStatus::skipped;
      r.reason = e.what();
    } catch (const OutOfMemory& e) {
      r.status = CaseStatus::skipped;
      r.reason = e.what();
      if (w.estimate.total() > 0)
        r.reason += fmt::format("; the case was estimated at {}{}",
                                w.estimate.workspace_known ? "" : "at least ", size_text(w.estimate.total()));
    } catch (const std::bad_alloc&) {
      r.status = CaseStatus::skipped;
      r.reason = "the system had no memory left while the case was run";
    } catch (const std::exception& e) {
      r.status = CaseStatus::failed;
      r.reason = e.what();
    } catch (...) {
      r.status = CaseStatus::failed;
      r.reason = "something that is no error was thrown";
    }
  }

  void finish(Work& w) {
    w.final = true;
    if (w.executor) w.executor->close();
    observer_.case_finished(w.result);
    ++finished_here_;
  }

  std::optional<double> eta() const {
    if (finished_here_ == 0) return std::nullopt;
    const auto left = std::count_if(work_.begin(), work_.end(), [](const Work& w) { return !w.final; });
    return (clock_.now_s() - started_s_) / finished_here_ * static_cast<double>(left);
  }

  ClaimResult evaluate(const Claim& claim) const {
    try {
      return options_.evaluate_claim(claim, run_);
    } catch (const std::exception& e) {
      ClaimResult c;
      c.claim = claim;
      c.reason = e.what();
      return c;
    }
  }

  const RunOptions& options_;
  RunObserver& observer_;
  SteadyClock steady_;
  Clock& clock_;
  RunResult run_;
  std::vector<Work> work_;
  std::vector<std::pair<size_t, std::exception_ptr>> refused_;
  std::map<std::string, Backend*> backends_;  ///< by device; null: not usable, or unknown to mocks
  std::map<std::string, Ceilings> ceilings_;  ///< by device
  std::map<std::string, std::unique_ptr<PeakProbe>> probes_;
  ExecutorFactory make_;
  InputCache inputs_{usable_memory(kCachedInputs)};
  int threads_ = 1;
  std::map<std::string, int64_t> memory_limit_;  ///< by device
  double started_s_ = 0;
  int finished_here_ = 0;
};

}  // namespace

RunResult run_suite(const Suite& suite, const RunOptions& options, RunObserver& observer) {
  return Run(suite, options, observer).go();
}

}  // namespace attnbench
