// Column sums of the probabilities, by tiles on the tensor cores of sm_80 and later: S = Q K^T a second time,
// p = exp(s - lse) with the lse of the first pass, and sums over the rows. Masks, score terms and tiles are
// those of sm80_kernel.cuh; there are no values.
//
// A block owns a chunk of one head's query rows, since masks list the keys of query rows and not the reverse.
// It goes through its tiles of 64 or 128 rows, and through the tiles of keys that each of them meets. A warp
// adds up its rows in registers and shuffles, the warps meet in shared memory, and one of them adds the
// tile's sums to the chunk's own row of global memory. These additions do not wait for what they add to
// (atomics without a result), and barriers order those on one address: results are the same in every run. A
// second kernel adds up the chunks (masses.cu).
#pragma once
#include "kernels/attention/masses.cuh"
#include "kernels/attention/sm80_kernel.cuh"

namespace attnbench::cuda_attention {
namespace {

/// Sums over the eight lanes of a column: value i of lane 4 g + t becomes the sum of values
/// g * Count / 8 + i, i < Count / 8, of the lanes of that t. Each step halves what a lane still holds.
template <int Count>
__device__ __forceinline__ void reduce_columns(float (&x)[Count]) {
#pragma unroll
  for (int lanes = 16, left = Count / 2; lanes >= 4; lanes /= 2, left /= 2) {
    const bool upper = threadIdx.x & static_cast<unsigned>(lanes);
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      if (i >= left) continue;
      const float keep = upper ? x[left + i] : x[i], give = upper ? x[i] : x[left + i];
      x[i] = keep + __shfl_xor_sync(kAllLanes, give, lanes);
    }
  }
}

/// Adds the sums of a tile of keys to the chunk's masses; one warp.
template <int Keys>
__device__ __forceinline__ void store_sums(const Params& p, const float (&sums)[kThreads / 32][Keys],
                                           int warps, const KeyTile& tile, float* key_row, float* block_row) {
  const int lane = threadIdx.x % 32, end = min(tile.end, tile.slot + Keys);
  float x[Keys / 32];
#pragma unroll
  for (int i = 0; i < Keys / 32; ++i) {
    x[i] = 0.0f;
    for (int z = 0; z < warps; ++z) x[i] += sums[z][lane + 32 * i];
  }
  if (key_row)
#pragma unroll
    for (int i = 0; i < Keys / 32; ++i) {
      const int slot = tile.slot + lane + 32 * i, token = slot < end ? key_token(p, slot) : -1;
      if (token >= 0) atomicAdd(&key_row[token], x[i]);
    }
  if (!block_row) return;
  for (int64_t block = tile.slot / p.block_k; block * p.block_k < end; ++block) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Keys / 32; ++i) {
      const int slot = tile.slot + lane + 32 * i;
      if (slot < end && slot / p.block_k == block) sum += x[i];
    }
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAllLanes, sum, i);
    if (lane == 0) atomicAdd(&block_row[block], sum);
  }
}

