// Line sums of a probe's attention map on tensor cores without the map: one pass over the keys for the
// maximum and the sum of every row, a second one that computes the scores again and adds up columns and
// diagonals. Keys are split over blocks; every block of the second pass begins a probe's width of keys early,
// so that the diagonals that end among its own keys are whole and no sums meet between blocks.
#include <algorithm>

#include "kernels/attention/mma.cuh"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/probe_cuda.cuh"

namespace attnbench::select {
namespace {

using namespace cuda_attention;

/// Rows and keys of a tile of the map; a warp has sixteen of the rows.
constexpr int kRows = 128, kKeys = 64, kThreads = 256;
/// Floats from one row of the tile's probabilities to the next: pairs that a warp stores meet no bank twice.
constexpr int kPitch = kKeys + 8;
/// Diagonals under way, by their number modulo this: more than a tile has.
constexpr int kRing = 256;
static_assert(kRing >= kKeys + kRows - 1 && kRows % kKeys == 0);

struct Strides {
  int64_t b, h, t;
  explicit Strides(const Tensor& x) : b(x.stride(0)), h(x.stride(1)), t(x.stride(2)) {}
};

struct Probe {
  const void *q, *k;
  Strides qs, ks;
  int64_t n;
  int rows, heads, group, splits;
  int64_t tiles;  ///< of keys, a split
  float scale;    ///< times log2 e: exponentials are powers of two
  float2* stats;  ///< [B H, splits, kRows]: maximum, and sum relative to it
  float *vertical, *slash;
};

/// What a block works on. Blocks of the heads that share keys are neighbours.
struct Place {
  int64_t b, kv, head, split, first, last;  ///< head: b * heads + h; keys [first, last)

  __device__ explicit Place(const Probe& p) {
    const int64_t kv_heads = p.heads / p.group;
    int64_t i = blockIdx.x;
    const int64_t g = i % p.group;
    i /= p.group;
    split = i % p.splits;
    i /= p.splits;
    kv = i % kv_heads, b = i / kv_heads;
    head = b * p.heads + kv * p.group + g;
    first = split * p.tiles * kKeys;
    last = min(p.n, first + p.tiles * kKeys);
  }
};

/// Keys in shared memory, rows 16 bytes further apart than they are long: eight of them meet all banks.
template <class T, int Dim>
struct KeyTile {
  static constexpr int kRowBytes = Dim * 2 + 16, kBytes = kKeys * kRowBytes;

  /// Keys [first, first + kKeys); those from n on are zero.
  static __device__ void load(uint32_t to, const T* keys, int64_t stride, int64_t first, int64_t n) {
    constexpr int kChunks = Dim / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks;
      const int64_t j = first + row;
      copy_async(to + static_cast<uint32_t>(row * kRowBytes + c * 16),
                 keys + (j < n ? j * stride + c * 8 : 0), j < n ? 16 : 0);
    }
    commit_copies();
  }
};

/// A warp's sixteen queries in registers and their products with a tile of keys.
template <class T, int Dim>
struct Queries {
  uint32_t a[Dim / 16][4];

  __device__ Queries(const Probe& p, const Place& at) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    const int h = static_cast<int>(at.head - at.b * p.heads);
    const T* from = static_cast<const T*>(p.q) + at.b * p.qs.b + h * p.qs.h;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = static_cast<int>(threadIdx.x / 32) * 16 + g + 8 * half;
      const T* q = from + row * p.qs.t + 2 * t;
#pragma unroll
      for (int s = 0; s < Dim / 16; ++s)
#pragma unroll
        for (int part = 0; part < 2; ++part)
          a[s][half + 2 * part] =
              row < p.rows ? *reinterpret_cast<const uint32_t*>(q + s * 16 + part * 8) : 0u;
    }
  }

  /// c[j]: scores of rows g and g + 8 at the keys 8 j + 2 t and the next.
  __device__ void scores(float (&c)[kKeys / 8][4], uint32_t tile) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const uint32_t from =
        tile +
        static_cast<uint32_t>((lane % 8 + lane / 16 * 8) * KeyTile<T, Dim>::kRowBytes + lane / 8 % 2 * 16);
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
#pragma unroll
    for (int s = 0; s < Dim / 16; ++s)
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        uint32_t b[4];
        load_matrices(b, from + static_cast<uint32_t>(j * 8 * KeyTile<T, Dim>::kRowBytes + s * 32));
        multiply(c[j], a[s], b[0], b[1], T{});
        multiply(c[j + 1], a[s], b[2], b[3], T{});
      }
  }
};

