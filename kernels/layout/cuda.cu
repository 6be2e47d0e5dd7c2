// Row gathers and axis permutations on CUDA. Elements only move, so kernels know sizes and no types.
#include <algorithm>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

/// Calls f(Type<unit>) with the largest unit of 1 to 16 bytes that divides all of `bits` (lengths, strides
/// and addresses, joined by |).
template <class F>
void by_unit(uint64_t bits, const F& f) {
  if (bits % 16 == 0) return f(Type<uint4>{});
  if (bits % 8 == 0) return f(Type<uint2>{});
  if (bits % 4 == 0) return f(Type<uint32_t>{});
  if (bits % 2 == 0) return f(Type<uint16_t>{});
  f(Type<uint8_t>{});
}

uint64_t magnitude(int64_t s) { return static_cast<uint64_t>(s < 0 ? -s : s); }

// ---- gather_rows ------------------------------------------------------------------------------------------

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Unit* x, const int32_t* index, Unit* y, int64_t batch, Divisor rows, Divisor units,
                  int64_t n, int64_t xb, int64_t xn, int64_t yb, int64_t yn) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = batch * rows.n * units.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += kBatch * step) {
    int64_t from[kBatch], at_x[kBatch], at_y[kBatch];
    Unit value[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= items) break;
      const int64_t row = units.of(i + u * step), c = i + u * step - row * units.n;
      const int64_t b = rows.of(row), at = row - b * rows.n;
      from[u] = index[at];
      at_x[u] = b * xb + c, at_y[u] = b * yb + at * yn + c;
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= items) break;
      if (from[u] >= 0 && from[u] < n)
        value[u] = x[at_x[u] + from[u] * xn];
      else  // -1 is padding; what is no index at all becomes NaN
        memset(&value[u], from[u] == -1 ? 0 : 0xff, sizeof value[u]);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (i + u * step < items) y[at_y[u]] = value[u];
  }
}

// ---- transpose_copy ---------------------------------------------------------------------------------------

struct Axis {
  int64_t extent, x, y;  // strides in elements
};
struct Axes {
  Axis axis[Shape::kMaxRank];
  Divisor by[Shape::kMaxRank];
  int rank = 0;
};

/// With the divisors that locate() needs.
Axes finished(Axes axes) {
  for (int r = 0; r < axes.rank; ++r) axes.by[r] = Divisor(axes.axis[r].extent);
  return axes;
}

/// Offsets of position i of the axes in row-major order.
__device__ void locate(const Axes& axes, int64_t i, int64_t& x, int64_t& y) {
  x = 0, y = 0;
  for (int r = axes.rank - 1; r >= 0; --r) {
    const int64_t outer = r == 0 ? 0 : axes.by[r].of(i);
    const int64_t at = i - outer * axes.axis[r].extent;
    x += at * axes.axis[r].x;
    y += at * axes.axis[r].y;
    i = outer;
  }
}

/// Runs of `units` that are contiguous on both sides (or single elements of any strides, units = 1).
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    copy_runs_kernel(const Unit* x, Unit* y, const Axes outer, int64_t count, Divisor units) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = count * units.n;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += kBatch * step) {
    Unit value[kBatch];
    int64_t to[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= items) break;
      const int64_t run = units.of(i + u * step), c = i + u * step - run * units.n;
      int64_t at_x, at_y;
      locate(outer, run, at_x, at_y);
      value[u] = x[at_x + c];
      to[u] = at_y + c;
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (i + u * step < items) y[to[u]] = value[u];
  }
}

