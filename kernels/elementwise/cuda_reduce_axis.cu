// reduce_axis on CUDA: chunks of lines, then the chunks of every line in order. Lines along the last axis
// have a warp each, others a thread, so that neighbours read neighbours.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/elementwise/reduce.hpp"

namespace attnbench {
namespace {

using Op = ReduceAxisArgs::Op;
constexpr int kThreads = 256;

struct AxisWork {
  const void* x;
  void* y;
  double* parts;  // [chunks, lines, 2]; of extremes only the first of each pair
  int64_t lines, inner, n, chunk, chunks;
  Op op;
  DType y_type;
};

__device__ bool extreme(Op op) { return op == Op::max || op == Op::min; }

/// kLanes threads for one chunk of one line.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) axis_parts_kernel(AxisWork w, Divisor lines, Divisor inner) {
  const T* x = static_cast<const T*>(w.x);
  const int64_t items = w.lines * w.chunks, step = static_cast<int64_t>(gridDim.x) * (kThreads / kLanes);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const double sign = w.op == Op::min ? -1.0 : 1.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes; i < items;
       i += step) {
    const int64_t chunk = lines.of(i), line = i - chunk * lines.n, outer = inner.of(line);
    const T* from = x + outer * w.n * w.inner + (line - outer * w.inner);
    const int64_t first = chunk * w.chunk, end = min(w.n, first + w.chunk);
    double sum = extreme(w.op) ? -INFINITY : 0.0, squares = 0.0;
    for (int64_t k = first + lane; k < end; k += kLanes) {
      const auto v = static_cast<double>(widen(from[k * w.inner]));
      if (extreme(w.op))
        sum = max_or_nan(sum, sign * v);
      else
        sum += v, squares += v * v;
    }
    if constexpr (kLanes > 1) {  // a warp's items are one and the same
      sum = extreme(w.op) ? warp_reduce<kLanes>(sum, Max{}) : warp_reduce<kLanes>(sum, Add{});
      squares = warp_reduce<kLanes>(squares, Add{});
    }
    if (lane == 0) w.parts[2 * i] = sum, w.parts[2 * i + 1] = squares;
  }
}

__global__ void __launch_bounds__(kThreads) axis_finish_kernel(AxisWork w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const auto n = static_cast<double>(w.n);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < w.lines; i += step) {
    double sum = extreme(w.op) ? -INFINITY : 0.0, squares = 0.0;
    for (int64_t k = 0; k < w.chunks; ++k) {
      const double* part = w.parts + 2 * (k * w.lines + i);
      if (extreme(w.op))
        sum = max_or_nan(sum, part[0]);
      else
        sum += part[0], squares += part[1];
    }
    double value = sum;
    if (w.op == Op::min) value = -sum;
    if (w.op == Op::mean) value = sum / n;
    if (w.op == Op::squares) value = squares;
    if (w.op == Op::norm) value = sqrt(squares);
    if (w.op == Op::variance || w.op == Op::deviation) {
      const double mean = sum / n;
      value = squares / n - mean * mean;
      if (value < 0.0) value = 0.0;  // NaN passes
      if (w.op == Op::deviation) value = sqrt(value);
    }
    const auto f = static_cast<float>(value);
    if (w.y_type == DType::f32)
      static_cast<float*>(w.y)[i] = f;
    else if (w.y_type == DType::bf16)
      static_cast<__nv_bfloat16*>(w.y)[i] = narrow<__nv_bfloat16>(f);
    else
      static_cast<__half*>(w.y)[i] = narrow<__half>(f);
  }
}

}  // namespace

void CudaBackend::reduce_axis(Context& ctx, const ReduceAxisArgs& args) {
  const int axis = args.axis < 0 ? args.axis + args.x.rank() : args.axis;
  AxisWork w{};
  w.x = args.x.raw(), w.y = args.y.raw(), w.op = args.op, w.y_type = args.y.dtype();
  w.lines = args.y.numel(), w.inner = 1, w.n = args.x.dim(axis);
  for (int i = axis + 1; i < args.x.rank(); ++i) w.inner *= args.x.dim(i);
  // A thread's chunk is 256 elements of a column, a warp's 8192 of a row: both hide their start.
  w.chunk = w.inner == 1 ? 8192 : 256;
  w.chunks = w.n == 0 ? 1 : (w.n + w.chunk - 1) / w.chunk;
  const Tensor parts = ctx.allocate(DType::f64, {w.chunks, w.lines, 2});
  w.parts = parts.data<double>();
  const Divisor lines(w.lines), inner(w.inner);
  by_float_type(args.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t items = w.lines * w.chunks;
    if (w.inner == 1)
      axis_parts_kernel<T, 32>
          <<<grid_for(ctx, items, kThreads / 32), kThreads, 0, stream_of(ctx)>>>(w, lines, inner);
    else
      axis_parts_kernel<T, 1>
          <<<grid_for(ctx, items, kThreads), kThreads, 0, stream_of(ctx)>>>(w, lines, inner);
    CUDA_CHECK_LAUNCH();
  });
  axis_finish_kernel<<<grid_for(ctx, w.lines, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
