// Local linear attention on a GPU: operands split into planes of bf16, one sweep over the keys an iteration
// (cuda_sweep.cu) and one kernel for the vectors of all rows after it, a warp a row. Few rows are cut in
// splits of their keys, whose sums that kernel adds in order: the same bits every time.
#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/local_linear/cuda_sweep.cuh"
#include "kernels/local_linear/local_linear.hpp"

namespace attnbench {
namespace {

using namespace cuda_local_linear;

constexpr int kThreads = 128, kWarps = kThreads / 32;

struct Source {
  const void* data;
  int64_t strides[3], per_batch;  // heads of a batch
  explicit Source(const Tensor& t)
      : data(t.raw()), strides{t.stride(0), t.stride(1), t.stride(2)}, per_batch(t.dim(1)) {}
  __device__ int64_t offset(int64_t head, int64_t row) const {
    const int64_t b = divide(head, per_batch);
    return b * strides[0] + (head - b * per_batch) * strides[1] + row * strides[2];
  }
};

/// x as terms, `step` elements apart.
__device__ void store_terms(__nv_bfloat16* to, int64_t step, int terms, float x) {
  for (int i = 0; i < terms; ++i) {
    const __nv_bfloat16 term = __float2bfloat16_rn(x);
    to[i * step] = term;
    x -= __bfloat162float(term);
  }
}

/// Columns [column, column + width) of rows as planes, zero beyond `columns`; or their squares.
template <class T>
__global__ void split_kernel(const Source from, int64_t heads, int64_t rows, int64_t column, int64_t columns,
                             int width, int terms, bool square, __nv_bfloat16* to) {
  const int64_t plane = rows * width;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < heads * plane;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t head = divide(i, plane), at = i - head * plane, row = divide(at, width);
    const int64_t c = column + at - row * width;
    float x = 0.0f;
    if (c < columns) x = widen(static_cast<const T*>(from.data)[from.offset(head, row) + c]);
    store_terms(to + head * terms * plane + at, plane, terms, square ? x * x : x);
  }
}

/// What every kernel of rows sees. Vectors are [heads, n, width] with zeros beyond D, numbers [heads, n].
///
/// The iteration's own vectors and scalars are f64. mu mu^T is most of Sigma, so that the first step takes
/// nearly all of r away: a step length of f32 leaves 2^-24 of what was there, which is much beside the rest,
/// and directions are no longer conjugate. Of a case's error that was nine tenths; sweeps in f32 are a tenth.
struct Rows {
  SweepArgs sweep;  // y, most and sum of its splits
  Source q;
  int64_t d, block;
  float *kbar, *mu, *diagonal;
  double *x, *r, *p, *y;
  __nv_bfloat16* planes;                // of p, or of r when it is done
  float *top, *weight, *ridge, *shift;  // weight: 1 / omega; shift [blocks, heads, n]
  double *rz, *limit;
  bool absolute, jacobi;
  float lambda, delta_eps, rtol, atol;
  // outputs
  Source omega, rho, coefficient, delta;

