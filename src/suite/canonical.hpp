// The canonical text of a resolved suite: equal for suites that measure and claim the same, whatever the
// order of their keys and their formatting. Hashed for the suite's identity and stored with the results.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "suite/suite.hpp"

namespace attnbench {

/// `params`: the resolved parameters of each case, so that stating a default changes nothing and a changed
/// default does. Titles, notes and sources are left out: they change no figure.
std::string canonical_text(const Suite& suite, const std::vector<std::map<std::string, Value>>& params);

}  // namespace attnbench
