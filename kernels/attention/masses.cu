// The mass pass by tiles: the choice of its cut, and the sums over what the blocks of its kernel leave.
#include <algorithm>

#include "kernels/attention/masses.cuh"

namespace attnbench::cuda_attention {
namespace {

// A chunk's row of sums costs memory: so much for all rows together at most, but one row a head. Blocks are
// enough when each multiprocessor has had so many.
constexpr int64_t kPartBytes = int64_t{128} << 20, kBlocksEach = 16;
// Keys are split when chunks fill less of the chip than this; a part has at least so many tiles of keys.
constexpr double kFilled = 0.8;
constexpr int64_t kPartTiles = 4, kMostParts = 256;

struct TileSize {
  int keys = 0;
  size_t bytes = 0;  // of shared memory; 0: no such tiles
};
template <class T, int Dim>
TileSize tile_size(int rows) {
  TileSize x;
  x.keys = Tile<T, Dim, 1>::kKeys;
  if (rows == 64) x.bytes = mass_bytes<T, Dim, 1>();
  if constexpr (long_mass_tiles<T, Dim>())
    if (rows == 128) x.bytes = mass_bytes<T, Dim, 2>();
  return x;
}
template <class T>
TileSize tile_size(int dim, int rows) {
  return dim == 64 ? tile_size<T, 64>(rows) : dim == 128 ? tile_size<T, 128>(rows) : tile_size<T, 256>(rows);
}
TileSize tile_size(DType dtype, int dim, int rows) {
  return dtype == DType::bf16  ? tile_size<__nv_bfloat16>(dim, rows)
         : dtype == DType::f16 ? tile_size<__half>(dim, rows)
                               : tile_size<float>(dim, rows);
}

/// Sums of the parts, in a fixed order; zeros where nothing was visited.
__global__ void finish_masses(const __grid_constant__ Params p, const __grid_constant__ MassPlan plan) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  if (plan.key_parts)
    for (int64_t x = first; x < p.batch * p.heads * p.m; x += step) {
      const int64_t unit = x / p.m, j = x % p.m;
      const float* from = plan.key_parts + unit * plan.chunks * p.m + j;
      double sum = 0;
#pragma unroll 4
      for (int c = 0; c < plan.chunks; ++c) sum += static_cast<double>(from[c * p.m]);
      p.mass_per_key.put(unit / p.heads, unit % p.heads, j, static_cast<float>(sum));
    }
  if (plan.block_parts)
    for (int64_t x = first; x < p.batch * p.heads * p.blocks_q * p.blocks_k; x += step) {
      const int64_t c = x % p.blocks_k, r = x / p.blocks_k % p.blocks_q, unit = x / p.blocks_k / p.blocks_q;
      const int64_t rows = static_cast<int64_t>(plan.tiles.block_tiles) * plan.tiles.parts;
      const float* from =
          plan.block_parts +
          (unit * plan.tiles.tiles + r * plan.tiles.block_tiles) * plan.tiles.parts * p.blocks_k + c;
      double sum = 0;
      for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(from[i * p.blocks_k]);
      p.mass_per_block[unit / p.heads * p.block_mass_b + unit % p.heads * p.block_mass_h +
                       r * p.block_mass_r + c * p.block_mass_c] = static_cast<float>(sum);
    }
}

}  // namespace

