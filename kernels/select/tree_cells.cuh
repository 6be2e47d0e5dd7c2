// The cells of a tree search in shared memory: what both kernels do between two rounds of scores, and what
// they write in the end. Scores are theirs. A cluster of blocks may share a search: each scores the children
// of its own cells and stores the keys they are ordered by in the memory of all, in rows of plain stores;
// every block then halves the same cells for itself. A round has one barrier of the cluster.
#pragma once
#include "kernels/core/cluster.cuh"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/tree.hpp"

namespace attnbench::tree {

__device__ inline float lowest() { return __uint_as_float(0xff800000u); }

/// Where the token lists of the selection go, and what decides about them, see token_lists; index null:
/// nowhere.
struct ListOutput {
  int32_t *begin = nullptr, *count = nullptr, *index = nullptr;
  int64_t entries = 0;  ///< of a list's room
  int sinks = 0, window = 0, block_k = 1;
  ListOutput() = default;
  explicit ListOutput(const TreeSearchArgs& args) {
    if (!args.lists) return;
    begin = args.lists.begin.data<int32_t>(), count = args.lists.count.data<int32_t>();
    index = args.lists.index.data<int32_t>();
    entries = args.selected.dim(3) * args.block_k + args.window + args.sinks;
    // Room for this many entries was allocated, and blocks of more tokens than there are hold them all.
    sinks = static_cast<int>(args.sinks), window = static_cast<int>(args.window);
    block_k = static_cast<int>(args.block_k);
  }
};

/// Grows with the score, and is above 0, which stands for a child without blocks; scores are not NaN.
__device__ inline uint32_t order_of(float x) {
  const uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x);
  return (u >> 31 ? ~u : u | 0x80000000u) + 1;
}

/// Keys of all children, read four at a time by a warp.
constexpr int64_t padded(int64_t children) { return (children + 127) / 128 * 128; }

/// All blocks of the search; what one stored in another's shared memory before is there afterwards.
__device__ inline void sync_parts(int parts) {
  if (parts == 1) return __syncthreads();
  cluster::arrive();
  cluster::wait();
}
/// *x = to in the shared memory of every block of the search.
__device__ inline void store_in_parts(uint32_t* x, uint32_t to, int parts) {
  if (parts == 1) {
    *x = to;
    return;
  }
  for (int part = 0; part < parts; ++part) cluster::store(x, to, part);
}

/// The keys of all children as a warp counts them: as many as there are registers for are read once.
class Keys {
 public:
  __device__ Keys(const uint32_t* key, int count)
      : packs_(reinterpret_cast<const uint4*>(key)), count_(count / 4) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int at = lane() + 32 * i;
      kept_[i] = at < count_ ? packs_[at] : uint4{0, 0, 0, 0};
    }
  }
  /// How many are `least` > 0 or more; the same in all lanes.
  __device__ int at_least(uint32_t least) const {
    int found = 0;
    const auto add = [&](const uint4& x) {
      found += (x.x >= least) + (x.y >= least) + (x.z >= least) + (x.w >= least);
    };
#pragma unroll
    for (int i = 0; i < kKept; ++i) add(kept_[i]);
    for (int at = lane() + 32 * kKept; at < count_; at += 32) add(packs_[at]);
    return __reduce_add_sync(0xffffffffu, found);
  }

 private:
  static constexpr int kKept = 4;
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  const uint4* packs_;
  int count_;
  uint4 kept_[kKept];
};

