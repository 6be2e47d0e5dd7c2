#include <algorithm>
#include <cstring>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/stream_copy.hpp"
#include "kernels/layout/layout.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/layout/layout_body.hpp"

namespace attnbench {

void CpuBackend::gather_rows(Context& ctx, const GatherRowsArgs& args) {
  const int64_t batch = args.y.dim(0), rows = args.y.dim(1), n = args.x.dim(1);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int32_t* index = args.index.data<int32_t>();
  for (int64_t i = 0; i < rows; ++i)
    if (index[i] < -1 || index[i] >= n)
      throw UsageError("gather_rows: index[" + std::to_string(i) + "] is " + std::to_string(index[i]) +
                       ", outside [-1, " + std::to_string(n) + ")");
  const int64_t bytes = args.y.dim(2) * size;
  if (bytes == 0) return;
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
  const int64_t xb = args.x.stride(0) * size, xn = args.x.stride(1) * size;
  const int64_t yb = args.y.stride(0) * size, yn = args.y.stride(1) * size;
  parallel_range(ctx.threads(), batch * rows, std::max<int64_t>(kParallelBytes / (2 * bytes), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t b = r / rows, i = r % rows;
                     char* to = y + b * yb + i * yn;
                     if (index[i] < 0)
                       std::memset(to, 0, static_cast<size_t>(bytes));
                     else
                       std::memcpy(to, x + b * xb + index[i] * xn, static_cast<size_t>(bytes));
                   }
                 });
}

namespace {

struct Axis {
  int64_t extent, x, y;  // strides in elements
};

/// Tiles of 32 x 32 elements: both sides touch at most 32 cache lines at a time, which stay in the
/// first-level cache until all their elements are used.
constexpr int64_t kTile = 32;

/// One 2-D slice: `inner` is y's contiguous (or fastest) axis, `across` is x's.
template <class T>
void copy_plane(const T* x, T* y, const Axis& across, const Axis& inner) {
  if constexpr (sizeof(T) == 4 || sizeof(T) == 2)
    if (across.x == 1 && inner.y == 1)
      return ATTNBENCH_BEST(transpose_plane)(sizeof(T), x, inner.x, y, across.y, across.extent, inner.extent);
  for (int64_t i0 = 0; i0 < across.extent; i0 += kTile)
    for (int64_t j0 = 0; j0 < inner.extent; j0 += kTile) {
      const int64_t i1 = std::min(across.extent, i0 + kTile), j1 = std::min(inner.extent, j0 + kTile);
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) y[i * across.y + j * inner.y] = x[i * across.x + j * inner.x];
    }
}

template <class T>
void transpose_any(Context& ctx, const TransposeCopyArgs& args) {
  // Axes of extent 1 vanish; axes that continue each other on both sides merge. What is left, ordered by y's
  // strides, is a loop nest over planes of the fastest axis of y and the fastest axis of x.
  Axis axes[Shape::kMaxRank];
  int rank = 0;
  for (int i = 0; i < args.y.rank(); ++i)
    if (args.y.dim(i) > 1) axes[rank++] = {args.y.dim(i), args.x.stride(i), args.y.stride(i)};
  const auto magnitude = [](int64_t s) { return s < 0 ? -s : s; };
  std::stable_sort(axes, axes + rank,
                   [&](const Axis& a, const Axis& b) { return magnitude(a.y) > magnitude(b.y); });
  int merged = 0;
  for (int i = 0; i < rank; ++i) {
    if (merged > 0) {
      Axis& last = axes[merged - 1];
      if (last.x == axes[i].x * axes[i].extent && last.y == axes[i].y * axes[i].extent) {
        last = {last.extent * axes[i].extent, axes[i].x, axes[i].y};
        continue;
      }
    }
    axes[merged++] = axes[i];
  }
  rank = merged;
  const T* x = static_cast<const T*>(args.x.raw());
  T* y = static_cast<T*>(args.y.raw());
  const Axis inner = rank > 0 ? axes[--rank] : Axis{1, 1, 1};
  const bool rows = inner.x == 1 && inner.y == 1;
  Axis across{1, 0, 0};
  if (!rows && rank > 0) {
    int fastest = 0;
    for (int i = 1; i < rank; ++i)
      if (magnitude(axes[i].x) <= magnitude(axes[fastest].x)) fastest = i;
    across = axes[fastest];
    std::copy(axes + fastest + 1, axes + rank, axes + fastest);
    --rank;
  }
  int64_t outer = 1;
  for (int i = 0; i < rank; ++i) outer *= axes[i].extent;
  // Planes may be few and large: their rows are split as well.
  const int64_t strips = rows ? 1 : (across.extent + kTile - 1) / kTile;
  const int64_t strip_bytes =
      2 * static_cast<int64_t>(sizeof(T)) * inner.extent * (rows ? 1 : std::min(across.extent, kTile));
  // A single contiguous run is cut like any other range.
  if (rows && outer == 1) {
    parallel_range(ctx.threads(), inner.extent, kParallelBytes / static_cast<int64_t>(sizeof(T)),
                   [&](int64_t begin, int64_t end) {
                     const int64_t bytes = (end - begin) * static_cast<int64_t>(sizeof(T));
                     if (inner.extent * static_cast<int64_t>(sizeof(T)) >= kStreamFrom)
                       stream_copy(reinterpret_cast<char*>(y + begin),
                                   reinterpret_cast<const char*>(x + begin), bytes);
                     else
                       std::memcpy(y + begin, x + begin, static_cast<size_t>(bytes));
                   });
    return;
  }
  parallel_range(ctx.threads(), outer * strips, std::max<int64_t>(kParallelBytes / strip_bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t s = begin; s < end; ++s) {
                     int64_t rest = s / strips, at_x = 0, at_y = 0;
                     for (int i = rank - 1; i >= 0; --i) {
                       at_x += rest % axes[i].extent * axes[i].x;
                       at_y += rest % axes[i].extent * axes[i].y;
                       rest /= axes[i].extent;
                     }
                     if (rows) {
                       std::memcpy(y + at_y, x + at_x, static_cast<size_t>(inner.extent) * sizeof(T));
                       continue;
                     }
                     const int64_t first = s % strips * kTile;
                     Axis strip = across;
                     strip.extent = std::min(kTile, across.extent - first);
                     copy_plane(x + at_x + first * across.x, y + at_y + first * across.y, strip, inner);
                   }
                 });
}

}  // namespace

void CpuBackend::transpose_copy(Context& ctx, const TransposeCopyArgs& args) {
  switch (size_of(args.x.dtype())) {
    case 8:
      return transpose_any<uint64_t>(ctx, args);
    case 4:
      return transpose_any<uint32_t>(ctx, args);
    case 2:
      return transpose_any<uint16_t>(ctx, args);
    default:
      return transpose_any<uint8_t>(ctx, args);
  }
}

}  // namespace attnbench
