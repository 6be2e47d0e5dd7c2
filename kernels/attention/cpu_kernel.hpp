// The inner loops of CPU attention as one table of functions per instruction set. No scheduling, no masks
// semantics, no allocation: cpu.cpp drives these.
//
// Two forms share one score layout, S^T: row j holds the scores of key j for all queries ("lanes") of a tile.
//
//   Lane form (many queries). Queries sit in vector lanes: Q is transposed once per tile, K and V are read as
//   scalars and broadcast, and the output is kept transposed. So K and V are never packed, whatever their
//   strides, pages or gather lists, and row maxima and sums need no horizontal work.
//
//   Row form (few queries: decoding, tiny windows). The head dim sits in the lanes, so that every loaded
//   vector of K and V is used once per query at full width; scores are reduced to S^T, outputs stay in rows.
//
// The functions named *_pairs do the same with bf16 pairs in 32-bit units (two head dims, or two keys).
#pragma once
#include <cstdint>

#include "kernels/core/dtype.hpp"

namespace attnbench::cpu_attention {

inline constexpr int kLanes = 64;    ///< queries a tile at most: four vectors of 16
inline constexpr int kKeys = 64;     ///< keys a step: S^T of 64 x 64 floats fills a third of a 48 KiB L1
inline constexpr int kMaxDim = 512;  ///< head dims (contract)
// The row form costs a head dim's vectors a query and key, the lane form a scalar broadcast a head dim: with
// 16 lanes they meet between 8 and 16 queries.
inline constexpr int kRowQueries = 16;

/// One softmax step of a tile: S^T becomes P^T, running maxima and sums move on.
struct SoftmaxStep {
  float* s = nullptr;  ///< [keys][lanes], in and out
  int keys = 0, lanes = 0;
  float to_log2 = 0;                 ///< p = 2^(s * to_log2 - m)
  const uint64_t* mask = nullptr;    ///< bit l of entry j: lane l sees key j; null: all do
  float *m = nullptr, *l = nullptr;  ///< [lanes]: reference point (base 2, scaled) and sum
  float* t = nullptr;      ///< [lanes]: running sum of p * log2(p), for the entropy; null: not wanted
  float* top = nullptr;    ///< [lanes]: running maximum itself, which m follows loosely; null: not wanted
  float* alpha = nullptr;  ///< [lanes], out: what earlier sums must be multiplied by
  bool moved = false;      ///< out: some alpha differs from 1
};

/// Score terms beyond the plain product: s = softcap(scale * s) - slope * |position - key| + add.
struct ScoreTerms {
  float* s = nullptr;
  int keys = 0, lanes = 0;
  float scale = 1, cap = 0;
  const float* slope = nullptr;     ///< [lanes] or null
  const float* position = nullptr;  ///< [lanes]
  const float* key = nullptr;       ///< [keys]
  const float* add = nullptr;       ///< [keys][lanes] or null
};

/// One step of few queries that all see all of its keys, with nothing but a scale on the scores: scores,
/// softmax and output in one call. Rows of q, o and entries of m, l, top beyond `queries` up to the next of
/// 1, 2, 4, 8, 12, 16 are written too.
struct DecodeStep {
  DType dtype = DType::f32;
  const float* q = nullptr;       ///< [queries][d]
  const bf16* q_pairs = nullptr;  ///< the same as bf16, for decode_pairs
  int queries = 0, keys = 0;
  int64_t d = 0, e = 0;
  const void *const *k = nullptr, *const *v = nullptr;
  int64_t ahead_k = 0, ahead_v = 0;                  ///< as in row_scores
  float to_log2 = 0;                                 ///< > 0
  float *m = nullptr, *l = nullptr, *top = nullptr;  ///< as in SoftmaxStep, an entry a query
  float* o = nullptr;                                ///< [queries][e]
  float* s = nullptr;                                ///< [queries][ld], scratch
  int ld = 0;                                        ///< a multiple of 64, >= keys
};

struct Kernels {
  const char* name;
  bool bf16_pairs;  ///< the *_pairs functions are there
  /// Called by every thread before its first use of the *_pairs functions and after its last; null: nothing
  /// to do.
  void (*begin_thread)();
  void (*end_thread)();

