// Softmax attention for Hopper: warpgroup products from shared memory, tensor-map copies, one producer
// warpgroup and one to three consumers. bf16 and f16. Scores that need more than a factor, and entropies,
// have a variant of the consumer of their own (Terms).
//
// A persistent block owns a tile of 64 query rows a consumer. Keys come in tiles of 64 or 128, cut in halves
// of 64 that need not be neighbours, so that lists of 64-token blocks fill whole tiles. A consumer issues
// S = Q K' of tile j + 1, then O += P V of tile j, and does the softmax of j + 1 while the second product
// runs; over the border of two query tiles too, where j + 1 is the first tile of the next rows. Two consumers
// take turns in issuing, so that one's products run under the other's exponentials. P stays in registers.
//
// The producer's warps: one loads; one decides, a tile or two ahead, which tile comes next and what it
// visits, and sends finished rows to memory; two make masks. Key tiles that some row sees only in part come
// first. Where rows see ranges of keys, the mask warps leave each row's range in shared memory and the
// consumers hide what lies outside; other rules they turn into 32-bit words of visible columns, ahead of the
// consumers, who never meet a rule. All other key tiles are processed by a loop without mask code.
#pragma once
#include <algorithm>

#include "kernels/attention/mma.cuh"
#include "kernels/attention/rows.cuh"
#include "kernels/attention/sm90.cuh"
#include "kernels/core/hopper.cuh"

namespace attnbench::cuda_attention {
namespace {

constexpr int kProducerThreads = 128, kMaskThreads = 64;
constexpr int kHalf = 64;       // keys
constexpr int kRowBytes = 128;  // of a swizzled shared-memory row: 64 elements
constexpr int kHalfBytes = kHalf * kRowBytes;
constexpr int kStages = 2;
// A tile is decided when the one before begins. Earlier decisions would leave blocks with unequal rests.
constexpr int kWalks = 2;
// Named barriers: consumers take turns on 1 to 3; 4 to 6 gather one consumer, 7 the mask warps.
constexpr int kTurnBarrier = 1, kGroupBarrier = 4, kMaskBarrier = 7;

template <int Dim, int Groups>
struct HopperTile {
  static constexpr int kRows = 64 * Groups, kColumns = Dim / 64;
  // S, P and O of a consumer stay in registers: keys * 3 / 4 + Dim / 2 of them a thread.
  static constexpr int kKeys = Dim > 128 || Groups == 1 ? 64 : 128;
  static constexpr int kHalves = kKeys / kHalf, kWords = kKeys / 32;
  // The second Q buffer loads the next tile's rows under this tile's work, where it fits.
  static constexpr int kQBuffers = Dim > 128 ? 1 : 2;
  static constexpr int kQBytes = kRows * Dim * 2, kKeyBytes = kKeys * Dim * 2;
  static constexpr int kThreads = kProducerThreads + 128 * Groups;
  static constexpr int kBlocksPerSm = Groups == 1 ? 2 : 1;
  static constexpr bool kTurns = Groups > 1;
  // The launch gives every thread 168 registers (128 to four warpgroups and to blocks in pairs); together the
  // warpgroups take no more than that.
  static constexpr int kProducerRegisters = Groups == 1   ? 64
                                            : Groups == 2 ? 56
                                                          : 32,
                       kConsumerRegisters = Groups == 1   ? 192
                                            : Groups == 2 ? 224
                                                          : 160;
};

/// What a tile of queries visits; every warp of the producer computes the same or reads it.
struct Walk {
  int stop = 0;
  int b = 0, h = 0, row0 = 0;
  int steps = 0, masked = 0;  ///< tiles of keys; the masked ones come first
  // With lists, in halves of 64 keys: partial ones, then `mixed` full ones that are masked too.
  int partial_begin = 0, partial_halves = 0, full_begin = 0, full_halves = 0, mixed = 0;
  // Without: tiles [low, full_low) and [full_high, high) are partial, [full_low, full_high) whole, [0,
  // sinks).
  int low = 0, full_low = 0, full_high = 0, high = 0, sinks = 0;
  bool empty = false;  ///< nothing at all: one masked step of absent keys keeps the consumers' loop simple
};

enum HalfKind : int { kAbsent, kUnderRule, kFull };
struct Half {
  int slot = 0;
  HalfKind kind = kAbsent;
};

/// Keys a row sees: [low, high) and [row_low, sink_high) of halves under the rule, [row_low, row_high) of
/// full ones.
struct alignas(16) RowRange {
  int low, high, row_low, sink_high, row_high;
};

// Thresholds of a neighbourhood axis that a word's table holds; wider spans are voted on row by row.
constexpr int kSpan = 64;
template <int Words>
struct Places {
  uint32_t below[3][Words][kSpan + 2];  ///< columns whose place is less than first + index
  int first[3][Words], span[3][Words];
};

template <int Dim, int Groups>
struct HopperShared {
  using C = HopperTile<Dim, Groups>;
  alignas(1024) uint8_t q[C::kQBuffers][C::kQBytes];
  alignas(1024) uint8_t k[kStages][C::kKeyBytes];
  alignas(1024) uint8_t v[kStages][C::kKeyBytes];
  alignas(16) uint32_t words[kStages][C::kRows][C::kWords];
  RowLimits rows[C::kRows];
  RowRange ranges[kWalks][C::kRows];
  union {
    Places<C::kWords> places;
    alignas(8) uint32_t tile_below[kTileTable];
  };
  Walk walk[kWalks];
  int partial_head[kWalks][32], full_head[kWalks][32];  ///< the first entries of a walk's lists
  Half halves[kStages][C::kHalves];                     ///< what the stage's keys are
  uint64_t walk_full[kWalks], walk_empty[kWalks], ranges_full[kWalks];
  uint64_t q_full[C::kQBuffers], q_empty[C::kQBuffers], o_full[C::kQBuffers];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t words_full[kStages], words_empty[kStages];
};

/// Counts uses of a ring of buffers: which one, and the parity of its phase.
template <int Buffers>
struct Ring {
  int index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++index == Buffers) index = 0, phase ^= 1;
  }
};

/// One warp's view of a list: it holds 32 entries, and the 32 behind them are on their way. Entries are asked
/// for in order.
struct ListReader {
  int held = 0, value, ahead;
  static __device__ __forceinline__ int load(const DeviceList& list, int begin, int chunk) {
    const int64_t at = static_cast<int64_t>(begin) + (chunk << 5) + threadIdx.x % 32;
    return at < list.size ? list.index[at * list.step] : -1;
  }
  __device__ __forceinline__ ListReader(const DeviceList& list, const int* head, int begin, int entries)
      : value(head[threadIdx.x % 32]), ahead(entries > 32 ? load(list, begin, 1) : -1) {}
  __device__ __forceinline__ int block(const DeviceList& list, int begin, int entry) {
    if (entry >> 5 != held) {
      held = entry >> 5;
      value = ahead;
      ahead = load(list, begin, held + 1);
    }
    return __shfl_sync(kAllLanes, value, entry & 31);
  }
};
/// Both lists of a walk.
struct WalkLists {
  ListReader partial, full;
  template <class Shared>
  __device__ __forceinline__ WalkLists(const Params& p, const Shared& shared, int walk)
      : partial(p.partial, shared.partial_head[walk], shared.walk[walk].partial_begin,
                shared.walk[walk].partial_halves / (p.block_k / kHalf)),
        full(p.full, shared.full_head[walk], shared.walk[walk].full_begin,
             shared.walk[walk].full_halves / (p.block_k / kHalf)) {}
};

