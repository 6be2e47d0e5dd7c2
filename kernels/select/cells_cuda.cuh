// Cell sums of a row softmax in one kernel: the entry, no kernels.
#pragma once
#include "kernels/select/patterns.hpp"

namespace attnbench::select {

/// cell_sums with `softmax` for cells of 4, 8, 16 or 32 columns, 16-byte aligned rows and as many cells as
/// shared memory holds; false for anything else, with nothing done.
bool softmax_cells(Context& ctx, const CellSumsArgs& args);

}  // namespace attnbench::select
