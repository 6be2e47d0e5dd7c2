// Data movement that methods need between operators: row gathers (window partition, padding, rolling, token
// permutation, cropping) and axis permutations. Each is its own stage cost: bytes, no FLOPs.
#pragma once
#include "kernels/core/context.hpp"

namespace attnbench {

/// y[b, i, :] = x[b, index[i], :]; index -1 writes zeros (padding tokens).
/// x [B, N, C], y [B, M, C], index i32 [M]; rows contiguous, strides of B and N free; x and y do not overlap.
/// An index outside [-1, N) throws UsageError on the CPU. A device cannot refuse what it reads without
/// stopping for the host, so on CUDA every byte of such a row is 0xff: NaN in all floating types.
struct GatherRowsArgs {
  Tensor x, index, y;
};
void gather_rows(Context& ctx, const GatherRowsArgs& args);

/// y = x with its axes permuted: y is contiguous (or any strides), x any strides, shapes equal element by
/// element: pass x already permuted as a view. Blocked for the cache.
struct TransposeCopyArgs {
  Tensor x, y;
};
void transpose_copy(Context& ctx, const TransposeCopyArgs& args);

}  // namespace attnbench
