// Spans on CUDA. Search: a warp a query, four candidates at a time by groups of eight lanes, the best ones
// in order across the warp's lanes. Packing: a warp a block of rows. Joining: a warp a query.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/spans/spans.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kGroup = 8, kGroups = kWarp / kGroup;
constexpr unsigned kAll = 0xffffffffu;

/// As the CPU's order: larger first, NaN above everything, ties by key.
__device__ bool before(float a, int ka, float b, int kb) {
  const bool na = isnan(a), nb = isnan(b);
  if (na != nb) return na;
  if (!na && a != b) return a > b;
  return ka < kb;
}

struct Search {
  const void *q, *k;
  int64_t q_b, q_h, q_n, k_b, k_h, k_m;
  const int32_t *position, *stripes, *before, *after, *first;
  const uint8_t* valid;
  int32_t *anchor, *start, *end;
  float* score;
  float scale;
  int64_t rows, n, m, window;
  int heads, group, d, count, slots;
  bool apart;
};

/// First of v[0, n) that is not below x.
__device__ int lower_bound(const int32_t* v, int n, int64_t x) {
  int low = 0;
  while (n > 0) {
    const int half = n / 2;
    if (v[low + half] < x)
      low += half + 1, n -= half + 1;
    else
      n = half;
  }
  return low;
}

/// kPack elements of the storage type make 16 bytes where rows allow it; otherwise 1.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) search_kernel(Search w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp), member = lane % kGroup, team = lane / kGroup;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < w.rows; r += step) {
    const int64_t bh = r / w.n, i = r - bh * w.n, b = bh / w.heads;
    const int h = static_cast<int>(bh - b * w.heads);
    const T* q = static_cast<const T*>(w.q) + b * w.q_b + h * w.q_h + i * w.q_n;
    const T* k = static_cast<const T*>(w.k) + b * w.k_b + (h / w.group) * w.k_h;
    const int64_t t = w.position[i];
    const int from = lower_bound(w.stripes, w.count, t + 2 - w.m),
              to = lower_bound(w.stripes, w.count, t + 2);
    // Lane s holds slot s; lanes from `found` on hold nothing.
    float best = 0;
    int best_key = -1, found = 0;
    for (int e = from; e < to; e += kGroups) {
      const bool inside = e + team < to;
      const int64_t c = inside ? t - w.stripes[e + team] + 1 : 0;
      const bool there = inside && (!w.valid || w.valid[b * w.m + c] != 0);
      float sum = 0;
      if (there) {
        const T* key = k + c * w.k_m;
        for (int x = member * kPack; x < w.d; x += kGroup * kPack) {
          T mine[kPack], other[kPack];
          load_pack(q + x, mine);
          load_pack(key + x, other);
#pragma unroll
          for (int y = 0; y < kPack; ++y) sum += widen(mine[y]) * widen(other[y]);
        }
      }
      sum = warp_reduce<kGroup>(sum, [](float a, float z) { return a + z; }) * w.scale;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int source = g * kGroup;
        const float z = __shfl_sync(kAll, sum, source);
        const int key = static_cast<int>(__shfl_sync(kAll, static_cast<int>(c), source));
        if (!__shfl_sync(kAll, static_cast<int>(there), source)) continue;
        const bool ahead = lane < found && before(best, best_key, z, key);
        const int rank = __popc(__ballot_sync(kAll, ahead));
        const float above = __shfl_up_sync(kAll, best, 1);
        const int key_above = __shfl_up_sync(kAll, best_key, 1);
        if (lane > rank) best = above, best_key = key_above;
        if (lane == rank) best = z, best_key = key;
        if (found < w.slots) ++found;
      }
    }
    if (lane >= w.slots) continue;  // no collective below; the warp meets again at the next row's
    const int64_t at = r * w.slots + lane, first = w.first ? w.first[b] : 0;
    const bool there = lane < found;
    int64_t length = t + 1 - first;
    length = length < 0 ? 0 : length > w.m ? w.m : length;
    int64_t last = t < w.m - 1 ? t : w.m - 1;
    if (w.apart) {
      const int64_t edge = (t - w.window + 1 > 0 ? t - w.window + 1 : 0) - 1;
      last = last < edge ? last : edge;
    }
    const int64_t low = best_key - static_cast<int64_t>(w.before[length]),
                  high = best_key + static_cast<int64_t>(w.after[length]);
    w.anchor[at] = there ? best_key : -1;
    w.score[at] = there ? best : -1e9f;
    w.start[at] = there ? static_cast<int32_t>(low > first ? low : first) : -1;
    w.end[at] = there ? static_cast<int32_t>(high < last ? high : last) : -1;
  }
}

