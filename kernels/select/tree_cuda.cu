// Tree search on CUDA: a block of threads for each block of queries, its sampled queries and all cells in
// shared memory. Where query blocks are fewer than multiprocessors (decode), a cluster of blocks shares one
// search on sm_90: each scores a part of the children and sends the scores to all, and every block then
// halves the same cells for itself. Scores of keys: tree_score.cuh.
#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "kernels/select/tree.hpp"
#include "kernels/select/tree_score.cuh"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
/// Threads of a block that has a multiprocessor for itself: latency counts, so more keys are under way.
constexpr int kManyThreads = 512;
constexpr int64_t kMostCells = 2048;
/// Blocks of a cluster; 8 is what every card with clusters grants.
constexpr int kMostParts = 8;
/// Shared memory beside the dynamic part: what select() counts in, and the kilobyte that the system takes.
constexpr size_t kStaticShared = 2048;

using Representative = TreeSearchArgs::Representative;

struct Strides {
  int64_t b, h, t;
  explicit Strides(const Tensor& x) : b(x.stride(0)), h(x.stride(1)), t(x.stride(2)) {}
};

struct Tree {
  int64_t n, m, heads, nq, block_q, block_k, stride_q, stride_k, keep, window;
  int d, cells, rows, stride, parts;  // rows: of queries in shared memory, `stride` elements apart
  Divisor by_nq, by_heads, group, keys_a_block;
  bool causal;
  tree::Reading reading;
  Representative representative;
  uint32_t seed;
};

/// Grows with the score, and is above 0, which stands for a child without blocks; scores are not NaN.
__device__ inline uint32_t order_of(float x) {
  const uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
  return (u >> 31 ? ~u : u | 0x80000000u) + 1;
}

/// Keys of all children, read four at a time by a warp.
constexpr int64_t padded(int64_t children) { return (children + 127) / 128 * 128; }

/// What a block keeps in dynamic shared memory, in this order behind the queries. Cells and fresh scores have
/// two buffers that take turns, one a round.
struct Memory {
  uint32_t* key;      // of each child, padded with 0
  uint32_t* fresh;    // [2][children]: scores as they arrive
  uint32_t* own_key;  // [2][cells]: what the cell was kept for
  int *start, *size;  // [2][cells], in blocks
};
constexpr size_t memory_bytes(int64_t cells) {
  return static_cast<size_t>(4 * (padded(2 * cells) + 4 * cells + 6 * cells));
}

/// All blocks of the cluster; what one wrote to another's shared memory before is there afterwards.
__device__ inline void sync_parts(int parts) {
  if (parts == 1) return __syncthreads();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}
/// *x = max(*x, to) in the shared memory of block `part` of the cluster.
__device__ inline void raise(uint32_t* x, uint32_t to, int part, int parts) {
  if (parts == 1) {
    atomicMax(x, to);
    return;
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "red.relaxed.cluster.shared::cluster.max.u32 [there], %2;\n}" ::"r"(cuda_attention::shared_address(x)),
      "r"(part), "r"(to)
      : "memory");
#endif
}

__device__ inline int count_at_least(const uint32_t* key, int count, uint32_t least) {
  int found = 0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < count / 4; i += 32) {
    const uint4 x = reinterpret_cast<const uint4*>(key)[i];
    found += (x.x >= least) + (x.y >= least) + (x.z >= least) + (x.w >= least);
  }
  return __reduce_add_sync(0xffffffffu, found);
}

