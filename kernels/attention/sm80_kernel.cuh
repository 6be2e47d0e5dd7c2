// Softmax attention on the tensor cores of sm_80 and later: mma.sync, cp.async, ldmatrix. One kernel template
// for bf16, f16 and f32 (3xTF32), all masks and all score terms; no wgmma, no TMA.
//
// A block of four warps owns a tile of 64 or 128 query rows; a warp owns 16 or 32 of them and all their keys,
// so the softmax needs no other warp. Keys arrive in tiles of 64 (or 32: 16 KiB of K at most) in two buffers
// each of K and V; the loads of the next tile run under the products of this one, with one barrier a tile. P
// stays in registers.
//
// What a tile costs in masks: nothing when every row sees all of it; two compares a score when rows see
// ranges (causal, bands, row ranges, padding); otherwise 16 bits a row and thread are made from what the rows
// and the columns keep in shared memory (segments, neighbourhood places, token orders, bitmaps). Where a row
// must not see a value that is not finite, 0 * NaN would break the row: such tiles are found by looking and
// multiplied pair by pair.
//
// Embeddings of distances (instances of their own; sm80_relative.cuh) are one more product each, with the
// band of distances between rows and keys.
//
// Shared memory: Q, then K twice, V twice, in rows of 16-byte chunks, chunk c of row r at c ^ (r mod 8), so
// that eight rows of one chunk (what ldmatrix reads) and eight chunks of one row (what copies write) lie in
// different banks.
#pragma once
#include <algorithm>

#include "kernels/attention/rows.cuh"
#include "kernels/attention/sm80_places.cuh"
#include "kernels/attention/sm80_relative.cuh"

