// attnbench dashboard: the history as static pages.
#include "report/dashboard.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/json.hpp"
#include "cli/program.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"

namespace attnbench {

namespace {

struct Options {
  std::string history, output;
  DashboardOptions dashboard;
};

int dashboard(const Options& o, const GlobalOptions& global) {
  const History history(o.history);
  const DashboardSummary s = write_dashboard(history, o.output, o.dashboard);
  if (global.json) {
    print_json({{"folder", o.output},
                {"pages", s.pages},
                {"suites", s.suites},
                {"cases", s.cases},
                {"points", s.points},
                {"changes", s.changes},
                {"bytes", s.bytes},
                {"removed", s.removed}});
  } else {
    note(global.quiet, fmt::format("{} pages ({}) of {} cases, {} points, {} changes of level: {}/index.html",
                                   s.pages, bytes_text(s.bytes), s.cases, s.points, s.changes, o.output));
  }
  return kDone;
}

const bool registered = register_command(
    {.name = "dashboard",
     .order = 60,
     .add =
         [](CLI::App& sub, const GlobalOptions& global) {
           auto o = std::make_shared<Options>();
           sub.add_option("HISTORY", o->history, "the history file of `attnbench history`")
               ->required()
               ->type_name("FILE");
           sub.add_option("-o,--output", o->output, "the folder for the pages; made when it is missing")
               ->required()
               ->type_name("FOLDER");
           sub.add_option("--title", o->dashboard.title, "the headline of the overview")->type_name("TEXT");
           sub.add_option("--branch", o->dashboard.branch, "only this branch; default all")
               ->type_name("BRANCH");
           sub.add_flag("--force", o->dashboard.force, "write into a folder that holds other files");
           sub.footer("Examples:\n  attnbench dashboard history.db -o site/ --branch main");
           return [o, &global] { return dashboard(*o, global); };
         },
     .summary = "static pages over the history: time series, change points, verdicts"});

}  // namespace

}  // namespace attnbench
