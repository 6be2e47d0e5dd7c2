// Sweeps over the keys on the tensor cores of sm_80 and later: mma.sync, cp.async, ldmatrix. Four warps own
// 64 rows, 16 each; scores, products and weights of a tile of keys stay in registers and become the operand
// of the second product there, as in FlashAttention-2. Rows wider than 128 take a kernel of scalar
// arithmetic.
#include <cmath>

#include "kernels/attention/mma.cuh"
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/local_linear/cuda_sweep.cuh"

namespace attnbench::cuda_local_linear {
namespace {

using namespace cuda_attention;

constexpr int kThreads = 128;
/// What two blocks leave each other of a multiprocessor's shared memory on Hopper; and all of Ampere's.
constexpr int kHalfShared = 113 * 1024, kAllShared = 163 * 1024;

template <int kWidth, int kTerms>
constexpr int kTileKeys = kWidth == 128 && kTerms == 3 ? 32 : 64;

template <int kWidth, int kTerms, int kWork, Sweep kWhat>
struct Layout {
  static constexpr int kKeys = kTileKeys<kWidth, kTerms>;
  static constexpr bool kHasP = kWhat == Sweep::product || kWhat == Sweep::output;
  static constexpr bool kHasValues = kWhat == Sweep::squares || kWhat == Sweep::output;
  static constexpr int kValueTerms = kWhat == Sweep::squares ? kWork : kTerms;
  static constexpr int kRowPlane = kRows * kWidth * 2, kKeyPlane = kKeys * kWidth * 2;
  static constexpr int kFixed = (kTerms + (kHasP ? kWork : 0)) * kRowPlane;
  static constexpr int kStage = (kTerms + (kHasValues ? kValueTerms : 0)) * kKeyPlane;
  static constexpr int kStages = kFixed + 2 * kStage <= kAllShared ? 2 : 1;
  static constexpr int kBytes = kFixed + kStages * kStage;
  static_assert(kBytes <= kAllShared);
  /// Two blocks a multiprocessor where their memory allows it: at most 255 registers either way.
  static constexpr int kResident = kBytes <= kHalfShared ? 2 : 1;
  /// Operands of rows stay in registers where they take 48 at most.
  static constexpr bool kKeep = (kTerms + (kHasP ? kWork : 0)) * (kWidth / 16) * 4 <= 48;
};

/// Where chunk `chunk` (8 elements) of a row lies in a plane: the 8 rows of a matrix meet 8 different banks.
template <int kWidth>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
  return static_cast<uint32_t>(row * kWidth * 2 + ((chunk ^ (row & 7)) << 4));
}

/// Rows [first, first + kCount) of all terms of one head, zero beyond `rows`.
template <int kWidth, int kTerms, int kCount>
__device__ __forceinline__ void load_planes(uint32_t to, const Planes& x, int64_t head, int64_t first) {
  constexpr int kChunks = kWidth / 8;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    const __nv_bfloat16* from = x.data + (head * kTerms + term) * x.rows * kWidth;
#pragma unroll
    for (int i = 0; i < kCount * kChunks / kThreads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / kChunks, chunk = at % kChunks;
      const bool there = first + row < x.rows;
      copy_async(to + static_cast<uint32_t>(term * kCount * kWidth * 2) + place<kWidth>(row, chunk),
                 from + (there ? (first + row) * kWidth + chunk * 8 : 0), there ? 16 : 0);
    }
  }
}

/// x = the sum of its terms: term i is rounded from what the others leave.
template <int kTerms>
__device__ __forceinline__ void split_pair(float a, float b, uint32_t (&to)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    const __nv_bfloat162 x = __floats2bfloat162_rn(a, b);
    to[i] = *reinterpret_cast<const uint32_t*>(&x);
    a -= __low2float(x), b -= __high2float(x);
  }
}

constexpr bool counts(int i, int j, int terms_a, int terms_b) {
  return i + j < (terms_a > terms_b ? terms_a : terms_b);
}

