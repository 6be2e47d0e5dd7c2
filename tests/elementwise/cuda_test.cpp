// pointwise, cast and reduce on the GPU against the CPU's operators, and double sums.
#include <algorithm>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/norm/norm.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Op = PointwiseArgs::Op;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool binary(Op op) {
  return op == Op::add || op == Op::sub || op == Op::mul || op == Op::silu_mul || op == Op::sigmoid_mul;
}

/// Both sides evaluate in f32: functions to a few units in the last place (the CPU's erf to 1e-7 absolute),
/// then round, perhaps to neighbours.
void compare(Sides& s, const Twin& y) {
  const DType t = y.host.dtype();
  const double step = t == DType::f32 ? 8 * epsilon_of(t) : epsilon_of(t);
  const std::vector<double> want = values(y.host_base);
  std::vector<double> tolerance;
  for (double w : want) tolerance.push_back(step * (std::isfinite(w) ? std::fabs(w) : 0) + 4e-7);
  check_close(s.fetch(y, true), want, tolerance);
}

}  // namespace

TEST_CASE("CUDA pointwise agrees with the CPU for every function, dtype, layout and odd size") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 201);
  for (int op = 0; op <= static_cast<int>(Op::sigmoid_mul); ++op)
    for (int layout = 0; layout < 6; ++layout) {
      PointwiseArgs on_host, on_device;
      on_host.op = static_cast<Op>(op), on_host.alpha = -0.4f, on_host.beta = 0.7f;
      const Shape shape = layout == 0   ? Shape{1}
                          : layout == 1 ? Shape{3, 5, 331}
                          : layout == 2 ? Shape{7, 256}
                                        : Shape{2, 9, 67};
      const bool rows = layout >= 4;
      const Twin a = rows ? s.padded(type, shape, 1, 2, -6, 6) : s.random(type, shape, -6, 6);
      Twin b, y = rows ? s.padded_output(type, shape, 3, 2) : s.poisoned(type, shape);
      if (binary(on_host.op)) {
        const bool broadcast = layout == 2 || layout == 3 || layout == 5;
        b = broadcast ? s.random(type, {shape[-1]})
            : rows    ? s.padded(type, shape, 2, 2)
                      : s.random(type, shape);
      }
      on_device = on_host;
      on_host.a = a.host, on_host.b = b.host, on_host.y = y.host;
      on_device.a = a.device, on_device.b = b.device, on_device.y = y.device;
      pointwise(s.host, on_host);
      pointwise(s.device, on_device);
      INFO("function " << op << " layout " << layout);
      compare(s, y);
    }
}

TEST_CASE("CUDA pointwise: special values, large angles, in place") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 202);
  const std::vector<double> special = {kNaN, kInfinity, -kInfinity, 0.0,   -0.0,
                                       1e30, -1e30,     3e9,        100.0, -100.0};
  for (int op = 0; op <= static_cast<int>(Op::sigmoid_mul); ++op) {
    const Tensor x = s.host.allocate(DType::f32, {static_cast<int64_t>(special.size())});
    for (size_t i = 0; i < special.size(); ++i) put(x, static_cast<int64_t>(i), special[i]);
    const Twin a = s.upload(x), b = s.random(DType::f32, x.shape(), 0.5, 1.0);
    PointwiseArgs args;
    args.op = static_cast<Op>(op), args.alpha = -0.4f, args.beta = 0.7f;
    args.a = args.y = a.device;
    if (binary(args.op)) args.b = b.device;
    pointwise(s.device, args);
    args.a = args.y = a.host;
    if (binary(args.op)) args.b = b.host;
    pointwise(s.host, args);
    INFO("function " << op);
    compare(s, a);
  }
}

