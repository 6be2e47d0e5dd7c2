// attnbench run: measures suites. Everything is checked before the first measurement; every finished case is
// in the journal before the next one starts.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/arguments.hpp"
#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/share.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/case_id.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"
#include "measure/runner.hpp"
#include "measure/shard.hpp"
#include "measure/slowed.hpp"
#include "report/files.hpp"
#include "report/format.hpp"
#include "report/journal.hpp"
#include "report/results_json.hpp"
#include "suite/claims.hpp"
#include "suite/parse.hpp"

namespace attnbench {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::vector<std::string> suites, set, filter, formats;
  std::string device, output, weights, shard, slowdown;
  int threads = 0;
  double verify_budget_s = RunOptions{}.verify_budget_s;
  bool resume = false, force = false, dry_run = false, quick = false, keep_samples = false;
};

// ---- signals
// -------------------------------------------------------------------------------------------------------

std::atomic<bool> stop_asked{false};

/// The first signal asks the run to end and keep its results; the second one kills, as it would any program.
extern "C" void on_signal(int signal) {
  if (stop_asked.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

class SignalGuard {
 public:
  SignalGuard() {
    stop_asked = false;
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    // Writes in flight go on; the run looks at the flag.
    action.sa_flags = SA_RESTART;
    for (int s : kSignals) sigaction(s, &action, nullptr);
  }
  ~SignalGuard() {
    for (int s : kSignals) std::signal(s, SIG_DFL);
  }

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
};

// ---- where results go
// ----------------------------------------------------------------------------------------------

/// One suite with the files it will write.
struct Job {
  Suite suite;
  std::string hash;
  fs::path results;
  std::vector<std::pair<const Format*, fs::path>> others;  ///< further formats beside it
};

std::string time_stamp() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &utc);
  return text;
}

/// The newest interrupted run of this suite in the default folder.
std::optional<fs::path> newest_interrupted(const fs::path& folder, const std::string& suite) {
  std::optional<fs::path> newest;
  fs::file_time_type when;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with(suite + "-") || !file.ends_with(".json.journal")) continue;
    const fs::file_time_type t = entry.last_write_time(failed);
    if (newest && t <= when) continue;
    when = t;
    newest = entry.path().parent_path() / file.substr(0, file.size() - std::string(".journal").size());
  }
  return newest;
}

fs::path results_path(const Options& o, const Suite& suite) {
  if (o.output.empty()) {
    if (o.resume)
      if (const auto found = newest_interrupted("results", suite.name)) return *found;
    // Two runs may begin in the same second.
    const std::string stem = suite.name + "-" + time_stamp();
    fs::path path = fs::path("results") / (stem + ".json");
    std::error_code failed;
    for (int i = 2; fs::exists(path, failed) || Journal::exists(Journal::path_for(path.string())); ++i)
      path = fs::path("results") / fmt::format("{}-{}.json", stem, i);
    return path;
  }
  std::error_code failed;
  if (o.output.ends_with('/') || fs::is_directory(o.output, failed))
    return fs::path(o.output) / (suite.name + ".json");
  if (o.suites.size() > 1)
    throw UsageError("--output: several suites need a folder; '" + o.output +
                     "' is none (end it with a '/')");
  if (fs::path(o.output).extension() != ".json")
    throw UsageError("--output: '" + o.output +
                     "': results are JSON, name a .json file or a folder; --format writes others beside it");
  if (fs::exists(o.output, failed) && !fs::is_regular_file(o.output, failed))
    throw UsageError("--output: '" + o.output + "' is not a regular file; --json writes results to stdout");
  return o.output;
}

const Format& format_of(const std::string& word) { return find_format(word == "md" ? "markdown" : word); }

/// Whether `path` can be written. Folders that the program makes itself ("results/", and -o DIR/) are made
/// only when the run starts; here the nearest existing one is asked.
void require_place(const Options& o, const fs::path& path) {
  fs::path folder = fs::absolute(path).parent_path();
  std::error_code failed;
  const bool makes_folder = o.output.empty() || o.output.ends_with('/');
  while (makes_folder && !fs::exists(folder, failed) && folder.has_relative_path())
    folder = folder.parent_path();
  require_writable((folder / path.filename()).string());
}

void require_free(const Options& o, const fs::path& path) {
  require_place(o, path);
  std::error_code failed;
  if (!fs::exists(path, failed)) return;
  if (!o.force && !o.resume)
    throw UsageError("'" + path.string() +
                     "' exists; --force replaces it, --resume goes on with an interrupted run");
}

