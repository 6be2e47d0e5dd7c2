// Softmax attention over a block mask, fused, memory linear in N: the engine.
//
//   s_ij = softcap(scale * q_i . k_j) + bias_ij        softcap(x) = cap * tanh(x / cap) when cap > 0
//   p_ij = exp(s_ij - lse_i),  lse_i = ln(sum_j exp(s_ij) + exp(sink_h))   over the attended pairs of the
//   mask o_i  = sum_j p_ij v_j
//
// With relative embeddings (RelativeEmbedding below) key j acts on query i as k_j + e_{j-i} and value j as
// v_j + f_{j-i}: the score term depends on the query, unlike a bias, and still needs no N x M memory.
//
// Shapes: q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, E], o [B, H, N, E]; H a multiple of Hkv (head h
// reads kv head h / (H / Hkv)). Any strides with a contiguous last axis. N != M allowed; N = 0 or M = 0
// allowed. dtypes: q, k, v, o equal: f32, bf16, f16 (scores, sums and o accumulated in f32). D, E: 1..512 on
// the CPU; on CUDA tensor cores {16, 32, 64, 96, 128, 192, 256}, others padded. A row that attends to
// nothing: o = 0, lse = -inf, entropy = 0, row max = -inf, mass 0. NaN or inf scores propagate to their own
// row only. Results do not depend on the number of threads. o must not alias q, k or v.
//
// Cost (charged from what is executed): matmul 2 (D + E) per visited pair, special 1 and elementwise 4 per
// visited pair, where visited pairs are those of whole visited blocks, cut at N and M; without lists: of the
// attended pairs exactly (causal, band), as the formula of every paper counts them; relative keys add 2 D and
// relative values 2 E a pair, inside or outside their table. Online-softmax rescaling is not charged. Every
// operand is read once; k and v at most a row each per visited pair.
// Sources: FlashAttention (arXiv 2205.14135) for the online softmax; block lists as in GPU_KERNELS notes.
#pragma once
#include "kernels/attention/block_mask.hpp"
#include "kernels/core/context.hpp"

namespace attnbench {

/// Additive terms of the score. Every one that is set is added.
struct ScoreBias {
  /// f32 or the problem's dtype, [B or 1, H or 1, N, M], any strides (0 for broadcast): dense bias or
  /// additive mask
  /// (-inf hides a pair).
  Tensor dense;
  /// f32 [H]: -slope_h * |i + offset - j| with offset = M - N (ALiBi).
  Tensor slope;
  /// f32 [H or 1, 2 R + 1]: entry clamp(j - i - offset, -R, R) + R with offset = M - N. R = max(N, M) - 1
  /// makes it a full Toeplitz bias.
  Tensor relative;
};

/// Embeddings of the distance between key and query (Shaw et al., arXiv 1803.02155; Music Transformer, arXiv
/// 1809.04281): pair (i, j) uses row origin + j - i - offset of the tables, offset = M - N. What lies outside
/// a table adds nothing (a row of zeros), or with `clip` is its nearest row. On the CPU a step's terms are
/// one more product with as many rows as the step has keys, read off along its diagonals; token orders
/// (mask.q_order) fall back to a product a pair. On CUDA the mma.sync kernel does the same for D and E up to
/// 128; orders, gather lists and wider rows run on the device oracle, a pair at a time and slowly.
struct RelativeEmbedding {
  Tensor keys;         ///< the problem's dtype, [H or 1, T, D], contiguous last axis
  Tensor values;       ///< the same, [H or 1, T', E]; origin and clip are shared
  int64_t origin = 0;  ///< row of the key that stands at the query; may lie outside the tables
  bool clip = false;
};

/// Keys and values in pages: k, v are [pages, Hkv, page_size, D]; table i32 [B, max_pages] names each
/// sequence's pages in order; key_length (of the mask) i32 [B] is required.
struct PagedCache {
  Tensor table;
  int64_t page_size = 0;
};

/// Which of a device's kernels may run a call.
enum class AttentionKernel : uint8_t {
  fastest,
  /// CUDA: the mma.sync kernel of sm_80, also where the card has faster ones. Unsupported for what it does
  /// not take, and on the CPU.
  mma_sync
};

struct AttentionArgs {
  Tensor q, k, v, o;
  float scale = 1.0f;     ///< the caller passes 1/sqrt(D); no default is implied
  float soft_cap = 0.0f;  ///< 0: off
  ScoreBias bias;
  RelativeEmbedding relative;
  Tensor sink_logit;                ///< f32 [H]: one extra logit a row, without value
  const BlockMask* mask = nullptr;  ///< null: every pair
  PagedCache pages;

  // Outputs on request, f32; absent: not computed.
  Tensor lse;             ///< [B, H, N]
  Tensor row_max;         ///< [B, H, N]
  Tensor row_entropy;     ///< [B, H, N], nats, of p over the attended pairs (the sink's share included as one
                          ///< outcome)
  Tensor mass_per_key;    ///< [B, H, M]: sum over rows of p_ij
  Tensor mass_per_block;  ///< [B, H, ceil(N / block_q), ceil(M / block_k)]; blocks of the mask (64 x 64
                          ///< without one)

  /// 0: the engine chooses; otherwise the number of parts in which the keys of one row are split (decode).
  int64_t split_keys = 0;
  AttentionKernel kernel = AttentionKernel::fastest;
};
void attention(Context& ctx, const AttentionArgs& args);
/// The same maths at the same charge by the vendor's library (CUDA: cuDNN's fused attention), the yardstick
/// of the engine: every pair or every causal pair (M >= N), bf16 and f16, no score rules, no outputs besides
/// o. Throws Unsupported with the reason for everything else, and where there is no such library.
void library_attention(Context& ctx, const AttentionArgs& args);
/// What `attention` charges for these arguments.
Cost attention_cost(const AttentionArgs& args);

}  // namespace attnbench
