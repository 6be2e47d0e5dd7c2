// Tree search for a decoding step: one query a head, whose rounds of a few hundred keys each are one wait for
// memory after another. A cluster of blocks shares the search of a head, and all keys of a round are under
// way at once: 8 (16) lanes share a row of 64 (128) elements and hold eight rows in registers.
//
// Against the kernel for blocks of queries: no products on tensor cores, which one query would leave to 15
// parts idle, numbers of 32 bits, and a tenth of the code in a round, which has to come from memory, too.
#include <algorithm>

#include "kernels/core/cluster.cuh"
#include "kernels/select/tree_cells.cuh"
#include "kernels/select/tree_decode.cuh"

namespace attnbench::tree {
namespace {

using Representative = TreeSearchArgs::Representative;

constexpr int kThreads = 512;
/// Rows of keys that a lane has under way.
constexpr int kRows = 8;
constexpr int64_t kMostCells = 2048;

/// Divisor for what fits 31 bits, without the way around.
struct Quotient {
  uint32_t n = 1, multiplier = 0, shift = 0;
  Quotient() = default;
  explicit Quotient(int64_t by) {
    const Divisor d(by);
    n = static_cast<uint32_t>(by), multiplier = d.multiplier, shift = d.shift;
  }
  __device__ int of(int i) const {
    return n == 1 ? i : static_cast<int>(__umulhi(static_cast<uint32_t>(i), multiplier) >> shift);
  }
};

template <class T>
struct Search {
  const T *q, *k;
  int64_t q_b, q_h, k_b, k_h, k_t;
  int32_t *selected, *count;
  ListOutput lists;
  Quotient by_heads, by_group, by_cells, by_keys;  // by_keys: sampled keys of a block
  int cells, parts, heads, keys, range, blocks;    // keys: all there are; range: candidates among them
  int block_k, stride_k;
  Representative representative;
  uint32_t seed;
  bool whole;  // the candidates are few enough to be chosen all
};

/// The child and the token of a column of this block's, -1: none. A child whose representative is its
/// parent's has its score: every left one when the first block counts, every right one when the last does,
/// and the only child of a single block.
template <class T>
__device__ __forceinline__ void find(const Search<T>& a, const Cells<kThreads>& s, uint32_t round, int head,
                                     int column, bool one_side, int& child, int& token) {
  child = token = -1;
  const int of = a.by_keys.of(column), key = column - of * static_cast<int>(a.by_keys.n);
  if (of >= (one_side ? s.own : 2 * s.own)) return;
  const bool first_one = a.representative == Representative::first;
  const int i = 2 * s.first + (one_side ? 2 * of + (first_one ? 1 : 0) : of);
  const int whole = s.size(round)[i / 2], left = whole / 2;
  if (round > 0 && whole == 1) return;
  const int from = s.start(round)[i / 2] + (i % 2 ? left : 0), length = i % 2 ? whole - left : left;
  if (length == 0) return;
  int r = from;
  if (a.representative == Representative::center) r = from + length / 2;
  if (a.representative == Representative::last) r = from + length - 1;
  if (a.representative == Representative::random)
    r = from + static_cast<int>(
                   tree_hash(a.seed, static_cast<uint32_t>(head), 0, round, static_cast<uint32_t>(from)) %
                   static_cast<uint32_t>(length));
  const int j = r * a.block_k + a.stride_k - 1 + key * a.stride_k;
  if (j < a.range) child = i, token = j;
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const __grid_constant__ Search<T> a) {
  constexpr int kLanes = D / 8, kTeams = kThreads / kLanes;
  extern __shared__ __align__(16) unsigned char memory[];
  const int part = static_cast<int>(blockIdx.x) % a.parts, head = static_cast<int>(blockIdx.x) / a.parts;
  const int b = a.by_heads.of(head), h = head - b * a.heads;
  const int thread = static_cast<int>(threadIdx.x), team = thread / kLanes, lane = thread % kLanes;
  Cells<kThreads> s(memory, a.cells, a.parts, part);
  if (a.whole) {
    if (part == 0) s.write_all(a.blocks, head, a.keys, a.selected, a.count, a.lists);
    return;
  }
  float q[8];
  widen_pack<T>(*reinterpret_cast<const uint4*>(a.q + b * a.q_b + h * a.q_h + 8 * lane), q);
  const T* keys = a.k + b * a.k_b + a.by_group.of(h) * a.k_h + 8 * lane;
  s.open([&](int i) { return a.by_cells.of(a.blocks * i); });
  sync_parts(a.parts);

  const bool left = a.representative == Representative::first,
             right = a.representative == Representative::last;
  uint32_t round = 0;
  for (; a.cells << round < a.blocks; ++round) {
    const bool one_side = round > 0 && (left || right);
    const int columns = (one_side ? s.own : 2 * s.own) * static_cast<int>(a.by_keys.n);
#pragma unroll 1
    for (int base = 0; base < columns; base += kRows * kTeams) {
      // Lane i finds the team's row i for all.
      int child, token;
      find(a, s, round, head, base + lane % kRows * kTeams + team, one_side, child, token);
      uint4 row[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int j = __shfl_sync(0xffffffffu, token, i, kLanes);
        row[i] = uint4{0, 0, 0, 0};
        if (j >= 0) row[i] = *reinterpret_cast<const uint4*>(keys + j * a.k_t);
      }
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float x[8], dot = 0.0f;
        widen_pack<T>(row[i], x);
#pragma unroll
        for (int e = 0; e < 8; ++e) dot = fmaf(q[e], x[e], dot);
        dot = warp_reduce<kLanes>(dot, Add{});
        if (lane == i) score = dot;
      }
      // NaN does not count.
      if (lane < kRows && child >= 0) s.score(child, fmaxf(score, lowest()));
    }
    __syncthreads();
    s.halve(round, left, right);
  }
  if (part == 0) s.write(round, head, a.keys, a.selected, a.count, a.lists);
}

template <class T, int D>
void launch(Context& ctx, const TreeSearchArgs& args, Search<T> a, int64_t heads) {
  a.q = static_cast<const T*>(args.q.raw()), a.k = static_cast<const T*>(args.k.raw());
  const auto kernel = decode_kernel<T, D>;
  const size_t shared = memory_bytes(a.cells);
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  cluster::launch(ctx, kernel, heads, a.parts, kThreads, shared, a);
}

template <class T>
void launch(Context& ctx, const TreeSearchArgs& args, int parts) {
  Search<T> a{};
  const Tensor &q = args.q, &k = args.k;
  a.q_b = q.stride(0), a.q_h = q.stride(1);
  a.k_b = k.stride(0), a.k_h = k.stride(1), a.k_t = k.stride(2);
  a.selected = args.selected.data<int32_t>(), a.count = args.count.data<int32_t>();
  a.lists = ListOutput(args);
  a.by_heads = Quotient(q.dim(1)), a.by_group = Quotient(q.dim(1) / k.dim(1));
  a.by_cells = Quotient(args.selected.dim(3)), a.by_keys = Quotient(args.block_k / args.stride_k);
  a.cells = static_cast<int>(args.selected.dim(3)), a.parts = parts, a.heads = static_cast<int>(q.dim(1));
  // The only query is the last: a causal one sees all keys, too.
  const int64_t range = std::max<int64_t>(0, k.dim(2) - args.window);
  a.keys = static_cast<int>(k.dim(2)), a.range = static_cast<int>(range);
  a.blocks = static_cast<int>((range + args.block_k - 1) / args.block_k);
  a.block_k = static_cast<int>(args.block_k), a.stride_k = static_cast<int>(args.stride_k);
  a.representative = args.representative, a.seed = args.seed;
  a.whole = range <= args.keep;
  const int64_t heads = args.count.numel();
  q.dim(3) == 64 ? launch<T, 64>(ctx, args, a, heads) : launch<T, 128>(ctx, args, a, heads);
}

}  // namespace

