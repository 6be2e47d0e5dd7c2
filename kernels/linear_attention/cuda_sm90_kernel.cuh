// Linear attention on Hopper, for bf16 and f16: warpgroup products, tensor-map copies, one warp that loads
// and one or two warpgroups that compute.
//
// With D = E = 128 a row costs 1 KiB of memory traffic and 90 kFLOP, so memory is the bound: everything here
// serves to read q, k and v once and to keep copies under way.
//
// A block walks chunks of 128 rows of a head. Two warpgroups share the work of 128 value columns twice over:
// of the outputs each computes 64 rows, all columns, so that no score is computed twice; of the state,
// transposed, each keeps 64 value columns (64 x D) in registers in f32 and copies them to shared memory in
// 16 bits once a chunk. They meet in that copy alone, by two mbarriers: `state_full`, when both have written
// it, and `state_free`, when both have read it. Heads of up to 64 columns have one warpgroup, which computes
// both tiles of rows, and two blocks share a multiprocessor. Per chunk and tile of 64 rows:
//     o = lambda^(row + 1) (q S)  +  ((q k^T) weighed) v        S <- lambda^rows S + k^T (weighed v)
// Scores and weighed values go from registers into the next product. Tiles above the diagonal are left out.
// Outputs leave through the warpgroup's own rows of q.
//
// Heads enough to fill the card walk alone. Fewer heads are cut into segments (lengths: cuda_cuts.hpp), which
// blocks take in order: a block sums its segment's k v^T first, then receives the state before its segment,
// passes on the state behind it, and only then walks. Its k and v come from the L2 cache the second time.
// States go from block to block in words of a value and the number of its segment, so that nobody waits for
// fences; every thread receives, adds and passes on its own elements. Blocks draw segments from a counter:
// whoever waits, waits for a block that is running.
//
// Weights are lambda^p with p >= 0, never a quotient. f16 has no range for sums: rows of scores, and states,
// are stored as multiples of a power of two that puts their largest near 2^14; bf16 needs none.
#pragma once
#include "kernels/core/hopper.cuh"
#include "kernels/linear_attention/cuda_cuts.hpp"
#include "kernels/linear_attention/cuda_weights.cuh"

namespace attnbench::cuda_linear {
namespace {

using namespace cuda_attention;  // the PTX functions of mma.cuh

constexpr int kChunk = 128, kTile = 64;  // rows
constexpr int kColumns = 64;             // value columns of a warpgroup
constexpr int kRowBytes = 128;           // of a swizzled row in shared memory: 64 elements
constexpr int kBlockBytes = kChunk * kRowBytes;
constexpr int kStages = 2;
constexpr int kProducerThreads = 128;
constexpr int kGroupBarrier = 1;  // and onwards: named barriers of one warpgroup
constexpr int kBlockBarrier = 3;  // of all that compute
constexpr unsigned kAll = 0xffffffffu;

struct HopperWork {
  CUtensorMap q, k, v;  // [B, H, N, D or E] in boxes of 128 rows and 64 columns
  void* o;
  const float *log_decay, *state_in;  // state_in may be null
  float* state_out;                   // may be null
  ulonglong2* carries;                // [walks][pairs of elements][threads], zero at the start
  int* next;                          // ticket, zero at the start; null: items go round robin
  int64_t o_strides[3];               // B, H, N
  int64_t in_strides[2], out_strides[2];
  int h, n, d, e;
  int tiles_e, walks;  // walks: heads times tiles of value columns
  Cuts cuts;
  int items;  // segments times walks, first segments first
};

template <int kD, int kGroups>
struct Shape90 {
  static constexpr int kThreads = kProducerThreads + 128 * kGroups;
  static constexpr int kBlocksPerSm = kGroups == 1 ? 2 : 1;
  static constexpr int kProducerRegisters = kGroups == 1 ? 40 : 24,
                       kConsumerRegisters = kGroups == 1 ? 216 : 240;
  static constexpr int kKeyBytes = kChunk * kD * 2, kValueBytes = kGroups * kBlockBytes;
  static constexpr int kState = kD / 2;              // elements of the state a thread
  static constexpr int kWidth = kColumns * kGroups;  // value columns of a block
  static_assert(kWidth <= kD);                       // outputs leave through q's rows
};

template <int kD, int kGroups>
struct Shared {
  using S = Shape90<kD, kGroups>;
  alignas(1024) uint8_t q[kStages][S::kKeyBytes];  // o on its way out, too
  alignas(1024) uint8_t k[kStages][S::kKeyBytes];
  alignas(1024) uint8_t v[kStages][S::kValueBytes];
  alignas(1024) uint8_t state[S::kWidth * kD * 2];  ///< columns of 64 d of all value columns
  float power[kGroups][kChunk + 1];                 ///< lambda^0 .. lambda^128
  float slots[kGroups][4];                          ///< largest elements of four warps
  int item[2];
  uint64_t item_full[2], item_empty[2];
  uint64_t q_full[kStages], q_empty[kStages];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t state_full, state_free;
};

/// Counts uses of a ring of two buffers: which one, and the parity of its phase.
struct Ring {
  int index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    index ^= 1;
    if (index == 0) phase ^= 1;
  }
};

/// What an item is.
struct Place {
  int b, head, walk, e0, segment, first, end, chunks;
  bool last;  ///< of the walk's segments: the others' sums are passed on

