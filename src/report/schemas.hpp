// The JSON schemas of reports/schema, embedded at build time.
#pragma once
#include <map>
#include <string>
#include <string_view>

namespace attnbench {

/// By name: "results", "suite".
const std::map<std::string, std::string_view>& schemas();

}  // namespace attnbench
