// attnbench prove: the gate put to the test on this machine, with real programs and real times. It writes
// what it found as JSON and Markdown; tests/history/trust_test.cpp does the same with a simulated clock.
#include <fmt/format.h>
#include <sched.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/child.hpp"
#include "cli/gate_text.hpp"
#include "cli/json.hpp"
#include "cli/paths.hpp"
#include "cli/program.hpp"
#include "cli/share.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "history/gate.hpp"
#include "inputs/atomic_file.hpp"
#include "measure/clock.hpp"
#include "measure/environment.hpp"
#include "report/files.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string suite, folder = "reports/trust", history, slowdown = "5%", confirm_time = "120";
  std::vector<std::string> parts{"same", "slower", "bursts"};
  int runs = 18, baseline = 5, confirmed = -1;
  bool append = false;
};

/// Takes one core for itself in bursts: the neighbour that makes everything on that core take twice as long.
class Neighbour {
 public:
  static constexpr double kOnSeconds = 0.4, kOffSeconds = 0.8;
  Neighbour() : thread_([this] { work(); }) {}
  ~Neighbour() {
    stop_ = true;
    thread_.join();
  }
  double share() const { return kOnSeconds / (kOnSeconds + kOffSeconds); }

 private:
  void work() {
    // The last core that this process may use; the programs under test use all of them.
    cpu_set_t all, one;
    CPU_ZERO(&all);
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof all, &all) == 0)
      for (int i = CPU_SETSIZE - 1; i >= 0; --i)
        if (CPU_ISSET(i, &all)) {
          CPU_SET(i, &one);
          sched_setaffinity(0, sizeof one, &one);
          break;
        }
    volatile double x = 1;
    while (!stop_) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(kOnSeconds);
      while (std::chrono::steady_clock::now() < end && !stop_)
        for (int i = 0; i < 10000; ++i) x = x * 1.0000001;
      std::this_thread::sleep_for(std::chrono::duration<double>(kOffSeconds));
    }
  }
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Trial {
 public:
  Trial(const Options& o, const GlobalOptions& global)
      : o_(o), suite_(find_suite_file(o.suite)), progress_(global.quiet, global.color) {}

  /// A run of the suite by a new process.
  std::string run(const std::string& what, const std::vector<std::string>& more = {}) {
    const std::string file = folder_ / fmt::format("{}.json", ++files_);
    progress_.begin(0, 0, what, std::nullopt);
    std::vector<std::string> command{own_program(), "run", suite_, "-o", file, "--quiet"};
    command.insert(command.end(), more.begin(), more.end());
    std::string messages;
    if (const int code = run_child(command, messages); code != kDone && code != kAnswerIsNo)
      throw Error(fmt::format("a run ended with exit status {}: {}", code, messages));
    return file;
  }

  void add(const std::string& file) {
    History h(history(), History::Mode::create);
    AddOptions a;
    a.branch = "main";
    const RunResult run = run_from_json(read_file(file), file);
    suite_name_ = run.suite.name;
    h.add(run, a);
  }
  /// Runs of identical code on the undisturbed machine; where a history is kept, one in every call, so that
  /// calls at different times are sessions of it.
  void prepare() {
    add(run("baseline run"));
    for (int n = runs_before(); n < o_.baseline; ++n)
      add(run(fmt::format("baseline run {} of {}", n + 1, o_.baseline)));
  }
  int runs_before() const {
    return static_cast<int>(
        History(history()).runs(HistoryQuery{.suite = suite_name_, .branch = "main"}).size());
  }

  /// What `attnbench check` answers, as JSON, by a new process.
  Json check(const std::string& file, const std::vector<std::string>& more) {
    progress_.begin(0, 0, "checking", std::nullopt);
    const std::string out = folder_ / "check.json";
    std::vector<std::string> command{own_program(), "check",   file, "--against",
                                     history(),     "--quiet", "-o", out};
    command.insert(command.end(), more.begin(), more.end());
    std::string messages;
    const int code = run_child(command, messages);
    if (code != kDone && code != kAnswerIsNo)
      throw Error(fmt::format("a check ended with exit status {}: {}", code, messages));
    return Json::parse(read_file(out)).at("checks").at(0);
  }
  std::vector<std::string> confirming() const {
    return {"--confirm", "--baseline-binary", own_program(), "--confirm-time", o_.confirm_time};
  }
  std::string history() const { return o_.history.empty() ? folder_ / "history.db" : o_.history; }
  void clear() { progress_.clear(); }

 private:
  const Options& o_;
  TemporaryFolder folder_;
  std::string suite_, suite_name_;
  int files_ = 0;
  Progress progress_;
};

