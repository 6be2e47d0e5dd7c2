// Matrix products through cuBLASLt: one plan per shape, bias in the epilogue, activations in a pass of their
// own.
//
// f32 means f32: CUBLAS_COMPUTE_32F without TF32. Sums split over K are joined in the compute type, never in
// the narrower output, so a result is rounded once. cuBLASLt's GELU is the tanh approximation and its ReLU
// need not pass NaN, so no activation is left to it; bf16 and f16 products with an activation are kept in f32
// for the pass.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
/// Hopper's fastest algorithms ask for up to 32 MiB; what an algorithm does not ask for is not allocated.
constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;
/// The bias is read in packs of 16 bytes at most. No preference tells the heuristic how a bias lies, so
/// others are left to a pass of their own.
constexpr int64_t kBiasAlign = 16;
/// Algorithms to try where a call refuses what the heuristic proposed.
constexpr int kCandidates = 8;
/// Products in one launch: batches become the third extent of the grid.
constexpr int64_t kMostBatch = 65535;

void check_cublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string text = std::string("gemm: ") + call + " failed: " + cublasLtGetStatusString(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(text);
  throw Error(text);
}
#define CUBLAS_CHECK(call) check_cublas((call), #call)

cudaDataType_t data_type(DType t) {
  switch (t) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

/// Everything that an algorithm's choice depends on.
struct Shape3 {
  DType type, out;
  int64_t m, n, k, lda, ldb, ldc;
  int64_t batch, a_step, b_step, c_step;
  bool ta, tb, bias, accumulate;
  // Largest powers of two up to 256 that divide the addresses, in bytes.
  int64_t a_align, b_align, c_align, bias_align;

  std::array<int64_t, 20> key() const {
    return {static_cast<int64_t>(type),
            static_cast<int64_t>(out),
            m,
            n,
            k,
            lda,
            ldb,
            ldc,
            batch,
            a_step,
            b_step,
            c_step,
            ta,
            tb,
            bias,
            accumulate,
            a_align,
            b_align,
            c_align,
            bias_align};
  }
};

/// Of an address and of those that lie multiples of `step` bytes behind it.
int64_t alignment(const void* p, int64_t step = 0) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(step) | 256;
  return static_cast<int64_t>(bits & (~bits + 1));
}

/// Our row-major matrices are the transposes of cuBLAS's column-major ones: C^T [N, M] = B^T A^T. So B is its
/// first operand, A its second, N its rows, and our bias per column its bias per row.
class Plan {
 public:
  /// `bias` has the alignment that the shape names; algorithms are chosen for it.
  Plan(cublasLtHandle_t handle, const Shape3& s, const void* bias) {
    const bool wide = s.type == DType::f64;
    const cudaDataType_t type = data_type(s.type), out = data_type(s.out);
    cublasLtMatmulDesc_t desc = nullptr;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&desc, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                          wide ? CUDA_R_64F : CUDA_R_32F));
    desc_.reset(desc);
    set(CUBLASLT_MATMUL_DESC_TRANSA, s.tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, s.ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (s.bias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
    const auto layout = [&](Layout& into, cudaDataType_t t, int64_t rows, int64_t columns, int64_t ld,
                            int64_t step) {
      cublasLtMatrixLayout_t l = nullptr;
      CUBLAS_CHECK(
          cublasLtMatrixLayoutCreate(&l, t, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), ld));
      into.reset(l);
      const auto batch = static_cast<int32_t>(s.batch);
      CUBLAS_CHECK(
          cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
      CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                                    sizeof step));
    };
    layout(b_, type, s.tb ? s.k : s.n, s.tb ? s.n : s.k, s.ldb, s.b_step);
    layout(a_, type, s.ta ? s.m : s.k, s.ta ? s.k : s.m, s.lda, s.a_step);
    layout(c_, out, s.n, s.m, s.ldc, s.c_step);
    cublasLtMatmulPreference_t made = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&made));
    const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy> preference(made);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(s.b_align));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(s.a_align));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(s.c_align));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(s.c_align));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, desc, b_.get(), a_.get(), c_.get(), c_.get(), made, kCandidates, candidates_.data(), &count_);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE)
      count_ = 0;
    else
      check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
    skip_bad();
  }

  /// Whether cuBLASLt has an algorithm for the shape, of those that no call has refused yet.
  bool usable() const { return at_ < count_; }
  size_t workspace_bytes() const { return candidates_[static_cast<size_t>(at_)].workspaceSize; }

  /// False when the call refuses the algorithm, before anything is launched; the plan goes to its next one.
  bool run(cublasLtHandle_t handle, double alpha, double beta, bool wide, const void* a, const void* b,
           void* c, const void* bias, void* workspace, cudaStream_t stream) {
    if (bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float narrow_scales[2] = {static_cast<float>(alpha), static_cast<float>(beta)};
    const double wide_scales[2] = {alpha, beta};
    const void* scales[2] = {wide ? static_cast<const void*>(wide_scales) : narrow_scales,
                             wide ? static_cast<const void*>(wide_scales + 1) : narrow_scales + 1};
    const cublasLtMatmulHeuristicResult_t& choice = candidates_[static_cast<size_t>(at_)];
    const cublasStatus_t status =
        cublasLtMatmul(handle, desc_.get(), scales[0], b, b_.get(), a, a_.get(), scales[1], c, c_.get(), c,
                       c_.get(), &choice.algo, workspace, choice.workspaceSize, stream);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
      ++at_;
      skip_bad();
      return false;
    }
    check_cublas(status, "cublasLtMatmul");
    return true;
  }

 private:
  struct Destroy {
    void operator()(cublasLtMatmulDescOpaque_t* p) const { cublasLtMatmulDescDestroy(p); }
    void operator()(cublasLtMatrixLayoutOpaque_t* p) const { cublasLtMatrixLayoutDestroy(p); }
    void operator()(cublasLtMatmulPreferenceOpaque_t* p) const { cublasLtMatmulPreferenceDestroy(p); }
  };
  using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy>;

  template <class V>
  void set(cublasLtMatmulDescAttributes_t attribute, V value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc_.get(), attribute, &value, sizeof value));
  }

  void skip_bad() {
    while (at_ < count_ && candidates_[static_cast<size_t>(at_)].state != CUBLAS_STATUS_SUCCESS) ++at_;
  }

  std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy> desc_;
  Layout a_, b_, c_;
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> candidates_{};  // best first
  int count_ = 0, at_ = 0;
};

