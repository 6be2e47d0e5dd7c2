// Selection on CUDA: top-k by radix selection, scans, compaction, block lists, token gathers and pooling.
// What needs sorted rows is in cuda_sort.cu.
#include <algorithm>

#include "kernels/select/geometry.hpp"
#include "kernels/select/rank.cuh"

namespace attnbench {
namespace select {
namespace {

// ---- top_k ------------------------------------------------------------------------------------------------

/// What both kernels write for a row.
struct TopKOutput {
  int32_t* index;
  float* value;
  uint8_t* flag;
  const int32_t* count;
  DeviceRows indices, values, flags, counts;
  int64_t k;
  bool largest, by_index;

  __device__ uint32_t key(float x) const { return largest ? ~order_of(x) : order_of(x); }
  __device__ int64_t wanted(int64_t row, int64_t seen) const {
    int64_t want = k;
    if (count) want = min(want, max(static_cast<int64_t>(count[counts.offset(row)]), int64_t{0}));
    return min(want, seen);
  }
  __device__ void put(int64_t row, int64_t slot, int32_t column, float x) const {
    if (index) index[indices.offset(row) + slot] = column;
    if (value) value[values.offset(row) + slot] = x;
  }
  /// Slots [from, k) stay empty; `lane` of `lanes` threads.
  __device__ void put_empty(int64_t row, int64_t from, int lane, int lanes) const {
    for (int64_t s = from + lane; s < k; s += lanes)
      put(row, s, -1, __uint_as_float(largest ? 0xff800000u : 0x7f800000u));
  }
};

/// Rows of at most 32 * kPer columns: a warp ranks every column by counting those before it.
template <int kPer>
__global__ void __launch_bounds__(kThreads)
    top_k_warp_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopKOutput out, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < rows;
       row += step) {
    const int seen = static_cast<int>(visible.end(row));
    const int want = static_cast<int>(out.wanted(row, seen));
    const float* from = x + xs.offset(row);
    uint32_t key[kPer];
    int before[kPer] = {};
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      key[i] = j < seen ? out.key(from[j]) : 0xffffffffu;
    }
#pragma unroll
    for (int o = 0; o < kPer; ++o)
      for (int l = 0; l < 32; ++l) {
        const int other = l + 32 * o;
        if (other >= seen) break;
        const uint32_t theirs = __shfl_sync(0xffffffffu, key[o], l);
#pragma unroll
        for (int i = 0; i < kPer; ++i)
          before[i] += theirs < key[i] || (theirs == key[i] && other < lane + 32 * i);
      }
    int base = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      const bool chosen = j < seen && before[i] < want;
      const unsigned votes = __ballot_sync(0xffffffffu, chosen);
      if (chosen) {
        const int slot = out.by_index ? base + __popc(votes & ((1u << lane) - 1u)) : before[i];
        out.put(row, slot, j, from[j]);
      }
      if (out.flag && j < visible.m) out.flag[out.flags.offset(row) + j] = chosen;
      base += __popc(votes);
    }
    out.put_empty(row, want, lane, 32);
  }
}

/// Rows of at most 32 * kPer columns whose chosen ones are wanted in any or in column order: a warp keeps the
/// keys in registers (rank.cuh).
template <int kPer>
__global__ void __launch_bounds__(kThreads, 2)  // the compiler's own choice spills keys
    top_k_bits_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopKOutput out, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned lower = (1u << lane) - 1u;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < rows;
       row += step) {
    const int seen = static_cast<int>(visible.end(row));
    const int want = static_cast<int>(out.wanted(row, seen));
    const float* from = x + xs.offset(row);
    uint32_t key[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      key[i] = j < seen ? out.key(from[j]) : 0xffffffffu;
    }
    const Cut cut = best_of<kPer>(key, want, seen);
    int ties = 0, base = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = lane + 32 * i;
      const bool chosen = cut.takes(key[i], j < seen, lower, ties);
      const unsigned votes = __ballot_sync(0xffffffffu, chosen);
      if (chosen && out.index) out.put(row, base + __popc(votes & lower), j, from[j]);
      if (out.flag && j < visible.m) out.flag[out.flags.offset(row) + j] = chosen;
      base += __popc(votes);
    }
    if (out.index) out.put_empty(row, want, lane, 32);
  }
}