namespace attnbench::cuda_attention {
namespace {

/// A tile of keys: slots (or entries of a gather list) [slot, min(slot + kKeys, end)).
struct KeyTile {
  int slot = 0, end = 0;
  bool rule = true;
};

/// One block's work, fixed after the prologue.
struct Work {
  int64_t b = 0;
  int unit_head = 0, kv_head = 0;  // first head of the unit
  int keys = 0;                    // valid ones
  int full_begin = 0, full_count = 0, partial_begin = 0, partial_count = 0;
  int first_tile = 0, sink_tiles = 0;
  int tiles = 0;
};

template <int Keys>
__device__ __forceinline__ KeyTile tile_at(const Params& p, const Work& w, int t) {
  if (p.has_gather) return {w.full_begin + t * Keys, w.full_begin + w.full_count, true};
  if (!p.has_lists) {
    const int at = t < w.sink_tiles ? t : w.first_tile + t - w.sink_tiles;
    return {at * Keys, static_cast<int>(p.m), true};
  }
  const int pieces = (p.block_k + Keys - 1) / Keys;
  const int entry = t / pieces, piece = t - entry * pieces;
  const bool full = entry < w.full_count;
  const DeviceList& list = full ? p.full : p.partial;
  const int64_t at = full ? w.full_begin + entry : w.partial_begin + entry - w.full_count;
  const int64_t block = list.index[at * list.step];
  if (block < 0 || block >= p.blocks_k) return {0, 0, !full};
  const int64_t begin = block * p.block_k;
  return {static_cast<int>(begin) + piece * Keys, static_cast<int>(min(p.m, begin + p.block_k)), !full};
}

/// Keys at consecutive rows of aligned memory: pointers and sizes of this thread's chunk, fixed for the
/// block.
template <class T>
struct DirectSource {
  const T *k = nullptr, *v = nullptr;  // the chunk in the unit's row of key 0
  int k_bytes = 0, v_bytes = 0;        // of the chunk that are within a row; zeros follow
};
template <class T, class C, bool Values = true>
__device__ __forceinline__ void load_direct(const Params& p, const DirectSource<T>& from, const KeyTile& t,
                                            int keys, uint32_t k_to, uint32_t v_to) {
  constexpr int kStep = kThreads / C::kChunks;  // rows a pass; a power of two above `first`
  const int first = threadIdx.x / C::kChunks, chunk = threadIdx.x % C::kChunks;
  const int limit = min(t.end, keys) - t.slot;  // rows of the tile that are there
  const uint32_t k_first = k_to + place_of<C::kChunks>(first, chunk);
  const uint32_t v_first =
      v_to + (sizeof(T) == 2 ? place_of<C::kChunks>(first, chunk) : value_place_of<C::kChunks>(first, chunk));
  // The turn of row first + i * kStep is the turn of `first` and that of i * kStep, in different bits.
  const auto k_place = [&](int i) {
    return (k_first ^ static_cast<uint32_t>((i * kStep & 7) * 16)) + i * kStep * C::kRowBytes;
  };
  const auto v_place = [&](int i) {
    const int turn = sizeof(T) == 2 ? i * kStep & 7 : ((i * kStep >> 1) & 3) << 1;
    return (v_first ^ static_cast<uint32_t>(turn * 16)) + i * kStep * C::kRowBytes;
  };
  if (limit >= C::kKeys) {
    const T* k = from.k + (static_cast<int64_t>(t.slot) + first) * p.k.n;
#pragma unroll
    for (int i = 0; i < C::kKeys / kStep; ++i, k += kStep * p.k.n) copy_async(k_place(i), k, from.k_bytes);
    if constexpr (Values) {
      const T* v = from.v + (static_cast<int64_t>(t.slot) + first) * p.v.n;
#pragma unroll
      for (int i = 0; i < C::kKeys / kStep; ++i, v += kStep * p.v.n) copy_async(v_place(i), v, from.v_bytes);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < C::kKeys / kStep; ++i) {
    const bool there = first + i * kStep < limit;
    const int64_t slot = there ? t.slot + first + i * kStep : 0;
    copy_async(k_place(i), from.k + slot * p.k.n, there ? from.k_bytes : 0);
    if constexpr (Values) copy_async(v_place(i), from.v + slot * p.v.n, there ? from.v_bytes : 0);
  }
}

/// Where the rows of a tile are, for everything but the direct way: found two tiles ahead by one thread a
/// row, so that nobody waits for page tables and orders.
template <int Keys>
__device__ __forceinline__ void find_keys(const Params& p, const Work& w, const KeyTile& t,
                                          KeyPlaces<Keys>& places) {
  const int row = threadIdx.x;
  if (row >= Keys) return;
  int64_t slot = t.slot + row, k = -1, v = -1;
  int token = -1;
  if (slot < t.end) {
    if (p.has_gather) slot = p.gather.index[slot * p.gather.step];
    if (slot >= 0 && slot < p.m) token = key_token(p, slot);
    if (token >= w.keys) token = -1;
    if (token >= 0) k = key_row(p, p.k, w.b, w.kv_head, token), v = key_row(p, p.v, w.b, w.kv_head, token);
  }
  places.k[row] = k, places.v[row] = v;
  places.token[row] = token, places.slot[row] = static_cast<int>(slot);
}
template <class T, class C, bool Values = true>
__device__ __forceinline__ void load_found(const Params& p, const TensorPlan& plan,
                                           const KeyPlaces<C::kKeys>& places, uint32_t k_to, uint32_t v_to) {
#pragma unroll 2
  for (int i = 0; i < C::kKeys * C::kChunks / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads, row = at / C::kChunks, chunk = at % C::kChunks;
    const int skip = chunk * C::kPerChunk;
    const int64_t k_row = places.k[row], v_row = places.v[row];
    const int k_count = k_row < 0 ? 0 : static_cast<int>(p.d) - skip,
              v_count = v_row < 0 ? 0 : static_cast<int>(p.e) - skip;
    load_chunk<T>(k_to + place_of<C::kChunks>(row, chunk),
                  static_cast<const T*>(p.k.data) + (k_count > 0 ? k_row + skip : 0), k_count,
                  plan.k_aligned);
    if constexpr (Values) {
      const uint32_t place =
          sizeof(T) == 2 ? place_of<C::kChunks>(row, chunk) : value_place_of<C::kChunks>(row, chunk);
      load_chunk<T>(v_to + place, static_cast<const T*>(p.v.data) + (v_count > 0 ? v_row + skip : 0), v_count,
                    plan.v_aligned);
    }
  }
}
/// What bit masks ask of the keys of a tile.
template <int Keys>
__device__ __forceinline__ void describe_keys(const Params& p, const Work& w, const KeyPlaces<Keys>& places,
                                              ColumnInfo<Keys>& info) {
  const int row = threadIdx.x;
  if (row >= Keys) return;
  int token = places.token[row];
  if (token >= 0 && p.key_valid && !p.key_valid[w.b * p.key_valid_b + token * p.key_valid_m]) token = -1;
  info.token[row] = token;
  info.slot[row] = places.slot[row];
  if (token < 0) return;
  if (p.rule.segment_k) info.segment[row] = static_cast<int>(segment_of_key(p, w.b, token));
  if (p.rule.rank == 0) return;
  int x[3];
  coordinates(p.rule, token, p.rule.k_tile, p.rule.k_tiles, x);
#pragma unroll
  for (int a = 0; a < 3; ++a)
    if (a < p.rule.rank) info.place[a][row] = axis_place(p.rule, a, x[a]);
}

/// What row r of the tile may see.
template <bool Full, int Rows>
__device__ void describe_row(const Params& p, const Work& w, RowInfo<Rows>& info, int r, int head, int slot) {
  const RowLimits x = row_limits<Full>(p, w.b, head, slot);
  info.token[r] = x.token;
  info.low[r] = x.low, info.high[r] = x.high;
  info.row_low[r] = x.row_low, info.row_high[r] = x.row_high, info.sink_high[r] = x.sink_high;
  if constexpr (Full) {
    info.slot[r] = slot;
    if (x.token < 0) return;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      if (a < p.rule.rank) info.place[a][r] = x.place[a], info.length[a][r] = x.length[a];
    if (p.rule.segment_q) info.segment[r] = static_cast<int>(segment_of_query(p, w.b, x.token));
  }
}

/// Maximum and minimum over a warp, then over the block by one atomic a warp.
__device__ __forceinline__ void reduce_min(int* to, int x) {
  for (int i = 16; i > 0; i /= 2) x = min(x, __shfl_xor_sync(kAllLanes, x, i));
  if (threadIdx.x % 32 == 0) atomicMin(to, x);
}
__device__ __forceinline__ void reduce_max(int* to, int x) {
  for (int i = 16; i > 0; i /= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, i));
  if (threadIdx.x % 32 == 0) atomicMax(to, x);
}

/// Describes the rows of a tile and returns what they see together; all threads of the block, which are done
/// with the rows of an earlier tile.
template <bool Full, int Rows, class HeadOf>
__device__ __forceinline__ Reduced describe_rows(const Params& p, const TensorPlan& plan, const Work& w,
                                                 RowInfo<Rows>& rows, Reduced& reduced, int first, int count,
                                                 HeadOf&& head_of) {
  const int thread = threadIdx.x, n = static_cast<int>(p.n);
  if (plan.limits && thread == 0) reduced = {INT32_MAX, 0, INT32_MAX, 0, 0, 0, INT32_MAX, 0};
  for (int r = thread; r < Rows; r += kThreads) {
    const int slot = r < count ? (plan.packed ? (first + r) % n : first + r) : -1;
    describe_row<Full>(p, w, rows, r, head_of(min(r, count - 1)), slot);
  }
  __syncthreads();
  if (!plan.limits) return {0, 0, w.keys, w.keys, 0, 0, w.keys, 0};
  Reduced x = {INT32_MAX, 0, INT32_MAX, 0, 0, 0, INT32_MAX, 0};
  for (int r = thread; r < count; r += kThreads) {
    if (rows.token[r] < 0) continue;
    if (rows.low[r] < rows.high[r]) x.min_low = min(x.min_low, rows.low[r]);
    x.max_low = max(x.max_low, rows.low[r]);
    x.min_high = min(x.min_high, rows.high[r]), x.max_high = max(x.max_high, rows.high[r]);
    if (rows.sink_high[r] > rows.row_low[r]) x.max_sink = max(x.max_sink, rows.sink_high[r]);
    x.max_row_low = max(x.max_row_low, rows.row_low[r]);
    x.min_row_high = min(x.min_row_high, rows.row_high[r]);
  }
  reduce_min(&reduced.min_low, x.min_low), reduce_max(&reduced.max_low, x.max_low);
  reduce_min(&reduced.min_high, x.min_high), reduce_max(&reduced.max_high, x.max_high);
  reduce_max(&reduced.max_sink, x.max_sink), reduce_max(&reduced.max_row_low, x.max_row_low);
  reduce_min(&reduced.min_row_high, x.min_row_high);
  __syncthreads();
  return reduced;
}

/// Which tiles of keys the rows of query block `block` meet.
template <int Keys>
__device__ __forceinline__ void open_tiles(const Params& p, const TensorPlan& plan, const Reduced& all,
                                           int block, Work& w) {
  if (p.has_gather || p.has_lists) {
    const auto open = [&](const DeviceList& list, int& begin, int& entries) {
      begin = entries = 0;
      if (!list.count.data) return;
      begin = list.begin.at(w.b, w.unit_head, block);
      const int64_t end =
          min(list.size, static_cast<int64_t>(begin) + list.count.at(w.b, w.unit_head, block));
      entries = begin < 0 || end < begin ? 0 : static_cast<int>(end - begin);
    };
    open(p.has_gather ? p.gather : p.full, w.full_begin, w.full_count);
    if (!p.has_gather) open(p.partial, w.partial_begin, w.partial_count);
    w.tiles = p.has_gather ? (w.full_count + Keys - 1) / Keys
                           : (w.full_count + w.partial_count) * ((p.block_k + Keys - 1) / Keys);
  } else {
    // From the lowest to the highest visible key, after the sinks below them.
    int low = 0, high = p.k_order ? static_cast<int>(p.m) : w.keys, sinks = 0;
    if (plan.limits && !p.k_order) low = all.min_low, high = all.max_high, sinks = all.max_sink;
    const int sink_end = (sinks + Keys - 1) / Keys;
    w.first_tile = low < high ? low / Keys : sink_end;
    const int end_tile = low < high ? (high + Keys - 1) / Keys : sink_end;
    w.sink_tiles = min(sink_end, w.first_tile);
    w.tiles = w.sink_tiles + end_tile - w.first_tile;
  }
}

/// Zeros in place of what is not finite in a tile of values; all threads of the block together, after
/// everybody has read what was there.
template <class T, int Bytes>
__device__ __forceinline__ void clean_values(uint32_t tile) {
  __syncthreads();
#pragma unroll 1
  for (int at = threadIdx.x * 4; at < Bytes; at += kThreads * 4) {
    const uint32_t x = load_shared(tile + at);
    if (is_odd<T>(x)) store_shared(tile + at, finite_part<T>(x));
  }
  __syncthreads();
}

/// Bits of the 16 (or 8) columns that this thread holds of a row: bit 2 j + c is column 8 j + 2 t + c.
template <int Keys, int Rows>
__device__ uint32_t general_bits(const Params& p, const Work& w, const RowInfo<Rows>& rows,
                                 const ColumnInfo<Keys>& columns, int r, int head, bool rule) {
  uint32_t bits = 0;
  const int t = threadIdx.x % 4;
  const int low = rule ? rows.low[r] : rows.row_low[r], high = rule ? rows.high[r] : rows.row_high[r];
  const int row_low = rows.row_low[r], sink = rule ? rows.sink_high[r] : 0;
  const int rank = rule ? p.rule.rank : 0;
  const uint8_t* map = nullptr;
  if (rule && p.rule.bitmap && rows.token[r] >= 0)
    map = p.rule.bitmap + w.b * p.rule.bitmap_b + head * p.rule.bitmap_h + rows.slot[r] * p.rule.bitmap_n;
#pragma unroll 2
  for (int j = 0; j < Keys / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = 8 * j + 2 * t + c, token = columns.token[column];
      bool sees = token >= 0 && ((token >= low && token < high) || (token >= row_low && token < sink));
      for (int a = 0; a < rank; ++a)
        sees = sees && static_cast<unsigned>(columns.place[a][column] - rows.place[a][r]) <
                           static_cast<unsigned>(rows.length[a][r]);
      if (rule && p.rule.segment_q) sees = sees && columns.segment[column] == rows.segment[r];
      if (map && sees) {
        const int slot = columns.slot[column];
        sees = (map[slot >> 3] >> (slot & 7)) & 1;
      }
      bits |= static_cast<uint32_t>(sees) << (2 * j + c);
    }
  return bits;
}

/// Bits of the columns of a row that lie below column h of the tile, in the order of general_bits; h counts
/// from this thread's first column.
template <int Keys>
__device__ __forceinline__ uint32_t bits_below(int h) {
  h = max(0, min(h, Keys));
  return (1u << (h / 8 * 2 + min(h % 8, 2))) - 1u;
}

/// Which columns of a tile the thread's rows see, in the order of general_bits. `general`: the tile needs bit
/// masks; otherwise columns are tokens, and rows see ranges of them that end before `seen_end`.
template <int Keys, int MTiles, class HeadOf>
__device__ __forceinline__ void see_columns(const Params& p, const Work& w, const RowInfo<64 * MTiles>& rows,
                                            const ColumnInfo<Keys>& columns, const KeyTile& tile,
                                            bool general, int seen_end, int max_sink, int count,
                                            HeadOf&& head_of, uint32_t (&seen)[MTiles][2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_row = threadIdx.x / 32 * 16 * MTiles;
  const bool rule = tile.rule;
  if (general) {
#pragma unroll 1
    for (int i = 0; i < 2 * MTiles; ++i) {
      const int r = warp_row + 8 * i + g;
      const uint32_t bits = general_bits<Keys>(p, w, rows, columns, r, head_of(min(r, count - 1)), rule);
#pragma unroll
      for (int z = 0; z < 2 * MTiles; ++z)
        if (z == i) seen[z / 2][z % 2] = bits;
    }
  } else {
    const int origin = tile.slot + 2 * t;
#pragma unroll
    for (int m = 0; m < MTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_row + 16 * m + 8 * half + g;
        const int low = rule ? rows.low[r] : rows.row_low[r];
        const int high = min(rule ? rows.high[r] : rows.row_high[r], seen_end);
        seen[m][half] = bits_below<Keys>(high - origin) & ~bits_below<Keys>(low - origin);
        if (rule && max_sink > 0)
          seen[m][half] |= bits_below<Keys>(min(rows.sink_high[r], seen_end) - origin) &
                           ~bits_below<Keys>(rows.row_low[r] - origin);
      }
  }
}

/// Where a chunk of a row lies, from where chunk 0 or 1 of it does. Fragments lie at fixed distances, but for
/// the turn of chunks, which a step changes in the low bits of the chunk alone: (x ^ step's bits) + step's
/// rest, with tiles that start at multiples of 128 bytes.
template <int Chunks>
__device__ __forceinline__ uint32_t chunk_on(uint32_t at, int chunk) {
  constexpr int kTurn = (Chunks >= 8 ? 8 : Chunks) - 1;
  return (at ^ static_cast<uint32_t>((chunk & kTurn) * 16)) + static_cast<uint32_t>((chunk & ~kTurn) * 16);
}
/// S = Q K^T of a warp's rows: fragments of Q by step from q_fragment(x, m, step), K from shared memory.
/// `more(step, a, a_small)` multiplies the same fragments with whatever else it has.
template <class T, class C, int MTiles, class Fragment, class More>
__device__ __forceinline__ void multiply_keys(float (&s)[MTiles][C::kNTiles][4], uint32_t k_tile,
                                              Fragment&& q_fragment, More&& more) {
  const int lane = threadIdx.x % 32;
  const uint32_t k_lane = k_tile + place_of<C::kChunks>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int m = 0; m < MTiles; ++m)
#pragma unroll
    for (int j = 0; j < C::kNTiles; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
#pragma unroll
  for (int step = 0; step < C::kSteps; ++step) {
    uint32_t a[MTiles][4], a_small[MTiles][4];
#pragma unroll
    for (int m = 0; m < MTiles; ++m) {
      q_fragment(a[m], m, step);
      if constexpr (sizeof(T) == 4)
#pragma unroll
        for (int i = 0; i < 4; ++i) split(a[m][i], a[m][i], a_small[m][i]);
    }
#pragma unroll
    for (int j = 0; j < C::kNTiles; j += 2) {
      uint32_t b[4], b_small[4];
      load_matrices(b, chunk_on<C::kChunks>(k_lane, 2 * step) + 8 * j * C::kRowBytes);
      if constexpr (sizeof(T) == 4)
#pragma unroll
        for (int i = 0; i < 4; ++i) split(b[i], b[i], b_small[i]);
#pragma unroll
      for (int m = 0; m < MTiles; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (sizeof(T) == 4) {
            multiply(s[m][j + i], a_small[m], b[2 * i], b[2 * i + 1], T());
            multiply(s[m][j + i], a[m], b_small[2 * i], b_small[2 * i + 1], T());
          }
          multiply(s[m][j + i], a[m], b[2 * i], b[2 * i + 1], T());
        }
    }
    more(step, a, a_small);
  }
}

/// One step of the products of 16 rows with the embeddings of their band, whose 16 by 16 rows of the ring at
/// `ring` start at `band`, in bytes.
template <class T, class C>
__device__ __forceinline__ void multiply_band(float (&far)[C::kNTiles + 2][4], uint32_t ring,
                                              const uint32_t (&band)[C::kNTiles / 2 + 1], int step,
                                              const uint32_t (&a)[4], const uint32_t (&a_small)[4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t from = ring + place_of<C::kChunks>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int j = 0; j < C::kNTiles / 2 + 1; ++j) {
    uint32_t b[4], b_small[4];
    load_matrices(b, chunk_on<C::kChunks>(from, 2 * step) + band[j]);
    if constexpr (sizeof(T) == 4)
#pragma unroll
      for (int i = 0; i < 4; ++i) split(b[i], b[i], b_small[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (sizeof(T) == 4) {
        multiply(far[2 * j + i], a_small, b[2 * i], b[2 * i + 1], T());
        multiply(far[2 * j + i], a, b_small[2 * i], b_small[2 * i + 1], T());
      }
      multiply(far[2 * j + i], a, b[2 * i], b[2 * i + 1], T());
    }
  }
}

/// Scores of a thread's half of a tile of 16 rows from products: scaled, capped and biased. Keys of columns:
/// from `columns` where they are not consecutive tokens.
template <int Keys>
__device__ __forceinline__ void add_terms(const Params& p, const Work& w, int head, int token,
                                          const ColumnInfo<Keys>* columns, int slot, int seen_end, int half,
                                          float (&s)[Keys / 8][4]) {
  const int t = threadIdx.x % 4;
  const int64_t origin = token + aligned_keys(p, w.b) - p.n;
#pragma unroll
  for (int j = 0; j < Keys / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = 8 * j + 2 * t + c;
      const int key = columns ? columns->token[column] : slot + column < seen_end ? slot + column : -1;
      float x = s[j][2 * half + c] * p.scale;
      if (p.soft_cap > 0) x = p.soft_cap * tanhf(x / p.soft_cap);
      if (token >= 0 && key >= 0) x += additive_terms<float>(p, w.b, head, token, key, key - origin);
      s[j][2 * half + c] = x;
    }
}

template <class T, int Dim, int MTiles, Kind K, int MinBlocks, Distances X = Distances::none>
__global__ void __launch_bounds__(kThreads, MinBlocks)
    tensor_kernel(const __grid_constant__ Params p, const __grid_constant__ TensorPlan plan) {
  using C = Tile<T, Dim, MTiles, X>;
  constexpr bool kFull = K != Kind::lean, Terms = K == Kind::terms;
  constexpr bool kRelative = X != Distances::none;
  static_assert(!kRelative || MTiles == 1);
  const bool relative_keys = X == Distances::keys || (X == Distances::any && p.relative_keys),
             relative_values = X == Distances::any && p.relative_values;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t q_base = shared_address(memory), k_base = q_base + C::kQBytes,
                 v_base = k_base + 2 * C::kKeyBytes;
  // Rings of embeddings, of keys and of values.
  const uint32_t e_base = v_base + 2 * C::kKeyBytes, f_base = e_base + (relative_keys ? C::kRingBytes : 0);
  const int rings = kRelative ? relative_keys + relative_values : 0;
  auto& extras =
      *reinterpret_cast<Extras<C>*>(memory + C::kQBytes + 4 * C::kKeyBytes + rings * C::kRingBytes);
  auto& rows = extras.rows;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;

  // Which work: parts fastest, then units of a section, then tiles from the last (under causal rules the
  // heaviest).
  Work w;
  int tile, part;
  int64_t item;
  {
    unsigned index = blockIdx.x;
    part = static_cast<int>(index % static_cast<unsigned>(plan.parts));
    index /= static_cast<unsigned>(plan.parts);
    const unsigned size = static_cast<unsigned>(plan.section) * static_cast<unsigned>(plan.tiles);
    const unsigned section = index / size, within = index % size;
    const unsigned units =
        min(static_cast<unsigned>(plan.section), static_cast<unsigned>(plan.units) - section * plan.section);
    tile = plan.tiles - 1 - static_cast<int>(within / units);
    const int unit = static_cast<int>(section * static_cast<unsigned>(plan.section) + within % units);
    item = static_cast<int64_t>(unit) * plan.tiles + tile;
    const int per_batch = static_cast<int>(plan.packed ? p.kv_heads : p.heads);
    w.b = unit / per_batch;
    w.unit_head = plan.packed ? unit % per_batch * p.group : unit % per_batch;
    w.kv_head = plan.packed ? unit % per_batch : w.unit_head / p.group;
  }
  // Rows [first, last) of the unit.
  int first, last, block = 0;
  {
    const int64_t all = plan.packed ? p.group * p.n : p.n;
    int64_t begin = static_cast<int64_t>(tile) * C::kRows, end = all;
    if (plan.block_tiles > 0) {
      block = tile / plan.block_tiles;
      begin =
          static_cast<int64_t>(block) * p.block_q + static_cast<int64_t>(tile % plan.block_tiles) * C::kRows;
      end = min(all, (static_cast<int64_t>(block) + 1) * p.block_q);
    }
    first = static_cast<int>(min(begin, all));
    last = static_cast<int>(min(end, begin + C::kRows));
  }
  const int count = last - first;
  if (count <= 0) return;
  const int n = static_cast<int>(p.n);
  const auto head_of = [&](int r) { return plan.packed ? w.unit_head + (first + r) / n : w.unit_head; };
  w.keys = keys_of(p, w.b);

  const Reduced all = describe_rows<kFull>(p, plan, w, rows, extras.reduced, first, count, head_of);
  open_tiles<C::kKeys>(p, plan, all, block, w);
  const int tile_begin = static_cast<int>(static_cast<int64_t>(part) * w.tiles / plan.parts);
  const int tile_end = static_cast<int>(static_cast<int64_t>(part + 1) * w.tiles / plan.parts);

  // Q, and the first keys.
  {
    const T* q = static_cast<const T*>(p.q.data) + w.b * p.q.b;
    for (int at = thread; at < C::kRows * C::kChunks; at += kThreads) {
      const int r = at / C::kChunks, chunk = at % C::kChunks, token = rows.token[r];
      const bool there = r < count && token >= 0;
      const int skip = chunk * C::kPerChunk, elements = there ? static_cast<int>(p.d) - skip : 0;
      const T* from = there ? q + head_of(r) * p.q.h + token * p.q.n : q;
      load_chunk<T>(q_base + place_of<C::kChunks>(r, chunk), from + (elements > 0 ? skip : 0), elements,
                    plan.q_aligned);
    }
  }
  DirectSource<T> source;
  if (!kFull || plan.direct) {
    const int skip = thread % C::kChunks * C::kPerChunk;
    const int k_count = min(C::kPerChunk, static_cast<int>(p.d) - skip),
              v_count = min(C::kPerChunk, static_cast<int>(p.e) - skip);
    source.k_bytes = max(k_count, 0) * static_cast<int>(sizeof(T));
    source.v_bytes = max(v_count, 0) * static_cast<int>(sizeof(T));
    source.k = static_cast<const T*>(p.k.data) + w.b * p.k.b + w.kv_head * p.k.h + (k_count > 0 ? skip : 0);
    source.v = static_cast<const T*>(p.v.data) + w.b * p.v.b + w.kv_head * p.v.h + (v_count > 0 ? skip : 0);
  }
  // Starts the copies of a tile into a buffer; its places have been found, before a barrier.
  const auto load = [&](const KeyTile& tile, int stage) {
    const uint32_t k_to = k_base + stage * C::kKeyBytes, v_to = v_base + stage * C::kKeyBytes;
    if constexpr (kFull) {
      if (plan.columns) describe_keys(p, w, extras.places[stage], extras.columns[stage]);
      if (!plan.direct) {
        load_found<T, C>(p, plan, extras.places[stage], k_to, v_to);
        return;
      }
    }
    load_direct<T, C>(p, source, tile, w.keys, k_to, v_to);
  };
  // The same for the band of distances between the rows and the keys of a tile, from row `from` on, where a
  // band that starts at row `ring` of the rings has it.
  Table<T> e_table, f_table;
  if (relative_keys)
    e_table = {static_cast<const T*>(p.relative_keys) + w.unit_head * p.relative_keys_h, p.relative_keys_x,
               p.relative_keys_rows, static_cast<int>(p.d)};
  if (relative_values)
    f_table = {static_cast<const T*>(p.relative_values) + w.unit_head * p.relative_values_h,
               p.relative_values_x, p.relative_values_rows, static_cast<int>(p.e)};
  const auto load_bands = [&](const KeyTile& tile, int from, int ring) {
    // Of the last row's first key; see attention.hpp for the offset.
    const int64_t away =
        tile.slot - static_cast<int64_t>(first + C::kRows - 1) - (aligned_keys(p, w.b) - p.n);
    if (relative_keys) load_band<T, C, false>(p, plan, e_table, away, from, ring, e_base);
    if (relative_values) load_band<T, C, true>(p, plan, f_table, away, from, ring, f_base);
  };
  const auto find = [&](const KeyTile& tile, int stage) {
    if constexpr (kFull)
      if (plan.columns || !plan.direct) find_keys(p, w, tile, extras.places[stage]);
  };
  KeyTile now, next;
  if (tile_begin < tile_end) now = tile_at<C::kKeys>(p, w, tile_begin);
  if (tile_begin + 1 < tile_end) next = tile_at<C::kKeys>(p, w, tile_begin + 1);
  if constexpr (kFull) {
    if (tile_begin < tile_end) find(now, 0);
    if (tile_begin + 1 < tile_end) find(next, 1);
    __syncthreads();
  }
  if (tile_begin < tile_end) load(now, 0);
  if constexpr (kRelative)
    if (tile_begin < tile_end) load_bands(now, 0, 0);
  commit_copies();

  const int warp_row = warp * 16 * MTiles;
  const bool active = warp_row < count;
  float o[MTiles][C::kOTiles][4], top[MTiles][2], sum[MTiles][2], logs[MTiles][2];
#pragma unroll
  for (int m = 0; m < MTiles; ++m) {
#pragma unroll
    for (int j = 0; j < C::kOTiles; ++j) o[m][j][0] = o[m][j][1] = o[m][j][2] = o[m][j][3] = 0.0f;
    top[m][0] = top[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = logs[m][0] = logs[m][1] = 0.0f;
  }
  uint32_t q_kept[C::kQInRegisters ? MTiles : 1][C::kQInRegisters ? C::kSteps : 1][4];
  const uint32_t q_lane = q_base + place_of<C::kChunks>(warp_row + lane % 16, lane / 16);
  const uint32_t v_lane = place_of<C::kChunks>(lane % 16, lane / 16);
  const auto q_fragment = [&](uint32_t(&x)[4], int m, int step) {
    load_matrices(x, chunk_on<C::kChunks>(q_lane, 2 * step) + 16 * m * C::kRowBytes);
  };

  // Bands: where in the rings this tile's starts, whether it does not go on from the last one's, and the
  // first tile that meets none of the rows found that are not finite.
  int ring = 0, odd_end = 0;
  bool jump = false;
  for (int at = tile_begin; at < tile_end; ++at) {
    const int stage = (at - tile_begin) & 1;
    wait_copies<0>();
    if constexpr (kRelative) {
      if (at > tile_begin) ring = ring + C::kKeys < C::kRing ? ring + C::kKeys : 0;
      if (jump) {
        // Nothing of the band is there, and there was no room for it beside the last one.
        __syncthreads();
        load_bands(now, 0, ring);
        commit_copies();
        wait_copies<0>();
      }
      // Each thread looks at what it has copied itself.
      bool odd = false;
      if (relative_values) odd = has_odd_band<T, C>(f_base, jump || at == tile_begin ? 0 : C::kRows, ring);
      if (X == Distances::any ? __syncthreads_or(odd) : (__syncthreads(), false))
        odd_end = at + C::kBand / C::kKeys;
    } else {
      __syncthreads();
    }
    const KeyTile tile_now = now;
    if (at + 1 < tile_end) {
      load(next, stage ^ 1);
      if constexpr (kRelative) {
        jump = next.slot != tile_now.slot + C::kKeys;
        if (!jump) load_bands(next, C::kRows, ring + C::kKeys < C::kRing ? ring + C::kKeys : 0);
      }
      now = next;
      if (at + 2 < tile_end) {
        next = tile_at<C::kKeys>(p, w, at + 2);
        find(next, stage);
      }
    }
    commit_copies();
    if constexpr (C::kQInRegisters)
      if (at == tile_begin && active)
#pragma unroll
        for (int m = 0; m < MTiles; ++m)
#pragma unroll
          for (int step = 0; step < C::kSteps; ++step) q_fragment(q_kept[m][step], m, step);
    const uint32_t k_tile = k_base + stage * C::kKeyBytes, v_tile = v_base + stage * C::kKeyBytes;
    const auto& columns = extras.columns[stage];

    // What the tile needs of masks; the same answer in every thread.
    const bool rule = tile_now.rule;
    const bool general = kFull && (rule ? plan.general_rule : plan.general_full);
    const int key_end = min(tile_now.end, tile_now.slot + C::kKeys);  // slots; tokens too unless general
    const int seen_end = min(key_end, w.keys);
    const bool cut = seen_end < tile_now.slot + C::kKeys;  // the tail: every row alike
    bool ragged = general;
    if (!general && plan.limits)
      ragged = tile_now.slot < (rule ? all.max_low : all.max_row_low) ||
               seen_end > (rule ? all.min_high : all.min_row_high);
    bool careful = false;
    if (ragged) {
      bool odd = false;
#pragma unroll 1
      for (int i = 0; i < C::kKeyBytes / 16 / kThreads; ++i)
        odd = odd || has_odd<T>(load_shared4(v_tile + (thread + i * kThreads) * 16));
      careful = __syncthreads_or(odd);
    }
    if (!active) {
      if (careful) clean_values<T, C::kKeyBytes>(v_tile);
      continue;
    }

    // Rows of the rings, in bytes: what 16 rows and the keys have of distances, 16 by 16.
    uint32_t band[kRelative ? C::kNTiles / 2 + 1 : 1];
    float far[kRelative ? C::kNTiles + 2 : 1][4];
    if constexpr (kRelative)
#pragma unroll
      for (int j = 0; j < C::kNTiles / 2 + 1; ++j) {
        const int row = ring + C::kRows - 16 - warp_row + 16 * j;
        band[j] = static_cast<uint32_t>((row < C::kRing ? row : row - C::kRing) * C::kRowBytes);
#pragma unroll
        for (int i = 0; i < 4; ++i) far[2 * j][i] = far[2 * j + 1][i] = 0.0f;
      }

    // S = Q K^T, and the products with the embeddings of the band.
    float s[MTiles][C::kNTiles][4];
    multiply_keys<T, C>(
        s, k_tile,
        [&](uint32_t(&x)[4], int m, int step) {
          if constexpr (C::kQInRegisters)
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = q_kept[m][step][i];
          else
            q_fragment(x, m, step);
        },
        [&](int step, const uint32_t(&a)[MTiles][4], const uint32_t(&a_small)[MTiles][4]) {
          if constexpr (kRelative)
            if (relative_keys) multiply_band<T, C>(far, e_base, band, step, a[0], a_small[0]);
        });
    if constexpr (kRelative)
      if (relative_keys) add_diagonals<C::kNTiles>(s[0], far);

    // What a row's output so far counts, since its maximum has grown.
    float share[MTiles][2];
    const auto rescale = [&](int m) {
#pragma unroll
      for (int j = 0; j < C::kOTiles; ++j)
        o[m][j][0] *= share[m][0], o[m][j][1] *= share[m][0], o[m][j][2] *= share[m][1],
            o[m][j][3] *= share[m][1];
    };

    // Which of its columns a row sees: one bit a column of this thread.
    const bool masked = ragged || cut;
    uint32_t seen[MTiles][2];
    if (masked)
      see_columns<C::kKeys, MTiles>(p, w, rows, columns, tile_now, general, seen_end, all.max_sink, count,
                                    head_of, seen);

#pragma unroll
    for (int m = 0; m < MTiles; ++m) {
      if constexpr (Terms) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = warp_row + 16 * m + 8 * half + g;
          add_terms<C::kKeys>(p, w, head_of(min(r, count - 1)), r < count ? rows.token[r] : -1,
                              plan.columns ? &columns : nullptr, tile_now.slot, seen_end, half, s[m]);
        }
      }
      if (masked)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < C::kNTiles; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c)
              if (!((seen[m][half] >> (2 * j + c)) & 1)) s[m][j][2 * half + c] = -INFINITY;

                // Softmax of two rows a thread, four threads a row.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = top[m][half];
#pragma unroll
        for (int j = 0; j < C::kNTiles; ++j)
          high = fmaxf(high, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
        high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 1));
        high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 2));
        // Rounded by themselves: fused with the subtraction, the rounding of a huge base (a mask of finite
        // numbers) would be an exponent of its own.
        const float base = high == -INFINITY ? 0.0f : __fmul_rn(high, plan.to_log2);
        const float before = __fmul_rn(top[m][half], plan.to_log2);
        share[m][half] = exp2_fast(before - base);
        if constexpr (Terms)
          logs[m][half] =
              share[m][half] *
              (logs[m][half] + (top[m][half] == -INFINITY ? 0.0f : (before - base) * sum[m][half]));
        float add = 0.0f;
#pragma unroll
        for (int j = 0; j < C::kNTiles; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            // Without terms scores are products, never that large, and one operation does.
            const float scaled = Terms ? __fmul_rn(s[m][j][2 * half + c], plan.to_log2) : 0.0f;
            const float x = Terms ? scaled - base : s[m][j][2 * half + c] * plan.to_log2 - base;
            const float e = exp2_fast(x);
            if constexpr (Terms) logs[m][half] += e == 0.0f ? 0.0f : e * x;
            add += e;
            s[m][j][2 * half + c] = e;
          }
        sum[m][half] = sum[m][half] * share[m][half] + add;
        top[m][half] = high;
      }
      // Maxima settle after a few tiles; then there is nothing to rescale. f32 rescales as it adds.
      if constexpr (sizeof(T) == 2)
        if (__any_sync(kAllLanes, share[m][0] != 1.0f || share[m][1] != 1.0f)) rescale(m);
    }

    // Values that are not finite reach the rows that see them, and the products meet zeros in their place.
    if (careful) {
      if constexpr (sizeof(T) == 4)
#pragma unroll
        for (int m = 0; m < MTiles; ++m) rescale(m), share[m][0] = share[m][1] = 1.0f;
#pragma unroll 1
      for (int key = 0; key < C::kKeys; ++key) {
        const int owner = (lane & ~3) | (key % 8 / 2), bit = key / 8 * 2 + (key & 1);
        bool sees[MTiles][2];
#pragma unroll
        for (int m = 0; m < MTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            sees[m][half] = (__shfl_sync(kAllLanes, seen[m][half], owner) >> bit) & 1;
#pragma unroll
        for (int j = 0; j < C::kOTiles; ++j) {
          float v[2];
          load_two_values<T, C>(v, v_tile, key, 8 * j + 2 * t);
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (!(fabsf(v[c]) < INFINITY))
#pragma unroll
              for (int m = 0; m < MTiles; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                  if (sees[m][half]) o[m][j][2 * half + c] += v[c];
        }
      }
      clean_values<T, C::kKeyBytes>(v_tile);
    }

    // O += P V.
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int step = 0; step < C::kKeys / 16; ++step) {
        uint32_t a[MTiles][4];
#pragma unroll
        for (int m = 0; m < MTiles; ++m) {
          a[m][0] = pack(s[m][2 * step][0], s[m][2 * step][1], T());
          a[m][1] = pack(s[m][2 * step][2], s[m][2 * step][3], T());
          a[m][2] = pack(s[m][2 * step + 1][0], s[m][2 * step + 1][1], T());
          a[m][3] = pack(s[m][2 * step + 1][2], s[m][2 * step + 1][3], T());
        }
#pragma unroll
        for (int j = 0; j < C::kOTiles; j += 2) {
          uint32_t b[4];
          load_matrices_transposed(b, chunk_on<C::kChunks>(v_tile + v_lane, j) + 16 * step * C::kRowBytes);
#pragma unroll
          for (int m = 0; m < MTiles; ++m) {
            multiply(o[m][j], a[m], b[0], b[1], T());
            multiply(o[m][j + 1], a[m], b[2], b[3], T());
          }
        }
      }
    } else {
      // Tensor cores truncate what they add up, always towards zero: in place, thousands of keys would lose
      // 2^-16 of a row. So 32 keys are summed apart, and o takes the sums by rounded additions. The large
      // products and the small ones apart as well, for shorter chains of sums that wait for each other.
      // A's column t is key 2 t of C's fragment, and column t + 4 key 2 t + 1: the order of keys is free.
#pragma unroll
      for (int j32 = 0; j32 < C::kNTiles / 4; ++j32) {
        uint32_t a[MTiles][4][4], a_small[MTiles][4][4];
#pragma unroll
        for (int m = 0; m < MTiles; ++m)
#pragma unroll
          for (int j8 = 0; j8 < 4; ++j8)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              uint32_t big;
              a[m][j8][i] = __float_as_uint(s[m][4 * j32 + j8][i / 2 + i % 2 * 2]);
              split(a[m][j8][i], big, a_small[m][j8][i]);  // of a itself only big is read
            }
#pragma unroll
        for (int j = 0; j < C::kOTiles; j += 2) {
          float large[MTiles][2][4] = {}, small[MTiles][2][4] = {};
#pragma unroll
          for (int j8 = 0; j8 < 4; ++j8) {
            uint32_t b[2][2], b_small[2][2];
#pragma unroll
            for (int z = 0; z < 2; ++z) {
              const int chunk = 2 * (j + z) + g / 4, key = 8 * (4 * j32 + j8) + 2 * t;
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                b[z][i] = load_shared(v_tile + value_place_of<C::kChunks>(key + i, chunk) + g % 4 * 4);
                split(b[z][i], b[z][i], b_small[z][i]);
              }
            }
#pragma unroll
            for (int m = 0; m < MTiles; ++m)
#pragma unroll
              for (int z = 0; z < 2; ++z) multiply(small[m][z], a_small[m][j8], b[z][0], b[z][1], T());
#pragma unroll
            for (int m = 0; m < MTiles; ++m)
#pragma unroll
              for (int z = 0; z < 2; ++z) multiply(large[m][z], a[m][j8], b[z][0], b[z][1], T());
#pragma unroll
            for (int m = 0; m < MTiles; ++m)
#pragma unroll
              for (int z = 0; z < 2; ++z) multiply(small[m][z], a[m][j8], b_small[z][0], b_small[z][1], T());
          }
#pragma unroll
          for (int m = 0; m < MTiles; ++m)
#pragma unroll
            for (int z = 0; z < 2; ++z)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                float& x = o[m][j + z][i];
                const float add = large[m][z][i] + small[m][z][i];
                x = j32 == 0 ? fmaf(x, share[m][i / 2], add) : x + add;
              }
        }
      }
    }

    // O += P' F, the weights by distance times the embeddings of values.
    if constexpr (X == Distances::any)
      if (relative_values) {
        float weight[C::kNTiles + 2][4];
        spread_diagonals<C::kNTiles>(weight, s[0]);
        const bool odd = at < odd_end;
        if (odd) {
          // Found as among values: in each row the distances that it sees.
#pragma unroll 1
          for (int y = 0; y < C::kKeys + 16; ++y) {
            bool sees[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int key = y - 15 + g + 8 * half;
              const bool inside = key >= 0 && key < C::kKeys;
              const int column = inside ? key : 0;
              const uint32_t bits = __shfl_sync(kAllLanes, masked ? seen[0][half] : 0xffffffffu,
                                                (lane & ~3) | (column % 8 / 2));
              sees[half] = inside && ((bits >> (column / 8 * 2 + (column & 1))) & 1);
            }
            const int turn = ring + C::kRows - 16 - warp_row + y,
                      row = turn < C::kRing ? turn : turn - C::kRing;
#pragma unroll
            for (int j = 0; j < C::kOTiles; ++j) {
              float v[2];
              load_two_values<T, C>(v, f_base, row, 8 * j + 2 * t);
#pragma unroll
              for (int c = 0; c < 2; ++c)
                if (!(fabsf(v[c]) < INFINITY))
#pragma unroll
                  for (int half = 0; half < 2; ++half)
                    if (sees[half]) o[0][j][2 * half + c] += v[c];
            }
          }
        }
        if constexpr (sizeof(T) == 2) {
#pragma unroll
          for (int step = 0; step < C::kNTiles / 2 + 1; ++step) {
            const uint32_t a[4] = {pack(weight[2 * step][0], weight[2 * step][1], T()),
                                   pack(weight[2 * step][2], weight[2 * step][3], T()),
                                   pack(weight[2 * step + 1][0], weight[2 * step + 1][1], T()),
                                   pack(weight[2 * step + 1][2], weight[2 * step + 1][3], T())};
#pragma unroll
            for (int j = 0; j < C::kOTiles; j += 2) {
              uint32_t b[4];
              load_matrices_transposed(b, chunk_on<C::kChunks>(f_base + v_lane, j) + band[step]);
              if (odd)
#pragma unroll
                for (int i = 0; i < 4; ++i) b[i] = finite_part<T>(b[i]);
              multiply(o[0][j], a, b[0], b[1], T());
              multiply(o[0][j + 1], a, b[2], b[3], T());
            }
          }
        } else {
          // As with values, summed apart, 16 distances at a time for the sake of registers.
#pragma unroll
          for (int step = 0; step < C::kNTiles / 2 + 1; ++step) {
            uint32_t a[2][4], a_small[2][4];
#pragma unroll
            for (int j8 = 0; j8 < 2; ++j8)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                uint32_t big;
                a[j8][i] = __float_as_uint(weight[2 * step + j8][i / 2 + i % 2 * 2]);
                split(a[j8][i], big, a_small[j8][i]);
              }
#pragma unroll
            for (int j = 0; j < C::kOTiles; ++j) {
              float large[4] = {}, small[4] = {};
#pragma unroll
              for (int j8 = 0; j8 < 2; ++j8) {
                uint32_t b[2], b_small[2];
                const int chunk = 2 * j + g / 4, y = 8 * j8 + 2 * t;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                  b[i] =
                      load_shared(f_base + band[step] + value_place_of<C::kChunks>(y + i, chunk) + g % 4 * 4);
                  if (odd) b[i] = finite_part<T>(b[i]);
                  split(b[i], b[i], b_small[i]);
                }
                multiply(small, a_small[j8], b[0], b[1], T());
                multiply(large, a[j8], b[0], b[1], T());
                multiply(small, a[j8], b_small[0], b_small[1], T());
              }
#pragma unroll
              for (int i = 0; i < 4; ++i) o[0][j][i] += large[i] + small[i];
            }
          }
        }
      }
  }

  if (tile_begin >= tile_end) {
    // No barrier yet: everybody's copies of Q must be over before its memory is used again.
    wait_copies<0>();
    __syncthreads();
  }
  if (!active) return;
