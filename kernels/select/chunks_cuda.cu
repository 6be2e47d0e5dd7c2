// Gap ratios, spaced choices and chunk lists on CUDA. Ratios: a block of threads for a strip of key columns,
// which meets every row in order, so that sums have one order. Choices: a warp a row, whose lanes look ahead
// while the best survivor decides. Lists: a block of threads a query block.
#include <cub/block/block_scan.cuh>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/chunks.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
/// Columns and rows of a tile of the map, and the depth of it that shared memory holds at a time.
constexpr int kTile = 32, kDepth = 32;
constexpr int kRowsAtOnce = kThreads / kTile;

struct Strides {
  int64_t b, h, t;
  explicit Strides(const Tensor& x) : b(x.stride(0)), h(x.stride(1)), t(x.stride(2)) {}
};

struct Gaps {
  int64_t n, d, heads, group, w, window, reach, strips;
  float scale;
};

/// near and far [B, N, 2 w] are zero before; bulk [B, N] is written. Of each (column, row) pair one thread
/// adds the heads in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    lag_sums_kernel(const T* q, Strides qs, const T* k, Strides ks, const float* lse, Gaps a, double* near,
                    double* far, double* bulk) {
  __shared__ float keys[kTile][kDepth + 1], queries[kTile][kDepth + 1];
  __shared__ double parts[kRowsAtOnce][kTile];
  const int column = static_cast<int>(threadIdx.x) % kTile, line = static_cast<int>(threadIdx.x) / kTile;
  const int64_t b = blockIdx.x / a.strips, first = (blockIdx.x - b * a.strips) * kTile, j = first + column;
  const int64_t last = a.window < 0 ? a.n : min(a.n, first + kTile + a.window), lags = 2 * a.w;
  double sum = 0;
  for (int64_t h = 0; h < a.heads; ++h) {
    const T* from_q = q + b * qs.b + h * qs.h;
    const T* from_k = k + b * ks.b + h / a.group * ks.h;
    for (int64_t r0 = first; r0 < last; r0 += kTile) {
      float s[kTile / kRowsAtOnce] = {};
      for (int64_t c0 = 0; c0 < a.d; c0 += kDepth) {
        __syncthreads();  // the last tile has been read
        for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
          const int at = i / kDepth, c = i % kDepth;
          const bool inside = c0 + c < a.d;
          keys[at][c] = inside && first + at < a.n ? widen(from_k[(first + at) * ks.t + c0 + c]) : 0.0f;
          queries[at][c] = inside && r0 + at < a.n ? widen(from_q[(r0 + at) * qs.t + c0 + c]) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < kDepth; ++c)
#pragma unroll
          for (int i = 0; i < kTile / kRowsAtOnce; ++i)
            s[i] += queries[line + i * kRowsAtOnce][c] * keys[column][c];
      }
#pragma unroll
      for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
        const int64_t r = r0 + line + i * kRowsAtOnce, lag = r - j;
        if (j >= a.n || r >= a.n || lag < 0 || (a.window >= 0 && lag > a.window)) continue;
        const auto p = static_cast<double>(expf(a.scale * s[i] - lse[(b * a.heads + h) * a.n + r]));
        const int64_t at = (b * a.n + j) * lags;
        if (lag < lags)
          near[at + lag] += p;
        else if (a.reach == 0 || lag < a.reach)
          sum += p;
        else if (lag < a.reach + lags)
          far[at + lag - a.reach] += p;
      }
    }
  }
  parts[line][column] = sum;
  __syncthreads();
  if (line == 0 && j < a.n) {
    double all = 0;
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) all += parts[i][column];
    bulk[b * a.n + j] = all;
  }
}

__global__ void __launch_bounds__(kThreads)
    gap_ratios_kernel(const double* near, const double* far, const double* bulk, Gaps a, float* score,
                      Divisor n, int64_t count) {
  const int64_t lags = 2 * a.w, step = static_cast<int64_t>(gridDim.x) * kThreads;
  const auto column = [&](int64_t at, int64_t lag) {
    double sum = bulk[at];
    for (int64_t e = lag; e < lags; ++e) sum += near[at * lags + e];
    if (a.reach > 0)
      for (int64_t e = 0; e < lag; ++e) sum += far[at * lags + e];
    return sum / static_cast<double>(a.heads);
  };
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t t = i - n.of(i) * n.n;
    double ratio = 0;
    if (t >= lags - 1 && t < a.n - lags) {
      double past = 0, future = 0;
      for (int64_t c = 0; c < a.w; ++c) {
        past += column(i - c, a.w + c);
        future += column(i + 1 + c, a.w - 1 - c);
      }
      ratio = (fmax(past, future) + 1e-6) / (fmin(past, future) + 1e-6);
    }
    score[i] = static_cast<float>(ratio);
  }
}

