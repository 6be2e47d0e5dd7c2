#include "cli/program.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "cli/child.hpp"
#include "cli/help.hpp"
#include "cli/text.hpp"
#include "kernels/core/error.hpp"
#include "measure/build_info.hpp"
#include "methods/params.hpp"

namespace attnbench {

namespace {

std::vector<Command>& commands() {
  static std::vector<Command> list;
  return list;
}

void message(const char* kind, const std::string& text) {
  std::fflush(stdout);
  print_message(fmt::format("attnbench: {}{}\n", kind, text));
}

bool want_color(const std::string& when) {
  if (when != "auto") return when == "always";
  const char* off = std::getenv("NO_COLOR");
  return isatty(STDOUT_FILENO) && !(off && *off);
}

/// The words that the parser did not understand, outermost first.
std::vector<std::string> leftovers(const CLI::App& app) {
  std::vector<std::string> words = app.remaining();
  for (const CLI::App* sub : app.get_subcommands())
    for (const std::string& word : sub->remaining()) words.push_back(word);
  return words;
}

std::vector<std::string> option_words(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) words.push_back("--" + name);
  return words;
}

/// What is wrong with the command line, in a sentence, with the nearest valid word.
std::string usage_problem(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> extra = leftovers(app);
  if (extra.empty()) return error.what();
  const std::string& word = extra.front();
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  std::vector<std::string> valid;
  std::string what;
  if (word.starts_with("-")) {
    valid = option_words(app);
    if (!chosen.empty()) {
      const std::vector<std::string> own = option_words(*chosen.front());
      valid.insert(valid.end(), own.begin(), own.end());
    }
    what = "unknown option '" + word + "'";
  } else if (chosen.empty()) {
    for (const Command& c : commands()) valid.push_back(c.name);
    what = "unknown command '" + word + "'";
  } else {
    return "unexpected argument '" + word + "'";
  }
  const std::string near = nearest_word(word.substr(0, word.find('=')), valid);
  return near.empty() ? what : what + "; did you mean '" + near + "'?";
}

int run_command(const std::function<int()>& command) {
  try {
    return command();
  } catch (const UsageError& e) {
    message("", e.what());
    return kUsage;
  } catch (const Interrupted& e) {
    message("", e.what());
    return kInterrupted;
  } catch (const Unsupported& e) {
    message("unsupported: ", e.what());
    return kSomeFailed;
  } catch (const OutOfMemory& e) {
    message("out of memory: ", e.what());
    return kSomeFailed;
  } catch (const Error& e) {
    message("", e.what());
    return kSomeFailed;
  } catch (const std::bad_alloc&) {
    message("", "out of memory");
    return kSomeFailed;
  } catch (const std::exception& e) {
    message("internal error, please report it: ", e.what());
    return kSomeFailed;
  }
}

/// Data that did not reach its reader is a failure, whatever the command thought of it.
int flush_data(int code) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
  message("", std::string("writing to stdout failed: ") + std::strerror(errno ? errno : EIO));
  return code == kDone ? kSomeFailed : code;
}

}  // namespace

bool register_command(Command command) {
  commands().push_back(std::move(command));
  return true;
}

int cli_main(int argc, char** argv) {
  // A file-size limit shall be an error of the write that meets it, told with the file's name.
  std::signal(SIGXFSZ, SIG_IGN);
  std::sort(commands().begin(), commands().end(), [](const Command& a, const Command& b) {
    return a.order != b.order ? a.order < b.order : a.name < b.name;
  });

  GlobalOptions global;
  std::string color = "auto";
  CLI::App app(
      "Measures and analyses attention and frequency-domain methods: what they really cost on this machine,\n"
      "verified first, against the strongest dense baseline and against what their papers say.",
      "attnbench");
  app.formatter(help_formatter());
  app.set_help_flag("-h,--help", "show this help; after a command: its options and examples");
  app.set_version_flag("-V,--version",
                       fmt::format("attnbench {} ({})", build_info().version, build_info().revision),
                       "show the version and the source revision");
  app.add_flag("--json", global.json, "data as JSON on stdout");
  app.add_flag("-q,--quiet", global.quiet, "no progress and no notes on stderr");
  app.add_option("--color", color, "colour on the terminal; NO_COLOR turns it off too")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->type_name("WHEN:{auto,always,never}");
  app.require_subcommand(0, 1);
  app.footer(
      "Examples:\n"
      "  attnbench run suites/quickstart.yaml -o results/     measure, print the table, keep the results\n"
      "  attnbench describe hilo                              parameters, formulas, paper, published "
      "figures\n"
      "  attnbench verify --all                               every method against its reference\n"
      "\n"
      "Exit codes: 0 done; 1 the answer is no (failed claim, verification or check); 2 wrong usage or "
      "input;\n"
      "3 some cases failed; 130 interrupted, results kept.");

  std::function<int()> chosen;
  std::vector<std::pair<CLI::App*, std::function<int()>>> runners;
  for (const Command& c : commands()) {
    CLI::App* sub = app.add_subcommand(c.name, c.summary);
    sub->set_help_flag("-h,--help", "show this help");
    sub->fallthrough();  // global options may follow the command
    runners.emplace_back(sub, c.add(*sub, global));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    return flush_data(app.exit(e) == 0 ? kDone : kUsage);
  } catch (const CLI::ParseError& e) {
    const std::vector<CLI::App*> subs = app.get_subcommands();
    message("", usage_problem(app, e));
    print_message(
        fmt::format("Try 'attnbench {}--help'.\n", subs.empty() ? "" : subs.front()->get_name() + " "));
    return kUsage;
  }
  global.color = want_color(color);
  for (const auto& [sub, runner] : runners)
    if (sub->parsed()) return flush_data(run_command(runner));
  print_data(app.help());
  return flush_data(kDone);
}

}  // namespace attnbench