/// Chosen columns that a block sorts by value in shared memory.
constexpr int kSortedInBlock = 2048;

/// Rows of any length: the key of the last chosen column by radix selection, eight bits a pass, then one pass
/// in column order that takes everything before that key and the first columns that share it.
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopKOutput out, int64_t rows) {
  using Scan = cub::BlockScan<unsigned long long, kThreads>;
  __shared__ union {
    unsigned histogram[256];
    typename Scan::TempStorage scan;
  } shared;
  __shared__ uint32_t chosen_digit, chosen_below;
  extern __shared__ unsigned long long ranked[];  // by value only: kSortedInBlock
  const int t = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* from = x + xs.offset(row);
    const int64_t seen = visible.end(row), want = out.wanted(row, seen), m = visible.m;
    // Among the seen columns `below` keys are less than `prefix` (its high bits so far).
    uint32_t prefix = 0, mask = 0;
    int64_t below = 0;
    if (want > 0 && want < seen) {
      for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        shared.histogram[t] = 0;
        __syncthreads();
        for (int64_t j = t; j < seen; j += kThreads) {
          const uint32_t key = out.key(from[j]);
          if ((key & mask) == prefix) atomicAdd(&shared.histogram[key >> shift & 255u], 1u);
        }
        __syncthreads();
        if (t < 32) {  // eight digits a lane
          unsigned own = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) own += shared.histogram[t * 8 + i];
          unsigned upto = own;
#pragma unroll
          for (int s = 1; s < 32; s *= 2) {
            const unsigned other = __shfl_up_sync(0xffffffffu, upto, s);
            if (t >= s) upto += other;
          }
          const int64_t need = want - below;  // in [1, keys with this prefix]
          unsigned start = upto - own;
          if (static_cast<int64_t>(start) < need && need <= static_cast<int64_t>(upto)) {
            int digit = t * 8;
            while (static_cast<int64_t>(start + shared.histogram[digit]) < need)
              start += shared.histogram[digit++];
            chosen_digit = static_cast<uint32_t>(digit);
            chosen_below = start;
          }
        }
        __syncthreads();
        prefix |= chosen_digit << shift;
        mask |= 255u << shift;
        below += chosen_below;
      }
    }
    const bool all = want == seen, nothing = want == 0;
    const int64_t ties = want - below;  // columns to take among those whose key is prefix
    unsigned long long before = 0;      // ties << 32 | columns below, of the chunks done
    __syncthreads();
    for (int64_t base = 0; base < m; base += kChunk) {
      unsigned long long own[kItems], start[kItems], chunk;
      float v[kItems];
      uint32_t key[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t j = base + static_cast<int64_t>(t) * kItems + i;
        v[i] = 0.0f, key[i] = 0;
        own[i] = 0;
        if (j >= seen || nothing) continue;
        v[i] = from[j];
        key[i] = out.key(v[i]);
        own[i] = all || key[i] < prefix ? 1ull : key[i] == prefix ? 1ull << 32 : 0ull;
      }
      Scan(shared.scan).ExclusiveSum(own, start, chunk);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t j = base + static_cast<int64_t>(t) * kItems + i;
        if (j >= m) continue;
        const unsigned long long at = before + start[i];
        const int64_t ties_before = static_cast<int64_t>(at >> 32);
        const bool chosen = own[i] == 1ull || (own[i] != 0 && ties_before < ties);
        if (out.flag) out.flag[out.flags.offset(row) + j] = chosen;
        if (!chosen || !out.index) continue;
        const int64_t slot = static_cast<int64_t>(at & 0xffffffffull) + min(ties_before, ties);
        if (out.by_index)
          out.put(row, slot, static_cast<int32_t>(j), v[i]);
        else
          ranked[slot] = static_cast<unsigned long long>(key[i]) << 32 | static_cast<uint32_t>(j);
      }
      before += chunk;
      __syncthreads();
    }
    if (out.index && !out.by_index && want > 0) {
      int padded = 1;
      while (padded < want) padded *= 2;
      for (int s = static_cast<int>(want) + t; s < padded; s += kThreads) ranked[s] = ~0ull;
      __syncthreads();
      for (int size = 2; size <= padded; size *= 2)
        for (int gap = size / 2; gap > 0; gap /= 2) {
          for (int i = t; i < padded; i += kThreads) {
            const int partner = i ^ gap;
            if (partner <= i) continue;
            const unsigned long long a = ranked[i], b = ranked[partner];
            if ((a > b) == ((i & size) == 0)) ranked[i] = b, ranked[partner] = a;
          }
          __syncthreads();
        }
      for (int s = t; s < want; s += kThreads) {
        const auto column = static_cast<int32_t>(ranked[s] & 0xffffffffull);
        out.put(row, s, column, from[column]);
      }
    }
    out.put_empty(row, want, t, kThreads);
    __syncthreads();
  }
}

