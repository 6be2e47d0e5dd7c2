// Linear attention on the tensor cores of sm_80 and later, for bf16 and f16: mma.sync, cp.async, ldmatrix.
//
// A thread block of eight warps owns a head (or a segment of it) and 64 or 128 value columns. It walks tiles
// of 64 rows; the D x E state stays in registers in f32 and is copied to shared memory in 16 bits once per
// block, as an operand. Per tile of a block:
//     o = lambda^(row - begin + 1) (q S)  +  ((q k^T) weighed) v        S <- lambda^rows S + (weighed k)^T v
// with q k^T and q S from one pass over q. Two or three stages of q, k, v are under way while one is used, so
// that a tile's 48 KiB (D = E = 128) are always in flight: with blocks near D the work is bound by memory.
//
// 16-bit operands are rounded once: weighed scores, weighed keys, and the state when a block begins. f16 has
// no range for sums, so there scores and states are stored as multiples of a power of two that puts the
// largest of a tile near 2^14; bf16 has f32's range and needs none. All weights are lambda^p with p >= 0,
// products of at most two tabulated powers.
//
// Shared tiles are rows of 16-byte chunks, chunk c of row r at c ^ (r mod 8): eight rows of one chunk (what
// ldmatrix reads) lie in different banks.
#include <algorithm>

#include "kernels/linear_attention/cuda_sm80.cuh"
#include "kernels/linear_attention/cuda_weights.cuh"

namespace attnbench::cuda_linear {
namespace {

using namespace cuda_attention;  // the PTX functions of mma.cuh

constexpr int kRows = 64;  // rows of a tile
constexpr int kThreads = 256, kWarps = kThreads / 32;

struct WalkWork {
  const void *q, *k, *v;
  void* o;
  const float *log_decay, *states, *state_in;
  float *state_out, *sums;
  int64_t q_strides[3], k_strides[3], v_strides[3], o_strides[3];  // B, H, N
  int64_t in_strides[2], out_strides[2];                           // B, H
  int64_t head_step, segment_step;
  int64_t heads, h, n, d, e, tiles_e;
  int64_t segment, segments, block;
  int stages;
  bool causal, whole;
};

/// Sizes of the tiles of one kernel: D and E padded to kD and kE.
template <int kD, int kE>
struct Tiles {
  static constexpr int kKeyChunks = kD / 8, kValueChunks = kE / 8;
  static constexpr int kKeyBytes = kRows * kD * 2, kValueBytes = kRows * kE * 2;
  static constexpr int kStageBytes = 2 * kKeyBytes + kValueBytes;  // q, k, v
  static constexpr int kStateBytes = kD * kE * 2, kScoreBytes = kRows * kRows * 2;
  static constexpr int kOtherBytes = kStateBytes + kScoreBytes + (kRows + 2 * kWarps) * 4;
  // The state's rows by kStateWarps warps, its columns by the others: m16n8 tiles of a warp.
  static constexpr int kStateWarps = kD == 256 ? 8 : 4;
  static constexpr int kStateM = kD / kStateWarps / 16, kStateN = kE / (kWarps / kStateWarps) / 8;
  // Outputs and scores: 2 x 4 warps of 32 rows and a quarter of the columns.
  static constexpr int kOutN = kE / 4 / 8;
  /// Thread blocks on a multiprocessor for which registers are spared; shared memory allows no more.
  static constexpr int kResident = kD == 64 ? 2 : 1;
  static_assert(kE <= kD, "outputs pass through the queries' tile");
};

template <int kChunks>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
  return static_cast<uint32_t>((row * kChunks + (chunk ^ (row & 7))) * 16);
}

/// Rows [0, count) and columns [0, columns) of x, which is a multiple of 8; zeros elsewhere.
template <int kChunks, class T>
__device__ __forceinline__ void load_tile(uint32_t to, const T* x, int64_t stride, int count, int columns) {
  constexpr int kStep = kThreads / kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks, first = static_cast<int>(threadIdx.x) / kChunks;
  const bool inside = chunk * 8 < columns;
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int row = first + i * kStep;
    const bool there = inside && row < count;
    copy_async(to + place<kChunks>(row, chunk), there ? x + row * stride + chunk * 8 : x, there ? 16 : 0);
  }
}

