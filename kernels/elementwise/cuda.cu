// pointwise, cast and reduce on CUDA: one read, one write, 16 bytes at a time.
#include <algorithm>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/elementwise/broadcast.hpp"
#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;

// ---- pointwise --------------------------------------------------------------------------------------------

using Op = PointwiseArgs::Op;

struct PointwiseWork {
  const void *a, *b;
  void* y;
  DeviceRows a_rows, b_rows, y_rows;
  int64_t rows, packs;  // packs of N elements per row
  bool one_a, one_b;    // a repeated scalar in place of a row
  Divisor by_packs;
  Op op;
  float alpha, beta;
};

template <int N, class F>
__device__ void each(float (&a)[N], const float (&b)[N], const F& f) {
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] = f(a[i], b[i]);
}

/// The choice is the same for all threads and is made once per pack: cheaper than a kernel for every
/// function.
template <int N>
__device__ void apply(const PointwiseWork& w, float (&a)[N], const float (&b)[N]) {
  const float alpha = w.alpha, beta = w.beta;
  switch (w.op) {
    case Op::add:
      return each(a, b, [](float x, float z) { return x + z; });
    case Op::sub:
      return each(a, b, [](float x, float z) { return x - z; });
    case Op::mul:
      return each(a, b, [](float x, float z) { return x * z; });
    case Op::affine:
      return each(a, b, [=](float x, float) { return alpha * x + beta; });
    case Op::clamp:  // comparisons with NaN are false, so it passes
      return each(a, b, [=](float x, float) {
        const float low = x < alpha ? alpha : x;
        return low > beta ? beta : low;
      });
    case Op::relu:
      return each(a, b, [](float x, float) { return x < 0.0f ? 0.0f : x; });
    case Op::gelu_erf:
      return each(a, b, [](float x, float) { return gelu(x); });
    case Op::gelu_tanh:  // tanh(u) = 2 sigmoid(2 u) - 1; sqrt(8 / pi) = 1.595769
      return each(a, b,
                  [](float x, float) { return x * sigmoid(1.59576912f * x * (0.044715f * x * x + 1.0f)); });
    case Op::silu:
      return each(a, b, [](float x, float) { return x * sigmoid(x); });
    case Op::sigmoid:
      return each(a, b, [](float x, float) { return sigmoid(x); });
    case Op::exp:
      return each(a, b, [](float x, float) { return expf(x); });
    case Op::cos:
      return each(a, b, [](float x, float) { return cosf(x); });
    case Op::sin:
      return each(a, b, [](float x, float) { return sinf(x); });
    case Op::silu_mul:
      return each(a, b, [](float x, float z) { return x * sigmoid(x) * z; });
    case Op::sigmoid_mul:
      return each(a, b, [](float x, float z) { return sigmoid(x) * z; });
    case Op::gelu_mul:
      return each(a, b, [](float x, float z) { return gelu(x) * z; });
    case Op::div:
      return each(a, b, [](float x, float z) { return x / z; });
    case Op::max:
      return each(a, b, [](float x, float z) { return x > z || isnan(x) ? x : z; });
    case Op::min:
      return each(a, b, [](float x, float z) { return x < z || isnan(x) ? x : z; });
    case Op::prelu:
      return each(a, b, [](float x, float z) { return x < 0.0f ? x * z : x; });
    case Op::abs:
      return each(a, b, [](float x, float) { return fabsf(x); });
    case Op::square:
      return each(a, b, [](float x, float) { return x * x; });
    case Op::sqrt:
      return each(a, b, [](float x, float) { return sqrtf(x); });
    case Op::rsqrt:
      return each(a, b, [](float x, float) { return 1.0f / sqrtf(x); });
    case Op::log:
      return each(a, b, [](float x, float) { return logf(x); });
    case Op::tanh:
      return each(a, b, [](float x, float) { return tanhf(x); });
    case Op::softplus:  // e^a may overflow
      return each(a, b, [](float x, float) { return (x < 0.0f ? 0.0f : x) + log1pf(expf(-fabsf(x))); });
    case Op::elu:
      return each(a, b, [=](float x, float) { return x < 0.0f ? alpha * expm1f(x) : x; });
    case Op::leaky_relu:
      return each(a, b, [=](float x, float) { return x < 0.0f ? alpha * x : x; });
    case Op::pow:
      return each(a, b, [=](float x, float) { return powf(x, alpha); });
  }
}

