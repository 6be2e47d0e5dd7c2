// The tables of a history, version by version. Not their use: see history.cpp.
#pragma once
#include <string_view>
#include <vector>

namespace attnbench {

/// Statement lists; the n-th brings a file of version n to version n + 1 (version 0: an empty file). Never
/// edited once released: a change is a further entry.
const std::vector<std::string_view>& history_migrations();

}  // namespace attnbench