/// Half i of step s; `block(kind, entry)` reads the entry of a list.
template <int Keys, class Block>
__device__ __forceinline__ Half half_of(const Params& p, const Walk& w, int s, int i, const Block& block) {
  constexpr int kHalves = Keys / kHalf;
  if (w.empty) return {0, kAbsent};
  if (!p.has_lists) {
    int tile;
    if (s >= w.masked)
      tile = w.full_high - 1 - (s - w.masked);
    else if (s < w.high - w.full_high)
      tile = w.high - 1 - s;
    else if (s -= w.high - w.full_high; s < w.full_low - w.low)
      tile = w.full_low - 1 - s;
    else
      tile = s - (w.full_low - w.low);
    return {tile * Keys + i * kHalf, kUnderRule};
  }
  const int pieces = p.block_k / kHalf;
  int at = s * kHalves + i;
  HalfKind kind = kUnderRule;
  if (s >= w.masked)
    at += w.mixed - w.masked * kHalves, kind = kFull;
  else if (at >= w.partial_halves) {
    at -= w.partial_halves;
    if (at >= w.mixed) return {0, kAbsent};
    kind = kFull;
  }
  const int entry = at / pieces, piece = at - entry * pieces, number = block(kind, entry);
  // Entries that name no block are not followed. In a masked step they count for nothing; in a whole one
  // there is no mask to hide them: lists must not have any.
  if (number < 0 || number >= p.blocks_k) return {0, kAbsent};
  return {number * p.block_k + piece * kHalf, kind};
}
/// The same for a whole warp, whose lanes all ask for the same half, one after the other.
template <int Keys>
__device__ __forceinline__ Half half_of(const Params& p, const Walk& w, WalkLists& lists, int s, int i) {
  return half_of<Keys>(p, w, s, i, [&](HalfKind kind, int entry) {
    return kind == kFull ? lists.full.block(p.full, w.full_begin, entry)
                         : lists.partial.block(p.partial, w.partial_begin, entry);
  });
}

/// One warp: what the tile with this number visits.
template <int Dim, int Groups>
__device__ Walk find_walk(const Params& p, const HopperPlan& plan, int number) {
  using C = HopperTile<Dim, Groups>;
  const int lane = threadIdx.x % 32;
  Walk w;
  // Sections of units share the cache; inside a section the last (heaviest, under causal rules) tiles go
  // first.
  const int per_section = plan.section * plan.tiles, section = number / per_section;
  const int units = min(plan.section, plan.total / plan.tiles - section * plan.section);
  const int inside = number - section * per_section;
  const int tile = plan.tiles - 1 - inside / units, unit = section * plan.section + inside % units;
  const int heads = static_cast<int>(p.heads);
  w.b = unit / heads, w.h = unit % heads, w.row0 = tile * C::kRows;

  if (p.has_lists) {
    const int r = w.row0 / p.block_q, pieces = p.block_k / kHalf;
    if (p.full.count.data)
      w.full_begin = p.full.begin.at(w.b, w.h, r), w.full_halves = p.full.count.at(w.b, w.h, r) * pieces;
    if (p.partial.count.data)
      w.partial_begin = p.partial.begin.at(w.b, w.h, r),
      w.partial_halves = p.partial.count.at(w.b, w.h, r) * pieces;
    w.mixed = plan.mask_full ? w.full_halves : w.full_halves % C::kHalves;
    w.masked = (w.partial_halves + w.mixed + C::kHalves - 1) / C::kHalves;
    w.steps = w.masked + (w.full_halves - w.mixed) / C::kHalves;
    return w;
  }
  const int m = static_cast<int>(p.m);
  if (!plan.ranges) {
    w.full_high = w.high = m / C::kKeys;
    w.steps = w.high;
    return w;
  }
  int min_low = INT_MAX, max_low = 0, min_high = INT_MAX, max_high = 0, max_sink = 0;
  const int rows = static_cast<int>(min(p.n - w.row0, static_cast<int64_t>(C::kRows)));
  const auto look = [&](int r) {
    const RowLimits x = row_limits(p, w.b, w.h, w.row0 + r);
    if (x.low < x.high)
      min_low = min(min_low, x.low), max_high = max(max_high, x.high), max_low = max(max_low, x.low);
    min_high = min(min_high, x.high);
    if (x.sink_high > x.row_low) max_sink = max(max_sink, x.sink_high);
    return x.low < x.high;
  };
  // Where both ends of the range only grow from row to row, the first and the last row tell about all, unless
  // one of them sees nothing: its range says nothing of its neighbours'.
  bool seen = false;
  if (plan.monotone) seen = __all_sync(kAllLanes, lane < 2 ? look(lane * (rows - 1)) : true);
  if (!seen)
    for (int r = lane; r < rows; r += 32) look(r);
  min_low = __reduce_min_sync(kAllLanes, min_low), max_low = __reduce_max_sync(kAllLanes, max_low);
  min_high = __reduce_min_sync(kAllLanes, min_high), max_high = __reduce_max_sync(kAllLanes, max_high);
  max_sink = __reduce_max_sync(kAllLanes, max_sink);
  w.low = min_low == INT_MAX ? 0 : min_low / C::kKeys;
  w.high = (max_high + C::kKeys - 1) / C::kKeys;
  w.full_low = (max_low + C::kKeys - 1) / C::kKeys, w.full_high = min_high / C::kKeys;
  // An empty row has high 0, so that no tile is whole.
  if (plan.general || w.full_low >= w.full_high) w.full_low = w.full_high = w.low;
  if (w.high < w.low) w.high = w.low;
  // Sinks may reach past the band of every row, and be all that a tile sees.
  const int sinks = (max_sink + C::kKeys - 1) / C::kKeys;
  if (sinks > w.low) w.high = max(w.high, sinks);
  w.sinks = min(sinks, w.low);
  w.masked = w.high - w.full_high + w.full_low - w.low + w.sinks;
  w.steps = w.masked + w.full_high - w.full_low;
  return w;
}

/// find_walk, never without a step.
template <int Dim, int Groups>
__device__ Walk walk_of(const Params& p, const HopperPlan& plan, int number) {
  Walk w = find_walk<Dim, Groups>(p, plan, number);
  if (w.steps == 0) w.empty = true, w.steps = w.masked = 1;
  return w;
}

// --- the producer: one warp of copies ---