#pragma unroll
  for (int m = 0; m < MTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_row + 16 * m + 8 * half + g;
      float all_sum = sum[m][half], all_logs = logs[m][half];
      all_sum += __shfl_xor_sync(kAllLanes, all_sum, 1), all_sum += __shfl_xor_sync(kAllLanes, all_sum, 2);
      if constexpr (Terms) {
        all_logs += __shfl_xor_sync(kAllLanes, all_logs, 1);
        all_logs += __shfl_xor_sync(kAllLanes, all_logs, 2);
      }
      const float high = top[m][half] * plan.to_log2;
      const bool there = r < count && rows.token[r] >= 0;
      if (plan.parts > 1) {
        if (!there) continue;
        const int64_t row = (item * plan.parts + part) * C::kRows + r;
        if (t == 0) {
          float* state = plan.part_state + row * 4;
          state[0] = high, state[1] = all_sum, state[2] = all_logs;
        }
        float* out = plan.part_o + row * p.e;
#pragma unroll
        for (int j = 0; j < C::kOTiles; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (8 * j + 2 * t + c < p.e) out[8 * j + 2 * t + c] = o[m][j][2 * half + c];
        continue;
      }
      const float weight =
          there ? finish_row(p, w.b, head_of(r), rows.token[r], high, all_sum, all_logs, t == 0) : 0.0f;
#pragma unroll
      for (int j = 0; j < C::kOTiles; ++j)
        // An empty row may have met V's of weight 0 only, and is 0 whatever they were.
        o[m][j][2 * half] = weight == 0.0f ? 0.0f : o[m][j][2 * half] * weight,
                    o[m][j][2 * half + 1] = weight == 0.0f ? 0.0f : o[m][j][2 * half + 1] * weight;
    }
  }
  if (plan.parts > 1) return;
  // Through this warp's own rows of Q, to store whole chunks.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < MTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < C::kOTiles; ++j) {
        const int r = warp_row + 16 * m + 8 * half + g, column = 8 * j + 2 * t;
        const uint32_t to = q_base + place_of<C::kChunks>(r, column / C::kPerChunk) +
                            column % C::kPerChunk * static_cast<int>(sizeof(T));
        if constexpr (sizeof(T) == 4) {
          store_shared(to, __float_as_uint(o[m][j][2 * half]));
          store_shared(to + 4, __float_as_uint(o[m][j][2 * half + 1]));
        } else {
          store_shared(to, pack(o[m][j][2 * half], o[m][j][2 * half + 1], T()));
        }
      }
  __syncwarp();
  T* out = static_cast<T*>(p.o.data) + w.b * p.o.b;
  for (int at = lane; at < 16 * MTiles * C::kChunks; at += 32) {
    const int r = warp_row + at / C::kChunks, skip = at % C::kChunks * C::kPerChunk;
    const int token = r < count ? rows.token[r] : -1,
              elements = min(C::kPerChunk, static_cast<int>(p.e) - skip);
    if (token < 0 || elements <= 0) continue;
    alignas(16) T x[C::kPerChunk];
    *reinterpret_cast<uint4*>(x) = load_shared4(q_base + place_of<C::kChunks>(r, at % C::kChunks));
    T* to = out + head_of(r) * p.o.h + token * p.o.n + skip;
    if (plan.o_aligned && elements == C::kPerChunk) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(x);
    } else {
#pragma unroll
      for (int i = 0; i < C::kPerChunk; ++i)
        if (i < elements) to[i] = x[i];
    }
  }
}