TEST_CASE("CUDA cast rounds as the CPU does between all floating types") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType from = GENERATE(DType::f64, DType::f32, DType::bf16, DType::f16);
  const DType to = GENERATE(DType::f64, DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 203);
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{4096}, int64_t{100003}}) {
    const Tensor x = random(s.host, from, {n}, s.r, -1e5, 1e5);
    if (n > 6) put(x, 0, kNaN), put(x, 1, kInfinity), put(x, 2, 1e-6), put(x, 3, -0.0), put(x, 4, 1e38);
    // Also from and to places that are not 16-byte aligned.
    for (int64_t shift : {int64_t{0}, int64_t{1}}) {
      if (shift >= n) continue;
      const auto tail = [&](const Tensor& t) { return t.slice(0, shift, n); };
      const Twin in = s.upload(x).view(tail), out = s.poisoned(to, {n}).view(tail);
      cast(s.host, {in.host, out.host});
      cast(s.device, {in.device, out.device});
      CHECK(same_bits(s.fetch(out, true), out.host_base));
    }
  }
}

TEST_CASE("CUDA reduce agrees with double sums, whatever the length, and repeats its bits") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Sides s(*gpu, 204);
  for (const auto& shape :
       {Shape{1, 1}, Shape{5, 7}, Shape{300, 64}, Shape{3, 1024}, Shape{4, 1025}, Shape{2, 16384},
        Shape{3, 16385}, Shape{2, 100003}, Shape{1, 1500000}, Shape{4, 0}})
    for (ReduceArgs::Op op : {ReduceArgs::Op::sum, ReduceArgs::Op::mean, ReduceArgs::Op::max})
      for (bool all : {false, true})
        for (bool weighted : {false, true}) {
          if (weighted && op != ReduceArgs::Op::sum) continue;
          if (shape[1] == 0 && op != ReduceArgs::Op::sum) continue;
          const Twin x = s.random(type, shape), w = weighted ? s.random(type, shape) : Twin{};
          const Twin y = s.poisoned(DType::f64, all ? Shape{1} : Shape{shape[0]});
          ReduceArgs args;
          args.op = op, args.all = all, args.x = x.device, args.weight = w.device, args.y = y.device;
          reduce(s.device, args);
          const std::vector<double> xs = values(x.host),
                                    ws = weighted ? values(w.host) : std::vector<double>{};
          const size_t rows = static_cast<size_t>(y.host.numel()), n = rows == 0 ? 0 : xs.size() / rows;
          std::vector<double> want;
          for (size_t i = 0; i < rows; ++i) {
            double sum = 0, most = -kInfinity;
            for (size_t j = i * n; j < (i + 1) * n; ++j)
              sum += xs[j] * (weighted ? ws[j] : 1.0), most = std::max(most, xs[j]);
            want.push_back(op == ReduceArgs::Op::max    ? most
                           : op == ReduceArgs::Op::mean ? sum / static_cast<double>(n)
                                                        : sum);
          }
          INFO("shape " << shape.str() << " op " << static_cast<int>(op) << " all " << all);
          // f64 sums of n terms of at most 1 in two orders.
          check_close(s.fetch(y), want,
                      {static_cast<double>(n) * 0x1p-52 * std::sqrt(static_cast<double>(n) + 1)});
          const Tensor first = s.fetch(y);
          s.poison_device(y);
          reduce(s.device, args);
          CHECK(same_bits(first, s.fetch(y)));
        }
}

TEST_CASE("CUDA reduce: NaN propagates, infinities count, outputs keep their type") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 205);
  for (int64_t n : {int64_t{50}, int64_t{5000}, int64_t{50000}})
    for (DType type : {DType::f32, DType::bf16})
      for (ReduceArgs::Op op : {ReduceArgs::Op::sum, ReduceArgs::Op::mean, ReduceArgs::Op::max}) {
        const Tensor t = random(s.host, type, {3, n}, s.r);
        put(t, n / 2, kNaN);
        put(t, 2 * n - 1, -kInfinity);
        fill(t.select(0, 2), -kInfinity);
        const Twin x = s.upload(t), y = s.poisoned(type, {3});
        ReduceArgs args;
        args.op = op, args.all = false, args.x = x.device, args.y = y.device;
        reduce(s.device, args);
        args.x = x.host, args.y = y.host;
        reduce(s.host, args);
        check_close(s.fetch(y), values(y.host), {1e-6});
      }
}

