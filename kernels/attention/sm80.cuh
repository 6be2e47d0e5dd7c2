// The plan of one call of the mma.sync kernels, and their launchers by type. The kernels themselves:
// sm80_kernel.cuh.
#pragma once
#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {

/// What an instance knows about; each contains the one before.
enum class Kind : int {
  lean,  ///< aligned keys at consecutive rows; rows see ranges of them
  full,  ///< every mask, any memory
  terms  ///< and caps, biases, entropy, any scale
};

/// Which embeddings of distances an instance knows about.
enum class Distances : int {
  none,
  keys,  ///< of keys, always
  any    ///< of keys, of values or of both
};

/// How a call is cut into thread blocks: units (a batch and head, or a batch and kv head with all its query
/// heads side by side) times tiles of query rows times parts of the keys.
struct TensorPlan {
  int rows = 64;        ///< of a tile: 64 or 128
  int units = 0;        ///< batch * heads, or batch * kv heads when packed
  int tiles = 0;        ///< a unit
  int block_tiles = 0;  ///< tiles of a query block; 0: tiles run through all rows of the unit
  int section = 1;      ///< units whose keys share the L2 cache; heaviest tiles first inside a section
  int parts = 1;        ///< of the keys
  bool packed = false;  ///< rows are (head of the group, query): decode
  Kind kind = Kind::terms;
  bool limits = false;                              ///< rows differ in the range of keys they see
  bool general_rule = false, general_full = false;  ///< tiles under the rule / of full blocks need bit masks
  bool columns = false;  ///< keys are not consecutive tokens, or bit masks need their coordinates
  bool direct = false;   ///< keys at consecutive rows of aligned memory
  Distances distances = Distances::none;
  bool tables_aligned = false;  ///< 16-byte rows of the embeddings of distances
  bool q_aligned = false, k_aligned = false, v_aligned = false, o_aligned = false;  ///< 16-byte rows
  float to_log2 = 1;            ///< from raw scores to log2 units
  float* part_o = nullptr;      ///< [units * tiles, parts, rows, E]
  float* part_state = nullptr;  ///< [units * tiles, parts, rows, 4]: maximum, sum, logs, unused
};

constexpr int kThreads = 128;

template <class T, int Dim, int MTiles, Distances X = Distances::none>
struct Tile {
  static constexpr int kRows = 64 * MTiles, kRowBytes = Dim * static_cast<int>(sizeof(T));
  // 8 KiB of K beside embeddings, whose ring then leaves room for a second block of D 128 in 16 bits and of D
  // 64 in 32.
  static constexpr int kKeys = kRowBytes > (X == Distances::none ? 256 : 128) ? 32 : 64;
  static constexpr int kChunks = kRowBytes / 16, kPerChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kSteps = kChunks / 2;  // an mma consumes two chunks of a row
  static constexpr int kNTiles = kKeys / 8, kOTiles = Dim / 8;
  // Q stays in registers where that costs 32 of them or fewer.
  static constexpr bool kQInRegisters = MTiles * kSteps * 4 <= 32 && sizeof(T) == 2;
  static constexpr int kQBytes = kRows * kRowBytes, kKeyBytes = kKeys * kRowBytes;
  static constexpr Distances kDistances = X;
  // Rows of the band of distances (one more than there are), and of the ring: see sm80_relative.cuh.
  static constexpr int kBand = kRows + kKeys, kRing = kBand + kKeys, kRingBytes = kRing * kRowBytes;
};

/// What a query row may see, in shared memory: one array an item, indexed by row.
template <int Rows>
struct RowInfo {
  int token[Rows];            // -1: no such row
  int low[Rows], high[Rows];  // keys by the rule's ranges and the row's range
  int row_low[Rows], row_high[Rows], sink_high[Rows];
  // For bit masks; lean instances have no memory for what follows.
  int slot[Rows];  // the head follows from the row where rows are packed
  int segment[Rows];
  int place[3][Rows], length[3][Rows];  // neighbourhood runs
};
template <int Keys>
struct ColumnInfo {
  int token[Keys];  // -1: not a valid key
  int slot[Keys];
  int segment[Keys];
  int place[3][Keys];
};
/// Rows of a tile's keys and values in elements from the start of k and v, -1: nowhere.
template <int Keys>
struct KeyPlaces {
  int64_t k[Keys], v[Keys];
  int token[Keys], slot[Keys];
};
struct Reduced {
  int min_low, max_low, min_high, max_high, max_sink, max_row_low, min_row_high, unused;
};
template <class C>
struct Extras {
  Reduced reduced;
  RowInfo<C::kRows> rows;
  KeyPlaces<C::kKeys> places[2];
  ColumnInfo<C::kKeys> columns[2];
};

template <class C, Kind K>
size_t shared_bytes(const Params& p) {
  const size_t rings = C::kDistances == Distances::none
                           ? 0
                           : size_t{p.relative_keys != nullptr} + size_t{p.relative_values != nullptr};
  const size_t tiles = C::kQBytes + 4 * C::kKeyBytes + rings * C::kRingBytes;
  if (K == Kind::lean) return tiles + sizeof(Reduced) + 6 * sizeof(int) * C::kRows;
  return tiles + sizeof(Extras<C>);
}
/// Whether tiles of 128 rows exist: registers hold their output and scores.
template <class T, int Dim>
constexpr bool long_tiles() {
  return Dim * sizeof(T) <= 256;
}

/// What masks, orders and memory ask of tiles: `limits` to `columns`, and what is aligned.
void plan_masks(const AttentionArgs& a, const Params& p, TensorPlan& plan);

void launch_tensor_bf16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_tensor_f16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_tensor_f32(Context& ctx, const Params& p, const TensorPlan& plan);
// Calls with relative embeddings.
void launch_relative_bf16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_relative_f16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_relative_f32(Context& ctx, const Params& p, const TensorPlan& plan);

}  // namespace attnbench::cuda_attention
