// The plan of one call of the Hopper kernels and their launchers by type. The kernel itself: sm90_kernel.cuh.
#pragma once
#include <cuda.h>

#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {

/// Work of one launch: units (batch times head) times tiles of query rows, taken by persistent blocks.
struct HopperPlan {
  CUtensorMap q, k, v;     ///< [D, rows, H, B] in boxes of 64 x 64 (128-byte rows, swizzled)
  int groups = 2;          ///< consumer warpgroups of 64 rows
  int tiles = 0;           ///< a unit
  int total = 0;           ///< units * tiles
  int section = 1;         ///< units whose keys share the L2 cache
  bool mask_full = false;  ///< full blocks too need words: ranges, padding or a ragged end of the keys
  bool general = false;    ///< the rule is more than ranges of keys: no tile without lists is whole
  bool ranges = false;     ///< rows differ in what they see, or the keys end inside a tile
  float to_log2 = 1;       ///< from raw scores to log2 units
  int* next = nullptr;     ///< ticket of the next tile, zero at the start; null: tiles go round robin
};

/// Fills the plan; false, with the reason, when the call is not for these kernels.
bool plan_hopper(const CudaBackend& backend, const AttentionArgs& args, const Params& p, HopperPlan& plan,
                 const char*& why);
std::string describe_hopper(const Params& p, const HopperPlan& plan);
void launch_hopper(Context& ctx, const Params& p, HopperPlan& plan, DType dtype);

void launch_hopper_bf16(Context& ctx, const Params& p, const HopperPlan& plan);
void launch_hopper_f16(Context& ctx, const Params& p, const HopperPlan& plan);

}  // namespace attnbench::cuda_attention