std::vector<Job> prepare(const Options& o) {
  SuiteOptions options{.set = o.set, .filter = o.filter, .devices = {}, .quick = o.quick};
  if (!o.device.empty()) {
    options.devices = comma_list("--device", o.device);
    for (const std::string& d : options.devices) backend_of(d);
  }
  std::vector<const Format*> formats;
  for (const std::string& list : o.formats)
    for (const std::string& word : comma_list("--format", list)) formats.push_back(&format_of(word));

  std::vector<Job> jobs;
  std::string errors;
  std::map<fs::path, std::string> taken;
  for (const std::string& word : o.suites) {
    try {
      Job job;
      job.suite = load_suite(find_suite_file(word), options);
      if (job.suite.cases.empty())
        throw UsageError("'" + word + "': no case is left" +
                         (o.filter.empty() ? "" : "; --filter matches none of its cases"));
      if (o.keep_samples) job.suite.measure.keep_samples = true;
      if (!o.shard.empty()) {
        job.suite = shard_of(std::move(job.suite), parse_shard(o.shard));
        if (job.suite.cases.empty())
          throw UsageError("--shard " + o.shard + ": '" + word + "' has fewer groups of cases than parts");
      }
      job.hash = hash_text(job.suite.resolved_text);
      if (!o.dry_run) {
        job.results = results_path(o, job.suite);
        require_free(o, job.results);
        for (const Format* f : formats) {
          if (f->id() == "json") continue;
          fs::path path = job.results;
          path.replace_extension(f->extension());
          require_free(o, path);
          job.others.emplace_back(f, path);
        }
        if (const auto [it, fresh] = taken.emplace(job.results, word); !fresh)
          throw UsageError("'" + word + "' and '" + it->second + "' would both write " +
                           job.results.string());
      }
      jobs.push_back(std::move(job));
    } catch (const UsageError& e) {
      errors += (errors.empty() ? "" : "\n") + std::string(e.what());
    }
  }
  if (!errors.empty()) throw UsageError(errors);
  return jobs;
}

// ---- dry run
// -------------------------------------------------------------------------------------------------------

int dry_run(const std::vector<Job>& jobs, const GlobalOptions& global) {
  int code = kDone;
  Json all = Json::array();
  for (const Job& job : jobs) {
    using Align = TextTable::Align;
    TextTable t({{"case", Align::left},
                 {"method", Align::left},
                 {"problem", Align::left},
                 {"device", Align::left},
                 {"FLOPs", Align::right},
                 {"bytes", Align::right},
                 {"memory", Align::right},
                 {"status", Align::left}});
    Json cases = Json::array();
    for (const Case& c : job.suite.cases) {
      const CaseEstimate e = estimate_case(c);
      if (e.status == CaseStatus::failed) code = kSomeFailed;
      const bool ok = e.status == CaseStatus::ok;
      const Cost& cost = e.counted.flops() || e.counted.bytes() ? e.counted : e.formula;
      t.add(
          {c.name, c.method, c.problem.str(), c.device,
           ok ? count_text(static_cast<double>(e.formula.flops())) : "-", ok ? bytes_text(cost.bytes()) : "-",
           ok ? (e.workspace_known ? "" : ">= ") + bytes_text(e.total()) : "-",
           ok ? "" : std::string(name(e.status)) + ": " + e.reason},
          ok ? Style::plain : Style::yellow);
      Json params = Json::object();
      for (const auto& [key, value] : c.params) params[key] = to_json(value);
      Json j{{"name", c.name},
             {"method", c.method},
             {"params", std::move(params)},
             {"problem", to_json(c.problem)},
             {"device", c.device},
             {"status", std::string(name(e.status))}};
      if (!ok) j["reason"] = e.reason;
      if (ok) {
        j["flops_formula"] = e.formula.flops();
        j["flops_counted"] = e.counted.flops();
        j["data_dependent"] = e.data_dependent;
        j["bytes_moved"] = cost.bytes();
        j["published_macs"] = e.published_macs;
        j["parameters"] = e.parameters;
        j["memory"] = {{"inputs", e.inputs},
                       {"weights", e.weights},
                       {"outputs", e.outputs},
                       {"workspace", e.workspace_known ? Json(e.workspace) : Json(nullptr)},
                       {"total", e.total()}};
      }
      cases.push_back(std::move(j));
    }
    all.push_back({{"suite", job.suite.name},
                   {"file", job.suite.file},
                   {"hash", job.hash},
                   {"cases", std::move(cases)}});
    if (!global.json)
      print_data(styled(fmt::format("{}: {} cases, {} claims", job.suite.name, job.suite.cases.size(),
                                    job.suite.claims.size()),
                        Style::bold, global.color) +
                 "\n" + t.str(global.color, "  ", stdout_width()) + "\n");
  }
  if (global.json) print_json({{"suites", std::move(all)}});
  return code;
}