/// By value with more columns than a block sorts: whole rows are sorted, invisible columns last.
__global__ void __launch_bounds__(kThreads)
    top_k_keys_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopKOutput out, uint32_t* keys,
                      Divisor m, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = m.of(i), j = i - row * m.n;
    keys[i] = j < visible.end(row) ? out.key(x[xs.offset(row) + j]) : 0xffffffffu;
  }
}
__global__ void __launch_bounds__(kThreads)
    top_k_sorted_kernel(const float* x, DeviceRows xs, DeviceVisible visible, TopKOutput out,
                        const int32_t* columns, int64_t rows) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t seen = visible.end(row), want = out.wanted(row, seen), m = visible.m;
    const float* from = x + xs.offset(row);
    if (out.flag)
      for (int64_t j = threadIdx.x; j < m; j += kThreads) out.flag[out.flags.offset(row) + j] = 0;
    __syncthreads();
    for (int64_t s = threadIdx.x; s < want; s += kThreads) {
      const int32_t column = columns[row * m + s];
      out.put(row, s, column, from[column]);
      if (out.flag) out.flag[out.flags.offset(row) + column] = 1;
    }
    out.put_empty(row, want, static_cast<int>(threadIdx.x), kThreads);
    __syncthreads();
  }
}

// ---- prefix_sum -------------------------------------------------------------------------------------------

template <class T, class Sum>
__global__ void __launch_bounds__(kThreads)
    prefix_kernel(const T* x, DeviceRows xs, T* y, DeviceRows ys, int64_t rows, int64_t m, bool exclusive) {
  using Scan = cub::BlockScan<Sum, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + xs.offset(row);
    T* to = y + ys.offset(row);
    Sum before = 0;
    for (int64_t base = 0; base < m; base += kChunk) {
      Sum own[kItems], sum[kItems], chunk;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t j = base + static_cast<int64_t>(threadIdx.x) * kItems + i;
        own[i] = j < m ? static_cast<Sum>(from[j]) : Sum(0);
      }
      Scan(storage).ExclusiveSum(own, sum, chunk);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t j = base + static_cast<int64_t>(threadIdx.x) * kItems + i;
        if (j < m) to[j] = static_cast<T>(before + sum[i] + (exclusive ? Sum(0) : own[i]));
      }
      before += chunk;
      __syncthreads();
    }
  }
}

// ---- compact_flags ----------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    compact_kernel(const uint8_t* flag, DeviceRows flags, int32_t* index, DeviceRows indices, int32_t* count,
                   int64_t rows, int64_t m, int64_t k) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint8_t* from = flag + flags.offset(row);
    int32_t* to = index + indices.offset(row);
    int64_t found = 0;
    for (int64_t base = 0; base < m; base += kChunk) {
      int own[kItems], start[kItems], chunk;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t j = base + static_cast<int64_t>(threadIdx.x) * kItems + i;
        own[i] = j < m && from[j] != 0;
      }
      Scan(storage).ExclusiveSum(own, start, chunk);
#pragma unroll
      for (int i = 0; i < kItems; ++i)
        if (own[i] && found + start[i] < k)
          to[found + start[i]] = static_cast<int32_t>(base + static_cast<int64_t>(threadIdx.x) * kItems + i);
      found += chunk;
      __syncthreads();
    }
    for (int64_t s = found + threadIdx.x; s < k; s += kThreads) to[s] = -1;
    if (threadIdx.x == 0) count[row] = static_cast<int32_t>(found);
  }
}

