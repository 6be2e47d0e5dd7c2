#include "kernels/solve/solve.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/check.hpp"
#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"

namespace attnbench {

void solve_spd(Context& ctx, const SolveSpdArgs& args) {
  const ArgumentCheck check(ctx, "solve_spd");
  check.present({{"a", args.a}, {"b", args.b}, {"x", args.x}});
  for (const NamedTensor& t : {NamedTensor{"a", args.a}, NamedTensor{"b", args.b}, NamedTensor{"x", args.x}})
    check.dtype(t, {DType::f32});
  check.rank({"a", args.a}, 2, Shape::kMaxRank);
  const int64_t n = args.a.dim(-1);
  if (n < 1 || n > 128 || args.a.dim(-2) != n)
    check.fail("'a' " + args.a.shape().str() + " is not square with 1 to 128 rows");
  Shape rows(std::span<const int64_t>(args.a.shape().begin(), static_cast<size_t>(args.a.rank() - 1)));
  check.shape({"b", args.b}, rows), check.shape({"x", args.x}, rows);
  check.packed({"a", args.a}, args.a.rank());
  check.packed({"b", args.b}, args.b.rank()), check.packed({"x", args.x}, args.x.rank());
  check.disjoint({"x", args.x}, {"a", args.a}), check.same_or_disjoint({"x", args.x}, {"b", args.b});
  const int64_t systems = args.b.numel() / n;
  Cost cost;
  cost.matmul = systems * (n * n * n / 3 + 2 * n * n);
  cost.special = systems * 2 * n;
  cost.bytes_read = args.a.nbytes() + args.b.nbytes();
  cost.bytes_written = args.x.nbytes();
  ctx.cost().charge(cost);
  if (systems > 0) ctx.backend().solve_spd(ctx, args);
}

void CpuBackend::solve_spd(Context& ctx, const SolveSpdArgs& args) {
  const int64_t n = args.a.dim(-1), systems = args.b.numel() / n;
  parallel_range(ctx.threads(), systems, std::max<int64_t>(1, kParallelBytes / (4 * n * n)),
                 [&](int64_t begin, int64_t end) {
                   std::vector<double> l(static_cast<size_t>(n * n)), y(static_cast<size_t>(n));
                   const auto at = [&](int64_t i, int64_t j) -> double& {
                     return l[static_cast<size_t>(i * n + j)];
                   };
                   for (int64_t s = begin; s < end; ++s) {
                     const float *a = args.a.data<float>() + s * n * n, *b = args.b.data<float>() + s * n;
                     float* x = args.x.data<float>() + s * n;
                     bool definite = true;
                     for (int64_t j = 0; j < n && definite; ++j) {
                       double pivot = static_cast<double>(a[j * n + j]) + static_cast<double>(args.ridge);
                       for (int64_t k = 0; k < j; ++k) pivot -= at(j, k) * at(j, k);
                       definite = pivot > 0;
                       at(j, j) = std::sqrt(pivot);
                       const double inverse = 1.0 / at(j, j);
                       for (int64_t i = j + 1; i < n; ++i) {
                         double t = static_cast<double>(a[i * n + j]);
                         for (int64_t k = 0; k < j; ++k) t -= at(i, k) * at(j, k);
                         at(i, j) = t * inverse;
                       }
                     }
                     for (int64_t i = 0; i < n; ++i) {
                       double t = static_cast<double>(b[i]);
                       for (int64_t k = 0; k < i; ++k) t -= at(i, k) * y[static_cast<size_t>(k)];
                       y[static_cast<size_t>(i)] = t / at(i, i);
                     }
                     for (int64_t i = n; i-- > 0;) {
                       double t = y[static_cast<size_t>(i)];
                       for (int64_t k = i + 1; k < n; ++k) t -= at(k, i) * y[static_cast<size_t>(k)];
                       y[static_cast<size_t>(i)] = t / at(i, i);
                     }
                     for (int64_t i = 0; i < n; ++i)
                       x[i] = definite ? static_cast<float>(y[static_cast<size_t>(i)])
                                       : std::numeric_limits<float>::quiet_NaN();
                   }
                 });
}

}  // namespace attnbench