struct Pack {
  const int32_t *order, *start, *end;
  int32_t *query, *row_begin, *row_end, *place, *first_block, *blocks;
  int64_t items, rows, tiles, block_q, block_k;
  int32_t per_query;
};

__global__ void __launch_bounds__(kThreads) pack_kernel(Pack w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < w.items;
       item += step) {
    const int64_t base = item / w.tiles * w.rows, tile = item % w.tiles;
    const int64_t limit = (tile + 1) * w.block_q < w.rows ? (tile + 1) * w.block_q : w.rows;
    int least = INT32_MAX, most = 0;
    for (int64_t r = tile * w.block_q + lane; r < limit; r += kWarp) {
      const int32_t span = w.order[base + r], start = w.start[base + span];
      const int32_t begin = start >= 0 ? start : 0, end = start >= 0 ? w.end[base + span] + 1 : 0;
      w.query[base + r] = span / w.per_query;
      w.place[base + span] = static_cast<int32_t>(r);
      w.row_begin[base + r] = begin;
      w.row_end[base + r] = end;
      if (begin < end) least = min(least, begin), most = max(most, end);
    }
    least = warp_reduce(least, [](int a, int b) { return min(a, b); });
    most = warp_reduce(most, [](int a, int b) { return max(a, b); });
    if (lane > 0) continue;
    const int64_t from = most > 0 ? least / w.block_k : 0;
    w.first_block[item] = static_cast<int32_t>(from);
    w.blocks[item] = static_cast<int32_t>(most > 0 ? (most + w.block_k - 1) / w.block_k - from : 0);
  }
}

struct Merge {
  const void *spans, *shared;
  void* o;
  const float *lse, *shared_lse, *score;
  const int32_t* place;
  int64_t s_b, s_h, s_n, w_b, w_h, w_n, o_b, o_h, o_n, rows, n;
  int heads, e, slots;
};

template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(Merge w) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < w.rows; r += step) {
    const int64_t bh = r / w.n, i = r - bh * w.n, b = bh / w.heads, h = bh - b * w.heads;
    const float* score = w.score + r * w.slots;
    float most = -INFINITY, total = 0;
    for (int s = 0; s < w.slots; ++s)
      if (score[s] > most || isnan(score[s])) most = score[s];
    for (int s = 0; s < w.slots; ++s) total += expf(score[s] - most);
    const float shared = w.shared ? w.shared_lse[r] : -INFINITY;
    const T* spans = static_cast<const T*>(w.spans) + b * w.s_b + h * w.s_h;
    const T* window =
        w.shared ? static_cast<const T*>(w.shared) + b * w.w_b + h * w.w_h + i * w.w_n : nullptr;
    T* o = static_cast<T*>(w.o) + b * w.o_b + h * w.o_h + i * w.o_n;
    for (int x = lane; x < w.e; x += kWarp) {
      float sum = 0, of_shared = 0;
      for (int s = 0; s < w.slots; ++s) {
        const int64_t place = w.place[r * w.slots + s];
        const float lse = w.lse[bh * w.n * w.slots + place];
        const float top = lse > shared || isnan(lse) ? lse : shared;
        if (top == -INFINITY) continue;
        const float gate = expf(score[s] - most) / total, own = expf(lse - top), other = expf(shared - top);
        const float weight = gate * own / (own + other);
        // What carries no weight may hold anything.
        if (weight != 0.0f) sum += weight * widen(spans[place * w.s_n + x]);
        of_shared += gate * other / (own + other);
      }
      if (window && of_shared != 0.0f) sum += of_shared * widen(window[x]);
      o[x] = narrow<T>(sum);
    }
  }
}

}  // namespace