/// Planes of x's fastest axis (`across`) and y's (`inner`), transposed by squares in shared memory: both
/// sides are touched in runs of kTile elements, at least 128 bytes of them where elements have 2 bytes or
/// more.
template <class T, int kTile>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const T* x, T* y, const Axes outer, Axis across, Axis inner, Divisor tiles_across,
                     Divisor tiles_inner, int64_t tiles) {
  // Rows of an odd number of words: a column's elements lie in different banks.
  __shared__ T square[kTile][kTile + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)];
  constexpr int kRows = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x % 32), row = static_cast<int>(threadIdx.x / 32);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t line = tiles_across.of(tile), plane = tiles_inner.of(line);
    const int64_t i0 = (tile - line * tiles_across.n) * kTile, j0 = (line - plane * tiles_inner.n) * kTile;
    int64_t at_x, at_y;
    locate(outer, plane, at_x, at_y);
    at_x += i0 * across.x + j0 * inner.x;
    at_y += i0 * across.y + j0 * inner.y;
    const int64_t rows = min(inner.extent - j0, static_cast<int64_t>(kTile));
    const int64_t columns = min(across.extent - i0, static_cast<int64_t>(kTile));
#pragma unroll
    for (int j = 0; j < kTile; j += kRows)
#pragma unroll
      for (int i = 0; i < kTile; i += 32)
        if (row + j < rows && lane + i < columns)
          square[row + j][lane + i] = x[at_x + (lane + i) * across.x + (row + j) * inner.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTile; i += kRows)
#pragma unroll
      for (int j = 0; j < kTile; j += 32)
        if (row + i < columns && lane + j < rows)
          y[at_y + (row + i) * across.y + (lane + j) * inner.y] = square[lane + j][row + i];
    __syncthreads();
  }
}

constexpr int kPackTile = 64;

/// The same where both sides allow 16-byte accesses, for elements of 2 and 4 bytes. Squares are kept as words
/// of four bytes, kPack = 16 / sizeof(T) rows of which make up 16 bytes of y.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 5 : 4)  // 40 KiB and 64 KiB under way
    transpose_packs_kernel(const T* x, T* y, const Axes outer, Axis across, Axis inner, Divisor tiles_across,
                           Divisor tiles_inner, int64_t tiles) {
  constexpr int kTile = kPackTile, kPack = 16 / sizeof(T), kPacks = kTile / kPack;
  constexpr int kPerWord = 4 / sizeof(T), kWords = kTile / kPerWord;
  // Rows of 33 words, 32 rows and 32 words skewed against the next: a warp that stores packs of a few rows,
  // or reads a few words of rows kPack apart, meets every bank once.
  constexpr int kRow = 33, kSkew = 2 * kPerWord, kHalf = kTile * kRow + 2;
  __shared__ uint32_t square[(kWords / 32 - 1) * kHalf + (kTile - 1) * kRow + kSkew + 32];
  const auto place = [](int row, int word) {
    return word / 32 * kHalf + row * kRow + row / 32 * kSkew + word % 32;
  };
  constexpr int kLoads = kTile * kPacks / kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t line = tiles_across.of(tile), plane = tiles_inner.of(line);
    const int64_t i0 = (tile - line * tiles_across.n) * kTile, j0 = (line - plane * tiles_inner.n) * kTile;
    int64_t at_x, at_y;
    locate(outer, plane, at_x, at_y);
    at_x += i0 + j0 * inner.x;
    at_y += i0 * across.y + j0;
    const int rows = static_cast<int>(min(inner.extent - j0, static_cast<int64_t>(kTile)));
    const int columns = static_cast<int>(min(across.extent - i0, static_cast<int64_t>(kTile)));
    uint4 in[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int item = u * kThreads + thread, row = item / kPacks, column = item % kPacks * kPack;
      if (row < rows && column < columns)
        in[u] = *reinterpret_cast<const uint4*>(x + at_x + row * inner.x + column);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int item = u * kThreads + thread, row = item / kPacks, word = item % kPacks * 4;
      uint32_t* to = square + place(row, word);
      to[0] = in[u].x, to[1] = in[u].y, to[2] = in[u].z, to[3] = in[u].w;
    }
    __syncthreads();
    // A thread takes one word of kPack rows: kPerWord columns of x, 16 bytes of each.
    constexpr int kStores = kWords * kPacks / kThreads;
#pragma unroll
    for (int u = 0; u < kStores; ++u) {
      const int item = u * kThreads + thread, row = item % kPacks * kPack, word = item / kPacks;
      uint32_t v[kPack];
#pragma unroll
      for (int k = 0; k < kPack; ++k) v[k] = square[place(row + k, word)];
#pragma unroll
      for (int h = 0; h < kPerWord; ++h) {
        const int column = word * kPerWord + h;
        uint32_t out[4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
          out[k] = kPerWord == 1
                       ? v[k]
                       : __byte_perm(v[2 * k % kPack], v[(2 * k + 1) % kPack], h == 0 ? 0x5410 : 0x7632);
        if (row < rows && column < columns)
          *reinterpret_cast<uint4*>(y + at_y + column * across.y + row) =
              make_uint4(out[0], out[1], out[2], out[3]);
      }
    }
    __syncthreads();
  }
}

