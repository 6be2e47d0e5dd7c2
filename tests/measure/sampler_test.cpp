#include "measure/sampler.hpp"

#include <algorithm>

#include "measure/statistics.hpp"
#include "tests/catch.hpp"
#include "tests/measure/mocks.hpp"

using namespace attnbench;
using namespace attnbench::mock;

namespace {
struct Bench {
  World world;
  MeasureConfig config;
  std::vector<std::unique_ptr<MockExecutor>> executors;
  std::vector<Sampler::Member> members;

  explicit Bench(const std::vector<std::string>& names) {
    config.max_time_s = 1.0;
    for (const std::string& n : names) world[n];
    add(names);
  }
  void add(const std::vector<std::string>& names) {
    for (const std::string& n : names) {
      executors.push_back(std::make_unique<MockExecutor>(world, n));
      executors.back()->open(0);
      members.push_back({n, executors.back().get()});
    }
    world.log.clear();
  }
  std::vector<Samples> run(std::optional<size_t> baseline = std::nullopt,
                           const std::atomic<bool>* stop = nullptr) {
    return Sampler(config, world.clock, stop).run(members, baseline, {});
  }
  /// Entries of the log after the warm-up of all members, given its length.
  std::vector<std::string> after(size_t warm_up) const {
    return {world.log.begin() + static_cast<std::ptrdiff_t>(warm_up), world.log.end()};
  }
};
}  // namespace

TEST_CASE("members take samples in turn, the order rotated every round") {
  Bench b({"A", "B", "C"});
  b.config.max_samples = 4;
  b.config.min_samples = 4;
  const std::vector<Samples> s = b.run();
  // Warming up: runs of 20 ms until 50 ms are over, three each.
  CHECK(std::vector<std::string>(b.world.log.begin(), b.world.log.begin() + 9) ==
        std::vector<std::string>{"run A", "run A", "run A", "run B", "run B", "run B", "run C", "run C",
                                 "run C"});
  CHECK(b.after(9) == std::vector<std::string>{"run A", "run B", "run C",  //
                                               "run B", "run C", "run A",  //
                                               "run C", "run A", "run B",  //
                                               "run A", "run B", "run C"});
  for (const Samples& x : s) CHECK(x.seconds.size() == 4);
}

TEST_CASE("two members alternate who goes first") {
  Bench b({"A", "B"});
  b.config.max_samples = b.config.min_samples = 3;
  b.run();
  CHECK(b.after(6) == std::vector<std::string>{"run A", "run B", "run B", "run A", "run A", "run B"});
}

TEST_CASE("warm-up is not counted") {
  Bench b({"A"});
  // The first calls are slow; the samples after them are not.
  b.world["A"].seconds = [](int64_t call) { return call < 2 ? 0.09 : 0.02; };
  const Samples s = b.run()[0];
  CHECK(std::all_of(s.seconds.begin(), s.seconds.end(), [](double x) { return x == Approx(0.02); }));
  CHECK(s.converged);
}

TEST_CASE("a run that is slow against its time is warmed up once") {
  Bench b({"A"});
  b.world["A"].seconds = [](int64_t) { return 5.0; };
  const Samples s = b.run()[0];
  CHECK(b.world.log.size() == 1 + 3);
  CHECK(s.seconds.size() == 3);
}

TEST_CASE("short runs are repeated inside a sample until they dwarf the clock") {
  Bench b({"A"});
  b.world["A"].seconds = [](int64_t) { return 3e-6; };
  const Samples s = b.run()[0];
  CHECK(s.iterations == 334);  // 1 ms / 3 us, rounded up
  CHECK(s.seconds[0] == Approx(3e-6));
  CHECK(b.world.log.back() == "run A x334");
  // A coarse clock asks for more than the configured time: 1000 of its steps.
  b.config.min_sample_s = 1e-9;
  CHECK(b.run()[0].iterations == 1);  // 3 us are 3000 steps of 1 ns
}

TEST_CASE("interleaved short runs are warmed again, at a twentieth of the time") {
  Bench b({"A", "B"});
  b.world["A"].seconds = b.world["B"].seconds = [](int64_t) { return 0.002; };
  b.config.max_samples = b.config.min_samples = 3;
  const std::vector<Samples> s = b.run();
  CHECK(s[0].iterations == 20);
  const std::vector<std::string> tail(b.world.log.end() - 4, b.world.log.end());
  CHECK(tail == std::vector<std::string>{"run A", "run A x20", "run B", "run B x20"});
}

TEST_CASE("warming again leaves room for the samples that are wanted") {
  Bench b({"A", "B"});
  b.world["A"].seconds = [](int64_t) { return 0.005; };   // 1 s / (2 x 10 x 5 ms) = 10 runs a sample
  b.world["B"].seconds = [](int64_t) { return 0.0095; };  // 5 runs a sample
  std::vector<Samples> s = b.run();
  CHECK(s[0].iterations == 10);
  CHECK(s[1].iterations == 5);
  b.config.max_time_s = 0.9;  // 4.7 of B's: not worth it
  s = b.run();
  CHECK(s[1].iterations == 1);
}