template <int Dim, int Groups>
__device__ __forceinline__ void load_tiles(const Params& p, const HopperPlan& plan,
                                           HopperShared<Dim, Groups>& shared) {
  using C = HopperTile<Dim, Groups>;
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    hopper::prefetch_map(&plan.q);
    hopper::prefetch_map(&plan.k);
    hopper::prefetch_map(&plan.v);
    hopper::prefetch_map(&plan.o);
  }
  struct Keys {
    Half halves[C::kHalves] = {};
    int kv_head = 0, b = 0;
  };
  const auto load = [&](const CUtensorMap* map, uint8_t* buffer, uint64_t* barrier, const Keys& from) {
    if (lane != 0) return;
    const uint32_t done = shared_address(barrier), to = shared_address(buffer);
    hopper::barrier_expect(done, C::kKeyBytes);
#pragma unroll
    for (int i = 0; i < C::kHalves; ++i)
#pragma unroll
      for (int c = 0; c < C::kColumns; ++c)
        hopper::copy_box(to + c * C::kKeys * kRowBytes + i * kHalfBytes, map, done, 64 * c,
                         from.halves[i].slot, from.kv_head, from.b);
  };
  Ring<C::kQBuffers> q;
  Ring<kStages> k, v;
  Ring<kWalks> tile;
  // Values follow their keys one step later, over the border of tiles too: the next tile's first keys are
  // under way while this tile's last values are waited for.
  Keys last;
  bool owed = false;
  const auto load_values = [&] {
    if (!owed) return;
    hopper::barrier_wait(shared_address(&shared.v_empty[v.index]), v.phase ^ 1);
    load(&plan.v, shared.v[v.index], &shared.v_full[v.index], last);
    v.next();
    owed = false;
  };
  for (;; tile.next()) {
    hopper::barrier_wait(shared_address(&shared.walk_full[tile.index]), tile.phase);
    const Walk& w = shared.walk[tile.index];
    // One buffer of Q is free only when the tile before is finished.
    if (C::kQBuffers == 1 || w.stop) load_values();
    const uint32_t q_full = shared_address(&shared.q_full[q.index]), rows = shared_address(shared.q[q.index]);
    hopper::barrier_wait(shared_address(&shared.q_empty[q.index]), q.phase ^ 1);
    if (w.stop) {
      if (lane == 0) hopper::barrier_arrive(q_full);
      return;
    }
    if (lane == 0) {
      hopper::barrier_expect(q_full, C::kQBytes);
      for (int c = 0; c < C::kColumns; ++c)
        for (int g = 0; g < Groups; ++g)
          hopper::copy_box(rows + c * C::kRows * kRowBytes + g * kHalfBytes, &plan.q, q_full, 64 * c,
                           w.row0 + 64 * g, w.h, w.b);
    }
    q.next();

    WalkLists lists(p, shared, tile.index);
    Keys now;
    now.kv_head = w.h / p.group, now.b = w.b;
    const int steps = w.steps;
    for (int s = 0; s < steps; ++s) {
#pragma unroll
      for (int i = 0; i < C::kHalves; ++i) {
        now.halves[i] = half_of<C::kKeys>(p, w, lists, s, i);
        // An absent half needs finite values that its zero weights can meet: those of the first half.
        if (now.halves[i].kind == kAbsent && i > 0) now.halves[i].slot = now.halves[0].slot;
      }
      hopper::barrier_wait(shared_address(&shared.k_empty[k.index]), k.phase ^ 1);
      if ((plan.simple || plan.terms) && lane == 0)
#pragma unroll
        for (int i = 0; i < C::kHalves; ++i) shared.halves[k.index][i] = now.halves[i];
      load(&plan.k, shared.k[k.index], &shared.k_full[k.index], now);
      k.next();
      load_values();
      last = now, owed = true;
    }
    __syncwarp();
    if (lane == 0) hopper::barrier_arrive(shared_address(&shared.walk_empty[tile.index]));
  }
}

// --- the producer: one warp of decisions and of finished rows ---

template <int Dim, int Groups>
__device__ __forceinline__ void decide(const Params& p, const HopperPlan& plan,
                                       HopperShared<Dim, Groups>& shared) {
  using C = HopperTile<Dim, Groups>;
  const int lane = threadIdx.x % 32;
  Ring<kWalks> tile;
  Ring<C::kQBuffers> out, given;
  // Rows leave from the buffer that Q came in, which is free again once they have been read.
  const auto give_buffer = [&] {
    if (lane == 0) {
      hopper::store_wait_read<0>();
      hopper::barrier_arrive(shared_address(&shared.q_empty[given.index]));
    }
    __syncwarp();
    given.next();
  };
  const auto send_rows = [&](const Walk& w) {
    hopper::barrier_wait(shared_address(&shared.o_full[out.index]), out.phase);
    if (lane == 0) {
      const uint32_t rows = shared_address(shared.q[out.index]);
      for (int c = 0; c < C::kColumns && 64 * c < p.e; ++c)
        for (int g = 0; g < Groups && w.row0 + 64 * g < p.n; ++g)
          hopper::store_box(&plan.o, rows + c * C::kRows * kRowBytes + g * kHalfBytes, 64 * c,
                            w.row0 + 64 * g, w.h, w.b);
      hopper::store_commit();
    }
    __syncwarp();
    out.next();
  };
  Walk before;
  int sent = 0;  // tiles whose buffer has not been given back
  bool first = true;
  for (int number = blockIdx.x;;) {
    Walk w;
    if (number < plan.total)
      w = walk_of<Dim, Groups>(p, plan, number);
    else
      w.stop = 1;
    if (p.has_lists && !w.stop) {
      shared.partial_head[tile.index][lane] =
          w.partial_halves > 0 ? ListReader::load(p.partial, w.partial_begin, 0) : -1;
      shared.full_head[tile.index][lane] = w.full_halves > 0 ? ListReader::load(p.full, w.full_begin, 0) : -1;
    }
    if (lane == 0) shared.walk[tile.index] = w;
    hopper::barrier_arrive(shared_address(&shared.walk_full[tile.index]));  // every lane wrote a part
    if (sent > 0) give_buffer(), --sent;
    if (!first) {
      send_rows(before), ++sent;
      if (C::kQBuffers == 1) give_buffer(), --sent;
    }
    if (w.stop) {
      if (lane == 0) hopper::store_wait<0>();
      return;
    }
    before = w, first = false;
    tile.next();
    hopper::barrier_wait(shared_address(&shared.walk_empty[tile.index]), tile.phase ^ 1);
    if (plan.next) {
      if (lane == 0) number = static_cast<int>(gridDim.x) + atomicAdd(plan.next, 1);
      number = __shfl_sync(kAllLanes, number, 0);
    } else {
      number += static_cast<int>(gridDim.x);
    }
  }
}

// --- the producer: two warps of masks ---

/// Bits i of a word with i >= from; the machine's shift by 32 and more leaves nothing.
__device__ __forceinline__ uint32_t bits_from(int from) {
  uint32_t bits;
  asm("shl.b32 %0, %1, %2;" : "=r"(bits) : "r"(~0u), "r"(max(from, 0)));
  return bits;
}
/// Bits i of a word whose column begin + i lies in [low, high).
__device__ __forceinline__ uint32_t range_bits(int low, int high, int begin) {
  return bits_from(low - begin) & ~bits_from(high - begin);
}