Json counts() {
  return {{"gates", 0},  {"gates_failed", 0}, {"comparisons", 0}, {"slower", 0},
          {"faster", 0}, {"same", 0},         {"unsure", 0},      {"confirmed", 0}};
}

void count(Json& sum, const Json& check) {
  sum["gates"] = sum["gates"].get<int>() + 1;
  sum["gates_failed"] = sum["gates_failed"].get<int>() + (check["answer"] == "regression");
  for (const Json& c : check["cases"]) {
    if (c["state"] != "compared") continue;
    sum["comparisons"] = sum["comparisons"].get<int>() + 1;
    const std::string verdict = c["verdict"];
    sum[verdict] = sum[verdict].get<int>() + 1;
    sum["confirmed"] = sum["confirmed"].get<int>() + c["confirmed"].get<bool>();
  }
}

/// Identical code against a growing history, without and with confirmation; with `bursts` a neighbour takes a
/// core of the machine that was left alone when the history was made.
Json same_code(const Options& o, const GlobalOptions& global, bool bursts) {
  Trial t(o, global);
  t.prepare();
  std::unique_ptr<Neighbour> neighbour;
  if (bursts) neighbour = std::make_unique<Neighbour>();
  Json once = counts(), confirmed = counts(), flagged = Json::array();
  const auto keep_flagged = [&flagged](const Json& check) {
    for (const Json& c : check["cases"])
      if (c["state"] == "compared" && (c["verdict"] == "slower" || c["verdict"] == "faster"))
        flagged.push_back(c);
  };
  for (int i = 0; i < o.runs; ++i) {
    const std::string file = t.run(fmt::format("run {} of {}", i + 1, o.runs));
    const Json first = t.check(file, {});
    count(once, first);
    keep_flagged(first);
    if (o.confirmed < 0 || i < o.confirmed) {
      const Json again = t.check(file, t.confirming());
      count(confirmed, again);
      keep_flagged(again);
    }
    if (!bursts) t.add(file);
  }
  t.clear();
  Json j{{"single_runs", once}, {"confirmed", confirmed}, {"flagged", flagged}};
  if (bursts)
    j["neighbour"] = {{"on_s", Neighbour::kOnSeconds}, {"off_s", Neighbour::kOffSeconds}, {"cores", 1}};
  return j;
}

/// The new program is slower by a known share in every timed run; each case of each run is one trial.
Json slower_code(const Options& o, const GlobalOptions& global) {
  Trial t(o, global);
  t.prepare();
  Json once = counts(), confirmed = counts(), missed = Json::array();
  for (int i = 0; i < o.runs; ++i) {
    const std::string file =
        t.run(fmt::format("slowed run {} of {}", i + 1, o.runs), {"--inject-slowdown", o.slowdown});
    count(once, t.check(file, {}));
    std::vector<std::string> more = t.confirming();
    more.insert(more.end(), {"--inject-slowdown", o.slowdown});
    const Json again = t.check(file, more);
    count(confirmed, again);
    for (const Json& c : again["cases"])
      if (c["state"] == "compared" && c["verdict"] != "slower") missed.push_back(c);
  }
  t.clear();
  return {{"slowdown", parse_share("--slowdown", o.slowdown)},
          {"single_runs", once},
          {"confirmed", confirmed},
          {"missed", missed}};
}

/// The counts of two proofs of the same part together.
Json joined(const Json& a, const Json& b) {
  Json sum = b;
  for (const char* mode : {"single_runs", "confirmed"})
    for (auto it = sum[mode].begin(); it != sum[mode].end(); ++it)
      it.value() = it.value().get<int>() + a.at(mode).at(it.key()).get<int>();
  for (const char* list : {"flagged", "missed"})
    if (sum.contains(list))
      for (const Json& c : a.at(list)) sum[list].push_back(c);
  return sum;
}