/// The `keep` best keys: all above `key`, and the first `ties` of those equal to it.
struct Cut {
  uint32_t key;
  int ties;
};
/// Narrows the range of the cut from both ends: in a step, which takes one barrier, each warp counts the keys
/// that reach another threshold. The first thresholds are keys themselves, and leave a 16th (8th) of them in
/// the range; the next ones divide it evenly. It is over once a threshold is reached by `keep` of them.
/// `children` keys, padded with 0 to `count`, of which `keep` or more are above 0.
template <int kWarps>
__device__ Cut select(const uint32_t* key, int children, int count, int keep) {
  __shared__ int reach[2][kWarps];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const Keys keys(key, count);
  // `low` is reached by `keep` keys or more; what is above `last`, by the `above` < keep there are.
  uint32_t low = 1, last = order_of(-lowest());
  int above = 0;
  for (int turn = 0, step = 0; low < last; turn ^= 1, ++step) {
    const auto threshold = [&](int w) {
      if (step == 0) return max(2u, key[static_cast<int64_t>(children) * w / kWarps]);
      return low + 1 +
             static_cast<uint32_t>(static_cast<uint64_t>(last - low) * static_cast<unsigned>(w) / kWarps);
    };
    const int found = keys.at_least(threshold(warp));
    if (lane == 0) reach[turn][warp] = found;
    __syncthreads();
    const int reached = lane < kWarps ? reach[turn][lane] : 0;
    const uint32_t at = threshold(lane % kWarps);
    const uint32_t exact = __ballot_sync(0xffffffffu, reached == keep);
    if (exact) return {__shfl_sync(0xffffffffu, at, __ffs(exact) - 1) - 1, 0};
    const bool enough = reached > keep, few = lane < kWarps && !enough;
    low = max(low, __reduce_max_sync(0xffffffffu, enough ? at : 0u));
    last = min(last, __reduce_min_sync(0xffffffffu, few ? at - 1 : 0xffffffffu));
    above = max(above, __reduce_max_sync(0xffffffffu, few ? static_cast<unsigned>(reached) : 0u));
  }
  return {low, keep - above};
}

/// The token list of `chosen` ascending blocks: sinks, blocks, window, each token once. Blocks are whole but
/// for the one that the sinks end in, and the last one, which the window may cut: places follow from numbers.
/// Tokens fit the 32 bits of the lists.
template <int kThreads>
__device__ void write_list(const ListOutput& to, int64_t item, int t, int chosen, const int* blocks) {
  const int block_k = to.block_k, sinks = min(to.sinks, t), range = max(sinks, t - to.window),
            past = sinks / block_k;
  int32_t* out = to.index + item * to.entries;
  int within = 0;  // blocks that lie in the sinks
  for (int base = 0; base < chosen; base += kThreads) {
    const int c = base + static_cast<int>(threadIdx.x);
    within += __syncthreads_count(c < chosen && blocks[c] < past);
  }
  const int cut = within < chosen ? max(0, sinks - blocks[within] * block_k) : 0;
  const auto place = [&](int c) { return sinks + (c - within) * block_k - (c > within ? cut : 0); };
  const auto begin = [&](int c) { return max(sinks, blocks[c] * block_k); };
  const auto length = [&](int c) { return max(0, min(range, (blocks[c] + 1) * block_k) - begin(c)); };
  for (int j = static_cast<int>(threadIdx.x); j < sinks; j += kThreads) out[j] = j;
  for (int c = within + static_cast<int>(threadIdx.x); c < chosen; c += kThreads) {
    const int at = place(c), from = begin(c), own = length(c);
    for (int i = 0; i < own; ++i) out[at + i] = from + i;
  }
  int found = within < chosen ? place(chosen - 1) + length(chosen - 1) : sinks;
  if (to.window > 0) {
    for (int j = range + static_cast<int>(threadIdx.x); j < t; j += kThreads) out[found + j - range] = j;
    found += max(0, t - range);
  }
  if (threadIdx.x == 0) {
    to.begin[item] = static_cast<int32_t>(item * to.entries);
    to.count[item] = found;
  }
}

/// The cells of one search in shared memory, and what a round does to them once the children are scored. All
/// threads of the block call its members together.
template <int kThreads>
class Cells {
 public:
  const int cells, children, all, parts;
  /// This block's cells of the cluster's: [first, first + own).
  int first, own;