template <int kWidth, int kTerms, int kWork, Sweep kWhat>
__global__ void __launch_bounds__(kThreads, (Layout<kWidth, kTerms, kWork, kWhat>::kResident))
    sweep_kernel(const SweepArgs w) {
  using L = Layout<kWidth, kTerms, kWork, kWhat>;
  constexpr int kKeys = L::kKeys, kSteps = kWidth / 16, kGroups = kKeys / 8;
  constexpr int kP = L::kHasP ? kWork : 0, kValueTerms = L::kValueTerms;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t q_at = shared_address(memory), p_at = q_at + kTerms * L::kRowPlane,
                 stages_at = q_at + L::kFixed;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int group = lane / 4, pair = lane % 4 * 2;

  // Long rows of blocks first.
  const int64_t first = (static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x) * kRows;
  const int64_t head = blockIdx.z, split = blockIdx.y;
  const int64_t last = min(first + kRows, w.n) - 1;
  const int64_t all_tiles = (keys_seen(w, last) + kKeys - 1) / kKeys;
  const int64_t begin = split * w.tiles, end = min(begin + w.tiles, all_tiles);
  if (begin >= end) return;

  const auto fetch = [&](int64_t tile) {
    const uint32_t at = stages_at + static_cast<uint32_t>((tile - begin) % L::kStages) * L::kStage;
    load_planes<kWidth, kTerms, kKeys>(at, w.k, head, tile * kKeys);
    if constexpr (L::kHasValues)
      load_planes<kWidth, kValueTerms, kKeys>(at + kTerms * L::kKeyPlane, w.values, head, tile * kKeys);
    commit_copies();
  };
  load_planes<kWidth, kTerms, kRows>(q_at, w.q, head, first);
  if constexpr (L::kHasP) load_planes<kWidth, kWork, kRows>(p_at, w.p, head, first);
  fetch(begin);
  wait_copies<0>();
  __syncthreads();
  if constexpr (kWhat == Sweep::product) {
    if (w.channel_begin > 0 || w.channel_end < kWidth) {
      for (int i = static_cast<int>(threadIdx.x); i < kWork * kRows * kWidth; i += kThreads) {
        const int term = i / (kRows * kWidth), row = i / kWidth % kRows, c = i % kWidth;
        if (c >= w.channel_begin && c < w.channel_end) continue;
        *reinterpret_cast<__nv_bfloat16*>(memory + (p_at - q_at) + term * L::kRowPlane +
                                          place<kWidth>(row, c / 8) + c % 8 * 2) = __float2bfloat16_rn(0.0f);
      }
      __syncthreads();
    }
  }

  const auto load_rows = [&](uint32_t(&a)[kTerms + kP][4], int step) {
#pragma unroll
    for (int i = 0; i < kTerms + kP; ++i)
      load_matrices(a[i], q_at + static_cast<uint32_t>(i * L::kRowPlane) +
                              place<kWidth>(16 * warp + (lane & 15), 2 * step + (lane >> 4)));
  };
  uint32_t kept[L::kKeep ? kSteps : 1][kTerms + kP][4];
  if constexpr (L::kKeep) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_rows(kept[step], step);
  }

  // Of the rows group and group + 8 of the warp.
  const int64_t row0 = first + 16 * warp + group;
  int64_t seen[2];
  float top[2] = {}, shift[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t row = row0 + 8 * h;
    seen[h] = row < w.n ? keys_seen(w, row) : 0;
    if (row >= w.n) continue;
    if constexpr (kWhat != Sweep::mean) top[h] = w.top[head * w.n + row];
    if constexpr (L::kHasP) shift[h] = w.shift[head * w.n + row];
  }
  const int64_t all_see = first + kRows <= w.n ? keys_seen(w, first) : 0;  // keys that need no mask
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  float y[kWidth / 8][4] = {};

  for (int64_t tile = begin; tile < end; ++tile) {
    if constexpr (L::kStages == 2) {
      if (tile > begin) {
        wait_copies<0>();
        __syncthreads();  // the tile is here, and the one before it is no longer read
      }
      if (tile + 1 < end) fetch(tile + 1);
    } else if (tile > begin) {
      __syncthreads();
      fetch(tile);
      wait_copies<0>();
      __syncthreads();
    }
    const uint32_t k_at = stages_at + static_cast<uint32_t>((tile - begin) % L::kStages) * L::kStage;
    const uint32_t v_at = L::kHasValues ? k_at + kTerms * L::kKeyPlane : k_at;

    float s[kGroups][4] = {}, t[L::kHasP ? kGroups : 1][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t fresh[kTerms + kP][4];
      if constexpr (!L::kKeep) load_rows(fresh, step);
      const uint32_t(&a)[kTerms + kP][4] = L::kKeep ? kept[L::kKeep ? step : 0] : fresh;
#pragma unroll
      for (int j = 0; j < kGroups / 2; ++j)
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
          uint32_t b[4];
          load_matrices(
              b, k_at + static_cast<uint32_t>(term * L::kKeyPlane) +
                     place<kWidth>(16 * j + (lane & 7) + (lane >> 4) * 8, 2 * step + ((lane >> 3) & 1)));
#pragma unroll
          for (int i = 0; i < kTerms; ++i)
            if (counts(i, term, kTerms, kTerms)) {
              multiply(s[2 * j], a[i], b[0], b[1], __nv_bfloat16{});
              multiply(s[2 * j + 1], a[i], b[2], b[3], __nv_bfloat16{});
            }
          if constexpr (L::kHasP) {
#pragma unroll
            for (int i = 0; i < kWork; ++i)
              if (counts(i, term, kWork, kTerms)) {
                multiply(t[2 * j], a[kTerms + i], b[0], b[1], __nv_bfloat16{});
                multiply(t[2 * j + 1], a[kTerms + i], b[2], b[3], __nv_bfloat16{});
              }
          }
        }
    }

    const int64_t key0 = tile * kKeys;
    const bool masked = key0 + kKeys > all_see;
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[g][i] *= w.scale2;
        if (masked && key0 + 8 * g + pair + i % 2 >= seen[i / 2]) s[g][i] = -INFINITY;
      }
    if constexpr (kWhat == Sweep::mean) {
      float before[2], factor[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        before[h] = most[h];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) most[h] = fmaxf(most[h], fmaxf(s[g][2 * h], s[g][2 * h + 1]));
        most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 2));
        // A row that has seen nothing yet keeps 0 of nothing.
        top[h] = most[h] == -INFINITY ? 0.0f : most[h];
        factor[h] = exp2_fast(before[h] - top[h]);
        sum[h] *= factor[h];
      }
