// Tree search on CUDA: a block of threads for each block of queries, its sampled queries and all cells in
// shared memory (tree_cells.cuh). Where query blocks are fewer than multiprocessors, a cluster of blocks
// shares one search on sm_90. Scores of keys: tree_score.cuh. Single queries in 16 bits: tree_decode.cu.
#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "kernels/core/cluster.cuh"
#include "kernels/select/tree.hpp"
#include "kernels/select/tree_cells.cuh"
#include "kernels/select/tree_decode.cuh"
#include "kernels/select/tree_score.cuh"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
/// Threads of a block that has a multiprocessor for itself: latency counts, so more keys are under way.
constexpr int kManyThreads = 512;
constexpr int64_t kMostCells = 2048;
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

template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads > 256 ? 1 : 2)
    tree_kernel(const T* q, Strides qs, const T* k, Strides ks, Tree a, int32_t* selected, int32_t* count,
                tree::ListOutput lists) {
  constexpr int kWarps = kThreads / 32, N = tree::kTiles<T>;
  extern __shared__ __align__(16) unsigned char raw[];
  auto* queries = reinterpret_cast<T*>(raw);
  // The last query blocks first: they have the most rounds.
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.parts));
  const int64_t number = blockIdx.x / static_cast<unsigned>(a.parts), bh = a.by_nq.of(number),
                block = a.nq - 1 - (number - bh * a.nq), item = bh * a.nq + block, b = a.by_heads.of(bh),
                h = bh - b * a.heads;
  const int64_t first = block * a.block_q, rows = min(a.block_q, a.n - first);
  const int64_t t = a.causal ? a.m - a.n + first + rows : a.m;
  const int64_t range = max(int64_t{0}, t - a.window), blocks = (range + a.block_k - 1) / a.block_k;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  tree::Cells<kThreads> s(raw + sizeof(T) * a.rows * a.stride, a.cells, a.parts, part);
  if (range <= a.keep) {
    if (part == 0) s.write_all(static_cast<int>(blocks), item, static_cast<int>(t), selected, count, lists);
    return;
  }
  const int64_t step = min(a.stride_q, rows);
  const int samples = static_cast<int>((rows - step) / a.stride_q + 1);
  const T* query = q + b * qs.b + h * qs.h + (first + step - 1) * qs.t;
  const T* keys = k + b * ks.b + a.group.of(h) * ks.h;
  for (int r = warp; r < a.rows; r += kWarps)
    for (int c = lane; c < a.stride; c += 32)
      queries[r * a.stride + c] = r < samples && c < a.d ? query[r * a.stride_q * qs.t + c] : narrow<T>(0.0f);
  s.open([&](int i) { return static_cast<int>(blocks * i / a.cells); });
  tree::sync_parts(a.parts);

  const int64_t position = a.m - a.n + first + step - 1;  // of sample 0
  const bool first_one = a.representative == Representative::first,
             last_one = a.representative == Representative::last;
  uint32_t round = 0;
  for (; (static_cast<int64_t>(a.cells) << round) < blocks; ++round) {
    const int *start = s.start(round), *size = s.size(round);

    // A child whose representative is its parent's has its score: every left one when the first block counts,
    // every right one when the last does, and the only child of a single block.
    const bool one_side = round > 0 && (first_one || last_one);
    const int64_t a_cell = (one_side ? 1 : 2) * a.keys_a_block.n, columns = s.own * a_cell;
    // Key of a column: its child (-1: none), its row, and the first sample that it counts for.
    const auto find = [&](int64_t column, int64_t further, int& child, const T*& row, int& low) {
      child = -1, row = keys, low = samples;
      if (column >= columns) return;
      column += s.first * a_cell;
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
      depth = (blocks + a.cells - 1) / a.cells;
      for (uint32_t i = 0; i <= round; ++i) depth = (depth + 1) / 2;
    }
    for (int64_t further = 0; further < depth; ++further)
      for (int64_t base = int64_t{8 * N} * warp; base < columns; base += int64_t{8 * N} * kWarps) {
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
            // All lanes of that t have the same scores.
            const int to = __shfl_sync(0xffffffffu, child[i], 4 * (2 * (lane % 4) + c));
            if (to >= 0 && lane < 4) s.score(to, best[i][c]);
          }
      }
    __syncthreads();
    s.halve(round, first_one, last_one);
  }
  if (part == 0) s.write(round, item, static_cast<int>(t), selected, count, lists);
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
  cluster::launch(ctx, kernel, blocks, a.parts, kThreads, shared, static_cast<const T*>(args.q.raw()),
                  Strides(args.q), static_cast<const T*>(args.k.raw()), Strides(args.k), a,
                  args.selected.data<int32_t>(), args.count.data<int32_t>(), tree::ListOutput(args));
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
      tree::memory_bytes(cells);
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
  if (tree::launch_decode(ctx, args, sm_count(), compute_capability())) return;
  // As many blocks for a search as multiprocessors are free, and keys of the first round give work to.
  a.parts = 1;
  by_float_type(args.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (blocks > sm_count()) return launch_tree<T, kThreads>(ctx, args, a, blocks, shared);
    const int64_t tiles = 2 * cells * a.keys_a_block.n / (8 * tree::kTiles<T>);
    while (compute_capability() >= 90 && 2 * a.parts <= cluster::kMostParts && 2 * a.parts * blocks <= sm_count() &&
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