/// The largest of all threads' values; `slots` has one element per warp. Contains a barrier.
__device__ __forceinline__ float block_max(float x, float* slots) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
  __syncthreads();
  x = slots[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) x = fmaxf(x, slots[i]);
  return x;
}

/// One warp's part of the D x E state in f32.
template <class T, int kD, int kE>
struct State {
  using L = Tiles<kD, kE>;
  float at[L::kStateM][L::kStateN][4];

  static __device__ int warp_d() { return static_cast<int>(threadIdx.x / 32) % L::kStateWarps; }
  static __device__ int warp_e() { return static_cast<int>(threadIdx.x / 32) / L::kStateWarps; }
  /// Calls f(element, d, e) for every element of this thread.
  template <class F>
  __device__ void each(const F& f) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int d0 = warp_d() * L::kStateM * 16 + lane / 4, e0 = warp_e() * L::kStateN * 8 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < L::kStateM; ++m)
#pragma unroll
      for (int n = 0; n < L::kStateN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) f(at[m][n][i], d0 + 16 * m + 8 * (i / 2), e0 + 8 * n + i % 2);
  }
  __device__ void load(const float* from, int64_t d, int64_t e, int64_t e0) {
    each([&](float& x, int row, int column) {
      x = from && row < d && e0 + column < e ? from[row * e + e0 + column] : 0.0f;
    });
  }
  __device__ void store(float* to, int64_t d, int64_t e, int64_t e0) {
    each([&](const float& x, int row, int column) {
      if (row < d && e0 + column < e) to[row * e + e0 + column] = x;
    });
  }
  /// The state as an operand in shared memory, divided by 2^(what is returned).
  __device__ int publish(uint32_t to, float* slots) {
    int shift = 0;
    float scale = 1.0f;
    if constexpr (std::is_same_v<T, __half>) {
      float most = 0.0f;
      each([&](const float& x, int, int) { most = fmaxf(most, fabsf(x)); });
      shift = range_shift(block_max(most, slots));
      scale = power_of_two(-shift);
    }
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int d0 = warp_d() * L::kStateM * 16 + lane / 4, chunk0 = warp_e() * L::kStateN;
#pragma unroll
    for (int m = 0; m < L::kStateM; ++m)
#pragma unroll
      for (int n = 0; n < L::kStateN; ++n) {
        const float(&x)[4] = at[m][n];
        const uint32_t within = static_cast<uint32_t>(lane % 4 * 4);
        store_shared(to + place<L::kValueChunks>(d0 + 16 * m, chunk0 + n) + within,
                     pack(x[0] * scale, x[1] * scale, T{}));
        store_shared(to + place<L::kValueChunks>(d0 + 16 * m + 8, chunk0 + n) + within,
                     pack(x[2] * scale, x[3] * scale, T{}));
      }
    return shift;
  }
  /// Adds sum_r lambda^(left - 1 - r) k_r^T v_r over a tile of which min(left, 64) rows are there.
  __device__ void add(uint32_t k_at, uint32_t v_at, const float* power, const Decay& decay, int64_t left) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int rows = static_cast<int>(min(left, static_cast<int64_t>(kRows)));
    const float later = decay.at(left - rows);
    // Rows that are not there are zero; their weight only has to be a number.
    const auto weight = [&](int r) { return later * power[max(rows - 1 - r, 0)]; };
#pragma unroll
    for (int kk = 0; kk < kRows / 16; ++kk) {
      const int r = 16 * kk + lane % 4 * 2;
      const float w[4] = {weight(r), weight(r + 1), weight(r + 8), weight(r + 9)};
      uint32_t a[L::kStateM][4];
#pragma unroll
      for (int m = 0; m < L::kStateM; ++m) {
        load_matrices_transposed(
            a[m], k_at + place<L::kKeyChunks>(16 * kk + (lane & 7) + (lane >> 4) * 8,
                                              (warp_d() * L::kStateM + m) * 2 + ((lane >> 3) & 1)));
        a[m][0] = weigh<T>(a[m][0], w[0], w[1]), a[m][1] = weigh<T>(a[m][1], w[0], w[1]);
        a[m][2] = weigh<T>(a[m][2], w[2], w[3]), a[m][3] = weigh<T>(a[m][3], w[2], w[3]);
      }
#pragma unroll
      for (int j = 0; j < L::kStateN / 2; ++j) {
        uint32_t b[4];
        load_matrices_transposed(b,
                                 v_at + place<L::kValueChunks>(16 * kk + (lane & 15),
                                                               warp_e() * L::kStateN + 2 * j + (lane >> 4)));
#pragma unroll
        for (int m = 0; m < L::kStateM; ++m) {
          multiply(at[m][2 * j], a[m], b[0], b[1], T{});
          multiply(at[m][2 * j + 1], a[m], b[2], b[3], T{});
        }
      }
    }
  }
};