/// A pack of a row, or its one scalar N times.
template <int N, class T>
__device__ void load_repeated(const T* p, int64_t column, bool one, T (&v)[N]) {
  if (!one) return load_pack(p + column, v);
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = *p;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) pointwise_kernel(PointwiseWork w) {
  const T* a = static_cast<const T*>(w.a);
  const T* b = static_cast<const T*>(w.b);
  T* y = static_cast<T*>(w.y);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, items = w.rows * w.packs;
  // Two inputs, so half the packs of each; y may be a, whose pack its own thread has read by then.
  constexpr int kEach = kBatch / 2;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += kEach * step) {
    T in_a[kEach][N], in_b[kEach][N];
    T* to[kEach];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      if (i + u * step >= items) break;
      const int64_t at = i + u * step, row = w.rows == 1 ? 0 : w.by_packs.of(at);
      const int64_t column = (at - row * w.packs) * N;
      load_repeated(a + w.a_rows.offset(row), column, w.one_a, in_a[u]);
      if (b) load_repeated(b + w.b_rows.offset(row), column, w.one_b, in_b[u]);
      to[u] = y + w.y_rows.offset(row) + column;
    }
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      if (i + u * step >= items) break;
      float va[N], vb[N];
#pragma unroll
      for (int j = 0; j < N; ++j) va[j] = widen(in_a[u][j]), vb[j] = b ? widen(in_b[u][j]) : 0.0f;
      apply(w, va, vb);
      store_narrow(to[u], va);
    }
  }
}

// ---- cast -------------------------------------------------------------------------------------------------

template <class T>
__device__ float to_float(T x) {
  if constexpr (std::is_same_v<T, double>)
    return __double2float_rn(x);
  else
    return widen(x);
}

template <class S, class D, int N>
__global__ void __launch_bounds__(kThreads) cast_kernel(const S* x, D* y, int64_t packs) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += kBatch * step) {
    S in[kBatch][N];
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (i + u * step < packs) load_pack(x + (i + u * step) * N, in[u]);
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * step >= packs) break;
      D out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if constexpr (std::is_same_v<D, double>)
          out[j] = static_cast<double>(widen(in[u][j]));
        else
          out[j] = narrow<D>(to_float(in[u][j]));
      }
      store_pack(y + (i + u * step) * N, out);
    }
  }
}

template <class S, class D>
void run_cast(Context& ctx, const CastArgs& args) {
  if constexpr (!std::is_same_v<S, D>) {
    constexpr int kPack = 16 / static_cast<int>(std::max(sizeof(S), sizeof(D)));
    const int64_t n = args.x.numel();
    const auto* x = static_cast<const S*>(args.x.raw());
    auto* y = static_cast<D*>(args.y.raw());
    const bool aligned = reinterpret_cast<uintptr_t>(x) % (kPack * sizeof(S)) == 0 &&
                         reinterpret_cast<uintptr_t>(y) % (kPack * sizeof(D)) == 0;
    const int64_t packs = aligned ? n / kPack : 0, rest = n - packs * kPack;
    if (packs > 0)
      cast_kernel<S, D, kPack><<<grid_for(ctx, packs, kThreads), kThreads, 0, stream_of(ctx)>>>(x, y, packs);
    if (rest > 0)
      cast_kernel<S, D, 1><<<grid_for(ctx, rest, kThreads), kThreads, 0, stream_of(ctx)>>>(
          x + packs * kPack, y + packs * kPack, rest);
    CUDA_CHECK_LAUNCH();
  }
}

template <class S>
void cast_from(Context& ctx, const CastArgs& args) {
  if (args.y.dtype() == DType::f64) return run_cast<S, double>(ctx, args);
  by_float_type(args.y.dtype(), [&](auto type) { run_cast<S, typename decltype(type)::type>(ctx, args); });
}

// ---- reduce -----------------------------------------------------------------------------------------------

/// Elements of a row that one block reduces, whatever the card, so that the order of additions is fixed: at
/// least 64 KiB of f32, which hides a block's start, and at most 64 Ki partial results per row.
int64_t chunk_of(int64_t n) {
  constexpr int64_t kLeast = int64_t{1} << 14, kMostParts = int64_t{1} << 16;
  const int64_t wanted = (n + kMostParts - 1) / kMostParts;
  return std::max(kLeast, (wanted + 7) / 8 * 8);
}

template <class T>
__device__ double to_double(T x) {
  if constexpr (std::is_same_v<T, double>)
    return x;
  else
    return static_cast<double>(widen(x));
}

