// Sorting on CUDA: whole rows in one block where they fit, by CUB's radix sorts beyond; argsort and
// the token scatter, which need sorted rows. All of it is stable and can be captured: CUB's segmented sort
// for mixed lengths is not used, as it waits for the host.
#include <cub/block/block_radix_sort.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "kernels/select/rank.cuh"

namespace attnbench {
namespace select {
namespace {

/// Rows that one block sorts in registers and shared memory: 16 keys a thread are what its passes keep in
/// flight without spilling (256 threads x 16 x 8 bytes = 32 KiB).
constexpr int kSmallItems = 16;
constexpr int64_t kSmallRow = kThreads * kSmallItems;
/// From here on a row is enough work for the whole device, so that rows are sorted one after another.
constexpr int64_t kLargeRow = int64_t{1} << 19;
/// Rows up to this length keep the device busy with a block each, if there are so many of them.
constexpr int64_t kSegment = int64_t{1} << 16, kManySegments = 512;
/// Keys sorted together; bounds the workspace to 1 GiB (two keys and two columns of 4 bytes; half as many
/// keys of 8 bytes).
constexpr int64_t kBatchKeys = int64_t{1} << 26;

template <int kPer>
__global__ void __launch_bounds__(kThreads)
    sort_small_kernel(const uint32_t* keys, int64_t rows, int m, uint32_t* sorted, int32_t* columns) {
  using Sort = cub::BlockRadixSort<uint32_t, kThreads, kPer, int32_t>;
  __shared__ typename Sort::TempStorage storage;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    uint32_t key[kPer];
    int32_t column[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = static_cast<int>(threadIdx.x) * kPer + i;
      // What stands beyond the row comes last: no key is larger, and equal keys keep their order.
      key[i] = j < m ? keys[row * m + j] : 0xffffffffu;
      column[i] = j;
    }
    Sort(storage).SortBlockedToStriped(key, column);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int j = static_cast<int>(threadIdx.x) + i * kThreads;
      if (j >= m) continue;
      if (sorted) sorted[row * m + j] = key[i];
      columns[row * m + j] = column[i];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) iota_kernel(int32_t* columns, Divisor m, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    columns[i] = static_cast<int32_t>(i - m.of(i) * m.n);
}
/// The row above the key, and the column of each.
__global__ void __launch_bounds__(kThreads)
    row_keys_kernel(const uint32_t* keys, uint64_t* wide, int32_t* columns, Divisor m, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = m.of(i);
    wide[i] = static_cast<uint64_t>(row) << 32 | keys[i];
    columns[i] = static_cast<int32_t>(i - row * m.n);
  }
}
__global__ void __launch_bounds__(kThreads)
    low_words_kernel(const uint64_t* wide, uint32_t* sorted, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    sorted[i] = static_cast<uint32_t>(wide[i]);
}
__global__ void __launch_bounds__(kThreads) offsets_kernel(int32_t* offsets, int64_t m, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) offsets[i] = static_cast<int32_t>(i * m);
}

/// Rows that are too short to fill the device one by one and too few to fill it a block each: one sort of all
/// of them, by row and key.
void sort_together(Context& ctx, const uint32_t* keys, int64_t rows, int64_t m, uint32_t* sorted,
                   int32_t* columns) {
  const cudaStream_t stream = stream_of(ctx);
  const int64_t most = std::min(rows, std::max<int64_t>(1, kBatchKeys / 2 / m));
  const Tensor from = ctx.allocate(DType::i32, {2 * most * m}), to = ctx.allocate(DType::i32, {2 * most * m});
  const Tensor places = ctx.allocate(DType::i32, {most * m});
  auto *in = static_cast<uint64_t*>(from.raw()), *out = static_cast<uint64_t*>(to.raw());
  const auto sort = [&](void* storage, size_t& bytes, int64_t first, int64_t count) {
    int bits = 32;
    while ((int64_t{1} << (bits - 32)) < count) ++bits;
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(storage, bytes, in, out, places.data<int32_t>(),
                                               columns + first * m, static_cast<int>(count * m), 0, bits,
                                               stream));
  };
  size_t bytes = 0;
  sort(nullptr, bytes, 0, most);
  const Tensor storage = ctx.allocate(DType::u8, {static_cast<int64_t>(std::max<size_t>(bytes, 1))});
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t part = std::min(most, rows - first), count = part * m;
    row_keys_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream>>>(
        keys + first * m, in, places.data<int32_t>(), Divisor(m), count);
    CUDA_CHECK_LAUNCH();
    size_t given = bytes;
    sort(storage.raw(), given, first, part);
    if (!sorted) continue;
    low_words_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream>>>(out, sorted + first * m, count);
    CUDA_CHECK_LAUNCH();
  }
}

}  // namespace

