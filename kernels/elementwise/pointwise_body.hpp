// Pointwise functions and row reductions over vectors, compiled once per instruction set; see isa.hpp.
#include "kernels/core/simd.hpp"
#include "kernels/elementwise/pointwise_rows.hpp"

namespace attnbench {
// The C library's functions, for arguments beyond kTrigLimit and for powers; defined in cpu.cpp, compiled for
// every machine.
float far_sin(float x);
float far_cos(float x);
float far_pow(float x, float y);
}  // namespace attnbench

namespace attnbench::ATTNBENCH_ISA {
namespace {

using Op = PointwiseArgs::Op;

template <int kQuarter>
ATTNBENCH_INLINE F trig(F x) {
  F y = sin_quarter(x, kQuarter);
  const F a = as_float(as_uint(x) & 0x7fffffffu);
  const I near = a < splat(kTrigLimit);
  if (__builtin_expect(!all_true(near), 0))
    for (int l = 0; l < kLanes; ++l)
      if (!near[l]) y[l] = kQuarter == 0 ? far_sin(x[l]) : far_cos(x[l]);
  return y;
}

template <Op kOp>
ATTNBENCH_INLINE F apply(F a, F b, F alpha, F beta) {
  if constexpr (kOp == Op::add) return a + b;
  if constexpr (kOp == Op::sub) return a - b;
  if constexpr (kOp == Op::mul) return a * b;
  if constexpr (kOp == Op::affine) return alpha * a + beta;
  if constexpr (kOp == Op::clamp) {  // comparisons with NaN are false, so it passes
    const F low = a < alpha ? alpha : a;
    return low > beta ? beta : low;
  }
  if constexpr (kOp == Op::relu) return a < F{} ? F{} : a;
  if constexpr (kOp == Op::gelu_erf) return gelu(a);
  if constexpr (kOp == Op::gelu_tanh)  // tanh(u) = 2 sigmoid(2 u) - 1; sqrt(8 / pi) = 1.595769
    return a * sigmoid(splat(1.59576912f) * a * (splat(0.044715f) * a * a + 1.0f));
  if constexpr (kOp == Op::silu) return a * sigmoid(a);
  if constexpr (kOp == Op::sigmoid) return sigmoid(a);
  if constexpr (kOp == Op::exp) return exp(a);
  if constexpr (kOp == Op::sin) return trig<0>(a);
  if constexpr (kOp == Op::cos) return trig<1>(a);
  if constexpr (kOp == Op::silu_mul) return a * sigmoid(a) * b;
  if constexpr (kOp == Op::sigmoid_mul) return sigmoid(a) * b;
  if constexpr (kOp == Op::gelu_mul) return gelu(a) * b;
  if constexpr (kOp == Op::div) return a / b;
  if constexpr (kOp == Op::max) return a > b || a != a ? a : b;  // a comparison with NaN in b is false
  if constexpr (kOp == Op::min) return a < b || a != a ? a : b;
  if constexpr (kOp == Op::prelu) return a < F{} ? a * b : a;
  if constexpr (kOp == Op::abs) return as_float(as_uint(a) & 0x7fffffffu);
  if constexpr (kOp == Op::square) return a * a;
  if constexpr (kOp == Op::sqrt) return sqrt(a);
  if constexpr (kOp == Op::rsqrt) return 1.0f / sqrt(a);
  if constexpr (kOp == Op::log) return log(a);
  if constexpr (kOp == Op::tanh) return tanh(a);
  if constexpr (kOp == Op::softplus) {  // e^a may overflow: max(a, 0) + log(1 + e^-|a|)
    const F m = as_float(as_uint(a) & 0x7fffffffu);
    return (a < F{} ? F{} : a) + log1p(exp(-m));
  }
  if constexpr (kOp == Op::elu) return a < F{} ? alpha * expm1(a) : a;
  if constexpr (kOp == Op::leaky_relu) return a < F{} ? alpha * a : a;
  if constexpr (kOp == Op::pow) {
    F y;
    for (int l = 0; l < kLanes; ++l) y[l] = far_pow(a[l], alpha[l]);
    return y;
  }
}

template <Op kOp, class T>
void rows_of(const PointwiseRows& w) {
  constexpr bool binary = is_binary(kOp);
  const F alpha = splat(w.alpha), beta = splat(w.beta);
  for (int64_t r = 0; r < w.rows; ++r) {
    const T* a = static_cast<const T*>(w.a) + r * w.stride_a;
    const T* b = binary ? static_cast<const T*>(w.b) + r * w.stride_b : nullptr;
    T* y = static_cast<T*>(w.y) + r * w.stride_y;
    const bool one_a = w.step_a == 0, one_b = binary && w.step_b == 0;
    const F all_a = one_a ? splat(load_part(a, 1)[0]) : F{};
    F all_b{};
    if constexpr (binary)
      if (one_b) all_b = splat(load_part(b, 1)[0]);
    int64_t i = 0;
    for (; i + kLanes <= w.n; i += kLanes) {
      F vb = all_b;
      if constexpr (binary)
        if (!one_b) vb = load(b + i);
      store(y + i, apply<kOp>(one_a ? all_a : load(a + i), vb, alpha, beta));
    }
    if (const int64_t rest = w.n - i; rest > 0) {
      F vb = all_b;
      if constexpr (binary)
        if (!one_b) vb = load_part(b + i, rest);
      store_part(y + i, apply<kOp>(one_a ? all_a : load_part(a + i, rest), vb, alpha, beta), rest);
    }
  }
}

template <class T>
void choose(const PointwiseRows& w) {
  switch (w.op) {
#define ATTNBENCH_CASE(op) \
  case Op::op:             \
    return rows_of<Op::op, T>(w);
    ATTNBENCH_CASE(add)
    ATTNBENCH_CASE(sub)
    ATTNBENCH_CASE(mul)
    ATTNBENCH_CASE(affine)
    ATTNBENCH_CASE(clamp)
    ATTNBENCH_CASE(relu)
    ATTNBENCH_CASE(gelu_erf)
    ATTNBENCH_CASE(gelu_tanh)
    ATTNBENCH_CASE(silu)
    ATTNBENCH_CASE(sigmoid)
    ATTNBENCH_CASE(exp)
    ATTNBENCH_CASE(cos)
    ATTNBENCH_CASE(sin)
    ATTNBENCH_CASE(silu_mul)
    ATTNBENCH_CASE(sigmoid_mul)
    ATTNBENCH_CASE(gelu_mul)
    ATTNBENCH_CASE(div)
    ATTNBENCH_CASE(max)
    ATTNBENCH_CASE(min)
    ATTNBENCH_CASE(prelu)
    ATTNBENCH_CASE(abs)
    ATTNBENCH_CASE(square)
    ATTNBENCH_CASE(sqrt)
    ATTNBENCH_CASE(rsqrt)
    ATTNBENCH_CASE(log)
    ATTNBENCH_CASE(tanh)
    ATTNBENCH_CASE(softplus)
    ATTNBENCH_CASE(elu)
    ATTNBENCH_CASE(leaky_relu)
    ATTNBENCH_CASE(pow)
#undef ATTNBENCH_CASE
  }
}

template <class T>
double sum_of(const T* x, const T* w, int64_t n) {
  // Four sums hide the latency of the additions; they are joined in a fixed order.
  D s[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) {
      const D v = __builtin_convertvector(load(x + i + u * kLanes), D);
      s[u] += w ? v * __builtin_convertvector(load(w + i + u * kLanes), D) : v;
    }
  for (; i < n; i += kLanes) {
    const int64_t rest = n - i < kLanes ? n - i : kLanes;
    const D v = __builtin_convertvector(rest == kLanes ? load(x + i) : load_part(x + i, rest), D);
    s[0] += w ? v * __builtin_convertvector(rest == kLanes ? load(w + i) : load_part(w + i, rest), D) : v;
  }
  const D t = (s[0] + s[1]) + (s[2] + s[3]);
  double sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += t[l];
  return sum;
}

}  // namespace

void pointwise_rows(const PointwiseRows& w) {
  if (w.dtype == DType::f32) return choose<float>(w);
  if (w.dtype == DType::bf16) return choose<bf16>(w);
  return choose<f16>(w);
}

double sum_run(DType t, const void* x, const void* w, int64_t n) {
  if (t == DType::f32) return sum_of(static_cast<const float*>(x), static_cast<const float*>(w), n);
  if (t == DType::bf16) return sum_of(static_cast<const bf16*>(x), static_cast<const bf16*>(w), n);
  return sum_of(static_cast<const f16*>(x), static_cast<const f16*>(w), n);
}

float max_run(DType t, const void* x, int64_t n) {
  if (t == DType::f32) return max_of_row(static_cast<const float*>(x), n);
  if (t == DType::bf16) return max_of_row(static_cast<const bf16*>(x), n);
  return max_of_row(static_cast<const f16*>(x), n);
}

}  // namespace attnbench::ATTNBENCH_ISA