  __device__ Place(const HopperWork& w, int item) {
    segment = item / w.walks, walk = item - segment * w.walks;
    const int bh = walk / w.tiles_e;
    b = bh / w.h, head = bh - b * w.h;
    first = w.cuts.begin(segment) * kChunk, end = min(w.cuts.begin(segment + 1) * kChunk, w.n);
    chunks = (end - first + kChunk - 1) / kChunk;
    last = segment == w.cuts.segments - 1;
    e0 = walk - bh * w.tiles_e;  // times the columns of a block, by the caller
  }
};

// --- the producer: one thread ---

template <int kD, int kGroups>
__device__ __forceinline__ void load_items(const HopperWork& w, Shared<kD, kGroups>& s) {
  using S = Shape90<kD, kGroups>;
  hopper::prefetch_map(&w.q), hopper::prefetch_map(&w.k), hopper::prefetch_map(&w.v);
  Ring item, q, kv;
  const auto load_keys = [&](const Place& at, int row, bool again) {
    const uint32_t done = shared_address(&s.k_full[kv.index]), to = shared_address(s.k[kv.index]);
    hopper::barrier_wait(shared_address(&s.k_empty[kv.index]), kv.phase ^ 1);
    hopper::barrier_expect(done, S::kKeyBytes);
#pragma unroll
    for (int c = 0; c < kD / 64; ++c)
      again ? hopper::copy_box(to + c * kBlockBytes, &w.k, done, 64 * c, row, at.head, at.b)
            : hopper::copy_box_once(to + c * kBlockBytes, &w.k, done, 64 * c, row, at.head, at.b);
  };
  const auto load_values = [&](const Place& at, int row, bool again) {
    const uint32_t done = shared_address(&s.v_full[kv.index]), to = shared_address(s.v[kv.index]);
    hopper::barrier_wait(shared_address(&s.v_empty[kv.index]), kv.phase ^ 1);
    hopper::barrier_expect(done, S::kValueBytes);
#pragma unroll
    for (int c = 0; c < kGroups; ++c) {
      const int column = (at.e0 * kGroups + c) * kColumns;
      again ? hopper::copy_box(to + c * kBlockBytes, &w.v, done, column, row, at.head, at.b)
            : hopper::copy_box_once(to + c * kBlockBytes, &w.v, done, column, row, at.head, at.b);
    }
  };
  int number = w.next ? atomicAdd(w.next, 1) : static_cast<int>(blockIdx.x);
  for (;; item.next()) {
    hopper::barrier_wait(shared_address(&s.item_empty[item.index]), item.phase ^ 1);
    s.item[item.index] = number;
    hopper::barrier_arrive(shared_address(&s.item_full[item.index]));
    if (number >= w.items) return;
    const Place at(w, number);
    number = w.next ? atomicAdd(w.next, 1) : number + static_cast<int>(gridDim.x);
    if (!at.last)
#pragma unroll 1
      for (int c = 0; c < at.chunks; ++c, kv.next()) {
        load_values(at, at.first + c * kChunk, true);
        load_keys(at, at.first + c * kChunk, true);
      }
#pragma unroll 1
    for (int c = 0; c < at.chunks; ++c, q.next(), kv.next()) {
      const int row = at.first + c * kChunk;
      const uint32_t done = shared_address(&s.q_full[q.index]), to = shared_address(s.q[q.index]);
      hopper::barrier_wait(shared_address(&s.q_empty[q.index]), q.phase ^ 1);
      hopper::barrier_expect(done, S::kKeyBytes);
#pragma unroll
      for (int i = 0; i < kD / 64; ++i)
        hopper::copy_box_once(to + i * kBlockBytes, &w.q, done, 64 * i, row, at.head, at.b);
      load_keys(at, row, false);
      load_values(at, row, false);
    }
  }
}

// --- the consumers ---

/// Warpgroup `group` of kGroups: its tiles of rows of the outputs, its columns of the state.
template <class T, int kD, int kGroups, int group>
struct Consumer {
  using S = Shape90<kD, kGroups>;
  static constexpr bool kScaled = std::is_same_v<T, __half>;
  static constexpr int kWidth = S::kWidth;
  static constexpr int kUpper = kGroups == 1 ? 1 : group;  // the tile of rows that is computed first
  const HopperWork& w;
  Shared<kD, kGroups>& s;
  int thread;  // of the group
  Ring item, q, kv;
  uint32_t published = 0;       // the parity of the state that is read next
  float state[S::kState] = {};  // [value column][d]: rows lane / 4 and + 8 of the warp's 16
  int state_shift = 0;          // the state in shared memory counts 2^state_shift

