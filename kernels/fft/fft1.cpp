#include "kernels/fft/fft1.hpp"

#include <bit>
#include <cmath>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {
namespace {

/// The first `axes` extents of t with `more` behind them.
Shape extended(const Shape& s, int axes, std::initializer_list<int64_t> more) {
  int64_t dims[Shape::kMaxRank];
  int rank = 0;
  for (int i = 0; i < axes; ++i) dims[rank++] = s[i];
  for (int64_t d : more) dims[rank++] = d;
  return Shape(std::span<const int64_t>(dims, static_cast<size_t>(rank)));
}

bool same_lead(const Shape& a, const Shape& b, int axes) {
  for (int i = 0; i < axes; ++i)
    if (a[i] != b[i]) return false;
  return true;
}

}  // namespace

int64_t fft1_flops(Fft1Args::Kind kind, int64_t batch, int64_t length) {
  using Kind = Fft1Args::Kind;
  if (length <= 1) return 0;
  const double complex = 5.0 * static_cast<double>(length) * std::log2(static_cast<double>(length));
  const bool half = kind == Kind::real_to_half || kind == Kind::half_to_real;
  return batch * std::llround(half ? complex / 2.0 : complex);
}

void fft1(Context& ctx, const Fft1Args& args) {
  using Kind = Fft1Args::Kind;
  const ArgumentCheck check(ctx, "fft1");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const int64_t n = args.length, half = n / 2 + 1;
  if (n < 1) check.fail("the length is " + std::to_string(n) + "; it must be 1 or more");
  const int inner_x = real_x ? 1 : 2, inner_y = real_y ? 1 : 2;
  check.rank({"x", args.x}, inner_x, Shape::kMaxRank);
  check.rank({"y", args.y}, inner_y, Shape::kMaxRank);
  const int outer = args.x.rank() - inner_x;
  if (outer != args.y.rank() - inner_y || !same_lead(args.x.shape(), args.y.shape(), outer))
    check.fail("'x' " + args.x.shape().str() + " and 'y' " + args.y.shape().str() +
               " differ in their batch axes");
  const auto line = [&](NamedTensor t, bool real, bool spectrum) {
    const int64_t points = t.tensor.dim(outer);
    if (!real && t.tensor.dim(-1) != 2)
      check.fail("the last axis of '" + std::string(t.name) + "' " + t.tensor.shape().str() +
                 " must be 2 (re, im)");
    if (spectrum ? points != half : points > n)
      check.fail("a line of '" + std::string(t.name) + "' " + t.tensor.shape().str() + " has " +
                 std::to_string(points) + " points; a transform of " + std::to_string(n) + " takes " +
                 (spectrum ? "" : "at most ") + std::to_string(spectrum ? half : n));
    check.packed(t, real ? 1 : 2);
  };
  line({"x", args.x}, real_x, real_y);
  line({"y", args.y}, real_y, real_x);
  if (real_x || real_y)
    check.disjoint({"x", args.x}, {"y", args.y});
  else
    check.same_or_disjoint({"x", args.x}, {"y", args.y});
  int64_t batch = 1;
  for (int i = 0; i < outer; ++i) batch *= args.x.dim(i);
  Cost cost;
  cost.matmul = fft1_flops(args.kind, batch, n);
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().fft1(ctx, args);
}

Cost complex_pointwise_cost(ComplexArgs::Op op, int64_t n) {
  using Op = ComplexArgs::Op;
  Cost c;
  switch (op) {
    case Op::multiply:
    case Op::multiply_conj:
      c.elementwise = 6 * n;
      break;
    case Op::divide:
      c.elementwise = 9 * n;
      c.special = 2 * n;
      break;
    case Op::magnitude:
      c.elementwise = 3 * n;
      c.special = n;
      break;
    case Op::angle:
      c.special = n;
      break;
    case Op::polar:
      c.elementwise = 2 * n;
      c.special = 2 * n;
      break;
  }
  return c;
}