/// One warp: tables of the neighbourhood's axes for the 32 keys from `begin`.
template <class Shared>
__device__ void tabulate_places(const Params& p, Shared& shared, int word, int begin) {
  const int lane = threadIdx.x % 32;
  const int token = begin + lane;
  int x[3] = {};
  coordinates(p.rule, min(token, static_cast<int>(p.m) - 1), p.rule.k_tile, p.rule.k_tiles, x);
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (a >= p.rule.rank) break;
    const int place = axis_place(p.rule, a, x[a]);
    const int first = __reduce_min_sync(kAllLanes, place);
    const int span = __reduce_max_sync(kAllLanes, place) - first + 1;
    if (lane == 0) shared.places.first[a][word] = first, shared.places.span[a][word] = span;
    if (span > kSpan) continue;
    for (int from = 0; from <= span; from += 32) {
      uint32_t mine = 0;
      const int end = min(span - from, 31);
      for (int i = 0; i <= end; ++i) {
        const uint32_t bits = __ballot_sync(kAllLanes, place < first + from + i);
        if (lane == i) mine = bits;
      }
      if (lane <= end) shared.places.below[a][word][from + lane] = mine;
    }
  }
}

/// Columns begin .. begin + 31 that a row sees, given what kind of block they lie in.
template <class Shared>
__device__ uint32_t visible_word(const Params& p, const Shared& shared, const Walk& w, int r, int word,
                                 int begin, HalfKind kind) {
  const RowLimits& x = shared.rows[r];
  if (kind == kAbsent || x.token < 0) return 0;
  uint32_t bits;
  if (kind == kFull) {
    bits = range_bits(x.row_low, x.row_high, begin);
  } else {
    bits = range_bits(x.low, x.high, begin) | range_bits(x.row_low, x.sink_high, begin);
    const DeviceRule& rule = p.rule;
    for (int a = 0; a < rule.rank; ++a) {
      const int span = shared.places.span[a][word], first = shared.places.first[a][word];
      if (span <= kSpan) {
        const int low = min(max(x.place[a] - first, 0), span);
        const int high = min(max(x.place[a] + x.length[a] - first, 0), span);
        bits &= shared.places.below[a][word][high] & ~shared.places.below[a][word][low];
      } else {
        for (uint32_t left = bits; left; left &= left - 1) {
          const int i = __ffs(left) - 1;
          int at[3];
          coordinates(rule, begin + i, rule.k_tile, rule.k_tiles, at);
          const int place = axis_place(rule, a, at[a]);
          if (place < x.place[a] || place >= x.place[a] + x.length[a]) bits &= ~(1u << i);
        }
      }
    }
    if (rule.segment_q) {
      const int segment = static_cast<int>(segment_of_query(p, w.b, x.token));
      for (uint32_t left = bits; left; left &= left - 1) {
        const int i = __ffs(left) - 1;
        if (static_cast<int>(segment_of_key(p, w.b, begin + i)) != segment) bits &= ~(1u << i);
      }
    }
    if (rule.bitmap) {
      const uint8_t* row =
          rule.bitmap + w.b * rule.bitmap_b + w.h * rule.bitmap_h + (w.row0 + r) * rule.bitmap_n;
      uint32_t map = 0;
      for (int i = 0; i < 4; ++i)
        if (begin + 8 * i < p.m) map |= static_cast<uint32_t>(row[(begin >> 3) + i]) << (8 * i);
      bits &= map;
    }
  }
  if (p.key_valid)
    for (uint32_t left = bits; left; left &= left - 1) {
      const int i = __ffs(left) - 1;
      if (!p.key_valid[w.b * p.key_valid_b + static_cast<int64_t>(begin + i) * p.key_valid_m])
        bits &= ~(1u << i);
    }
  return bits;
}

/// Both warps: the tables of tile-major neighbourhoods. A word of 32 keys lies inside one tile, where it
/// shows the same coordinates in every tile: tile_below holds, for each axis, each threshold x of 0 ... tile
/// size and each word of a tile, the columns whose coordinate inside the tile is below x.
template <class Shared>
__device__ void tabulate_tile(const Params& p, const HopperPlan& plan, Shared& shared, int warp) {
  const int lane = threadIdx.x % 32, words = plan.tile_words;
  int inner = plan.tile_words * 32, at = 0;
  for (int a = 0; a < p.rule.rank; ++a) {
    const int size = p.rule.k_tile[a];
    inner /= size;
    for (int word = warp; word < words; word += kMaskThreads / 32) {
      const int place = (word * 32 + lane) / inner % size;
      for (int x = 0; x <= size; ++x) {
        const uint32_t bits = __ballot_sync(kAllLanes, place < x);
        if (lane == 0) shared.tile_below[at + x * words + word] = bits;
      }
    }
    at += (size + 1) * words;
  }
}

