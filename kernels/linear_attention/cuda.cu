// Linear attention on CUDA: products of 64 x 64 tiles in f32 from shared memory, sums over blocks by a scan,
// one rounding at the end, for every head size and stride. bf16 and f16 whose rows allow 16-byte accesses go
// to the tensor cores in all forms but the recurrence and the square without causality: cuda_sm80.cu, or for
// the chunk form on Hopper cuda_sm90.cu.
//
//   chunk       one thread block per head and 64 value columns walks the blocks and carries the state
//   parallel    all block sums, a decayed exclusive scan, all outputs from scanned sums and their own block
//   recurrent   one thread block per head and 32 value columns walks the tokens, the state in registers
//   quadratic   every 64 rows over all tiles at and below the diagonal
// Weights lambda^p are exp(p log_decay) in double, never a quotient, so no exponent is positive.
#include <algorithm>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/linear_attention/cuda_sm80.cuh"
#include "kernels/linear_attention/cuda_sm90.cuh"
#include "kernels/linear_attention/linear_attention.hpp"

namespace attnbench {
namespace {

using Form = LinearAttentionArgs::Form;

constexpr int kTile = 64;        // rows and columns of a product: 256 threads with 4 x 4 sums each
constexpr int kDepth = 32;       // terms between two loads: the three buffers stay below 48 KiB
constexpr int kThreads = 256;    // 16 x 16
constexpr int kRow = kTile + 4;  // a multiple of four floats, so that rows are read 16 bytes at a time

struct LinearWork {
  const void *q, *k, *v;
  void* o;
  const float* log_decay;
  const float* state_in;  // may be null
  float* state_out;       // may be null
  float* sums;  // [heads, blocks, D, E]: of parallel and of totals; or [heads, D, E], the chunk's state
  int64_t q_strides[3], k_strides[3], v_strides[3], o_strides[3];  // B, H, N
  int64_t in_strides[2], out_strides[2];                           // B, H
  int64_t heads, h, n, d, e;
  int64_t block, blocks;
  int64_t tiles_d, tiles_e;
  bool causal;
};

/// One head's pointers.
template <class T>
struct Head {
  const T *q, *k, *v;
  T* o;
  int64_t q_row, k_row, v_row, o_row, n, d, e;
  const float* state_in;
  float* state_out;
  double log_decay;
  bool causal;

  __device__ Head(const LinearWork& w, int64_t bh) {
    const int64_t b = divide(bh, w.h), i = bh - b * w.h;
    q = static_cast<const T*>(w.q) + b * w.q_strides[0] + i * w.q_strides[1];
    k = static_cast<const T*>(w.k) + b * w.k_strides[0] + i * w.k_strides[1];
    v = static_cast<const T*>(w.v) + b * w.v_strides[0] + i * w.v_strides[1];
    o = static_cast<T*>(w.o) + b * w.o_strides[0] + i * w.o_strides[1];
    q_row = w.q_strides[2], k_row = w.k_strides[2], v_row = w.v_strides[2], o_row = w.o_strides[2];
    n = w.n, d = w.d, e = w.e;
    state_in = w.state_in ? w.state_in + b * w.in_strides[0] + i * w.in_strides[1] : nullptr;
    state_out = w.state_out ? w.state_out + b * w.out_strides[0] + i * w.out_strides[1] : nullptr;
    causal = w.causal;
    // What the contract forbids cannot be refused from here: the head becomes NaN.
    const float l = w.log_decay[i];
    log_decay = l <= 0.0f && (causal || l == 0.0f) ? static_cast<double>(l) : NAN;
  }
  /// lambda^p; lambda^0 = 1 also for lambda = 0, whose logarithm is -infinity.
  __device__ float power(int64_t p) const {
    if (isnan(log_decay)) return NAN;
    return p == 0 || log_decay == 0.0 ? 1.0f : static_cast<float>(exp(static_cast<double>(p) * log_decay));
  }
};

struct Buffers {
  float a[kDepth][kRow];  // a[i][row], b[i][column]: factors of the i-th term
  float b[kDepth][kRow];
  float scores[kTile][kRow];  // [key][query]
  float row_power[kTile];     // lambda^0 .. lambda^63
  float scale[kTile];         // weights of the rows or keys that are being loaded
};

/// This thread's 4 x 4 sums: rows row(), columns column() onwards.
struct Sums {
  float at[4][4] = {};
  static __device__ int row() { return static_cast<int>(threadIdx.x / 16) * 4; }
  static __device__ int column() { return static_cast<int>(threadIdx.x % 16) * 4; }

