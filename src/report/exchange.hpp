// What the formats for other benchmark tools share: which cases have a figure at all, names that every reader
// shows safely, JSON without what JSON has no word for. Not a format.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

/// Cases whose time is a headline: ok and timed, the numbers finite.
std::vector<const CaseResult*> timed_cases(const RunResult& run);
/// The others, "sra (unsupported)": formats that have a place for it say what is missing.
std::string untimed_cases(const RunResult& run);
/// Counted FLOPs over a time, per second; 0 where nothing was counted.
double flops_per_second(const CaseResult& c, double seconds);
/// Indented, with a line break; bytes that are not UTF-8 replaced.
std::string json_text(const nlohmann::ordered_json& j);

}  // namespace attnbench