__global__ void __launch_bounds__(32)
    pick_spaced_kernel(const float* score, DeviceRows scores, const int32_t* order, DeviceRows orders,
                       uint8_t* flag, DeviceRows flags, int64_t m, float threshold, int64_t spacing,
                       int64_t limit, int64_t forced, int64_t last) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* value = score + scores.offset(row);
  const int32_t* visit = order + orders.offset(row);
  // Lanes read what others wrote: no copies in registers.
  volatile uint8_t* set = flag + flags.offset(row);
  for (int64_t i = lane; i < m; i += 32) set[i] = 0;
  __syncwarp();
  int64_t chosen = 0;
  if (forced >= 0) {
    if (lane == 0) set[forced] = 1;
    ++chosen;
  }
  __syncwarp();
  for (int64_t base = 0; base < m; base += 32) {
    int64_t t = -1;
    bool alive = false, low = false;
    if (base + lane < m) {
      t = visit[base + lane];
      const float x = value[t];
      alive = x > threshold && t <= last;
      low = x <= threshold;
    }
    if (alive) {
      const int64_t begin = max(int64_t{0}, t - spacing), end = spacing >= m - t ? m : t + spacing + 1;
      for (int64_t i = begin; i < end && alive; ++i) alive = set[i] == 0;
    }
    // What follows a score at or below the threshold is below it, too; lanes before it are still to decide.
    const unsigned ended = __ballot_sync(0xffffffffu, low);
    unsigned open = __ballot_sync(0xffffffffu, alive);
    while (open != 0) {
      const int leader = __ffs(static_cast<int>(open)) - 1;
      const int64_t best = __shfl_sync(0xffffffffu, t, leader);
      if (lane == leader) set[best] = 1;
      if (++chosen >= limit) return;  // the same in every lane
      alive = alive && (t - best > spacing || best - t > spacing);
      open = __ballot_sync(0xffffffffu, alive);
    }
    if (ended != 0) return;
    __syncwarp();
  }
}

struct Lists {
  int64_t n, first, rows, block_q, window, recent, leading, chunks, k, bounds_stride;
  Divisor nq;
};

__global__ void __launch_bounds__(kThreads)
    chunk_lists_kernel(const int32_t* order, const int32_t* all_bounds, int32_t* takes, int32_t* tokens,
                       int32_t* begin, int32_t* count, int32_t* index, Lists a) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t row = blockIdx.x, b = a.nq.of(row), block = row - b * a.nq.n;
  const int64_t start = a.first + block * a.block_q, end = start + a.block_q, hi = min(a.n, end);
  const int64_t lo = a.window > 0 ? min(max(end - a.window, int64_t{0}), hi) : 0;
  const int64_t recent = min(min(a.recent, a.k), hi - lo), cut = hi - recent, rest = a.k - recent;
  const int32_t* bounds = all_bounds + b * a.bounds_stride;
  const int32_t* visit = order + row * a.chunks;
  int32_t* take = takes + row * a.chunks;
  int32_t* token = tokens + row * a.k;
  const int thread = static_cast<int>(threadIdx.x);
  const auto keys_begin = [&](int64_t c) { return max(static_cast<int64_t>(bounds[c]), lo); };
  const auto keys_of = [&](int64_t c) {
    const int64_t stop = bounds[c + 1];
    return stop < 0 ? int64_t{0} : max(int64_t{0}, min(stop, cut) - keys_begin(c));
  };

  for (int64_t c = thread; c < a.chunks; c += kThreads) take[c] = 0;
  __syncthreads();
  int64_t taken = 0;
  for (int64_t base = 0; base < a.chunks && taken < rest; base += kThreads) {
    const int64_t c = base + thread < a.chunks ? visit[base + thread] : -1;
    const int size = c < 0 ? 0 : static_cast<int>(keys_of(c));
    int before, sum;
    Scan(storage).ExclusiveSum(size, before, sum);
    if (size > 0 && taken + before < rest)
      take[c] = static_cast<int32_t>(min(static_cast<int64_t>(size), rest - taken - before));
    taken += sum;
    __syncthreads();  // the scan's storage is used again, and take is read by other threads
  }
  int64_t used = 0;
  for (int64_t base = 0; base < a.chunks; base += kThreads) {
    const int64_t c = base + thread;
    const int size = c < a.chunks ? take[c] : 0;
    int before, sum;
    Scan(storage).ExclusiveSum(size, before, sum);
    if (size > 0) {
      const int64_t from = keys_begin(c);
      for (int64_t i = 0; i < size; ++i) token[used + before + i] = static_cast<int32_t>(from + i);
    }
    used += sum;
    __syncthreads();
  }
  for (int64_t i = thread; i < recent; i += kThreads) token[used + i] = static_cast<int32_t>(cut + i);
  for (int64_t i = used + recent + thread; i < a.k; i += kThreads) token[i] = static_cast<int32_t>(a.n - 1);
  __syncthreads();
  const int64_t leader = a.window > 0 ? max(int64_t{0}, start - a.window) : 0;
  for (int64_t i = thread; i < min(a.leading, a.k); i += kThreads)
    token[i] = static_cast<int32_t>(min(leader + i, hi - 1));
  __syncthreads();

  const int64_t seen = min(end, a.first + a.rows);
  int64_t listed = 0;
  for (int64_t base = 0; base < a.k; base += kThreads) {
    const int64_t i = base + thread;
    const bool keep = i < a.k && token[i] < seen && (i == 0 || token[i] != token[i - 1]);
    int before, sum;
    Scan(storage).ExclusiveSum(keep ? 1 : 0, before, sum);
    if (keep) index[row * a.k + listed + before] = token[i];
    listed += sum;
    __syncthreads();
  }
  if (thread == 0) {
    begin[row] = static_cast<int32_t>(row * a.k);
    count[row] = static_cast<int32_t>(listed);
  }
}

}  // namespace