TEST_CASE("CUDA element operators are recorded in a graph") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 206);
  const Twin x = s.random(DType::bf16, {64, 5000}), y = s.poisoned(DType::bf16, {64, 5000}),
             wide = s.poisoned(DType::f32, {64, 5000}), sum = s.poisoned(DType::f32, {1});
  s.check_graph(
      [&] {
        PointwiseArgs p;
        p.op = Op::silu, p.a = x.device, p.y = y.device;
        pointwise(s.device, p);
        cast(s.device, {y.device, wide.device});
        ReduceArgs args;
        args.x = wide.device, args.y = sum.device;
        reduce(s.device, args);
      },
      {y, wide, sum});
}

TEST_CASE("CUDA: more than 2^31 elements") {
  Backend* gpu = open_device();
  if (!gpu) return;
  constexpr int64_t rows = 65544, columns = 32768, wide = 8 * columns;
  static_assert(rows * columns > int64_t{1} << 31);
  if (gpu->memory_info().free < int64_t{24} << 30) {
    std::printf("the test of large tensors needs 24 GiB of free device memory\n");
    return;
  }
  Sides s(*gpu, 212);
  const Tensor x = s.device.allocate(DType::bf16, {rows, columns}), y = s.device.allocate_like(x);
  // Known rows at both ends; what lies between is whatever memory held.
  const Tensor ends = random(s.host, DType::bf16, {8, columns}, s.r, 0.5, 1);
  copy(s.device, ends.slice(0, 0, 4), x.slice(0, 0, 4));
  copy(s.device, ends.slice(0, 4, 8), x.slice(0, rows - 4, rows));
  const auto check_ends = [&](const Tensor& got, const auto& want, double relative) {
    const Tensor here = s.host.allocate(got.dtype(), {8, columns});
    copy(s.device, got.slice(0, 0, 4), here.slice(0, 0, 4));
    copy(s.device, got.slice(0, rows - 4, rows), here.slice(0, 4, 8));
    std::vector<double> wanted;
    for (int64_t r = 0; r < 8; ++r)
      for (int64_t c = 0; c < columns; ++c) wanted.push_back(want(r, c));
    check_norm(here, wanted, relative);
  };
  const auto at = [&](int64_t r, int64_t c) { return get(ends, r * columns + c); };
  const double storage = rounding_of(DType::bf16);
  PointwiseArgs p;
  p.op = PointwiseArgs::Op::affine, p.alpha = 2, p.beta = 1, p.a = x, p.y = y;
  pointwise(s.device, p);
  check_ends(
      y, [&](int64_t r, int64_t c) { return 2 * at(r, c) + 1; }, storage);
  NormArgs n;
  n.kind = NormArgs::Kind::rms_norm, n.x = x, n.y = y, n.eps = 0;
  normalize(s.device, n);
  std::vector<double> root(8);
  for (int64_t r = 0; r < 8; ++r) {
    for (int64_t c = 0; c < columns; ++c) root[static_cast<size_t>(r)] += at(r, c) * at(r, c);
    root[static_cast<size_t>(r)] = std::sqrt(root[static_cast<size_t>(r)] / columns);
  }
  check_ends(
      y, [&](int64_t r, int64_t c) { return at(r, c) / root[static_cast<size_t>(r)]; }, 2 * storage);
  {
    const Tensor up = s.device.allocate(DType::f32, {rows, columns});
    cast(s.device, {x, up});
    check_ends(up, at, 0);
  }
  // Rows in reverse order, as [8, rows / 8, columns] and as rows of eight times the length.
  const Tensor order = s.host.allocate(DType::i32, {rows / 8});
  for (int64_t i = 0; i < rows / 8; ++i) put(order, i, static_cast<double>(rows / 8 - 1 - i));
  const Twin reversed = s.upload(order);
  gather_rows(s.device, {x.reshape({1, rows / 8, wide}), reversed.device, y.reshape({1, rows / 8, wide})});
  // The last four rows of x are the second half of its last wide row, which is y's first.
  const Tensor first = s.host.allocate(DType::bf16, {4, columns});
  copy(s.device, y.slice(0, 4, 8), first);
  CHECK(same_bits(first, ends.slice(0, 4, 8)));
  copy(s.device, y.slice(0, rows - 8, rows - 4), first);
  CHECK(same_bits(first, ends.slice(0, 0, 4)));
  const Tensor turned = y.reshape({columns, rows});
  transpose_copy(s.device, {x.transpose(0, 1), turned});
  for (int64_t c : {int64_t{0}, columns - 1}) {
    const Tensor line = s.host.allocate(DType::bf16, {rows});
    copy(s.device, turned.select(0, c), line);
    for (int64_t r = 0; r < 4; ++r) {
      CHECK(get(line, r) == at(r, c));
      CHECK(get(line, rows - 4 + r) == at(4 + r, c));
    }
  }
}