#pragma unroll
      for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) y[c][i] *= factor[i / 2];
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = exp2_fast(s[g][i] - top[i / 2]);
        if constexpr (kWhat == Sweep::mean) sum[i / 2] += x;
        if constexpr (L::kHasP) x *= t[g][i] - shift[i / 2];
        s[g][i] = x;
      }

#pragma unroll
    for (int kk = 0; kk < kKeys / 16; ++kk) {
      uint32_t a[kWork][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t part[kWork];
        split_pair<kWork>(s[2 * kk + i / 2][i % 2 * 2], s[2 * kk + i / 2][i % 2 * 2 + 1], part);
#pragma unroll
        for (int term = 0; term < kWork; ++term) a[term][i] = part[term];
      }
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j)
#pragma unroll
        for (int term = 0; term < kValueTerms; ++term) {
          uint32_t b[4];
          load_matrices_transposed(b, v_at + static_cast<uint32_t>(term * L::kKeyPlane) +
                                          place<kWidth>(16 * kk + (lane & 15), 2 * j + (lane >> 4)));
#pragma unroll
          for (int i = 0; i < kWork; ++i)
            if (counts(i, term, kWork, kValueTerms)) {
              multiply(y[2 * j], a[i], b[0], b[1], __nv_bfloat16{});
              multiply(y[2 * j + 1], a[i], b[2], b[3], __nv_bfloat16{});
            }
        }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t row = row0 + 8 * h;
    if constexpr (kWhat == Sweep::mean) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    }
    if (row >= w.n) continue;
    const int64_t at = (split * w.heads + head) * w.n + row;
    if constexpr (kWhat == Sweep::mean) {
      if (pair == 0) w.most[at] = most[h], w.sum[at] = sum[h];
    }
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c)
      *reinterpret_cast<float2*>(w.y + at * kWidth + 8 * c + pair) =
          make_float2(y[c][2 * h], y[c][2 * h + 1]);
  }
}