void CudaBackend::search_spans(Context& ctx, const SearchSpansArgs& args) {
  Search w{};
  w.q = args.q.raw(), w.k = args.k.raw();
  w.q_b = args.q.stride(0), w.q_h = args.q.stride(1), w.q_n = args.q.stride(2);
  w.k_b = args.k.stride(0), w.k_h = args.k.stride(1), w.k_m = args.k.stride(2);
  w.position = args.position.data<int32_t>(), w.stripes = args.stripes.data<int32_t>();
  w.before = args.before.data<int32_t>(), w.after = args.after.data<int32_t>();
  if (args.first) w.first = args.first.data<int32_t>();
  if (args.key_valid) w.valid = args.key_valid.data<uint8_t>();
  w.anchor = args.anchor.data<int32_t>(), w.start = args.start.data<int32_t>();
  w.end = args.end.data<int32_t>(), w.score = args.score.data<float>();
  w.scale = args.scale, w.n = args.q.dim(2), w.m = args.k.dim(2), w.window = args.window;
  w.heads = static_cast<int>(args.q.dim(1)), w.group = static_cast<int>(args.q.dim(1) / args.k.dim(1));
  w.d = static_cast<int>(args.q.dim(3)), w.count = static_cast<int>(args.stripes.numel());
  w.apart = args.apart;
  if (args.anchor.dim(3) > kWarp)
    throw Unsupported("search_spans on CUDA keeps up to 32 anchors a query, not " +
                      std::to_string(args.anchor.dim(3)));
  w.slots = static_cast<int>(args.anchor.dim(3));
  w.rows = args.q.dim(0) * args.q.dim(1) * w.n;
  const bool packs = packable(args.q, 16) && packable(args.k, 16);
  by_float_type(args.q.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const unsigned grid = grid_for(ctx, w.rows, kWarps);
    if (packs)
      search_kernel<T, kVector<T>><<<grid, kThreads, 0, stream()>>>(w);
    else
      search_kernel<T, 1><<<grid, kThreads, 0, stream()>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::pack_spans(Context& ctx, const PackSpansArgs& args) {
  Pack w{};
  w.order = args.order.data<int32_t>(), w.start = args.start.data<int32_t>(),
  w.end = args.end.data<int32_t>();
  w.query = args.query.data<int32_t>(), w.place = args.place.data<int32_t>();
  w.row_begin = args.row_begin.data<int32_t>(), w.row_end = args.row_end.data<int32_t>();
  w.first_block = args.first_block.data<int32_t>(), w.blocks = args.blocks.data<int32_t>();
  w.items = args.blocks.numel(), w.rows = args.order.dim(2), w.tiles = args.blocks.dim(2);
  w.block_q = args.block_q, w.block_k = args.block_k;
  w.per_query = static_cast<int32_t>(args.per_query);
  pack_kernel<<<grid_for(ctx, w.items, kWarps), kThreads, 0, stream()>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::merge_spans(Context& ctx, const MergeSpansArgs& args) {
  Merge w{};
  w.spans = args.spans.raw(), w.o = args.o.raw();
  w.s_b = args.spans.stride(0), w.s_h = args.spans.stride(1), w.s_n = args.spans.stride(2);
  w.o_b = args.o.stride(0), w.o_h = args.o.stride(1), w.o_n = args.o.stride(2);
  if (args.shared) {
    w.shared = args.shared.raw(), w.shared_lse = args.shared_lse.data<float>();
    w.w_b = args.shared.stride(0), w.w_h = args.shared.stride(1), w.w_n = args.shared.stride(2);
  }
  w.lse = args.lse.data<float>(), w.score = args.score.data<float>(), w.place = args.place.data<int32_t>();
  w.n = args.o.dim(2), w.rows = args.o.dim(0) * args.o.dim(1) * w.n;
  w.heads = static_cast<int>(args.o.dim(1)), w.e = static_cast<int>(args.o.dim(3));
  w.slots = static_cast<int>(args.score.dim(3));
  by_float_type(args.o.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    merge_kernel<T><<<grid_for(ctx, w.rows, kWarps), kThreads, 0, stream()>>>(w);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
