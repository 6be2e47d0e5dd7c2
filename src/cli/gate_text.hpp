// A gate's report as a table, as Markdown for a pull request, and as JSON. The deciding is in
// history/gate.hpp.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "history/gate.hpp"
#include "report/junit_xml.hpp"

namespace attnbench {

std::string gate_table(const GateReport& report, bool color, size_t width);
/// `all`: every case; otherwise what is neither the same nor unsure, and the tally.
std::string gate_markdown(const GateReport& report, GateAnswer answer);
nlohmann::ordered_json gate_json(const GateReport& report);
/// One test a case: a failure where it became slower, an error where it is missing, without a time or could
/// not be measured again (not with `allow_missing`), skipped where there was nothing to compare with. unsure
/// and faster pass, as in the gate's answer; a gate that compared nothing is one more test that fails, unless
/// it passed.
JunitGroup gate_junit(const std::string& suite, const GateReport& report, GateAnswer answer,
                      bool allow_missing);
/// "14 same, 1 slower; 2 new".
std::string gate_tally(const GateReport& report);
std::string_view name(GateAnswer a);
std::string_view name(GateRow::State s);

}  // namespace attnbench
