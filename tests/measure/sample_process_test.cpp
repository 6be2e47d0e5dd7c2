#include "measure/sample_process.hpp"

#include "../catch.hpp"
#include "kernels/core/error.hpp"
#include "measure/slowed.hpp"
#include "mocks.hpp"

using namespace attnbench;

namespace {

std::vector<std::string> shell(const std::string& script) { return {"/bin/sh", "-c", script}; }

std::string error_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("two processes are sampled in turn") {
  PairPlan plan;
  plan.least = plan.most = 6;
  const PairedSamples p = sample_pair(
      shell("echo ready 0.001; while read n; do echo 0.02; done"),
      shell("echo ready 0.001; i=0; while read n; do i=$((i+1)); echo 0.0$((20 + i)); done"), plan);
  CHECK(p.before_s == std::vector<double>(6, 0.02));
  CHECK(p.now_s == std::vector<double>{0.021, 0.022, 0.023, 0.024, 0.025, 0.026});
}

TEST_CASE("a sample holds enough executions of the old program") {
  PairPlan plan;
  plan.least = plan.most = 2;
  plan.sample_s = 0.01;
  // The child answers with what it was asked for.
  const PairedSamples p = sample_pair(shell("echo ready 0.003; while read n; do echo $n; done"),
                                      shell("echo ready 0.5; while read n; do echo $n; done"), plan);
  CHECK(p.before_s == std::vector<double>{4, 4});
  CHECK(p.now_s == std::vector<double>{4, 4});
}

TEST_CASE("children that cannot or do not answer are told of") {
  const PairPlan plan;
  const auto good = shell("echo ready 0.001; while read n; do echo 0.02; done");
  CHECK(error_of([&] { sample_pair({"/no/such/program"}, good, plan); }).find("/no/such/program") !=
        std::string::npos);
  CHECK(error_of([&] {
          sample_pair(shell("echo error no such case >&1; exit 2"), good, plan);
        }).find("no such case") != std::string::npos);
  CHECK(error_of([&] {
          sample_pair(shell("echo unknown command >&2; exit 2"), good, plan);
        }).find("unknown command") != std::string::npos);
  CHECK(error_of([&] { sample_pair(shell("echo hello; cat"), good, plan); }).find("hello") !=
        std::string::npos);
  CHECK(error_of([&] {
          sample_pair(good, shell("echo ready 0.001; read n; exit 0"), plan);
        }).find("ended before") != std::string::npos);
  CHECK(error_of([&] {
          sample_pair(good, shell("echo ready 0.001; while read n; do echo nan; done"), plan);
        }).find("for a time") != std::string::npos);
}

TEST_CASE("an injected slowdown lengthens every timed run and says so") {
  mock::World world;
  world["a"].seconds = [](int64_t) { return 0.02; };
  const ExecutorFactory make = slowed(mock::factory(world), 0.05);
  const auto e = make(mock::make_case("a"), {&world.clock, 1, "", nullptr});
  e->open(0);
  CHECK(e->run(1) == Approx(0.021));
  CHECK(e->run(10) == Approx(0.21));
  REQUIRE(e->take_warnings().size() == 1);
  CHECK_THROWS_AS(slowed(mock::factory(world), -1), UsageError);
  // On a real clock the spin takes the time that it says.
  SteadyClock clock;
  const auto real = make(mock::make_case("a"), {&clock, 1, "", nullptr});
  real->open(0);
  const double begin = clock.now_s();
  const double took = real->run(1);
  CHECK(took >= 0.021);
  CHECK(clock.now_s() - begin >= 0.001);
}
