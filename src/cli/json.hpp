// JSON of the program's own types, for --json. Not the results file: report/ writes that.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "analysis/analysis.hpp"
#include "methods/method.hpp"

namespace attnbench {

nlohmann::ordered_json to_json(
    const Value& v);  ///< NaN and infinities become null: JSON has no word for them
nlohmann::ordered_json to_json(const Problem& p);
nlohmann::ordered_json to_json(const std::vector<ParamSpec>& specs);
nlohmann::ordered_json to_json(const MethodInfo& info);
nlohmann::ordered_json to_json(const AnalysisInfo& info);
/// null for NaN and infinities.
nlohmann::ordered_json finite(double v);

/// Prints `j` indented, with a line break, to stdout.
void print_json(const nlohmann::ordered_json& j);

}  // namespace attnbench