  __device__ Cells(unsigned char* memory, int cells, int parts, int part)
      : cells(cells), children(2 * cells), all(static_cast<int>(padded(2 * cells))), parts(parts) {
    key_ = reinterpret_cast<uint32_t*>(memory);
    fresh_ = key_ + 2 * all;
    own_key_ = fresh_ + children;
    start_ = reinterpret_cast<int*>(own_key_ + 2 * cells);
    size_ = start_ + 2 * cells;
    const int share = (cells + parts - 1) / parts;
    first = min(cells, share * part), own = min(cells, first + share) - first;
  }
  /// begin(i): first block of cell i, for i up to and including `cells`. A barrier has to follow.
  template <class Begin>
  __device__ void open(Begin&& begin) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < cells; i += kThreads) {
      start_[i] = begin(i);
      size_[i] = begin(i + 1) - start_[i];
    }
    for (int i = thread; i < children; i += kThreads) fresh_[i] = 0;
    for (int i = children + thread; i < all; i += kThreads) key_[i] = key_[all + i] = 0;
  }
  __device__ const int* start(uint32_t round) const { return start_ + turn(round) * cells; }
  __device__ const int* size(uint32_t round) const { return size_ + turn(round) * cells; }
  /// A key of child i has this score. A barrier of the block has to follow the last one.
  __device__ void score(int i, float x) { atomicMax(fresh_ + i, order_of(x)); }

  /// Tells the cluster what this block's children are ordered by, and keeps the best of all. `left`, `right`:
  /// such children have their parents' representatives, and so scores, but in round 0.
  __device__ void halve(uint32_t round, bool left, bool right) {
    constexpr int kWarps = kThreads / 32;
    __shared__ uint32_t part_sum[2][kWarps];
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int now = turn(round), next = now ^ 1;
    const int *start = start_ + now * cells, *size = size_ + now * cells;
    uint32_t* key = key_ + now * all;
    for (int i = 2 * first + thread; i < 2 * (first + own); i += kThreads) {
      const int cell = i / 2, whole = size[cell];
      const bool same = whole == 1 || (i % 2 ? right : left);
      uint32_t x = max(fresh_[i], order_of(lowest()));
      fresh_[i] = 0;
      if (round > 0 && same) x = own_key_[now * cells + cell];
      // A cell of one block has but a right child.
      if (i % 2 == 0 && whole == 1) x = 0;
      store_in_parts(key + i, x, parts);
    }
    sync_parts(parts);
    // The best children, in order of their starts.
    const Cut cut = select<kWarps>(key, children, all, cells);
    int taken = 0, tied = 0;
    for (int base = 0, turn = 0; base < children; base += kThreads, turn ^= 1) {
      const int i = base + thread;
      const uint32_t x = i < children ? key[i] : 0;
      const bool above = x > cut.key, tie = i < children && x == cut.key;
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
        const int whole = size[i / 2], half = whole / 2;
        start_[next * cells + at] = i % 2 ? start[i / 2] + half : start[i / 2];
        size_[next * cells + at] = i % 2 ? whole - half : half;
        own_key_[next * cells + at] = x;
      }
      taken += static_cast<int>(total & 0xffffu), tied += static_cast<int>(total >> 16);
    }
    __syncthreads();
  }

  /// The starts of the cells of `round` as the selection of search `item`, and its list of keys below t.
  __device__ void write(uint32_t round, int64_t item, int t, int32_t* selected, int32_t* count,
                        const ListOutput& lists) const {
    const int* chosen = start(round);
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < cells; i += kThreads) selected[item * cells + i] = chosen[i];
    if (thread == 0) count[item] = cells;
    if (lists.index) write_list<kThreads>(lists, item, t, cells, chosen);
  }
  /// The same for a range whose `blocks` blocks are all chosen.
  __device__ void write_all(int blocks, int64_t item, int t, int32_t* selected, int32_t* count,
                            const ListOutput& lists) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < cells; i += kThreads) {
      selected[item * cells + i] = i < blocks ? i : -1;
      start_[i] = i;
    }
    if (thread == 0) count[item] = blocks;
    if (!lists.index) return;
    __syncthreads();
    write_list<kThreads>(lists, item, t, blocks, start_);
  }

 private:
  // Two buffers take turns, one a round: other blocks of the cluster may be a round ahead.
  __device__ static int turn(uint32_t round) { return static_cast<int>(round & 1); }
  uint32_t* key_;       // [2][padded children]: what children are ordered by; 0 stands behind the last
  uint32_t* fresh_;     // of each child of this block's cells: its score as it grows
  uint32_t* own_key_;   // [2][cells]: what the cell was kept for
  int *start_, *size_;  // [2][cells], in blocks
};
/// Dynamic shared memory of Cells.
constexpr size_t memory_bytes(int64_t cells) {
  return static_cast<size_t>(4 * (2 * padded(2 * cells) + 2 * cells + 6 * cells));
}

}  // namespace attnbench::tree