/// The `keep` best keys: all above `key`, and the first `ties` of those equal to it.
struct Cut {
  uint32_t key;
  int ties;
};
/// Finds the cut digit by digit from the highest: each warp counts the keys that reach another value of the
/// digit, so that a step takes one barrier and 8 (16) warps settle 3 (4) bits. `count` keys are padded, at
/// least `keep` of them above 0.
template <int kWarps>
__device__ Cut select(const uint32_t* key, int count, int keep) {
  __shared__ int reach[2][kWarps];
  constexpr int kBits = kWarps == 8 ? 3 : 4;
  static_assert(kWarps == 1 << kBits);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  uint32_t prefix = 0;
  for (int shift = 32, turn = 0; shift > 0; turn ^= 1) {
    const int next = max(0, shift - kBits), digits = 1 << (shift - next);
    int found = 0;
    // Every key reaches digit 0 that matters: at least `keep` have the prefix or are above it.
    if (warp > 0 && warp < digits)
      found = count_at_least(key, count, prefix + (static_cast<uint32_t>(warp) << next));
    if (lane == 0) reach[turn][warp] = found;
    __syncthreads();
    const int reached = lane < kWarps ? reach[turn][lane] : 0;
    const uint32_t exact = __ballot_sync(0xffffffffu, reached == keep),
                   enough = __ballot_sync(0xffffffffu, reached >= keep) | 1;
    if (exact) return {prefix + (static_cast<uint32_t>(__ffs(exact) - 1) << next) - 1, 0};
    prefix += static_cast<uint32_t>(31 - __clz(enough)) << next;
    shift = next;
  }
  const int above = prefix == 0xffffffffu ? 0 : count_at_least(key, count, prefix + 1);
  return {prefix, keep - above};
}

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads > 256 ? 1 : 2)
    tree_kernel(const T* q, Strides qs, const T* k, Strides ks, Tree a, int32_t* selected, int32_t* count) {
  constexpr int kWarps = kThreads / 32, N = tree::kTiles<T>;
  __shared__ uint32_t part_sum[2][kWarps];
  extern __shared__ __align__(16) unsigned char raw[];
  const int cells = a.cells, children = 2 * cells, all = static_cast<int>(padded(children));
  auto* queries = reinterpret_cast<T*>(raw);
  Memory s;
  s.key = reinterpret_cast<uint32_t*>(queries + a.rows * a.stride);
  s.fresh = s.key + all;
  s.own_key = s.fresh + 2 * children;
  s.start = reinterpret_cast<int*>(s.own_key + 2 * cells);
  s.size = s.start + 2 * cells;

  // The last query blocks first: they have the most rounds.
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.parts));
  const int64_t number = blockIdx.x / static_cast<unsigned>(a.parts), bh = a.by_nq.of(number),
                block = a.nq - 1 - (number - bh * a.nq), item = bh * a.nq + block, b = a.by_heads.of(bh),
                h = bh - b * a.heads;
  const int64_t first = block * a.block_q, rows = min(a.block_q, a.n - first);
  const int64_t t = a.causal ? a.m - a.n + first + rows : a.m;
  const int64_t range = max(int64_t{0}, t - a.window), blocks = (range + a.block_k - 1) / a.block_k;
  int32_t* out = selected + item * cells;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  if (range <= a.keep) {
    if (part > 0) return;
    for (int i = thread; i < cells; i += kThreads) out[i] = i < blocks ? i : -1;
    if (thread == 0) count[item] = static_cast<int32_t>(blocks);
    return;
  }
  const int64_t step = min(a.stride_q, rows);
  const int samples = static_cast<int>((rows - step) / a.stride_q + 1);
  const T* query = q + b * qs.b + h * qs.h + (first + step - 1) * qs.t;
  const T* keys = k + b * ks.b + a.group.of(h) * ks.h;
  for (int r = warp; r < a.rows; r += kWarps)
    for (int c = lane; c < a.stride; c += 32)
      queries[r * a.stride + c] = r < samples && c < a.d ? query[r * a.stride_q * qs.t + c] : narrow<T>(0.0f);
  for (int i = thread; i < cells; i += kThreads) {
    const int64_t from = blocks * i / cells;
    s.start[i] = static_cast<int>(from);
    s.size[i] = static_cast<int>(blocks * (i + 1) / cells - from);
  }
  for (int i = thread; i < children; i += kThreads) s.fresh[i] = 0;
  sync_parts(a.parts);

  const int64_t position = a.m - a.n + first + step - 1;  // of sample 0
  const bool first_one = a.representative == Representative::first,
             last_one = a.representative == Representative::last;
  uint32_t round = 0;
  for (; (static_cast<int64_t>(cells) << round) < blocks; ++round) {
    const int now = static_cast<int>(round & 1), next = now ^ 1;
    const int *start = s.start + now * cells, *size = s.size + now * cells;
    uint32_t* fresh = s.fresh + now * children;
    for (int i = thread; i < children; i += kThreads) s.fresh[next * children + i] = 0;

    // A child whose representative is its parent's has its score: every left one when the first block counts,
    // every right one when the last does, and the only child of a single block.
    const bool one_side = round > 0 && (first_one || last_one);
    const int64_t columns = static_cast<int64_t>(one_side ? cells : children) * a.keys_a_block.n;
    // Key of a column: its child (-1: none), its row, and the first sample that it counts for.
    const auto find = [&](int64_t column, int64_t further, int& child, const T*& row, int& low) {
      child = -1, row = keys, low = samples;
      if (column >= columns) return;
      const int64_t of = a.keys_a_block.of(column), key = column - of * a.keys_a_block.n;
      const int i = static_cast<int>(one_side ? 2 * of + (first_one ? 1 : 0) : of), cell = i / 2;
      const int whole = size[cell], left = whole / 2;
      if (round > 0 && whole == 1) return;
      const int from = i % 2 ? start[cell] + left : start[cell], length = i % 2 ? whole - left : left;
      if (further >= length) return;
      int64_t r = from + further;
      if (a.representative == Representative::center) r = from + length / 2;
      if (last_one) r = from + length - 1;
      if (a.representative == Representative::random)
        r = from + tree_hash(a.seed, static_cast<uint32_t>(bh), static_cast<uint32_t>(block), round,
                             static_cast<uint32_t>(from)) %
                       static_cast<uint32_t>(length);
      const int64_t j = r * a.block_k + a.stride_k - 1 + key * a.stride_k;
      if (j >= range) return;
      child = i, row = keys + j * ks.t, low = 0;
      // Sample s stands at position + s stride_q. Past the last one: none sees the key.
      if (a.causal && j > position)
        low = static_cast<int>(min(int64_t{samples}, (j - position + a.stride_q - 1) / a.stride_q));
    };
    // An oracle asks every block of a child: cells have ceil(blocks / cells) at most, halved round by round.
    int64_t depth = 1;
    if (a.representative == Representative::oracle) {
      depth = (blocks + cells - 1) / cells;
      for (uint32_t i = 0; i <= round; ++i) depth = (depth + 1) / 2;
    }
    for (int64_t further = 0; further < depth; ++further)
      for (int64_t base = int64_t{8 * N} * (warp * a.parts + part); base < columns;
           base += int64_t{8 * N} * kWarps * a.parts) {
        int child[N], low[N];
        const T* row[N];
        float best[N][2];
#pragma unroll
        for (int i = 0; i < N; ++i) find(base + 8 * i + lane / 4, further, child[i], row[i], low[i]);
        tree::score_keys<T>(queries, a.stride, samples, a.d, a.reading, row, low, best);
#pragma unroll
        for (int i = 0; i < N; ++i)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            // Lanes 4 p + t have the same scores: they bring them to part p.
            const int to = __shfl_sync(0xffffffffu, child[i], 4 * (2 * (lane % 4) + c));
            if (to >= 0 && lane / 4 < a.parts) raise(fresh + to, order_of(best[i][c]), lane / 4, a.parts);
          }
      }
    sync_parts(a.parts);

    for (int i = thread; i < all; i += kThreads) {
      uint32_t key = 0;
      if (i < children) {
        const int cell = i / 2, whole = size[cell];
        const bool right = i % 2, same = whole == 1 || (first_one && !right) || (last_one && right);
        if (!right && whole == 1)
          key = 0;
        else if (round > 0 && same)
          key = s.own_key[now * cells + cell];
        else
          key = max(fresh[i], order_of(tree::lowest()));
      }
      s.key[i] = key;
    }
    __syncthreads();
    // The best children, in order of their starts.
    const Cut cut = select<kWarps>(s.key, all, cells);
    int taken = 0, tied = 0;
    for (int base = 0, turn = 0; base < children; base += kThreads, turn ^= 1) {
      const int i = base + thread;
      const uint32_t key = i < children ? s.key[i] : 0;
      const bool above = key > cut.key, tie = i < children && key == cut.key;
      const uint32_t above_bits = __ballot_sync(0xffffffffu, above),
                     tie_bits = __ballot_sync(0xffffffffu, tie), earlier = (1u << lane) - 1;
      if (lane == 0)
        part_sum[turn][warp] = static_cast<uint32_t>(__popc(above_bits) | __popc(tie_bits) << 16);
      __syncthreads();
      const uint32_t sum = lane < kWarps ? part_sum[turn][lane] : 0,
                     before = __reduce_add_sync(0xffffffffu, lane < warp ? sum : 0u),
                     total = __reduce_add_sync(0xffffffffu, sum);
      const int ties = tied + static_cast<int>(before >> 16) + __popc(tie_bits & earlier);
      const int at =
          taken + static_cast<int>(before & 0xffffu) + __popc(above_bits & earlier) + min(ties, cut.ties);
      if (above || (tie && ties < cut.ties)) {
        const int whole = size[i / 2], left = whole / 2;
        s.start[next * cells + at] = i % 2 ? start[i / 2] + left : start[i / 2];
        s.size[next * cells + at] = i % 2 ? whole - left : left;
        s.own_key[next * cells + at] = key;
      }
      taken += static_cast<int>(total & 0xffffu), tied += static_cast<int>(total >> 16);
    }
    __syncthreads();
  }
  if (part > 0) return;
  for (int i = thread; i < cells; i += kThreads) out[i] = s.start[static_cast<int>(round & 1) * cells + i];
  if (thread == 0) count[item] = cells;
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