/// A half of keys inside its tile: the tile's first place on each axis, and the half's first word of the
/// tile.
struct TileHalf {
  Half half;
  int base[3] = {}, word = 0;
};
__device__ __forceinline__ TileHalf locate(const Params& p, const HopperPlan& plan, const Half& half) {
  const int tokens = plan.tile_words * 32, tile = half.slot / tokens;
  TileHalf there{half};
  there.word = (half.slot - tile * tokens) / 32;
  int x[3] = {};
  coordinates(p.rule, tile * tokens, p.rule.k_tile, p.rule.k_tiles, x);
#pragma unroll
  for (int a = 0; a < 3; ++a)
    if (a < p.rule.rank) there.base[a] = axis_place(p.rule, a, x[a]);
  return there;
}
/// Both words of a half for a row, from the tables.
template <class Shared>
__device__ __forceinline__ uint2 tile_bits(const Params& p, const HopperPlan& plan, const Shared& shared,
                                           const RowLimits& row, const TileHalf& there) {
  uint2 bits{};
  const int slot = there.half.slot;
  if (there.half.kind == kUnderRule) {
    bits = {~0u, ~0u};
    const uint32_t* table = shared.tile_below + there.word;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a >= p.rule.rank) break;
      const int size = p.rule.k_tile[a], low = row.place[a] - there.base[a];
      const int from = min(max(low, 0), size), to = min(max(low + row.length[a], 0), size);
      const uint2 before = *reinterpret_cast<const uint2*>(table + from * plan.tile_words);
      const uint2 inside = *reinterpret_cast<const uint2*>(table + to * plan.tile_words);
      bits.x &= inside.x & ~before.x, bits.y &= inside.y & ~before.y;
      table += (size + 1) * plan.tile_words;
    }
    if (!plan.pure) {
      bits.x &= range_bits(row.low, row.high, slot) | range_bits(row.row_low, row.sink_high, slot);
      bits.y &= range_bits(row.low, row.high, slot + 32) | range_bits(row.row_low, row.sink_high, slot + 32);
    }
  } else if (there.half.kind == kFull) {
    bits.x = range_bits(row.row_low, row.row_high, slot);
    bits.y = range_bits(row.row_low, row.row_high, slot + 32);
  }
  return bits;
}
/// Words of all masked steps of a walk from the tables. Where halves lie takes divisions: every lane finds
/// that out for one of the next 32.
template <int Dim, int Groups>
__device__ __forceinline__ void write_tile_words(const Params& p, const HopperPlan& plan,
                                                 HopperShared<Dim, Groups>& shared, const Walk& w, int thread,
                                                 Ring<kStages>& stage) {
  using C = HopperTile<Dim, Groups>;
  const auto block = [&](HalfKind kind, int entry) {
    const DeviceList& list = kind == kFull ? p.full : p.partial;
    const int64_t at = static_cast<int64_t>(kind == kFull ? w.full_begin : w.partial_begin) + entry;
    return at < list.size ? list.index[at * list.step] : -1;
  };
  TileHalf mine;
  for (int s = 0; s < w.masked; ++s) {
    if (s * C::kHalves % 32 == 0) {
      const int at = s * C::kHalves + thread % 32, step = at / C::kHalves;
      mine = {};
      if (step < w.masked) mine = locate(p, plan, half_of<C::kKeys>(p, w, step, at % C::kHalves, block));
    }
    TileHalf halves[C::kHalves];
#pragma unroll
    for (int i = 0; i < C::kHalves; ++i) {
      const int from = s * C::kHalves % 32 + i;
      halves[i].half.slot = __shfl_sync(kAllLanes, mine.half.slot, from);
      halves[i].half.kind =
          static_cast<HalfKind>(__shfl_sync(kAllLanes, static_cast<int>(mine.half.kind), from));
      halves[i].word = __shfl_sync(kAllLanes, mine.word, from);
#pragma unroll
      for (int a = 0; a < 3; ++a) halves[i].base[a] = __shfl_sync(kAllLanes, mine.base[a], from);
    }
    hopper::barrier_wait(shared_address(&shared.words_empty[stage.index]), stage.phase ^ 1);
    for (int r = thread; r < C::kRows; r += kMaskThreads)
#pragma unroll
      for (int i = 0; i < C::kHalves; ++i)
        *reinterpret_cast<uint2*>(&shared.words[stage.index][r][2 * i]) =
            tile_bits(p, plan, shared, shared.rows[r], halves[i]);
    hopper::barrier_arrive(shared_address(&shared.words_full[stage.index]));
    stage.next();
  }
}

/// Words of all masked steps of a walk, whatever the rule.
template <int Dim, int Groups>
__device__ __forceinline__ void write_words(const Params& p, HopperShared<Dim, Groups>& shared, const Walk& w,
                                            int walk, int thread, Ring<kStages>& stage) {
  using C = HopperTile<Dim, Groups>;
  WalkLists lists(p, shared, walk);
  for (int s = 0; s < w.masked; ++s) {
    Half halves[C::kHalves];
#pragma unroll
    for (int i = 0; i < C::kHalves; ++i) halves[i] = half_of<C::kKeys>(p, w, lists, s, i);
    if (p.rule.rank > 0) {
      hopper::named_sync(kMaskBarrier, kMaskThreads);
#pragma unroll
      for (int word = 0; word < C::kWords; ++word)
        if (word % 2 == thread / 32 && halves[word / 2].kind == kUnderRule)
          tabulate_places(p, shared, word, halves[word / 2].slot + word % 2 * 32);
      hopper::named_sync(kMaskBarrier, kMaskThreads);
    }
    hopper::barrier_wait(shared_address(&shared.words_empty[stage.index]), stage.phase ^ 1);
    for (int at = thread; at < C::kRows * C::kWords; at += kMaskThreads) {
      const int r = at / C::kWords, word = at % C::kWords;
      Half half = halves[0];
      if (C::kHalves == 2 && word >= 2) half = halves[C::kHalves - 1];
      shared.words[stage.index][r][word] =
          visible_word(p, shared, w, r, word, half.slot + word % 2 * 32, half.kind);
    }
    hopper::barrier_arrive(shared_address(&shared.words_full[stage.index]));
    stage.next();
  }
}

template <int Dim, int Groups>
__device__ __forceinline__ void write_masks(const Params& p, const HopperPlan& plan,
                                            HopperShared<Dim, Groups>& shared) {
  using C = HopperTile<Dim, Groups>;
  const int thread = threadIdx.x - 64;
  Ring<kWalks> tile;
  Ring<kStages> stage;
  if (plan.tile_words > 0) tabulate_tile(p, plan, shared, thread / 32);
  for (;; tile.next()) {
    hopper::barrier_wait(shared_address(&shared.walk_full[tile.index]), tile.phase);
    const Walk& w = shared.walk[tile.index];
    if (w.stop) return;
    if (plan.simple) {
      if (w.masked > 0)
        for (int r = thread; r < C::kRows; r += kMaskThreads) {
          RowLimits x;
          if (w.row0 + r < p.n) x = row_limits(p, w.b, w.h, w.row0 + r);
          shared.ranges[tile.index][r] = {x.low, x.high, x.row_low, x.sink_high, x.row_high};
        }
      hopper::barrier_arrive(shared_address(&shared.ranges_full[tile.index]));
    } else if (w.masked > 0) {
      hopper::named_sync(kMaskBarrier, kMaskThreads);  // the rows of the last tile have been read
      for (int r = thread; r < C::kRows; r += kMaskThreads)
        shared.rows[r] = w.row0 + r < p.n ? row_limits(p, w.b, w.h, w.row0 + r) : RowLimits{};
      hopper::named_sync(kMaskBarrier, kMaskThreads);
      if (plan.tile_words > 0)
        write_tile_words<Dim, Groups>(p, plan, shared, w, thread, stage);
      else
        write_words<Dim, Groups>(p, shared, w, tile.index, thread, stage);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::barrier_arrive(shared_address(&shared.walk_empty[tile.index]));
  }
}

// --- the consumers ---

/// Bases and sums for rows lane / 4 and lane / 4 + 8 of a warp.
struct SoftmaxState {
  float base[2] = {-INFINITY, -INFINITY};  ///< a raw score that weights are relative to, near the maximum
  float sum[2] = {0, 0};                   ///< of this thread's columns
  float logs[2] = {0, 0};                  ///< of w log2 w, weights of this thread's columns
};

/// Scores become weights 2^(to_log2 * (s - base)). The base follows the maximum once that is more than
/// `slack` log2 units above it: weights stay far below what their type holds, and most tiles leave the older
/// ones alone. True when some row of the warp moved; then `share` is what the older weights are multiplied
/// by.
template <bool Masked, bool Entropy, int Count>
__device__ __forceinline__ bool weigh(float (&s)[Count], SoftmaxState& state, float (&share)[2],
                                      float to_log2, float slack) {
  bool any = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Two chains of maxima: half the depth.
    float a = s[2 * r], b = s[4 + 2 * r];
#pragma unroll
    for (int i = 0; i < Count; i += 8) {
      a = fmaxf(a, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
      b = fmaxf(b, fmaxf(s[i + 4 + 2 * r], s[i + 5 + 2 * r]));
    }
    float top = fmaxf(a, b);
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    // Equal infinities differ by NaN, which moves nothing. No branches: exponentials of both rows follow at
    // once.
    const bool moved = (top - state.base[r]) * to_log2 > slack;
    const float now = moved ? top : state.base[r];
    const float away = (state.base[r] - now) * to_log2;
    share[r] = moved ? exp2_fast(away) : 1.0f;
    if constexpr (Entropy)
      state.logs[r] =
          share[r] * (state.logs[r] + (moved && state.base[r] != -INFINITY ? away * state.sum[r] : 0.0f));
    state.base[r] = now;
    any |= moved;
    // A row that saw nothing yet: any finite base gives weights of zero.
    const float base = (Masked && now == -INFINITY ? 0.0f : now) * to_log2;
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
      const float x = s[i + 2 * r] * to_log2 - base, y = s[i + 2 * r + 1] * to_log2 - base;
      s[i + 2 * r] = exp2_fast(x), s[i + 2 * r + 1] = exp2_fast(y);
      even += s[i + 2 * r], odd += s[i + 2 * r + 1];
      if constexpr (Entropy) {
        state.logs[r] += s[i + 2 * r] == 0.0f ? 0.0f : s[i + 2 * r] * x;
        state.logs[r] += s[i + 2 * r + 1] == 0.0f ? 0.0f : s[i + 2 * r + 1] * y;
      }
    }
    state.sum[r] = state.sum[r] * share[r] + (even + odd);
  }
  return __any_sync(kAllLanes, any);
}

