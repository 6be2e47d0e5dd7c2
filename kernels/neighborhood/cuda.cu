// Unfused neighbourhood products on CUDA, as the first implementations had them: one thread a score and one a
// value (naive), scores from a tile of keys in shared memory (tiled), and dense products of tiles on tensor
// cores (gemm).
#include <mma.h>

#include <algorithm>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/neighborhood/neighborhood.hpp"

namespace attnbench {
namespace {

/// Axes as three, those in front of the rule's own with one coordinate.
struct DeviceGrid {
  int grid[3] = {1, 1, 1}, window[3] = {1, 1, 1}, dilation[3] = {1, 1, 1}, stride[3] = {1, 1, 1};
  bool causal[3] = {false, false, false};
  explicit DeviceGrid(const ElementRule& r) {
    for (int a = 0; a < r.rank; ++a) {
      const size_t i = static_cast<size_t>(a);
      const int to = 3 - r.rank + a;
      grid[to] = static_cast<int>(r.grid[i]), window[to] = static_cast<int>(r.window[i]);
      dilation[to] = static_cast<int>(r.dilation[i]), stride[to] = static_cast<int>(r.stride[i]);
      causal[to] = r.causal_axis[i];
    }
  }
};
/// Places [begin, end) of the group of coordinate x that it sees.
__device__ inline void window_places(const DeviceGrid& g, int a, int x, int& begin, int& end) {
  const int d = g.dilation[a], group = x % d, p = x / d, k = g.window[a], s = g.stride[a];
  const int length = (g.grid[a] - group + d - 1) / d;
  if (g.causal[a]) {
    const int leader = min(p / s * s + s - 1, length - 1);
    begin = max(leader - k + 1, 0), end = p + 1;
  } else {
    const int leader = min(p / s * s + s / 2, length - 1);
    begin = max(0, min(leader - k / 2, length - k)), end = begin + k;
  }
}

struct Rows {
  const void* data = nullptr;
  int64_t b = 0, h = 0, n = 0;  ///< strides in elements
  Rows() = default;
  explicit Rows(const Tensor& t) : data(t.raw()), b(t.stride(0)), h(t.stride(1)), n(t.stride(2)) {}
  __device__ int64_t at(int64_t ib, int64_t ih, int64_t i) const { return ib * b + ih * h + i * n; }
};

struct Work {
  DeviceGrid g;
  Rows q, k, v, o, a;
  const void* bias = nullptr;
  int64_t bias_head = 0;
  int64_t batch, heads, group, n, d;
  float scale = 1;
  int window;
  // Tiled and gemm: tiles of `side` places of a dilation group on every axis that the rule has.
  int side[3] = {1, 1, 1}, tiles[3] = {1, 1, 1};
  explicit Work(const ElementRule& r) : g(r) { window = g.window[0] * g.window[1] * g.window[2]; }
};

__device__ inline void coordinates_of(const DeviceGrid& g, int64_t token, int (&x)[3]) {
  const int t = static_cast<int>(token);
  x[0] = t / (g.grid[1] * g.grid[2]), x[1] = t / g.grid[2] % g.grid[1], x[2] = t % g.grid[2];
}
/// Token of entry t of the query at x; -1 where a causal window has none.
__device__ inline int64_t neighbor(const DeviceGrid& g, const int (&x)[3], int t) {
  int place[3] = {t / (g.window[1] * g.window[2]), t / g.window[2] % g.window[1], t % g.window[2]};
  int64_t token = 0;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    int begin, end;
    window_places(g, a, x[a], begin, end);
    if (begin + place[a] >= end) return -1;
    token = token * g.grid[a] + (begin + place[a]) * g.dilation[a] + x[a] % g.dilation[a];
  }
  return token;
}
template <class T>
__device__ inline float bias_of(const Work& w, int64_t head, const int (&x)[3], int t) {
  const DeviceGrid& g = w.g;
  const int place[3] = {t / (g.window[1] * g.window[2]), t / g.window[2] % g.window[1], t % g.window[2]};
  int64_t at = 0;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    int begin, end;
    window_places(g, a, x[a], begin, end);
    at = at * (2 * g.window[a] - 1) + begin + place[a] - x[a] / g.dilation[a] + g.window[a] - 1;
  }
  return widen(static_cast<const T*>(w.bias)[head * w.bias_head + at]);
}