  /// at += a^T b over kDepth terms.
  __device__ void add(const float (*a)[kRow], const float (*b)[kRow]) {
#pragma unroll 8
    for (int i = 0; i < kDepth; ++i) {
      const float4 x = *reinterpret_cast<const float4*>(&a[i][row()]);
      const float4 y = *reinterpret_cast<const float4*>(&b[i][column()]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) at[r][c] += xs[r] * ys[c];
    }
  }
};

/// to[i][j] = scale[i] x[i * stride + j], zero beyond `rows` and `columns`. scale may be null.
template <class T>
__device__ void load_rows(const T* x, int64_t stride, int64_t rows, int64_t columns, const float* scale,
                          float (*to)[kRow]) {
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * kTile; i += kThreads) {
    const int r = i / kTile, c = i % kTile;
    float value = 0.0f;
    if (r < rows && c < columns) value = widen(x[r * stride + c]);
    to[r][c] = scale ? value * scale[r] : value;
  }
}

/// to[i][j] = scale[j] x[j * stride + i], zero beyond `rows` (of x, at most kTile) and `columns`.
template <class T>
__device__ void load_transposed(const T* x, int64_t stride, int64_t rows, int64_t columns, const float* scale,
                                float (*to)[kRow]) {
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * kTile; i += kThreads) {
    const int r = i / kDepth, c = i % kDepth;
    float value = 0.0f;
    if (r < rows && c < columns) value = widen(x[r * stride + c]);
    to[c][r] = scale ? value * scale[r] : value;
  }
}

/// o of rows [first, first + rows), columns [e0, e0 + 64): from `state` (weighed by lambda^(1 + row - begin),
/// null for none), and from the keys of [begin, end), those after the row excluded when causal; first - begin
/// is a multiple of 64 then. All threads of the block take part; shared memory is free again afterwards.
template <class T>
__device__ void output_tile(const Head<T>& h, Buffers& s, int64_t first, int64_t rows, int64_t begin,
                            int64_t end, int64_t e0, const float* state) {
  Sums o;
  const int64_t columns = min(h.e - e0, static_cast<int64_t>(kTile));
  const T* q = h.q + first * h.q_row;
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kTile) {
    s.row_power[thread] = h.power(thread);
    s.scale[thread] = h.power(h.causal ? first - begin + thread + 1 : 1);
  }
  __syncthreads();
  if (state)
    for (int64_t d0 = 0; d0 < h.d; d0 += kDepth) {
      load_transposed(q + d0, h.q_row, rows, h.d - d0, s.scale, s.a);
      load_rows(state + d0 * h.e + e0, h.e, h.d - d0, columns, nullptr, s.b);
      __syncthreads();
      o.add(s.a, s.b);
      __syncthreads();
    }
  const int64_t last = h.causal ? min(end, first + rows) : end;
  for (int64_t s0 = begin; s0 < last; s0 += kTile) {
    const int64_t keys = min(last - s0, static_cast<int64_t>(kTile));
    const bool diagonal = h.causal && s0 == first;
    // Below the diagonal lambda^(row - key) = lambda^(row - first) lambda^(first - key), with first > key.
    if (thread < kTile && !diagonal)
      s.scale[thread] = h.power(h.causal ? max(first - s0 - thread, int64_t{0}) : 1);
    Sums p;
    for (int64_t d0 = 0; d0 < h.d; d0 += kDepth) {
      load_transposed(q + d0, h.q_row, rows, h.d - d0, nullptr, s.a);
      load_transposed(h.k + s0 * h.k_row + d0, h.k_row, keys, h.d - d0, nullptr, s.b);
      __syncthreads();
      p.add(s.a, s.b);
      __syncthreads();
    }
    if (h.d == 0) __syncthreads();  // s.scale has been written
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int key = Sums::column() + c;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = Sums::row() + r;
        float value = p.at[r][c];
        if (diagonal)
          value = row >= key ? value * s.row_power[row - key] : 0.0f;
        else if (h.causal)
          value *= s.row_power[row] * s.scale[key];
        else
          value = key < keys ? value * s.scale[key] : 0.0f;  // 0 also where a query is infinite
        s.scores[key][row] = value;
      }
    }
    __syncthreads();
    for (int64_t half = 0; half < keys; half += kDepth) {
      load_rows(h.v + (s0 + half) * h.v_row + e0, h.v_row, keys - half, columns, nullptr, s.b);
      __syncthreads();
      o.add(s.scores + half, s.b);
      __syncthreads();
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (Sums::row() + r < rows && Sums::column() + c < columns)
        h.o[(first + Sums::row() + r) * h.o_row + e0 + Sums::column() + c] = narrow<T>(o.at[r][c]);
  __syncthreads();
}