/// Scores times `scale`; -inf at keys that a row does not see. Only the last keys have some.
__device__ void scale_and_hide(float (&c)[kKeys / 8][4], const Probe& p, int64_t first) {
  const int lane = static_cast<int>(threadIdx.x % 32),
            row = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4;
  const bool cut = first + kKeys > p.n - p.rows;
  // Keys of this tile that the row sees lie below this.
  const int64_t seen = p.n - p.rows + row + 1 - first;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      c[j][e] *= p.scale;
      if (cut && j * 8 + lane % 4 * 2 + e % 2 >= min(seen + (e >= 2 ? 8 : 0), p.n - first))
        c[j][e] = -INFINITY;
    }
}

/// A maximum and a sum of powers relative to it, joined with another one.
__device__ void join(float& top, float& sum, float other_top, float other_sum) {
  const float both = fmaxf(top, other_top), base = both == -INFINITY ? 0.0f : both;
  sum = sum * exp2_fast(top - base) + other_sum * exp2_fast(other_top - base);
  top = both;
}

template <class T, int Dim>
__global__ void __launch_bounds__(kThreads, 2) probe_stats_kernel(Probe p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const uint32_t tiles = shared_address(shared);
  const Place at(p);
  const T* keys = static_cast<const T*>(p.k) + at.b * p.ks.b + at.kv * p.ks.h;
  KeyTile<T, Dim>::load(tiles, keys, p.ks.t, at.first, p.n);
  const Queries<T, Dim> queries(p, at);
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  uint32_t stage = 0;
  for (int64_t first = at.first; first < at.last; first += kKeys, stage ^= 1u) {
    wait_copies<0>();
    __syncthreads();  // the tile is here, and the other stage has been read
    if (first + kKeys < at.last)
      KeyTile<T, Dim>::load(tiles + (stage ^ 1u) * KeyTile<T, Dim>::kBytes, keys, p.ks.t, first + kKeys, p.n);
    float c[kKeys / 8][4];
    queries.scores(c, tiles + stage * KeyTile<T, Dim>::kBytes);
    scale_and_hide(c, p, first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float high = top[half];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) high = fmaxf(high, fmaxf(c[j][2 * half], c[j][2 * half + 1]));
      const float base = high == -INFINITY ? 0.0f : high;
      float part = 0.0f;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        part += exp2_fast(c[j][2 * half] - base) + exp2_fast(c[j][2 * half + 1] - base);
      sum[half] = sum[half] * exp2_fast(top[half] - base) + part;
      top[half] = high;
    }
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      const float other_top = __shfl_xor_sync(0xffffffffu, top[half], step);
      const float other_sum = __shfl_xor_sync(0xffffffffu, sum[half], step);
      join(top[half], sum[half], other_top, other_sum);
    }
    if (lane % 4 == 0)
      p.stats[(at.head * p.splits + at.split) * kRows + static_cast<int>(threadIdx.x / 32) * 16 + lane / 4 +
              8 * half] = make_float2(top[half], sum[half]);
  }
}

/// Shared memory of the second pass behind the two tiles of keys.
struct Sums {
  float map[kRows * kPitch];  ///< probabilities of a tile
  double ring[kRing];         ///< sums of the diagonals under way
  float2 row[kRows];          ///< maximum, and the inverse sum
};

