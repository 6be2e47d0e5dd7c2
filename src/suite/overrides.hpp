// `--set path=value`: changes to a suite's tree before it is checked, so that they meet the same checks.
#pragma once
#include <string>
#include <vector>

#include "suite/yaml.hpp"

namespace attnbench {

/// Returns the changed tree; nodes are shared with the old one. Errors name the --set they come from.
yaml::NodePtr apply_overrides(const yaml::NodePtr& root, const std::vector<std::string>& set,
                              ErrorList& errors);

}  // namespace attnbench