/// to[d, e] = (keep ? lambda^rows to : 0) + sum_r lambda^(rows-1-r) k[first + r, d] v[first + r, e] for 64 x
/// 64 elements from (d0, e0); `to` has rows of E. Without causality all weights are 1.
template <class T>
__device__ void update_tile(const Head<T>& h, Buffers& s, int64_t first, int64_t rows, int64_t d0, int64_t e0,
                            float* to, bool keep) {
  Sums sum;
  const int64_t height = min(h.d - d0, static_cast<int64_t>(kTile)),
                width = min(h.e - e0, static_cast<int64_t>(kTile));
  for (int64_t r0 = 0; r0 < rows; r0 += kDepth) {
    if (threadIdx.x < kDepth)
      s.scale[threadIdx.x] = h.power(h.causal ? max(rows - 1 - r0 - threadIdx.x, int64_t{0}) : 1);
    __syncthreads();
    load_rows(h.k + (first + r0) * h.k_row + d0, h.k_row, rows - r0, height, s.scale, s.a);
    load_rows(h.v + (first + r0) * h.v_row + e0, h.v_row, rows - r0, width, nullptr, s.b);
    __syncthreads();
    sum.add(s.a, s.b);
    __syncthreads();
  }
  const float decay = keep ? h.power(h.causal ? rows : 1) : 0.0f;
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (Sums::row() + r < height && Sums::column() + c < width) {
        float& element = to[(d0 + Sums::row() + r) * h.e + e0 + Sums::column() + c];
        element = keep ? decay * element + sum.at[r][c] : sum.at[r][c];
      }
}

// ---- kernels ----------------------------------------------------------------------------------------------

/// Every block's own sum of k v^T.
template <class T>
__global__ void __launch_bounds__(kThreads) block_sums_kernel(LinearWork w) {
  __shared__ Buffers s;
  const int64_t tiles = w.tiles_d * w.tiles_e;
  for (int64_t item = blockIdx.x; item < w.heads * w.blocks * tiles; item += gridDim.x) {
    const int64_t at = divide(item, tiles), tile = item - at * tiles;
    const int64_t bh = divide(at, w.blocks), t = at - bh * w.blocks, td = divide(tile, w.tiles_e);
    const Head<T> h(w, bh);
    update_tile(h, s, t * w.block, min(w.block, w.n - t * w.block), td * kTile,
                (tile - td * w.tiles_e) * kTile, w.sums + at * w.d * w.e, false);
  }
}