/// Weights as the left operand of the next product.
template <class T, int Count>
__device__ __forceinline__ void pack_weights(const float (&s)[Count], uint32_t (&weights)[Count / 2]) {
#pragma unroll
  for (int i = 0; i < Count / 2; ++i) weights[i] = pack(s[2 * i], s[2 * i + 1], T{});
}

/// Hides the columns whose bits are clear: 32 scores of two rows, of which this lane holds 16.
__device__ __forceinline__ void hide(float* s, uint32_t row0, uint32_t row1) {
  const int shift = threadIdx.x % 4 * 2;
  row0 >>= shift, row1 >>= shift;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float* x = s + 4 * j;
    if (!(row0 >> (8 * j) & 1)) x[0] = -INFINITY;
    if (!(row0 >> (8 * j) & 2)) x[1] = -INFINITY;
    if (!(row1 >> (8 * j) & 1)) x[2] = -INFINITY;
    if (!(row1 >> (8 * j) & 2)) x[3] = -INFINITY;
  }
}

template <class T, int Dim, int Groups, bool Terms>
struct Consumer {
  using C = HopperTile<Dim, Groups>;
  const Params& p;
  const HopperPlan& plan;
  HopperShared<Dim, Groups>& shared;
  const int group, lane, warp;  // warp of the group
  Ring<kStages> k, v, words;
  Ring<C::kQBuffers> rows;
  Ring<kWalks> tile;
  float s[C::kKeys / 2] = {};
  float o[Dim / 2] = {};
  uint32_t weights[C::kKeys / 4] = {};
  SoftmaxState state;