// ---- the run
// -------------------------------------------------------------------------------------------------------

std::string outcome_text(const CaseResult& c) {
  if (c.status == CaseStatus::ok && c.time)
    return seconds_text(c.time->median_s) + (c.time->converged ? "" : " (not converged)");
  return std::string(name(c.status)) + (c.reason.empty() ? "" : ": " + c.reason);
}

class Watcher final : public RunObserver {
 public:
  Watcher(Journal& journal, const GlobalOptions& global)
      : journal_(journal), progress_(global.quiet, global.color) {}

  void run_started(const RunResult& run) override { count_ = run.suite.cases.size(); }
  void case_started(size_t, size_t count, const Case& c, std::optional<double> eta_s) override {
    count_ = count;
    progress_.begin(done_, count, c.name, eta_s);
  }
  void case_finished(const CaseResult& c) override {
    journal_.append(c);
    ++done_;
    progress_.end(done_, count_, c.spec.name, outcome_text(c),
                  c.status == CaseStatus::failed || c.status == CaseStatus::inconsistent);
  }
  void warning(const std::string& text) override { progress_.remark(text); }
  void reused(size_t n) { done_ = n; }
  void clear() { progress_.clear(); }

 private:
  Journal& journal_;
  Progress progress_;
  size_t done_ = 0, count_ = 0;
};

int code_of(const RunResult& run) {
  if (run.interrupted) return kInterrupted;
  bool failed = false;
  for (const CaseResult& c : run.cases) {
    if (c.verification && !c.verification->passed && c.status == CaseStatus::failed) return kAnswerIsNo;
    failed |= c.status == CaseStatus::failed || c.status == CaseStatus::inconsistent;
  }
  if (failed) return kSomeFailed;
  for (const ClaimResult& c : run.claims)
    if (c.verdict == ClaimResult::Verdict::outside) return kAnswerIsNo;
  return kDone;
}

void print_results(const RunResult& run, const GlobalOptions& global) {
  print_data(global.json ? to_json(run)
                         : find_format("table").write(run, {.color = global.color, .width = stdout_width()}));
}

/// A finished results file in the way of --resume: shown again when it is of this suite.
int show_finished(const Job& job, const GlobalOptions& global) {
  const RunResult run = run_from_json(read_file(job.results.string()), job.results.string());
  if (run.suite_hash != job.hash)
    throw UsageError("'" + job.results.string() +
                     "' holds results of another suite or other options; --force replaces it");
  note(global.quiet, job.results.string() + " is complete, nothing is left to run");
  print_results(run, global);
  return code_of(run);
}

Journal open_journal(const Job& job, const Options& o, const JournalHeader& header) {
  const std::string path = Journal::path_for(job.results.string());
  fs::create_directories(fs::absolute(job.results).parent_path());
  if (o.resume && Journal::exists(path)) return Journal::open_resume(path, header);
  return Journal::open_new(path, header, o.force);
}

int run_job(const Job& job, const Options& o, const GlobalOptions& global) {
  const std::string results = job.results.string();
  std::error_code failed;
  if (o.resume && !Journal::exists(Journal::path_for(results)) && fs::exists(results, failed))
    return show_finished(job, global);

  const int threads = o.threads ? o.threads : job.suite.measure.threads;
  const JournalHeader header{job.hash, utc_now(),
                             collect_environment(threads, device_of(job.suite)).machine_id};
  Journal journal = open_journal(job, o, header);
  if (!journal.dropped().empty()) note(global.quiet, journal.dropped());
  if (o.resume)
    note(global.quiet, journal.cases().empty() ? "nothing to resume, starting anew"
                                               : fmt::format("going on after {} of {} cases",
                                                             journal.cases().size(), job.suite.cases.size()));

  RunOptions options;
  if (o.threads) options.threads = o.threads;
  options.weights_file = o.weights;
  options.verify_budget_s = o.verify_budget_s;
  if (!o.slowdown.empty())
    options.executor = slowed(make_executor, parse_share("--inject-slowdown", o.slowdown));
  options.finished = journal.cases();
  options.stop = &stop_asked;
  options.evaluate_claim = evaluate_claim;
  Watcher watcher(journal, global);
  watcher.reused(journal.cases().size());
  RunResult run;
  try {
    run = run_suite(job.suite, options, watcher);
    watcher.clear();
    run.started_at = journal.header().started_at;
    const std::string text = to_json(run);
    if (run.interrupted)
      write_file_atomically(results, text);  // the journal stays for --resume
    else
      journal.finish(results, text);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& e) {
    throw Error(std::string(e.what()) + "\nWhat was measured is kept in " + Journal::path_for(results) +
                "; once that is mended, run again with --resume");
  }
  for (const auto& [format, path] : job.others) write_file_atomically(path.string(), format->write(run));
  print_results(run, global);
  if (run.interrupted)
    note(false,
         fmt::format("interrupted; {} holds what was measured, --resume -o {} goes on", results, results));
  else
    note(global.quiet, "results: " + results);
  return code_of(run);
}