template <class T, int Dim, int MTiles, bool Terms>
__global__ void __launch_bounds__(kThreads, mass_blocks<T, Dim, MTiles>())
    mass_kernel(const __grid_constant__ Params p, const __grid_constant__ MassPlan masses) {
  using C = Tile<T, Dim, MTiles>;
  const TensorPlan& plan = masses.tiles;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t q_base = shared_address(memory), k_base = q_base + C::kQBytes;
  auto& extras = *reinterpret_cast<MassExtras<T, Dim, MTiles>*>(memory + C::kQBytes + 2 * C::kKeyBytes);
  auto& rows = extras.rows;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;

  // Parts fastest, then chunks, so that heads whose keys share the L2 cache run together.
  Work w;
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(plan.parts));
  const int chunk =
      static_cast<int>(blockIdx.x / static_cast<unsigned>(plan.parts) % static_cast<unsigned>(masses.chunks));
  const int unit =
      static_cast<int>(blockIdx.x / static_cast<unsigned>(plan.parts) / static_cast<unsigned>(masses.chunks));
  w.b = unit / static_cast<int>(p.heads);
  w.unit_head = unit % static_cast<int>(p.heads);
  w.kv_head = w.unit_head / p.group;
  w.keys = keys_of(p, w.b);
  const auto head_of = [&](int) { return w.unit_head; };
  float* key_row = masses.key_parts
                       ? masses.key_parts + (static_cast<int64_t>(unit) * masses.chunks + chunk) * p.m
                       : nullptr;
  DirectSource<T> source;
  if (plan.direct) {
    const int skip = thread % C::kChunks * C::kPerChunk;
    const int k_count = min(C::kPerChunk, static_cast<int>(p.d) - skip);
    source.k_bytes = max(k_count, 0) * static_cast<int>(sizeof(T));
    source.k = static_cast<const T*>(p.k.data) + w.b * p.k.b + w.kv_head * p.k.h + (k_count > 0 ? skip : 0);
  }
  const auto find = [&](const KeyTile& tile, int stage) {
    if (plan.columns || !plan.direct) find_keys(p, w, tile, extras.places[stage]);
  };
  // Starts the copies of a tile into a buffer; its places have been found, before a barrier.
  const auto load = [&](const KeyTile& tile, int stage) {
    const uint32_t k_to = k_base + stage * C::kKeyBytes;
    if (plan.columns) describe_keys(p, w, extras.places[stage], extras.columns[stage]);
    if (plan.direct)
      load_direct<T, C, false>(p, source, tile, w.keys, k_to, 0);
    else
      load_found<T, C, false>(p, plan, extras.places[stage], k_to, 0);
  };

  const int warp_row = warp * 16 * MTiles;
  const uint32_t q_lane = q_base + place_of<C::kChunks>(warp_row + lane % 16, lane / 16);
  const auto q_fragment = [&](uint32_t(&x)[4], int m, int step) {
    load_matrices(x, chunk_on<C::kChunks>(q_lane, 2 * step) + 16 * m * C::kRowBytes);
  };

  // Under causal rules the last tiles are the heaviest.
  for (int tile = plan.tiles - 1 - chunk; tile >= 0; tile -= masses.chunks) {
    // Rows [first, first + count) of the head.
    int first, count, block = 0;
    {
      int64_t begin = static_cast<int64_t>(tile) * C::kRows, end = p.n;
      if (plan.block_tiles > 0) {
        block = tile / plan.block_tiles;
        begin = static_cast<int64_t>(block) * p.block_q +
                static_cast<int64_t>(tile % plan.block_tiles) * C::kRows;
        end = min(end, (static_cast<int64_t>(block) + 1) * p.block_q);
      }
      count = static_cast<int>(min(end, begin + C::kRows) - begin);
      first = static_cast<int>(min(begin, end));
    }
    if (count <= 0) continue;
    float* block_row =
        masses.block_parts
            ? masses.block_parts +
                  ((static_cast<int64_t>(unit) * plan.tiles + tile) * plan.parts + part) * p.blocks_k
            : nullptr;
    const bool active = warp_row < count;
    const int warps = (count + 16 * MTiles - 1) / (16 * MTiles);  // active ones

    __syncthreads();  // the last tile's rows, queries and sums are read no more
    const Reduced all = describe_rows<true>(p, plan, w, rows, extras.reduced, first, count, head_of);
    open_tiles<C::kKeys>(p, plan, all, block, w);
    const int tile_begin = static_cast<int>(static_cast<int64_t>(part) * w.tiles / plan.parts);
    const int tile_end = static_cast<int>(static_cast<int64_t>(part + 1) * w.tiles / plan.parts);
    if (tile_begin >= tile_end) continue;

    {
      const T* q = static_cast<const T*>(p.q.data) + w.b * p.q.b + w.unit_head * p.q.h;
      for (int at = thread; at < C::kRows * C::kChunks; at += kThreads) {
        const int r = at / C::kChunks, c = at % C::kChunks, token = rows.token[r];
        const int skip = c * C::kPerChunk, elements = token >= 0 ? static_cast<int>(p.d) - skip : 0;
        load_chunk<T>(q_base + place_of<C::kChunks>(r, c), q + (elements > 0 ? token * p.q.n + skip : 0),
                      elements, plan.q_aligned);
      }
    }
    KeyTile now = tile_at<C::kKeys>(p, w, tile_begin), next, before;
    if (tile_begin + 1 < tile_end) next = tile_at<C::kKeys>(p, w, tile_begin + 1);
    find(now, 0);
    if (tile_begin + 1 < tile_end) find(next, 1);
    __syncthreads();
    load(now, 0);
    commit_copies();

    // Rows that are not there, or attend to nothing, add nothing.
    float lse[MTiles][2];
    uint32_t there[MTiles][2];  // all bits, or none
    bool missing = false;
#pragma unroll
    for (int m = 0; m < MTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = rows.token[warp_row + 16 * m + 8 * half + g];
        const float x = token < 0 ? -INFINITY : p.row_sums.data[static_cast<int64_t>(unit) * p.n + token];
        there[m][half] = x == -INFINITY ? 0u : ~0u;
        missing = missing || (active && x == -INFINITY);
        lse[m][half] = x == -INFINITY ? 0.0f : Terms ? x : x * kLog2e;
      }
    missing = __syncthreads_or(missing);

    uint32_t q_kept[C::kQInRegisters ? MTiles : 1][C::kQInRegisters ? C::kSteps : 1][4];
    for (int at = tile_begin; at < tile_end; ++at) {
      const int stage = (at - tile_begin) & 1;
      wait_copies<0>();
      __syncthreads();
      const KeyTile tile_now = now;
      if (at + 1 < tile_end) {
        load(next, stage ^ 1);
        now = next;
        if (at + 2 < tile_end) {
          next = tile_at<C::kKeys>(p, w, at + 2);
          find(next, stage);
        }
      }
      commit_copies();
      // The sums before: warps take turns.
      if (at > tile_begin && warp == at % (kThreads / 32))
        store_sums<C::kKeys>(p, extras.sums[stage ^ 1], warps, before, key_row, block_row);
      before = tile_now;
      if (!active) continue;
      if constexpr (C::kQInRegisters)
        if (at == tile_begin)
#pragma unroll
          for (int m = 0; m < MTiles; ++m)
#pragma unroll
            for (int step = 0; step < C::kSteps; ++step) q_fragment(q_kept[m][step], m, step);

      // What the tile needs of masks; the same answer in every thread.
      const bool rule = tile_now.rule;
      const bool general = rule ? plan.general_rule : plan.general_full;
      const int key_end = min(tile_now.end, tile_now.slot + C::kKeys);  // slots; tokens too unless general
      const int seen_end = min(key_end, w.keys);
      bool masked = general || missing || seen_end < tile_now.slot + C::kKeys;
      if (!general && plan.limits)
        masked = masked || tile_now.slot < (rule ? all.max_low : all.max_row_low) ||
                 seen_end > (rule ? all.min_high : all.min_row_high);

      float s[MTiles][C::kNTiles][4];
      multiply_keys<T, C>(
          s, k_base + stage * C::kKeyBytes,
          [&](uint32_t(&x)[4], int m, int step) {
            if constexpr (C::kQInRegisters)
#pragma unroll
              for (int i = 0; i < 4; ++i) x[i] = q_kept[m][step][i];
            else
              q_fragment(x, m, step);
          },
          [](int, const auto&, const auto&) {});
#pragma unroll
      for (int m = 0; m < MTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if constexpr (Terms)
            add_terms<C::kKeys>(p, w, w.unit_head, rows.token[warp_row + 16 * m + 8 * half + g],
                                plan.columns ? &extras.columns[stage] : nullptr, tile_now.slot, seen_end,
                                half, s[m]);
#pragma unroll
          for (int j = 0; j < C::kNTiles; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              // Under terms the difference comes first: huge biases, masks of finite numbers, cancel in it.
              float& x = s[m][j][2 * half + c];
              x = exp2_fast(Terms ? (x - lse[m][half]) * kLog2e : fmaf(x, plan.to_log2, -lse[m][half]));
            }
        }
      if (masked) {
        uint32_t seen[MTiles][2];
        see_columns<C::kKeys, MTiles>(p, w, rows, extras.columns[stage], tile_now, general, seen_end,
                                      all.max_sink, count, head_of, seen);
#pragma unroll
        for (int m = 0; m < MTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int j = 0; j < C::kNTiles; ++j)
#pragma unroll
              for (int c = 0; c < 2; ++c)
                if (!((seen[m][half] & there[m][half]) >> (2 * j + c) & 1)) s[m][j][2 * half + c] = 0.0f;
      }

      float column[2 * C::kNTiles];
#pragma unroll
      for (int j = 0; j < C::kNTiles; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float sum = s[0][j][c] + s[0][j][2 + c];
#pragma unroll
          for (int m = 1; m < MTiles; ++m) sum += s[m][j][c] + s[m][j][2 + c];
          column[2 * j + c] = sum;
        }
      reduce_columns(column);
      float* to = extras.sums[stage][warp];
      if constexpr (C::kNTiles == 8)
        to[8 * g + 2 * t] = column[0], to[8 * g + 2 * t + 1] = column[1];
      else
        to[g / 2 * 8 + 2 * t + g % 2] = column[0];
    }
    __syncthreads();
    if (warp == tile_end % (kThreads / 32))
      store_sums<C::kKeys>(p, extras.sums[(tile_end - 1 - tile_begin) & 1], warps, before, key_row,
                           block_row);
  }
}

