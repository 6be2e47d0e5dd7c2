// Line and cell sums, distances, counts and corrections on CUDA: one thread an output where neighbours read
// neighbours, a block a row where a row is reduced. Sums in the CPU's order, except js_distance.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/select/cells_cuda.cuh"
#include "kernels/select/pattern_steps.hpp"
#include "kernels/select/probe_cuda.cuh"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

/// A thread for column j of a map: both of its lines, read as rows by neighbouring threads.
__global__ void __launch_bounds__(kThreads)
    line_sums_kernel(const float* x, DeviceRows maps, int64_t rows, Divisor n, int64_t stride,
                     float* vertical, float* slash, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t map = n.of(i), j = i - map * n.n;
    const float* from = x + maps.offset(map);
    double down = 0, along = 0;
#pragma unroll 4
    for (int64_t r = 0; r < rows; ++r) {
      down += static_cast<double>(from[r * stride + j]);
      const int64_t c = j - (rows - 1) + r;
      if (c >= 0) along += static_cast<double>(from[r * stride + c]);
    }
    vertical[i] = static_cast<float>(down / static_cast<double>(rows));
    slash[i] = static_cast<float>(along / static_cast<double>(rows));
  }
}

__global__ void __launch_bounds__(kThreads)
    cell_sums_kernel(const float* x, DeviceRows maps, int64_t rows, int64_t columns, int64_t stride, float* y,
                     DeviceRows ys, Divisor down, Divisor across, int64_t cell_rows, int64_t cell_columns,
                     bool causal, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = across.of(i), c = i - row * across.n, map = down.of(row), r = row - map * down.n;
    double sum = 0;
    if (!causal || c <= r) {
      const float* from = x + maps.offset(map);
      const int64_t r1 = min(rows, (r + 1) * cell_rows), c1 = min(columns, (c + 1) * cell_columns);
      for (int64_t a = r * cell_rows; a < r1; ++a)
        for (int64_t b = c * cell_columns; b < c1; ++b) sum += static_cast<double>(from[a * stride + b]);
    }
    y[ys.offset(row) + c] = static_cast<float>(sum);
  }
}

__global__ void __launch_bounds__(kThreads)
    js_distance_kernel(const float* a, DeviceRows as, const float* b, DeviceRows bs, int64_t n,
                       float* distance, int32_t* below, double threshold, int64_t rows) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float *from_a = a + as.offset(row), *from_b = b + bs.offset(row);
    double sum = 0;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      const double p = static_cast<double>(from_a[j]), q = static_cast<double>(from_b[j]), m = 0.5 * (p + q);
      if (p > 0) sum += p * log(p / m);
      if (q > 0) sum += q * log(q / m);
    }
    sum = block_reduce<kThreads>(sum, Add{});
    if (threadIdx.x == 0) {
      const auto d = static_cast<float>(sqrt(fmax(0.5 * sum, 0.0)));
      distance[row] = d;
      if (below) below[row] = static_cast<double>(d) < threshold;
    }
  }
}

struct CountRule {
  int64_t before, divisor, after, low, high;
  int32_t when_set;
};
__global__ void __launch_bounds__(kThreads)
    count_rule_kernel(const int32_t* x, const int32_t* flag, int32_t* y, CountRule rule, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t v = ((x ? x[i] : 0) + rule.before) / rule.divisor + rule.after;
    y[i] = flag && flag[i] != 0 ? rule.when_set : static_cast<int32_t>(min(max(v, rule.low), rule.high));
  }
}

struct Flags {
  const void* data = nullptr;
  bool bytes = false, want = true;
  Flags(const Tensor& t, bool set)
      : data(t ? t.raw() : nullptr), bytes(t && t.dtype() == DType::u8), want(set) {}
  __device__ bool holds(int64_t i) const {
    if (!data) return true;
    return (bytes ? static_cast<const uint8_t*>(data)[i] != 0 : static_cast<const int32_t*>(data)[i] != 0) ==
           want;
  }
};
__global__ void __launch_bounds__(kThreads)
    mask_values_kernel(const float* x, Flags first, Flags second, float* y, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    y[i] = first.holds(i) && second.holds(i) ? x[i] : 0.0f;
}