/// Turns every block's sum into what the block inherits; what follows the last goes to state_out. With
/// `total` it replaces the first block's sum instead: the state that all rows see.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_kernel(LinearWork w, bool total) {
  const int64_t size = w.d * w.e, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < w.heads * size; i += step) {
    const int64_t bh = divide(i, size), at = i - bh * size;
    const Head<T> h(w, bh);
    const float decay = h.power(w.causal ? w.block : 1);
    float carried = h.state_in ? h.state_in[at] : 0.0f;
    float* sum = w.sums + bh * w.blocks * size + at;
    // Four loads in flight: the sums do not depend on each other.
    int64_t t = 0;
    for (; t + 4 < w.blocks; t += 4) {
      float own[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) own[j] = sum[(t + j) * size];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!total) sum[(t + j) * size] = carried;
        carried = decay * carried + own[j];
      }
    }
    for (; t < w.blocks; ++t) {
      const float own = sum[t * size];
      if (!total) sum[t * size] = carried;
      const int64_t rows = min(w.block, w.n - t * w.block);
      carried = (w.causal ? h.power(rows) : decay) * carried + own;
    }
    if (total && w.blocks > 0) sum[0] = carried;
    if (h.state_out) h.state_out[at] = carried;
  }
}

/// Outputs from scanned sums and the rows' own blocks; with `total` from the first sum of each head alone.
template <class T>
__global__ void __launch_bounds__(kThreads) outputs_kernel(LinearWork w, bool total) {
  __shared__ Buffers s;
  const int64_t per_block = (w.block + kTile - 1) / kTile;
  for (int64_t item = blockIdx.x; item < w.heads * w.blocks * per_block * w.tiles_e; item += gridDim.x) {
    const int64_t row_tile = divide(item, w.tiles_e), e0 = (item - row_tile * w.tiles_e) * kTile;
    const int64_t at = divide(row_tile, per_block), bh = divide(at, w.blocks), t = at - bh * w.blocks;
    const int64_t begin = t * w.block, end = min(begin + w.block, w.n);
    const int64_t first = begin + (row_tile - at * per_block) * kTile;
    if (first >= end) continue;  // the whole block of threads alike
    const Head<T> h(w, bh);
    const float* state = w.sums + (total ? bh * w.blocks : at) * w.d * w.e;
    if (!total && t == 0 && !w.state_in) state = nullptr;
    output_tile(h, s, first, min(end - first, static_cast<int64_t>(kTile)), begin, total ? begin : end, e0,
                state);
  }
}

/// A head's blocks one after the other, 64 value columns per thread block. The state lives in memory, in
/// state_out or `sums`; it is this thread block's alone, so it stays in its caches and barriers order its
/// use.
template <class T>
__global__ void __launch_bounds__(kThreads) chunk_kernel(LinearWork w) {
  __shared__ Buffers s;
  for (int64_t item = blockIdx.x; item < w.heads * w.tiles_e; item += gridDim.x) {
    const int64_t bh = divide(item, w.tiles_e), e0 = (item - bh * w.tiles_e) * kTile;
    const Head<T> h(w, bh);
    float* state = h.state_out ? h.state_out : w.sums + bh * w.d * w.e;
    const int64_t columns = min(w.e - e0, static_cast<int64_t>(kTile));
    for (int64_t i = threadIdx.x; i < w.d * kTile; i += kThreads) {
      const int64_t row = i / kTile, c = i % kTile;
      if (c < columns) state[row * w.e + e0 + c] = h.state_in ? h.state_in[row * w.e + e0 + c] : 0.0f;
    }
    __syncthreads();
    for (int64_t t = 0; t < w.blocks; ++t) {
      const int64_t begin = t * w.block, end = min(begin + w.block, w.n);
      for (int64_t first = begin; first < end; first += kTile)
        output_tile(h, s, first, min(end - first, static_cast<int64_t>(kTile)), begin, end, e0,
                    t > 0 || h.state_in ? state : nullptr);
      for (int64_t d0 = 0; d0 < w.d; d0 += kTile) update_tile(h, s, begin, end - begin, d0, e0, state, true);
      __syncthreads();
    }
  }
}

