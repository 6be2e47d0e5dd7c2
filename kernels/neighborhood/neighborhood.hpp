// Neighbourhood attention in separate operators, as its first implementations had it: the scores of every
// query with its neighbours in memory (PN), their softmax (kernels/softmax), and the weighted sum of the
// neighbours' values (NN). The fused form is the attention operator with a neighbourhood rule.
//
// The rule is a neighbourhood of rank 1..3 on row-major tokens and nothing else; W = prod(window). Entry t of
// a row is the neighbour at place t (row-major over the axes) of the query's window, counted from the
// window's first key; a causal axis has fewer keys near its start, and entries without a key hold -inf
// (scores) or are not read (values).
//
//   naive  one product after the other, straight from memory: any rule
//   tiled  scores only: keys around a tile of queries are kept at hand. Rank 2, D = 32, equal odd
//   windows 3..13, no
//          causal axis; `values` with it is naive
//   gemm   a dense product of a tile of queries with all keys between their first and their last neighbour,
//   of which
//          the valid entries are kept. Rank 1 and 2, equal windows (up to 63 in 2-D) and dilations, no causal
//          axis. On CUDA it is for bf16 and f16: f32 would need tensor cores that round to TF32.
// Everything else is Unsupported with the reason. Source: Faster Neighborhood Attention, arXiv 2403.04690.
//
// Cost: matmul 2 D (values: 2 E) a pair, of all windows for naive and tiled, of the dense tiles for gemm;
// scores: elementwise 1 a computed pair for the scale, and 1 for the bias of a valid pair. Bytes: operands
// once.
#pragma once
#include "kernels/attention/block_mask.hpp"
#include "kernels/core/context.hpp"

namespace attnbench {

enum class NeighborhoodKernel : uint8_t { naive, tiled, gemm };

/// a = scale * q k + bias. q [B, H, N, D], k [B, Hkv, N, D] of one float dtype, H a multiple of Hkv; a f32
/// [B, H, N, W]. Any strides with a contiguous last axis: further columns may stand behind a's.
struct NeighborhoodScoresArgs {
  Tensor q, k;
  /// Optional, q's dtype, [H, prod(2 window - 1)] contiguous: entry (key place - query place + window - 1) on
  /// every axis, in places of the dilation group.
  Tensor bias;
  Tensor a;
  ElementRule rule;
  float scale = 1.0f;
  NeighborhoodKernel kernel = NeighborhoodKernel::naive;
};
void neighborhood_scores(Context& ctx, const NeighborhoodScoresArgs& args);

/// o = a v. a f32 [B, H, N, W]; v [B, Hkv, N, E], o [B, H, N, E] of one float dtype. Any strides with a
/// contiguous last axis.
struct NeighborhoodValuesArgs {
  Tensor a, v, o;
  ElementRule rule;
  NeighborhoodKernel kernel = NeighborhoodKernel::naive;
};
void neighborhood_values(Context& ctx, const NeighborhoodValuesArgs& args);

/// Side of the gemm form's query tiles, in places of a dilation group: 64 on a line, and in 2-D the published
/// table by the window's radius.
int64_t neighborhood_gemm_tile(int rank, int64_t window);

}  // namespace attnbench