// ---- compare_flags ----------------------------------------------------------------------------------------

template <class Flag>
__global__ void __launch_bounds__(kThreads)
    compare_kernel(const float* x, DeviceRows xs, const float* y, DeviceRows ys, const float* z,
                   DeviceRows zs, float threshold, Flag* flag, DeviceRows flags, Divisor columns,
                   int64_t count, CompareArgs::Relation relation) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = columns.of(i), j = i - row * columns.n;
    float a = x[xs.offset(row) + j], b = y ? y[ys.offset(row) + j] : threshold;
    if (z) a = fabsf(a), b = fabsf(b) + fabsf(z[zs.offset(row) + j]);
    bool holds = false;
    switch (relation) {
      case CompareArgs::Relation::greater:
        holds = a > b;
        break;
      case CompareArgs::Relation::greater_equal:
        holds = a >= b;
        break;
      case CompareArgs::Relation::less:
        holds = a < b;
        break;
      case CompareArgs::Relation::less_equal:
        holds = a <= b;
        break;
    }
    flag[flags.offset(row) + j] = holds;
  }
}

// ---- gather_tokens ----------------------------------------------------------------------------------------

struct Strides {
  int64_t b, h, t;
  Strides(const Tensor& x, int64_t per_unit)
      : b(x.stride(0) / per_unit), h(x.stride(1) / per_unit), t(x.stride(2) / per_unit) {}
};

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_tokens_kernel(const Unit* x, Strides xs, Divisor share, int64_t n, const int32_t* index,
                         int64_t index_b, int64_t index_h, Divisor group, Unit* y, Strides ys, Divisor units,
                         Divisor entries, Divisor heads, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = units.of(i), c = i - row * units.n;
    const int64_t bh = entries.of(row), e = row - bh * entries.n, b = heads.of(bh), h = bh - b * heads.n;
    const int32_t at = index[b * index_b + group.of(h) * index_h + e];
    Unit value;
    if (at >= 0 && at < n)
      value = x[b * xs.b + share.of(h) * xs.h + at * xs.t + c];
    else
      memset(&value, at == -1 ? 0 : 0xff, sizeof value);
    y[b * ys.b + h * ys.h + e * ys.t + c] = value;
  }
}

// ---- pool_tokens ------------------------------------------------------------------------------------------