  __device__ __forceinline__ int lane() const { return thread % 32; }
  __device__ __forceinline__ int warp() const { return thread / 32; }
  /// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
  static __device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                                        uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
  }
  /// Two 64-bit words, each of them read or written whole, from and to where all blocks see them.
  static __device__ __forceinline__ ulonglong2 load_words(const ulonglong2* from) {
    ulonglong2 x;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                 : "=l"(x.x), "=l"(x.y)
                 : "l"(from)
                 : "memory");
    return x;
  }
  static __device__ __forceinline__ void store_words(ulonglong2* to, ulonglong2 x) {
    asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(x.x), "l"(x.y) : "memory");
  }
  static __device__ __forceinline__ uint64_t word(float x, uint32_t tag) {
    return static_cast<uint64_t>(tag) << 32 | __float_as_uint(x);
  }

  __device__ __forceinline__ void release(uint64_t& barrier) {
    __syncwarp();
    if (lane() == 0) hopper::barrier_arrive(shared_address(&barrier));
  }
  /// Makes the thread new to the compiler: it would compute all addresses once, ahead of the loops, and
  /// have no registers left for them.
  __device__ __forceinline__ void forget_addresses() { asm volatile("" : "+r"(thread)); }
  __device__ __forceinline__ void gather() { hopper::named_sync(kGroupBarrier + group, 128); }

  // q k^T of 64 rows and 64 keys.
  __device__ __forceinline__ void issue_scores(float (&x)[kTile / 2], uint32_t queries, uint32_t keys) {
    const uint64_t a = hopper::descriptor(queries, 16), b = hopper::descriptor(keys, 16);
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      const int at = (i / 4 * kBlockBytes + i % 4 * 32) / 16;
      hopper::Product<T, kTile>::shared(x, a + at, b + at, i > 0);
    }
  }
  // q S of a tile of queries.
  __device__ __forceinline__ void issue_inherited(float (&o)[kWidth / 2], uint32_t queries) {
    const uint64_t a = hopper::descriptor(queries, 16), b = hopper::descriptor(shared_address(s.state), 16);
#pragma unroll
    for (int i = 0; i < kD / 16; ++i)
      hopper::Product<T, kWidth>::shared(o, a + (i / 4 * kBlockBytes + i % 4 * 32) / 16,
                                         b + (i / 4 * kWidth * kRowBytes + i % 4 * 32) / 16, i > 0);
  }
  // o += weights v over 64 keys.
  __device__ __forceinline__ void issue_values(float (&o)[kWidth / 2], const uint32_t (&weights)[kTile / 4],
                                               uint32_t values) {
    const uint64_t b = hopper::descriptor(values, kBlockBytes);
#pragma unroll
    for (int i = 0; i < kTile / 16; ++i)
      hopper::Product<T, kWidth>::registers(o, weights + 4 * i, b + i * 16 * kRowBytes / 16, 1);
  }
  // state [+]= (weighed v)^T k.
  __device__ __forceinline__ void issue_update(const uint32_t (&values)[kChunk / 4], uint32_t keys,
                                               bool add) {
    const uint64_t b = hopper::descriptor(keys, kBlockBytes);
#pragma unroll
    for (int i = 0; i < kChunk / 16; ++i)
      hopper::Product<T, kD>::registers(state, values + 4 * i, b + i * 16 * kRowBytes / 16, i > 0 || add);
  }

  /// The chunk's values, transposed and times lambda^(rows - 1 - row), as a left operand.
  __device__ __forceinline__ void weigh_values(uint32_t (&to)[kChunk / 4], uint32_t values, int rows) {
    const float* power = s.power[group];
#pragma unroll
    for (int i = 0; i < kChunk / 16; ++i) {
      const int row = 16 * i + lane() % 8 + lane() / 16 * 8, piece = 2 * warp() + lane() / 8 % 2;
      uint32_t x[4];
      load_matrices_transposed(x,
                               values + static_cast<uint32_t>(row * kRowBytes + ((piece ^ (row & 7)) * 16)));
      // Rows that are not there are zero; their weight only has to be a number.
      const int from = rows - 1 - 16 * i - lane() % 4 * 2;
      const float a = power[max(from, 0)], b = power[max(from - 1, 0)], c = power[max(from - 8, 0)],
                  d = power[max(from - 9, 0)];
      to[4 * i] = weigh<T>(x[0], a, b), to[4 * i + 1] = weigh<T>(x[1], a, b);
      to[4 * i + 2] = weigh<T>(x[2], c, d), to[4 * i + 3] = weigh<T>(x[3], c, d);
    }
  }
  /// Scores of 64 rows and 64 keys times lambda^(row - key), as a left operand: on the diagonal, where
  /// scores of later keys become zero, or (kFar) of keys that are 64 rows back. The operand counts 2^shift,
  /// in rows lane / 4 and + 8; factor becomes what is due to sums that counted by the old shift.
  template <bool kFar>
  __device__ __forceinline__ void weigh_scores(float (&x)[kTile / 2], uint32_t (&to)[kTile / 4],
                                               float (&factor)[2], int (&shift)[2]) {
    const int row0 = 16 * warp() + lane() / 4, key0 = lane() % 4 * 2;
    const float* power = s.power[group] + (kFar ? kTile : 0) + row0 - key0;
    float most[2] = {};
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int past = i / 2 * 8 - 8 * j - i % 2;  // row - key, less row0 - key0
        float& y = x[4 * j + i];
        if (kFar)
          y *= power[past];
        else
          y = row0 - key0 + past >= 0 ? y * power[past] : 0.0f;  // 0 also where a query is infinite
        if constexpr (kScaled) most[i / 2] = fmaxf(most[i / 2], fabsf(y));
      }
    factor[0] = factor[1] = 1.0f;
    if constexpr (kScaled) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        most[r] = fmaxf(most[r], __shfl_xor_sync(kAll, most[r], 1));
        most[r] = fmaxf(most[r], __shfl_xor_sync(kAll, most[r], 2));
        // q S is below 2^40 in its unit, so that 60 steps down leave it finite, and scores that are smaller
        // still are nothing beside it; 126 steps up, it is nothing itself.
        const int now = most[r] == 0.0f ? shift[r] : max(range_shift(most[r]), state_shift - 60);
        const float scale = power_of_two(-now);
