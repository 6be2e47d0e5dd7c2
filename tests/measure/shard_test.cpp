#include "measure/shard.hpp"

#include <set>

#include "../catch.hpp"
#include "measure/runner.hpp"
#include "mocks.hpp"
#include "suite/parse.hpp"

using namespace attnbench;

namespace {

const char* kSuite = R"(
suite: parts
defaults: { dtype: f32, devices: [cpu], max_time: 2s }
problem: { kind: sequence, batch: 1, heads: 2, head_dim: 32 }
axes: { problem.length: [64, 128, 256, 512, 1024] }
cases:
  - { name: dense, method: dense }
  - { name: q.x-1, method: naive }
  - { name: w, method: sliding_window, params: { window: 15 } }
baseline: dense
)";

RunResult measured(const Suite& suite) {
  RunResult r;
  r.suite = suite;
  r.environment.machine_id = "m1";
  r.started_at = "2026-01-01T00:00:00Z";
  for (const Case& c : suite.cases) {
    CaseResult x;
    x.spec = c;
    x.id = "id-" + c.name;
    r.cases.push_back(x);
  }
  return r;
}

std::string error_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("parts of a suite are disjoint, complete, balanced, and keep what is compared together") {
  const Suite suite = parse_suite(kSuite, "s.yaml");
  REQUIRE(suite.cases.size() == 15);
  for (const int count : {1, 2, 3, 5}) {
    std::set<std::string> seen;
    std::vector<double> load;
    for (int i = 1; i <= count; ++i) {
      const Suite part = shard_of(suite, {i, count});
      double seconds = 0;
      std::set<std::string> lengths;
      std::map<std::string, int> of_length;
      for (const Case& c : part.cases) {
        CHECK(seen.insert(c.name).second);
        seconds += estimated_seconds(c, suite.measure);
        ++of_length[c.axes.begin()->second.str()];
      }
      for (const auto& [length, n] : of_length) CHECK(n == 3);
      load.push_back(seconds);
      CHECK(part.resolved_text != suite.resolved_text);
    }
    CHECK(seen.size() == suite.cases.size());
    double most = 0, sum = 0;
    for (const double s : load) most = std::max(most, s), sum += s;
    // No part takes longer than the mean and one group.
    double group = 0;
    for (const Case& c : suite.cases) group = std::max(group, 3 * estimated_seconds(c, suite.measure));
    CHECK(most <= sum / count + group + 1e-9);
  }
  CHECK(shard_of(suite, {4, 7}).cases.size() + shard_of(suite, {7, 7}).cases.size() < 15);
}

TEST_CASE("merging gives the run that was not cut into parts") {
  const Suite suite = parse_suite(kSuite, "s.yaml");
  std::vector<RunResult> parts;
  for (int i = 3; i >= 1; --i) parts.push_back(measured(shard_of(suite, {i, 3})));
  parts[1].started_at = "2025-12-31T00:00:00Z";
  const RunResult all = merge_shards(parts, false);
  REQUIRE(all.cases.size() == suite.cases.size());
  for (size_t i = 0; i < suite.cases.size(); ++i) {
    CHECK(all.cases[i].spec.name == suite.cases[i].name);
    CHECK(all.suite.cases[i].name == suite.cases[i].name);
  }
  CHECK(all.suite.resolved_text == suite.resolved_text);
  CHECK(all.started_at == "2025-12-31T00:00:00Z");
  CHECK_FALSE(all.interrupted);
}

TEST_CASE("what does not belong together is not merged") {
  const Suite suite = parse_suite(kSuite, "s.yaml");
  const RunResult a = measured(shard_of(suite, {1, 3})), b = measured(shard_of(suite, {2, 3}));
  CHECK(error_of([&] { merge_shards({a, b}, false); }).find("part 3 of 3 is missing") != std::string::npos);
  CHECK(merge_shards({a, b}, true).interrupted);
  CHECK(error_of([&] { merge_shards({a, a}, true); }).find("twice") != std::string::npos);
  RunResult c = measured(shard_of(suite, {3, 3}));
  c.environment.machine_id = "m2";
  CHECK(error_of([&] { merge_shards({a, b, c}, false); }).find("machine m2") != std::string::npos);
  CHECK(error_of([&] {
          merge_shards({a, measured(shard_of(suite, {2, 2}))}, true);
        }).find("not parts") != std::string::npos);
  CHECK(error_of([&] { merge_shards({}, true); }).find("nothing") != std::string::npos);
  // A run that was never cut is a part of its own.
  CHECK(merge_shards({measured(suite)}, false).cases.size() == 15);
}

TEST_CASE("parts are named I/N") {
  CHECK(parse_shard("2/5").index == 2);
  CHECK(parse_shard("2/5").count == 5);
  for (const char* bad : {"", "2", "0/3", "4/3", "1/0", "1/2x", "a/b", "-1/2"})
    CHECK_THROWS_AS(parse_shard(bad), UsageError);
}