/// A thread for N neighbouring channels of a block: its tokens one after another, as on the CPU, bit for bit.
template <class T, int N, class Out>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const T* x, Strides xs, Out* y, Strides ys, const float* center, Strides cs,
                const int32_t* bounds, int64_t bounds_b, int64_t block, int64_t n, Divisor packs,
                Divisor blocks, Divisor heads, PoolTokensArgs::Kind kind, PoolTokensArgs::Divisor divisor,
                int64_t count) {
  using Kind = PoolTokensArgs::Kind;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t item = packs.of(i), c = (i - item * packs.n) * N;
    const int64_t bh = blocks.of(item), s = item - bh * blocks.n, b = heads.of(bh), h = bh - b * heads.n;
    int64_t begin = s * block, end = min(n, begin + block);
    if (bounds) {
      const int32_t* bound = bounds + b * bounds_b;
      begin = min(max(static_cast<int64_t>(bound[s]), int64_t{0}), n);
      end = bound[s + 1] < 0 ? begin : min(max(static_cast<int64_t>(bound[s + 1]), begin), n);
    }
    const int64_t tokens = max(end - begin, int64_t{0});
    const float infinity = __uint_as_float(0x7f800000u);
    const float start = tokens == 0         ? 0.0f
                        : kind == Kind::max ? -infinity
                        : kind == Kind::min ? infinity
                                            : 0.0f;
    float sum[N], middle[N];
#pragma unroll
    for (int v = 0; v < N; ++v) {
      sum[v] = start;
      middle[v] = center ? center[b * cs.b + h * cs.h + s * cs.t + c + v] : 0.0f;
    }
    const T* from = x + b * xs.b + h * xs.h + c;
    const auto walk = [&](const auto& add) {
#pragma unroll 4
      for (int64_t t = begin; t < end; ++t) {
        float v[N];
        load_wide(from + t * xs.t, v);
#pragma unroll
        for (int e = 0; e < N; ++e) sum[e] = add(sum[e], v[e], middle[e]);
      }
    };
    switch (kind) {
      case Kind::sum:
      case Kind::mean:
        walk([](float s, float v, float) { return s + v; });
        break;
      case Kind::max:
        walk([](float s, float v, float) { return s > v || s != s ? s : v; });
        break;
      case Kind::min:
        walk([](float s, float v, float) { return s < v || s != s ? s : v; });
        break;
      case Kind::absolute_deviation:
        walk([](float s, float v, float m) { return s + fabsf(v - m); });
        break;
    }
    const bool whole = divisor == PoolTokensArgs::Divisor::whole;
    const float by = divisor == PoolTokensArgs::Divisor::real ? static_cast<float>(tokens)
                     : whole                                  ? static_cast<float>(block)
                                                              : sqrtf(static_cast<float>(tokens));
#pragma unroll
    for (int e = 0; e < N; ++e) {
      if (kind == Kind::absolute_deviation && whole && tokens < block)
        // Not fused: selections compare these sums, and the CPU rounds the product by itself.
        sum[e] += __fmul_rn(static_cast<float>(block - tokens), fabsf(middle[e]));
      if ((kind == Kind::mean || kind == Kind::absolute_deviation) && tokens > 0) sum[e] /= by;
      y[b * ys.b + h * ys.h + s * ys.t + c + e] = narrow<Out>(sum[e]);
    }
  }
}

template <class T, int N, class Out>
void pool_as(Context& ctx, const PoolTokensArgs& args) {
  const int64_t packs = args.y.dim(3) / N, count = args.y.numel() / N;
  pool_kernel<T, N, Out><<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      static_cast<const T*>(args.x.raw()), Strides(args.x, 1), static_cast<Out*>(args.y.raw()),
      Strides(args.y, 1), args.center ? args.center.data<float>() : nullptr,
      Strides(args.center ? args.center : args.y, 1), args.bounds ? args.bounds.data<int32_t>() : nullptr,
      args.bounds && args.bounds.dim(0) > 1 ? args.bounds.stride(0) : 0, args.block, args.x.dim(2),
      Divisor(packs), Divisor(args.y.dim(2)), Divisor(args.y.dim(1)), args.kind, args.divisor, count);
  CUDA_CHECK_LAUNCH();
}

// ---- build_block_lists ------------------------------------------------------------------------------------

struct ListOutput {
  int32_t *begin, *count, *index;
  int64_t capacity;
};
struct ListSources {
  const uint8_t *bitmap, *also, *columns, *diagonals;
  bool diagonal;
  int64_t window, first_columns, last_rows;
};

/// What a row of blocks takes from sources that are not flags, and where its full and partial blocks lie, as
/// columns. Narrow integers: the loop over columns is all that a row costs.
struct ListRow {
  int first_columns, near, diagonal, full_end, end;
  bool whole, on_diagonal, ranges;

  __device__ ListRow(const BlockGeometry& g, const ListSources& source, int64_t r, int64_t nq, int64_t nk) {
    const int64_t d = g.diagonal(r);
    first_columns = static_cast<int>(min(source.first_columns, nk));
    near = static_cast<int>(max(d - min(source.window, nk), int64_t{-1}));
    diagonal = static_cast<int>(d);
    whole = r >= nq - source.last_rows;
    on_diagonal = source.diagonal;
    // Without a band everything below an end that grows with the query is visible.
    ranges = !g.band;
    const int64_t first = r * g.block_q, last = min(g.n, first + g.block_q) - 1;
    const auto columns = [&](int64_t keys, int64_t round) {
      return static_cast<int>(keys >= g.m ? nk : max(keys + round, int64_t{0}) / g.block_k);
    };
    full_end = columns(g.high(first), 0);
    end = ranges ? columns(g.high(last), g.block_k - 1) : static_cast<int>(nk);
  }
  __device__ bool chooses(int c) const {
    return c < first_columns || whole || (c <= diagonal && (c > near || (on_diagonal && c == diagonal)));
  }
};