/// Every 64 rows over all visible keys, and the given state.
template <class T>
__global__ void __launch_bounds__(kThreads) quadratic_kernel(LinearWork w) {
  __shared__ Buffers s;
  const int64_t tiles = (w.n + kTile - 1) / kTile;
  for (int64_t item = blockIdx.x; item < w.heads * tiles * w.tiles_e; item += gridDim.x) {
    const int64_t row_tile = divide(item, w.tiles_e), e0 = (item - row_tile * w.tiles_e) * kTile;
    // Later rows see more keys, so they are handed out first.
    const int64_t order = divide(row_tile, w.heads), bh = row_tile - order * w.heads;
    const int64_t first = (tiles - 1 - order) * kTile;
    const Head<T> h(w, bh);
    output_tile(h, s, first, min(w.n - first, static_cast<int64_t>(kTile)), 0, w.n, e0, h.state_in);
  }
}

constexpr int kColumns = 32;           // value columns of one thread block: a warp's lanes
constexpr int kWarps = kThreads / 32;  // each warp owns every eighth row of the state
constexpr int kTokens = 8;             // tokens between two barriers

/// Token by token. kRows rows of the state per thread live in registers; with kRows = 0 they stay in memory.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads) recurrent_kernel(LinearWork w) {
  __shared__ float part[kTokens][kWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t tiles = (w.e + kColumns - 1) / kColumns;
  for (int64_t item = blockIdx.x; item < w.heads * tiles; item += gridDim.x) {
    const int64_t bh = divide(item, tiles), column = (item - bh * tiles) * kColumns + lane;
    const bool inside = column < w.e;
    const Head<T> h(w, bh);
    // A decay near 1 acts through what it loses: lambda itself, rounded, would be off by 3% after a million
    // factors.
    const bool near = h.log_decay > -0.69 && h.log_decay < 0.0;
    const float keep = near ? 1.0f : h.power(1), loss = near ? static_cast<float>(-expm1(h.log_decay)) : 0.0f;
    const auto advance = [=](float old, float more) {
      return near ? old + (more - loss * old) : keep * old + more;
    };
    // This thread alone touches its elements of the state.
    float* memory = h.state_out ? h.state_out : w.sums ? w.sums + bh * w.d * w.e : nullptr;
    float state[kRows > 0 ? kRows : 1];
    if constexpr (kRows > 0) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t d = warp + i * kWarps;
        state[i] = h.state_in && inside && d < w.d ? h.state_in[d * w.e + column] : 0.0f;
      }
    } else if (inside) {
      for (int64_t d = warp; d < w.d; d += kWarps)
        memory[d * w.e + column] = h.state_in ? h.state_in[d * w.e + column] : 0.0f;
    }
    for (int64_t t0 = 0; t0 < w.n; t0 += kTokens) {
      const int64_t count = min(w.n - t0, static_cast<int64_t>(kTokens));
      for (int64_t t = 0; t < count; ++t) {
        const T* q = h.q + (t0 + t) * h.q_row;
        const T* k = h.k + (t0 + t) * h.k_row;
        const float v = inside ? widen(h.v[(t0 + t) * h.v_row + column]) : 0.0f;
        float o = 0.0f;
        if constexpr (kRows > 0) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const int64_t d = warp + i * kWarps;
            if (d < w.d) {  // the same for the whole warp
              state[i] = advance(state[i], widen(k[d]) * v);
              o += widen(q[d]) * state[i];
            }
          }
        } else if (inside) {
          for (int64_t d = warp; d < w.d; d += kWarps) {
            const float next = advance(memory[d * w.e + column], widen(k[d]) * v);
            memory[d * w.e + column] = next;
            o += widen(q[d]) * next;
          }
        }
        part[t][warp][lane] = o;
      }
      __syncthreads();
      // kTokens warps would be needed to finish all tokens at once, and there are as many.
      static_assert(kTokens == kWarps);
      if (warp < count && inside) {
        float o = part[warp][0][lane];
#pragma unroll
        for (int i = 1; i < kWarps; ++i) o += part[warp][i][lane];
        h.o[(t0 + warp) * h.o_row + column] = narrow<T>(o);
      }
      __syncthreads();
    }
    if constexpr (kRows > 0) {
      if (h.state_out && inside) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int64_t d = warp + i * kWarps;
          if (d < w.d) h.state_out[d * w.e + column] = state[i];
        }
      }
    }
  }
}