void sort_rows(Context& ctx, uint32_t* keys, int64_t rows, int64_t m, uint32_t* sorted, int32_t* columns) {
  if (rows == 0 || m == 0) return;
  const cudaStream_t stream = stream_of(ctx);
  if (m <= kSmallRow) {
    const auto grid = grid_for(ctx, rows * kThreads, kThreads, 16);
    const int n = static_cast<int>(m);
    if (m <= kChunk)
      sort_small_kernel<kItems><<<grid, kThreads, 0, stream>>>(keys, rows, n, sorted, columns);
    else
      sort_small_kernel<kSmallItems><<<grid, kThreads, 0, stream>>>(keys, rows, n, sorted, columns);
    CUDA_CHECK_LAUNCH();
    return;
  }
  if (rows > 1 && m < kLargeRow && (m >= kSegment || rows < kManySegments))
    return sort_together(ctx, keys, rows, m, sorted, columns);
  Tensor own_sorted;
  if (!sorted) {
    own_sorted = ctx.allocate(DType::i32, {rows * m});
    sorted = static_cast<uint32_t*>(own_sorted.raw());
  }
  const bool one_by_one = m >= kLargeRow;
  const int64_t batch = one_by_one ? 1 : std::max<int64_t>(1, kBatchKeys / m);
  const int64_t most = std::min(rows, batch);
  const Tensor iota = ctx.allocate(DType::i32, {most * m}), offsets = ctx.allocate(DType::i32, {most + 1});
  int32_t *in = iota.data<int32_t>(), *begins = offsets.data<int32_t>();
  iota_kernel<<<grid_for(ctx, most * m, kThreads), kThreads, 0, stream>>>(in, Divisor(m), most * m);
  CUDA_CHECK_LAUNCH();
  offsets_kernel<<<static_cast<unsigned>((most + kThreads) / kThreads), kThreads, 0, stream>>>(begins, m,
                                                                                               most + 1);
  CUDA_CHECK_LAUNCH();
  const auto sort = [&](void* storage, size_t& bytes, int64_t first, int64_t count) {
    uint32_t *from = keys + first * m, *to = sorted + first * m;
    int32_t* out = columns + first * m;
    if (one_by_one)
      CUDA_CHECK(cub::DeviceRadixSort::SortPairs(storage, bytes, from, to, in, out, static_cast<int>(m), 0,
                                                 32, stream));
    else
      CUDA_CHECK(cub::DeviceSegmentedRadixSort::SortPairs(
          storage, bytes, from, to, in, out, static_cast<int>(count * m), static_cast<int>(count), begins,
          begins + 1, 0, 32, stream));
  };
  size_t bytes = 0;
  sort(nullptr, bytes, 0, most);
  const Tensor storage = ctx.allocate(DType::u8, {static_cast<int64_t>(std::max<size_t>(bytes, 1))});
  for (int64_t first = 0; first < rows; first += batch) {
    size_t given = bytes;
    sort(storage.raw(), given, first, std::min(batch, rows - first));
  }
}

namespace {

// ---- argsort ----------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const T* x, DeviceRows xs, uint32_t* keys, Divisor m, int64_t count, bool descending) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = m.of(i);
    const uint32_t order = order_of(x[xs.offset(row) + i - row * m.n]);
    keys[i] = descending ? ~order : order;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sorted_kernel(const T* x, DeviceRows xs, const int32_t* columns, int32_t* index, DeviceRows indices,
                  T* value, DeviceRows values, Divisor m, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = m.of(i), j = i - row * m.n;
    const int32_t column = columns[i];
    index[indices.offset(row) + j] = column;
    if (value) value[values.offset(row) + j] = x[xs.offset(row) + column];
  }
}

template <class T>
void argsort_as(Context& ctx, const ArgsortArgs& args) {
  const int64_t m = args.x.dim(-1), count = args.x.numel();
  const Tensor keys = ctx.allocate(DType::i32, {count}), columns = ctx.allocate(DType::i32, {count});
  auto* key = static_cast<uint32_t*>(keys.raw());
  const unsigned grid = grid_for(ctx, count, kThreads);
  const DeviceRows xs(args.x, 1);
  keys_kernel<T>
      <<<grid, kThreads, 0, stream_of(ctx)>>>(args.x.data<T>(), xs, key, Divisor(m), count, args.descending);
  CUDA_CHECK_LAUNCH();
  sort_rows(ctx, key, count / m, m, nullptr, columns.data<int32_t>());
  sorted_kernel<T><<<grid, kThreads, 0, stream_of(ctx)>>>(
      args.x.data<T>(), xs, columns.data<int32_t>(), args.index.data<int32_t>(), DeviceRows(args.index, 1),
      args.value ? args.value.data<T>() : nullptr, args.value ? DeviceRows(args.value, 1) : DeviceRows(),
      Divisor(m), count);
  CUDA_CHECK_LAUNCH();
}

// ---- scatter_tokens ---------------------------------------------------------------------------------------