/// N flags of one access; 0 where there is no source.
template <int N>
__device__ uint32_t flags_at(const uint8_t* from, int64_t at) {
  if (!from) return 0;
  if constexpr (N == 4) return *reinterpret_cast<const uint32_t*>(from + at);
  return from[at];
}

/// A warp a row, N neighbouring columns a lane.
template <int N>
__global__ void __launch_bounds__(kThreads)
    lists_kernel(BlockGeometry geometry, ListSources source, ListOutput full, ListOutput partial,
                 int32_t* selected, Divisor nq, int64_t nk, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x % 32), columns = static_cast<int>(nk);
  const unsigned lower = (1u << lane) - 1u;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < rows;
       row += step) {
    const int64_t group = nq.of(row), r = row - group * nq.n;
    const ListRow own(geometry, source, r, nq.n, nk);
    int found_full = 0, found_partial = 0;
    for (int base = 0; base < columns && (selected || base < own.end); base += 32 * N) {
      const int c0 = base + lane * N;
      uint32_t flags = 0;
      if (c0 < own.end)
        flags = flags_at<N>(source.bitmap, row * nk + c0) | flags_at<N>(source.also, r * nk + c0) |
                flags_at<N>(source.columns, group * nk + c0);
      int kind[N];
      unsigned votes_full[N], votes_partial[N];
      int before_full = found_full, before_partial = found_partial;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int c = c0 + i;
        bool chosen = c < own.end && ((flags >> (8 * i) & 255u) != 0 || own.chooses(c));
        if (source.diagonals && !chosen && c < own.end && c <= r && r - c < nk)
          chosen = source.diagonals[group * nk + r - c] != 0;
        kind[i] = BlockGeometry::none;
        if (chosen)
          kind[i] = !own.ranges        ? geometry.classify(r, c)
                    : c < own.full_end ? BlockGeometry::full
                                       : BlockGeometry::partial;
        votes_full[i] = __ballot_sync(0xffffffffu, kind[i] == BlockGeometry::full);
        votes_partial[i] = __ballot_sync(0xffffffffu, kind[i] == BlockGeometry::partial);
        before_full += __popc(votes_full[i] & lower), before_partial += __popc(votes_partial[i] & lower);
        found_full += __popc(votes_full[i]), found_partial += __popc(votes_partial[i]);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (kind[i] == BlockGeometry::none) continue;
        const bool to_full = kind[i] == BlockGeometry::full;
        const ListOutput& list = to_full ? full : partial;
        const int slot = to_full ? before_full++ : before_partial++;
        if (slot < list.capacity) list.index[row * list.capacity + slot] = c0 + i;
      }
      if (!selected || c0 >= columns) continue;
      if constexpr (N == 4)
        *reinterpret_cast<int4*>(selected + row * nk + c0) =
            make_int4(kind[0] != 0, kind[1] != 0, kind[2] != 0, kind[3] != 0);
      else
        selected[row * nk + c0] = kind[0] != BlockGeometry::none;
    }
    if (lane == 0) {
      full.begin[row] = static_cast<int32_t>(row * full.capacity);
      full.count[row] = static_cast<int32_t>(min(static_cast<int64_t>(found_full), full.capacity));
      if (partial.begin) {
        partial.begin[row] = static_cast<int32_t>(row * partial.capacity);
        partial.count[row] = static_cast<int32_t>(min(static_cast<int64_t>(found_partial), partial.capacity));
      }
    }
  }
}

}  // namespace
}  // namespace select

using namespace select;