  __device__ __forceinline__ void issue_scores(uint32_t q) {
    const uint64_t rows = hopper::descriptor(q, 16);
    const uint64_t keys = hopper::descriptor(shared_address(shared.k[k.index]), 16);
#pragma unroll
    for (int i = 0; i < Dim / 16; ++i)
      hopper::Product<T, C::kKeys>::shared(s, rows + (i / 4 * C::kRows * kRowBytes + i % 4 * 32) / 16,
                                           keys + (i / 4 * C::kKeys * kRowBytes + i % 4 * 32) / 16, i > 0);
    hopper::product_commit();
  }
  __device__ __forceinline__ void issue_values(bool add) {
    const uint64_t values = hopper::descriptor(shared_address(shared.v[v.index]), C::kKeys * kRowBytes);
#pragma unroll
    for (int i = 0; i < C::kKeys / 16; ++i)
      hopper::Product<T, Dim>::registers(o, weights + 4 * i, values + i * 16 * kRowBytes / 16, i > 0 || add);
    hopper::product_commit();
  }
  __device__ __forceinline__ void release(uint64_t& barrier) {
    __syncwarp();
    if (lane == 0) hopper::barrier_arrive(shared_address(&barrier));
  }
  /// Scores are there: their keys are given back, and what they were is kept for the mask.
  template <int Left>
  __device__ __forceinline__ void take_scores(bool masked, Half (&halves)[C::kHalves]) {
    hopper::product_wait<Left>();
    hopper::pin(s);
    if (Terms || (masked && plan.simple))
#pragma unroll
      for (int i = 0; i < C::kHalves; ++i) {
        // Read by the lane that gives the stage back.
        const Half mine = lane == 0 ? shared.halves[k.index][i] : Half{};
        halves[i].slot = __shfl_sync(kAllLanes, mine.slot, 0);
        halves[i].kind = static_cast<HalfKind>(__shfl_sync(kAllLanes, static_cast<int>(mine.kind), 0));
      }
    release(shared.k_empty[k.index]);
    k.next();
  }
  /// f(score, row, key) for all scores of this thread.
  template <class F>
  __device__ __forceinline__ void each_score(const Half (&halves)[C::kHalves], int row0, const F& f) {
    const int row = row0 + group * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < C::kHalves; ++i)
#pragma unroll
      for (int at = 0; at < 32; ++at)
        f(s[32 * i + at], row + at / 2 % 2 * 8, halves[i].slot + lane % 4 * 2 + at / 4 * 8 + at % 2);
  }
  /// Raw products become scores in log2 units. One pass for each kind of term: most calls have one, and a
  /// pass that is not needed is one branch.
  __device__ __forceinline__ void add_terms(const Half (&halves)[C::kHalves]) {
    const Walk& w = shared.walk[tile.index];
    const int n = static_cast<int>(p.n), m = static_cast<int>(p.m), offset = m - n;
    if (p.soft_cap > 0)
      each_score(halves, w.row0,
                 [&](float& x, int, int) { x = p.soft_cap * tanhf(x * p.scale / p.soft_cap); });
    else
      each_score(halves, w.row0, [&](float& x, int, int) { x *= p.scale; });
    if (p.slope) {
      const float slope = p.slope[w.h * p.slope_step];
      each_score(halves, w.row0,
                 [&](float& x, int i, int j) { x -= slope * static_cast<float>(abs(j - i - offset)); });
    }
    if (p.relative) {
      const float* table = p.relative + w.h * p.relative_h;
      const int reach = static_cast<int>(min(p.reach, static_cast<int64_t>(INT32_MAX / 2)));
      each_score(halves, w.row0, [&](float& x, int i, int j) {
        x += table[(min(max(j - i - offset, -reach), reach) + reach) * p.relative_step];
      });
    }
    const auto add_bias = [&](const auto* bias) {
      bias += w.b * p.bias_b + w.h * p.bias_h;
      each_score(halves, w.row0, [&](float& x, int i, int j) {
        if (i < n && j < m) x += to_float(bias[i * p.bias_n + j * p.bias_m]);
      });
    };
    if (p.bias_type == BiasType::f32)
      add_bias(static_cast<const float*>(p.bias));
    else if (p.bias_type != BiasType::none)
      add_bias(static_cast<const T*>(p.bias));
    each_score(halves, w.row0, [&](float& x, int, int) { x *= kLog2e; });
  }
  __device__ __forceinline__ void mask(const Half (&halves)[C::kHalves]) {
    const int r = group * 64 + warp * 16 + lane / 4;
    if (!plan.simple) {
      hopper::barrier_wait(shared_address(&shared.words_full[words.index]), words.phase);
#pragma unroll
      for (int word = 0; word < C::kWords; ++word)
        hide(s + 16 * word, shared.words[words.index][r][word], shared.words[words.index][r + 8][word]);
      hopper::barrier_arrive(shared_address(&shared.words_empty[words.index]));  // every lane has read
      words.next();
      return;
    }
    hopper::barrier_wait(shared_address(&shared.ranges_full[tile.index]), tile.phase);
    const RowRange *x = &shared.ranges[tile.index][r], *y = x + 8;
#pragma unroll
    for (int word = 0; word < C::kWords; ++word) {
      const Half& half = halves[word / 2];
      const int begin = half.slot + word % 2 * 32;
      uint32_t a = 0, b = 0;
      if (half.kind == kUnderRule) {
        a = range_bits(x->low, x->high, begin), b = range_bits(y->low, y->high, begin);
        if (p.rule.sinks > 0)
          a |= range_bits(x->row_low, x->sink_high, begin), b |= range_bits(y->row_low, y->sink_high, begin);
      } else if (half.kind == kFull) {
        a = range_bits(x->row_low, x->row_high, begin), b = range_bits(y->row_low, y->row_high, begin);
      }
      hide(s + 16 * word, a, b);
    }
  }
  __device__ __forceinline__ void take_turn() {
    if constexpr (C::kTurns) hopper::named_sync(kTurnBarrier + group, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (C::kTurns) hopper::named_arrive(kTurnBarrier + (group + 1) % Groups, 256);
  }

  __device__ __forceinline__ void wait_keys() {
    hopper::barrier_wait(shared_address(&shared.k_full[k.index]), k.phase);
  }
  __device__ __forceinline__ void issue_first(uint32_t q) {
    hopper::pin(s);
    hopper::product_fence();
    issue_scores(q);
  }
  /// The first weights of a tile, if there is one.
  __device__ __forceinline__ void first_step(bool more) {
    const bool masked = more && shared.walk[tile.index].masked > 0;
    Half halves[C::kHalves];
    take_scores<0>(masked, halves);
    if (Terms && more) add_terms(halves);
    if (masked) mask(halves);
    float share[2];
    weigh<true, Terms>(s, state, share, plan.to_log2, plan.slack);
    pack_weights<T>(s, weights);
  }
  template <bool Masked>
  __device__ __forceinline__ void step(uint32_t q, bool add, bool masked = Masked) {
    take_turn();
    wait_keys();
    hopper::pin(s);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_scores(q);
    hopper::barrier_wait(shared_address(&shared.v_full[v.index]), v.phase);
    hopper::product_fence();
    issue_values(add);
    pass_turn();
    Half halves[C::kHalves];
    take_scores<1>(masked, halves);
    if constexpr (Terms) add_terms(halves);
    if (Masked && masked) mask(halves);
    float share[2];
    const bool moved = weigh<Masked, Terms>(s, state, share, plan.to_log2, plan.slack);
    take_values<0>();
    pack_weights<T>(s, weights);
    if (moved) {
#pragma unroll
      for (int i = 0; i < Dim / 2; ++i) o[i] *= share[i / 2 % 2];
    }
  }
  /// The last step of a tile: its last product runs under the first weights of the next tile. Behind the last
  /// tile of all the scores are of whatever lies there, and nobody reads them: a branch around their product
  /// would make the compiler wait for every product alone.
  __device__ __forceinline__ void border(bool add, int buffer, int walk, bool more) {
    const bool masked = more && shared.walk[tile.index].masked > 0;
    take_turn();
    if (more) wait_keys();
    hopper::pin(s);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_scores(rows_address());
    hopper::barrier_wait(shared_address(&shared.v_full[v.index]), v.phase);
    hopper::product_fence();
    issue_values(add);
    pass_turn();
    SoftmaxState next;
    Half halves[C::kHalves];
    take_scores<1>(masked, halves);
    if (Terms && more) add_terms(halves);
    if (masked) mask(halves);
    float share[2];
    weigh<true, Terms>(s, next, share, plan.to_log2, plan.slack);
    take_values<0>();
    pack_weights<T>(s, weights);
    write_out(buffer, walk);
    state = next;
  }
  __device__ __forceinline__ void issue_last(bool add) {
    hopper::barrier_wait(shared_address(&shared.v_full[v.index]), v.phase);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_values(add);
  }
  template <int Left>
  __device__ __forceinline__ void take_values() {
    hopper::product_wait<Left>();
    hopper::pin(o);
    hopper::pin(weights);
    release(shared.v_empty[v.index]);
    v.next();
  }

  /// o / sum into the consumer's own rows of Q's buffer, from where they leave for memory.
  __device__ __forceinline__ void finish(const Walk& w, uint8_t* q, uint64_t& o_full) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[r], logs = 0;
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if constexpr (Terms) {
        logs = state.logs[r];
        logs += __shfl_xor_sync(kAllLanes, logs, 1);
        logs += __shfl_xor_sync(kAllLanes, logs, 2);
      }
      const int slot = w.row0 + group * 64 + warp * 16 + lane / 4 + 8 * r;
      const bool there = slot < p.n;
      const float weight = finish_row(p, w.b, w.h, there ? slot : 0, state.base[r] * plan.to_log2, sum, logs,
                                      there && lane % 4 == 0);
#pragma unroll
      for (int i = 2 * r; i < Dim / 2; i += 4) o[i] *= weight, o[i + 1] *= weight;
    }
    if (Terms || w.masked > 0) {
      // Hidden pairs have weight zero, and 0 * v is NaN where v is not finite. Rows that look like that run
      // again, pair by pair, after this kernel.
      float zero = 0;
#pragma unroll
      for (int i = 0; i < Dim / 2; ++i) zero = fmaf(o[i], 0.0f, zero);
      if (__any_sync(kAllLanes, !(zero == 0)) && lane == 0)
        p.repairs[1 + atomicAdd(p.repairs, 1)] = (w.b * static_cast<int>(p.heads) + w.h) * p.repair_groups +
                                                 (w.row0 + group * 64 + warp * 16) / 16;
    }
    // All four warps are done with Q; then each writes its own 16 rows.
    hopper::named_sync(kGroupBarrier + group, 128);
    const uint32_t to = shared_address(q);
    const int row0 = group * 64 + warp * 16;
