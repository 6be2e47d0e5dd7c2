// The plan of one call of the mma.sync kernels, and their launchers by type. The kernels themselves:
// sm80_kernel.cuh.
#pragma once
#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {

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
  bool terms = false;   ///< caps, biases, entropy or a scale that is not positive
  bool limits = false;  ///< rows differ in the range of keys they see
  bool general_rule = false, general_full = false;  ///< tiles under the rule / of full blocks need bit masks
  bool columns = false;  ///< keys are not consecutive tokens, or bit masks need their coordinates
  bool q_aligned = false, k_aligned = false, v_aligned = false, o_aligned = false;  ///< 16-byte rows
  float to_log2 = 1;            ///< from raw scores to log2 units
  float* part_o = nullptr;      ///< [units * tiles, parts, rows, E]
  float* part_state = nullptr;  ///< [units * tiles, parts, rows, 4]: maximum, sum, logs, unused
};

constexpr int kThreads = 128;

template <class T, int Dim, int MTiles>
struct Tile {
  static constexpr int kRows = 64 * MTiles, kRowBytes = Dim * static_cast<int>(sizeof(T));
  static constexpr int kKeys = kRowBytes > 256 ? 32 : 64;
  static constexpr int kChunks = kRowBytes / 16, kPerChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kSteps = kChunks / 2;  // an mma consumes two chunks of a row
  static constexpr int kNTiles = kKeys / 8, kOTiles = Dim / 8;
  // Q stays in registers where that costs 32 of them or fewer.
  static constexpr bool kQInRegisters = MTiles * kSteps * 4 <= 32 && sizeof(T) == 2;
  static constexpr int kQBytes = kRows * kRowBytes, kKeyBytes = kKeys * kRowBytes;
};

/// What a query row may see, in shared memory: one array an item, indexed by row.
template <int Rows>
struct RowInfo {
  int token[Rows];            // -1: no such row
  int head_slot[Rows];        // slot; the head follows from the row where rows are packed
  int low[Rows], high[Rows];  // keys by the rule's ranges and the row's range
  int row_low[Rows], row_high[Rows], sink_high[Rows];
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
struct Reduced {
  int min_low, max_low, min_high, max_high, max_sink, max_row_low, min_row_high, unused;
};
template <class T, int Dim, int MTiles>
struct Extras {
  RowInfo<64 * MTiles> rows;
  ColumnInfo<Tile<T, Dim, MTiles>::kKeys> columns[2];
  Reduced reduced;
};

template <class T, int Dim, int MTiles>
constexpr size_t shared_bytes() {
  using C = Tile<T, Dim, MTiles>;
  return C::kQBytes + 4 * C::kKeyBytes + sizeof(Extras<T, Dim, MTiles>);
}

void launch_tensor_bf16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_tensor_f16(Context& ctx, const Params& p, const TensorPlan& plan);
void launch_tensor_f32(Context& ctx, const Params& p, const TensorPlan& plan);

}  // namespace attnbench::cuda_attention
