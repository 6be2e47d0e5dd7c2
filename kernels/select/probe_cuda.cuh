// Line sums of a probe whose attention map is never stored, for shapes that tensor cores take: the entry, no
// kernels.
#pragma once
#include "kernels/select/patterns.hpp"

namespace attnbench::select {

/// line_sums without x for 16-bit inputs of 16, 32, 64 or 128 channels and up to 128 rows, 16-byte aligned
/// keys; false for anything else, with nothing done.
bool probe_lines(Context& ctx, const LineSumsArgs& args);

}  // namespace attnbench::select
