// Runs with chosen times, for the tests of history and gate. No method is run.
#pragma once
#include <string>
#include <vector>

#include "history/history.hpp"
#include "measure/results.hpp"

namespace attnbench {

struct SampleCase {
  std::string name;
  double median_s = 0.01;
  double half_width = 0.002;  ///< of the interval, relative
};

inline CaseResult sample_point(const SampleCase& s) {
  CaseResult c;
  c.spec.name = s.name;
  c.spec.base_name = s.name.substr(0, s.name.find('/'));
  c.spec.method = "dense";
  c.spec.device = "cpu";
  c.spec.problem.length = 64;
  c.spec.problem.heads = 2;
  c.spec.problem.head_dim = 16;
  c.id = "id-" + s.name;
  c.params = {{"impl", "auto"}};
  Timing t;
  t.median_s = s.median_s;
  t.ci_low_s = s.median_s * (1 - s.half_width);
  t.ci_high_s = s.median_s * (1 + s.half_width);
  t.samples = 20;
  t.converged = true;
  c.time = t;
  c.counted = {1000000, 10, 20, 4096, 1024};
  c.memory = MemoryBytes{1, 2, 3, 4, 4242, 5, 0};
  return c;
}

inline RunResult sample_history_run(Time when, const std::vector<SampleCase>& cases,
                                    const std::string& revision = "r1", const std::string& machine = "m1") {
  RunResult run;
  run.suite.name = "ci";
  run.suite.title = "Continuous integration";
  run.suite_hash = "h1";
  run.environment.machine_id = machine;
  run.environment.values = {{"cpu_model", "EPYC"}, {"git_revision", revision}, {"load_1min", 0.5}};
  run.started_at = run.finished_at = time_text(when);
  for (const SampleCase& c : cases) {
    run.cases.push_back(sample_point(c));
    run.suite.cases.push_back(run.cases.back().spec);
  }
  return run;
}

}  // namespace attnbench
