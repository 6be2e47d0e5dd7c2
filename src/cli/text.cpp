#include "cli/text.hpp"

#include <cstdio>

namespace attnbench {

void print_data(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_message(const std::string& text) { std::fputs(text.c_str(), stderr); }

}  // namespace attnbench