TEST_CASE("CUDA pointwise repeats operands of extent 1 along any axis, and its newer functions agree") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Op = PointwiseArgs::Op;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 305);
  const Shape full{3, 5, 4, 40};
  for (const Shape& sa : {full, Shape{3, 1, 4, 40}, Shape{1, 5, 1, 1}, Shape{1, 1, 1, 1}})
    for (const Shape& sb :
         {full, Shape{1, 5, 1, 1}, Shape{3, 5, 4, 1}, Shape{1, 1, 4, 40}, Shape{1, 1, 1, 1}}) {
      const Twin a = s.random(type, sa), b = s.padded(type, sb, 1, 2), y = s.poisoned(type, full);
      pointwise(s.device, {Op::sub, a.device, b.device, y.device});
      pointwise(s.host, {Op::sub, a.host, b.host, y.host});
      INFO(sa.str() << " - " << sb.str());
      check_norm(s.fetch(y), values(y.host), 0.0);
    }
  for (Op op : {Op::gelu_mul, Op::div, Op::max, Op::min, Op::prelu, Op::abs, Op::square, Op::sqrt, Op::rsqrt,
                Op::log, Op::tanh, Op::softplus, Op::elu, Op::leaky_relu, Op::pow}) {
    const Twin a = s.random(type, {7, 33}, op == Op::tanh || op == Op::elu ? -4 : 0.1, 4),
               b = s.random(type, {33}, 0.5, 2), y = s.poisoned(type, {7, 33});
    const Tensor none;
    pointwise(s.device, {op, a.device, is_binary(op) ? b.device : none, y.device, 1.5f});
    pointwise(s.host, {op, a.host, is_binary(op) ? b.host : none, y.host, 1.5f});
    INFO("op " << static_cast<int>(op));
    check_norm(s.fetch(y), values(y.host), type == DType::f32 ? 16 * 0x1p-24 : epsilon_of(type));
  }
}

TEST_CASE("CUDA reduce_axis agrees with the CPU along every axis") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Op = ReduceAxisArgs::Op;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 306);
  for (Op op : {Op::sum, Op::mean, Op::max, Op::min, Op::squares, Op::norm, Op::variance, Op::deviation})
    for (const Shape& shape : {Shape{3, 17, 5}, Shape{2, 1000, 33}, Shape{1, 1, 20000}, Shape{1, 1, 1}})
      for (int axis : {0, 1, 2}) {
        Shape out = shape;
        out[axis] = 1;
        const Twin x = s.random(type, shape), y = s.poisoned(DType::f32, out);
        reduce_axis(s.device, {op, x.device, y.device, axis});
        reduce_axis(s.host, {op, x.host, y.host, axis});
        INFO("op " << static_cast<int>(op) << " axis " << axis << " of " << shape.str());
        check_norm(s.fetch(y), values(y.host), 4 * 0x1p-24);
      }
  const Twin x = s.random(type, {4, 700, 9}), y = s.poisoned(DType::f32, {4, 9});
  s.check_graph([&] { reduce_axis(s.device, {Op::norm, x.device, y.device, 1}); }, {y});
}