int run(const Options& o, const GlobalOptions& global) {
  if (o.resume && o.force) throw UsageError("--resume and --force contradict each other");
  const std::vector<Job> jobs = prepare(o);
  if (o.dry_run) return dry_run(jobs, global);
  if (global.json && jobs.size() > 1) throw UsageError("--json takes one suite at a time");
  const SignalGuard guard;
  int code = kDone;
  for (const Job& job : jobs) {
    const int c = run_job(job, o, global);
    // A failed case says more than an unfulfilled claim of another suite.
    if (code == kDone || c == kSomeFailed || c == kInterrupted) code = c == kDone ? code : c;
    if (c == kInterrupted) break;
  }
  return code;
}

const bool registered = register_command(
    {.name = "run",
     .order = 10,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           const auto repeated = [](CLI::Option* option) {
             // One value a flag, so that suites may follow it.
             return option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
           };
           sub.add_option("SUITE", o->suites, "suite files, or names of those that come with the program")
               ->required()
               ->type_name("SUITE");
           sub.add_option("-o,--output", o->output,
                          "results file (.json), or a folder for SUITE.json; default results/SUITE-TIME.json")
               ->type_name("FILE");
           repeated(sub.add_option("--format", o->formats,
                                   "further files beside the results: csv, md, …, separated by commas"))
               ->type_name("LIST");
           repeated(sub.add_option("-s,--set", o->set,
                                   "change the suite: path=value, e.g. problem.batch=1; repeatable"))
               ->type_name("PATH=VALUE");
           repeated(
               sub.add_option(
                   "-f,--filter", o->filter,
                   "only cases whose name matches: a glob, or /regex/; a leading '-' excludes; repeatable"))
               ->type_name("PATTERN");
           sub.add_option("-d,--device", o->device, "only these devices: cpu, cuda, separated by commas")
               ->type_name("LIST");
           sub.add_option("-t,--threads", o->threads, "CPU threads, instead of the suite's")
               ->check(CLI::Range(1, 4096))
               ->type_name("N");
           sub.add_option("-w,--weights", o->weights, ".safetensors with weights by name for every case")
               ->type_name("FILE");
           sub.add_option("--verify-budget", o->verify_budget_s,
                          "seconds for a reference: beyond it, a sample of rows or a reduced shape is "
                          "compared; default 1")
               ->check(CLI::Range(0.001, 1e6))
               ->type_name("SECONDS");
           sub.add_option("--shard", o->shard,
                          "measure the I-th of N parts, of equal estimated cost; `merge` joins their results")
               ->type_name("I/N");
           sub.add_option("--inject-slowdown", o->slowdown,
                          "slow every timed run by this share, to prove a gate; the results say so")
               ->type_name("SHARE");
           sub.add_flag("--quick", o->quick, "a fast look: precision 5% at best, at most 1 s a case");
           sub.add_flag("--keep-samples", o->keep_samples, "keep every sample in the results");
           sub.add_flag("-n,--dry-run", o->dry_run,
                        "list the cases with FLOPs, bytes and memory; measure nothing");
           sub.add_flag("--resume", o->resume, "go on with an interrupted run; no measured case runs twice");
           sub.add_flag("--force", o->force, "replace existing results");
           sub.footer(
               "Examples:\n"
               "  attnbench run suites/quickstart.yaml\n"
               "  attnbench run suites/papers/hilo.yaml -o h.json --format csv,md\n"
               "  attnbench run quickstart --filter 'hilo*' --set problem.batch=1 --quick\n"
               "  attnbench run suites/papers/hilo.yaml -o h.json --resume\n"
               "\n"
               "Ctrl-C once: what was measured is written, exit status 130; twice: the program dies.");
           return [o, &global] { return run(*o, global); };
         },
     .summary = "measure suites: print the table, write the results"});

}  // namespace

}  // namespace attnbench
