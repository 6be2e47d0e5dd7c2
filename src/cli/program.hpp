// The command line: one subcommand per file, registered in the file itself.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace attnbench {

/// Exit codes of every command.
enum ExitCode : int { kDone = 0, kAnswerIsNo = 1, kUsage = 2, kSomeFailed = 3, kInterrupted = 130 };

/// Options that every command understands.
struct GlobalOptions {
  bool json = false;   ///< data as JSON on stdout
  bool quiet = false;  ///< no progress, no notes on stderr
  bool color = false;  ///< decided from the terminal, NO_COLOR and --color
};

/// One subcommand: `add` declares its options on the parser and returns what runs it (its result is the exit
/// code).
struct Command {
  std::string name;
  int order = 100;  ///< position in --help
  std::function<std::function<int()>(CLI::App& sub, const GlobalOptions& global)> add;
  std::string summary;
};
bool register_command(Command command);

/// Parses, runs, and maps every exception to its message on stderr and its exit code.
int cli_main(int argc, char** argv);

}  // namespace attnbench