/// Maxima and inverse sums of whole rows from those of all splits; 0 for rows that the probe does not have.
__device__ void join_rows(const Probe& p, const Place& at, Sums& s) {
  auto* halves = reinterpret_cast<float2*>(s.map);
  const int t = static_cast<int>(threadIdx.x), row = t % kRows;
  float top = -INFINITY, sum = 0.0f;
  for (int split = t / kRows; split < p.splits; split += kThreads / kRows) {
    const float2 part = p.stats[(at.head * p.splits + split) * kRows + row];
    join(top, sum, part.x, part.y);
  }
  halves[t] = make_float2(top, sum);
  __syncthreads();
  if (t < kRows) {
    join(top, sum, halves[t + kRows].x, halves[t + kRows].y);
    s.row[t] = make_float2(top == -INFINITY ? 0.0f : top, row < p.rows ? 1.0f / sum : 0.0f);
  }
}

/// Means along the columns of a tile: four threads a column, each with a quarter of the rows, from a row of
/// its own on so that they meet different banks.
__device__ void sum_columns(const Probe& p, const Place& at, const Sums& s, int64_t first) {
  const int t = static_cast<int>(threadIdx.x), column = t / 4, quarter = t % 4;
  float part[4] = {};
#pragma unroll
  for (int r = 0; r < kRows / 4; ++r)
    part[r % 4] += s.map[(quarter * (kRows / 4) + (r + quarter) % (kRows / 4)) * kPitch + column];
  const double sum =
      warp_reduce<4>(static_cast<double>(part[0] + part[1]) + static_cast<double>(part[2] + part[3]), Add{});
  if (quarter == 0 && first + column < p.n)
    p.vertical[at.head * p.n + first + column] = static_cast<float>(sum / p.rows);
}

/// A thread a diagonal that crosses the tile; the first ones end in it.
__device__ void sum_diagonals(const Probe& p, const Place& at, Sums& s, int64_t first) {
  const int e = static_cast<int>(threadIdx.x), back = p.rows - 1 - e;  // element i is at column i - back
  if (e >= kKeys + p.rows - 1) return;
  const int begin = max(0, back), end = min(p.rows, kKeys + back);
  const float* from = s.map + begin * kPitch + (begin - back);
  float part[4] = {};
  int i = begin;
  for (; i + 4 <= end; i += 4, from += 4 * (kPitch + 1))
#pragma unroll
    for (int u = 0; u < 4; ++u) part[u] += from[u * (kPitch + 1)];
  for (; i < end; ++i, from += kPitch + 1) part[0] += *from;
  double& sum = s.ring[(first + e) % kRing];
  sum += static_cast<double>(part[0] + part[1]) + static_cast<double>(part[2] + part[3]);
  if (e >= kKeys) return;
  const int64_t line = first + e;
  if (line >= at.first && line < p.n) p.slash[at.head * p.n + line] = static_cast<float>(sum / p.rows);
  sum = 0.0;
}

template <class T, int Dim>
__global__ void __launch_bounds__(kThreads, 2) probe_sums_kernel(Probe p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const uint32_t tiles = shared_address(shared);
  Sums& s = *reinterpret_cast<Sums*>(shared + 2 * KeyTile<T, Dim>::kBytes);
  const Place at(p);
  const T* keys = static_cast<const T*>(p.k) + at.b * p.ks.b + at.kv * p.ks.h;
  const int64_t early = max(at.first - kRows, int64_t{0});
  KeyTile<T, Dim>::load(tiles, keys, p.ks.t, early, p.n);
  const Queries<T, Dim> queries(p, at);
  s.ring[threadIdx.x % kRing] = 0.0;
  join_rows(p, at, s);
  uint32_t stage = 0;
  for (int64_t first = early; first < at.last; first += kKeys, stage ^= 1u) {
    wait_copies<0>();
    __syncthreads();  // the tile is here; the other stage, the map and the ring are free
    if (first + kKeys < at.last)
      KeyTile<T, Dim>::load(tiles + (stage ^ 1u) * KeyTile<T, Dim>::kBytes, keys, p.ks.t, first + kKeys, p.n);
    float c[kKeys / 8][4];
    queries.scores(c, tiles + stage * KeyTile<T, Dim>::kBytes);
    scale_and_hide(c, p, first);
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = static_cast<int>(threadIdx.x / 32) * 16 + lane / 4 + 8 * half;
      const float2 of = s.row[row];
      float* to = s.map + row * kPitch + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        *reinterpret_cast<float2*>(to + j * 8) =
            make_float2(exp2_fast(c[j][2 * half] - of.x) * of.y, exp2_fast(c[j][2 * half + 1] - of.x) * of.y);
    }
    __syncthreads();
    if (first >= at.first) sum_columns(p, at, s, first);
    sum_diagonals(p, at, s, first);
  }
}

