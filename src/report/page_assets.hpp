// The style and the script of every page, as text. Not the pages.
#pragma once
#include <string_view>

namespace attnbench {

std::string_view page_style();
/// Themes, sorting and filtering; pages say everything without it.
std::string_view page_script();

}  // namespace attnbench