/// Parts of split keys become rows: one warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ Params p, const __grid_constant__ TensorPlan plan) {
  const int lane = threadIdx.x % 32;
  const int64_t total = static_cast<int64_t>(plan.units) * plan.tiles * plan.rows;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; index < total;
       index += warps) {
    const int64_t item = index / plan.rows;
    const int r = static_cast<int>(index % plan.rows);
    const int unit = static_cast<int>(item / plan.tiles), tile = static_cast<int>(item % plan.tiles);
    int64_t row = static_cast<int64_t>(tile) * plan.rows + r, end = plan.packed ? p.group * p.n : p.n;
    if (plan.block_tiles > 0) {
      const int64_t block = tile / plan.block_tiles;
      row = block * p.block_q + static_cast<int64_t>(tile % plan.block_tiles) * plan.rows + r;
      end = min(end, (block + 1) * p.block_q);
    }
    if (row >= end) continue;
    const int per_batch = static_cast<int>(plan.packed ? p.kv_heads : p.heads);
    const int64_t b = unit / per_batch;
    const int head =
        plan.packed ? unit % per_batch * p.group + static_cast<int>(row / p.n) : unit % per_batch;
    const int token = query_token(p, plan.packed ? row % p.n : row);
    if (token < 0) continue;
    const float* state = plan.part_state + (item * plan.parts * plan.rows + r) * 4;
    const int64_t step = static_cast<int64_t>(plan.rows) * 4;
    float top = -INFINITY;
    for (int i = lane; i < plan.parts; i += 32) top = fmaxf(top, state[i * step]);
    for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, i));
    const auto share_of = [&](int i) { return top == -INFINITY ? 1.0f : exp2_fast(state[i * step] - top); };
    float sum = 0.0f, logs = 0.0f;
    for (int i = lane; i < plan.parts; i += 32) {
      const float share = share_of(i), part = state[i * step + 1], away = state[i * step] - top;
      sum += share * part;
      logs += share * (state[i * step + 2] + (share > 0.0f && top != -INFINITY ? away * part : 0.0f));
    }
    for (int i = 16; i > 0; i /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, i);
      logs += __shfl_xor_sync(kAllLanes, logs, i);
    }
    const float weight = finish_row(p, b, head, token, top, sum, logs, lane == 0);
    T* out = static_cast<T*>(p.o.data) + b * p.o.b + head * p.o.h + token * p.o.n;
    const float* parts = plan.part_o + (item * plan.parts * plan.rows + r) * p.e;
    // A lane keeps the share of a part and hands it round, so that loads of several parts are under way.
    const auto add_up = [&](auto width) {
      constexpr int W = decltype(width)::value;
      for (int64_t c0 = 0; c0 < p.e; c0 += 32 * W) {
        const int64_t c = c0 + lane * W;
        const bool there = c < p.e;
        float x[W] = {};
        for (int first = 0; first < plan.parts; first += 32) {
          const float own = first + lane < plan.parts ? share_of(first + lane) : 0.0f;
          const int count = min(32, plan.parts - first);
#pragma unroll 8
          for (int i = 0; i < count; ++i) {
            const float share = __shfl_sync(kAllLanes, own, i);
            if (!there) continue;
            float v[W];
            const float* from = parts + static_cast<int64_t>(first + i) * plan.rows * p.e + c;
            if constexpr (W == 4) {
              const float4 four = *reinterpret_cast<const float4*>(from);
              v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
            } else {
              v[0] = *from;
            }
#pragma unroll
            for (int w = 0; w < W; ++w) x[w] += share * v[w];
          }
        }
        if (!there) continue;
#pragma unroll
        for (int w = 0; w < W; ++w) out[c + w] = from_float<T>(weight == 0.0f ? 0.0f : x[w] * weight);
      }
    };
    if (p.e % 4 == 0)
      add_up(std::integral_constant<int, 4>{});
    else
      add_up(std::integral_constant<int, 1>{});
  }
}