__device__ double start_of(bool max) { return max ? -INFINITY : 0.0; }
__device__ void join(bool max, double& into, double x) { into = max ? max_or_nan(into, x) : into + x; }

/// This thread's share of elements [0, n), which kGroup threads have divided; it is number `lane` of them.
template <class T, int N, int kGroup>
__device__ double reduce_run(const T* x, const T* weight, int64_t n, bool max, int lane) {
  double part[N];
#pragma unroll
  for (int j = 0; j < N; ++j) part[j] = start_of(max);
  const int64_t packs = n / N;
  for (int64_t i = lane; i < packs; i += kBatch * kGroup) {
    T v[kBatch][N], w[kBatch][N];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * kGroup >= packs) break;
      load_pack(x + (i + u * kGroup) * N, v[u]);
      if (weight) load_pack(weight + (i + u * kGroup) * N, w[u]);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u * kGroup >= packs) break;
#pragma unroll
      for (int j = 0; j < N; ++j)
        join(max, part[j], weight ? to_double(v[u][j]) * to_double(w[u][j]) : to_double(v[u][j]));
    }
  }
  if constexpr (N > 1) {
    const int64_t i = n / N * N + lane;
    if (i < n) join(max, part[0], weight ? to_double(x[i]) * to_double(weight[i]) : to_double(x[i]));
  }
#pragma unroll
  for (int j = 1; j < N; ++j) join(max, part[0], part[j]);
  return part[0];
}

__device__ void put(void* y, DType t, int64_t i, double value) {
  switch (t) {
    case DType::f64:
      static_cast<double*>(y)[i] = value;
      break;
    case DType::f32:
      static_cast<float*>(y)[i] = static_cast<float>(value);
      break;
    case DType::bf16:
      static_cast<__nv_bfloat16*>(y)[i] = __float2bfloat16_rn(static_cast<float>(value));
      break;
    default:
      static_cast<__half*>(y)[i] = __float2half_rn(static_cast<float>(value));
  }
}

struct ReduceWork {
  const void *x, *weight;
  void* y;
  double* parts;  // [rows, per_row], or null when one group finishes a row
  int64_t rows, n, chunk, per_row;
  DType y_type;
  bool max;
  double divisor;
};

/// Rows of few elements, a warp each; y directly.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) reduce_rows_kernel(ReduceWork w) {
  const T* x = static_cast<const T*>(w.x);
  const T* weight = static_cast<const T*>(w.weight);
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; r < w.rows;
       r += step) {
    double value = reduce_run<T, N, 32>(x + r * w.n, weight ? weight + r * w.n : nullptr, w.n, w.max,
                                        static_cast<int>(threadIdx.x % 32));
    value = w.max ? warp_reduce(value, Max{}) : warp_reduce(value, Add{});
    if (threadIdx.x % 32 == 0) put(w.y, w.y_type, r, value / w.divisor);
  }
}

/// Chunks of long rows, a block each; partial results, or y when a row is one chunk.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) reduce_chunks_kernel(ReduceWork w) {
  const T* x = static_cast<const T*>(w.x);
  const T* weight = static_cast<const T*>(w.weight);
  for (int64_t item = blockIdx.x; item < w.rows * w.per_row; item += gridDim.x) {
    const int64_t row = divide(item, w.per_row), first = (item - row * w.per_row) * w.chunk;
    const int64_t at = row * w.n + first, count = min(w.chunk, w.n - first);
    double value = reduce_run<T, N, kThreads>(x + at, weight ? weight + at : nullptr, count, w.max,
                                              static_cast<int>(threadIdx.x));
    value = w.max ? block_reduce<kThreads>(value, Max{}) : block_reduce<kThreads>(value, Add{});
    if (threadIdx.x == 0) {
      if (w.parts)
        w.parts[item] = value;
      else
        put(w.y, w.y_type, row, value / w.divisor);
    }
  }
}

__global__ void __launch_bounds__(kThreads) reduce_parts_kernel(ReduceWork w) {
  for (int64_t row = blockIdx.x; row < w.rows; row += gridDim.x) {
    double value = start_of(w.max);
    for (int64_t i = threadIdx.x; i < w.per_row; i += kThreads)
      join(w.max, value, w.parts[row * w.per_row + i]);
    value = w.max ? block_reduce<kThreads>(value, Max{}) : block_reduce<kThreads>(value, Add{});
    if (threadIdx.x == 0) put(w.y, w.y_type, row, value / w.divisor);
  }
}

