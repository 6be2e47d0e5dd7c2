// The results file itself; results_json.hpp does the work.
#include "report/format.hpp"
#include "report/results_json.hpp"

namespace attnbench {

namespace {

class JsonFormat final : public Format {
 public:
  std::string id() const override { return "json"; }
  std::string extension() const override { return ".json"; }
  std::string summary() const override { return "everything; `attnbench schema results` describes it"; }
  std::string write(const RunResult& run, const FormatOptions&) const override { return to_json(run); }
};
ATTNBENCH_FORMAT(JsonFormat);

}  // namespace

}  // namespace attnbench