void CudaBackend::top_k(Context& ctx, const TopKArgs& args) {
  const int64_t m = args.x.dim(-1);
  const DeviceRows xs(args.x, 1);
  const int64_t rows = xs.count;
  const DeviceVisible visible(args.x, args.visible);
  TopKOutput out{};
  out.index = args.index ? args.index.data<int32_t>() : nullptr;
  out.value = args.value ? args.value.data<float>() : nullptr;
  out.flag = args.flag ? args.flag.data<uint8_t>() : nullptr;
  out.count = args.count ? args.count.data<int32_t>() : nullptr;
  if (args.index) out.indices = DeviceRows(args.index, 1);
  if (args.value) out.values = DeviceRows(args.value, 1);
  if (args.flag) out.flags = DeviceRows(args.flag, 1);
  if (args.count) out.counts = DeviceRows(args.count, 0);
  out.k = args.k;
  out.largest = args.largest;
  out.by_index = args.order == TopKArgs::Order::index;
  const float* x = args.x.data<float>();
  const cudaStream_t stream = stream_of(ctx);
  if (m <= 128) {
    const unsigned grid = grid_for(ctx, rows * 32, kThreads);
    if (m <= 32)
      top_k_warp_kernel<1><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
    else
      top_k_warp_kernel<4><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
  } else if (m <= 2048 && (!out.index || out.by_index)) {
    const unsigned grid = grid_for(ctx, rows * 32, kThreads);
    if (m <= 256)
      top_k_bits_kernel<8><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
    else if (m <= 512)
      top_k_bits_kernel<16><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
    else if (m <= 1024)
      top_k_bits_kernel<32><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
    else
      top_k_bits_kernel<64><<<grid, kThreads, 0, stream>>>(x, xs, visible, out, rows);
  } else if (!out.index || out.by_index || std::min(args.k, m) <= kSortedInBlock) {
    const bool ranks = out.index && !out.by_index;
    top_k_kernel<<<grid_for(ctx, rows * kThreads, kThreads), kThreads,
                   ranks ? kSortedInBlock * sizeof(unsigned long long) : 0, stream>>>(x, xs, visible, out,
                                                                                      rows);
  } else {
    const Tensor keys = ctx.allocate(DType::i32, {rows * m}), columns = ctx.allocate(DType::i32, {rows * m});
    auto* key = static_cast<uint32_t*>(keys.raw());
    top_k_keys_kernel<<<grid_for(ctx, rows * m, kThreads), kThreads, 0, stream>>>(x, xs, visible, out, key,
                                                                                  Divisor(m), rows * m);
    CUDA_CHECK_LAUNCH();
    sort_rows(ctx, key, rows, m, nullptr, columns.data<int32_t>());
    top_k_sorted_kernel<<<grid_for(ctx, rows * kThreads, kThreads), kThreads, 0, stream>>>(
        x, xs, visible, out, columns.data<int32_t>(), rows);
  }
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::prefix_sum(Context& ctx, const PrefixSumArgs& args) {
  const DeviceRows xs(args.x, 1), ys(args.y, 1);
  const unsigned grid = grid_for(ctx, xs.count * kThreads, kThreads);
  // Sums of integers wrap.
  if (args.x.dtype() == DType::f32)
    prefix_kernel<float, double><<<grid, kThreads, 0, stream_of(ctx)>>>(
        args.x.data<float>(), xs, args.y.data<float>(), ys, xs.count, args.x.dim(-1), args.exclusive);
  else
    prefix_kernel<uint32_t, uint32_t><<<grid, kThreads, 0, stream_of(ctx)>>>(
        static_cast<const uint32_t*>(args.x.raw()), xs, static_cast<uint32_t*>(args.y.raw()), ys, xs.count,
        args.x.dim(-1), args.exclusive);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::compact_flags(Context& ctx, const CompactArgs& args) {
  const DeviceRows flags(args.flag, 1);
  compact_kernel<<<grid_for(ctx, flags.count * kThreads, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.flag.data<uint8_t>(), flags, args.index.data<int32_t>(), DeviceRows(args.index, 1),
      args.count.data<int32_t>(), flags.count, args.flag.dim(-1), args.index.dim(-1));
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::compare_flags(Context& ctx, const CompareArgs& args) {
  const int inner = args.x.rank() > 0 ? 1 : 0;
  const int64_t columns = inner ? args.x.dim(-1) : 1, count = args.x.numel();
  const auto rows = [inner](const Tensor& t) { return t ? DeviceRows(t, inner) : DeviceRows(); };
  const auto floats = [](const Tensor& t) { return t ? t.data<float>() : nullptr; };
  const auto run = [&](auto* flag) {
    compare_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
        floats(args.x), rows(args.x), floats(args.y), rows(args.y), floats(args.z), rows(args.z),
        args.threshold, flag, rows(args.flag), Divisor(columns), count, args.relation);
    CUDA_CHECK_LAUNCH();
  };
  if (args.flag.dtype() == DType::u8)
    run(args.flag.data<uint8_t>());
  else
    run(args.flag.data<int32_t>());
}

void CudaBackend::gather_tokens(Context& ctx, const GatherTokensArgs& args) {
  const int64_t heads = args.y.dim(1), entries = args.y.dim(2);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t bytes = args.y.dim(3) * size;
  if (bytes == 0) return;
  const auto run = [&](auto type) {
    using Unit = typename decltype(type)::type;
    const auto per_unit = static_cast<int64_t>(sizeof(Unit)) / size;
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit)),
                  count = args.y.dim(0) * heads * entries * units;
    gather_tokens_kernel<Unit><<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const Unit*>(args.x.raw()), Strides(args.x, per_unit), Divisor(heads / args.x.dim(1)),
        args.x.dim(2), args.index.data<int32_t>(), args.index.dim(0) == 1 ? 0 : args.index.stride(0),
        args.index.stride(1), Divisor(heads / args.index.dim(1)), static_cast<Unit*>(args.y.raw()),
        Strides(args.y, per_unit), Divisor(units), Divisor(entries), Divisor(heads), count);
    CUDA_CHECK_LAUNCH();
  };
  if (packable(args.x, 16) && packable(args.y, 16)) return run(Type<uint4>{});
  switch (size) {
    case 8:
      return run(Type<uint2>{});
    case 4:
      return run(Type<uint32_t>{});
    case 2:
      return run(Type<uint16_t>{});
    default:
      return run(Type<uint8_t>{});
  }
}

