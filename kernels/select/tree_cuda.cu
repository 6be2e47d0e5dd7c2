// Tree search on CUDA: a block of threads for each block of queries, its sampled queries and all cells in
// shared memory; a warp scores a child, a lane one query.
#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/tree.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostCells = 2048;
/// Shared memory of a block that every card since sm_80 grants on request.
constexpr size_t kMostShared = 96 * 1024;

struct Strides {
  int64_t b, h, t;
  explicit Strides(const Tensor& x) : b(x.stride(0)), h(x.stride(1)), t(x.stride(2)) {}
};

struct Tree {
  int64_t n, m, d, heads, nq, block_q, block_k, stride_q, stride_k, keep, window, cells, samples;
  Divisor by_nq, by_heads, group;
  bool causal;
  TreeSearchArgs::Representative representative;
  uint32_t seed;
};

__device__ inline uint32_t ordered(float x) {
  if (isnan(x)) return 0xffffffffu;
  const uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
  return u >> 31 ? ~u : u | 0x80000000u;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    tree_kernel(const T* q, Strides qs, const T* k, Strides ks, Tree a, int32_t* selected, int32_t* count) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  extern __shared__ unsigned char raw[];
  // Rows of queries are one float longer than D, so that lanes of a warp read different banks.
  auto* queries = reinterpret_cast<float*>(raw);
  auto* start = reinterpret_cast<int*>(queries + a.samples * (a.d + 1));
  int* size = start + a.cells;
  int* child_start = size + a.cells;
  int* child_size = child_start + 2 * a.cells;
  auto* key = reinterpret_cast<uint32_t*>(child_size + 2 * a.cells);

  const int64_t item = blockIdx.x, bh = a.by_nq.of(item), block = item - bh * a.nq, b = a.by_heads.of(bh),
                h = bh - b * a.heads;
  const int64_t first = block * a.block_q, rows = min(a.block_q, a.n - first);
  const int64_t t = a.causal ? a.m - a.n + first + rows : a.m;
  const int64_t range = max(int64_t{0}, t - a.window), blocks = (range + a.block_k - 1) / a.block_k;
  int32_t* out = selected + item * a.cells;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  if (range <= a.keep) {
    for (int64_t i = thread; i < a.cells; i += kThreads) out[i] = i < blocks ? static_cast<int32_t>(i) : -1;
    if (thread == 0) count[item] = static_cast<int32_t>(blocks);
    return;
  }
  const int64_t step = min(a.stride_q, rows);
  const int samples = static_cast<int>((rows - step) / a.stride_q + 1);
  const T* query = q + b * qs.b + h * qs.h;
  const T* keys = k + b * ks.b + a.group.of(h) * ks.h;
  for (int64_t e = thread; e < samples * a.d; e += kThreads) {
    const int64_t s = e / a.d, c = e - s * a.d;
    queries[s * (a.d + 1) + c] = widen(query[(first + step - 1 + s * a.stride_q) * qs.t + c]);
  }
  for (int64_t i = thread; i < a.cells; i += kThreads) {
    const int64_t from = blocks * i / a.cells;
    start[i] = static_cast<int>(from);
    size[i] = static_cast<int>(blocks * (i + 1) / a.cells - from);
  }
  __syncthreads();
  const int64_t position = a.m - a.n + first + step - 1;  // of sample 0
  const auto block_score = [&](int64_t r) {
    float best = __uint_as_float(0xff800000u);
    const int64_t end = min(range, (r + 1) * a.block_k);
    for (int64_t j = r * a.block_k + a.stride_k - 1; j < end; j += a.stride_k) {
      const T* row = keys + j * ks.t;
      for (int s = lane; s < samples; s += 32) {
        if (a.causal && j > position + s * a.stride_q) continue;
        const float* mine = queries + s * (a.d + 1);
        float sum = 0;
        for (int64_t c = 0; c < a.d; ++c) sum += mine[c] * widen(row[c]);
        best = fmaxf(best, sum);
      }
    }
    return best;
  };
  const int children = static_cast<int>(2 * a.cells);
  for (uint32_t round = 0; (a.cells << round) < blocks; ++round) {
    for (int i = warp; i < children; i += kThreads / 32) {
      const int cell = i / 2, left = size[cell] / 2;
      const int from = i % 2 ? start[cell] + left : start[cell], length = i % 2 ? size[cell] - left : left;
      float score = __uint_as_float(0xff800000u);
      if (length > 0) {
        using R = TreeSearchArgs::Representative;
        int64_t r = from, last = from;
        if (a.representative == R::center) r = last = from + length / 2;
        if (a.representative == R::last) r = last = from + length - 1;
        if (a.representative == R::random)
          r = last = from + static_cast<int64_t>(tree_hash(a.seed, static_cast<uint32_t>(bh),
                                                           static_cast<uint32_t>(block), round,
                                                           static_cast<uint32_t>(from)) %
                                                 static_cast<uint32_t>(length));
        if (a.representative == R::oracle) last = from + length - 1;
        for (; r <= last; ++r) score = fmaxf(score, block_score(r));
        score = warp_reduce(score, Max{});
      }
      if (lane == 0) {
        child_start[i] = from;
        child_size[i] = length;
        // One above its order, so that 0 is a child without blocks: it comes after every other.
        const uint32_t order = ordered(score);
        key[i] = length > 0 ? (order == 0xffffffffu ? order : order + 1) : 0;
      }
    }
    __syncthreads();
    // Rank among all children; then the best, in order of their starts.
    int kept_before = 0;
    for (int base = 0; base < children; base += kThreads) {
      const int i = base + thread;
      int chosen = 0;
      if (i < children) {
        const uint32_t own = key[i];
        int before = 0;
        for (int o = 0; o < children; ++o) before += key[o] > own || (key[o] == own && o < i);
        chosen = before < a.cells;
      }
      int at, kept;
      Scan(storage).ExclusiveSum(chosen, at, kept);
      if (chosen) {
        start[kept_before + at] = child_start[i];
        size[kept_before + at] = child_size[i];
      }
      kept_before += kept;
      __syncthreads();
    }
  }
  for (int64_t i = thread; i < a.cells; i += kThreads) out[i] = start[i];
  if (thread == 0) count[item] = static_cast<int32_t>(a.cells);
}