void complex_pointwise(Context& ctx, const ComplexArgs& args) {
  using Op = ComplexArgs::Op;
  const ArgumentCheck check(ctx, "complex_pointwise");
  const bool unary = args.op == Op::magnitude || args.op == Op::angle, real_in = args.op == Op::polar;
  check.present({{"a", args.a}, {"y", args.y}});
  check.dtype({"a", args.a}, {DType::f32});
  check.dtype({"y", args.y}, {DType::f32});
  if (unary && args.b) check.fail("magnitude and angle take no 'b'");
  if (args.eps < 0 || args.snap < 0)
    check.fail("eps " + std::to_string(args.eps) + " and snap " + std::to_string(args.snap) +
               " must not be negative");
  check.rank({"a", args.a}, real_in ? 1 : 2, Shape::kMaxRank - 1);
  if (!real_in && args.a.dim(-1) != 2)
    check.fail("the last axis of 'a' " + args.a.shape().str() + " must be 2 (re, im)");
  const int axes = args.a.rank() - (real_in ? 0 : 1);
  const Shape numbers = extended(args.a.shape(), axes, {});
  check.shape({"y", args.y}, unary ? numbers : extended(numbers, axes, {2}));
  check.packed({"a", args.a}, real_in ? 1 : 2);
  check.packed({"y", args.y}, unary ? 1 : 2);
  ComplexArgs expanded = args;
  int64_t read = args.a.nbytes();
  if (!unary) {
    check.present({{"b", args.b}});
    check.dtype({"b", args.b}, {DType::f32});
    const int own = args.b.rank() - (real_in ? 0 : 1);
    if (own < 1 || own > axes || (!real_in && args.b.dim(-1) != 2))
      check.fail("'b' " + args.b.shape().str() + " cannot be broadcast to " + args.a.shape().str());
    Shape shape = numbers, strides = numbers;
    for (int i = 0; i < axes; ++i) {
      const int at = i - (axes - own);
      const int64_t extent = at < 0 ? 1 : args.b.dim(at);
      if (extent != 1 && extent != numbers[i])
        check.fail("'b' " + args.b.shape().str() + " cannot be broadcast to " + args.a.shape().str());
      strides[i] = extent == 1 ? 0 : args.b.stride(at);
    }
    if (args.b.numel() > 0 && args.b.dim(own - 1) != 1) check.packed({"b", args.b}, real_in ? 1 : 2);
    if (!real_in) {
      if (args.b.stride(-1) != 1) check.packed({"b", args.b}, 1);
      shape = extended(shape, axes, {2}), strides = extended(strides, axes, {1});
    }
    check.disjoint({"b", args.b}, {"y", args.y});
    read += args.b.nbytes();
    expanded.b = args.b.strided(shape, strides);
  }
  if (unary || real_in)
    check.disjoint({"a", args.a}, {"y", args.y});
  else
    check.same_or_disjoint({"a", args.a}, {"y", args.y});
  Cost cost = complex_pointwise_cost(args.op, numbers.numel());
  if (args.power != 1.0f) {
    if (!unary && !real_in) check.fail("only magnitude and polar take a power");
    cost.special += numbers.numel();
  }
  cost.bytes_read = read;
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().complex_pointwise(ctx, expanded);
}

int64_t toeplitz_length(int64_t outputs, int64_t inputs) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(outputs + inputs - 1)));
}

void toeplitz_product(Context& ctx, const ToeplitzArgs& args) {
  using Kind = Fft1Args::Kind;
  const ArgumentCheck check(ctx, "toeplitz_product");
  check.present({{"c", args.c}, {"x", args.x}, {"y", args.y}});
  const int rank = args.x.rank();
  check.rank({"x", args.x}, 1, Shape::kMaxRank - 2);
  check.rank({"c", args.c}, rank, rank);
  check.rank({"y", args.y}, rank, rank);
  const int64_t m = args.x.dim(-1), n = args.y.dim(-1);
  if (m < 1 || n < 1) check.fail("'x' " + args.x.shape().str() + " has no points");
  check.shape({"y", args.y}, extended(args.x.shape(), rank - 1, {n}));
  Shape kernels = args.c.shape();
  for (int i = 0; i < rank - 1; ++i)
    if (kernels[i] != 1 && kernels[i] != args.x.dim(i))
      check.fail("'c' " + kernels.str() + " cannot be broadcast to " + args.x.shape().str());
  if (kernels[-1] != n + m - 1)
    check.fail("'c' " + kernels.str() + " must have N + M - 1 = " + std::to_string(n + m - 1) + " entries");
  // The inverse transform of X conj(C) at s is sum_j x_j c[j - s], so y_i stands at s = i - (N - 1): nothing
  // is reversed, and no index wraps around because j - s < N + M - 1.
  const int64_t length = toeplitz_length(n, m), bins = length / 2 + 1;
  const Tensor spectrum = ctx.allocate(DType::f32, extended(kernels, rank - 1, {bins, 2}));
  const Tensor lines = ctx.allocate(DType::f32, extended(args.x.shape(), rank - 1, {bins, 2}));
  const Tensor product = ctx.allocate(DType::f32, lines.shape());
  fft1(ctx, {Kind::real_to_half, args.c, spectrum, length, 1.0f});
  fft1(ctx, {Kind::real_to_half, args.x, lines, length, 1.0f});
  ComplexArgs multiply;
  multiply.op = ComplexArgs::Op::multiply_conj;
  multiply.a = lines, multiply.b = spectrum, multiply.y = product;
  complex_pointwise(ctx, multiply);
  const Tensor whole = ctx.allocate(DType::f32, extended(args.x.shape(), rank - 1, {length}));
  fft1(ctx, {Kind::half_to_real, product, whole, length, 1.0f / static_cast<float>(length)});
  // Index i - (N - 1) mod length: i = 0 .. N-2 at the end, i = N - 1 at 0.
  if (n > 1) transpose_copy(ctx, {whole.slice(-1, length - n + 1, length), args.y.slice(-1, 0, n - 1)});
  transpose_copy(ctx, {whole.slice(-1, 0, 1), args.y.slice(-1, n - 1, n)});
}