/// Where a walk is: a tile of rows of a block and the tile of keys that it meets. Both begin at `begin` plus
/// a multiple of 64.
struct Cursor {
  int64_t first, key, begin, end;  // first row, first key, the block's rows
  int64_t stop, block;
  int tile = 0;  // tiles of rows so far
  bool causal;

  __device__ Cursor(const WalkWork& w, int64_t row0)
      : first(row0),
        begin(w.whole ? 0 : row0),
        stop(min(row0 + w.segment, w.n)),
        block(w.whole ? w.n : w.block),
        causal(w.causal) {
    end = min(begin + block, stop);
    key = causal ? begin : first;
  }
  __device__ bool done() const { return first >= stop; }
  __device__ bool opens_tile() const { return !causal || key == begin; }
  __device__ bool diagonal() const { return causal && key == first; }
  __device__ int rows() const { return static_cast<int>(min(end - first, static_cast<int64_t>(kRows))); }
  __device__ int keys() const { return key < first ? kRows : rows(); }
  __device__ void advance() {
    if (causal && key < first) {
      key += kRows;
      return;
    }
    ++tile;
    first += kRows;
    if (first >= end) {
      begin = first = end;
      end = min(begin + block, stop);
    }
    key = causal ? begin : first;
  }
};

template <class T, int kD, int kE>
__global__ void __launch_bounds__(kThreads, (Tiles<kD, kE>::kResident)) walk_kernel(const WalkWork w) {
  using L = Tiles<kD, kE>;
  constexpr bool kScaled = std::is_same_v<T, __half>;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  const uint32_t state_at = base + static_cast<uint32_t>(w.stages * L::kStageBytes);
  const uint32_t scores_at = state_at + L::kStateBytes;
  float* power =
      reinterpret_cast<float*>(memory + w.stages * L::kStageBytes + L::kStateBytes + L::kScoreBytes);
  float* slots = power + kRows;  // of two maxima
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int group = lane / 4, pair = lane % 4 * 2;
  const int row0 = warp / 4 * 32, quarter = warp % 4;  // of outputs and scores

  const int64_t per_segment = w.heads * w.tiles_e;
  for (int64_t item = blockIdx.x; item < w.segments * per_segment; item += gridDim.x) {
    // Value tiles of a head side by side, so that its q and k come from the cache; last segments first, whose
    // rows see most keys when a walk has them all in one block.
    const int64_t order = divide(item, per_segment), segment = w.segments - 1 - order;
    const int64_t head_tile = item - order * per_segment, bh = divide(head_tile, w.tiles_e);
    const int64_t e0 = (head_tile - bh * w.tiles_e) * kE;
    const int64_t b = divide(bh, w.h), head = bh - b * w.h;
    const T* q = static_cast<const T*>(w.q) + b * w.q_strides[0] + head * w.q_strides[1];
    const T* k = static_cast<const T*>(w.k) + b * w.k_strides[0] + head * w.k_strides[1];
    const T* v = static_cast<const T*>(w.v) + b * w.v_strides[0] + head * w.v_strides[1] + e0;
    T* out = static_cast<T*>(w.o) + b * w.o_strides[0] + head * w.o_strides[1] + e0;
    const int width = static_cast<int>(w.d);
    const int columns = static_cast<int>(min(w.e - e0, static_cast<int64_t>(kE)));
    const Decay decay(w.log_decay[head], w.causal);

    Cursor now(w, segment * w.segment), ahead = now;
    const auto fetch = [&](int stage) {
      if (!ahead.done()) {
        const uint32_t at = base + static_cast<uint32_t>(stage * L::kStageBytes);
        if (ahead.opens_tile())
          load_tile<L::kKeyChunks>(base + static_cast<uint32_t>(ahead.tile % w.stages * L::kStageBytes),
                                   q + ahead.first * w.q_strides[2], w.q_strides[2], ahead.rows(), width);
        if (w.causal) {
          load_tile<L::kKeyChunks>(at + L::kKeyBytes, k + ahead.key * w.k_strides[2], w.k_strides[2],
                                   ahead.keys(), width);
          load_tile<L::kValueChunks>(at + 2 * L::kKeyBytes, v + ahead.key * w.v_strides[2], w.v_strides[2],
                                     ahead.keys(), columns);
        }
        ahead.advance();
      }
      commit_copies();  // also without copies: groups are counted
    };
    for (int s = 0; s < w.stages - 1; ++s) fetch(s);

    if (threadIdx.x < kRows) power[threadIdx.x] = decay.at(static_cast<int64_t>(threadIdx.x));
    State<T, kD, kE> state;
    const float* inherited = w.states     ? w.states + bh * w.head_step + segment * w.segment_step
                             : w.state_in ? w.state_in + b * w.in_strides[0] + head * w.in_strides[1]
                                          : nullptr;
    state.load(inherited, w.d, w.e, e0);
    int state_shift = state.publish(state_at, slots + kWarps);

    float o[2][L::kOutN][4];
    // What is in o counts 2^o_shift. q S is below 2^40 in its unit, so that 60 steps down leave it finite,
    // and scores that are smaller still are nothing beside it.
    int o_shift = 0, lowest_shift = 0;
    int stage = 0;
    for (; !now.done(); now.advance()) {
      // Of the groups under way the oldest is this step's.
      if (w.stages == 3)
        wait_copies<1>();
      else
        wait_copies<0>();
      __syncthreads();  // what all threads copied is here, and the last step's tiles are free
      fetch(stage == 0 ? w.stages - 1 : stage - 1);
      const uint32_t q_at = base + static_cast<uint32_t>(now.tile % w.stages * L::kStageBytes);
      const uint32_t k_at = base + static_cast<uint32_t>(stage * L::kStageBytes) + L::kKeyBytes;
      const uint32_t v_at = k_at + L::kKeyBytes;
      stage = stage + 1 == w.stages ? 0 : stage + 1;
      const bool diagonal = now.diagonal();

      // q k^T of 32 rows and 16 keys, and q S of 32 rows and a quarter of the columns.
      float p[2][2][4] = {};
      const bool scores = w.causal && !(diagonal && row0 == 0 && quarter >= 2);
      const auto queries = [&](int kk, uint32_t(&a)[2][4]) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
          load_matrices(a[m], q_at + place<L::kKeyChunks>(row0 + 16 * m + (lane & 15), 2 * kk + (lane >> 4)));
      };
      const auto add_scores = [&](int kk, const uint32_t(&a)[2][4]) {
        uint32_t x[4];
        load_matrices(x, k_at + place<L::kKeyChunks>(16 * quarter + (lane & 7) + (lane >> 4) * 8,
                                                     2 * kk + ((lane >> 3) & 1)));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply(p[m][0], a[m], x[0], x[1], T{});
          multiply(p[m][1], a[m], x[2], x[3], T{});
        }
      };
      if (now.opens_tile()) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < L::kOutN; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[m][n][i] = 0.0f;
#pragma unroll 4
        for (int kk = 0; kk < kD / 16; ++kk) {
          uint32_t a[2][4];
          queries(kk, a);
          if (scores) add_scores(kk, a);
#pragma unroll
          for (int j = 0; j < L::kOutN / 2; ++j) {
            uint32_t x[4];
            load_matrices_transposed(
                x, state_at + place<L::kValueChunks>(16 * kk + (lane & 15),
                                                     quarter * L::kOutN + 2 * j + (lane >> 4)));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              multiply(o[m][2 * j], a[m], x[0], x[1], T{});
              multiply(o[m][2 * j + 1], a[m], x[2], x[3], T{});
            }
          }
        }
        const float elapsed = decay.at(now.first - now.begin + 1);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float factor = elapsed * power[row0 + 16 * m + 8 * half + group];