// ---- launches ---------------------------------------------------------------------------------------------

/// Work items of very different length, so as many thread blocks as items, as far as a grid goes.
unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::clamp<int64_t>(items, 1, int64_t{1} << 30));
}

template <class T>
class Run {
 public:
  Run(Context& ctx, const LinearAttentionArgs& args)
      : ctx_(ctx),
        args_(args),
        // The recurrence is f32 to the end, also where it has no order to keep.
        tensor_cores_(args.form != Form::recurrent && cuda_linear::usable(ctx, args)) {
    const auto strides = [](const Tensor& t, int64_t* to, int count) {
      for (int i = 0; i < count; ++i) to[i] = t.stride(i);
    };
    w_.q = args.q.raw(), w_.k = args.k.raw(), w_.v = args.v.raw(), w_.o = args.o.raw();
    strides(args.q, w_.q_strides, 3), strides(args.k, w_.k_strides, 3);
    strides(args.v, w_.v_strides, 3), strides(args.o, w_.o_strides, 3);
    w_.log_decay = args.log_decay.data<float>();
    if (args.state_in) w_.state_in = args.state_in.data<float>(), strides(args.state_in, w_.in_strides, 2);
    if (args.state_out)
      w_.state_out = args.state_out.data<float>(), strides(args.state_out, w_.out_strides, 2);
    w_.heads = args.q.dim(0) * args.q.dim(1), w_.h = args.q.dim(1);
    w_.n = args.q.dim(2), w_.d = args.q.dim(3), w_.e = args.v.dim(3);
    w_.causal = args.causal;
    w_.tiles_d = (w_.d + kTile - 1) / kTile, w_.tiles_e = (w_.e + kTile - 1) / kTile;
    set_block(std::clamp<int64_t>(args.block_size, 1, std::max<int64_t>(w_.n, 1)));
  }

  void run() {
    if (w_.heads == 0 || w_.e == 0) return;
    switch (args_.form) {
      case Form::chunk:
        return args_.causal ? chunk() : total();
      case Form::parallel:
        return args_.causal ? parallel() : total();
      case Form::recurrent:
        return args_.causal ? recurrent() : total();
      case Form::quadratic:
        return quadratic();
    }
  }

 private:
  void set_block(int64_t block) {
    w_.block = block;
    w_.blocks = (w_.n + block - 1) / block;
  }
  cudaStream_t stream() { return stream_of(ctx_); }

  void block_sums() {
    sums_ = ctx_.allocate(DType::f32, {w_.heads, w_.blocks, w_.d, w_.e});
    w_.sums = sums_.data<float>();
    if (tensor_cores_) return cuda_linear::segment_sums(ctx_, args_, w_.block, w_.sums);
    const int64_t items = w_.heads * w_.blocks * w_.tiles_d * w_.tiles_e;
    if (items == 0) return;
    block_sums_kernel<T><<<blocks_for(items), kThreads, 0, stream()>>>(w_);
    CUDA_CHECK_LAUNCH();
  }
  void scan(bool total) {
    if (w_.d == 0) return;
    scan_kernel<T><<<grid_for(ctx_, w_.heads * w_.d * w_.e, kThreads), kThreads, 0, stream()>>>(w_, total);
    CUDA_CHECK_LAUNCH();
  }
  /// From scanned sums; blocks of `block` rows within the sums' own.
  void walk(bool total, int64_t block) {
    cuda_linear::Walk plan;
    plan.segment = w_.block, plan.block = block, plan.states = w_.sums;
    plan.head_step = w_.blocks * w_.d * w_.e, plan.segment_step = total ? 0 : w_.d * w_.e;
    cuda_linear::walk(ctx_, args_, plan);
  }
  void outputs(bool total) {
    if (tensor_cores_) return walk(total, w_.block);
    const int64_t items = w_.heads * w_.blocks * ((w_.block + kTile - 1) / kTile) * w_.tiles_e;
    if (items == 0) return;
    outputs_kernel<T><<<blocks_for(items), kThreads, 0, stream()>>>(w_, total);
    CUDA_CHECK_LAUNCH();
  }