TEST_CASE("cold samples flush before every single run") {
  Bench b({"A"});
  b.config.cache = "cold";
  b.config.max_samples = b.config.min_samples = 3;
  b.world["A"].seconds = [](int64_t) { return 1e-4; };
  const Samples s = b.run()[0];
  CHECK(s.iterations == 1);
  CHECK(b.world.count("flush") == 3);
  const std::vector<std::string> tail(b.world.log.end() - 6, b.world.log.end());
  CHECK(tail == std::vector<std::string>{"flush", "run A", "flush", "run A", "flush", "run A"});
  REQUIRE(s.warnings.size() == 1);
  CHECK_THAT(s.warnings[0], ContainsSubstring("short for a clock"));
}

TEST_CASE("flushing counts against the case's time") {
  Bench b({"A"});
  b.config.cache = "cold";
  b.config.max_time_s = 0.05;
  b.config.min_samples = 1000;
  b.world["A"].seconds = [](int64_t call) { return call % 2 ? 1e-6 : 2e-6; };
  // Each sample costs a flush of 1 ms: 50 of them.
  const size_t n = b.run()[0].seconds.size();
  CHECK(n >= 49);
  CHECK(n <= 51);
}

TEST_CASE("a finished member leaves the rounds, the baseline stays for pairs") {
  Bench b({"base", "noisy"});
  b.config.max_time_s = 3.0;
  b.world["noisy"].seconds = [](int64_t call) { return call % 2 ? 0.03 : 0.06; };
  std::vector<size_t> order;
  const std::vector<Samples> s =
      Sampler(b.config, b.world.clock).run(b.members, 0, [&](size_t i, const auto&) { order.push_back(i); });
  CHECK(s[0].converged);
  CHECK_FALSE(s[1].converged);
  CHECK(s[0].seconds.size() == s[1].seconds.size());
  CHECK(s[1].seconds.size() > 60);
  CHECK(order == std::vector<size_t>{1, 0});

  // Without being the baseline it leaves once it has converged.
  Bench c({"quiet", "noisy"});
  c.world["noisy"].seconds = [](int64_t call) { return call % 2 ? 0.03 : 0.06; };
  const std::vector<Samples> t = c.run();
  CHECK(t[0].seconds.size() == 10);
  CHECK(t[1].seconds.size() > 10);
}

TEST_CASE("pairs are samples of the same round") {
  Samples a, b;
  a.seconds = {1, 2, 3, 4};
  a.round = {0, 1, 2, 3};
  b.seconds = {10, 30, 40};
  b.round = {0, 2, 4};
  const Pairs p = pair_samples(a, b);
  CHECK(p.baseline_s == std::vector<double>{1, 3});
  CHECK(p.subject_s == std::vector<double>{10, 30});
}

TEST_CASE("drift that both members see cancels in the ratio, thanks to the rotation") {
  Bench b({"A", "B"});
  b.config.max_samples = b.config.min_samples = 40;
  b.config.max_time_s = 1e9;
  // Time itself slows everything down: 1% per second, and A is 5% slower than B.
  MockClock& clock = b.world.clock;
  const double origin = clock.now;
  const auto slow = [&clock, origin](double s) {
    return [&clock, origin, s](int64_t) { return s * (1 + 0.01 * (clock.now - origin)); };
  };
  b.world["A"].seconds = slow(0.0525);
  b.world["B"].seconds = slow(0.05);
  const std::vector<Samples> s = b.run(0);
  const Pairs p = pair_samples(s[0], s[1]);
  const Ratio r = paired_ratio(p.baseline_s, p.subject_s);
  CHECK(r.value == Approx(1.05).epsilon(0.001));
  CHECK(r.ci_low <= 1.05);
  CHECK(r.ci_high >= 1.05);
}

TEST_CASE("a run that throws ends its member only") {
  Bench b({"A", "B"});
  b.world["A"].on_run = [](int64_t call) {
    if (call == 5) throw OutOfMemory("nothing left");
  };
  const std::vector<Samples> s = b.run();
  CHECK(s[0].failure);
  CHECK_FALSE(s[1].failure);
  CHECK(s[1].converged);
  CHECK(s[1].seconds.size() == 10);
}

TEST_CASE("the stop flag ends it after the sample in flight") {
  Bench b({"A", "B"});
  std::atomic<bool> stop{false};
  b.world["B"].on_run = [&](int64_t call) { stop = call == 6; };
  const std::vector<Samples> s = b.run(std::nullopt, &stop);
  CHECK(s[1].seconds.size() == 4);
  CHECK(b.world.log.back() == "run B");
  CHECK_FALSE(s[0].converged);
}

TEST_CASE("a machine that changes under the measurement is told") {
  Bench b({"A"});
  b.config.min_samples = b.config.max_samples = 40;
  b.config.max_time_s = 100;
  b.world["A"].seconds = [](int64_t call) { return call < 23 ? 0.02 : 0.03; };
  const Samples s = b.run()[0];
  REQUIRE(s.warnings.size() == 1);
  CHECK_THAT(s.warnings[0], ContainsSubstring("the machine changed"));
}