constexpr int kThreads = 256;

/// A thread an entry: neighbours of a query are neighbours in the block, so that they read the same query and
/// write side by side.
template <class T>
__global__ void __launch_bounds__(kThreads) naive_scores_kernel(Work w) {
  const int64_t all = w.batch * w.heads * w.n * w.window, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < all; item += step) {
    const int64_t row = divide(item, w.window), bh = divide(row, w.n), b = divide(bh, w.heads);
    const int t = static_cast<int>(item - row * w.window);
    const int64_t i = row - bh * w.n, h = bh - b * w.heads;
    int x[3];
    coordinates_of(w.g, i, x);
    const int64_t key = neighbor(w.g, x, t);
    float s = -INFINITY;
    if (key >= 0) {
      const T* q = static_cast<const T*>(w.q.data) + w.q.at(b, h, i);
      const T* k = static_cast<const T*>(w.k.data) + w.k.at(b, h / w.group, key);
      float sum = 0;
      for (int64_t c = 0; c < w.d; ++c) sum = fmaf(widen(q[c]), widen(k[c]), sum);
      s = sum * w.scale;
      if (w.bias) s += bias_of<T>(w, h, x, t);
    }
    static_cast<float*>(const_cast<void*>(w.a.data))[w.a.at(b, h, i) + t] = s;
  }
}

/// A thread an element of the output.
template <class T>
__global__ void __launch_bounds__(kThreads) naive_values_kernel(Work w) {
  const int64_t all = w.batch * w.heads * w.n * w.d, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < all; item += step) {
    const int64_t row = divide(item, w.d), bh = divide(row, w.n), b = divide(bh, w.heads);
    const int64_t c = item - row * w.d, i = row - bh * w.n, h = bh - b * w.heads;
    int x[3], begin[3], end[3];
    coordinates_of(w.g, i, x);
#pragma unroll
    for (int a = 0; a < 3; ++a) window_places(w.g, a, x[a], begin[a], end[a]);
    const float* weights = static_cast<const float*>(w.a.data) + w.a.at(b, h, i);
    const T* v = static_cast<const T*>(w.v.data) + w.v.at(b, h / w.group, 0) + c;
    const DeviceGrid& g = w.g;
    float sum = 0;
    for (int p0 = begin[0]; p0 < end[0]; ++p0)
      for (int p1 = begin[1]; p1 < end[1]; ++p1) {
        const int64_t x0 = p0 * g.dilation[0] + x[0] % g.dilation[0],
                      x1 = p1 * g.dilation[1] + x[1] % g.dilation[1];
        const float* at = weights + ((p0 - begin[0]) * g.window[1] + p1 - begin[1]) * g.window[2];
        const int64_t line = (x0 * g.grid[1] + x1) * g.grid[2] + x[2] % g.dilation[2];
        for (int p2 = begin[2]; p2 < end[2]; ++p2)
          sum = fmaf(at[p2 - begin[2]], widen(v[(line + static_cast<int64_t>(p2) * g.dilation[2]) * w.v.n]),
                     sum);
      }
    static_cast<T*>(const_cast<void*>(w.o.data))[w.o.at(b, h, i) + c] = narrow<T>(sum);
  }
}