/// The library's handle and the plans of all shapes so far, kept for the process.
class Plans {
 public:
  static Plans& instance() {
    static Plans plans;
    return plans;
  }
  cublasLtHandle_t handle() const { return handle_; }
  std::mutex& mutex() { return mutex_; }
  Plan& of(const Shape3& s, const void* bias) {
    std::unique_ptr<Plan>& plan = plans_[s.key()];
    if (!plan) plan = std::make_unique<Plan>(handle_, s, bias);
    return *plan;
  }

 private:
  Plans() { CUBLAS_CHECK(cublasLtCreate(&handle_)); }
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<std::array<int64_t, 20>, std::unique_ptr<Plan>> plans_;
};

// ---- what follows a product -------------------------------------------------------------------------------

struct FinishWork {
  const void *sums, *bias;  // either may be null
  void* c;
  DeviceRows sum_rows, c_rows;
  Divisor packs;
  bool accumulate;
  Activation activation;
};

template <class S>
__device__ S activate(Activation activation, S x) {
  switch (activation) {
    case Activation::relu:
      return x < S(0) ? S(0) : x;
    case Activation::gelu_erf:
      if constexpr (sizeof(S) == 8)
        return 0.5 * x * erfc(x * -0.70710678118654752440);
      else
        return gelu(x);
    case Activation::silu:
      return x / (S(1) + exp(-x));
    case Activation::none:
      break;
  }
  return x;
}

template <class S, class T>
__device__ S raise(T x) {
  if constexpr (std::is_same_v<T, double>)
    return x;
  else
    return widen(x);
}

/// c = act(sums + (accumulate ? c : 0) + bias), rounded once. sums may be c itself.
template <class S, class T, int N>
__global__ void __launch_bounds__(kThreads) finish_kernel(FinishWork w) {
  const T* bias = static_cast<const T*>(w.bias);
  const int64_t items = w.c_rows.count * w.packs.n, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t row = w.packs.of(i), column = (i - row * w.packs.n) * N;
    T* c = static_cast<T*>(w.c) + w.c_rows.offset(row) + column;
    S sum[N] = {};
    T t[N];
    if (w.sums) load_pack(static_cast<const S*>(w.sums) + w.sum_rows.offset(row) + column, sum);
    if (w.accumulate) {
      load_pack(c, t);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += raise<S>(t[j]);
    }
    if (bias) {
      load_pack(bias + column, t);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += raise<S>(t[j]);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const S y = activate(w.activation, sum[j]);
      if constexpr (std::is_same_v<T, double>)
        t[j] = y;
      else
        t[j] = narrow<T>(y);
    }
    store_pack(c, t);
  }
}