#pragma unroll
            for (int n = 0; n < L::kOutN; ++n) o[m][n][2 * half] *= factor, o[m][n][2 * half + 1] *= factor;
          }
        o_shift = state_shift;
        lowest_shift = state_shift - 60;
      } else if (scores) {
#pragma unroll 4
        for (int kk = 0; kk < kD / 16; ++kk) {
          uint32_t a[2][4];
          queries(kk, a);
          add_scores(kk, a);
        }
      }

      if (w.causal) {
        // Below the diagonal lambda^(row - key) = lambda^(row - first) lambda^(first - key), and the second
        // one is lambda^(first - key0 - 63) lambda^(63 - (key - key0)) with first - key0 >= 64.
        const float before = diagonal ? 1.0f : decay.at(now.first - now.key - (kRows - 1));
        float most = 0.0f;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int row = row0 + 16 * m + 8 * (i / 2) + group, key = 16 * quarter + 8 * n + pair + i % 2;
              float& x = p[m][n][i];
              if (diagonal)
                x = row >= key ? x * power[row >= key ? row - key : 0] : 0.0f;
              else
                x *= power[row] * (before * power[kRows - 1 - key]);
              if constexpr (kScaled) most = fmaxf(most, fabsf(x));
            }
        if constexpr (kScaled) {
          most = block_max(most, slots);
          const int shift = most == 0.0f ? o_shift : max(range_shift(most), lowest_shift);
          const float scale = power_of_two(-shift);
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) p[m][n][i] *= scale;
          // Beyond -126 the old sums are nothing beside the new ones.
          const float rescale = power_of_two(max(o_shift - shift, -126));
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < L::kOutN; ++n)
#pragma unroll
              for (int i = 0; i < 4; ++i) o[m][n][i] *= rescale;
          o_shift = shift;
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              store_shared(scores_at + place<kRows / 8>(row0 + 16 * m + 8 * half + group, 2 * quarter + n) +
                               static_cast<uint32_t>(pair * 2),
                           pack(p[m][n][2 * half], p[m][n][2 * half + 1], T{}));
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < kRows / 16; ++kk) {
          if (diagonal && row0 == 0 && kk >= 2) continue;  // all zero
          uint32_t a[2][4];
#pragma unroll
          for (int m = 0; m < 2; ++m)
            load_matrices(a[m],
                          scores_at + place<kRows / 8>(row0 + 16 * m + (lane & 15), 2 * kk + (lane >> 4)));
#pragma unroll
          for (int j = 0; j < L::kOutN / 2; ++j) {
            uint32_t x[4];
            load_matrices_transposed(x,
                                     v_at + place<L::kValueChunks>(16 * kk + (lane & 15),
                                                                   quarter * L::kOutN + 2 * j + (lane >> 4)));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              multiply(o[m][2 * j], a[m], x[0], x[1], T{});
              multiply(o[m][2 * j + 1], a[m], x[2], x[3], T{});
            }
          }
        }
        if (diagonal && !w.whole) {
          if (now.first == now.begin) {
            const float kept = decay.at(now.end - now.begin);
            state.each([&](float& x, int, int) { x *= kept; });
          }
          state.add(k_at, v_at, power, decay, now.end - now.first);
          // The scores' barrier lies after all reads of the old state.
          if (now.first + kRows >= now.end && now.end < now.stop)
            state_shift = state.publish(state_at, slots + kWarps);
        }
      } else {
        __syncthreads();  // the queries have been read
      }

      if (!w.causal || diagonal) {
        // Through this warp's part of the queries' tile, which nobody reads any more.
        const float scale = kScaled ? power_of_two(o_shift) : 1.0f;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < L::kOutN; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              store_shared(
                  q_at + place<L::kValueChunks>(row0 + 16 * m + 8 * half + group, quarter * L::kOutN + n) +
                      static_cast<uint32_t>(pair * 2),
                  pack(o[m][n][2 * half] * scale, o[m][n][2 * half + 1] * scale, T{}));
        __syncwarp();
        const int rows = now.rows();
#pragma unroll
        for (int i = 0; i < L::kOutN; ++i) {
          const int at = lane + 32 * i, row = row0 + at / L::kOutN,
                    chunk = quarter * L::kOutN + at % L::kOutN;
          if (row < rows && chunk * 8 < columns)
            __stcs(reinterpret_cast<uint4*>(out + (now.first + row) * w.o_strides[2] + chunk * 8),
                   load_shared4(q_at + place<L::kValueChunks>(row, chunk)));
        }
      }
    }
    if (w.state_out) state.store(w.state_out + b * w.out_strides[0] + head * w.out_strides[1], w.d, w.e, e0);
    __syncthreads();  // before the next item's copies
  }
}

