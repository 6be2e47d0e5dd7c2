// Cell sums of a row softmax on CUDA: the scores are read once, the probabilities exist in registers only.
#include <algorithm>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/cells_cuda.cuh"

namespace attnbench::select {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
/// Columns that a warp reads at a time; one maximum holds for all of them.
constexpr int kStride = 128;
/// Shared memory that leaves room for two blocks on a multiprocessor.
constexpr int64_t kMostShared = 96 << 10;

struct Cells {
  const float* x;
  DeviceRows maps;
  int64_t rows, columns, stride;  ///< of a map
  float* y;
  DeviceRows ys;
  Divisor down;
  int64_t across, cell_rows;
  int64_t offset;
  bool causal, causal_cells;
  int64_t count;
};

/// As integers in the order of the numbers; every NaN of positive sign is above +inf.
__device__ int order_as_int(float x) {
  const int i = __float_as_int(x);
  return i >= 0 ? i : i ^ 0x7fffffff;
}
__device__ float from_order(int i) { return __int_as_float(i >= 0 ? i : i ^ 0x7fffffff); }

/// A warp's row: sums of exponentials of every cell, relative to the largest score so far, and for each
/// stride the factor that makes probabilities of them.
template <int kWidth>
__device__ void row_cells(const float* from, int64_t visible, float* cells, float* factors) {
  constexpr int kLanes = kWidth / 4;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto load = [&](int64_t base) {
    const int64_t j = base + 4 * lane;
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (j >= visible) return v;
    v = *reinterpret_cast<const float4*>(from + j);
    if (j + 1 >= visible) v.y = -INFINITY;
    if (j + 2 >= visible) v.z = -INFINITY;
    if (j + 3 >= visible) v.w = -INFINITY;
    return v;
  };
  float top = -INFINITY, total = 0.0f;
  float4 next = load(0);
  for (int64_t base = 0; base < visible; base += kStride) {
    const float4 v = next;
    if (base + kStride < visible) next = load(base + kStride);
    const float own = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
    const float high = fmaxf(top, from_order(__reduce_max_sync(0xffffffffu, order_as_int(own))));
    const float level = high == -INFINITY ? 0.0f : high;
    float sum = (expf(v.x - level) + expf(v.y - level)) + (expf(v.z - level) + expf(v.w - level));
    total = (top == level ? total : total * expf(top - level)) + sum;
    top = high;
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane % kLanes == 0) cells[(base + 4 * lane) / kWidth] = sum;
    if (lane == 0) factors[base / kStride] = level;
  }
  total = warp_reduce(total, Add{});
  const float scale = total == 0.0f ? 0.0f : 1.0f / total, level = top == -INFINITY ? 0.0f : top;
  __syncwarp();
  for (int64_t i = lane; i * kStride < visible; i += 32) factors[i] = expf(factors[i] - level) * scale;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) softmax_cells_kernel(Cells w) {
  extern __shared__ float shared[];
  const int64_t strides = (w.columns + kStride - 1) / kStride, wide = strides * (kStride / kWidth);
  float *cells = shared, *factors = shared + w.cell_rows * wide;
  const int warp = static_cast<int>(threadIdx.x / 32);
  for (int64_t item = blockIdx.x; item < w.count; item += gridDim.x) {
    const int64_t map = w.down.of(item), r = item - map * w.down.n, first = r * w.cell_rows;
    const int64_t rows = min(w.cell_rows, w.rows - first);
    const float* from = w.x + w.maps.offset(map) + first * w.stride;
    const auto visible = [&](int64_t row) {
      return w.causal ? max(min(first + row + w.offset + 1, w.columns), int64_t{0}) : w.columns;
    };
    for (int64_t row = warp; row < rows; row += kWarps)
      row_cells<kWidth>(from + row * w.stride, visible(row), cells + row * wide, factors + row * strides);
    __syncthreads();
    float* to = w.y + w.ys.offset(item);
    for (int64_t c = threadIdx.x; c < w.across; c += kThreads) {
      double sum = 0;
      if (!w.causal_cells || c <= r)
        for (int64_t row = 0; row < rows; ++row)
          if (c * kWidth < visible(row))
            sum += static_cast<double>(cells[row * wide + c]) *
                   static_cast<double>(factors[row * strides + c * kWidth / kStride]);
      to[c] = static_cast<float>(sum);
    }
    __syncthreads();
  }
}

}  // namespace

bool softmax_cells(Context& ctx, const CellSumsArgs& args) {
  Cells w{};
  w.rows = args.x.dim(-2), w.columns = args.x.dim(-1);
  if (!packable(args.x, 16) || w.columns == 0) return false;
  w.cell_rows = std::min(args.rows, w.rows);
  const int64_t strides = (w.columns + kStride - 1) / kStride;
  const int64_t bytes = 4 * w.cell_rows * strides * (kStride / args.columns + 1);
  if (bytes > kMostShared) return false;
  w.x = args.x.data<float>(), w.maps = DeviceRows(args.x, 2);
  w.stride = args.x.stride(-2);
  w.y = args.y.data<float>(), w.ys = DeviceRows(args.y, 1);
  w.down = Divisor(args.y.dim(-2)), w.across = args.y.dim(-1);
  w.causal = args.causal, w.causal_cells = args.causal_cells;
  // Clamped before the addition, so that no offset overflows.
  w.offset = std::clamp<int64_t>(args.causal_offset, -w.rows - 1, w.columns);
  w.count = w.ys.count;
  const auto run = [&](auto kernel) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(kMostShared)));
    kernel<<<grid_for(ctx, w.count * kThreads, kThreads), kThreads, static_cast<size_t>(bytes),
             stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
    return true;
  };
  switch (args.columns) {
    case 4:
      return run(softmax_cells_kernel<4>);
    case 8:
      return run(softmax_cells_kernel<8>);
    case 16:
      return run(softmax_cells_kernel<16>);
    case 32:
      return run(softmax_cells_kernel<32>);
    default:
      return false;
  }
}

}  // namespace attnbench::select
