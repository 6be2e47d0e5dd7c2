// attnbench compare and check: two results files side by side; a run against earlier ones as a gate for CI.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/child.hpp"
#include "cli/gate_text.hpp"
#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/share.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "history/confirm.hpp"
#include "history/gate.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/sample_process.hpp"
#include "measure/statistics.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

struct Options {
  std::vector<std::string> results, against, outputs;
  std::string before, after, history, branch = "main", threshold = "3%", spread = "2%", rate = "5%";
  std::string baseline_binary, slowdown;
  double confirm_s = 300;
  bool confirm = false, allow_missing = false, allow_empty = false;
};

RunResult load(const std::string& path) { return run_from_json(read_file(path), path); }

std::string text_of(const nlohmann::ordered_json& j) {
  return j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

bool is_results(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw DataError("cannot read '" + path + "'");
  return (in >> std::ws) && in.peek() == '{';
}

GateRules rules_of(const Options& o) {
  GateRules r;
  r.threshold = parse_share("--threshold", o.threshold);
  r.assumed_spread = parse_share("--assumed-spread", o.spread);
  r.false_discovery_rate = parse_share("--false-discovery-rate", o.rate);
  if (!(r.threshold > 0 && r.threshold < 1))
    throw UsageError("--threshold: a share above 0 and below 100% is wanted");
  if (!(r.false_discovery_rate > 0 && r.false_discovery_rate < 1))
    throw UsageError("--false-discovery-rate: a share above 0 and below 100% is wanted");
  return r;
}

void require_same_machine(const RunResult& a, const std::string& a_file, const RunResult& b,
                          const std::string& b_file, GateReport& report) {
  if (a.environment.machine_id != b.environment.machine_id)
    report.notes.push_back(
        fmt::format("'{}' and '{}' are of different machines ({} and {}): the changes are those of "
                    "machine and program together",
                    a_file, b_file, a.environment.machine_id, b.environment.machine_id));
}

// ---- compare ----

int compare_files(const Options& o, const GlobalOptions& global) {
  const GateRules rules = rules_of(o);
  const RunResult before = load(o.before), after = load(o.after);
  Baseline baseline = baseline_of_runs({before}, o.before);
  for (BaselineCase& c : baseline.cases) c.expected = false;  // files may hold different cases
  if (!o.history.empty()) {
    const History history(o.history);
    for (BaselineCase& c : baseline.cases) {
      c.calibration = history.calibration(c.id, after.environment.machine_id);
      // Earlier runs tell the spread; the level stays that of the file.
      c.spread_points =
          history.points_of_case(c.id, after.environment.machine_id, o.branch, kPointsForVerdict);
    }
  }
  GateReport report = compare(after, baseline, rules);
  require_same_machine(before, o.before, after, o.after, report);
  if (report.empty())
    report.notes.push_back(
        fmt::format("'{}' and '{}' have no case in common: ids hash problem, parameters, dtype, device and "
                    "how it was measured",
                    o.before, o.after));
  if (global.json)
    print_json(gate_json(report));
  else
    print_data(gate_table(report, global.color, stdout_width()));
  return report.empty() ? kUsage : kDone;
}

// ---- check ----

/// Both programs, each in a process of its own, sampled in turn.
PairSource pairs_of_programs(const Options& o, const std::string& results) {
  return [&o, results, checked = std::set<std::string>{}](const GateRow& row) mutable {
    std::vector<std::string> before{o.baseline_binary, "sample", results, row.id};
    std::vector<std::string> now{own_program(), "sample", results, row.id};
    if (!checked.insert(row.id).second) {
      before.push_back("--verified");
      now.push_back("--verified");
    }
    if (!o.slowdown.empty()) now.insert(now.end(), {"--inject-slowdown", o.slowdown});
    const PairedSamples p = sample_pair(before, now, PairPlan{});
    std::vector<double> logs(p.now_s.size());
    for (size_t i = 0; i < logs.size(); ++i) logs[i] = std::log(p.now_s[i] / p.before_s[i]);
    return PairedTimes{median(p.before_s), median(p.now_s), median(logs)};
  };
}

// Measuring thrice outvotes one bad minute.
constexpr int kRepeats = 3;

/// Without the old program: this one again, in fresh processes, against the same earlier runs. The error
/// stays the whole spread between runs, as one hour's repeats do not average out what differs between days.
void confirm_by_repeating(const Options& o, const std::string& results, const std::vector<size_t>& rows,
                          GateReport& report, Progress& progress) {
  const TemporaryFolder folder;
  std::map<std::string, std::vector<double>> logs;
  for (int r = 0; r < kRepeats; ++r) {
    progress.begin(static_cast<size_t>(r), kRepeats, fmt::format("measuring {} suspects again", rows.size()),
                   std::nullopt);
    const std::string file = folder / fmt::format("{}.json", r);
    std::vector<std::string> command{own_program(), "sample", results};
    for (const size_t i : rows) command.push_back(report.rows[i].id);
    command.insert(command.end(), {"--as-run", file});
    if (!o.slowdown.empty()) command.insert(command.end(), {"--inject-slowdown", o.slowdown});
    std::string messages;
    if (run_child(command, messages) != 0) throw Error("measuring the suspects again failed: " + messages);
    for (const CaseResult& c : load(file).cases)
      if (c.status == CaseStatus::ok && c.time) logs[c.id].push_back(std::log(c.time->median_s));
  }
  progress.clear();
  for (const size_t i : rows) {
    GateRow& row = report.rows[i];
    const auto it = logs.find(row.id);
    if (it == logs.end() || it->second.size() < kRepeats) {
      row.note = "not measured again: the repeats gave no time";
      continue;
    }
    const double again = median(it->second);
    row.difference.log_ratio = again - std::log(row.before_s);
    row.difference.allowance = row.lasting_allowance;
    row.now_s = std::exp(again);
    row.confirmed = true;
    row.pairs = kRepeats;
  }
  judge_confirmed(report);
}

Baseline baseline_from(const Options& o, const RunResult& run, std::vector<std::string>& notes) {
  std::vector<RunResult> runs;
  std::string names;
  for (const std::string& file : o.against) {
    // A file of no bytes is a history that another job is making just now.
    std::error_code failed;
    const bool there = ::access(file.c_str(), F_OK) == 0;
    if (!there || std::filesystem::file_size(file, failed) == 0) {
      if (!o.allow_empty && o.baseline_binary.empty())
        throw DataError((there ? "nothing is in '" + file + "' yet"
                               : "there is no history and no results file '" + file + "'") +
                        "; `attnbench history add` makes a history, --allow-empty lets a first run pass");
      notes.push_back((there ? "nothing is in '" : "there is no file '") + file + "' yet");
      continue;
    }
    if (!is_results(file)) {
      if (o.against.size() > 1)
        throw UsageError("--against: one history, or results files; '" + file + "' is no results file");
      const History history(file);
      return baseline_of_history(history, o.branch, run);
    }
    runs.push_back(load(file));
    if (runs.back().environment.machine_id != run.environment.machine_id)
      notes.push_back(fmt::format("'{}' is of another machine ({}, this is {}): its times are not compared",
                                  file, runs.back().environment.machine_id, run.environment.machine_id));
    names += (names.empty() ? "" : ", ") + file;
  }
  std::erase_if(runs,
                [&](const RunResult& r) { return r.environment.machine_id != run.environment.machine_id; });
  std::stable_sort(runs.begin(), runs.end(),
                   [](const RunResult& a, const RunResult& b) { return a.started_at < b.started_at; });
  return baseline_of_runs(runs, names);
}

int check_one(const Options& o, const GlobalOptions& global, const std::string& file,
              nlohmann::ordered_json& json_out, std::string& markdown, std::vector<JunitGroup>& junit) {
  const RunResult run = load(file);
  const GateRules rules = rules_of(o);
  std::vector<std::string> notes;
  Baseline baseline;
  if (!o.against.empty()) baseline = baseline_from(o, run, notes);
  GateReport report = compare(run, baseline, rules);
  report.notes.insert(report.notes.end(), notes.begin(), notes.end());
  if (o.against.empty()) report.baseline_text = "the program " + o.baseline_binary;

  if (o.confirm) {
    std::vector<size_t> rows = suspects(report);
    if (!o.baseline_binary.empty())
      for (size_t i = 0; i < report.rows.size(); ++i)
        if (report.rows[i].state == GateRow::State::fresh && report.rows[i].now_s > 0) rows.push_back(i);
    if (!rows.empty()) {
      Progress progress(global.quiet, global.color);
      if (o.baseline_binary.empty()) {
        confirm_by_repeating(o, file, rows, report, progress);
      } else {
        SteadyClock clock;
        size_t done = 0;
        std::string current;
        ConfirmLimits limits;
        limits.max_seconds = o.confirm_s;
        confirm(report, rows, pairs_of_programs(o, file), limits, clock, [&](const GateRow& row, int pairs) {
          if (row.id != current) done += !current.empty(), current = row.id;
          if (pairs == 0)
            progress.begin(done, rows.size(), fmt::format("confirming {}", row.name), std::nullopt);
        });
        progress.clear();
      }
    }
  }
  const GateAnswer a = answer(report, o.allow_missing, o.allow_empty);
  if (a == GateAnswer::incomplete && report.empty() && report.notes.empty())
    report.notes.push_back("the baseline has none of the run's cases");
  nlohmann::ordered_json j = gate_json(report);
  j["file"] = file;
  j["answer"] = std::string(name(a));
  json_out.push_back(std::move(j));
  if (!global.json) print_data(gate_table(report, global.color, stdout_width()));
  markdown += gate_markdown(report, a);
  junit.push_back(gate_junit(run.suite.name, report, a, o.allow_missing));
  const auto missing = report.count(GateRow::State::missing) + report.count(GateRow::State::not_measured);
  switch (a) {
    case GateAnswer::pass:
      if (report.empty()) note(global.quiet, "nothing to compare with yet: passed because of --allow-empty");
      return kDone;
    case GateAnswer::regression:
      note(false,
           fmt::format("{} of {} cases became slower by more than {:.3g}%", report.count(Verdict::slower),
                       report.count(GateRow::State::compared), 100 * rules.threshold));
      return kAnswerIsNo;
    case GateAnswer::incomplete: {
      const auto open = std::count_if(report.rows.begin(), report.rows.end(),
                                      [](const GateRow& r) { return r.unconfirmed; });
      note(false,
           report.empty()
               ? "the gate compared nothing, so it cannot pass; --allow-empty lets a first run through"
           : open
               ? fmt::format(
                     "{} cases looked slower and could not be measured again, so the gate cannot pass", open)
               : fmt::format("{} cases of the baseline have no time in this run, so the gate cannot pass; "
                             "--allow-missing lets them go",
                             missing));
      return kUsage;
    }
  }
  return kUsage;
}

int check(const Options& o, const GlobalOptions& global) {
  if (o.against.empty() && o.baseline_binary.empty())
    throw UsageError("--against HISTORY or RESULTS, or --baseline-binary PROGRAM, says what to compare with");
  if (!o.baseline_binary.empty() && !o.confirm)
    throw UsageError("--baseline-binary is for --confirm, which measures both programs in turn");
  if (!o.baseline_binary.empty() && ::access(o.baseline_binary.c_str(), X_OK) != 0)
    throw UsageError("--baseline-binary: '" + o.baseline_binary + "' is no program that can be run");
  for (const std::string& f : o.outputs) {
    if (!f.ends_with(".md") && !f.ends_with(".json") && !f.ends_with(".xml"))
      throw UsageError("--output: '" + f + "' is none of .md, .json and .xml");
    require_writable(f);
  }
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  std::string markdown;
  std::vector<JunitGroup> junit;
  int code = kDone;
  for (const std::string& file : o.results) {
    const int c = check_one(o, global, file, all, markdown, junit);
    // A regression says more than a gate that could not compare.
    if (c == kAnswerIsNo || code == kDone) code = c;
  }
  for (const std::string& f : o.outputs)
    write_file_atomically(f, f.ends_with(".md")    ? markdown
                             : f.ends_with(".xml") ? junit_xml("attnbench check", junit, "")
                                                   : text_of(nlohmann::ordered_json{{"checks", all}}));
  if (global.json) print_json({{"checks", std::move(all)}});
  return code;
}

void add_rules(CLI::App& sub, const std::shared_ptr<Options>& o) {
  sub.add_option("--threshold", o->threshold,
                 "changes of the time up to this share are of no interest; default 3%")
      ->type_name("SHARE");
  sub.add_option("--false-discovery-rate", o->rate,
                 "share of false alarms among the alarms of a suite; default 5%")
      ->type_name("SHARE");
  sub.add_option("--assumed-spread", o->spread,
                 "standard deviation between runs of the same code where nothing is known of it; default 2%")
      ->type_name("SHARE");
}

const bool registered_compare = register_command(
    {.name = "compare",
     .order = 54,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("BEFORE", o->before, "results of the old program")->required()->type_name("FILE");
           sub.add_option("AFTER", o->after, "results of the new program")->required()->type_name("FILE");
           add_rules(sub, o);
           sub.add_option("--history", o->history, "learn the spread between runs from this history")
               ->type_name("FILE");
           sub.add_option("--branch", o->branch, "branch of that history; default main")->type_name("NAME");
           sub.footer(
               "Examples:\n"
               "  attnbench compare old.json new.json\n"
               "  attnbench compare old.json new.json --history history.db\n"
               "\n"
               "Verdicts: slower and faster (by more than the threshold beyond doubt), same (within the "
               "threshold\n"
               "beyond doubt), unsure. Exit status 2 when the files have no case in common.");
           return [o, &global] { return compare_files(*o, global); };
         },
     .summary = "two results files: faster, slower, same or unsure, case by case"});