/// A segment's own sum; two stages of k and v.
template <class T, int kD, int kE>
__global__ void __launch_bounds__(kThreads, 2) sums_kernel(const WalkWork w) {
  using L = Tiles<kD, kE>;
  constexpr int kStage = L::kKeyBytes + L::kValueBytes;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t base = shared_address(memory);
  float* power = reinterpret_cast<float*>(memory + 2 * kStage);
  for (int64_t item = blockIdx.x; item < w.heads * w.segments * w.tiles_e; item += gridDim.x) {
    const int64_t at = divide(item, w.tiles_e), e0 = (item - at * w.tiles_e) * kE;
    const int64_t bh = divide(at, w.segments), segment = at - bh * w.segments;
    const int64_t b = divide(bh, w.h), head = bh - b * w.h;
    const T* k = static_cast<const T*>(w.k) + b * w.k_strides[0] + head * w.k_strides[1];
    const T* v = static_cast<const T*>(w.v) + b * w.v_strides[0] + head * w.v_strides[1] + e0;
    const int columns = static_cast<int>(min(w.e - e0, static_cast<int64_t>(kE)));
    const Decay decay(w.log_decay[head], w.causal);
    const int64_t begin = segment * w.segment, end = min(begin + w.segment, w.n);
    const auto fetch = [&](int64_t first, int stage) {
      if (first < end) {
        const int rows = static_cast<int>(min(end - first, static_cast<int64_t>(kRows)));
        const uint32_t to = base + static_cast<uint32_t>(stage * kStage);
        load_tile<L::kKeyChunks>(to, k + first * w.k_strides[2], w.k_strides[2], rows, static_cast<int>(w.d));
        load_tile<L::kValueChunks>(to + L::kKeyBytes, v + first * w.v_strides[2], w.v_strides[2], rows,
                                   columns);
      }
      commit_copies();
    };
    if (threadIdx.x < kRows) power[threadIdx.x] = decay.at(static_cast<int64_t>(threadIdx.x));
    State<T, kD, kE> state;
    state.load(nullptr, 0, 0, 0);
    fetch(begin, 0);
    int stage = 0;
    for (int64_t first = begin; first < end; first += kRows, stage ^= 1) {
      wait_copies<0>();
      __syncthreads();
      fetch(first + kRows, stage ^ 1);
      const uint32_t k_at = base + static_cast<uint32_t>(stage * kStage);
      state.add(k_at, k_at + L::kKeyBytes, power, decay, end - first);
    }
    state.store(w.sums + at * w.d * w.e, w.d, w.e, e0);
    __syncthreads();
  }
}

