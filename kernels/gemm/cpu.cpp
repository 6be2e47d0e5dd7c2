#include <cblas.h>

#include <cmath>
#include <limits>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/gemm/gemm_body.hpp"

namespace attnbench {
namespace {

/// OpenBLAS built on OpenMP takes its team size from the calling thread's setting, and runs alone inside a
/// parallel region; so this is all it needs to know.
class BlasThreads {
 public:
  explicit BlasThreads(int threads) {
#if defined(_OPENMP)
    before_ = omp_get_max_threads();
    if (before_ != threads) omp_set_num_threads(threads);
#endif
  }
  ~BlasThreads() {
#if defined(_OPENMP)
    if (before_ != omp_get_max_threads()) omp_set_num_threads(before_);
#endif
  }
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int before_ = 1;
};

int blas_int(int64_t n) {
  if (n > std::numeric_limits<int>::max())
    throw Unsupported("gemm: an extent or stride of " + std::to_string(n) +
                      " exceeds BLAS's 32-bit integers");
  return static_cast<int>(n);
}

/// One matrix of the batch: pointers and row strides are those of the stored orientation.
struct Product {
  int64_t m, n, k;
  const void *a, *b, *bias;
  void* c;
  int64_t lda, ldb, ldc;
  bool ta, tb;
  float alpha, beta;
  Activation activation;
};

template <class T>
void blas(const Product& p, const T* a, const T* b, T* c) {
  if (p.k == 0) {
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) c[i * p.ldc + j] = p.beta == 0.0f ? T(0) : c[i * p.ldc + j];
    return;
  }
  const auto run = [&](auto&& f) {
    f(CblasRowMajor, p.ta ? CblasTrans : CblasNoTrans, p.tb ? CblasTrans : CblasNoTrans, blas_int(p.m),
      blas_int(p.n), blas_int(p.k), static_cast<T>(p.alpha), a, blas_int(p.lda), b, blas_int(p.ldb),
      static_cast<T>(p.beta), c, blas_int(p.ldc));
  };
  if constexpr (std::is_same_v<T, double>)
    run(cblas_dgemm);
  else
    run(cblas_sgemm);
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::none:
      break;
  }
  return x;
}

void product_f64(int threads, const Product& p) {
  auto* c = static_cast<double*>(p.c);
  const auto* bias = static_cast<const double*>(p.bias);
  blas(p, static_cast<const double*>(p.a), static_cast<const double*>(p.b), c);
  if (!bias && p.activation == Activation::none) return;
  parallel_range(threads, p.m, std::max<int64_t>(kParallelBytes / (16 * p.n), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i)
                     for (int64_t j = 0; j < p.n; ++j)
                       c[i * p.ldc + j] = activate(p.activation, c[i * p.ldc + j] + (bias ? bias[j] : 0.0));
                 });
}

void product_f32(int threads, const Product& p) {
  auto* c = static_cast<float*>(p.c);
  blas(p, static_cast<const float*>(p.a), static_cast<const float*>(p.b), c);
  if (!p.bias && p.activation == Activation::none) return;
  const auto finish = ATTNBENCH_BEST(gemm_finish_row);
  parallel_range(threads, p.m, std::max<int64_t>(kParallelBytes / (8 * p.n), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i)
                     finish(DType::f32, c + i * p.ldc, p.bias, p.activation, c + i * p.ldc, p.n);
                 });
}

/// bf16 and f16: B and a block of A's rows are widened, the block's sums are finished and rounded once.
constexpr int64_t kWidenRows = 256;

