// Output of commands: data to stdout, messages to stderr. Its shaping (tables, units, colour) is
// report/text.hpp.
#pragma once
#include "report/text.hpp"

namespace attnbench {

/// Data to stdout; cli_main checks at the end that all of it was written.
void print_data(const std::string& text);
/// Progress and messages to stderr. A stderr that is closed or full changes nothing.
void print_message(const std::string& text);

}  // namespace attnbench
