#include "kernels/scan/scan.hpp"

#include <bit>

#include "kernels/core/backend.hpp"
#include "kernels/core/check.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/fft/fft1.hpp"

namespace attnbench {
namespace {

Shape with_last(const Shape& s, int axes, std::initializer_list<int64_t> more) {
  int64_t dims[Shape::kMaxRank];
  int rank = 0;
  for (int i = 0; i < axes; ++i) dims[rank++] = s[i];
  for (int64_t d : more) dims[rank++] = d;
  return Shape(std::span<const int64_t>(dims, static_cast<size_t>(rank)));
}

}  // namespace

Cost selective_scan_cost(const SelectiveScanArgs& args) {
  const int64_t d = args.u.dim(-1), s = args.b.dim(-1), tokens = d > 0 ? args.u.numel() / d : 0;
  Cost c;
  c.matmul = 6 * tokens * d * s;
  c.special = tokens * d * s;
  c.elementwise = 2 * tokens * d;
  c.bytes_read = args.u.nbytes() + args.delta.nbytes() + args.a.nbytes() + args.b.nbytes() + args.c.nbytes() +
                 (args.skip ? args.skip.nbytes() : 0);
  c.bytes_written = args.y.nbytes();
  if (args.z) {
    c.special += tokens * d;
    c.elementwise += tokens * d;
    c.bytes_read += args.z.nbytes();
  }
  if (args.softplus) {
    c.special += 2 * tokens * d;
    c.elementwise += tokens * d;
  }
  if (args.bias) c.bytes_read += args.bias.nbytes();
  return c;
}

void selective_scan(Context& ctx, const SelectiveScanArgs& args) {
  const ArgumentCheck check(ctx, "selective_scan");
  check.present(
      {{"u", args.u}, {"delta", args.delta}, {"a", args.a}, {"b", args.b}, {"c", args.c}, {"y", args.y}});
  check.dtype({"u", args.u}, {DType::f32, DType::bf16, DType::f16});
  check.rank({"u", args.u}, 2, Shape::kMaxRank);
  check.rank({"b", args.b}, args.u.rank(), args.u.rank());
  const int64_t d = args.u.dim(-1), s = args.b.dim(-1);
  const int outer = args.u.rank() - 1;
  const Shape states = with_last(args.u.shape(), outer, {s});
  std::vector<NamedTensor> wide = {{"delta", args.delta}, {"y", args.y}};
  if (args.z) {
    check.present({{"z", args.z}});
    wide.push_back({"z", args.z});
  }
  for (const NamedTensor& t : wide) {
    check.same_dtype({"u", args.u}, t);
    check.same_shape({"u", args.u}, t);
    check.packed(t);
  }
  check.packed({"u", args.u});
  for (const NamedTensor& t : {NamedTensor{"b", args.b}, NamedTensor{"c", args.c}}) {
    check.same_dtype({"u", args.u}, t);
    check.shape(t, states);
    check.packed(t);
    check.disjoint(t, {"y", args.y});
  }
  check.dtype({"a", args.a}, {DType::f32});
  check.shape({"a", args.a}, {d, s});
  check.packed({"a", args.a}, 2);
  check.disjoint({"a", args.a}, {"y", args.y});
  if (args.bias && !args.softplus) check.fail("'bias' belongs to softplus, which is not set");
  for (const NamedTensor& t : {NamedTensor{"skip", args.skip}, NamedTensor{"bias", args.bias}}) {
    if (!t.tensor) continue;
    check.present({t});
    check.dtype(t, {DType::f32});
    check.shape(t, {d});
    check.packed(t);
    check.disjoint(t, {"y", args.y});
  }
  check.same_or_disjoint({"u", args.u}, {"y", args.y});
  check.same_or_disjoint({"delta", args.delta}, {"y", args.y});
  if (args.z) check.same_or_disjoint({"z", args.z}, {"y", args.y});
  ctx.cost().charge(selective_scan_cost(args));
  if (args.y.numel() > 0) ctx.backend().selective_scan(ctx, args);
}

void iir(Context& ctx, const IirArgs& args) {
  const ArgumentCheck check(ctx, "iir");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::f64});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.same_shape({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.same_or_disjoint({"x", args.x}, {"y", args.y});
  if (args.sections.empty() || args.sections.size() > 16)
    check.fail(std::to_string(args.sections.size()) + " sections; 1 to 16 are possible");
  Cost cost;
  cost.matmul = 10 * args.x.numel() * static_cast<int64_t>(args.sections.size());
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().iir(ctx, args);
}

void extend(Context& ctx, const ExtendArgs& args) {
  using Mode = ExtendArgs::Mode;
  const ArgumentCheck check(ctx, "extend");
  check.present({{"x", args.x}, {"y", args.y}});
  check.dtype({"x", args.x}, {DType::f32, DType::f64});
  check.same_dtype({"x", args.x}, {"y", args.y});
  check.rank({"x", args.x}, 1, Shape::kMaxRank);
  const int64_t n = args.x.dim(-1);
  if (args.before < 0 || args.after < 0)
    check.fail("extensions by " + std::to_string(args.before) + " and " + std::to_string(args.after) +
               " points must not be negative");
  const int64_t most = args.before > args.after ? args.before : args.after;
  const int64_t allowed = args.mode == Mode::zeros  ? INT64_MAX
                          : args.mode == Mode::edge ? (n > 0 ? INT64_MAX : 0)
                                                    : n - 1;
  if (most > 0 && most > allowed)
    check.fail("an extension by " + std::to_string(most) + " points needs more than the signal's " +
               std::to_string(n));
  check.shape({"y", args.y}, with_last(args.x.shape(), args.x.rank() - 1, {args.before + n + args.after}));
  check.packed({"x", args.x});
  check.packed({"y", args.y});
  check.disjoint({"x", args.x}, {"y", args.y});
  Cost cost;
  if (args.mode == Mode::odd && n > 0) cost.elementwise = 2 * (args.y.numel() - args.x.numel());
  cost.bytes_read = args.x.nbytes();
  cost.bytes_written = args.y.nbytes();
  ctx.cost().charge(cost);
  if (args.y.numel() > 0) ctx.backend().extend(ctx, args);
}

int64_t fir_length(int64_t n, int64_t taps) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n + taps - 1)));
}

