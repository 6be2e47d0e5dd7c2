// attnbench history and calibrate: the store of runs, and how much this machine's times differ between runs.
#include "history/history.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/child.hpp"
#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/share.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "history/gate.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/clock.hpp"
#include "measure/statistics.hpp"
#include "methods/params.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;
using Align = TextTable::Align;

struct Options {
  std::string action, history, branch, revision, suite, name, machine, since, until, output, threshold = "3%";
  std::vector<std::string> files;
  int keep = -1, days = -1, newest = 0;
};

/// What the services that run CI call the branch; a pull request's own branch goes before the merge's.
std::string branch_of_environment() {
  for (const char* key :
       {"GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BUILD_SOURCEBRANCHNAME"})
    if (const char* v = std::getenv(key); v && *v) return v;
  return "";
}

HistoryQuery query_of(const Options& o) {
  HistoryQuery q;
  q.suite = o.suite, q.fingerprint = o.machine, q.branch = o.branch, q.revision = o.revision;
  if (!o.since.empty()) q.since = parse_time(o.since);
  if (!o.until.empty()) q.until = parse_time(o.until);
  return q;
}

void require_files(const Options& o, const char* what) {
  if (o.files.empty()) throw UsageError("history " + o.action + ": " + what);
}
void require_none(const Options& o) {
  if (!o.files.empty())
    throw UsageError("history " + o.action + ": unexpected argument '" + o.files.front() + "'");
}

int add(const Options& o, const GlobalOptions& global) {
  require_files(o, "results files are wanted");
  GateRules rules;
  rules.threshold = parse_share("--threshold", o.threshold);
  AddOptions a;
  a.branch = !o.branch.empty() ? o.branch : branch_of_environment();
  if (a.branch.empty())
    throw UsageError(
        "history add: --branch NAME says where the run belongs (CI services' variables are read too)");
  a.revision = o.revision;
  a.verdict = [&rules](const CaseResult& c, const std::vector<HistoryPoint>& before,
                       const std::optional<Calibration>& calibration) {
    return verdict_word(c, before, calibration, rules);
  };
  // Everything is read before the history is made or changed.
  std::vector<RunResult> runs;
  for (const std::string& file : o.files) runs.push_back(run_from_json(read_file(file), file));
  History history(o.history, History::Mode::create);
  Json list = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto [id, is_new] = history.add(runs[i], a);
    list.push_back({{"file", o.files[i]}, {"run", id}, {"new", is_new}, {"branch", a.branch}});
    if (!global.json)
      print_data(fmt::format("{}: run {} of {}, {} cases{}\n", o.files[i], id, a.branch, runs[i].cases.size(),
                             is_new ? "" : ", was in the history already"));
  }
  if (global.json) print_json({{"added", std::move(list)}});
  return kDone;
}

int list(const Options& o, const GlobalOptions& global) {
  require_none(o);
  const History history(o.history);
  const std::vector<HistoryRun> runs = history.runs(query_of(o), static_cast<size_t>(std::max(o.newest, 0)));
  if (global.json) {
    Json rows = Json::array();
    for (const HistoryRun& r : runs)
      rows.push_back({{"run", r.id},
                      {"time", time_text(r.time)},
                      {"suite", r.suite},
                      {"branch", r.branch},
                      {"revision", r.revision},
                      {"machine", r.fingerprint},
                      {"cases", r.cases},
                      {"suite_hash", r.suite_hash},
                      {"environment", r.environment}});
    print_json(
        {{"history", o.history}, {"schema_version", history.schema_version()}, {"runs", std::move(rows)}});
    return kDone;
  }
  TextTable t({{"run", Align::right},
               {"time", Align::left},
               {"suite", Align::left},
               {"branch", Align::left},
               {"revision", Align::left},
               {"machine", Align::left},
               {"cases", Align::right}});
  for (const HistoryRun& r : runs)
    t.add({std::to_string(r.id), time_text(r.time), printable(r.suite), printable(r.branch),
           printable(r.revision), printable(r.fingerprint), std::to_string(r.cases)});
  print_data(runs.empty() ? "no run\n" : t.str(global.color, "", stdout_width()));
  return kDone;
}

