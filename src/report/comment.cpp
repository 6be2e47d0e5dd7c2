// One comment on a pull request: the outcome in a line, what needs a look, everything else folded. Not the
// Markdown of READMEs: markdown.cpp has that.
#include <fmt/core.h>

#include "report/format.hpp"
#include "report/markdown.hpp"
#include "report/rows.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

// GitHub refuses comments above 65536 characters; what does not fit is said, not cut in half.
constexpr size_t kMostBytes = 60000;

std::string folded(const std::string& title, const std::string& body) {
  return "<details><summary>" + title + "</summary>\n\n" + body + "\n</details>\n\n";
}

class CommentFormat final : public Format {
 public:
  std::string id() const override { return "comment"; }
  std::string extension() const override { return ".comment.md"; }
  std::string summary() const override {
    return "Markdown for a pull-request comment: outcome first, tables folded";
  }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    size_t bad = 0, outside = 0;
    for (const CaseResult& c : run.cases)
      bad += c.status == CaseStatus::failed || c.status == CaseStatus::inconsistent;
    for (const ClaimResult& c : run.claims) outside += c.verdict == ClaimResult::Verdict::outside;
    // The first line lets a later run find and replace its own comment.
    std::string out = "<!-- attnbench:" + markdown_marker(run.suite.name) + " -->\n";
    out += fmt::format("### {}{}\n\n",
                       bad       ? "\xe2\x9d\x8c "
                       : outside ? "\xe2\x9a\xa0\xef\xb8\x8f "
                                 : "\xe2\x9c\x85 ",
                       markdown_escaped(headline(run)));
    out += markdown_escaped(tally(run)) + "\n\n";
    if (const std::string machine = machine_line(run); !machine.empty())
      out += markdown_escaped(machine) + "\n\n";

    ReportTable look = case_table(run);
    std::erase_if(look.rows, [](const ReportTable::Row& r) { return r.mood == ReportTable::Mood::plain; });
    look.drop_empty_columns();
    std::vector<std::string> pieces;
    if (!look.rows.empty()) pieces.push_back("**To be looked at**\n\n" + markdown_table(look) + "\n");
    if (const ReportTable claims = claim_table(run); !claims.rows.empty())
      pieces.push_back("**Claims**\n\n" + markdown_table(claims) + "\n");
    if (const ReportTable cases = case_table(run); !cases.rows.empty())
      pieces.push_back(folded(fmt::format("All {} cases", cases.rows.size()), markdown_table(cases)));
    if (const ReportTable stages = stage_table(run); !stages.rows.empty())
      pieces.push_back(folded("Stages", markdown_table(stages)));
    for (const auto& [title, table] : analysis_tables(run))
      if (!table.rows.empty()) pieces.push_back(folded(markdown_escaped(title), markdown_table(table)));
    std::string notes;
    for (const std::string& note : remarks(run)) notes += "- " + markdown_escaped(note) + "\n";
    if (!notes.empty()) pieces.push_back(folded("Remarks", notes));

    size_t left = 0;
    for (const std::string& piece : pieces) {
      if (out.size() + piece.size() > kMostBytes) {
        ++left;
        continue;
      }
      out += piece;
    }
    if (left)
      out += fmt::format("{} part{} did not fit into a comment; the results file has everything.\n", left,
                         left == 1 ? "" : "s");
    return out;
  }
};
ATTNBENCH_FORMAT(CommentFormat);

}  // namespace

}  // namespace attnbench