/// Targets as keys; what is no token comes last.
__global__ void __launch_bounds__(kThreads)
    targets_kernel(const int32_t* index, int64_t batch_step, int64_t head_step, Divisor groups, Divisor m,
                   int64_t n, uint32_t* keys, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t list = m.of(i), b = groups.of(list);
    const int32_t target = index[b * batch_step + (list - b * groups.n) * head_step + i - list * m.n];
    keys[i] = target >= 0 && target < n ? static_cast<uint32_t>(target) : 0xffffffffu;
  }
}

/// First position of [0, m) whose key is not below `key`.
__device__ int64_t lower_bound(const uint32_t* keys, int64_t m, uint32_t key) {
  int64_t low = 0, high = m;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct Strides {
  int64_t b, h, t;
};

/// A warp for each target token: its sources are neighbours in the sorted list.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const T* x, Strides xs, const float* weight, Strides ws, T* y, Strides ys, int32_t* hits,
                   const uint32_t* keys, const int32_t* sources, Divisor n, Divisor heads,
                   int64_t list_batches, int64_t list_groups, Divisor head_group, int64_t m, int64_t d,
                   int64_t count, bool add, bool keep) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; item < count;
       item += step) {
    const int64_t bh = n.of(item), t = item - bh * n.n, b = heads.of(bh), h = bh - b * heads.n;
    const int64_t list = (list_batches == 1 ? 0 : b) * list_groups + head_group.of(h);
    const uint32_t* key = keys + list * m;
    const int32_t* source = sources + list * m;
    const int64_t begin = lower_bound(key, m, static_cast<uint32_t>(t));
    const int64_t end = lower_bound(key, m, static_cast<uint32_t>(t) + 1);
    if (hits && lane == 0) hits[item] = static_cast<int32_t>(end - begin);
    if (begin == end && keep) continue;
    T* to = y + b * ys.b + h * ys.h + t * ys.t;
    const T* from = x + b * xs.b + h * xs.h;
    for (int64_t c = lane; c < d; c += 32) {
      if (begin == end) {
        to[c] = narrow<T>(0.0f);
      } else if (!add) {
        to[c] = from[source[end - 1] * xs.t + c];
      } else {
        float sum = keep ? widen(to[c]) : 0.0f;
        for (int64_t e = begin; e < end; ++e) {
          const int64_t i = source[e];
          const float factor = weight ? weight[b * ws.b + h * ws.h + i] : 1.0f;
          sum += factor * widen(from[i * xs.t + c]);
        }
        to[c] = narrow<T>(sum);
      }
    }
  }
}

}  // namespace
}  // namespace select

using namespace select;

void CudaBackend::argsort(Context& ctx, const ArgsortArgs& args) {
  if (args.x.dtype() == DType::f32)
    argsort_as<float>(ctx, args);
  else
    argsort_as<int32_t>(ctx, args);
}

void CudaBackend::scatter_tokens(Context& ctx, const ScatterTokensArgs& args) {
  const int64_t batch = args.y.dim(0), heads = args.y.dim(1), n = args.y.dim(2), d = args.y.dim(3);
  const int64_t m = args.x.dim(2), lists = args.index.dim(0) * args.index.dim(1);
  const cudaStream_t stream = stream_of(ctx);
  const Tensor keys = ctx.allocate(DType::i32, {lists * m}), sorted = ctx.allocate(DType::i32, {lists * m});
  const Tensor sources = ctx.allocate(DType::i32, {lists * m});
  auto *key = static_cast<uint32_t*>(keys.raw()), *order = static_cast<uint32_t*>(sorted.raw());
  if (lists * m > 0) {
    targets_kernel<<<grid_for(ctx, lists * m, kThreads), kThreads, 0, stream>>>(
        args.index.data<int32_t>(), args.index.stride(0), args.index.stride(1), Divisor(args.index.dim(1)),
        Divisor(m), n, key, lists * m);
    CUDA_CHECK_LAUNCH();
    sort_rows(ctx, key, lists, m, order, sources.data<int32_t>());
  }
  const auto strides = [](const Tensor& t) { return Strides{t.stride(0), t.stride(1), t.stride(2)}; };
  Strides ws{0, 0, 0};
  if (args.weight) ws = {args.weight.stride(0), args.weight.stride(1), 0};
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    scatter_kernel<T><<<grid_for(ctx, batch * heads * n * 32, kThreads), kThreads, 0, stream>>>(
        static_cast<const T*>(args.x.raw()), strides(args.x),
        args.weight ? args.weight.data<float>() : nullptr, ws, static_cast<T*>(args.y.raw()), strides(args.y),
        args.hits ? args.hits.data<int32_t>() : nullptr, order, sources.data<int32_t>(), Divisor(n),
        Divisor(heads), args.index.dim(0), args.index.dim(1), Divisor(heads / args.index.dim(1)), m, d,
        batch * heads * n, args.mode == ScatterTokensArgs::Mode::add, args.keep);
    CUDA_CHECK_LAUNCH();
  });
}

}  // namespace attnbench
