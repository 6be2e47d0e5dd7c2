#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/elementwise/broadcast.hpp"
#include "kernels/elementwise/reduce.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/elementwise/pointwise_body.hpp"

namespace attnbench {

float far_sin(float x) { return std::sin(x); }
float far_cos(float x) { return std::cos(x); }
float far_pow(float x, float y) { return std::pow(x, y); }

namespace {

char* at(void* p, int64_t elements, DType t) {
  return static_cast<char*>(p) + elements * static_cast<int64_t>(size_of(t));
}

// Reductions are cut in chunks of this many elements whatever the thread count, so the order of additions is
// fixed; 16 Ki elements are 64 KiB of f32, enough to hide the cost of a chunk.
constexpr int64_t kChunk = int64_t{1} << 14;

}  // namespace

void CpuBackend::pointwise(Context& ctx, const PointwiseArgs& args) {
  const auto run = ATTNBENCH_BEST(pointwise_rows);
  const DType t = args.a.dtype();
  const PointwiseViews v(args);
  PointwiseRows w{};
  w.op = args.op, w.dtype = t, w.alpha = args.alpha, w.beta = args.beta;
  w.step_a = v.a.stride(-1), w.step_b = v.b ? v.b.stride(-1) : 0;
  const int64_t grain = std::max<int64_t>(kParallelBytes / (2 * static_cast<int64_t>(size_of(t))), 1);
  if (v.y.rank() == 1) {
    parallel_range(
        ctx.threads(), v.y.numel(), grain,
        [&](int64_t begin, int64_t end) {
          PointwiseRows part = w;
          part.a = at(v.a.raw(), begin * w.step_a, t);
          part.b = v.b ? at(v.b.raw(), begin * w.step_b, t) : nullptr;
          part.y = at(v.y.raw(), begin, t);
          part.rows = 1;
          part.n = end - begin;
          run(part);
        },
        64);
    return;
  }
  const RowOffsets a(v.a, 1), y(v.y, 1);
  const RowOffsets b = v.b ? RowOffsets(v.b, 1) : RowOffsets();
  const int64_t n = v.y.dim(-1);
  parallel_range(ctx.threads(), y.count(), std::max<int64_t>(grain / n, 1), [&](int64_t begin, int64_t end) {
    PointwiseRows part = w;
    part.n = n;
    const bool uniform = a.uniform() && y.uniform() && b.uniform();
    part.stride_a = a.stride(), part.stride_y = y.stride();
    part.stride_b = v.b ? b.stride() : 0;
    part.rows = uniform ? end - begin : 1;
    for (int64_t r = begin; r < end; r += part.rows) {
      part.a = at(v.a.raw(), a.offset(r), t);
      part.b = v.b ? at(v.b.raw(), b.offset(r), t) : nullptr;
      part.y = at(v.y.raw(), y.offset(r), t);
      run(part);
    }
  });
}

namespace {

double sum_f64(const double* x, const double* w, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += w ? x[i] * w[i] : x[i];
  return s;
}
double max_f64(const double* x, int64_t n) {
  double m = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; ++i) m = m > x[i] || std::isnan(m) ? m : x[i];
  return m;
}

void put(const Tensor& y, int64_t i, double value) {
  switch (y.dtype()) {
    case DType::f64:
      y.data<double>()[i] = value;
      break;
    case DType::f32:
      y.data<float>()[i] = static_cast<float>(value);
      break;
    case DType::bf16:
      y.data<bf16>()[i] = bf16(static_cast<float>(value));
      break;
    default:
      y.data<f16>()[i] = f16(static_cast<float>(value));
  }
}

}  // namespace

void CpuBackend::reduce(Context& ctx, const ReduceArgs& args) {
  using Op = ReduceArgs::Op;
  const auto sum = ATTNBENCH_BEST(sum_run);
  const auto max = ATTNBENCH_BEST(max_run);
  const DType t = args.x.dtype();
  const int64_t rows = args.y.numel(), n = args.x.numel() / rows;
  const auto chunk = [&](int64_t begin, int64_t count) -> double {
    const void* x = at(args.x.raw(), begin, t);
    const void* w = args.weight ? at(args.weight.raw(), begin, t) : nullptr;
    if (count == 0) return 0.0;
    if (t == DType::f64)
      return args.op == Op::max
                 ? max_f64(static_cast<const double*>(x), count)
                 : sum_f64(static_cast<const double*>(x), static_cast<const double*>(w), count);
    return args.op == Op::max ? static_cast<double>(max(t, x, count)) : sum(t, x, w, count);
  };
  // Chunks never cross rows; their results are joined in order.
  const int64_t per_row = std::max<int64_t>((n + kChunk - 1) / kChunk, 1);
  if (per_row == 1) {
    parallel_range(ctx.threads(), rows, std::max<int64_t>(kParallelBytes / 4 / std::max<int64_t>(n, 1), 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) {
                       const double value = chunk(r * n, n);
                       put(args.y, r, args.op == Op::mean ? value / static_cast<double>(n) : value);
                     }
                   });
    return;
  }
  std::vector<double> partial(static_cast<size_t>(rows * per_row));
  parallel_range(ctx.threads(), rows * per_row, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / per_row, first = i % per_row * kChunk;
      partial[static_cast<size_t>(i)] = chunk(r * n + first, std::min(kChunk, n - first));
    }
  });
  for (int64_t r = 0; r < rows; ++r) {
    double value = partial[static_cast<size_t>(r * per_row)];
    for (int64_t c = 1; c < per_row; ++c) {
      const double next = partial[static_cast<size_t>(r * per_row + c)];
      if (args.op == Op::max)
        value = value > next || std::isnan(value) ? value : next;
      else
        value += next;
    }
    put(args.y, r, args.op == Op::mean ? value / static_cast<double>(n) : value);
  }
}

}  // namespace attnbench