/// One tile of queries and the keys between their first and last neighbour, by places of its dilation group.
struct DenseTile {
  int64_t b, h;
  int group[3], first[3], queries[3], key_first[3], keys[3];
  int query_count, key_count;
};
/// Tile number `item` of (batch, head, dilation groups, tiles). Every thread of the block computes it.
__device__ inline DenseTile tile_of(const Work& w, int64_t item) {
  DenseTile t;
  int number[3];
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const int64_t rest = divide(item, w.tiles[a]);
    number[a] = static_cast<int>(item - rest * w.tiles[a]), item = rest;
  }
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const int64_t rest = divide(item, w.g.dilation[a]);
    t.group[a] = static_cast<int>(item - rest * w.g.dilation[a]), item = rest;
  }
  t.b = divide(item, w.heads), t.h = item - t.b * w.heads;
  t.query_count = t.key_count = 1;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int d = w.g.dilation[a], length = (w.g.grid[a] - t.group[a] + d - 1) / d;
    t.first[a] = number[a] * w.side[a];
    t.queries[a] = max(0, min(w.side[a], length - t.first[a]));  // none: padding of a shorter group
    t.key_first[a] = t.keys[a] = 0;
    if (t.queries[a] > 0) {
      int begin, end, other;
      window_places(w.g, a, t.first[a] * d + t.group[a], begin, other);
      window_places(w.g, a, (t.first[a] + t.queries[a] - 1) * d + t.group[a], other, end);
      t.key_first[a] = begin, t.keys[a] = end - begin;
    }
    t.query_count *= t.queries[a], t.key_count *= t.keys[a];
  }
  return t;
}
__device__ inline int64_t token_at(const DeviceGrid& g, const int (&group)[3], int p0, int p1, int p2) {
  const int64_t x0 = static_cast<int64_t>(p0) * g.dilation[0] + group[0];
  const int64_t x1 = static_cast<int64_t>(p1) * g.dilation[1] + group[1];
  return (x0 * g.grid[1] + x1) * g.grid[2] + static_cast<int64_t>(p2) * g.dilation[2] + group[2];
}
__device__ inline int64_t query_token(const Work& w, const DenseTile& t, int i) {
  const int q2 = i % t.queries[2], q1 = i / t.queries[2] % t.queries[1],
            q0 = i / (t.queries[2] * t.queries[1]);
  return token_at(w.g, t.group, t.first[0] + q0, t.first[1] + q1, t.first[2] + q2);
}
__device__ inline int64_t key_token(const Work& w, const DenseTile& t, int j) {
  const int k2 = j % t.keys[2], k1 = j / t.keys[2] % t.keys[1], k0 = j / (t.keys[2] * t.keys[1]);
  return token_at(w.g, t.group, t.key_first[0] + k0, t.key_first[1] + k1, t.key_first[2] + k2);
}
/// Entry of key j in the window of the query at places `p`; -1 when it does not see it.
__device__ inline int entry_of(const Work& w, const DenseTile& t, const int (&x)[3], int j) {
  const int place[3] = {j / (t.keys[2] * t.keys[1]), j / t.keys[2] % t.keys[1], j % t.keys[2]};
  int entry = 0;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    int begin, end;
    window_places(w.g, a, x[a], begin, end);
    const int p = t.key_first[a] + place[a];
    if (p < begin || p >= end) return -1;
    entry = entry * w.g.window[a] + p - begin;
  }
  return entry;
}

// Scores of a tile from keys in shared memory, for 32 dims: 8 x 8 queries and, with a window of 13, 20 x 20
// keys are 58 KiB with a column of padding, which keeps the threads of a warp, that read different keys, on
// different banks.
constexpr int kTiledDim = 32, kTiledSide = 8, kTiledRow = kTiledDim + 1;

template <class T>
__global__ void __launch_bounds__(kThreads) tiled_scores_kernel(Work w, int64_t items) {
  extern __shared__ float rows[];
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const DenseTile t = tile_of(w, item);
    float* keys = rows + kTiledSide * kTiledSide * kTiledRow;
    const T* q = static_cast<const T*>(w.q.data);
    const T* k = static_cast<const T*>(w.k.data);
    for (int x = threadIdx.x; x < t.query_count * kTiledDim; x += kThreads)
      rows[x / kTiledDim * kTiledRow + x % kTiledDim] =
          widen(q[w.q.at(t.b, t.h, query_token(w, t, x / kTiledDim)) + x % kTiledDim]);
    for (int x = threadIdx.x; x < t.key_count * kTiledDim; x += kThreads)
      keys[x / kTiledDim * kTiledRow + x % kTiledDim] =
          widen(k[w.k.at(t.b, t.h / w.group, key_token(w, t, x / kTiledDim)) + x % kTiledDim]);
    __syncthreads();
    for (int x = threadIdx.x; x < t.query_count * w.window; x += kThreads) {
      const int i = x / w.window, entry = x % w.window;
      const int64_t token = query_token(w, t, i);
      int at[3];
      coordinates_of(w.g, token, at);
      // Key of the entry, as its place among the tile's keys.
      const int place[3] = {entry / (w.g.window[1] * w.g.window[2]), entry / w.g.window[2] % w.g.window[1],
                            entry % w.g.window[2]};
      int j = 0;
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        int begin, end;
        window_places(w.g, a, at[a], begin, end);
        j = j * t.keys[a] + begin + place[a] - t.key_first[a];
      }
      float sum = 0;
#pragma unroll 8
      for (int c = 0; c < kTiledDim; ++c) sum = fmaf(rows[i * kTiledRow + c], keys[j * kTiledRow + c], sum);
      float s = sum * w.scale;
      if (w.bias) s += bias_of<T>(w, t.h, at, entry);
      static_cast<float*>(const_cast<void*>(w.a.data))[w.a.at(t.b, t.h, token) + entry] = s;
    }
    __syncthreads();  // the next tile overwrites what this one reads
  }
}

