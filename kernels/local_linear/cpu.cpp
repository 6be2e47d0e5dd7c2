#include <algorithm>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/local_linear/local_linear.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/local_linear/local_linear_body.hpp"

namespace attnbench {
namespace {

const char* row_of(const Tensor& t, int64_t bh, int64_t row) {
  return static_cast<const char*>(t.raw()) +
         (bh / t.dim(1) * t.stride(0) + bh % t.dim(1) * t.stride(1) + row * t.stride(2)) *
             static_cast<int64_t>(size_of(t.dtype()));
}
float* floats_of(const Tensor& t, int64_t bh, int64_t row) {
  return reinterpret_cast<float*>(const_cast<char*>(row_of(t, bh, row)));
}

/// The f32 rows of all heads: a copy where the tensor is something else.
struct Wide {
  Tensor copy;
  const Tensor& of;
  Wide(Context& ctx, const Tensor& t) : of(t) {
    if (t.dtype() != DType::f32) copy = ctx.allocate(DType::f32, t.shape());
  }
  const Tensor& tensor() const { return copy ? copy : of; }
};

}  // namespace

void CpuBackend::local_linear(Context& ctx, const LocalLinearArgs& args) {
  const int64_t heads = args.q.dim(0) * args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3),
                m = args.k.dim(2), e = args.v.dim(3);
  const int64_t chunks = (m + kLocalKeys - 1) / kLocalKeys, chunk_floats = kLocalKeys * d;
  const Wide k(ctx, args.k), v(ctx, args.v);
  const Tensor transposed = ctx.allocate(DType::f32, {heads, chunks, chunk_floats});
  const auto widen = ATTNBENCH_BEST(local_linear_widen);
  const auto transpose = ATTNBENCH_BEST(local_linear_transpose);
  parallel_items(ctx.threads(), heads * chunks, [&](int64_t item) {
    const int64_t bh = item / chunks, first = item % chunks * kLocalKeys,
                  count = std::min(kLocalKeys, m - first);
    if (k.copy)
      widen(args.k.dtype(), row_of(args.k, bh, first), args.k.stride(2), count, d,
            floats_of(k.copy, bh, first));
    if (v.copy)
      widen(args.v.dtype(), row_of(args.v, bh, first), args.v.stride(2), count, e,
            floats_of(v.copy, bh, first));
    transpose(floats_of(k.tensor(), bh, first), k.tensor().stride(2), count, d,
              transposed.data<float>() + item * chunk_floats);
  });

  // Smaller tiles where there are fewer than four for a thread: an item is as long as its keys.
  const int64_t threads = ctx.threads();
  int64_t rows = std::min(args.row_tile, n);
  while (rows > 16 && heads * ((n + rows - 1) / rows) < 4 * threads) rows = (rows + 1) / 2;
  const int64_t tiles = (n + rows - 1) / rows;
  const int64_t floats = (local_linear_workspace(rows, m, d, e) + 15) / 16 * 16;
  const Tensor work = ctx.allocate(DType::f32, {threads, floats});
  const auto run = ATTNBENCH_BEST(local_linear_tile);
  // The last tiles see most keys, so they are handed out first.
  parallel_items(ctx.threads(), heads * tiles, [&](int64_t item) {
    const int64_t bh = item % heads, first = (tiles - 1 - item / heads) * rows;
    LocalLinearTile t{};
    t.dtype = args.q.dtype();
    t.rows = std::min(rows, n - first);
    t.seen = args.causal ? first + t.rows + m - n : m;
    t.q = row_of(args.q, bh, first), t.q_row = args.q.stride(2);
    t.o = const_cast<char*>(row_of(args.o, bh, first)), t.o_row = args.o.stride(2);
    t.k = floats_of(k.tensor(), bh, 0), t.k_row = k.tensor().stride(2);
    t.v = floats_of(v.tensor(), bh, 0), t.v_row = v.tensor().stride(2);
    t.k_transposed = transposed.data<float>() + bh * chunks * chunk_floats;
    t.omega = floats_of(args.omega, bh, first), t.delta = floats_of(args.delta, bh, first);
    t.coefficient = floats_of(args.coefficient, bh, first);
    t.rho = floats_of(args.rho, bh, first), t.rho_row = args.rho.stride(2);
    t.d = d, t.e = e, t.block = args.block, t.iterations = args.iterations;
    t.causal = args.causal, t.absolute = args.absolute, t.jacobi = args.jacobi;
    t.scale = args.scale, t.lambda = args.lambda, t.delta_eps = args.delta_eps;
    t.rtol = args.rtol, t.atol = args.atol;
    t.work = work.data<float>() + thread_index() * floats;
    run(t);
  });
}

}  // namespace attnbench
