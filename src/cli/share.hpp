// "3%" and "0.03" as numbers, for options. Suites have their own reader with line and column.
#pragma once
#include <string>

namespace attnbench {

/// Throws UsageError naming `option` for what is neither a percentage nor a fraction between 0 and 10.
double parse_share(const std::string& option, const std::string& text);

}  // namespace attnbench