template <class T, int Dim, int MTiles, bool Terms>
void launch_mass_tiles(Context& ctx, const Params& p, const MassPlan& plan) {
  const auto kernel = mass_kernel<T, Dim, MTiles, Terms>;
  constexpr size_t kBytes = mass_bytes<T, Dim, MTiles>();
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  const unsigned grid = static_cast<unsigned>(plan.tiles.units) * static_cast<unsigned>(plan.chunks) *
                        static_cast<unsigned>(plan.tiles.parts);
  kernel<<<grid, kThreads, kBytes, stream_of(ctx)>>>(p, plan);
  CUDA_CHECK_LAUNCH();
}
template <class T, int Dim>
void launch_mass_dim(Context& ctx, const Params& p, const MassPlan& plan) {
  if constexpr (long_mass_tiles<T, Dim>())
    if (plan.tiles.rows == 128) return launch_mass_tiles<T, Dim, 2, false>(ctx, p, plan);
  if (plan.terms)
    launch_mass_tiles<T, Dim, 1, true>(ctx, p, plan);
  else
    launch_mass_tiles<T, Dim, 1, false>(ctx, p, plan);
}
template <class T>
void launch_mass_type(Context& ctx, const Params& p, const MassPlan& plan) {
  plan.dim == 64    ? launch_mass_dim<T, 64>(ctx, p, plan)
  : plan.dim == 128 ? launch_mass_dim<T, 128>(ctx, p, plan)
                    : launch_mass_dim<T, 256>(ctx, p, plan);
}

}  // namespace
}  // namespace attnbench::cuda_attention