void finish(Context& ctx, const GemmArgs& args, const Tensor& sums, bool add_bias, bool accumulate) {
  const Tensor& c = args.c;
  FinishWork w{};
  w.sums = sums.raw(), w.c = c.raw(), w.bias = add_bias ? args.bias.raw() : nullptr;
  if (sums) w.sum_rows = DeviceRows(sums, 1);
  w.c_rows = DeviceRows(c, 1);
  w.accumulate = accumulate, w.activation = args.activation;
  const auto run = [&](auto sum, auto type, auto pack) {
    using S = typename decltype(sum)::type;
    using T = typename decltype(type)::type;
    constexpr int N = decltype(pack)::value;
    w.packs = Divisor(c.dim(-1) / N);
    finish_kernel<S, T, N>
        <<<grid_for(ctx, w.c_rows.count * w.packs.n, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  };
  using One = std::integral_constant<int, 1>;
  if (c.dtype() == DType::f64) return run(Type<double>{}, Type<double>{}, One{});
  by_float_type(c.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t bytes = 4 * static_cast<int64_t>(sizeof(T));
    if (packable(c, bytes) && (!sums || packable(sums, 16)) && (!w.bias || packable(args.bias, bytes)))
      run(Type<float>{}, type, std::integral_constant<int, 4>{});
    else
      run(Type<float>{}, type, One{});
  });
}

// ---- batches ----------------------------------------------------------------------------------------------

struct BatchAxis {
  int64_t extent, a, b, c;  // strides in elements
};

/// The row stride where there is one: at least the row, also where it does not matter.
int64_t leading(const Tensor& t) { return t.dim(-2) > 1 ? t.stride(-2) : std::max<int64_t>(t.dim(-1), 1); }

/// c = alpha a b + beta c (+ bias) for all batches; false, with nothing done, when cuBLASLt has no algorithm
/// for the shape with this epilogue.
bool multiply(Context& ctx, const GemmArgs& args, const Tensor& a, const Tensor& b, const Tensor& c,
              bool bias, bool accumulate) {
  Shape3 s{};
  s.type = a.dtype(), s.out = c.dtype();
  s.m = c.dim(-2), s.n = c.dim(-1), s.k = a.dim(args.a_transposed ? -2 : -1);
  s.lda = leading(a), s.ldb = leading(b), s.ldc = leading(c);
  s.ta = args.a_transposed, s.tb = args.b_transposed, s.bias = bias, s.accumulate = accumulate;
  std::vector<BatchAxis> axes;
  for (int i = 0; i < c.rank() - 2; ++i) {
    if (c.dim(i) == 1) continue;
    const BatchAxis axis{c.dim(i), a.stride(i), b.rank() == 2 ? 0 : b.stride(i), c.stride(i)};
    if (!axes.empty()) {
      BatchAxis& last = axes.back();
      if (last.a == axis.a * axis.extent && last.b == axis.b * axis.extent &&
          last.c == axis.c * axis.extent) {
        last = {last.extent * axis.extent, axis.a, axis.b, axis.c};
        continue;
      }
    }
    axes.push_back(axis);
  }
  // Batches of rows that share B and continue each other are one matrix.
  while (!axes.empty() && axes.back().b == 0 && !s.ta) {
    const BatchAxis& last = axes.back();
    if (s.m == 1 && last.a >= s.k && last.c >= s.n)
      s.lda = last.a, s.ldc = last.c;
    else if (last.a != s.m * s.lda || last.c != s.m * s.ldc)
      break;
    s.m *= last.extent;
    axes.pop_back();
  }
  // The longest axis is one strided batch, the others are a loop.
  BatchAxis inner{1, 0, 0, 0};
  if (!axes.empty()) {
    const auto longest = std::max_element(
        axes.begin(), axes.end(), [](const BatchAxis& x, const BatchAxis& y) { return x.extent < y.extent; });
    inner = *longest;
    axes.erase(longest);
  }
  s.a_step = inner.a, s.b_step = inner.b, s.c_step = inner.c;
  int64_t outer = 1;
  for (const BatchAxis& axis : axes) outer *= axis.extent;

  const auto size = static_cast<int64_t>(size_of(s.type)), out_size = static_cast<int64_t>(size_of(s.out));
  Plans& plans = Plans::instance();
  const std::lock_guard lock(plans.mutex());
  Tensor workspace;
  bool first = true;
  for (int64_t o = 0; o < outer; ++o) {
    int64_t rest = o, at_a = 0, at_b = 0, at_c = 0;
    for (size_t i = axes.size(); i-- > 0;) {
      const int64_t at = rest % axes[i].extent;
      rest /= axes[i].extent;
      at_a += at * axes[i].a, at_b += at * axes[i].b, at_c += at * axes[i].c;
    }
    for (int64_t begin = 0; begin < inner.extent; begin += kMostBatch) {
      const char* pa = static_cast<const char*>(a.raw()) + (at_a + begin * inner.a) * size;
      const char* pb = static_cast<const char*>(b.raw()) + (at_b + begin * inner.b) * size;
      char* pc = static_cast<char*>(c.raw()) + (at_c + begin * inner.c) * out_size;
      s.batch = std::min(kMostBatch, inner.extent - begin);
      s.a_align = alignment(pa, inner.a * size), s.b_align = alignment(pb, inner.b * size);
      s.c_align = alignment(pc, inner.c * out_size);
      s.bias_align = bias ? alignment(args.bias.raw()) : 0;
      Plan& plan = plans.of(s, bias ? args.bias.raw() : nullptr);
      bool done = false;
      while (!done && plan.usable()) {
        const auto bytes = static_cast<int64_t>(plan.workspace_bytes());
        if (bytes > 0 && (!workspace || workspace.nbytes() < bytes))
          workspace = ctx.allocate(DType::u8, {bytes});
        done = plan.run(plans.handle(), static_cast<double>(args.alpha), accumulate ? 1.0 : 0.0,
                        s.type == DType::f64, pa, pb, pc, bias ? args.bias.raw() : nullptr, workspace.raw(),
                        stream_of(ctx));
      }
      if (!done) {
        if (first) return false;
        throw Unsupported("gemm: cuBLASLt has no algorithm for a part of the batch " + args.a.shape().str() +
                          " x " + args.b.shape().str());
      }
      first = false;
    }
  }
  return true;
}

}  // namespace