  __device__ int64_t count() const { return sweep.heads * sweep.n; }
  /// The sum over splits of what a sweep left of this row.
  __device__ float total(int64_t at, int64_t splits, int64_t c) const {
    float s = 0.0f;
    for (int64_t i = 0; i < splits; ++i) s += sweep.y[(i * count() + at) * sweep.width + c];
    return s;
  }
};

/// In f64, as on the CPU: whether a row rests, and 1 - mu.rho where that is small, hang on dots.
template <class A, class B>
__device__ double dot(const A* a, const B* b, int64_t begin, int64_t end) {
  double s = 0.0;
  for (int64_t c = begin + threadIdx.x % 32; c < end; c += 32)
    s += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return warp_reduce(s, Add{});
}

/// p's planes and, of every block of channels, p.kbar.
__device__ void publish(const Rows& w, int64_t at, int64_t head, int64_t row) {
  const int width = w.sweep.width, terms = w.sweep.work_terms;
  const int64_t plane = w.sweep.n * width;
  const double* p = w.p + at * width;
  for (int64_t c = threadIdx.x % 32; c < width; c += 32)
    store_terms(w.planes + head * terms * plane + row * width + c, plane, terms, static_cast<float>(p[c]));
  for (int64_t c = 0, i = 0; c < w.d; c += w.block, ++i) {
    const double s = dot(p, w.kbar + at * width, c, c + w.block);
    if (threadIdx.x % 32 == 0) w.shift[i * w.count() + at] = static_cast<float>(s);
  }
}

#define ATTNBENCH_ROW_OF(w)                                                        \
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; \
  if (at >= (w).count()) return;                                                   \
  const int64_t head = divide(at, (w).sweep.n), row = at - head * (w).sweep.n;     \
  const int lane = static_cast<int>(threadIdx.x % 32), width = (w).sweep.width;    \
  const int64_t splits = splits_of((w).sweep, row)

/// After the sweep for means: omega, kbar, mu and the ridge.
template <class T>
__global__ void __launch_bounds__(kThreads) mean_kernel(const Rows w) {
  ATTNBENCH_ROW_OF(w);
  float top = -INFINITY;
  for (int64_t i = 0; i < splits; ++i) top = fmaxf(top, w.sweep.most[i * w.count() + at]);
  float omega = 0.0f;
  for (int64_t i = 0; i < splits; ++i)
    omega += exp2f(w.sweep.most[i * w.count() + at] - top) * w.sweep.sum[i * w.count() + at];
  const float weight = 1.0f / omega;
  for (int64_t c = lane; c < width; c += 32) {
    float s = 0.0f;
    for (int64_t i = 0; i < splits; ++i)
      s += exp2f(w.sweep.most[i * w.count() + at] - top) * w.sweep.y[(i * w.count() + at) * width + c];
    const float q = c < w.d ? widen(static_cast<const T*>(w.q.data)[w.q.offset(head, row) + c]) : 0.0f;
    const float kbar = c < w.d ? s * weight : 0.0f;
    w.kbar[at * width + c] = kbar;
    w.mu[at * width + c] = kbar - q;
  }
  if (lane > 0) return;
  w.top[at] = top, w.weight[at] = weight;
  w.ridge[at] = w.absolute ? w.lambda * exp2f(-top) * weight : w.lambda;
  const_cast<float*>(static_cast<const float*>(w.omega.data))[w.omega.offset(head, row)] = omega;
}

/// After the sweep for squares, if there is one: the iteration's beginning.
__global__ void __launch_bounds__(kThreads) start_kernel(const Rows w) {
  ATTNBENCH_ROW_OF(w);
  const float *mu = w.mu + at * width, *kbar = w.kbar + at * width;
  double *r = w.r + at * width, *p = w.p + at * width;
  for (int64_t c = lane; c < width; c += 32) {
    const float left = mu[c];
    double z = left;
    if (w.jacobi) {
      const float spread = fmaxf(w.total(at, splits, c) * w.weight[at] - kbar[c] * kbar[c], 0.0f);
      const float diagonal = spread + left * left + w.ridge[at];
      w.diagonal[at * width + c] = diagonal;
      z = z / diagonal;
    }
    w.x[at * width + c] = 0.0;
    r[c] = left, p[c] = z;
  }
  const double rz = dot(r, p, 0, w.d), norm = dot(mu, mu, 0, w.d);
  if (lane == 0) {
    const double inverse = w.weight[at], least = w.atol * inverse * inverse;
    w.rz[at] = rz;
    w.limit[at] = static_cast<double>(w.rtol) * (norm > least ? norm : least);
  }
  __syncwarp();  // dots over a block of channels begin anywhere
  publish(w, at, head, row);
}

/// After the sweep for a block of channels; after the last one, an iteration.
__global__ void __launch_bounds__(kThreads) step_kernel(const Rows w, bool last) {
  ATTNBENCH_ROW_OF(w);
  const float *mu = w.mu + at * width, *diagonal = w.diagonal + at * width;
  double *x = w.x + at * width, *r = w.r + at * width, *p = w.p + at * width, *y = w.y + at * width;
  const double rz = w.rz[at], rr = w.jacobi ? dot(r, r, 0, w.d) : rz;
  if (!(rr > w.limit[at]) || rr == INFINITY) return;
  const double weight = w.weight[at], ridge = w.ridge[at];
  // Element c is always lane c % 32's: no lane reads what another has written.
  for (int64_t c = lane; c < w.sweep.channel_end; c += 32)
    if (c >= w.sweep.channel_begin) y[c] = w.total(at, splits, c) * weight;
  if (!last) return;
  for (int64_t begin = 0; begin < w.d; begin += w.block) {
    const double along = dot(p, mu, begin, begin + w.block);
    for (int64_t c = lane; c < begin + w.block; c += 32)
      if (c >= begin) y[c] += along * mu[c] + ridge * p[c];
  }
  const double guard = 1e-10 * weight * (w.jacobi ? 1.0 : weight * weight);
  const double alpha = rz / (dot(p, y, 0, w.d) + guard);
  double next = 0.0;
  for (int64_t c = lane; c < w.d; c += 32) {
    x[c] += alpha * p[c];
    const double left = r[c] - alpha * y[c];
    r[c] = left;
    next += left * (w.jacobi ? left / diagonal[c] : left);
  }
  next = warp_reduce(next, Add{});
  const double beta = next / rz;
  for (int64_t c = lane; c < w.d; c += 32) p[c] = (w.jacobi ? r[c] / diagonal[c] : r[c]) + beta * p[c];
  if (lane == 0) w.rz[at] = next;
  __syncwarp();
  publish(w, at, head, row);
}

/// delta (as local_linear_body.hpp has it), rho / delta and c, and the planes and shift of the sweep for the
/// output.
__global__ void __launch_bounds__(kThreads) finish_kernel(const Rows w) {
  ATTNBENCH_ROW_OF(w);
  const double* x = w.x + at * width;
  const double bare = 1.0 - dot(w.mu + at * width, x, 0, w.d) - dot(x, w.r + at * width, 0, w.d);
  const double eps = static_cast<double>(w.delta_eps) * w.weight[at], delta = bare + (bare < 0 ? -eps : eps);
  float* rho = const_cast<float*>(static_cast<const float*>(w.rho.data)) + w.rho.offset(head, row);
  const int terms = w.sweep.work_terms;
  const int64_t plane = w.sweep.n * width;
  for (int64_t c = lane; c < width; c += 32) {
    const float r = c < w.d ? static_cast<float>(x[c] / delta) : 0.0f;
    store_terms(w.planes + head * terms * plane + row * width + c, plane, terms, r);
    if (c < w.d) rho[c] = r;
  }
  __syncwarp();
  const float c = static_cast<float>(bare / delta + dot(rho, w.kbar + at * width, 0, w.d));
  if (lane > 0) return;
  w.shift[at] = c;
  const_cast<float*>(static_cast<const float*>(w.coefficient.data))[w.coefficient.offset(head, row)] = c;
  const_cast<float*>(static_cast<const float*>(w.delta.data))[w.delta.offset(head, row)] =
      static_cast<float>(delta);
}

/// o = -(what the sweep left) / omega: the sweep took r.k - c.
template <class T>
__global__ void __launch_bounds__(kThreads)
    output_kernel(const Rows w, const Source o, int64_t column, int64_t columns) {
  ATTNBENCH_ROW_OF(w);
  T* to = const_cast<T*>(static_cast<const T*>(o.data)) + o.offset(head, row) + column;
  for (int64_t c = lane; c < min(columns - column, static_cast<int64_t>(width)); c += 32)
    to[c] = narrow<T>(-w.total(at, splits, c) * w.weight[at]);
}

/// Tiles of a split: as many splits as give every multiprocessor four blocks, so that two are resident while
/// others end; one split where rows alone are enough.
int64_t tiles_of_split(Context& ctx, const SweepArgs& s) {
  int64_t tiles = 0;
  for (int64_t first = 0; first < s.n; first += kRows)
    tiles += (keys_seen(s, std::min(first + kRows, s.n) - 1) + s.tile_keys - 1) / s.tile_keys;
  const int64_t blocks = int64_t{4} * cuda_of(ctx).sm_count();
  return std::max<int64_t>(1, (tiles * s.heads + blocks - 1) / blocks);
}

}  // namespace