// Dense products in pieces of 64 queries by 64 keys; eight warps share the 16 fragments of a piece.
constexpr int kPiece = 64, kFragment = 16, kWarps = kThreads / 32;
constexpr int kPad = 8;  // elements behind a row of 16-bit values: rows begin on different banks
constexpr int kScoreRow = kPiece + 4;
constexpr int kMostDim = 256;

__device__ inline int padded(int d) { return (d + kFragment - 1) / kFragment * kFragment; }
__host__ inline int64_t padded_row(int64_t d) { return (d + kFragment - 1) / kFragment * kFragment + kPad; }

/// Rows [from, from + 64) of a tile in shared memory, zeros behind its end and behind the last dim.
template <class T, class Token>
__device__ void load_rows(const Rows& r, int64_t b, int64_t h, int from, int count, int d, int row, T* to,
                          const Token& token) {
  const int dims = padded(d);
  for (int x = threadIdx.x; x < kPiece * dims; x += kThreads) {
    const int i = x / dims, c = x % dims;
    T value = narrow<T>(0.0f);
    if (from + i < count && c < d) value = static_cast<const T*>(r.data)[r.at(b, h, token(from + i)) + c];
    to[i * row + c] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gemm_scores_kernel(Work w, int64_t items) {
  namespace wmma = nvcuda::wmma;
  extern __shared__ __align__(128) char memory[];
  const int d = static_cast<int>(w.d), dims = padded(d), row = dims + kPad;
  T* q = reinterpret_cast<T*>(memory);
  T* k = q + kPiece * row;
  float* s = reinterpret_cast<float*>(k + kPiece * row);
  const int warp = threadIdx.x / 32;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const DenseTile t = tile_of(w, item);
    for (int q0 = 0; q0 < t.query_count; q0 += kPiece) {
      load_rows(w.q, t.b, t.h, q0, t.query_count, d, row, q, [&](int i) { return query_token(w, t, i); });
      for (int k0 = 0; k0 < t.key_count; k0 += kPiece) {
        load_rows(w.k, t.b, t.h / w.group, k0, t.key_count, d, row, k,
                  [&](int j) { return key_token(w, t, j); });
        __syncthreads();
        for (int f = warp; f < 16; f += kWarps) {
          const int r = f / 4 * kFragment, c = f % 4 * kFragment;
          wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
          wmma::fill_fragment(sum, 0.0f);
          for (int x = 0; x < dims; x += kFragment) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
            wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
            wmma::load_matrix_sync(a, q + r * row + x, row);
            wmma::load_matrix_sync(b, k + c * row + x, row);
            wmma::mma_sync(sum, a, b, sum);
          }
          wmma::store_matrix_sync(s + r * kScoreRow + c, sum, kScoreRow, wmma::mem_row_major);
        }
        __syncthreads();
        const int rows = min(kPiece, t.query_count - q0), columns = min(kPiece, t.key_count - k0);
        for (int x = threadIdx.x; x < rows * kPiece; x += kThreads) {
          const int i = x / kPiece, j = x % kPiece;
          if (j >= columns) continue;
          const int64_t token = query_token(w, t, q0 + i);
          int at[3];
          coordinates_of(w.g, token, at);
          const int entry = entry_of(w, t, at, k0 + j);
          if (entry < 0) continue;
          float score = s[i * kScoreRow + j] * w.scale;
          if (w.bias) score += bias_of<T>(w, t.h, at, entry);
          static_cast<float*>(const_cast<void*>(w.a.data))[w.a.at(t.b, t.h, token) + entry] = score;
        }
        __syncthreads();  // s and k are overwritten next
      }
      __syncthreads();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gemm_values_kernel(Work w, int64_t items) {
  namespace wmma = nvcuda::wmma;
  extern __shared__ __align__(128) char memory[];
  const int e = static_cast<int>(w.d), dims = padded(e), row = dims + kPad;
  constexpr int kWeightRow = kPiece + kPad;
  float* o = reinterpret_cast<float*>(memory);  // [64, dims + 4]
  const int o_row = dims + 4;
  T* p = reinterpret_cast<T*>(o + kPiece * o_row);
  T* v = p + kPiece * kWeightRow;
  const int warp = threadIdx.x / 32, fragments = 4 * dims / kFragment;
  // Fragments of a warp: up to 4 * 256 / 16 / 8.
  constexpr int kMost = 4 * kMostDim / kFragment / kWarps;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const DenseTile t = tile_of(w, item);
    for (int q0 = 0; q0 < t.query_count; q0 += kPiece) {
      wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[kMost];
#pragma unroll
      for (int f = 0; f < kMost; ++f) wmma::fill_fragment(sum[f], 0.0f);
      const int rows = min(kPiece, t.query_count - q0);
      for (int k0 = 0; k0 < t.key_count; k0 += kPiece) {
        load_rows(w.v, t.b, t.h / w.group, k0, t.key_count, e, row, v,
                  [&](int j) { return key_token(w, t, j); });
        for (int x = threadIdx.x; x < kPiece * kPiece; x += kThreads) {
          const int i = x / kPiece, j = x % kPiece;
          float weight = 0;
          if (i < rows && k0 + j < t.key_count) {
            const int64_t token = query_token(w, t, q0 + i);
            int at[3];
            coordinates_of(w.g, token, at);
            const int entry = entry_of(w, t, at, k0 + j);
            if (entry >= 0) weight = static_cast<const float*>(w.a.data)[w.a.at(t.b, t.h, token) + entry];
          }
          p[i * kWeightRow + j] = narrow<T>(weight);
        }
        __syncthreads();
#pragma unroll
        for (int f = 0; f < kMost; ++f) {
          const int number = f * kWarps + warp;
          if (number >= fragments) continue;
          const int r = number % 4 * kFragment, c = number / 4 * kFragment;
          for (int x = 0; x < kPiece; x += kFragment) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
            wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> b;
            wmma::load_matrix_sync(a, p + r * kWeightRow + x, kWeightRow);
            wmma::load_matrix_sync(b, v + x * row + c, row);
            wmma::mma_sync(sum[f], a, b, sum[f]);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int f = 0; f < kMost; ++f) {
        const int number = f * kWarps + warp;
        if (number >= fragments) continue;
        wmma::store_matrix_sync(o + number % 4 * kFragment * o_row + number / 4 * kFragment, sum[f], o_row,
                                wmma::mem_row_major);
      }
      __syncthreads();
      for (int x = threadIdx.x; x < rows * e; x += kThreads) {
        const int64_t token = query_token(w, t, q0 + x / e);
        static_cast<T*>(const_cast<void*>(w.o.data))[w.o.at(t.b, t.h, token) + x % e] =
            narrow<T>(o[x / e * o_row + x % e]);
      }
      __syncthreads();
    }
  }
}

int64_t set_tiles(Work& w, const ElementRule& r, int64_t side) {
  int64_t items = w.batch * w.heads;
  for (int a = 0; a < 3; ++a) {
    if (a >= 3 - r.rank) w.side[a] = static_cast<int>(side);
    const int places = (w.g.grid[a] + w.g.dilation[a] - 1) / w.g.dilation[a];  // of the longest group
    w.tiles[a] = (places + w.side[a] - 1) / w.side[a];
    items *= static_cast<int64_t>(w.tiles[a]) * w.g.dilation[a];
  }
  return items;
}
unsigned blocks_for(int64_t items) { return static_cast<unsigned>(std::min<int64_t>(items, INT32_MAX)); }

template <class Kernel>
void launch(Context& ctx, Kernel kernel, const Work& w, int64_t items, int64_t bytes) {
  if (bytes > (int64_t{48} << 10))
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<blocks_for(items), kThreads, static_cast<size_t>(bytes), stream_of(ctx)>>>(w, items);
  CUDA_CHECK_LAUNCH();
}

void require_gemm(const char* op, DType dtype, int64_t d) {
  if (dtype == DType::f32)
    throw Unsupported(std::string(op) +
                      ": the gemm form runs on tensor cores, which would round f32 to TF32");
  if (d > kMostDim)
    throw Unsupported(std::string(op) + ": the gemm form takes up to 256 dims a head, not " +
                      std::to_string(d));
}

/// The two 16-bit types.
template <class F>
void by_half_type(DType t, const F& f) {
  t == DType::bf16 ? f(Type<__nv_bfloat16>{}) : f(Type<__half>{});
}

}  // namespace

void CudaBackend::neighborhood_scores(Context& ctx, const NeighborhoodScoresArgs& args) {
  const DType dtype = args.q.dtype();
  Work w(args.rule);
  w.q = Rows(args.q), w.k = Rows(args.k), w.a = Rows(args.a);
  w.batch = args.q.dim(0), w.heads = args.q.dim(1), w.n = args.q.dim(2), w.d = args.q.dim(3);
  w.group = w.heads / args.k.dim(1), w.scale = args.scale;
  if (args.bias) w.bias = args.bias.raw(), w.bias_head = args.bias.stride(0);
  if (args.kernel == NeighborhoodKernel::naive) {
    by_float_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      naive_scores_kernel<T>
          <<<grid_for(ctx, w.batch * w.heads * w.n * w.window, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
  } else if (args.kernel == NeighborhoodKernel::tiled) {
    const int64_t items = set_tiles(w, args.rule, kTiledSide);
    const int64_t keys = kTiledSide + args.rule.window[0] - 1;
    const int64_t bytes = (kTiledSide * kTiledSide + keys * keys) * kTiledRow * 4;
    by_float_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      launch(ctx, tiled_scores_kernel<T>, w, items, bytes);
    });
  } else {
    require_gemm("neighborhood_scores", dtype, w.d);
    const int64_t items =
        set_tiles(w, args.rule, neighborhood_gemm_tile(args.rule.rank, args.rule.window[0]));
    const int64_t bytes = 2 * kPiece * padded_row(w.d) * 2 + kPiece * kScoreRow * 4;
    by_half_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      launch(ctx, gemm_scores_kernel<T>, w, items, bytes);
    });
  }
}

void CudaBackend::neighborhood_values(Context& ctx, const NeighborhoodValuesArgs& args) {
  const DType dtype = args.v.dtype();
  Work w(args.rule);
  w.a = Rows(args.a), w.v = Rows(args.v), w.o = Rows(args.o);
  w.batch = args.o.dim(0), w.heads = args.o.dim(1), w.n = args.o.dim(2), w.d = args.o.dim(3);
  w.group = w.heads / args.v.dim(1);
  if (args.kernel != NeighborhoodKernel::gemm) {
    by_float_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      naive_values_kernel<T>
          <<<grid_for(ctx, w.batch * w.heads * w.n * w.d, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    });
    return;
  }
  require_gemm("neighborhood_values", dtype, w.d);
  const int64_t items = set_tiles(w, args.rule, neighborhood_gemm_tile(args.rule.rank, args.rule.window[0]));
  const int64_t dims = padded_row(w.d) - kPad;
  const int64_t bytes = kPiece * (dims + 4) * 4 + kPiece * (kPiece + kPad) * 2 + kPiece * padded_row(w.d) * 2;
  by_half_type(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(ctx, gemm_values_kernel<T>, w, items, bytes);
  });
}

}  // namespace attnbench