// ---- launches ---------------------------------------------------------------------------------------------

/// Calls f(kD, kE), integral constants, with the kernel for these sizes. D above 64 pays for 128 columns of
/// values at once, D above 128 leaves registers for 64.
template <class F>
void by_size(int64_t d, const F& f) {
  if (d <= 64) return f(std::integral_constant<int, 64>{}, std::integral_constant<int, 64>{});
  if (d <= 128) return f(std::integral_constant<int, 128>{}, std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{}, std::integral_constant<int, 64>{});
}
template <class F>
void by_type(DType t, const F& f) {
  if (t == DType::bf16)
    f(Type<__nv_bfloat16>{});
  else
    f(Type<__half>{});
}

/// Three stages where the card has room for them, two, or 0: it has not.
template <int kD, int kE>
int stages_on(Context& ctx) {
  using L = Tiles<kD, kE>;
  const auto limit = static_cast<int64_t>(cuda_of(ctx).properties().sharedMemPerBlockOptin);
  for (int stages : {3, 2})
    if (stages * L::kStageBytes + L::kOtherBytes <= limit) return stages;
  return 0;
}

WalkWork work_of(const LinearAttentionArgs& args) {
  WalkWork w{};
  const auto strides = [](const Tensor& t, int64_t* to, int count) {
    for (int i = 0; i < count; ++i) to[i] = t.stride(i);
  };
  w.q = args.q.raw(), w.k = args.k.raw(), w.v = args.v.raw(), w.o = args.o.raw();
  strides(args.q, w.q_strides, 3), strides(args.k, w.k_strides, 3);
  strides(args.v, w.v_strides, 3), strides(args.o, w.o_strides, 3);
  w.log_decay = args.log_decay.data<float>();
  w.heads = args.q.dim(0) * args.q.dim(1), w.h = args.q.dim(1);
  w.n = args.q.dim(2), w.d = args.q.dim(3), w.e = args.v.dim(3);
  w.causal = args.causal;
  return w;
}