void CudaBackend::pool_tokens(Context& ctx, const PoolTokensArgs& args) {
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kPack = kVector<T>;
    const auto pooled = [&](auto out) {
      using Out = typename decltype(out)::type;
      if (packable(args.x, 16))
        pool_as<T, kPack, Out>(ctx, args);
      else
        pool_as<T, 1, Out>(ctx, args);
    };
    if constexpr (!std::is_same_v<T, float>)
      if (args.y.dtype() != DType::f32) return pooled(Type<T>{});
    pooled(Type<float>{});
  });
}

void CudaBackend::build_block_lists(Context& ctx, const BlockListsArgs& args) {
  const int64_t nq = args.full.count.dim(2), rows = args.full.count.numel();
  const int64_t nk = (args.m + args.block_k - 1) / args.block_k;
  const auto u8 = [](const Tensor& t) { return t ? t.data<uint8_t>() : nullptr; };
  const auto list = [&](const BlockList& l) {
    if (!l) return ListOutput{nullptr, nullptr, nullptr, 0};
    return ListOutput{l.begin.data<int32_t>(), l.count.data<int32_t>(), l.index.data<int32_t>(),
                      l.index.dim(0) / rows};
  };
  const ListSources source{u8(args.bitmap), u8(args.also), u8(args.columns),   u8(args.diagonals),
                           args.diagonal,   args.window,   args.first_columns, args.last_rows};
  const auto run = [&](auto kernel) {
    kernel<<<grid_for(ctx, rows * 32, kThreads), kThreads, 0, stream_of(ctx)>>>(
        BlockGeometry(args.rule, args.n, args.m, args.block_q, args.block_k), source, list(args.full),
        list(args.partial), args.selected ? args.selected.data<int32_t>() : nullptr, Divisor(nq), nk, rows);
  };
  const auto aligned = [nk](const void* p, uintptr_t bytes) {
    return nk % 4 == 0 && reinterpret_cast<uintptr_t>(p) % bytes == 0;
  };
  const void* selected = args.selected ? args.selected.raw() : nullptr;
  if (aligned(source.bitmap, 4) && aligned(source.also, 4) && aligned(source.columns, 4) &&
      aligned(selected, 16))
    run(lists_kernel<4>);
  else
    run(lists_kernel<1>);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
