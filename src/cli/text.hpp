// Output of commands: data to stdout. Its shaping (tables, units, colour) is report/text.hpp.
#pragma once
#include "report/text.hpp"

namespace attnbench {

/// Writes data to stdout; messages go to stderr by other ways.
void print_data(const std::string& text);

}  // namespace attnbench
