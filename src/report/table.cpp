// The results for a terminal: aligned columns in human units, coloured and cut to its width on request.
#include "report/format.hpp"
#include "report/rows.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

Style style_of(ReportTable::Mood mood) {
  switch (mood) {
    case ReportTable::Mood::plain:
      return Style::plain;
    case ReportTable::Mood::good:
      return Style::green;
    case ReportTable::Mood::warn:
      return Style::yellow;
    case ReportTable::Mood::bad:
      return Style::red;
  }
  return Style::plain;
}

std::string text_of(const ReportTable& t, const FormatOptions& options) {
  std::vector<std::pair<std::string, TextTable::Align>> columns;
  for (const ReportTable::Column& c : t.columns)
    columns.emplace_back(printable(c.title), c.right ? TextTable::Align::right : TextTable::Align::left);
  TextTable table(columns);
  for (const ReportTable::Row& r : t.rows) {
    std::vector<std::string> cells;
    for (const std::string& cell : r.cells) cells.push_back(printable(cell));
    table.add(std::move(cells), style_of(r.mood));
  }
  return table.str(options.color, "", options.width);
}

class TableFormat final : public Format {
 public:
  std::string id() const override { return "table"; }
  std::string extension() const override { return ".txt"; }
  std::string summary() const override { return "aligned columns for a terminal"; }
  std::string write(const RunResult& run, const FormatOptions& options) const override {
    std::string out = styled(printable(headline(run)), Style::bold, options.color) + "\n";
    if (const std::string machine = machine_line(run); !machine.empty())
      out += styled(printable(machine), Style::dim, options.color) + "\n";
    if (const ReportTable cases = case_table(run); !cases.rows.empty()) out += "\n" + text_of(cases, options);
    for (const auto& [title, table] : analysis_tables(run))
      out += "\n" + styled(printable(title), Style::bold, options.color) + "\n" + text_of(table, options);
    if (const ReportTable claims = claim_table(run); !claims.rows.empty())
      out += "\n" + text_of(claims, options);
    const std::vector<std::string> notes = remarks(run);
    if (!notes.empty()) out += "\n";
    for (const std::string& note : notes) {
      const std::string line = printable(note);
      out += (options.width > 8 ? wrap(line, options.width - 2, "  ") : line) + "\n";
    }
    return out + "\n" + tally(run) + "\n";
  }
};
ATTNBENCH_FORMAT(TableFormat);

}  // namespace

}  // namespace attnbench