  /// out[i * lanes + l] = row l's element i; rows beyond `n` become 0.
  void (*pack_columns)(DType, const void* const* rows, int n, int64_t d, int lanes, float* out);
  void (*pack_columns_pairs)(const void* const* rows, int n, int64_t d, int lanes, float* out);
  /// s[j * lanes + l] = sum_i k[j][i] q[i * lanes + l] for the `width` lanes from l = 0 (a multiple of 16)
  void (*scores)(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys, float* s);
  void (*scores_pairs)(const float* q, int lanes, int width, int64_t d, const void* const* k, int keys,
                       float* s);
  /// o[i * lanes + l] += sum_j v[j][i] p[j * lanes + l]
  void (*accumulate)(float* o, int lanes, int width, int64_t e, const void* const* v, int keys,
                     const float* p);
  /// The same over keys [first, last) of a step; `first` is a multiple of 16, and `last` too unless it is the
  /// step's end. v is what `interleave` made of the step's values, p[(j / 2) * lanes + l] the pair of weights
  /// of keys j and j + 1; weights of the step's keys before `first` must be 0 for these lanes.
  void (*accumulate_pairs)(float* o, int lanes, int width, int64_t e, const float* v, int first, int last,
                           const float* p);
  /// v of two keys side by side, a missing last key as 0, in the order that accumulate_pairs of the same
  /// table wants; kKeys * e / 2 units at most.
  void (*interleave)(const void* const* v, int keys, int64_t e, float* out);

  /// `ahead`: bytes from a row to the one that will be read some rows later, to be prefetched; 0: none.
  void (*row_scores)(DType, const float* q, int64_t ldq, int queries, int64_t d, const void* const* k,
                     int keys, float* s, int lanes, int64_t ahead);
  void (*row_accumulate)(DType, float* o, int64_t ldo, int queries, int64_t e, const void* const* v, int keys,
                         const float* p, int lanes, int64_t ahead);

  void (*decode)(const DecodeStep&);
  void (*decode_pairs)(const DecodeStep&);  ///< bf16, an even number of keys

  void (*score_terms)(const ScoreTerms&);
  void (*softmax)(SoftmaxStep&);
  /// As softmax, and P^T is stored as bf16 pairs of keys: [(keys + 1) / 2][lanes] units in place.
  void (*softmax_pairs)(SoftmaxStep&);
  /// sums[j] = sum over lanes of weight[l] * 2^(s * to_log2 - m[l]); uses s, keys, lanes, to_log2, mask, m.
  void (*mass)(const SoftmaxStep&, const float* weight, float* sums);
  /// o[i * lanes + l] *= alpha[l]
  void (*rescale)(float* o, int64_t e, int lanes, const float* alpha);
  /// Row l, element i of the output = o[i * lanes + l] * weight[l], rounded to the type.
  void (*unpack_columns)(DType, const float* o, int lanes, int n, int64_t e, const float* weight,
                         void* const* rows);
  /// out[j * ld + i] = row j's element i as f32.
  void (*widen)(DType, const void* const* rows, int n, int64_t d, float* out, int64_t ld);
  /// bits[j] bit l: low[l] <= x[j] < high[l].
  void (*range_bits)(const int32_t* x, int keys, const int32_t* low, const int32_t* high, int lanes,
                     uint64_t* bits);
  bool (*finite)(DType, const void* const* rows, int n, int64_t d);

  // Terms by distance: lane l (a query) and key j meet at entry u = j - l + lanes - 1 of a column.
  /// s[j * lanes + l] += g[u * lanes + l]; g has lanes + 63 rows, those beyond lanes + keys - 2 unused.
  void (*gather_diagonals)(const float* g, int lanes, int keys, float* s);
  /// g[u * lanes + l] = p[j * lanes + l] for u < lanes + keys - 1, 0 where no key has that distance.
  void (*spread_diagonals)(const float* p, int lanes, int keys, float* g);
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512bf16_kernels();
const Kernels& amx_kernels();

/// Every table this machine can run, slowest first. "portable" is always there.
struct KernelList {
  const Kernels* entries[5];
  int count = 0;
};
KernelList available_kernels();
/// The table in use: the fastest, or the one named by ATTNBENCH_CPU_ISA, or by force_kernels.
const Kernels& kernels();
/// For tests and comparisons: null gives the choice back. Not thread safe against running calls.
void force_kernels(const Kernels* k);

}  // namespace attnbench::cpu_attention