bool launch_decode(Context& ctx, const TreeSearchArgs& args, int sms, int compute_capability) {
  const int64_t d = args.q.dim(3), m = args.k.dim(2), cells = args.selected.dim(3),
                heads = args.count.numel();
  if (args.q.dim(2) != 1 || args.q.dtype() == DType::f32 || (d != 64 && d != 128)) return false;
  if (args.representative == Representative::oracle || cells > kMostCells) return false;
  if (!packable(args.q, 16) || !packable(args.k, 16)) return false;
  // Numbers of 32 bits: blocks times cells, tokens up to the end of a block, heads times parts.
  const int64_t blocks = (m + args.block_k - 1) / args.block_k;
  if ((blocks + 1) * (cells + 1) > INT32_MAX || m + args.block_k > INT32_MAX ||
      2 * cells * args.block_k > INT32_MAX || heads > INT32_MAX / cluster::kMostParts)
    return false;
  // As many blocks for a search as multiprocessors are free, while each team of a block has two rows or more.
  const int64_t columns = 2 * cells * (args.block_k / args.stride_k), teams = kThreads / (d / 8);
  int64_t parts = 1;
  while (compute_capability >= 90 && 2 * parts <= cluster::kMostParts && 2 * parts * heads <= sms &&
         4 * parts * teams <= columns)
    parts *= 2;
  if (args.q.dtype() == DType::bf16)
    launch<__nv_bfloat16>(ctx, args, static_cast<int>(parts));
  else
    launch<__half>(ctx, args, static_cast<int>(parts));
  return true;
}

}  // namespace attnbench::tree
