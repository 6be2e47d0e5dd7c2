#include <cblas.h>

#include <cmath>
#include <limits>
#include <vector>

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

template <class T>
void blas(const GemmProduct& p, const T* a, const T* b, T* c) {
  if (p.k == 0) {
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) c[i * p.ldc + j] = p.accumulate ? c[i * p.ldc + j] : T(0);
    return;
  }
  const auto run = [&](auto&& f) {
    f(CblasRowMajor, p.ta ? CblasTrans : CblasNoTrans, p.tb ? CblasTrans : CblasNoTrans, blas_int(p.m),
      blas_int(p.n), blas_int(p.k), static_cast<T>(p.alpha), a, blas_int(p.lda), b, blas_int(p.ldb),
      static_cast<T>(p.accumulate ? 1 : 0), c, blas_int(p.ldc));
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

void product_f64(int threads, const GemmProduct& p) {
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

void product_f32(int threads, const GemmProduct& p) {
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

void product_narrow(Context& ctx, const GemmProduct& p, DType t) {
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
    GemmProduct part = p;
    part.m = std::min(block, p.m - i);
    const char* from = static_cast<const char*>(p.a) + (p.ta ? i : i * p.lda) * size;
    char* to = static_cast<char*>(p.c) + i * p.ldc * size;
    widen(from, p.lda, p.ta ? p.k : part.m, p.ta ? part.m : p.k, a.data<float>());
    if (p.accumulate) widen(to, p.ldc, part.m, p.n, c.data<float>());
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

// ---- the packed product
// --------------------------------------------------------------------------------------

/// Bytes of B packed at a time: most of a last-level cache slice, and the bound on this operator's workspace.
constexpr int64_t kPackedBytes = int64_t{16} << 20;
/// Bytes of A packed per thread: half of a second-level cache; panels of B pass through the other half.
constexpr int64_t kBlockBytes = int64_t{512} << 10;
/// Multiply-adds below which a product is too short to be shared between threads: two fork-joins cost 10 us,
/// in which a core does half a million.
constexpr int64_t kSmall = int64_t{1} << 20;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

class PackedGemm {
 public:
  PackedGemm(Context& ctx, const GemmProduct& shape)
      : ctx_(ctx),
        pack_(ATTNBENCH_BEST(gemm_pack_b)),
        block_(ATTNBENCH_BEST(gemm_block)),
        workspace_(ATTNBENCH_BEST(gemm_workspace)),
        tile_(ATTNBENCH_BEST(gemm_tile)()) {
    if (shape.dtype == DType::bf16 && shape.alpha == 1.0f && has_avx512_bf16()) {
      pack_ = isa_avx512bf16::gemm_pack_b, block_ = isa_avx512bf16::gemm_block;
      workspace_ = isa_avx512bf16::gemm_workspace, tile_ = isa_avx512bf16::gemm_tile();
      if (has_amx_bf16() && isa_amx::gemm_suits(shape)) {
        pack_ = isa_amx::gemm_pack_b, block_ = isa_amx::gemm_block;
        workspace_ = isa_amx::gemm_workspace, tile_ = isa_amx::gemm_tile();
      }
    }
    const int64_t depth = std::max<int64_t>(shape.k, 1);
    columns_ = std::clamp(kPackedBytes / (4 * depth) / tile_.columns * tile_.columns, tile_.columns,
                          round_up(shape.n, tile_.columns));
    const int64_t fit = std::max<int64_t>(kBlockBytes / (4 * depth) / tile_.rows, 1) * tile_.rows;
    rows_ = std::min(fit, round_up(shape.m, tile_.rows));
  }

  /// `count` products that share B, all threads on them together. product(i) gives the i-th.
  template <class At>
  void together(int64_t count, const At& product) {
    const GemmProduct first = product(0);
    // Enough pieces for an even end: at least four for each thread, by fewer rows and then by fewer columns.
    const int64_t wanted = 4 * ctx_.threads();
    int64_t rows = rows_;
    if (count * ((first.m + rows - 1) / rows) < wanted)
      rows = std::clamp(round_up(first.m * count / wanted, tile_.rows), 2 * tile_.rows,
                        rows_ > tile_.rows ? rows_ : 2 * tile_.rows);
    const int64_t row_blocks = (first.m + rows - 1) / rows;
    const int64_t work_floats = round_up(workspace_(rows, first.k), 16);
    const Tensor work = ctx_.allocate(DType::f32, {ctx_.threads(), work_floats});
    const Tensor panels = ctx_.allocate(DType::f32, {columns_, first.k});
    float* packed = panels.data<float>();
    for (int64_t j = 0; j < first.n; j += columns_) {
      const int64_t end = std::min(first.n, j + columns_);
      const int64_t panel_count = (end - j + tile_.columns - 1) / tile_.columns;
      parallel_range(
          ctx_.threads(), panel_count,
          std::max<int64_t>(kParallelBytes / (8 * tile_.columns * std::max<int64_t>(first.k, 1)), 1),
          [&](int64_t p0, int64_t p1) {
            pack_(first, j + p0 * tile_.columns, std::min(end, j + p1 * tile_.columns),
                  packed + p0 * tile_.columns * first.k);
          });
      const int64_t column_blocks =
          std::clamp<int64_t>((wanted + count * row_blocks - 1) / (count * row_blocks), 1, panel_count);
      parallel_items(ctx_.threads(), count * row_blocks * column_blocks, [&](int64_t item) {
        const GemmProduct g = product(item / (row_blocks * column_blocks));
        const int64_t r = item / column_blocks % row_blocks, c = item % column_blocks;
        const int64_t p0 = c * panel_count / column_blocks, p1 = (c + 1) * panel_count / column_blocks;
        block_(g, r * rows, std::min(g.m, (r + 1) * rows), j + p0 * tile_.columns,
               std::min(end, j + p1 * tile_.columns), packed + p0 * tile_.columns * g.k,
               work.data<float>() + thread_index() * work_floats);
      });
    }
  }

  /// `count` small products, each by one thread from packing to the last step.
  template <class At>
  void apart(int64_t count, const At& product) {
    const GemmProduct first = product(0);
    const int64_t work_floats = round_up(workspace_(rows_, first.k), 16), panel_floats = columns_ * first.k;
    const Tensor work = ctx_.allocate(DType::f32, {ctx_.threads(), work_floats + round_up(panel_floats, 16)});
    const int64_t grain =
        std::max<int64_t>(kSmall / 8 / std::max<int64_t>(first.m * first.n * first.k, 1), 1);
    parallel_range(ctx_.threads(), count, grain, [&](int64_t begin, int64_t end) {
      float* own = work.data<float>() + thread_index() * (work_floats + round_up(panel_floats, 16));
      for (int64_t i = begin; i < end; ++i) {
        const GemmProduct g = product(i);
        for (int64_t j = 0; j < g.n; j += columns_) {
          const int64_t to = std::min(g.n, j + columns_);
          pack_(g, j, to, own + work_floats);
          for (int64_t r = 0; r < g.m; r += rows_)
            block_(g, r, std::min(g.m, r + rows_), j, to, own + work_floats, own);
        }
      }
    });
  }

 private:
  Context& ctx_;
  decltype(&isa_base::gemm_pack_b) pack_;
  decltype(&isa_base::gemm_block) block_;
  decltype(&isa_base::gemm_workspace) workspace_;
  GemmTile tile_;
  int64_t columns_, rows_;
};

/// The values in f32; what is broadcast stays so.
Tensor widened(Context& ctx, const Tensor& x) {
  std::vector<int64_t> once, strides;
  for (int i = 0; i < x.rank(); ++i)
    once.push_back(x.stride(i) == 0 ? std::min<int64_t>(x.dim(i), 1) : x.dim(i));
  const Tensor from = x.strided(Shape(once), x.strides()), y = ctx.allocate(DType::f32, Shape(once));
  const RowOffsets rows(from, 1);
  const int64_t n = from.dim(-1), size = static_cast<int64_t>(size_of(x.dtype()));
  parallel_range(ctx.threads(), rows.count(),
                 std::max<int64_t>(kParallelBytes / (6 * std::max<int64_t>(n, 1)), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i)
                     convert(static_cast<const char*>(from.raw()) + rows.offset(i) * size, x.dtype(),
                             y.data<float>() + i * n, DType::f32, n);
                 });
  for (int i = 0; i < x.rank(); ++i) strides.push_back(x.stride(i) == 0 ? 0 : y.stride(i));
  return y.strided(x.shape(), Shape(strides));
}

}  // namespace

void CpuBackend::gemm(Context& ctx, const GemmArgs& args) {
  const DType t = args.a.dtype();
  if (args.c.dtype() != t) {  // sums that stay f32
    GemmArgs wide = args;
    wide.a = widened(ctx, args.a), wide.b = widened(ctx, args.b);
    return CpuBackend::gemm(ctx, wide);
  }
  // f32 and narrower go through our own packed product: it does not depend on the thread count, widens while
  // it packs, finishes C in the cache, and has AVX-512 where OpenBLAS may have been told otherwise. f64, and
  // processors without our vector bodies, go through BLAS.
  const bool packed = t != DType::f64 && best_isa() != Isa::base;
  // Rows that overlap (broadcast or Toeplitz views) are not BLAS matrices: such operands are copied.
  const auto usable = [&](const Tensor& x) {
    if (packed || leading(x) >= x.dim(-1)) return x;
    const Tensor plain = ctx.allocate(x.dtype(), x.shape());
    CpuBackend::transpose_copy(ctx, {x, plain});
    return plain;
  };
  const Tensor a = usable(args.a), b = usable(args.b);
  const RowOffsets a_at(a, 2), b_at(b, 2), c_at(args.c, 2);
  GemmProduct p{};
  p.dtype = t;
  p.m = args.c.dim(-2), p.n = args.c.dim(-1), p.k = a.dim(args.a_transposed ? -2 : -1);
  p.lda = leading(a), p.ldb = leading(b), p.ldc = leading(args.c);
  p.ta = args.a_transposed, p.tb = args.b_transposed;
  p.bias = args.bias.raw();
  p.alpha = args.alpha, p.accumulate = args.accumulate;
  p.activation = args.activation;
  const int64_t batch = a_at.count();
  const bool shared = b.rank() == 2;
  const auto product = [&](int64_t i) {
    const auto at = [&](const Tensor& x, int64_t offset) {
      return static_cast<char*>(x.raw()) + offset * static_cast<int64_t>(size_of(t));
    };
    GemmProduct q = p;
    q.a = at(a, a_at.offset(i));
    q.b = at(b, shared ? 0 : b_at.offset(i));
    q.c = at(args.c, c_at.offset(i));
    return q;
  };
  if (packed) {
    if (p.tb && !p.ta && p.m <= kDotRows && (!shared || batch == 1)) {
      const auto dot = ATTNBENCH_BEST(gemm_dot);
      const int64_t work = std::max<int64_t>(p.m * p.k, 1);
      if (batch >= ctx.threads())
        parallel_range(ctx.threads(), batch, std::max<int64_t>(kSmall / 8 / (work * p.n), 1),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) dot(product(i), 0, p.n);
                       });
      else
        for (int64_t i = 0; i < batch; ++i)
          parallel_range(
              ctx.threads(), p.n, std::max<int64_t>(kSmall / 8 / work, 4),
              [&](int64_t begin, int64_t end) { dot(product(i), begin, end); }, 4);
      return;
    }
    PackedGemm run(ctx, p);
    const bool small = p.m * p.n * p.k < kSmall * ctx.threads();
    if (shared && batch > 0) return run.together(batch, product);
    if (small || batch >= 8 * ctx.threads()) return run.apart(batch, product);
    for (int64_t i = 0; i < batch; ++i) run.together(1, [&](int64_t) { return product(i); });
    return;
  }
  blas_int(std::max({p.m, p.n, p.k, p.lda, p.ldb, p.ldc}));
  const BlasThreads scope(ctx.threads());
  const auto one = [&](int64_t i, int threads) {
    const GemmProduct q = product(i);
    if (t == DType::f32) return product_f32(threads, q);
    if (t == DType::f64) return product_f64(threads, q);
    product_narrow(ctx, q, t);
  };
  // Many products: one per thread, each single-threaded. Few: BLAS threads inside.
  if ((t == DType::f32 || t == DType::f64) && batch >= 2 * ctx.threads() && batch > 1)
    parallel_range(ctx.threads(), batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) one(i, 1);
    });
  else
    for (int64_t i = 0; i < batch; ++i) one(i, ctx.threads());
}

}  // namespace attnbench