void CudaBackend::gap_ratios(Context& ctx, const GapRatiosArgs& args) {
  const int64_t batch = args.q.dim(0), n = args.q.dim(2);
  const Gaps a{n,         args.q.dim(3), args.q.dim(1), args.q.dim(1) / args.k.dim(1),
               args.w,    args.window,   args.reach,    (n + kTile - 1) / kTile,
               args.scale};
  const Tensor near = ctx.allocate(DType::f64, {batch, n, 2 * args.w});
  const Tensor far = args.reach > 0 ? ctx.allocate(DType::f64, {batch, n, 2 * args.w}) : Tensor();
  const Tensor bulk = ctx.allocate(DType::f64, {batch, n});
  CUDA_CHECK(cudaMemsetAsync(near.raw(), 0, static_cast<size_t>(near.nbytes()), stream_of(ctx)));
  if (far) CUDA_CHECK(cudaMemsetAsync(far.raw(), 0, static_cast<size_t>(far.nbytes()), stream_of(ctx)));
  double* far_data = far ? far.data<double>() : nullptr;
  by_float_type(args.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    lag_sums_kernel<T><<<static_cast<unsigned>(batch * a.strips), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const T*>(args.q.raw()), Strides(args.q), static_cast<const T*>(args.k.raw()),
        Strides(args.k), args.lse.data<float>(), a, near.data<double>(), far_data, bulk.data<double>());
    CUDA_CHECK_LAUNCH();
  });
  const int64_t count = batch * n;
  gap_ratios_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      near.data<double>(), far_data, bulk.data<double>(), a, args.score.data<float>(), Divisor(n), count);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::pick_spaced(Context& ctx, const PickSpacedArgs& args) {
  const DeviceRows scores(args.score, 1);
  pick_spaced_kernel<<<static_cast<unsigned>(scores.count), 32, 0, stream_of(ctx)>>>(
      args.score.data<float>(), scores, args.order.data<int32_t>(), DeviceRows(args.order, 1),
      args.flag.data<uint8_t>(), DeviceRows(args.flag, 1), args.score.dim(-1), args.threshold, args.spacing,
      args.limit, args.forced, args.last);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::chunk_lists(Context& ctx, const ChunkListsArgs& args) {
  const int64_t rows = args.lists.count.numel(), chunks = args.order.dim(2);
  const Tensor takes = ctx.allocate_like(args.order);
  const Lists a{args.n,
                args.first,
                args.rows,
                args.block_q,
                args.window,
                args.recent,
                args.leading,
                chunks,
                args.tokens.dim(2),
                args.bounds.dim(0) > 1 ? chunks + 1 : 0,
                Divisor(args.order.dim(1))};
  chunk_lists_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream_of(ctx)>>>(
      args.order.data<int32_t>(), args.bounds.data<int32_t>(), takes.data<int32_t>(),
      args.tokens.data<int32_t>(), args.lists.begin.data<int32_t>(), args.lists.count.data<int32_t>(),
      args.lists.index.data<int32_t>(), a);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
