// attnbench sample: one case of a results file, sampled on demand by another process
// (measure/sample_process.hpp). Not for people: `check --confirm` starts it.
#include <fmt/core.h>
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <set>

#include "cli/program.hpp"
#include "cli/share.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/executor.hpp"
#include "measure/plan.hpp"
#include "measure/runner.hpp"
#include "measure/slowed.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

struct Options {
  std::string results, slowdown, as_run;
  std::vector<std::string> ids;
  bool verified = false;
};

// As the sampler does for interleaved cases: the other program's data are in the caches.
constexpr double kRewarmBelow = 0.01;
// Verification was done by the run that is being confirmed; here it only keeps a broken build from being
// timed.
constexpr double kVerifySeconds = 0.25;
constexpr double kWarmUpSeconds = 0.05;

void say(const std::string& text) {
  print_data(text + "\n");
  std::fflush(stdout);
}

const CaseResult& case_of(const RunResult& run, const Options& o, const std::string& id) {
  for (const CaseResult& c : run.cases)
    if (c.id == id) return c;
  throw UsageError("'" + o.results + "' has no case with id '" + id + "'");
}

ExecutorFactory executor_of(const Options& o) {
  return o.slowdown.empty() ? ExecutorFactory(make_executor)
                            : slowed(make_executor, parse_share("--inject-slowdown", o.slowdown));
}

/// Measures the cases as `run` did, with the cases that they took turns with, and writes results.
int run_again(const Options& o, const RunResult& run) {
  Suite suite = run.suite;
  std::set<std::string> wanted;
  for (const std::string& id : o.ids) wanted.insert(case_of(run, o, id).spec.name);
  std::vector<Case> kept;
  for (const std::vector<size_t>& group : comparison_groups(run.suite)) {
    bool any = false;
    for (const size_t i : group) any |= wanted.contains(run.suite.cases[i].name);
    for (const size_t i : group)
      if (any) kept.push_back(run.suite.cases[i]);
  }
  suite.cases = std::move(kept);
  suite.analyses.clear();
  RunOptions options;
  options.executor = executor_of(o);
  options.roofline = RunOptions::RooflinePolicy::off;
  RunObserver silent;
  write_file_atomically(o.as_run, to_json(run_suite(suite, options, silent)));
  return kDone;
}

int serve(const Options& o) {
  const RunResult run = run_from_json(read_file(o.results), o.results);
  if (!o.as_run.empty()) return run_again(o, run);
  if (o.ids.size() != 1) throw UsageError("one case is sampled on demand, several need --as-run");
  const CaseResult* found = &case_of(run, o, o.ids.front());
  SteadyClock clock;
  const ExecutorFactory make = executor_of(o);
  const std::unique_ptr<Executor> executor =
      make(found->spec, ExecutorSetup{&clock, run.suite.measure.threads, "", nullptr, nullptr});
  executor->params();
  executor->open(0);
  if (!o.verified) {
    executor->account();
    const VerifyOutcome v = executor->verify(kVerifySeconds);
    if (v.checked && !v.result.passed)
      throw Error("case '" + found->spec.name + "' fails its verification: " + v.result.worst);
  }
  const bool cold = run.suite.measure.cache_on(found->spec.device) == "cold";
  const double begin = clock.now_s();
  double run_s = 0;
  int64_t n = 1;
  do {
    run_s = executor->run(n) / static_cast<double>(n);
    n = std::min<int64_t>(n * 2, 1 << 20);
  } while (clock.now_s() - begin < kWarmUpSeconds);
  say(fmt::format("ready {:.17g}", run_s));
  for (std::string line; std::getline(std::cin, line);) {
    char* end = nullptr;
    const long wanted = std::strtol(line.c_str(), &end, 10);
    if (end == line.c_str() || *end || wanted < 1)
      throw UsageError("'" + line + "' is no number of executions");
    double seconds = 0;
    if (cold) {
      // A second run would find the caches filled by the first.
      for (long i = 0; i < wanted; ++i) {
        executor->flush_caches();
        seconds += executor->run(1);
      }
    } else {
      if (run_s < kRewarmBelow) executor->run(1);
      seconds = executor->run(wanted);
    }
    say(fmt::format("{:.17g}", seconds / static_cast<double>(wanted)));
  }
  executor->close();
  return kDone;
}

int run_sample(const Options& o) {
  // A parent that is killed may have left this process stopped; nobody would wake it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    return serve(o);
  } catch (const Error& e) {
    std::string text = e.what();
    for (char& c : text)
      if (c == '\n') c = ' ';
    if (o.as_run.empty()) say("error " + text);
    throw;
  }
}

const bool registered = register_command(
    {.name = "sample",
     .order = 200,
     .add =
         [](CLI::App& sub, const GlobalOptions&) {
           auto o = std::make_shared<Options>();
           sub.add_option("RESULTS", o->results, "results file that holds the case")
               ->required()
               ->type_name("FILE");
           sub.add_option("ID", o->ids, "ids of cases")->required()->type_name("ID");
           sub.add_option("--as-run", o->as_run,
                          "measure as `run` did, with all that takes turns; write results")
               ->type_name("FILE");
           sub.add_flag("--verified", o->verified, "skip the verification: an earlier process did it");
           sub.add_option("--inject-slowdown", o->slowdown,
                          "slow every timed run by this share, to prove a gate")
               ->type_name("SHARE");
           sub.footer(
               "Examples:\n"
               "  echo 10 | attnbench sample results/ci.json 0123456789abcdef\n"
               "\n"
               "Says `ready SECONDS`, then answers every number of executions on stdin with "
               "the seconds of one.\n"
               "`attnbench check --confirm` starts it for the old and the new program and "
               "samples them in turn.");
           return [o] { return run_sample(*o); };
         },
     .summary = "take samples of one case on demand (check --confirm uses it)"});

}  // namespace

}  // namespace attnbench