/// The series of a case, by name or id.
std::vector<std::pair<HistoryCase, HistorySeries>> series_of(const History& history, const Options& o,
                                                             const std::string& word) {
  std::vector<std::pair<HistoryCase, HistorySeries>> found;
  std::vector<std::string> names;
  for (const HistoryCase& c : history.cases(o.suite)) {
    names.push_back(c.name);
    if (!word.empty() && c.id != word && c.name != word && c.base_name != word) continue;
    HistoryQuery q = query_of(o);
    q.case_id = c.id;
    for (const HistorySeries& s : history.series(q)) found.emplace_back(c, s);
  }
  if (found.empty() && !word.empty()) {
    const std::string near = nearest_word(word, names);
    throw UsageError(
        "the history has no case '" + word + "'" +
        (near.empty() || near == word ? " with these options" : "; did you mean '" + near + "'?"));
  }
  return found;
}

int show(const Options& o, const GlobalOptions& global) {
  require_files(o, "a case is wanted, by name or id");
  const History history(o.history);
  Json all = Json::array();
  for (const std::string& word : o.files)
    for (const auto& [c, s] : series_of(history, o, word)) {
      const auto points = history.points(s.id, query_of(o).since, static_cast<size_t>(std::max(o.newest, 0)),
                                         query_of(o).until);
      const auto calibration = history.calibration(c.id, s.fingerprint);
      if (global.json) {
        Json rows = Json::array();
        for (const HistoryPoint& p : points)
          rows.push_back({{"run", p.run},
                          {"time", time_text(p.time)},
                          {"revision", p.revision},
                          {"status", std::string(name(p.status))},
                          {"median_s", finite(p.median_s)},
                          {"ci_low_s", finite(p.ci_low_s)},
                          {"ci_high_s", finite(p.ci_high_s)},
                          {"flops", p.flops},
                          {"bytes", p.bytes},
                          {"memory_peak", p.memory_peak},
                          {"verdict", p.verdict.empty() ? Json(nullptr) : Json(p.verdict)}});
        Json j{{"suite", s.suite},   {"case", c.name},           {"id", c.id},
               {"branch", s.branch}, {"machine", s.fingerprint}, {"points", std::move(rows)}};
        if (calibration) j["calibrated_spread"] = calibration->sigma;
        all.push_back(std::move(j));
        continue;
      }
      print_data(
          printable(fmt::format("{} of {} on {}, machine {}", c.name, s.suite, s.branch, s.fingerprint)) +
          (calibration ? fmt::format(", calibrated spread {:.2g}%", 100 * calibration->sigma) : "") + "\n");
      TextTable t({{"time", Align::left},
                   {"revision", Align::left},
                   {"median", Align::right},
                   {"95% interval", Align::left},
                   {"memory", Align::right},
                   {"verdict", Align::left}});
      for (const HistoryPoint& p : points) {
        const bool timed = p.median_s > 0;
        t.add({time_text(p.time), printable(p.revision),
               timed ? seconds_text(p.median_s) : std::string(name(p.status)),
               timed ? fmt::format("[{}, {}]", seconds_text(p.ci_low_s), seconds_text(p.ci_high_s)) : "",
               bytes_text(p.memory_peak), p.verdict});
      }
      print_data(t.str(global.color, "  ", stdout_width()));
    }
  if (global.json) print_json({{"series", std::move(all)}});
  return kDone;
}

