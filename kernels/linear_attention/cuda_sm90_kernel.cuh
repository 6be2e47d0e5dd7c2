// Linear attention on Hopper, for bf16 and f16: warpgroup products, tensor-map copies, one warp that loads
// and one or two warpgroups that compute.
//
// With D = E = 128 a row costs 1 KiB of memory traffic and 110 kFLOP, so memory is the bound: everything here
// serves to read q, k and v once and to keep copies under way.
//
// A warpgroup owns 64 value columns of a head and walks chunks of 128 rows; the two of a block share q and k
// and nothing else, so they never wait for each other. Its part of the state, transposed (64 x D), stays in
// registers in f32 and is copied to shared memory in 16 bits once a chunk. Per chunk and tile of 64 rows:
//     o = lambda^(row + 1) (q S)  +  ((q k^T) weighed) v        S <- lambda^rows S + k^T (weighed v)
// Scores and weighed values go from registers into the next product. Tiles above the diagonal are left out.
//
// Heads enough to fill the card walk alone. Fewer heads are cut into segments, which blocks take in order: a
// block sums its segment's k v^T first (last chunk first, so that what is read last is what is read again),
// then receives the state before its segment, passes on the state behind it, and only then walks. Its k and
// v come from the L2 cache the second time. States go from block to block in words of a value and the number
// of its segment, so that nobody waits for fences; every thread receives, adds and passes on its own
// elements. Blocks draw segments from a counter: whoever waits, waits for a block that is running.
//
// Weights are lambda^p with p >= 0, never a quotient. f16 has no range for sums: rows of scores, and states,
// are stored as multiples of a power of two that puts their largest near 2^14; bf16 needs none.
#pragma once
#include "kernels/core/hopper.cuh"
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
  int tiles_e, walks;     // walks: heads times tiles of value columns
  int segment, segments;  // rows of a segment, a multiple of kChunk
  int items;              // segments times walks, first segments first
};

template <int kD, int kGroups>
struct Shape90 {
  static constexpr int kThreads = kProducerThreads + 128 * kGroups;
  static constexpr int kBlocksPerSm = kGroups == 1 ? 2 : 1;
  static constexpr int kProducerRegisters = kGroups == 1 ? 40 : 24,
                       kConsumerRegisters = kGroups == 1 ? 216 : 240;
  static constexpr int kKeyBytes = kChunk * kD * 2, kValueBytes = kGroups * kBlockBytes;
  static constexpr int kState = kD / 2;  // elements of the state a thread
};

template <int kD, int kGroups>
struct Shared {
  using S = Shape90<kD, kGroups>;
  alignas(1024) uint8_t q[kStages][S::kKeyBytes];
  alignas(1024) uint8_t k[kStages][S::kKeyBytes];
  alignas(1024) uint8_t v[kStages][S::kValueBytes];  // o on its way out, too
  alignas(1024) uint8_t state[kGroups][kColumns * kD * 2];
  float power[kGroups][kChunk + 1];  ///< lambda^0 .. lambda^128
  float slots[kGroups][4];           ///< largest elements of four warps
  int item[2];
  uint64_t item_full[2], item_empty[2];
  uint64_t q_full[kStages], q_empty[kStages];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
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
    first = segment * w.segment, end = min(first + w.segment, w.n);
    chunks = (end - first + kChunk - 1) / kChunk;
    last = segment == w.segments - 1;
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
      for (int c = at.chunks - 1; c >= 0; --c, kv.next()) {
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

template <class T, int kD, int kGroups>
struct Consumer {
  using S = Shape90<kD, kGroups>;
  static constexpr bool kScaled = std::is_same_v<T, __half>;
  const HopperWork& w;
  Shared<kD, kGroups>& s;
  const int group;
  int thread;  // of the group
  Ring item, q, kv;
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
  __device__ __forceinline__ void issue_inherited(float (&o)[kColumns / 2], uint32_t queries) {
    const uint64_t a = hopper::descriptor(queries, 16),
                   b = hopper::descriptor(shared_address(s.state[group]), 16);
#pragma unroll
    for (int i = 0; i < kD / 16; ++i)
      hopper::Product<T, kColumns>::shared(o, a + (i / 4 * kBlockBytes + i % 4 * 32) / 16,
                                           b + (i / 4 * kColumns * kRowBytes + i % 4 * 32) / 16, i > 0);
  }
  // o += weights v over 64 keys.
  __device__ __forceinline__ void issue_values(float (&o)[kColumns / 2], const uint32_t (&weights)[kTile / 4],
                                               uint32_t values) {
    const uint64_t b = hopper::descriptor(values, kBlockBytes);
#pragma unroll
    for (int i = 0; i < kTile / 16; ++i)
      hopper::Product<T, kColumns>::registers(o, weights + 4 * i, b + i * 16 * kRowBytes / 16, 1);
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
  __device__ __forceinline__ void weigh_inherited(float (&o)[kColumns / 2], const float (&factor)[2]) {
    const float* elapsed = s.power[group] + kTile * kTileOf + 16 * warp() + lane() / 4 + 1;
    const float due[2] = {elapsed[0] * factor[0], elapsed[8] * factor[1]};
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) o[i] *= due[i / 2 % 2];
  }
  __device__ __forceinline__ void narrow_outputs(const float (&o)[kColumns / 2], uint32_t (&to)[kColumns / 4],
                                                 const int (&shift)[2]) {
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      const float scale = kScaled ? power_of_two(shift[i % 2]) : 1.0f;
      to[i] = pack(o[2 * i] * scale, o[2 * i + 1] * scale, T{});
    }
  }

  /// The state as an operand. Contains a barrier, behind which the old operand must not be needed; the
  /// caller's next one makes the new one visible.
  __device__ __forceinline__ void publish() {
    float scale = 1.0f;
    if constexpr (kScaled) {
      float most = 0.0f;
#pragma unroll
      for (int i = 0; i < S::kState; ++i) most = fmaxf(most, fabsf(state[i]));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
      if (lane() == 0) s.slots[group][warp()] = most;
    }
    gather();
    if constexpr (kScaled) {
      const float* slots = s.slots[group];
      state_shift = range_shift(fmaxf(fmaxf(slots[0], slots[1]), fmaxf(slots[2], slots[3])));
      scale = power_of_two(-state_shift);
    }
    const uint32_t to = shared_address(s.state[group]);
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
      const int row = 16 * warp() + lane() % 16, piece = 2 * c + lane() / 16;
      const float* x = state + 8 * c;
      store_matrices(to + static_cast<uint32_t>((piece / 8 * kColumns + row) * kRowBytes +
                                                ((piece % 8) ^ (row & 7)) * 16),
                     pack(x[0] * scale, x[1] * scale, T{}), pack(x[2] * scale, x[3] * scale, T{}),
                     pack(x[4] * scale, x[5] * scale, T{}), pack(x[6] * scale, x[7] * scale, T{}));
    }
    hopper::fence_async_proxy();
  }

