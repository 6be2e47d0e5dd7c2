#include "measure/shard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <set>

#include "measure/estimate.hpp"
#include "measure/plan.hpp"

namespace attnbench {

namespace {

// Rates of a plain machine; only their proportions move cases between parts.
constexpr double kFlopsPerSecond = 5e10, kBytesPerSecond = 1e10;
// Opening, accounting and the stages' pass are some runs; verification is cut to about a second.
constexpr double kRunsBeside = 5, kMostVerify = 1.0;
constexpr const char* kMark = "shard: ";

/// The part that a results file is, from the last line of its suite's text; and the text without it.
std::pair<Shard, std::string> shard_in(const std::string& resolved) {
  const size_t at = resolved.rfind(kMark);
  if (at == std::string::npos || (at > 0 && resolved[at - 1] != '\n')) return {{1, 1}, resolved};
  std::string line = resolved.substr(at + std::string(kMark).size());
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return {parse_shard(line), resolved.substr(0, at)};
}

/// Where the suite's text names the case. The text escapes as canonical.cpp does.
size_t place_in(const std::string& resolved, const std::string& name) {
  std::string quoted;
  for (const char c : name) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return resolved.find("\n- {name: \"" + quoted + "\",");
}

}  // namespace

Shard parse_shard(const std::string& text) {
  Shard s;
  int n = 0;
  if (std::sscanf(text.c_str(), "%9d/%9d%n", &s.index, &s.count, &n) != 2 ||
      n != static_cast<int>(text.size()) || s.count < 1 || s.index < 1 || s.index > s.count)
    throw UsageError("'" + text + "' is no part; 2/5 is the second of five");
  return s;
}

double estimated_seconds(const Case& c, const MeasureConfig& m) {
  const CaseEstimate e = estimate_case(c);
  if (e.status != CaseStatus::ok) return 0.01;
  const Cost& cost = e.counted.flops() || e.counted.bytes() ? e.counted : e.formula;
  const double run = static_cast<double>(cost.flops()) / kFlopsPerSecond +
                     static_cast<double>(cost.bytes()) / kBytesPerSecond;
  const double sampling = std::clamp(run * m.min_samples, std::min(0.05 * m.max_time_s, m.max_time_s),
                                     std::max(m.max_time_s, 3 * run));
  return sampling + kRunsBeside * run + std::min(kMostVerify, 100 * run);
}

Suite shard_of(Suite suite, Shard shard) {
  const std::vector<std::vector<size_t>> groups = comparison_groups(suite);
  std::vector<double> cost(groups.size(), 0);
  for (size_t g = 0; g < groups.size(); ++g)
    for (const size_t i : groups[g]) cost[g] += estimated_seconds(suite.cases[i], suite.measure);
  std::vector<size_t> order(groups.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&cost](size_t a, size_t b) { return cost[a] > cost[b]; });
  std::vector<double> load(static_cast<size_t>(shard.count), 0);
  std::set<size_t> mine;
  for (const size_t g : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += cost[g];
    if (least - load.begin() + 1 == shard.index) mine.insert(groups[g].begin(), groups[g].end());
  }
  std::vector<Case> kept;
  for (const size_t i : mine) kept.push_back(suite.cases[i]);
  suite.cases = std::move(kept);
  suite.resolved_text += fmt::format("{}{}/{}\n", kMark, shard.index, shard.count);
  return suite;
}

RunResult merge_shards(std::vector<RunResult> parts, bool partial) {
  if (parts.empty()) throw UsageError("nothing to merge was given");
  std::set<int> seen;
  int count = 0;
  std::string text;
  RunResult all;
  for (RunResult& r : parts) {
    const auto [shard, plain] = shard_in(r.suite.resolved_text);
    if (count == 0) {
      count = shard.count;
      text = plain;
      all = r;
      all.cases.clear(), all.suite.cases.clear(), all.claims.clear();
      all.suite.resolved_text = plain;
    }
    if (plain != text || shard.count != count)
      throw UsageError(
          fmt::format("the results are not parts of one run: '{}' is of another suite, of other options "
                      "or of another number of parts than the first",
                      r.suite.name));
    if (r.environment.machine_id != all.environment.machine_id)
      throw UsageError(
          fmt::format("part {} is of machine {} and part {} of machine {}: a results file is of one machine",
                      *seen.begin(), all.environment.machine_id, shard.index, r.environment.machine_id));
    if (!seen.insert(shard.index).second)
      throw UsageError(fmt::format("part {} of {} is there twice", shard.index, count));
    all.started_at = std::min(all.started_at, r.started_at);
    all.finished_at = std::max(all.finished_at, r.finished_at);
    all.interrupted = all.interrupted || r.interrupted;
    for (const auto& [key, v] : r.roofline.gflops) all.roofline.gflops.emplace(key, v);
    for (const auto& [key, v] : r.roofline.gbytes_per_s) all.roofline.gbytes_per_s.emplace(key, v);
    for (CaseResult& c : r.cases) all.cases.push_back(std::move(c));
    for (Case& c : r.suite.cases) all.suite.cases.push_back(std::move(c));
  }
  if (static_cast<int>(seen.size()) < count) {
    std::string missing;
    for (int i = 1; i <= count; ++i)
      if (!seen.contains(i)) missing += (missing.empty() ? "" : ", ") + std::to_string(i);
    if (!partial)
      throw UsageError(
          fmt::format("part {} of {} is missing; --partial merges what there is", missing, count));
    all.interrupted = true;
  }
  std::stable_sort(all.cases.begin(), all.cases.end(), [&text](const CaseResult& a, const CaseResult& b) {
    return place_in(text, a.spec.name) < place_in(text, b.spec.name);
  });
  std::stable_sort(all.suite.cases.begin(), all.suite.cases.end(), [&text](const Case& a, const Case& b) {
    return place_in(text, a.name) < place_in(text, b.name);
  });
  return all;
}

}  // namespace attnbench
