#include "measure/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "measure/statistics.hpp"

namespace attnbench {

namespace {
// A reading may be off by one step of the clock plus its own cost. A sample 1000 times longer keeps that
// under 0.1%, a tenth of the default precision.
constexpr double kSampleOverClock = 1000;

// A device's clock takes no time to read, and where within its step a run begins is random: the median of
// many cold samples resolves finer than one of them. Each is to be within a twentieth all the same.
constexpr double kColdOverDevice = 20;

// Warming up ends after this many runs and this long (a tenth of the case's time at most): pages are touched,
// thread teams started, clocks raised. A run that takes more than a tenth of the case's time is not repeated.
constexpr int kWarmUpRuns = 2;
constexpr int kMostWarmUpRuns = 1000;  // ends it even when the clock stands still
constexpr double kWarmUpSeconds = 0.05;

// Interleaved members find the other members' data in the caches. Where a run is shorter than kRewarmBelow,
// refilling them (32 MB at 10 GB/s: about 3 ms) would be seen in a sample that is to be "hot": an untimed run
// comes first, and samples hold at least twenty runs so that this costs a twentieth of the time.
constexpr double kRewarmBelow = 0.01;
constexpr int64_t kRunsPerRewarm = 20;
constexpr int64_t kLeastRunsPerRewarm = 5;  // fewer, and warming would take more than a fifth

// Two halves of the samples whose medians differ by this multiple of the wanted precision, and whose
// intervals do not overlap, say that the machine was changing under the measurement.
constexpr double kDrift = 2.0;
}  // namespace

struct Sampler::State {
  Member member;
  Samples samples;
  std::unique_ptr<StoppingCriterion> criterion;
  double run_s = 0;    ///< one execution, from warming up
  double spent_s = 0;  ///< sampling only
  bool rewarm = false;
  bool cold = false;
  bool needs_no_more = false;  ///< the criterion is finished
  bool done = false;           ///< takes no more samples
};

Pairs pair_samples(const Samples& baseline, const Samples& subject) {
  Pairs p;
  size_t i = 0, j = 0;
  while (i < baseline.round.size() && j < subject.round.size()) {
    if (baseline.round[i] < subject.round[j]) {
      ++i;
    } else if (subject.round[j] < baseline.round[i]) {
      ++j;
    } else {
      p.baseline_s.push_back(baseline.seconds[i++]);
      p.subject_s.push_back(subject.seconds[j++]);
    }
  }
  return p;
}

Sampler::Sampler(const MeasureConfig& config, Clock& clock, const std::atomic<bool>* stop)
    : config_(config), clock_(clock), stop_(stop) {
  criterion_ = [config] { return std::make_unique<MedianIntervalCriterion>(config); };
}

void Sampler::warm_up(State& s) {
  const double begin = clock_.now_s();
  const double own = s.member.timed->resolution_s();
  const double step = own > 0 ? own : clock_.resolution_s() + clock_.overhead_s();
  const double shortest = std::max(config_.min_sample_s, kSampleOverClock * step);
  const double wanted_s = std::min(kWarmUpSeconds, 0.1 * config_.max_time_s);
  int64_t n = 1;
  double took = 0;
  for (int runs = 1;; ++runs) {
    took = s.member.timed->run(n);
    if (stopped() || runs >= kMostWarmUpRuns) break;
    if (took < 0.5 * shortest) {
      // More executions at once until they are long enough for the clock; every step warms up as well.
      const double needed = took > 0 ? std::ceil(shortest / took * static_cast<double>(n)) : 1e12;
      n = static_cast<int64_t>(std::min(static_cast<double>(n) * 10, needed));
      continue;
    }
    const bool slow = took > 0.1 * config_.max_time_s;
    if (slow || (runs >= kWarmUpRuns && clock_.now_s() - begin >= wanted_s)) break;
  }
  s.run_s = took / static_cast<double>(n);
  if (s.cold) {
    // A second run inside the sample would find the caches filled by the first.
    s.samples.iterations = 1;
    if (s.run_s < (own > 0 ? kColdOverDevice * own : shortest))
      s.samples.warnings.push_back(
          fmt::format("cold samples hold one run of {:.3g} s, which is short for a clock that resolves "
                      "{:.2g} s: take a larger "
                      "problem, or `cache: hot`",
                      s.run_s, own > 0 ? own : clock_.resolution_s()));
  } else {
    s.samples.iterations =
        s.run_s >= shortest || s.run_s <= 0 ? 1 : static_cast<int64_t>(std::ceil(shortest / s.run_s));
  }
}

void Sampler::sample(State& s, int64_t round, bool interleaved) {
  const double begin = clock_.now_s();
  Timed& timed = *s.member.timed;
  if (s.cold)
    timed.flush_caches();
  else if (interleaved && s.rewarm)
    timed.run(1);
  const double took = timed.run(s.samples.iterations);
  const double seconds = took / static_cast<double>(s.samples.iterations);
  s.samples.seconds.push_back(seconds);
  s.samples.round.push_back(round);
  const double spent = clock_.now_s() - begin;
  s.spent_s += spent;
  s.criterion->add(seconds, spent);
}

std::vector<Samples> Sampler::run(const std::vector<Member>& members, std::optional<size_t> baseline,
                                  const Finished& finished) {
  std::vector<State> states(members.size());
  const auto all = [&states] {
    std::vector<Samples> v;
    for (const State& s : states) v.push_back(s.samples);
    return v;
  };
  const auto finish = [&](State& s) {
    s.done = true;
    const size_t n = s.samples.seconds.size();
    if (!s.samples.failure && n >= 16) {
      const auto middle = s.samples.seconds.begin() + static_cast<std::ptrdiff_t>(n / 2);
      const std::vector<double> first(s.samples.seconds.begin(), middle),
          second(middle, s.samples.seconds.end());
      const double a = median(first), b = median(second);
      const ConfidenceInterval x = median_interval(first), y = median_interval(second);
      if (std::abs(b / a - 1) > kDrift * config_.precision && (x.high < y.low || y.high < x.low))
        s.samples.warnings.push_back(fmt::format(
            "the machine changed during the measurement: the first half of the samples has median {:.4g} s, "
            "the second {:.4g} s; close other programs or fix the clock frequency",
            a, b));
    }
    if (finished) finished(static_cast<size_t>(&s - states.data()), all());
  };
  const auto guarded = [&](State& s, auto&& what) {
    try {
      what();
    } catch (...) {
      s.samples.failure = std::current_exception();
      finish(s);
    }
  };

  const bool interleaved = members.size() > 1;
  for (size_t i = 0; i < members.size() && !stopped(); ++i) {
    State& s = states[i];
    s.member = members[i];
    s.cold = s.member.cold.value_or(config_.cache == "cold");
    s.criterion = criterion_();
    s.criterion->start();
    guarded(s, [&] {
      warm_up(s);
      if (!interleaved || s.cold || s.run_s >= kRewarmBelow) return;
      // Twice the least number of samples has to fit into the case's time.
      const double most =
          s.run_s > 0 ? config_.max_time_s / (2.0 * config_.min_samples * s.run_s) : kRunsPerRewarm;
      const int64_t runs = static_cast<int64_t>(std::min(most, static_cast<double>(kRunsPerRewarm)));
      if (runs < kLeastRunsPerRewarm) return;
      s.rewarm = true;
      s.samples.iterations = std::max(s.samples.iterations, runs);
    });
  }

  for (int64_t round = 0; !stopped(); ++round) {
    std::vector<size_t> active;
    for (size_t i = 0; i < states.size(); ++i)
      if (!states[i].done) active.push_back(i);
    if (active.empty()) break;
    for (size_t k = 0; k < active.size() && !stopped(); ++k) {
      State& s = states[active[(k + static_cast<size_t>(round)) % active.size()]];
      if (!s.done) guarded(s, [&] { sample(s, round, interleaved); });
    }
    if (stopped()) break;
    // The baseline last: whether it goes on depends on who else does.
    bool others = false;
    const auto settle = [&](size_t i) {
      State& s = states[i];
      if (s.done) return;
      s.needs_no_more = s.needs_no_more || s.criterion->finished();
      s.samples.converged = s.criterion->converged();
      const bool pairs_wanted = baseline == i && others && s.spent_s < config_.max_time_s &&
                                s.samples.seconds.size() < static_cast<size_t>(config_.max_samples);
      if (s.needs_no_more && !pairs_wanted)
        finish(s);
      else
        others = true;
    };
    for (const size_t i : active)
      if (baseline != i) settle(i);
    if (baseline && *baseline < states.size()) settle(*baseline);
  }
  return all();
}

}  // namespace attnbench
