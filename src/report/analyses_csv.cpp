// Analyses as one value a row: what plotting tools and data frames read without taking fields apart. Scalars
// have no index; of series it counts from 0, and series by head say layer and head too. Columns never change
// their order; new ones come at the end.
#include <string>

#include "report/format.hpp"
#include "report/heads.hpp"
#include "report/text.hpp"

namespace attnbench {

namespace {

class AnalysesCsvFormat final : public Format {
 public:
  std::string id() const override { return "analyses"; }
  std::string extension() const override { return ".analyses.csv"; }
  std::string summary() const override {
    return "CSV of the analyses, one value a row: case, analysis, quantity, layer, head, index, value";
  }
  std::string write(const RunResult& run, const FormatOptions&) const override {
    std::string out = "case,method,device,analysis,quantity,layer,head,index,value\n";
    for (const CaseResult& c : run.cases) {
      const std::string begin =
          csv_field(c.spec.name) + "," + csv_field(c.spec.method) + "," + csv_field(c.spec.device) + ",";
      for (const AnalysisResult& a : c.analyses) {
        for (const auto& [key, v] : a.scalars)
          out += begin + csv_field(a.analysis) + "," + csv_field(key) + ",,,," + csv_number(v) + "\n";
        for (const auto& [key, values] : a.series) {
          const bool by_head = is_by_head(key);
          const HeadGrid grid = head_grid(c.spec.problem, values.size());
          for (size_t i = 0; i < values.size(); ++i)
            out += begin + csv_field(a.analysis) + "," + csv_field(key) + "," +
                   (by_head ? std::to_string(i / grid.heads) + "," + std::to_string(i % grid.heads) : ",") +
                   "," + std::to_string(i) + "," + csv_number(values[i]) + "\n";
        }
      }
    }
    return out;
  }
};
ATTNBENCH_FORMAT(AnalysesCsvFormat);

}  // namespace

}  // namespace attnbench