template <class T>
void transpose_any(Context& ctx, const TransposeCopyArgs& args) {
  // Axes of extent 1 vanish; axes that continue each other on both sides merge. What is left is ordered by
  // y's strides.
  Axes axes;
  for (int i = 0; i < args.y.rank(); ++i)
    if (args.y.dim(i) > 1) axes.axis[axes.rank++] = {args.y.dim(i), args.x.stride(i), args.y.stride(i)};
  std::stable_sort(axes.axis, axes.axis + axes.rank,
                   [](const Axis& a, const Axis& b) { return magnitude(a.y) > magnitude(b.y); });
  Axes merged;
  for (int i = 0; i < axes.rank; ++i) {
    const Axis& a = axes.axis[i];
    if (merged.rank > 0) {
      Axis& last = merged.axis[merged.rank - 1];
      if (last.x == a.x * a.extent && last.y == a.y * a.extent) {
        last = {last.extent * a.extent, a.x, a.y};
        continue;
      }
    }
    merged.axis[merged.rank++] = a;
  }
  const auto* x = static_cast<const T*>(args.x.raw());
  auto* y = static_cast<T*>(args.y.raw());
  const int64_t elements = args.y.numel();
  const Axis inner = merged.rank > 0 ? merged.axis[merged.rank - 1] : Axis{1, 1, 1};
  if (inner.x == 1 && inner.y == 1) {
    Axes outer = merged;
    if (outer.rank > 0) --outer.rank;
    uint64_t bits = static_cast<uint64_t>(inner.extent) | reinterpret_cast<uintptr_t>(x) / sizeof(T) |
                    reinterpret_cast<uintptr_t>(y) / sizeof(T);
    for (int i = 0; i < outer.rank; ++i) bits |= magnitude(outer.axis[i].x) | magnitude(outer.axis[i].y);
    by_unit(bits * sizeof(T), [&](auto type) {
      using Unit = typename decltype(type)::type;
      if constexpr (sizeof(Unit) >= sizeof(T)) {
        constexpr int64_t kRatio = sizeof(Unit) / sizeof(T);
        for (int i = 0; i < outer.rank; ++i) outer.axis[i].x /= kRatio, outer.axis[i].y /= kRatio;
        const int64_t units = inner.extent / kRatio;
        copy_runs_kernel<Unit><<<grid_for(ctx, elements / kRatio, kThreads), kThreads, 0, stream_of(ctx)>>>(
            reinterpret_cast<const Unit*>(x), reinterpret_cast<Unit*>(y), finished(outer),
            elements / inner.extent, Divisor(units));
        CUDA_CHECK_LAUNCH();
      }
    });
    return;
  }
  int fastest = 0;
  for (int i = 1; i < merged.rank; ++i)
    if (magnitude(merged.axis[i].x) <= magnitude(merged.axis[fastest].x)) fastest = i;
  const Axis across = merged.axis[fastest];
  // Narrow planes would leave most of a square empty; the caches serve their strided reads. The same holds
  // where the two sides agree on the fastest axis.
  constexpr int64_t kNarrow = 8;
  if (fastest == merged.rank - 1 || across.extent < kNarrow || inner.extent < kNarrow) {
    copy_runs_kernel<T><<<grid_for(ctx, elements, kThreads), kThreads, 0, stream_of(ctx)>>>(
        x, y, finished(merged), elements, Divisor(1));
    CUDA_CHECK_LAUNCH();
    return;
  }
  Axes outer = merged;
  std::copy(outer.axis + fastest + 1, outer.axis + outer.rank, outer.axis + fastest);
  outer.rank -= 2;
  const auto by_tiles = [&](int tile, const auto& launch) {
    const int64_t tiles_across = (across.extent + tile - 1) / tile,
                  tiles_inner = (inner.extent + tile - 1) / tile;
    const int64_t tiles = elements / (across.extent * inner.extent) * tiles_across * tiles_inner;
    launch(grid_for(ctx, tiles, 1), Divisor(tiles_across), Divisor(tiles_inner), tiles);
    CUDA_CHECK_LAUNCH();
  };
  if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
    uint64_t bits = magnitude(inner.x) | magnitude(across.y) | static_cast<uint64_t>(inner.extent) |
                    static_cast<uint64_t>(across.extent);
    for (int i = 0; i < outer.rank; ++i) bits |= magnitude(outer.axis[i].x) | magnitude(outer.axis[i].y);
    bits = bits * sizeof(T) | reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y);
    if (across.x == 1 && inner.y == 1 && bits % 16 == 0)
      return by_tiles(kPackTile, [&](unsigned grid, Divisor ta, Divisor ti, int64_t tiles) {
        transpose_packs_kernel<T>
            <<<grid, kThreads, 0, stream_of(ctx)>>>(x, y, finished(outer), across, inner, ta, ti, tiles);
      });
  }
  constexpr int kTile = sizeof(T) >= 4 ? 32 : 64;
  by_tiles(kTile, [&](unsigned grid, Divisor ta, Divisor ti, int64_t tiles) {
    transpose_kernel<T, kTile>
        <<<grid, kThreads, 0, stream_of(ctx)>>>(x, y, finished(outer), across, inner, ta, ti, tiles);
  });
}

}  // namespace