struct Strides {
  int64_t b, h, t;
  explicit Strides(const Tensor& x) : b(x.stride(0)), h(x.stride(1)), t(x.rank() > 3 ? x.stride(2) : 0) {}
};
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    block_affine_kernel(const T* x, Strides xs, const float* factor, Strides fs, const float* add, Strides as,
                        T* y, Strides ys, Divisor packs, Divisor n, Divisor heads, Divisor block,
                        int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = packs.of(i), c = (i - row * packs.n) * N;
    const int64_t bh = n.of(row), t = row - bh * n.n, b = heads.of(bh), h = bh - b * heads.n, s = block.of(t);
    const float scale = factor[b * fs.b + h * fs.h + s];
    const float* plus = add + b * as.b + h * as.h + s * as.t + c;
    float v[N];
    load_wide(x + b * xs.b + h * xs.h + t * xs.t + c, v);
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = scale * v[e] + plus[e];
    store_narrow(y + b * ys.b + h * ys.h + t * ys.t + c, v);
  }
}

}  // namespace

void CudaBackend::line_sums(Context& ctx, const LineSumsArgs& args) {
  if (!args.x) {
    if (!select::probe_lines(ctx, args)) line_sums_in_steps(ctx, args);
    return;
  }
  const int64_t count = args.vertical.numel();
  line_sums_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.x.data<float>(), DeviceRows(args.x, 2), args.x.dim(-2), Divisor(args.x.dim(-1)), args.x.stride(-2),
      args.vertical.data<float>(), args.slash.data<float>(), count);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::cell_sums(Context& ctx, const CellSumsArgs& args) {
  if (args.softmax) {
    if (!select::softmax_cells(ctx, args)) cell_sums_in_steps(ctx, args);
    return;
  }
  const int64_t count = args.y.numel();
  cell_sums_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.x.data<float>(), DeviceRows(args.x, 2), args.x.dim(-2), args.x.dim(-1), args.x.stride(-2),
      args.y.data<float>(), DeviceRows(args.y, 1), Divisor(args.y.dim(-2)), Divisor(args.y.dim(-1)),
      args.rows, args.columns, args.causal_cells, count);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::js_distance(Context& ctx, const DistanceArgs& args) {
  const int64_t rows = args.distance.numel();
  js_distance_kernel<<<grid_for(ctx, rows * kThreads, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.a.data<float>(), DeviceRows(args.a, 1), args.b.data<float>(), DeviceRows(args.b, 1),
      args.a.dim(-1), args.distance.data<float>(), args.below ? args.below.data<int32_t>() : nullptr,
      args.threshold, rows);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::count_rule(Context& ctx, const CountRuleArgs& args) {
  const int64_t count = args.y.numel();
  count_rule_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.x ? args.x.data<int32_t>() : nullptr, args.flag ? args.flag.data<int32_t>() : nullptr,
      args.y.data<int32_t>(), {args.before, args.divisor, args.after, args.low, args.high, args.when_set},
      count);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::mask_values(Context& ctx, const MaskValuesArgs& args) {
  const int64_t count = args.y.numel();
  mask_values_kernel<<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
      args.x.data<float>(), Flags(args.first, args.first_set), Flags(args.second, args.second_set),
      args.y.data<float>(), count);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::block_affine(Context& ctx, const BlockAffineArgs& args) {
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      const int64_t count = args.y.numel() / N;
      block_affine_kernel<T, N><<<grid_for(ctx, count, kThreads), kThreads, 0, stream_of(ctx)>>>(
          static_cast<const T*>(args.x.raw()), Strides(args.x), args.factor.data<float>(),
          Strides(args.factor), args.add.data<float>(), Strides(args.add), static_cast<T*>(args.y.raw()),
          Strides(args.y), Divisor(args.x.dim(3) / N), Divisor(args.x.dim(2)), Divisor(args.x.dim(1)),
          Divisor(args.block), count);
      CUDA_CHECK_LAUNCH();
    };
    if (packable(args.x, 16) && packable(args.y, 16))
      run(std::integral_constant<int, kVector<T>>{});
    else
      run(std::integral_constant<int, 1>{});
  });
}

}  // namespace attnbench