void fir(Context& ctx, const FirArgs& args) {
  using Kind = Fft1Args::Kind;
  const ArgumentCheck check(ctx, "fir");
  check.present({{"x", args.x}, {"taps", args.taps}, {"y", args.y}});
  check.rank({"x", args.x}, 1, Shape::kMaxRank - 1);
  check.same_shape({"x", args.x}, {"y", args.y});
  check.rank({"taps", args.taps}, 1, 1);
  const int64_t n = args.x.dim(-1), k = args.taps.dim(0);
  if (k < 1) check.fail("there are no taps");
  if (args.x.numel() == 0) return;
  const int64_t length = fir_length(n, k), bins = length / 2 + 1;
  const Tensor response = ctx.allocate(DType::f32, {bins, 2});
  const Tensor spectrum = ctx.allocate(DType::f32, with_last(args.x.shape(), args.x.rank() - 1, {bins, 2}));
  fft1(ctx, {Kind::real_to_half, args.taps, response, length, 1.0f});
  fft1(ctx, {Kind::real_to_half, args.x, spectrum, length, 1.0f});
  ComplexArgs multiply;
  // Backwards in time is the conjugate response: no signal is reversed.
  multiply.op = args.reverse ? ComplexArgs::Op::multiply_conj : ComplexArgs::Op::multiply;
  multiply.a = multiply.y = spectrum;
  multiply.b = response;
  complex_pointwise(ctx, multiply);
  fft1(ctx, {Kind::half_to_real, spectrum, args.y, length, 1.0f / static_cast<float>(length)});
}

void analytic_signal(Context& ctx, const Tensor& x, const Tensor& y) {
  using Kind = Fft1Args::Kind;
  const ArgumentCheck check(ctx, "analytic_signal");
  check.present({{"x", x}, {"y", y}});
  check.rank({"x", x}, 1, Shape::kMaxRank - 1);
  check.shape({"y", y}, with_last(x.shape(), x.rank(), {2}));
  const int64_t n = x.dim(-1);
  if (x.numel() == 0) return;
  const int64_t half = n / 2 + 1, doubled = (n - 1) / 2;  // bins 1 .. doubled; the middle of an even n stays
  const Tensor spectrum = ctx.allocate(DType::f32, with_last(x.shape(), x.rank() - 1, {half, 2}));
  fft1(ctx, {Kind::real_to_half, x, spectrum, n, 1.0f});
  if (doubled > 0) {
    // One row of (re, im) numbers for pointwise, which wants packed rows.
    const Tensor rows = spectrum.reshape({x.numel() / n, 2 * half}).slice(1, 2, 2 + 2 * doubled);
    PointwiseArgs twice;
    twice.op = PointwiseArgs::Op::affine;
    twice.a = twice.y = rows;
    twice.alpha = 2.0f;
    pointwise(ctx, twice);
  }
  fft1(ctx, {Kind::complex_inverse, spectrum, y, n, 1.0f / static_cast<float>(n)});
}

Cost analytic_signal_cost(int64_t signals, int64_t n) {
  const int64_t half = n / 2 + 1, doubled = (n - 1) / 2;
  Cost c;
  c.matmul = fft1_flops(Fft1Args::Kind::real_to_half, signals, n) +
             fft1_flops(Fft1Args::Kind::complex_inverse, signals, n);
  c.elementwise = 2 * signals * doubled;
  c.bytes_read = 4 * signals * (n + 2 * doubled + 2 * half);
  c.bytes_written = 4 * signals * (2 * half + 2 * doubled + 2 * n);
  return c;
}

}  // namespace attnbench