/// A block of threads a list. Tokens of the chosen blocks have their places by counting those of the blocks
/// before: all are whole but the first and the last, which sinks and window cut.
__global__ void __launch_bounds__(kThreads)
    token_lists_kernel(const int32_t* selected, const int32_t* counts, int32_t* begin, int32_t* count,
                       int32_t* index, int64_t n, int64_t m, int64_t block_q, int64_t block_k, int64_t window,
                       int64_t sink_tokens, bool causal, Divisor nq, int64_t cells, int64_t rows) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t entries = cells * block_k + window + sink_tokens;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t r = row - nq.of(row) * nq.n, last = min(n, (r + 1) * block_q);
    const int64_t t = causal ? m - n + last : m, sinks = min(sink_tokens, t), range = max(sinks, t - window);
    int32_t* to = index + row * entries;
    for (int64_t j = threadIdx.x; j < sinks; j += kThreads) to[j] = static_cast<int32_t>(j);
    int64_t found = sinks;
    const int64_t chosen = counts[row];
    for (int64_t base = 0; base < chosen; base += kThreads) {
      const int64_t c = base + threadIdx.x;
      int64_t from = 0;
      int own = 0, at, all;
      if (c < chosen) {
        const int64_t block = selected[row * cells + c];
        from = max(sinks, block * block_k);
        own = static_cast<int>(max(int64_t{0}, min(range, (block + 1) * block_k) - from));
      }
      Scan(storage).ExclusiveSum(own, at, all);
      for (int i = 0; i < own; ++i) to[found + at + i] = static_cast<int32_t>(from + i);
      found += all;
      __syncthreads();
    }
    if (window > 0) {
      for (int64_t j = range + threadIdx.x; j < t; j += kThreads)
        to[found + j - range] = static_cast<int32_t>(j);
      found += max(int64_t{0}, t - range);
    }
    if (threadIdx.x == 0) {
      begin[row] = static_cast<int32_t>(row * entries);
      count[row] = static_cast<int32_t>(found);
    }
  }
}

}  // namespace

void CudaBackend::tree_search(Context& ctx, const TreeSearchArgs& args) {
  Tree a{};
  a.n = args.q.dim(2), a.m = args.k.dim(2), a.d = args.q.dim(3), a.heads = args.q.dim(1),
  a.nq = args.count.dim(2);
  a.block_q = args.block_q, a.block_k = args.block_k, a.stride_q = args.stride_q, a.stride_k = args.stride_k;
  a.keep = args.keep, a.window = args.window, a.cells = args.selected.dim(3);
  a.samples = std::max<int64_t>(1, std::min(args.block_q, a.n) / args.stride_q);
  a.by_nq = Divisor(a.nq), a.by_heads = Divisor(a.heads), a.group = Divisor(a.heads / args.k.dim(1));
  a.causal = args.causal, a.representative = args.representative, a.seed = args.seed;
  const size_t shared = static_cast<size_t>(4 * (a.samples * (a.d + 1) + 8 * a.cells));
  if (a.cells > kMostCells || shared > kMostShared)
    throw Unsupported("tree_search on CUDA keeps at most " + std::to_string(kMostCells) + " cells and " +
                      std::to_string(kMostShared) +
                      " bytes of queries and cells in a block; these arguments need " +
                      std::to_string(a.cells) + " and " + std::to_string(shared));
  const int64_t blocks = args.count.numel();
  if (blocks > INT32_MAX)
    throw Unsupported("tree_search on CUDA: " + std::to_string(blocks) + " query blocks");
  by_float_type(args.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    CUDA_CHECK(cudaFuncSetAttribute(tree_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(kMostShared)));
    tree_kernel<T><<<static_cast<unsigned>(blocks), kThreads, shared, stream_of(ctx)>>>(
        static_cast<const T*>(args.q.raw()), Strides(args.q), static_cast<const T*>(args.k.raw()),
        Strides(args.k), a, args.selected.data<int32_t>(), args.count.data<int32_t>());
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::token_lists(Context& ctx, const TokenListsArgs& args) {
  const int64_t rows = args.count.numel();
  token_lists_kernel<<<grid_for(ctx, rows * kThreads, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.selected.data<int32_t>(), args.count.data<int32_t>(), args.lists.begin.data<int32_t>(),
      args.lists.count.data<int32_t>(), args.lists.index.data<int32_t>(), args.n, args.m, args.block_q,
      args.block_k, args.window, args.sinks, args.causal, Divisor(args.count.dim(2)), args.selected.dim(3),
      rows);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
