// Line and cell sums of maps that are not given, operator by operator with the map in memory: what a backend
// does where it has no kernel that avoids the map. Charges nothing; the contracts are in patterns.hpp.
#pragma once
#include "kernels/select/patterns.hpp"

namespace attnbench {

/// line_sums without x; so many key heads together that their maps take half a GiB.
void line_sums_in_steps(Context& ctx, const LineSumsArgs& args);
/// cell_sums with `softmax`.
void cell_sums_in_steps(Context& ctx, const CellSumsArgs& args);

}  // namespace attnbench
