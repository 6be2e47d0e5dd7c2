// The mass pass by tiles: its plan and its launchers by type. The kernel itself: masses_kernel.cuh.
#pragma once
#include <string>

#include "kernels/attention/sm80.cuh"

namespace attnbench::cuda_attention {

/// How the masses are cut into thread blocks: units (a batch and head) times chunks of the unit's tiles of
/// query rows times parts of the keys. Of `tiles` the fields from `rows` to `block_tiles`, `parts`, what
/// plan_masks fills in and to_log2 count.
struct MassPlan {
  TensorPlan tiles;
  bool terms = false;            ///< scores are more than a product and a factor
  int dim = 64;                  ///< of the instance: 64, 128 or 256
  int keys = 64;                 ///< of a tile
  int chunks = 1;                ///< chunk c owns the tiles c, c + chunks, ... of its unit, from the last
  float* key_parts = nullptr;    ///< [units, chunks, M], by token; none: not asked for
  float* block_parts = nullptr;  ///< [units, tiles, parts, blocks_k]; none: not asked for
};

/// Shared memory of a block beside its tiles.
template <class T, int Dim, int MTiles>
struct MassExtras {
  using C = Tile<T, Dim, MTiles>;
  Reduced reduced;
  RowInfo<C::kRows> rows;
  KeyPlaces<C::kKeys> places[2];
  ColumnInfo<C::kKeys> columns[2];
  float sums[2][kThreads / 32][C::kKeys];  ///< of each warp's rows, for this tile of keys and the one before
};
template <class T, int Dim, int MTiles>
constexpr size_t mass_bytes() {
  using C = Tile<T, Dim, MTiles>;
  return C::kQBytes + 2 * C::kKeyBytes + sizeof(MassExtras<T, Dim, MTiles>);
}
/// Blocks a multiprocessor of sm_90 has shared memory for (227 KiB, 1 KiB of each block the system's), of the
/// two or three that registers are shared out for.
template <class T, int Dim, int MTiles>
constexpr int mass_blocks() {
  return 3 * (mass_bytes<T, Dim, MTiles>() + 1024) <= 227 * 1024 ? 3 : 2;
}
/// Whether tiles of 128 rows exist: two blocks of them share a multiprocessor of sm_90.
template <class T, int Dim>
constexpr bool long_mass_tiles() {
  return Dim * sizeof(T) <= 512;
}

/// Plans the mass pass of a call, or says why tiles do not take it.
bool plan_masses(const CudaBackend& backend, const AttentionArgs& a, const Params& p, MassPlan& plan,
                 const char*& why);
std::string describe_masses(const MassPlan& plan);
/// Adds up mass_per_key and mass_per_block from p.row_sums, which a first pass has filled.
void launch_masses(Context& ctx, const Params& p, MassPlan plan, DType dtype);

void launch_masses_bf16(Context& ctx, const Params& p, const MassPlan& plan);
void launch_masses_f16(Context& ctx, const Params& p, const MassPlan& plan);
void launch_masses_f32(Context& ctx, const Params& p, const MassPlan& plan);

}  // namespace attnbench::cuda_attention