void CudaBackend::gemm(Context& ctx, const GemmArgs& args) {
  const DType t = args.a.dtype();
  const bool active = args.activation != Activation::none;
  if (args.a.dim(args.a_transposed ? -2 : -1) == 0)
    return finish(ctx, args, Tensor(), static_cast<bool>(args.bias), args.accumulate);
  // Rows that overlap (broadcast or Toeplitz views) are not matrices to cuBLAS: such operands are copied.
  const auto usable = [&](const Tensor& x) {
    if (leading(x) >= x.dim(-1)) return x;
    const Tensor plain = ctx.allocate(x.dtype(), x.shape());
    transpose_copy(ctx, {x, plain});
    return plain;
  };
  const Tensor a = usable(args.a), b = usable(args.b);
  const bool narrow_type = t == DType::bf16 || t == DType::f16;
  const auto refuse = [&] {
    throw Unsupported("gemm: cuBLASLt has no algorithm for " + std::string(name(t)) + " " +
                      args.a.shape().str() + " x " + args.b.shape().str());
  };
  // f64 has no bias epilogue.
  const bool epilogue = args.bias && t != DType::f64 && alignment(args.bias.raw()) >= kBiasAlign;
  if (narrow_type && args.c.dtype() == DType::f32) {
    if (!multiply(ctx, args, a, b, args.c, false, args.accumulate)) refuse();
    if (active) finish(ctx, args, args.c, false, false);
    return;
  }
  // What follows the product may not round a second time.
  if (!narrow_type || (!active && (epilogue || !args.bias))) {
    if (multiply(ctx, args, a, b, args.c, epilogue, args.accumulate)) {
      const bool rest = args.bias && !epilogue;
      if (rest || active) finish(ctx, args, args.c, rest, false);
      return;
    }
  }
  if (!narrow_type) {
    if (!epilogue || !multiply(ctx, args, a, b, args.c, false, args.accumulate)) refuse();
    return finish(ctx, args, args.c, true, false);
  }
  // In f32 until the end: one rounding.
  const Tensor sums = ctx.allocate(DType::f32, args.c.shape());
  if (!multiply(ctx, args, a, b, sums, false, false)) refuse();
  finish(ctx, args, sums, static_cast<bool>(args.bias), args.accumulate);
}

}  // namespace attnbench