template <class T, int N>
void run_reduce(Context& ctx, const ReduceWork& w) {
  // A warp reads such a row in at most 32 rounds of scalars.
  constexpr int64_t kWarpRow = 1024;
  if (w.n <= kWarpRow)
    reduce_rows_kernel<T, N><<<grid_for(ctx, w.rows, kThreads / 32), kThreads, 0, stream_of(ctx)>>>(w);
  else
    reduce_chunks_kernel<T, N><<<grid_for(ctx, w.rows * w.per_row, 1), kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace

void CudaBackend::pointwise(Context& ctx, const PointwiseArgs& args) {
  const PointwiseViews v(args);
  const Tensor &a = v.a, &b = v.b, &y = v.y;
  by_float_type(a.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    PointwiseWork w{};
    w.a = a.raw(), w.b = b.raw(), w.y = y.raw();
    w.a_rows = DeviceRows(a, 1), w.y_rows = DeviceRows(y, 1);
    if (b) w.b_rows = DeviceRows(b, 1);
    w.one_a = a.stride(-1) == 0, w.one_b = b && b.stride(-1) == 0;
    w.rows = w.y_rows.count;
    w.op = args.op, w.alpha = args.alpha, w.beta = args.beta;
    const int64_t n = y.dim(-1);
    const auto launch = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      const unsigned grid = grid_for(ctx, w.rows * w.packs, kThreads);
      w.by_packs = Divisor(w.packs);
      pointwise_kernel<T, N><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
      CUDA_CHECK_LAUNCH();
    };
    using Vector = std::integral_constant<int, kVector<T>>;
    using Scalar = std::integral_constant<int, 1>;
    if (packable(y, 16) && (w.one_a || packable(a, 16)) && (!b || w.one_b || packable(b, 16))) {
      w.packs = n / kVector<T>;
      return launch(Vector{});
    }
    // A single row whose length alone does not divide: packs, then what is left.
    const auto based = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0; };
    if (w.rows == 1 && n >= kVector<T> && (w.one_a || based(a)) && based(y) && (!b || w.one_b || based(b))) {
      const int64_t whole = n / kVector<T> * kVector<T>;
      w.packs = n / kVector<T>;
      launch(Vector{});
      w.y = static_cast<T*>(w.y) + whole;
      if (!w.one_a) w.a = static_cast<const T*>(w.a) + whole;
      if (w.b && !w.one_b) w.b = static_cast<const T*>(w.b) + whole;
      w.packs = n - whole;
      return launch(Scalar{});
    }
    w.packs = n;
    launch(Scalar{});
  });
}

void CudaBackend::cast(Context& ctx, const CastArgs& args) {
  if (args.x.dtype() == args.y.dtype()) {
    CUDA_CHECK(cudaMemcpyAsync(args.y.raw(), args.x.raw(), static_cast<size_t>(args.x.nbytes()),
                               cudaMemcpyDeviceToDevice, stream_of(ctx)));
    return;
  }
  if (args.x.dtype() == DType::f64) return cast_from<double>(ctx, args);
  by_float_type(args.x.dtype(), [&](auto type) { cast_from<typename decltype(type)::type>(ctx, args); });
}

void CudaBackend::reduce(Context& ctx, const ReduceArgs& args) {
  ReduceWork w{};
  w.x = args.x.raw(), w.weight = args.weight.raw(), w.y = args.y.raw();
  w.rows = args.y.numel(), w.n = args.x.numel() / w.rows;
  w.chunk = chunk_of(w.n), w.per_row = std::max<int64_t>((w.n + w.chunk - 1) / w.chunk, 1);
  w.y_type = args.y.dtype();
  w.max = args.op == ReduceArgs::Op::max;
  w.divisor = args.op == ReduceArgs::Op::mean ? static_cast<double>(w.n) : 1.0;
  Tensor parts;
  if (w.per_row > 1) {
    parts = ctx.allocate(DType::f64, {w.rows, w.per_row});
    w.parts = parts.data<double>();
  }
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const auto based = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool packs = based(w.x) && based(w.weight) && (w.rows == 1 || w.n * size % 16 == 0);
  const auto run = [&](auto type) {
    using T = typename decltype(type)::type;
    if (packs)
      run_reduce<T, kVector<T>>(ctx, w);
    else
      run_reduce<T, 1>(ctx, w);
  };
  if (args.x.dtype() == DType::f64)
    run(Type<double>{});
  else
    by_float_type(args.x.dtype(), run);
  if (w.parts) {
    reduce_parts_kernel<<<grid_for(ctx, w.rows, 1), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  }
}

}  // namespace attnbench