unsigned grid_of(int64_t items) {
  return static_cast<unsigned>(std::clamp<int64_t>(items, 1, int64_t{1} << 30));
}

}  // namespace

bool usable(Context& ctx, const LinearAttentionArgs& args) {
  const DType t = args.q.dtype();
  const int64_t n = args.q.dim(2), d = args.q.dim(3), e = args.v.dim(3);
  if ((t != DType::bf16 && t != DType::f16) || n == 0 || d == 0 || e == 0 || d > 256) return false;
  for (const Tensor* x : {&args.q, &args.k, &args.v, &args.o})
    if (!packable(*x, 16)) return false;
  bool fits = false;
  by_size(d, [&](auto width, auto columns) {
    fits = stages_on<decltype(width)::value, decltype(columns)::value>(ctx) > 0;
  });
  return fits;
}

int64_t useful_segments(Context& ctx, const LinearAttentionArgs& args, int64_t block) {
  int64_t segments = 1;
  by_size(args.q.dim(3), [&](auto width, auto columns) {
    using L = Tiles<decltype(width)::value, decltype(columns)::value>;
    const int64_t walks =
        args.q.dim(0) * args.q.dim(1) * ((args.v.dim(3) + columns.value - 1) / columns.value);
    const int64_t places = static_cast<int64_t>(cuda_of(ctx).sm_count()) * L::kResident;
    // k and v are read a second time for the sums: a cut must double what runs at once, and leave segments of
    // eight blocks and 1024 rows, beside which a state's 64 KiB do not count.
    const int64_t most = args.q.dim(2) / std::max<int64_t>(8 * block, 1024);
    segments = std::max<int64_t>(std::min(places / walks, most), 1);
  });
  return segments;
}

void segment_sums(Context& ctx, const LinearAttentionArgs& args, int64_t segment, float* sums) {
  WalkWork w = work_of(args);
  w.segment = segment, w.segments = (w.n + segment - 1) / segment, w.sums = sums;
  by_type(args.q.dtype(), [&](auto type) {
    by_size(w.d, [&](auto width, auto columns) {
      using T = typename decltype(type)::type;
      constexpr int kD = decltype(width)::value, kE = decltype(columns)::value;
      using L = Tiles<kD, kE>;
      w.tiles_e = (w.e + kE - 1) / kE;
      constexpr int kBytes = 2 * (L::kKeyBytes + L::kValueBytes) + kRows * 4;
      CUDA_CHECK(
          cudaFuncSetAttribute(sums_kernel<T, kD, kE>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
      sums_kernel<T, kD, kE>
          <<<grid_of(w.heads * w.segments * w.tiles_e), kThreads, kBytes, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  });
}

void walk(Context& ctx, const LinearAttentionArgs& args, const Walk& plan) {
  WalkWork w = work_of(args);
  w.segment = plan.segment, w.segments = (w.n + plan.segment - 1) / plan.segment, w.block = plan.block;
  w.states = plan.states, w.head_step = plan.head_step, w.segment_step = plan.segment_step;
  w.whole = plan.whole;
  const auto strides = [](const Tensor& t, int64_t* to) { to[0] = t.stride(0), to[1] = t.stride(1); };
  if (args.state_in) w.state_in = args.state_in.data<float>(), strides(args.state_in, w.in_strides);
  if (args.state_out && plan.last_state)
    w.state_out = args.state_out.data<float>(), strides(args.state_out, w.out_strides);
  by_type(args.q.dtype(), [&](auto type) {
    by_size(w.d, [&](auto width, auto columns) {
      using T = typename decltype(type)::type;
      constexpr int kD = decltype(width)::value, kE = decltype(columns)::value;
      using L = Tiles<kD, kE>;
      w.tiles_e = (w.e + kE - 1) / kE;
      w.stages = stages_on<kD, kE>(ctx);
      const int bytes = w.stages * L::kStageBytes + L::kOtherBytes;
      CUDA_CHECK(
          cudaFuncSetAttribute(walk_kernel<T, kD, kE>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      walk_kernel<T, kD, kE>
          <<<grid_of(w.segments * w.heads * w.tiles_e), kThreads, bytes, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  });
}

}  // namespace attnbench::cuda_linear