void CudaBackend::local_linear(Context& ctx, const LocalLinearArgs& args) {
  const int64_t heads = args.q.dim(0) * args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3),
                m = args.k.dim(2), e = args.v.dim(3), count = heads * n;
  // Three vectors of a row for each of four warps have 48 KiB.
  if (d > 1024)
    throw Unsupported("local_linear on CUDA takes heads of at most 1024 channels, not " + std::to_string(d));
  if (heads > 65535)
    throw Unsupported("local_linear on CUDA takes at most 65535 heads of all batches, not " +
                      std::to_string(heads));
  const int width = d <= 64 ? 64 : d <= 128 ? 128 : static_cast<int>((d + 63) / 64 * 64);
  const int terms = args.q.dtype() == DType::bf16 ? 1 : args.q.dtype() == DType::f16 ? 2 : 3;
  const int work_terms = std::max(terms, 2);
  const cudaStream_t stream = stream_of(ctx);

  const auto planes_of = [&](const Tensor& t, int64_t column, int as, bool square) {
    const int64_t rows = t.dim(2), columns = t.dim(3);
    const Tensor to = ctx.allocate(DType::bf16, {heads, as, rows, width});
    by_float_type(t.dtype(), [&](auto type) {
      split_kernel<typename decltype(type)::type>
          <<<grid_for(ctx, heads * rows * width, 256), 256, 0, stream>>>(
              Source(t), heads, rows, column, columns, width, as, square,
              static_cast<__nv_bfloat16*>(to.raw()));
    });
    CUDA_CHECK_LAUNCH();
    return to;
  };
  const auto view = [&](const Tensor& t) {
    return Planes{static_cast<const __nv_bfloat16*>(t.raw()), static_cast<int>(t.dim(1)), t.dim(2)};
  };
  const Tensor q = planes_of(args.q, 0, terms, false), k = planes_of(args.k, 0, terms, false);
  const Tensor p = ctx.allocate(DType::bf16, {heads, work_terms, n, width});

  SweepArgs s;
  s.width = width, s.dtype_terms = terms, s.work_terms = work_terms;
  s.q = view(q), s.k = view(k), s.p = view(p);
  s.heads = heads, s.n = n, s.m = m, s.causal = args.causal;
  s.channel_begin = 0, s.channel_end = static_cast<int>(d);
  s.scale2 = args.scale * 1.44269504f;
  s.tile_keys = keys_of_tile(width, terms);
  s.tiles = tiles_of_split(ctx, s);
  s.splits = splits_of(s, n - 1);
  if (s.splits > 65535)
    throw Unsupported("local_linear on CUDA takes at most 65535 splits of " +
                      std::to_string(s.tiles * s.tile_keys) + " keys");

  const int64_t blocks = d / args.block;
  const auto numbers = [&](int64_t each) { return ctx.allocate(DType::f32, {each, count}); };
  const auto vectors = [&] { return ctx.allocate(DType::f32, {count, width}); };
  const Tensor partial = ctx.allocate(DType::f32, {s.splits, count, width}), most = numbers(s.splits),
               sum = numbers(s.splits);
  const Tensor iterates = ctx.allocate(DType::f64, {4, count, width});  // x, r, p, y
  const auto iterate = [&](int64_t i) { return iterates.data<double>() + i * count * width; };
  const Tensor kbar = vectors(), mu = vectors(), top = numbers(1), weight = numbers(1), ridge = numbers(1),
               shift = numbers(blocks), doubles = ctx.allocate(DType::f64, {2, count});
  Tensor diagonal = mu;  // not read without the preconditioner
  if (args.jacobi) diagonal = vectors();
  s.y = partial.data<float>(), s.most = most.data<float>(), s.sum = sum.data<float>();
  s.top = top.data<float>(), s.shift = shift.data<float>();

  Rows w{s,
         Source(args.q),
         d,
         args.block,
         kbar.data<float>(),
         mu.data<float>(),
         diagonal.data<float>(),
         iterate(0),
         iterate(1),
         iterate(2),
         iterate(3),
         static_cast<__nv_bfloat16*>(p.raw()),
         top.data<float>(),
         weight.data<float>(),
         ridge.data<float>(),
         shift.data<float>(),
         doubles.data<double>(),
         doubles.data<double>() + count,
         args.absolute,
         args.jacobi,
         args.lambda,
         args.delta_eps,
         args.rtol,
         args.atol,
         Source(args.omega.reshape({args.q.dim(0), args.q.dim(1), n, 1})),
         Source(args.rho),
         Source(args.coefficient.reshape({args.q.dim(0), args.q.dim(1), n, 1})),
         Source(args.delta.reshape({args.q.dim(0), args.q.dim(1), n, 1}))};
  const auto grid = static_cast<unsigned>((count + kWarps - 1) / kWarps);
  const auto by_type = [&](const auto& f) { by_float_type(args.q.dtype(), f); };

  s.what = Sweep::mean;
  sweep(ctx, s);
  by_type([&](auto type) { mean_kernel<typename decltype(type)::type><<<grid, kThreads, 0, stream>>>(w); });
  CUDA_CHECK_LAUNCH();
  if (args.jacobi) {
    const Tensor squares = planes_of(args.k, 0, work_terms, true);
    s.what = Sweep::squares, s.values = view(squares);
    sweep(ctx, s);
  }
  start_kernel<<<grid, kThreads, 0, stream>>>(w);
  CUDA_CHECK_LAUNCH();
  s.what = Sweep::product;
  for (int64_t t = 0; t < args.iterations; ++t)
    for (int64_t b = 0; b < blocks; ++b) {
      s.channel_begin = static_cast<int>(b * args.block),
      s.channel_end = s.channel_begin + static_cast<int>(args.block);
      s.shift = shift.data<float>() + b * count;
      sweep(ctx, s);
      w.sweep.channel_begin = s.channel_begin, w.sweep.channel_end = s.channel_end;
      step_kernel<<<grid, kThreads, 0, stream>>>(w, b + 1 == blocks);
      CUDA_CHECK_LAUNCH();
    }
  finish_kernel<<<grid, kThreads, 0, stream>>>(w);
  CUDA_CHECK_LAUNCH();
  s.what = Sweep::output;
  s.shift = shift.data<float>();
  s.channel_begin = 0, s.channel_end = static_cast<int>(d);
  for (int64_t column = 0; column < e; column += width) {
    const Tensor values = planes_of(args.v, column, terms, false);
    s.values = view(values);
    sweep(ctx, s);
    by_type([&](auto type) {
      output_kernel<typename decltype(type)::type>
          <<<grid, kThreads, 0, stream>>>(w, Source(args.o), column, e);
    });
    CUDA_CHECK_LAUNCH();
  }
}

}  // namespace attnbench