void CudaBackend::gather_rows(Context& ctx, const GatherRowsArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  const auto size = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t batch = y.dim(0), rows = y.dim(1), bytes = y.dim(2) * size;
  if (batch * rows * bytes == 0) return;
  const auto stride = [&](const Tensor& t, int axis) { return t.dim(axis) > 1 ? t.stride(axis) * size : 0; };
  const int64_t xb = stride(x, 0), xn = stride(x, 1), yb = stride(y, 0), yn = stride(y, 1);
  const uint64_t bits = reinterpret_cast<uintptr_t>(x.raw()) | reinterpret_cast<uintptr_t>(y.raw()) |
                        static_cast<uint64_t>(bytes) | magnitude(xb) | magnitude(xn) | magnitude(yb) |
                        magnitude(yn);
  by_unit(bits, [&](auto type) {
    using Unit = typename decltype(type)::type;
    constexpr auto kUnit = static_cast<int64_t>(sizeof(Unit));
    gather_kernel<Unit>
        <<<grid_for(ctx, batch * rows * (bytes / kUnit), kThreads), kThreads, 0, stream_of(ctx)>>>(
            static_cast<const Unit*>(x.raw()), args.index.data<int32_t>(), static_cast<Unit*>(y.raw()), batch,
            Divisor(rows), Divisor(bytes / kUnit), x.dim(1), xb / kUnit, xn / kUnit, yb / kUnit, yn / kUnit);
    CUDA_CHECK_LAUNCH();
  });
}

void CudaBackend::transpose_copy(Context& ctx, const TransposeCopyArgs& args) {
  switch (size_of(args.x.dtype())) {
    case 8:
      return transpose_any<uint2>(ctx, args);
    case 4:
      return transpose_any<uint32_t>(ctx, args);
    case 2:
      return transpose_any<uint16_t>(ctx, args);
    default:
      return transpose_any<uint8_t>(ctx, args);
  }
}

}  // namespace attnbench
