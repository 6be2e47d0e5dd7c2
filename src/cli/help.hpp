// How --help looks: usage, arguments, options, examples, wrapped to 100 columns. Not what it says: that is
// with each command.
#pragma once
#include <memory>
#include <string>

namespace CLI {
class FormatterBase;
class App;
class Option;
}  // namespace CLI

namespace attnbench {

std::shared_ptr<CLI::FormatterBase> help_formatter();

/// "-o,--output" and its like as shown; `word` is what its value is called ("FILE"), empty for flags.
std::string option_names(const CLI::Option& option);
std::string option_value_word(const CLI::Option& option);

}  // namespace attnbench
