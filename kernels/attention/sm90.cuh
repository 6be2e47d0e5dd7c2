// The plan of one call of the Hopper kernels and their launchers by type. The kernel itself: sm90_kernel.cuh.
#pragma once
#include <cuda.h>

#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {

/// 32-bit words of the tables of tile-major neighbourhoods.
inline constexpr int kTileTable = 1024;

/// Work of one launch: units (batch times head) times tiles of query rows, taken by persistent blocks.
struct HopperPlan {
  CUtensorMap q, k, v, o;  ///< [D, rows, H, B] in boxes of 64 x 64 (128-byte rows, swizzled)
  int groups = 2;          ///< consumer warpgroups of 64 rows
  int tiles = 0;           ///< a unit
  int total = 0;           ///< units * tiles
  int section = 1;         ///< units whose keys share the L2 cache
  bool mask_full = false;  ///< full blocks too need words: ranges, padding or a ragged end of the keys
  bool general = false;    ///< the rule is more than ranges of keys: no tile without lists is whole
  bool ranges = false;     ///< rows differ in what they see, or the keys end inside a tile
  bool simple = false;     ///< every row sees ranges of keys: the consumers hide what lies outside
  bool monotone = false;   ///< simple, and both ends of the ranges only grow from row to row
  bool pure = false;       ///< nothing but a neighbourhood decides
  int tile_words = 0;  ///< 32-bit words of a tile of keys whose neighbourhood the tile's tables tell; 0: none
  bool terms = false;  ///< scores need more than a positive factor, or their entropy is asked for
  float to_log2 = 1;   ///< from raw scores (with terms: from finished ones) to log2 units
  float slack = 0;     ///< log2 units that a row's maximum may lie above what its weights are relative to
  int* next = nullptr;  ///< ticket of the next tile, zero at the start; null: tiles go round robin
};

/// Fills the plan; false, with the reason, when the call is not for these kernels.
bool plan_hopper(const CudaBackend& backend, const AttentionArgs& args, const Params& p, HopperPlan& plan,
                 const char*& why);
std::string describe_hopper(const Params& p, const HopperPlan& plan);
void launch_hopper(Context& ctx, const Params& p, HopperPlan& plan, DType dtype);

void launch_hopper_bf16(Context& ctx, const Params& p, const HopperPlan& plan);
void launch_hopper_f16(Context& ctx, const Params& p, const HopperPlan& plan);

}  // namespace attnbench::cuda_attention
