// The results as GitHub-flavoured Markdown: for pull requests, issues and READMEs.
#include "report/markdown.hpp"

#include <cctype>

#include "report/format.hpp"
#include "report/rows.hpp"
#include "report/text.hpp"

namespace attnbench {

std::string markdown_escaped(const std::string& raw) {
  std::string flat;
  for (char c : raw) flat += c == '\n' || c == '\r' || c == '\t' ? ' ' : c;
  const std::string s = printable(flat);
  const auto alnum = [&s](size_t i) {
    return i < s.size() && std::isalnum(static_cast<unsigned char>(s[i]));
  };
  std::string out;
  for (size_t i = 0; i < s.size(); ++i) {
    const char c = s[i];
    // Underscores inside words are plain in this dialect; escaping them would only hurt readers of the
    // source.
    const bool inner = c == '_' && i > 0 && alnum(i - 1) && alnum(i + 1);
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      // Brackets make a link only with what follows; intervals keep theirs plain.
      const bool link =
          c == ']' && i + 1 < s.size() && std::string_view("([:").find(s[i + 1]) != std::string_view::npos;
      if (link || (!inner && std::string_view("\\`*_|~").find(c) != std::string_view::npos)) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string markdown_table(const ReportTable& t) {
  std::string head = "|", rule = "|", out;
  for (const ReportTable::Column& c : t.columns) {
    head += " " + markdown_escaped(c.title) + " |";
    rule += c.right ? " ---: |" : " --- |";
  }
  for (const ReportTable::Row& r : t.rows) {
    out += "|";
    for (const std::string& cell : r.cells) out += " " + markdown_escaped(cell) + " |";
    out += "\n";
  }
  return head + "\n" + rule + "\n" + out;
}

std::string markdown_marker(const std::string& text) {
  std::string out;
  for (char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
    out += plain && !(c == '-' && out.ends_with('-')) ? c : '_';
  }
  return out.empty() || out.back() == '-' ? out + "_" : out;
}

namespace {

class MarkdownFormat final : public Format {
 public:
  std::string id() const override { return "markdown"; }
  std::string extension() const override { return ".md"; }
  std::string summary() const override { return "tables for pull requests and READMEs"; }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    std::string out = "# " + markdown_escaped(headline(run)) + "\n\n";
    if (const std::string machine = machine_line(run); !machine.empty())
      out += markdown_escaped(machine) + "\n\n";
    std::vector<std::pair<std::string, ReportTable>> sections{{"Cases", case_table(run)},
                                                              {"Stages", stage_table(run)}};
    for (auto& section : analysis_tables(run)) sections.push_back(std::move(section));
    sections.emplace_back("Claims", claim_table(run));
    for (const auto& [title, table] : sections)
      if (!table.rows.empty()) out += "## " + markdown_escaped(title) + "\n\n" + markdown_table(table) + "\n";
    const std::vector<std::string> notes = remarks(run);
    if (!notes.empty()) out += "## Remarks\n\n";
    for (const std::string& note : notes) out += "- " + markdown_escaped(note) + "\n";
    if (!notes.empty()) out += "\n";
    return out + markdown_escaped(tally(run)) + "\n";
  }
};
ATTNBENCH_FORMAT(MarkdownFormat);

}  // namespace

}  // namespace attnbench