  /// Outputs of both tiles through the warp's rows of the chunk's values, which nobody reads any more.
  __device__ __forceinline__ void write_out(const Place& at, const uint32_t (&low)[kColumns / 4],
                                            const uint32_t (&high)[kColumns / 4], int row, int rows) {
    const uint32_t buffer = shared_address(s.v[kv.index]) + group * kBlockBytes;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const uint32_t(&x)[kColumns / 4] = tile == 0 ? low : high;
#pragma unroll
      for (int c = 0; c < kColumns / 16; ++c) {
        const int r = kTile * tile + 16 * warp() + lane() % 16, piece = 2 * c + lane() / 16;
        store_matrices(buffer + static_cast<uint32_t>(r * kRowBytes + (piece ^ (r & 7)) * 16), x[4 * c],
                       x[4 * c + 1], x[4 * c + 2], x[4 * c + 3]);
      }
    }
    __syncwarp();
    uint4 pieces[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = kTile * (i / 4) + 16 * warp() + i % 4 * 4 + lane() / 8, piece = lane() % 8;
      pieces[i] = load_shared4(buffer + static_cast<uint32_t>(r * kRowBytes + (piece ^ (r & 7)) * 16));
    }
    // The buffer is given back before the rows leave for memory: the fence would wait for them.
    hopper::fence_async_proxy();
    release(s.v_empty[kv.index]);
    const int column = (at.e0 * kGroups + group) * kColumns + lane() % 8 * 8;
    T* out = static_cast<T*>(w.o) + at.b * w.o_strides[0] + at.head * w.o_strides[1] + column;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = kTile * (i / 4) + 16 * warp() + i % 4 * 4 + lane() / 8;
      if (r < rows && column < w.e)
        __stcs(reinterpret_cast<uint4*>(out + static_cast<int64_t>(row + r) * w.o_strides[2]), pieces[i]);
    }
  }

  /// Outputs of a chunk, and the state behind it. Registers hold one tile of scores, outputs and weights at a
  /// time; what one warpgroup waits for, the other computes under.
  __device__ __forceinline__ void chunk(const Place& at, int row, int rows) {
    const uint32_t q0 = shared_address(s.q[q.index]), q1 = q0 + kTile * kRowBytes,
                   k0 = shared_address(s.k[kv.index]), k1 = k0 + kTile * kRowBytes,
                   v0 = shared_address(s.v[kv.index]) + group * kBlockBytes, v1 = v0 + kTile * kRowBytes;
    float x[kTile / 2] = {}, o[kColumns / 2] = {}, factor[2];
    uint32_t weights[kTile / 4], weighed[kChunk / 4], low[kColumns / 4], high[kColumns / 4];
    int shift[2] = {state_shift, state_shift};
    forget_addresses();

    // The state in registers goes ahead of the one in shared memory, which the outputs need.
    hopper::barrier_wait(shared_address(&s.v_full[kv.index]), kv.phase);
    weigh_values(weighed, v0, rows);
    const float kept = s.power[group][rows];
#pragma unroll
    for (int i = 0; i < S::kState; ++i) state[i] *= kept;
    hopper::barrier_wait(shared_address(&s.k_full[kv.index]), kv.phase);
    hopper::barrier_wait(shared_address(&s.q_full[q.index]), q.phase);
    hopper::pin(state);
    hopper::pin(weighed);
    hopper::pin(x);
    hopper::pin(o);
    hopper::product_fence();
    issue_scores(x, q0, k0);
    hopper::product_commit();
    issue_update(weighed, k0, true);
    issue_inherited(o, q0);
    hopper::product_commit();

    // The first tile of rows, with its own keys.
    hopper::product_wait<1>();
    hopper::pin(x);
    weigh_scores<false>(x, weights, factor, shift);
    hopper::product_wait<0>();
    hopper::pin(state);
    hopper::pin(weighed);
    hopper::pin(o);
    weigh_inherited<0>(o, factor);
    hopper::pin(x);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_values(o, weights, v0);
    issue_scores(x, q1, k0);
    hopper::product_commit();
    hopper::product_wait<0>();
    hopper::pin(x);
    hopper::pin(o);
    hopper::pin(weights);
    narrow_outputs(o, low, shift);

    // The second tile, with the first keys and with its own.
    hopper::pin(o);
    hopper::product_fence();
    issue_inherited(o, q1);
    hopper::product_commit();
    shift[0] = shift[1] = state_shift;
    weigh_scores<true>(x, weights, factor, shift);
    hopper::product_wait<0>();
    hopper::pin(o);
    weigh_inherited<1>(o, factor);
    hopper::pin(x);
    hopper::pin(o);
    hopper::pin(weights);
    hopper::product_fence();
    issue_scores(x, q1, k1);
    hopper::product_commit();
    issue_values(o, weights, v0);
    hopper::product_commit();
    hopper::product_wait<1>();
    hopper::pin(x);
    release(s.q_empty[q.index]);
    release(s.k_empty[kv.index]);
    uint32_t last[kTile / 4];
    weigh_scores<false>(x, last, factor, shift);
    hopper::product_wait<0>();
    hopper::pin(o);
    hopper::pin(weights);
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) o[i] *= factor[i / 2 % 2];
    }
    hopper::pin(o);
    hopper::pin(last);
    hopper::product_fence();
    issue_values(o, last, v1);
    hopper::product_commit();
    publish();  // its barrier: all warps are done with the old operand
    hopper::product_wait<0>();
    hopper::pin(o);
    hopper::pin(last);
    narrow_outputs(o, high, shift);
    gather();  // the new operand is there, and all warps are done with the values
    write_out(at, low, high, row, rows);
    q.next(), kv.next();
  }

  /// total += the segment's own sum of k v^T, weighed to its end.
  __device__ __forceinline__ void sum_segment(const Place& at, const Decay& decay,
                                              float (&total)[S::kState]) {
    for (int c = at.chunks - 1; c >= 0; --c) {
      const int left = at.end - at.first - c * kChunk, rows = min(left, kChunk);
      uint32_t weighed[kChunk / 4];
      forget_addresses();
      hopper::barrier_wait(shared_address(&s.v_full[kv.index]), kv.phase);
      weigh_values(weighed, shared_address(s.v[kv.index]) + group * kBlockBytes, rows);
      release(s.v_empty[kv.index]);
      hopper::barrier_wait(shared_address(&s.k_full[kv.index]), kv.phase);
      hopper::pin(state);
      hopper::pin(weighed);
      hopper::product_fence();
      issue_update(weighed, shared_address(s.k[kv.index]), false);
      hopper::product_commit();
      hopper::product_wait<0>();
      hopper::pin(state);
      hopper::pin(weighed);
      release(s.k_empty[kv.index]);
      kv.next();
      const float later = decay.at(left - rows);
#pragma unroll
      for (int i = 0; i < S::kState; ++i) total[i] += later * state[i];
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
        float total[S::kState] = {};
        sum_segment(at, decay, total);
        const float kept = decay.at(at.end - at.first);
        inherit<true>(at, [&](int i, float x) { return kept * x + total[i]; });
      }
      publish();
      gather();
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
    Consumer<T, kD, kGroups> consumer{w, s, warpgroup - 1, static_cast<int>(threadIdx.x % 128)};
    consumer.run();
  }
#endif
}

}  // namespace
}  // namespace attnbench::cuda_linear