template <class T, int Dim>
void launch(Context& ctx, Probe& p, int64_t batch) {
  using Tile = KeyTile<T, Dim>;
  constexpr int kStats = 2 * Tile::kBytes, kAll = kStats + static_cast<int>(sizeof(Sums));
  // Two blocks run on a multiprocessor; eight rounds of them, so that the last one weighs little, but no less
  // than sixteen tiles a block, of which two are the early ones.
  const int64_t tiles = (p.n + kKeys - 1) / kKeys, heads = batch * p.heads;
  const int64_t blocks = static_cast<int64_t>(cuda_of(ctx).sm_count()) * 16;
  p.tiles = std::max<int64_t>(16, (tiles * heads + blocks - 1) / blocks);
  p.splits = static_cast<int>((tiles + p.tiles - 1) / p.tiles);
  const Tensor stats = ctx.allocate(DType::f32, {heads, p.splits, kRows, 2});
  p.stats = static_cast<float2*>(stats.raw());
  const auto grid = static_cast<unsigned>(heads * p.splits);
  const auto stats_kernel = probe_stats_kernel<T, Dim>;
  const auto sums_kernel = probe_sums_kernel<T, Dim>;
  CUDA_CHECK(cudaFuncSetAttribute(stats_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kStats));
  CUDA_CHECK(cudaFuncSetAttribute(sums_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kAll));
  stats_kernel<<<grid, kThreads, kStats, stream_of(ctx)>>>(p);
  CUDA_CHECK_LAUNCH();
  sums_kernel<<<grid, kThreads, kAll, stream_of(ctx)>>>(p);
  CUDA_CHECK_LAUNCH();
}

template <class T>
bool launch_dim(Context& ctx, Probe& p, int64_t batch, int64_t dim) {
  switch (dim) {
    case 16:
      return launch<T, 16>(ctx, p, batch), true;
    case 32:
      return launch<T, 32>(ctx, p, batch), true;
    case 64:
      return launch<T, 64>(ctx, p, batch), true;
    case 128:
      return launch<T, 128>(ctx, p, batch), true;
    default:
      return false;
  }
}

}  // namespace

bool probe_lines(Context& ctx, const LineSumsArgs& args) {
  const int64_t rows = args.q.dim(2);
  if (rows > kRows || !packable(args.k, 16) || !packable(args.q, 4)) return false;
  Probe p{args.q.raw(), args.k.raw(), Strides(args.q), Strides(args.k)};
  p.n = args.k.dim(2);
  p.rows = static_cast<int>(rows);
  p.heads = static_cast<int>(args.q.dim(1));
  p.group = static_cast<int>(args.q.dim(1) / args.k.dim(1));
  p.scale = args.scale * 1.4426950408889634f;
  p.vertical = args.vertical.data<float>(), p.slash = args.slash.data<float>();
  const int64_t batch = args.q.dim(0), dim = args.q.dim(3);
  if (args.q.dtype() == DType::bf16) return launch_dim<__nv_bfloat16>(ctx, p, batch, dim);
  return args.q.dtype() == DType::f16 && launch_dim<__half>(ctx, p, batch, dim);
}

}  // namespace attnbench::select