const bool registered_check = register_command(
    {.name = "check",
     .order = 55,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("RESULTS", o->results, "results of the run to check")
               ->required()
               ->type_name("FILE");
           sub.add_option("-a,--against", o->against, "a history, or results files of earlier runs")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("FILE");
           sub.add_option("--branch", o->branch, "branch of the history to compare with; default main")
               ->type_name("NAME");
           add_rules(sub, o);
           sub.add_flag("--confirm", o->confirm, "measure suspects again before calling them slower");
           sub.add_option(
                  "--baseline-binary", o->baseline_binary,
                  "the old program: --confirm takes samples of both in turn, also of cases without history")
               ->type_name("FILE");
           sub.add_option("--confirm-time", o->confirm_s,
                          "seconds for confirming, all suspects together; default 300")
               ->check(CLI::PositiveNumber)
               ->type_name("SECONDS");
           sub.add_flag("--allow-missing", o->allow_missing,
                        "cases of the baseline may be missing or without a time");
           sub.add_flag("--allow-empty", o->allow_empty,
                        "pass when there is nothing to compare with: a first run");
           sub.add_option("-o,--output", o->outputs,
                          "also write the report: .md for a pull request, .xml (JUnit), .json")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("FILE");
           sub.add_option("--inject-slowdown", o->slowdown,
                          "slow the new program's confirming runs by this share, to prove the gate")
               ->type_name("SHARE");
           sub.footer(
               "Examples:\n"
               "  attnbench check new.json --against history.db --confirm\n"
               "  attnbench check new.json --confirm --baseline-binary ../main/build/release/bin/attnbench\n"
               "  attnbench check new.json --against old1.json --against old2.json -o summary.md\n"
               "\n"
               "Exit status: 0 nothing became slower beyond doubt (unsure passes); 1 something did; 2 the "
               "gate\n"
               "compared nothing, or cases of the baseline are missing.");
           return [o, &global] { return check(*o, global); };
         },
     .summary = "gate for CI: did anything become slower than in earlier runs?"});

}  // namespace

}  // namespace attnbench