  void parallel() {
    block_sums();
    scan(false);
    outputs(false);
  }

  /// Without causality every query sees the whole sum. Its pieces are as long as leaves 64 of them per head,
  /// which bounds the workspace and does not depend on the card.
  void total() {
    constexpr int64_t kPieces = 64;
    set_block(std::max<int64_t>((w_.n + kPieces * kTile - 1) / (kPieces * kTile), 1) * kTile);
    block_sums();
    scan(true);
    outputs(true);
  }

  void chunk() {
    if (tensor_cores_) {
      if (cuda_linear::chunk_on_hopper(ctx_, args_)) return;
      const int64_t block = w_.block, segments = cuda_linear::useful_segments(ctx_, args_, block);
      if (segments == 1) {
        cuda_linear::Walk plan;
        plan.segment = w_.n, plan.block = block, plan.last_state = true;
        return cuda_linear::walk(ctx_, args_, plan);
      }
      // Few heads: segments of whole blocks side by side, from the sums of those before them.
      set_block(((w_.n + segments - 1) / segments + block - 1) / block * block);
      block_sums();
      scan(false);
      return walk(false, block);
    }
    if (!w_.state_out) {
      sums_ = ctx_.allocate(DType::f32, {w_.heads, w_.d, w_.e});
      w_.sums = sums_.data<float>();
    }
    chunk_kernel<T><<<blocks_for(w_.heads * w_.tiles_e), kThreads, 0, stream()>>>(w_);
    CUDA_CHECK_LAUNCH();
  }

  void recurrent() {
    const unsigned grid = blocks_for(w_.heads * ((w_.e + kColumns - 1) / kColumns));
    if (w_.d <= 8 * kWarps) {
      recurrent_kernel<T, 8><<<grid, kThreads, 0, stream()>>>(w_);
    } else if (w_.d <= 32 * kWarps) {
      recurrent_kernel<T, 32><<<grid, kThreads, 0, stream()>>>(w_);
    } else {
      if (!w_.state_out) {
        sums_ = ctx_.allocate(DType::f32, {w_.heads, w_.d, w_.e});
        w_.sums = sums_.data<float>();
      }
      recurrent_kernel<T, 0><<<grid, kThreads, 0, stream()>>>(w_);
    }
    CUDA_CHECK_LAUNCH();
  }

  void quadratic() {
    const int64_t items = w_.heads * ((w_.n + kTile - 1) / kTile) * w_.tiles_e;
    if (tensor_cores_ && args_.causal) {
      cuda_linear::Walk plan;
      plan.segment = kTile, plan.whole = true;
      cuda_linear::walk(ctx_, args_, plan);
    } else if (items > 0) {
      quadratic_kernel<T><<<blocks_for(items), kThreads, 0, stream()>>>(w_);
      CUDA_CHECK_LAUNCH();
    }
    if (!w_.state_out) return;
    block_sums();
    scan(false);
  }

  Context& ctx_;
  const LinearAttentionArgs& args_;
  const bool tensor_cores_;
  LinearWork w_{};
  Tensor sums_;
};

}  // namespace

void CudaBackend::linear_attention(Context& ctx, const LinearAttentionArgs& args) {
  by_float_type(args.q.dtype(), [&](auto type) { Run<typename decltype(type)::type>(ctx, args).run(); });
}

}  // namespace attnbench
