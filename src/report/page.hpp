// What every HTML page of this program shares: escaping, the frame with its style and its few lines of
// script, tables. Not the content of any page.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "report/rows.hpp"

namespace attnbench {

/// For text and for attributes in double quotes: < > & " ' as entities, control characters, direction
/// overrides and bytes that are not UTF-8 as visible text (see printable()).
std::string html_escaped(const std::string& text);
/// The same, kept from turning the text around it when it is written from right to left.
std::string html_name(const std::string& text);
/// For XML 1.0 as well: what html_escaped() leaves is allowed there, but for U+FFFE and U+FFFF.
std::string xml_escaped(const std::string& text);

struct Page {
  std::string title;               ///< not escaped yet
  std::string headline, subtitle;  ///< HTML
  std::vector<std::pair<std::string, std::string>>
      sections;        /// links of the navigation: target, text (plain)
  std::string crumbs;  ///< HTML above the headline; may be empty
  std::string body;    ///< HTML
  std::string foot;    ///< HTML
};

/// One file that needs nothing else: style, script and charts inside. A content security policy permits this
/// script alone, so that nothing in a suite's text could run even if it were not escaped.
std::string html_page(const Page& page);

/// A section with its heading; `id` is what the navigation links to.
std::string html_section(const std::string& id, const std::string& title, const std::string& body);
/// A chart with its caption and legend side by side with others: see html_charts.
std::string html_figure(const std::string& caption, const std::string& svg, const std::string& legend = {},
                        const std::string& note = {}, bool wide = false);
std::string html_charts(const std::vector<std::string>& figures);

struct HtmlTableOptions {
  std::string caption;  ///< for those who hear the page
  bool filter = false;  ///< a field that leaves only the rows that contain its text
  /// HTML of a cell instead of its escaped text; empty: the text.
  std::vector<std::vector<std::string>> cells = {};
  /// By row: what a choice beside the filter narrows to; empty: no choice.
  std::vector<std::string> kinds = {};
};
/// Sortable by its column heads; scrolls sideways where it does not fit.
std::string html_table(const ReportTable& table, const HtmlTableOptions& options = {});

/// A word in a coloured frame: mood as in tables.
std::string html_badge(const std::string& word, ReportTable::Mood mood);

/// SHA-256, base64: what a content security policy names a script by.
std::string sha256_base64(const std::string& text);

}  // namespace attnbench