double share(const Json& c, const char* what) {
  const int n = c["comparisons"].get<int>();
  return n ? c[what].get<double>() / n : 0;
}

std::string markdown(const Json& all) {
  std::string out = "# The gate on trial\n\n";
  out += fmt::format("Written by `attnbench prove` on {}. {}\n\n", all["finished_at"].get<std::string>(),
                     all["machine"].get<std::string>());
  for (const auto& [part, t] : all["trials"].items())
    out += fmt::format("`{}`: in {} calls from {} to {}.\n", part, t["calls"].size(),
                       t["calls"].front()["started_at"].get<std::string>(),
                       t["calls"].back()["finished_at"].get<std::string>());
  out += "\n";
  out +=
      "| trial | gates | comparisons | slower | faster | same | unsure | measured again | gates failed |\n"
      "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const auto row = [&out](const std::string& title, const Json& c) {
    out += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", title, c["gates"].get<int>(),
                       c["comparisons"].get<int>(), c["slower"].get<int>(), c["faster"].get<int>(),
                       c["same"].get<int>(), c["unsure"].get<int>(), c["confirmed"].get<int>(),
                       c["gates_failed"].get<int>());
  };
  const std::map<std::string, std::string> titles{{"same", "identical code"},
                                                  {"bursts", "identical code, a neighbour in bursts"},
                                                  {"slower", "slowed code"}};
  for (const auto& [key, title] : titles)
    if (all["trials"].contains(key)) {
      const Json& t = all["trials"][key];
      const std::string what =
          key == "slower" ? fmt::format("every run slowed by {:.3g}%", 100 * t["slowdown"].get<double>())
                          : title;
      row(what + ", one run", t["single_runs"]);
      row(what + ", confirmed", t["confirmed"]);
    }
  out += "\n";
  for (const Json& r : all["requirements"])
    out += fmt::format("- {}: {} ({})\n", r["holds"].get<bool>() ? "holds" : "DOES NOT HOLD",
                       r["what"].get<std::string>(), r["measured"].get<std::string>());
  return out;
}

Json requirements(const Json& trials) {
  Json list = Json::array();
  const auto add = [&list](const std::string& what, bool holds, const std::string& measured) {
    list.push_back({{"what", what}, {"holds", holds}, {"measured", measured}});
  };
  const auto flagged = [](const Json& c) { return share(c, "slower") + share(c, "faster"); };
  if (trials.contains("same"))
    for (const char* mode : {"single_runs", "confirmed"}) {
      const Json& c = trials["same"][mode];
      add(fmt::format("identical code, {}: at most 1% of the comparisons are flagged",
                      std::string(mode) == "confirmed" ? "confirmed" : "one run"),
          flagged(c) <= 0.01, fmt::format("{:.2f}% of {}", 100 * flagged(c), c["comparisons"].get<int>()));
    }
  if (trials.contains("slower")) {
    const Json& c = trials["slower"]["confirmed"];
    add(fmt::format("a slowdown of {:.3g}% is found by the confirmed gate in at least 95% of the comparisons",
                    100 * trials["slower"]["slowdown"].get<double>()),
        share(c, "slower") >= 0.95,
        fmt::format("{:.1f}% of {}", 100 * share(c, "slower"), c["comparisons"].get<int>()));
  }
  if (trials.contains("bursts")) {
    const Json& c = trials["bursts"]["confirmed"];
    add("a neighbour's bursts on one core: the confirmed gate flags nothing",
        c["slower"] == 0 && c["faster"] == 0,
        fmt::format("{} of {} flagged", c["slower"].get<int>() + c["faster"].get<int>(),
                    c["comparisons"].get<int>()));
  }
  return list;
}