template <class T>
void combine_parts(Context& ctx, const Params& p, const TensorPlan& plan) {
  if (plan.parts == 1) return;
  const int64_t rows = static_cast<int64_t>(plan.units) * plan.tiles * plan.rows;
  combine_kernel<T><<<grid_for(ctx, rows, kThreads / 32), kThreads, 0, stream_of(ctx)>>>(p, plan);
  CUDA_CHECK_LAUNCH();
}
template <class T, int Dim, int MTiles, Kind K, int MinBlocks, Distances X = Distances::none>
void launch_one(Context& ctx, const Params& p, const TensorPlan& plan) {
  const auto kernel = tensor_kernel<T, Dim, MTiles, K, MinBlocks, X>;
  const size_t bytes = shared_bytes<Tile<T, Dim, MTiles, X>, K>(p);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const unsigned grid = static_cast<unsigned>(plan.units) * static_cast<unsigned>(plan.tiles) *
                        static_cast<unsigned>(plan.parts);
  kernel<<<grid, kThreads, bytes, stream_of(ctx)>>>(p, plan);
  CUDA_CHECK_LAUNCH();
}
/// MinBlocks: blocks an SM that registers (65536) and shared memory (228 KiB on Hopper) leave room for. Lean
/// instances exist where they save registers that would spill.
template <class T, int Dim, int MinBlocks>
void launch_dim(Context& ctx, const Params& p, const TensorPlan& plan) {
  constexpr bool kLong = long_tiles<T, Dim>();
  if constexpr (kLong) {
    if (plan.rows == 128 && plan.kind == Kind::lean)
      return launch_one<T, Dim, 2, Kind::lean, 2>(ctx, p, plan);
    if (plan.rows == 128) return launch_one<T, Dim, 2, Kind::full, 2>(ctx, p, plan);
  }
  if (plan.kind == Kind::terms)
    launch_one<T, Dim, 1, Kind::terms, Dim >= 256 && sizeof(T) == 4 ? 1 : 2>(ctx, p, plan);
  else if (plan.kind == Kind::lean)
    launch_one<T, Dim, 1, Kind::lean, MinBlocks>(ctx, p, plan);
  else
    launch_one<T, Dim, 1, Kind::full, MinBlocks>(ctx, p, plan);
}
template <class T>
void launch_type(Context& ctx, const Params& p, const TensorPlan& plan) {
  constexpr bool kWide = sizeof(T) == 4;
  const int64_t dim = std::max(p.d, p.e);
  if (dim <= 32)
    launch_dim<T, 32, 3>(ctx, p, plan);
  else if (dim <= 64)
    launch_dim<T, 64, kWide ? 2 : 3>(ctx, p, plan);
  else if (dim <= 128)
    launch_dim<T, 128, 2>(ctx, p, plan);
  else
    launch_dim<T, 256, kWide ? 1 : 2>(ctx, p, plan);
  combine_parts<T>(ctx, p, plan);
}
/// Two instances a type and head size: relative keys of an otherwise lean call, and everything there is.
template <class T, int Dim, int LeanBlocks, int Blocks>
void launch_relative_dim(Context& ctx, const Params& p, const TensorPlan& plan) {
  if (plan.kind == Kind::lean)
    launch_one<T, Dim, 1, Kind::lean, LeanBlocks, Distances::keys>(ctx, p, plan);
  else
    launch_one<T, Dim, 1, Kind::terms, Blocks, Distances::any>(ctx, p, plan);
}
template <class T>
void launch_relative_type(Context& ctx, const Params& p, const TensorPlan& plan) {
  constexpr bool kWide = sizeof(T) == 4;
  if (std::max(p.d, p.e) <= 64)
    launch_relative_dim<T, 64, kWide ? 2 : 3, 2>(ctx, p, plan);
  else
    launch_relative_dim<T, 128, kWide ? 1 : 2, kWide ? 1 : 2>(ctx, p, plan);
  combine_parts<T>(ctx, p, plan);
}

}  // namespace
}  // namespace attnbench::cuda_attention
