#include "cli/program.hpp"

namespace attnbench {

bool register_command(Command) { return true; }
int cli_main(int, char**) { return kUsage; }

}  // namespace attnbench