#pragma unroll
        for (int i = 2 * r; i < kTile / 2; i += 4) x[i] *= scale, x[i + 1] *= scale;
        factor[r] = power_of_two(max(shift[r] - now, -126));
        shift[r] = now;
      }
    }
#pragma unroll
    for (int i = 0; i < kTile / 4; ++i) to[i] = pack(x[2 * i], x[2 * i + 1], T{});
  }
  /// o, which is q S of tile kTileOf, times lambda^(row + 1) and the factors of weigh_scores.
  template <int kTileOf>
  __device__ __forceinline__ void weigh_inherited(float (&o)[kWidth / 2], const float (&factor)[2]) {
    const float* elapsed = s.power[group] + kTile * kTileOf + 16 * warp() + lane() / 4 + 1;
    const float due[2] = {elapsed[0] * factor[0], elapsed[8] * factor[1]};
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) o[i] *= due[i / 2 % 2];
  }
  __device__ __forceinline__ void narrow_outputs(const float (&o)[kWidth / 2], uint32_t (&to)[kWidth / 4],
                                                 const int (&shift)[2]) {
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) {
      const float scale = kScaled ? power_of_two(shift[i % 2]) : 1.0f;
      to[i] = pack(o[2 * i] * scale, o[2 * i + 1] * scale, T{});
    }
  }

  /// The state as an operand, when everybody has read the one before.
  __device__ __forceinline__ void publish() {
    hopper::barrier_wait(shared_address(&s.state_free), published ^ 1);
    float scale = 1.0f;
    if constexpr (kScaled) {
      // One unit for all columns: they are columns of one product.
      float most = 0.0f;
#pragma unroll
      for (int i = 0; i < S::kState; ++i) most = fmaxf(most, fabsf(state[i]));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
      if (lane() == 0) s.slots[group][warp()] = most;
      hopper::named_sync(kBlockBarrier, 128 * kGroups);
#pragma unroll
      for (int i = 0; i < 4 * kGroups; ++i) most = fmaxf(most, s.slots[i / 4][i % 4]);
      state_shift = range_shift(most);
      scale = power_of_two(-state_shift);
    }
    const uint32_t to = shared_address(s.state) + group * kColumns * kRowBytes;
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
      const int row = 16 * warp() + lane() % 16, piece = 2 * c + lane() / 16;
      const float* x = state + 8 * c;
      store_matrices(
          to + static_cast<uint32_t>((piece / 8 * kWidth + row) * kRowBytes + ((piece % 8) ^ (row & 7)) * 16),
          pack(x[0] * scale, x[1] * scale, T{}), pack(x[2] * scale, x[3] * scale, T{}),
          pack(x[4] * scale, x[5] * scale, T{}), pack(x[6] * scale, x[7] * scale, T{}));
    }
    hopper::fence_async_proxy();
    release(s.state_full);
  }
  /// This warp's products with the published state are done.
  __device__ __forceinline__ void forget_published() {
    release(s.state_free);
    published ^= 1;
  }

  /// Outputs of a tile through the warp's rows of its queries, which nobody reads any more.
  template <int kTileOf>
  __device__ __forceinline__ void write_out(const Place& at, const uint32_t (&x)[kWidth / 4], int row,
                                            int rows) {
    constexpr int kPieces = kWidth / 8, kAtOnce = 32 / kPieces;  // 16 bytes each; rows of a warp's access
    const uint32_t buffer = shared_address(s.q[q.index]) + (kTile * kTileOf + 16 * warp()) * kRowBytes;
    gather();  // all warps' products with the queries are done
#pragma unroll
    for (int c = 0; c < kWidth / 16; ++c) {
      const int r = lane() % 16, piece = 2 * c + lane() / 16;
      store_matrices(buffer + static_cast<uint32_t>(piece / 8 * kBlockBytes + r * kRowBytes +
                                                    ((piece % 8) ^ (r & 7)) * 16),
                     x[4 * c], x[4 * c + 1], x[4 * c + 2], x[4 * c + 3]);
    }
    __syncwarp();
    uint4 pieces[16 / kAtOnce];
    const int piece = lane() % kPieces, r0 = lane() / kPieces;
#pragma unroll
    for (int i = 0; i < 16 / kAtOnce; ++i) {
      const int r = i * kAtOnce + r0;
      pieces[i] = load_shared4(buffer + static_cast<uint32_t>(piece / 8 * kBlockBytes + r * kRowBytes +
                                                              ((piece % 8) ^ (r & 7)) * 16));
    }
    if constexpr (kTileOf == 0 || kGroups == 2) {
      // The buffer is given back before the rows leave for memory: the fence would wait for them.
      hopper::fence_async_proxy();
      release(s.q_empty[q.index]);
    }
    const int column = at.e0 * kWidth + piece * 8, first = kTile * kTileOf + 16 * warp() + r0;
    T* out = static_cast<T*>(w.o) + at.b * w.o_strides[0] + at.head * w.o_strides[1] + column;
#pragma unroll
    for (int i = 0; i < 16 / kAtOnce; ++i) {
      const int r = first + i * kAtOnce;
      if (r < rows && column < w.e)
        __stcs(reinterpret_cast<uint4*>(out + static_cast<int64_t>(row + r) * w.o_strides[2]), pieces[i]);
    }
  }

  /// The second tile's product with the first tile's keys, behind its own diagonal's: x holds the scores.
  __device__ __forceinline__ void add_far(float (&x)[kTile / 2], float (&o)[kWidth / 2],
                                          uint32_t (&weights)[kTile / 4], float (&factor)[2], int (&shift)[2],
                                          uint32_t values) {
    weigh_scores<true>(x, weights, factor, shift);
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) o[i] *= factor[i / 2 % 2];
    }
    hopper::pin(x);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_values(o, weights, values);
    hopper::product_commit();
  }

  /// Outputs of a chunk, and, unless it ends the item, the state behind it for the next one. Products run
  /// in the order of issue; what is done in registers between is done under those ahead.
  __device__ __forceinline__ void chunk(const Place& at, int row, int rows) {
    const bool ends = row + rows >= at.end;
    const uint32_t q0 = shared_address(s.q[q.index]), qu = q0 + kUpper * kTile * kRowBytes,
                   k0 = shared_address(s.k[kv.index]), ku = k0 + kUpper * kTile * kRowBytes,
                   v0 = shared_address(s.v[kv.index]), vu = v0 + kUpper * kTile * kRowBytes;
    float x[kTile / 2] = {}, o[kWidth / 2] = {}, factor[2];
    uint32_t weights[kTile / 4], weighed[kChunk / 4], narrowed[kWidth / 4];
    int shift[2];
    forget_addresses();

    hopper::barrier_wait(shared_address(&s.k_full[kv.index]), kv.phase);
    hopper::barrier_wait(shared_address(&s.q_full[q.index]), q.phase);
    hopper::pin(x);
    hopper::product_fence();
    issue_scores(x, qu, ku);
    hopper::product_commit();

    // Under the scores: this warpgroup's columns of the values, for the next state.
    hopper::barrier_wait(shared_address(&s.v_full[kv.index]), kv.phase);
    weigh_values(weighed, v0 + group * kBlockBytes, rows);
    const float kept = s.power[group][rows];
#pragma unroll
    for (int i = 0; i < S::kState; ++i) state[i] *= kept;
    hopper::pin(state);
    hopper::pin(weighed);
    hopper::product_fence();
    issue_update(weighed, k0, true);
    hopper::product_commit();

    // Under the update: the scores' weights. The other warpgroup's half of the state is needed only now.
    hopper::product_wait<1>();
    hopper::pin(x);
    shift[0] = shift[1] = state_shift;
    weigh_scores<false>(x, weights, factor, shift);
    hopper::barrier_wait(shared_address(&s.state_full), published);
    hopper::pin(o);
    hopper::product_fence();
    issue_inherited(o, qu);
    hopper::product_commit();
    hopper::product_wait<1>();
    hopper::pin(state);
    hopper::pin(weighed);
    if constexpr (kUpper == 1) {
      hopper::pin(x);
      hopper::product_fence();
      issue_scores(x, qu, k0);
      hopper::product_commit();
    }
    hopper::product_wait<kUpper>();
    hopper::pin(o);
    if constexpr (kGroups == 2) forget_published();
    weigh_inherited<kUpper>(o, factor);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_values(o, weights, vu);
    hopper::product_commit();
    if constexpr (kUpper == 1) {
      hopper::product_wait<0>();
      hopper::pin(x);
      hopper::pin(o);
      hopper::pin(weights);
      add_far(x, o, weights, factor, shift, v0);
    }
    if constexpr (kGroups == 2) {
      if (!ends) publish();
    }
    hopper::product_wait<0>();
    hopper::pin(o);
    hopper::pin(weights);
    narrow_outputs(o, narrowed, shift);
    if constexpr (kGroups == 1) {
      // The lower tile, whose products run while the upper one leaves.
      hopper::pin(o);
      hopper::pin(x);
      hopper::product_fence();
      issue_scores(x, q0, k0);
      hopper::product_commit();
      issue_inherited(o, q0);
      hopper::product_commit();
      write_out<1>(at, narrowed, row, rows);
      hopper::product_wait<1>();
      hopper::pin(x);
      shift[0] = shift[1] = state_shift;
      weigh_scores<false>(x, weights, factor, shift);
      hopper::product_wait<0>();
      hopper::pin(o);
      forget_published();
      weigh_inherited<0>(o, factor);
      hopper::pin(o);
      hopper::pin(weights);
      hopper::product_fence();
      issue_values(o, weights, v0);
      hopper::product_commit();
      if (!ends) publish();
      hopper::product_wait<0>();
      hopper::pin(o);
      hopper::pin(weights);
      narrow_outputs(o, narrowed, shift);
    }
    release(s.k_empty[kv.index]);
    release(s.v_empty[kv.index]);
    write_out<kGroups == 1 ? 0 : kUpper>(at, narrowed, row, rows);
    q.next(), kv.next();
  }

  /// state = the segment's own sum of k v^T, weighed to its end. The next chunk's values are weighed under
  /// this one's product.
  __device__ __forceinline__ void sum_segment(int rows) {
    Ring ahead = kv;
    const auto weigh_next = [&](uint32_t(&to)[kChunk / 4], int there) {
      forget_addresses();
      hopper::barrier_wait(shared_address(&s.v_full[ahead.index]), ahead.phase);
      weigh_values(to, shared_address(s.v[ahead.index]) + group * kBlockBytes, there);
      release(s.v_empty[ahead.index]);
      ahead.next();
    };
    uint32_t weighed[kChunk / 4], next[kChunk / 4];
    weigh_next(weighed, min(rows, kChunk));
#pragma unroll 1
    for (int done = 0; done < rows; done += kChunk) {
      const float kept = s.power[group][min(rows - done, kChunk)];
#pragma unroll
      for (int i = 0; i < S::kState; ++i) state[i] = done > 0 ? state[i] * kept : 0.0f;
      hopper::barrier_wait(shared_address(&s.k_full[kv.index]), kv.phase);
      hopper::pin(state);
      hopper::pin(weighed);
      hopper::product_fence();
      issue_update(weighed, shared_address(s.k[kv.index]), true);
      hopper::product_commit();
      const int left = rows - done - kChunk;
      if (left > 0) weigh_next(next, min(left, kChunk));
      hopper::product_wait<0>();
      hopper::pin(state);
      hopper::pin(weighed);
      release(s.k_empty[kv.index]);
      kv.next();
#pragma unroll
      for (int i = 0; i < kChunk / 4; ++i) weighed[i] = next[i];
    }
  }

  /// state = what the segment inherits. If it has a successor, pass(i, x) of every element goes on to that
  /// one.
  template <bool kPasses, class F>
  __device__ __forceinline__ void inherit(const Place& at, const F& pass) {
    constexpr int kPairs = S::kState / 2, kBatch = 8, kStep = 128 * kGroups;
    ulonglong2* carry = w.carries + static_cast<int64_t>(at.walk) * kPairs * kStep + group * 128 + thread;
    const auto tag = static_cast<uint32_t>(at.segment);
    if (at.segment == 0) {
      const float* from =
          w.state_in ? w.state_in + at.b * w.in_strides[0] + at.head * w.in_strides[1] : nullptr;
      each(at, [&](float& x, int64_t offset, bool there) { x = from && there ? from[offset] : 0.0f; });
    }
#pragma unroll
    for (int first = 0; first < kPairs; first += kBatch) {
      if (at.segment > 0) {
        ulonglong2 x[kBatch];
        for (;;) {
          bool there = true;
#pragma unroll
          for (int i = 0; i < kBatch; ++i) x[i] = load_words(carry + (first + i) * kStep);
#pragma unroll
          for (int i = 0; i < kBatch; ++i)
            there = there && static_cast<uint32_t>(x[i].x >> 32) == tag &&
                    static_cast<uint32_t>(x[i].y >> 32) == tag;
          if (there) break;
          __nanosleep(32);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          state[2 * (first + i)] = __uint_as_float(static_cast<uint32_t>(x[i].x));
          state[2 * (first + i) + 1] = __uint_as_float(static_cast<uint32_t>(x[i].y));
        }
      }
      if constexpr (kPasses) {
#pragma unroll
        for (int j = 2 * first; j < 2 * (first + kBatch); j += 2)
          store_words(carry + j / 2 * kStep,
                      {word(pass(j, state[j]), tag + 1), word(pass(j + 1, state[j + 1]), tag + 1)});
      }
    }
  }

  /// Calls f(element, its offset in a D x E matrix, whether it is there) for every element of the state.
  template <class F>
  __device__ __forceinline__ void each(const Place& at, const F& f) {
    forget_addresses();
    const int e = (at.e0 * kGroups + group) * kColumns + 16 * warp() + lane() / 4, d = lane() % 4 * 2;
    const bool low = e < w.e, high = e + 8 < w.e;
#pragma unroll
    for (int i = 0; i < S::kState; ++i) {
      const int row = d + i / 4 * 8 + i % 2;
      f(state[i], static_cast<int64_t>(row) * w.e + e + i / 2 % 2 * 8, row < w.d && (i / 2 % 2 ? high : low));
    }
  }

  __device__ __forceinline__ void run() {
    for (;; item.next()) {
      hopper::barrier_wait(shared_address(&s.item_full[item.index]), item.phase);
      const int number = s.item[item.index];
      release(s.item_empty[item.index]);
      if (number >= w.items) return;
      const Place at(w, number);
      const Decay decay(w.log_decay[at.head], true);
      // The last item's powers were read before its last barrier.
      for (int p = thread; p <= kChunk; p += 128) s.power[group][p] = decay.at(p);
      gather();
      if (at.last) {
        inherit<false>(at, [](int, float x) { return x; });
      } else {
        sum_segment(at.end - at.first);
        float own[S::kState];
#pragma unroll
        for (int i = 0; i < S::kState; ++i) own[i] = state[i];
        const float kept = decay.at(at.end - at.first);
        inherit<true>(at, [&](int i, float x) { return kept * x + own[i]; });
      }
      publish();
#pragma unroll 1
      for (int row = at.first; row < at.end; row += kChunk) chunk(at, row, min(at.end - row, kChunk));
      if (at.last && w.state_out) {
        float* to = w.state_out + at.b * w.out_strides[0] + at.head * w.out_strides[1];
        each(at, [&](const float& x, int64_t offset, bool there) {
          if (there) to[offset] = x;
        });
      }
    }
  }
};