template <class T, int kThreads>
void launch_tree(Context& ctx, const TreeSearchArgs& args, const Tree& a, int64_t blocks, size_t shared) {
  const auto kernel = tree_kernel<T, kThreads>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks * a.parts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream_of(ctx);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(a.parts);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = a.parts > 1 ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<const T*>(args.q.raw()), Strides(args.q),
                                static_cast<const T*>(args.k.raw()), Strides(args.k), a,
                                args.selected.data<int32_t>(), args.count.data<int32_t>()));
}

/// How rows of k can be read; only its last axis is known to be packed.
tree::Reading reading_of(const Tensor& k) {
  const auto size = static_cast<int64_t>(size_of(k.dtype()));
  bool aligned = reinterpret_cast<uintptr_t>(k.raw()) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis)
    aligned = aligned && (k.dim(axis) <= 1 || k.stride(axis) * size % 16 == 0);
  return !aligned                       ? tree::Reading::elements
         : k.dim(3) % tree::kChunk == 0 ? tree::Reading::whole
                                        : tree::Reading::packs;
}

}  // namespace

void CudaBackend::tree_search(Context& ctx, const TreeSearchArgs& args) {
  Tree a{};
  const int64_t cells = args.selected.dim(3), d = args.q.dim(3);
  const int64_t samples = std::max<int64_t>(1, std::min(args.block_q, args.q.dim(2)) / args.stride_q);
  const int64_t rows = (samples + tree::kRows - 1) / tree::kRows * tree::kRows;
  if (d > INT32_MAX / 2) throw Unsupported("tree_search on CUDA: rows of " + std::to_string(d) + " elements");
  const size_t shared =
      static_cast<size_t>(rows) * static_cast<size_t>(tree::row_stride(d)) * size_of(args.q.dtype()) +
      memory_bytes(cells);
  const size_t most = properties().sharedMemPerBlockOptin - kStaticShared;
  if (cells > kMostCells || shared > most)
    throw Unsupported("tree_search on this card keeps at most " + std::to_string(kMostCells) + " cells and " +
                      std::to_string(most) + " bytes of queries and cells in a block; these arguments need " +
                      std::to_string(cells) + " and " + std::to_string(shared));
  const int64_t blocks = args.count.numel();
  if (blocks > INT32_MAX)
    throw Unsupported("tree_search on CUDA: " + std::to_string(blocks) + " query blocks");
  a.n = args.q.dim(2), a.m = args.k.dim(2), a.heads = args.q.dim(1), a.nq = args.count.dim(2);
  a.block_q = args.block_q, a.block_k = args.block_k, a.stride_q = args.stride_q, a.stride_k = args.stride_k;
  a.keep = args.keep, a.window = args.window;
  a.d = static_cast<int>(d), a.cells = static_cast<int>(cells), a.rows = static_cast<int>(rows);
  a.stride = tree::row_stride(d);
  a.by_nq = Divisor(a.nq), a.by_heads = Divisor(a.heads), a.group = Divisor(a.heads / args.k.dim(1));
  a.keys_a_block = Divisor(a.block_k / a.stride_k);
  a.causal = args.causal, a.reading = reading_of(args.k);
  a.representative = args.representative, a.seed = args.seed;
  // As many blocks for a search as multiprocessors are free, and keys of the first round give work to.
  a.parts = 1;
  by_float_type(args.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (blocks > sm_count()) return launch_tree<T, kThreads>(ctx, args, a, blocks, shared);
    const int64_t tiles = 2 * cells * a.keys_a_block.n / (8 * tree::kTiles<T>);
    while (compute_capability() >= 90 && 2 * a.parts <= kMostParts && 2 * a.parts * blocks <= sm_count() &&
           a.parts * (kManyThreads / 32) < tiles)
      a.parts *= 2;
    launch_tree<T, kManyThreads>(ctx, args, a, blocks, shared);
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