void product_narrow(Context& ctx, const Product& p, DType t) {
  const auto size = static_cast<int64_t>(size_of(t));
  const auto widen = [&](const void* from, int64_t ld, int64_t rows, int64_t n, float* to) {
    parallel_range(ctx.threads(), rows, std::max<int64_t>(kParallelBytes / (6 * std::max<int64_t>(n, 1)), 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       convert(static_cast<const char*>(from) + i * ld * size, t, to + i * n, DType::f32, n);
                   });
  };
  const int64_t block = std::min(p.m, kWidenRows);
  const Tensor b = ctx.allocate(DType::f32, {p.k, p.n}), a = ctx.allocate(DType::f32, {block, p.k});
  const Tensor c = ctx.allocate(DType::f32, {block, p.n});
  widen(p.b, p.ldb, p.tb ? p.n : p.k, p.tb ? p.k : p.n, b.data<float>());
  const auto finish = ATTNBENCH_BEST(gemm_finish_row);
  for (int64_t i = 0; i < p.m; i += block) {
    Product part = p;
    part.m = std::min(block, p.m - i);
    const char* from = static_cast<const char*>(p.a) + (p.ta ? i : i * p.lda) * size;
    char* to = static_cast<char*>(p.c) + i * p.ldc * size;
    widen(from, p.lda, p.ta ? p.k : part.m, p.ta ? part.m : p.k, a.data<float>());
    if (p.beta != 0.0f) widen(to, p.ldc, part.m, p.n, c.data<float>());
    part.lda = p.ta ? part.m : std::max<int64_t>(p.k, 1);
    part.ldb = p.tb ? std::max<int64_t>(p.k, 1) : p.n;
    part.ldc = p.n;
    blas(part, a.data<float>(), b.data<float>(), c.data<float>());
    parallel_range(ctx.threads(), part.m, std::max<int64_t>(kParallelBytes / (6 * p.n), 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r)
                       finish(t, c.data<float>() + r * p.n, p.bias, p.activation, to + r * p.ldc * size, p.n);
                   });
  }
}

/// The row stride as BLAS wants it: at least the row, also where it does not matter.
int64_t leading(const Tensor& t) { return t.dim(-2) > 1 ? t.stride(-2) : std::max<int64_t>(t.dim(-1), 1); }

}  // namespace

void CpuBackend::gemm(Context& ctx, const GemmArgs& args) {
  // Rows that overlap (broadcast or Toeplitz views) are not BLAS matrices: such operands are copied.
  const auto usable = [&](const Tensor& t) {
    if (leading(t) >= t.dim(-1)) return t;
    const Tensor packed = ctx.allocate(t.dtype(), t.shape());
    CpuBackend::transpose_copy(ctx, {t, packed});
    return packed;
  };
  const Tensor a = usable(args.a), b = usable(args.b);
  const RowOffsets a_at(a, 2), b_at(b, 2), c_at(args.c, 2);
  const DType t = a.dtype();
  Product p{};
  p.m = args.c.dim(-2), p.n = args.c.dim(-1), p.k = a.dim(args.a_transposed ? -2 : -1);
  p.lda = leading(a), p.ldb = leading(b), p.ldc = leading(args.c);
  p.ta = args.a_transposed, p.tb = args.b_transposed;
  p.bias = args.bias.raw();
  p.alpha = args.alpha, p.beta = args.accumulate ? 1.0f : 0.0f;
  p.activation = args.activation;
  const BlasThreads scope(ctx.threads());
  const int64_t batch = a_at.count();
  const auto one = [&](int64_t i, int threads) {
    const auto at = [&](const Tensor& x, int64_t offset) {
      return static_cast<char*>(x.raw()) + offset * static_cast<int64_t>(size_of(t));
    };
    Product q = p;
    q.a = at(a, a_at.offset(i));
    q.b = at(b, b.rank() == 2 ? 0 : b_at.offset(i));
    q.c = at(args.c, c_at.offset(i));
    if (t == DType::f32) return product_f32(threads, q);
    if (t == DType::f64) return product_f64(threads, q);
    product_narrow(ctx, q, t);
  };
  blas_int(std::max({p.m, p.n, p.k, p.lda, p.ldb, p.ldc}));
  // Many products: one per thread, each single-threaded. Few: BLAS threads inside.
  if ((t == DType::f32 || t == DType::f64) && batch >= 2 * ctx.threads() && batch > 1)
    parallel_range(ctx.threads(), batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) one(i, 1);
    });
  else
    for (int64_t i = 0; i < batch; ++i) one(i, ctx.threads());
}

}  // namespace attnbench