Cost toeplitz_attention_cost(const ToeplitzAttentionArgs& args) {
  const int64_t heads = args.q.dim(0) * args.q.dim(1), n = args.q.dim(2), f = args.q.dim(3),
                m = args.k.dim(2), e = args.v.dim(3), lines = f * (e + 1),
                bins = args.fft[0] * (args.fft[1] / 2 + 1);
  Cost c;
  c.matmul = 2 * fft2_flops(Fft2Args::Kind::real_to_half, lines, args.fft[0], args.fft[1]);
  c.elementwise = 6 * bins * lines + m * f * e + 2 * n * lines;
  c.special = n * e;
  c = c * heads;
  c.bytes_read = args.q.nbytes() + args.k.nbytes() + args.v.nbytes() + args.spectrum.nbytes();
  c.bytes_written = args.o.nbytes();
  return c;
}

void toeplitz_attention(Context& ctx, const ToeplitzAttentionArgs& args) {
  const ArgumentCheck check(ctx, "toeplitz_attention");
  check.present({{"q", args.q}, {"k", args.k}, {"v", args.v}, {"spectrum", args.spectrum}, {"o", args.o}});
  for (const NamedTensor& t : {NamedTensor{"q", args.q}, NamedTensor{"k", args.k}, NamedTensor{"v", args.v},
                               NamedTensor{"o", args.o}, NamedTensor{"spectrum", args.spectrum}}) {
    check.dtype(t, {DType::f32});
    check.rank(t, 4, 4);
  }
  const int64_t b = args.q.dim(0), h = args.q.dim(1), n = args.q.dim(2), f = args.q.dim(3), m = args.k.dim(2),
                e = args.v.dim(3);
  check.shape({"k", args.k}, {b, h, m, f});
  check.shape({"v", args.v}, {b, h, m, e});
  check.shape({"o", args.o}, {b, h, n, e});
  if (args.q_grid[0] * args.q_grid[1] != n || args.k_grid[0] * args.k_grid[1] != m)
    check.fail("grids of " + std::to_string(args.q_grid[0]) + " x " + std::to_string(args.q_grid[1]) +
               " and " + std::to_string(args.k_grid[0]) + " x " + std::to_string(args.k_grid[1]) +
               " hold other than " + std::to_string(n) + " queries and " + std::to_string(m) + " keys");
  for (int i : {0, 1})
    if (args.fft[i] < args.q_grid[i] + args.k_grid[i] - 1)
      check.fail("a transform of " + std::to_string(args.fft[i]) + " points along axis " + std::to_string(i) +
                 " wraps around; " + std::to_string(args.q_grid[i] + args.k_grid[i] - 1) + " are needed");
  if (args.chunk < 1) check.fail("the chunk is " + std::to_string(args.chunk) + "; it must be 1 or more");
  const int64_t kernels = args.spectrum.dim(0);
  if (kernels != 1 && kernels != h)
    check.fail("'spectrum' has " + std::to_string(kernels) + " kernels for " + std::to_string(h) + " heads");
  const Shape want = {kernels, args.fft[0], args.fft[1] / 2 + 1, 2};
  check.shape({"spectrum", args.spectrum}, want);
  check.packed({"spectrum", args.spectrum}, 3);
  for (const NamedTensor& t :
       {NamedTensor{"q", args.q}, NamedTensor{"k", args.k}, NamedTensor{"v", args.v}}) {
    check.packed(t);
    check.disjoint(t, {"o", args.o});
  }
  check.packed({"o", args.o});
  check.disjoint({"spectrum", args.spectrum}, {"o", args.o});
  ctx.cost().charge(toeplitz_attention_cost(args));
  if (args.o.numel() > 0) ctx.backend().toeplitz_attention(ctx, args);
}

}  // namespace attnbench