template <class T, int kD, int kGroups>
__global__ void __launch_bounds__(Shape90<kD, kGroups>::kThreads, Shape90<kD, kGroups>::kBlocksPerSm)
    chunk_hopper(const __grid_constant__ HopperWork w) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = Shape90<kD, kGroups>;
  extern __shared__ uint8_t raw[];
  auto& s = *reinterpret_cast<Shared<kD, kGroups>*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      hopper::barrier_init(shared_address(&s.item_full[i]), 1);
      hopper::barrier_init(shared_address(&s.item_empty[i]), 4 * kGroups);
    }
    for (int i = 0; i < kStages; ++i) {
      for (uint64_t* full : {&s.q_full[i], &s.k_full[i], &s.v_full[i]})
        hopper::barrier_init(shared_address(full), 1);
      for (uint64_t* empty : {&s.q_empty[i], &s.k_empty[i], &s.v_empty[i]})
        hopper::barrier_init(shared_address(empty), 4 * kGroups);
    }
    hopper::barrier_init(shared_address(&s.state_full), 4 * kGroups);
    hopper::barrier_init(shared_address(&s.state_free), 4 * kGroups);
    hopper::fence_barrier_init();
  }
  __syncthreads();
  // Shuffled, so that the compiler knows it to be the same for a whole warp.
  const int warpgroup = __shfl_sync(kAll, static_cast<int>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    hopper::give_registers<S::kProducerRegisters>();
    if (threadIdx.x == 0) load_items<kD, kGroups>(w, s);
  } else {
    hopper::take_registers<S::kConsumerRegisters>();
    const auto thread = static_cast<int>(threadIdx.x % 128);
    if (kGroups == 1 || warpgroup == 1)
      Consumer<T, kD, kGroups, 0>{w, s, thread}.run();
    else
      Consumer<T, kD, kGroups, kGroups - 1>{w, s, thread}.run();
  }
#endif
}

}  // namespace
}  // namespace attnbench::cuda_linear
