// GitHub-flavoured Markdown from texts and tables, escaped. Not a format: markdown.cpp and comment.cpp are.
#pragma once
#include <string>

#include "report/rows.hpp"

namespace attnbench {

/// No character of a suite's text acts as markup, ends a cell or hides.
std::string markdown_escaped(const std::string& text);
std::string markdown_table(const ReportTable& table);
/// For inside a comment of HTML: letters, digits, '.', '_' and '-'; everything else becomes '_', and two '-'
/// in a row cannot end it.
std::string markdown_marker(const std::string& text);

}  // namespace attnbench