/// The same for rows of any width, a warp a row: what the tensor-core kernel's tiles do not fit.
template <Sweep kWhat>
__global__ void __launch_bounds__(kThreads) wide_kernel(const SweepArgs w) {
  constexpr bool kHasP = kWhat == Sweep::product || kWhat == Sweep::output;
  extern __shared__ __align__(16) float rows[];  // of each warp: q, p and y
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  float *q = rows + warp * 3 * w.width, *p = q + w.width, *y = p + w.width;
  const int64_t head = blockIdx.z, split = blockIdx.y;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp;
  if (row >= w.n) return;
  const int64_t seen = keys_seen(w, row), span = w.tiles * w.tile_keys;
  if (split >= splits_of(w, row)) return;
  const auto value = [&](const Planes& x, int64_t i, int c) {
    float v = 0.0f;
    for (int term = x.terms - 1; term >= 0; --term)
      v += __bfloat162float(x.data[((head * x.terms + term) * x.rows + i) * w.width + c]);
    return v;
  };
  for (int c = lane; c < w.width; c += 32) {
    q[c] = value(w.q, row, c);
    if constexpr (kHasP) p[c] = c >= w.channel_begin && c < w.channel_end ? value(w.p, row, c) : 0.0f;
    y[c] = 0.0f;
  }
  const int64_t of_row = head * w.n + row;
  float most = -INFINITY, sum = 0.0f, top = 0.0f, shift = 0.0f;
  if constexpr (kWhat != Sweep::mean) top = w.top[of_row];
  if constexpr (kHasP) shift = w.shift[of_row];
  for (int64_t j = split * span; j < min((split + 1) * span, seen); ++j) {
    float s = 0.0f, t = 0.0f;
    for (int c = lane; c < w.width; c += 32) {
      const float k = value(w.k, j, c);
      s += q[c] * k;
      if constexpr (kHasP) t += p[c] * k;
    }
    s = warp_reduce(s, Add{}) * w.scale2;
    float factor = 1.0f;
    if constexpr (kWhat == Sweep::mean) {
      top = fmaxf(most, s);
      factor = exp2_fast(most - (top == -INFINITY ? 0.0f : top));
      most = top;
    }
    float x = exp2_fast(s - top);
    if constexpr (kWhat == Sweep::mean) sum = sum * factor + x;
    if constexpr (kHasP) x *= warp_reduce(t, Add{}) - shift;
    const Planes& of = kWhat == Sweep::squares || kWhat == Sweep::output ? w.values : w.k;
    for (int c = lane; c < w.width; c += 32) y[c] = y[c] * factor + x * value(of, j, c);
  }
  const int64_t at = split * w.heads * w.n + of_row;
  if (kWhat == Sweep::mean && lane == 0) w.most[at] = most, w.sum[at] = sum;
  for (int c = lane; c < w.width; c += 32) w.y[at * w.width + c] = y[c];
}

template <int kWidth, int kTerms, int kWork, Sweep kWhat>
void launch(Context& ctx, const SweepArgs& w) {
  using L = Layout<kWidth, kTerms, kWork, kWhat>;
  const auto kernel = sweep_kernel<kWidth, kTerms, kWork, kWhat>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes));
  const dim3 grid(static_cast<unsigned>((w.n + kRows - 1) / kRows), static_cast<unsigned>(w.splits),
                  static_cast<unsigned>(w.heads));
  kernel<<<grid, kThreads, L::kBytes, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}
template <Sweep kWhat>
void launch_wide(Context& ctx, const SweepArgs& w) {
  const int bytes = kThreads / 32 * 3 * w.width * static_cast<int>(sizeof(float));
  const dim3 grid(static_cast<unsigned>((w.n + kThreads / 32 - 1) / (kThreads / 32)),
                  static_cast<unsigned>(w.splits), static_cast<unsigned>(w.heads));
  wide_kernel<kWhat><<<grid, kThreads, bytes, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

template <Sweep kWhat>
void by_sizes(Context& ctx, const SweepArgs& w) {
  if (w.width > 128) return launch_wide<kWhat>(ctx, w);
  const auto by_terms = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if (w.dtype_terms == 1)
      launch<kWidth, 1, 2, kWhat>(ctx, w);
    else if (w.dtype_terms == 2)
      launch<kWidth, 2, 2, kWhat>(ctx, w);
    else
      launch<kWidth, 3, 3, kWhat>(ctx, w);
  };
  if (w.width == 64)
    by_terms(std::integral_constant<int, 64>{});
  else
    by_terms(std::integral_constant<int, 128>{});
}

}  // namespace

int64_t keys_of_tile(int width, int dtype_terms) {
  return width == 128 && dtype_terms == 3 ? kTileKeys<128, 3> : kTileKeys<64, 1>;
}

void sweep(Context& ctx, const SweepArgs& w) {
  switch (w.what) {
    case Sweep::mean:
      return by_sizes<Sweep::mean>(ctx, w);
    case Sweep::squares:
      return by_sizes<Sweep::squares>(ctx, w);
    case Sweep::product:
      return by_sizes<Sweep::product>(ctx, w);
    case Sweep::output:
      return by_sizes<Sweep::output>(ctx, w);
  }
}

}  // namespace attnbench::cuda_local_linear