int prune(const Options& o, const GlobalOptions& global) {
  require_none(o);
  if ((o.keep >= 0) + (o.days >= 0) + (!o.until.empty()) + (!o.since.empty()) == 0 && o.branch.empty() &&
      o.revision.empty() && o.suite.empty() && o.machine.empty())
    throw UsageError("history prune: say what goes: --keep N, --days N, --until TIME, --branch NAME, …");
  History history(o.history, History::Mode::write);
  HistoryQuery q = query_of(o);
  if (o.days >= 0) q.until = std::min(q.until, static_cast<Time>(std::time(nullptr)) - Time{86400} * o.days);
  const int64_t n =
      o.keep >= 0 ? history.keep_newest(static_cast<size_t>(o.keep), q) : history.remove_runs(q);
  if (n) history.vacuum();
  if (global.json)
    print_json({{"removed", n}});
  else
    print_data(fmt::format("{} {} removed\n", n, n == 1 ? "run" : "runs"));
  return kDone;
}

std::string csv_cell(const std::string& s) {
  if (s.find_first_of(",\"\r\n") == std::string::npos) return s;
  std::string out = "\"";
  for (const char c : s) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

int export_points(const Options& o, const GlobalOptions& global) {
  const History history(o.history);
  std::string out;
  const bool json = global.json || o.output.ends_with(".jsonl");
  if (!json)
    out =
        "suite,case,id,method,device,dtype,machine,branch,time,revision,run,status,median_s,ci_low_s,ci_high_"
        "s,"
        "flops_counted,bytes_counted,memory_peak_bytes,verdict\n";
  const std::string word = o.files.empty() ? "" : o.files.front();
  const auto number = [](double v) { return std::isfinite(v) ? fmt::format("{:.17g}", v) : std::string(); };
  for (const auto& [c, s] : series_of(history, o, word))
    for (const HistoryPoint& p : history.points(s.id, query_of(o).since, 0, query_of(o).until)) {
      if (json) {
        out += Json{{"suite", s.suite},
                    {"case", c.name},
                    {"id", c.id},
                    {"method", c.method},
                    {"device", c.device},
                    {"dtype", c.dtype},
                    {"machine", s.fingerprint},
                    {"branch", s.branch},
                    {"time", time_text(p.time)},
                    {"revision", p.revision},
                    {"run", p.run},
                    {"status", std::string(name(p.status))},
                    {"median_s", finite(p.median_s)},
                    {"ci_low_s", finite(p.ci_low_s)},
                    {"ci_high_s", finite(p.ci_high_s)},
                    {"flops_counted", p.flops},
                    {"bytes_counted", p.bytes},
                    {"memory_peak_bytes", p.memory_peak},
                    {"verdict", p.verdict}}
                   .dump(-1, ' ', false, Json::error_handler_t::replace) +
               "\n";
      } else {
        for (const std::string& cell :
             {s.suite, c.name, c.id, c.method, c.device, c.dtype, s.fingerprint, s.branch, time_text(p.time),
              p.revision, std::to_string(p.run), std::string(name(p.status)), number(p.median_s),
              number(p.ci_low_s), number(p.ci_high_s), std::to_string(p.flops), std::to_string(p.bytes),
              std::to_string(p.memory_peak)})
          out += csv_cell(cell) + ",";
        out += p.verdict + "\n";
      }
      if (o.output.empty() && out.size() > (size_t{1} << 20)) {
        print_data(out);
        out.clear();
      }
    }
  if (o.output.empty())
    print_data(out);
  else
    write_file_atomically(o.output, out);
  return kDone;
}

int verify_file(const Options& o, const GlobalOptions& global) {
  require_none(o);
  const std::vector<std::string> wrong = History(o.history).check();
  if (global.json) print_json({{"whole", wrong.empty()}, {"errors", wrong}});
  for (const std::string& w : wrong) print_message("attnbench: " + w + "\n");
  if (wrong.empty() && !global.json) print_data(o.history + ": whole\n");
  return wrong.empty() ? kDone : kUsage;
}

int run_history(const Options& o, const GlobalOptions& global) {
  static const std::map<std::string, int (*)(const Options&, const GlobalOptions&)> actions{
      {"add", add},           {"list", list}, {"show", show}, {"prune", prune}, {"export", export_points},
      {"verify", verify_file}};
  const auto it = actions.find(o.action);
  if (it == actions.end()) {
    std::vector<std::string> words;
    for (const auto& [word, action] : actions) words.push_back(word);
    const std::string near = nearest_word(o.action, words);
    throw UsageError("history: unknown action '" + o.action + "'" +
                     (near.empty() ? "; valid: add, list, show, prune, export, verify"
                                   : "; did you mean '" + near + "'?"));
  }
  return it->second(o, global);
}

// ---- calibrate ----

struct CalibrateOptions {
  std::string suite, history;
  std::vector<std::string> set, filter;
  int runs = 8;
};

int calibrate(const CalibrateOptions& o, const GlobalOptions& global) {
  const std::string suite = find_suite_file(o.suite);
  if (!o.history.empty())
    History(o.history, History::Mode::create);  // refused now rather than after the runs
  const TemporaryFolder folder;
  Progress progress(global.quiet, global.color);
  std::map<std::string, std::vector<double>> logs;
  RunResult last;
  for (int r = 0; r < o.runs; ++r) {
    progress.begin(static_cast<size_t>(r), static_cast<size_t>(o.runs), "run of " + o.suite, std::nullopt);
    const std::string file = folder / fmt::format("{}.json", r);
    std::vector<std::string> command{own_program(), "run", suite, "-o", file, "--quiet"};
    for (const std::string& s : o.set) command.insert(command.end(), {"--set", s});
    for (const std::string& f : o.filter) command.insert(command.end(), {"--filter", f});
    std::string messages;
    const int code = run_child(command, messages);
    // Claims outside (1) and single failed cases (3) leave results; the cases that have times are calibrated.
    if (code != kDone && code != kAnswerIsNo && code != kSomeFailed)
      throw Error(fmt::format("run {} ended with exit status {}: {}", r + 1, code, messages));
    last = run_from_json(read_file(file), file);
    for (const CaseResult& c : last.cases)
      if (c.status == CaseStatus::ok && c.time) logs[c.id].push_back(std::log(c.time->median_s));
  }
  progress.clear();
  if (logs.empty()) throw Error("no case was measured, so there is nothing to calibrate");
  std::optional<History> history;
  if (!o.history.empty()) history.emplace(o.history, History::Mode::write);
  std::string revision = "unknown";
  if (const auto it = last.environment.values.find("git_revision"); it != last.environment.values.end())
    revision = it->second.str();
  TextTable t({{"case", Align::left},
               {"median", Align::right},
               {"spread", Align::right},
               {"range", Align::right},
               {"a single run sees", Align::right}});
  Json rows = Json::array();
  for (const CaseResult& c : last.cases) {
    const auto it = logs.find(c.id);
    if (it == logs.end() || it->second.size() < 2) continue;
    const Spread s = spread_of(it->second, "");
    const auto [low, high] = std::minmax_element(it->second.begin(), it->second.end());
    // The change that a run's interval against a long history excludes with 97.5%, on top of the threshold.
    const double sees =
        std::expm1(std::log1p(GateRules{}.threshold) + 2 * student_quantile(0.025, s.dof) * s.sigma);
    if (history)
      history->set_calibration(
          c.id, last.environment.machine_id,
          {s.sigma, static_cast<int>(it->second.size()), parse_time(utc_now()), revision});
    t.add({printable(c.spec.name), seconds_text(std::exp(median(it->second))),
           fmt::format("{:.2g}%", 100 * s.sigma), fmt::format("{:.2g}%", 100 * std::expm1(*high - *low)),
           fmt::format("{:.2g}%", 100 * sees)});
    rows.push_back({{"case", c.spec.name},
                    {"id", c.id},
                    {"runs", it->second.size()},
                    {"median_s", std::exp(median(it->second))},
                    {"spread", s.sigma},
                    {"range", std::expm1(*high - *low)}});
  }
  if (global.json)
    print_json({{"machine", last.environment.machine_id}, {"runs", o.runs}, {"cases", std::move(rows)}});
  else
    print_data(t.str(global.color, "", stdout_width()));
  return kDone;
}

const bool registered_history = register_command(
    {.name = "history",
     .order = 56,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("ACTION", o->action, "add, list, show, prune, export or verify")
               ->required()
               ->type_name("{add,list,show,prune,export,verify}");
           sub.add_option("HISTORY", o->history, "the history: an SQLite file")
               ->required()
               ->type_name("FILE");
           sub.add_option("FILE", o->files, "add: results files; show, export: cases, by name or id")
               ->type_name("FILE");
           sub.add_option("--branch", o->branch, "add: where the run belongs; else only this branch")
               ->type_name("NAME");
           sub.add_option("--revision", o->revision,
                          "add: instead of the program's own; else only this revision")
               ->type_name("NAME");
           sub.add_option("--suite", o->suite, "only this suite")->type_name("NAME");
           sub.add_option("--machine", o->machine, "only this machine")->type_name("ID");
           sub.add_option("--since", o->since,
                          "only runs from this time on: 2026-01-31 or 2026-01-31T12:00:00Z")
               ->type_name("TIME");
           sub.add_option("--until", o->until, "only runs up to this time")->type_name("TIME");
           sub.add_option("-n,--newest", o->newest, "list, show: only so many of the newest")
               ->check(CLI::Range(1, 1000000))
               ->type_name("N");
           sub.add_option("--keep", o->keep,
                          "prune: keep so many of the newest runs of every suite, machine and branch")
               ->check(CLI::NonNegativeNumber)
               ->type_name("N");
           sub.add_option("--days", o->days, "prune: runs older than so many days go")
               ->check(CLI::NonNegativeNumber)
               ->type_name("N");
           sub.add_option("--threshold", o->threshold, "add: of the verdict that is stored; default 3%")
               ->type_name("SHARE");
           sub.add_option("-o,--output", o->output, "export: to this file (.csv or .jsonl) instead of stdout")
               ->type_name("FILE");
           sub.footer(
               "Examples:\n"
               "  attnbench history add history.db results/ci.json --branch main\n"
               "  attnbench history list history.db --branch main -n 10\n"
               "  attnbench history show history.db dense\n"
               "  attnbench history prune history.db --days 90 --branch topic\n"
               "  attnbench history export history.db > points.csv\n"
               "\n"
               "Adding a run twice changes nothing. Several processes may add at the same time.");
           return [o, &global] { return run_history(*o, global); };
         },
     .summary = "the store of runs: add, list, show, prune, export"});

const bool registered_calibrate = register_command(
    {.name = "calibrate",
     .order = 57,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<CalibrateOptions>();
           sub.add_option("SUITE", o->suite, "suite file, or the name of one that comes with the program")
               ->required()
               ->type_name("SUITE");
           sub.add_option("--runs", o->runs,
                          "how often the suite is run, each time by a new process; default 8")
               ->check(CLI::Range(2, 1000))
               ->type_name("K");
           sub.add_option("--history", o->history, "keep the spreads in this history, for check and compare")
               ->type_name("FILE");
           sub.add_option("-s,--set", o->set, "change the suite: path=value; repeatable")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("PATH=VALUE");
           sub.add_option("-f,--filter", o->filter, "only cases whose name matches; repeatable")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("PATTERN");
           sub.footer(
               "Examples:\n"
               "  attnbench calibrate suites/ci.yaml --runs 10 --history history.db\n"
               "\n"
               "Spread: standard deviation of the median between runs of the same program. The last column "
               "is the\n"
               "change that one run tells from no change; check --confirm sees smaller ones.");
           return [o, &global] { return calibrate(*o, global); };
         },
     .summary = "how much this machine's times differ between runs of the same code"});

}  // namespace

}  // namespace attnbench