#pragma unroll
    for (int c = 0; c < Dim / 16; ++c) {
      // Lanes name rows of four 8 x 8 matrices: rows 0-7 and 8-15 of columns 16 c, then of columns 16 c + 8.
      const int row = row0 + lane % 16, chunk = 2 * c + lane / 16;
      const uint32_t at = to + (chunk / 8 * C::kRows + row) * kRowBytes + ((chunk % 8) ^ (row & 7)) * 16;
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                   "r"(pack(o[8 * c], o[8 * c + 1], T{})), "r"(pack(o[8 * c + 2], o[8 * c + 3], T{})),
                   "r"(pack(o[8 * c + 4], o[8 * c + 5], T{})), "r"(pack(o[8 * c + 6], o[8 * c + 7], T{}))
                   : "memory");
    }
    hopper::fence_async_proxy();
    release(o_full);
  }

  __device__ __forceinline__ bool wait_tile() {
    // Its rows are loaded after the decision, so this adds no waiting; it makes the decision's words this
    // warp's.
    hopper::barrier_wait(shared_address(&shared.walk_full[tile.index]), tile.phase);
    hopper::barrier_wait(shared_address(&shared.q_full[rows.index]), rows.phase);
    return !shared.walk[tile.index].stop;
  }
  __device__ __forceinline__ uint32_t rows_address() {
    return shared_address(shared.q[rows.index]) + group * kHalfBytes;
  }
  __device__ __forceinline__ void write_out(int q, int walk) {
    finish(shared.walk[walk], shared.q[q], shared.o_full[q]);
    release(shared.walk_empty[walk]);
  }

  __device__ __forceinline__ void run() {
    if (C::kTurns && group == Groups - 1) hopper::named_arrive(kTurnBarrier, 256);
    bool more = wait_tile();
    if (!more) return;
    wait_keys();
    issue_first(rows_address());
    first_step(true);
    while (more) {
      const int walk = tile.index, buffer = rows.index;
      const uint32_t q = rows_address();
      const int steps = shared.walk[walk].steps, masked = shared.walk[walk].masked;
      if constexpr (Terms) {
        for (int i = 1; i < steps; ++i) step<true>(q, i > 1, i < masked);
      } else {
        for (int i = 1; i < masked; ++i) step<true>(q, i > 1);
        for (int i = masked > 1 ? masked : 1; i < steps; ++i) step<false>(q, i > 1);
      }
      if constexpr (C::kQBuffers > 1) {
        rows.next(), tile.next();
        more = wait_tile();
        border(steps > 1, buffer, walk, more);
      } else {
        issue_last(steps > 1);
        take_values<0>();
        write_out(buffer, walk);
        rows.next(), tile.next();
        more = wait_tile();
        if (more) wait_keys();
        issue_first(rows_address());
        state = {};
        first_step(more);
      }
    }
  }
};

template <class T, int Dim, int Groups, bool Terms>
__global__ void __launch_bounds__(HopperTile<Dim, Groups>::kThreads, HopperTile<Dim, Groups>::kBlocksPerSm)
    attention_hopper(const __grid_constant__ Params p, const __grid_constant__ HopperPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using C = HopperTile<Dim, Groups>;
  extern __shared__ uint8_t raw[];
  auto& shared =
      *reinterpret_cast<HopperShared<Dim, Groups>*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kQBuffers; ++i) {
      hopper::barrier_init(shared_address(&shared.q_full[i]), 1);
      hopper::barrier_init(shared_address(&shared.q_empty[i]), 1);
      hopper::barrier_init(shared_address(&shared.o_full[i]), 4 * Groups);
    }
    for (int i = 0; i < kWalks; ++i) {
      hopper::barrier_init(shared_address(&shared.walk_full[i]), 32);
      hopper::barrier_init(shared_address(&shared.walk_empty[i]), 4 * Groups + 1 + kMaskThreads / 32);
      hopper::barrier_init(shared_address(&shared.ranges_full[i]), kMaskThreads);
    }
    for (int i = 0; i < kStages; ++i) {
      hopper::barrier_init(shared_address(&shared.k_full[i]), 1);
      hopper::barrier_init(shared_address(&shared.v_full[i]), 1);
      hopper::barrier_init(shared_address(&shared.k_empty[i]), 4 * Groups);
      hopper::barrier_init(shared_address(&shared.v_empty[i]), 4 * Groups);
      hopper::barrier_init(shared_address(&shared.words_full[i]), kMaskThreads);
      hopper::barrier_init(shared_address(&shared.words_empty[i]), 128 * Groups);
    }
    hopper::fence_barrier_init();
  }
  __syncthreads();
  // Shuffled, so that the compiler knows it to be the same for a whole warp.
  const int warpgroup = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    hopper::give_registers<C::kProducerRegisters>();
    if (threadIdx.x < 32)
      load_tiles<Dim, Groups>(p, plan, shared);
    else if (threadIdx.x < 64)
      decide<Dim, Groups>(p, plan, shared);
    else
      write_masks<Dim, Groups>(p, plan, shared);
  } else {
    hopper::take_registers<C::kConsumerRegisters>();
    Consumer<T, Dim, Groups, Terms> consumer{p,
                                             plan,
                                             shared,
                                             warpgroup - 1,
                                             static_cast<int>(threadIdx.x % 32),
                                             static_cast<int>(threadIdx.x / 32 % 4)};
    consumer.run();
  }
#endif
}

template <class T, int Dim, int Groups, bool Terms>
void launch_kernel(Context& ctx, const Params& p, const HopperPlan& plan) {
  using C = HopperTile<Dim, Groups>;
  const auto kernel = attention_hopper<T, Dim, Groups, Terms>;
  const int bytes = static_cast<int>(sizeof(HopperShared<Dim, Groups>)) + 1024;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int blocks = std::min(cuda_of(ctx).sm_count() * C::kBlocksPerSm, plan.total);
  kernel<<<static_cast<unsigned>(blocks), C::kThreads, static_cast<size_t>(bytes), stream_of(ctx)>>>(p, plan);
  CUDA_CHECK_LAUNCH();
}

template <class T, int Dim, int Groups>
void launch_tile(Context& ctx, const Params& p, const HopperPlan& plan) {
  // Three consumers have no registers left for terms: the planner does not ask for them.
  if constexpr (Groups < 3)
    if (plan.terms) return launch_kernel<T, Dim, Groups, true>(ctx, p, plan);
  launch_kernel<T, Dim, Groups, false>(ctx, p, plan);
}

template <class T>
void launch_hopper_type(Context& ctx, const Params& p, const HopperPlan& plan) {
  const int64_t dim = std::max(p.d, p.e);
  if (dim <= 64)
    plan.groups == 1   ? launch_tile<T, 64, 1>(ctx, p, plan)
    : plan.groups == 2 ? launch_tile<T, 64, 2>(ctx, p, plan)
                       : launch_tile<T, 64, 3>(ctx, p, plan);
  else if (dim <= 128)
    plan.groups == 1 ? launch_tile<T, 128, 1>(ctx, p, plan) : launch_tile<T, 128, 2>(ctx, p, plan);
  else
    launch_tile<T, 256, 2>(ctx, p, plan);
}

}  // namespace
}  // namespace attnbench::cuda_attention
