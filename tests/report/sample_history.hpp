// A history with everything that pages show: two suites, a step, a disturbed run, a failure, a changed
// machine, a second branch, names that attack.
#pragma once
#include <cmath>
#include <string>

#include "history/history.hpp"
#include "tests/report/sample_run.hpp"

namespace attnbench {

inline const std::string kAttack =
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)> "
    "\xe2\x80\xae\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d "
    "\xf0\x9f\x9a\x80 \xff\n&lt;";

/// Run `i` of a suite whose case "steps" is 10% slower from run 60 on.
inline RunResult history_run(const std::string& suite, int i, const std::string& hostile = {}) {
  RunResult run;
  run.suite.name = suite + hostile;
  run.suite.title = hostile.empty() ? "A suite" : hostile;
  run.suite_hash = "h";
  run.environment.machine_id = "m1";
  run.environment.values = {{"kernel", (i < 60 ? "6.1" : "6.2") + hostile}, {"load_1min", 0.25 * (i % 5)}};
  run.started_at = run.finished_at = time_text(parse_time("2026-01-01") + i * 86400);
  for (const char* word : {"steps", "steady"}) {
    CaseResult c = sample_case_result(word + hostile);
    c.spec.base_name = c.spec.name;
    c.id = suite + word;
    // Noise of 1%, the same in every build.
    const double noise = 1 + 0.01 * std::sin(12.9898 * i + (word[3] == 'p' ? 0 : 2));
    const double level = word[3] == 'p' && i >= 60 ? 1.1e-3 : 1e-3;
    const double t = level * noise * (i == 20 ? 1.8 : 1);
    *c.time = Timing{t, t * 0.995, t * 1.005, t * 0.99, t * 0.99, t * 1.02, t * 0.01, t, 20, 1, true, {}, ""};
    c.counted = {1000000, 0, 0, 4000, 4000};
    c.memory->total_peak = i < 30 ? 4096 : 8192;
    if (word[3] == 'a' && i == 40) {
      c.status = CaseStatus::failed, c.reason = "it broke" + hostile;
      c.time.reset();
    }
    run.cases.push_back(c);
  }
  return run;
}

/// `runs` of each of two suites; the last one of "first" has the verdicts slower and same.
inline void fill_history(const std::string& path, int runs, bool hostile) {
  History history(path, History::Mode::create);
  for (const char* suite : {"first", "second"})
    for (int i = 0; i < runs; ++i) {
      AddOptions options;
      options.branch = "main";
      options.revision = "rev" + std::to_string(1000000 + i);
      options.verdict = [i](const CaseResult& c, const auto&, const auto&) -> std::string {
        return i < 5 ? "" : c.id == "firststeps" && i >= 60 ? "slower" : "same";
      };
      history.add(history_run(suite, i, hostile ? kAttack : ""), options);
    }
  AddOptions branch;
  branch.branch = hostile ? kAttack : "try";
  branch.revision = "other";
  history.add(history_run("first", runs, hostile ? kAttack : ""), branch);
}

}  // namespace attnbench