int prove(const Options& o, const GlobalOptions& global) {
  std::filesystem::create_directories(o.folder);
  const std::string file = o.folder + "/trust.json";
  require_writable(file);
  // Parts that were proved before stay, so that a long proof can be done in pieces on one machine.
  Json all = Json::object();
  const Environment here = collect_environment(0);
  std::error_code failed;
  if (std::filesystem::exists(file, failed)) {
    Json old = Json::parse(read_file(file), nullptr, false);
    if (old.is_object() && old.value("machine_id", "") == here.machine_id &&
        old.value("suite", "") == o.suite)
      all = std::move(old);
  }
  all["format"] = "attnbench-trust";
  all["suite"] = o.suite;
  all["machine_id"] = here.machine_id;
  std::string machine;
  for (const char* key : {"cpu_model", "cores", "os", "compiler", "git_revision", "load_1min"})
    if (const auto it = here.values.find(key); it != here.values.end())
      machine += (machine.empty() ? "" : ", ") + std::string(key) + " " + it->second.str();
  all["machine"] = machine;
  // Counts of which it is not known when they were measured are not gone on with.
  Json trials = Json::object();
  if (all.contains("trials"))
    for (const auto& [part, t] : all["trials"].items())
      if (t.contains("calls") && !t["calls"].empty()) trials[part] = t;
  all["trials"] = std::move(trials);
  for (const std::string& part : o.parts) {
    Json trial;
    const std::string started = utc_now();
    if (part == "same")
      trial = same_code(o, global, false);
    else if (part == "bursts")
      trial = same_code(o, global, true);
    else if (part == "slower")
      trial = slower_code(o, global);
    else
      throw UsageError("--part: '" + part + "' is none of same, slower, bursts");
    const bool before = all["trials"].contains(part);
    const bool joins = o.append && before;
    // When, on what and beside what load each part of the counts was measured.
    trial["calls"] = joins ? all["trials"][part].value("calls", Json::array()) : Json::array();
    trial["calls"].push_back({{"started_at", started}, {"finished_at", utc_now()}, {"machine", machine}});
    all["trials"][part] = joins ? joined(all["trials"][part], trial) : trial;
    all["requirements"] = requirements(all["trials"]);
    all["finished_at"] = utc_now();
    write_file_atomically(file, all.dump(1) + "\n");
    write_file_atomically(o.folder + "/trust.md", markdown(all));
  }
  if (global.json)
    print_json(all);
  else
    print_data(markdown(all));
  for (const Json& r : all["requirements"])
    if (!r["holds"].get<bool>()) return kAnswerIsNo;
  return kDone;
}

const bool registered = register_command(
    {.name = "prove",
     .order = 59,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("SUITE", o->suite, "suite file, or the name of one that comes with the program")
               ->required()
               ->type_name("SUITE");
           sub.add_option("-o,--output", o->folder,
                          "folder for trust.json and trust.md; default reports/trust")
               ->type_name("DIR");
           sub.add_option("--runs", o->runs, "runs that are checked, each part; default 18")
               ->check(CLI::Range(1, 10000))
               ->type_name("N");
           sub.add_option("--confirmed", o->confirmed,
                          "same, bursts: so many of the runs are checked with --confirm as well; default all")
               ->check(CLI::Range(0, 10000))
               ->type_name("N");
           sub.add_option("--baseline-runs", o->baseline, "runs in the history before; default 5")
               ->check(CLI::Range(1, 1000))
               ->type_name("N");
           sub.add_option(
                  "--history", o->history,
                  "keep the history in this file; calls at other times with --append are its sessions")
               ->type_name("FILE");
           sub.add_option("--slowdown", o->slowdown, "what is injected; default 5%")->type_name("SHARE");
           sub.add_option("--confirm-time", o->confirm_time, "of every check; default 120")
               ->type_name("SECONDS");
           sub.add_option("--part", o->parts, "same, slower, bursts; repeatable; default all")
               ->expected(1)
               ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
               ->type_name("{same,slower,bursts}");
           sub.add_flag("--append", o->append, "add to what the folder's files count already");
           sub.footer(
               "Examples:\n"
               "  attnbench prove trust -o reports/trust\n"
               "  attnbench prove trust --part same --runs 4 --append --history trust.db   # now and then\n"
               "\n"
               "same: identical code is checked again and again. slower: every timed run is slowed by a "
               "spin.\n"
               "bursts: as same, while a thread takes one core in bursts; the history is of the machine left "
               "alone.\n"
               "Exit status 1 when the gate "
               "fails.");
           return [o, &global] { return prove(*o, global); };
         },
     .summary = "put the gate to the test: same code, slower code, a noisy neighbour"});

}  // namespace

}  // namespace attnbench