bool plan_masses(const CudaBackend& backend, const AttentionArgs& a, const Params& p, MassPlan& plan,
                 const char*& why) {
  TensorPlan& x = plan.tiles;
  if (p.relative_keys) return why = "relative embeddings have no tiles yet", false;
  if (p.has_gather) return why = "keys of gather lists belong to no tile of keys", false;
  if (p.d > 256) return why = "rows longer than 256 elements leave no room for tiles", false;

  plan.terms = p.soft_cap > 0 || p.bias || p.slope || p.relative;
  x.to_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  plan_masks(a, p, x);
  x.direct = x.k_aligned && !p.table && !p.k_order;
  plan.dim = p.d <= 64 ? 64 : p.d <= 128 ? 128 : 256;

  const int64_t units = p.batch * p.heads, sms = backend.sm_count();
  // Tiles of rows stay inside query blocks where these have lists or masses of their own.
  const bool blocks = p.has_lists || a.mass_per_block;
  const auto tiles_of = [&](int rows) {
    x.block_tiles = blocks ? static_cast<int>((std::min<int64_t>(p.block_q, p.n) + rows - 1) / rows) : 0;
    return blocks ? p.blocks_q * x.block_tiles : (p.n + rows - 1) / rows;
  };
  const bool whole = !blocks || p.blocks_q == 1 || p.block_q % 128 == 0;
  const auto memory = static_cast<size_t>(backend.properties().sharedMemPerBlockOptin);
  const DType dtype = a.q.dtype();
  x.rows = !plan.terms && whole && p.n > 64 && units * tiles_of(128) >= sms ? 128 : 64;
  TileSize size = tile_size(dtype, plan.dim, x.rows);
  if (x.rows == 128 && (size.bytes == 0 || size.bytes > memory))
    x.rows = 64, size = tile_size(dtype, plan.dim, x.rows);
  if (size.bytes > memory)
    return why = "a block of this card has too little shared memory for the tiles", false;
  plan.keys = size.keys;

  const int64_t tiles = tiles_of(x.rows);
  const int64_t room = kPartBytes / std::max<int64_t>(1, units * p.m * static_cast<int64_t>(sizeof(float)));
  const int64_t enough = (kBlocksEach * sms + units - 1) / std::max<int64_t>(1, units);
  const int64_t chunks = std::max<int64_t>(1, std::min({tiles, enough, a.mass_per_key ? room : tiles}));
  const int64_t pieces = (p.block_k + plan.keys - 1) / plan.keys;
  const int64_t key_tiles = p.has_lists ? p.blocks_k * pieces : (p.m + plan.keys - 1) / plan.keys;
  int64_t parts = 1;
  if (static_cast<double>(units * chunks) < kFilled * static_cast<double>(sms))
    parts = std::min({2 * sms / std::max<int64_t>(1, units * chunks), key_tiles / kPartTiles, kMostParts});
  parts = std::max<int64_t>(1, parts);
  if (units * chunks * parts > INT32_MAX || tiles > INT32_MAX || key_tiles > INT32_MAX / 2)
    return why = "more blocks than a grid holds", false;
  x.units = static_cast<int>(units), x.tiles = static_cast<int>(tiles), x.parts = static_cast<int>(parts);
  plan.chunks = static_cast<int>(chunks);
  return true;
}

std::string describe_masses(const MassPlan& plan) {
  std::string text = "by tiles " + std::to_string(plan.tiles.rows) + "x" + std::to_string(plan.keys) + ", " +
                     std::to_string(plan.chunks) + " chunks of " + std::to_string(plan.tiles.tiles) +
                     " tiles";
  if (plan.tiles.parts > 1) text += ", " + std::to_string(plan.tiles.parts) + " parts";
  return text;
}

void launch_masses(Context& ctx, const Params& p, MassPlan plan, DType dtype) {
  const int64_t units = p.batch * p.heads;
  const int64_t outputs =
      std::max(p.mass_per_key.data ? units * p.m : 0, p.mass_per_block ? units * p.blocks_q * p.blocks_k : 0);
  if (outputs == 0) return;
  const cudaStream_t stream = stream_of(ctx);
  const int64_t key_floats = p.mass_per_key.data ? units * plan.chunks * p.m : 0;
  const int64_t block_floats =
      p.mass_per_block ? units * plan.tiles.tiles * plan.tiles.parts * p.blocks_k : 0;
  const Tensor memory = ctx.allocate(DType::f32, {key_floats + block_floats});
  CUDA_CHECK(cudaMemsetAsync(memory.raw(), 0, static_cast<size_t>(memory.nbytes()), stream));
  if (p.mass_per_key.data) plan.key_parts = memory.data<float>();
  if (p.mass_per_block) plan.block_parts = memory.data<float>() + key_floats;
  if (units * p.n * p.m > 0) {
    if (dtype == DType::bf16)
      launch_masses_bf16(ctx, p, plan);
    else if (dtype == DType::f16)
      launch_masses_f16(ctx, p, plan);
    else
      launch_masses_f32(ctx, p, plan);
  }
  finish_masses<<<grid_for(ctx, outputs, 256), 256, 0, stream>>>(p, plan);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench::cuda_attention
