// reduce_axis against two passes in double, along every axis.
#include "kernels/elementwise/reduce.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Op = ReduceAxisArgs::Op;

namespace {

const Op kOps[] = {Op::sum, Op::mean, Op::max, Op::min, Op::squares, Op::norm, Op::variance, Op::deviation};

void run_and_check(Context& ctx, const ReduceAxisArgs& a) {
  const int axis = a.axis < 0 ? a.axis + a.x.rank() : a.axis;
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= a.x.dim(i);
  for (int i = axis + 1; i < a.x.rank(); ++i) inner *= a.x.dim(i);
  const int64_t n = a.x.dim(axis);
  const auto count = static_cast<double>(n);
  std::vector<double> want, slack;
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t c = 0; c < inner; ++c) {
      double sum = 0, squares = 0, spread = 0, high = -INFINITY, low = INFINITY;
      const auto v = [&](int64_t k) { return get(a.x, (o * n + k) * inner + c); };
      for (int64_t k = 0; k < n; ++k) {
        sum += v(k), squares += v(k) * v(k);
        high = std::max(high, v(k)), low = std::min(low, v(k));
      }
      for (int64_t k = 0; k < n; ++k) spread += (v(k) - sum / count) * (v(k) - sum / count);
      // f64 sums of f32 values: what is left is the final rounding, and the cancellation of the variance.
      const double variance = spread / count, noise = squares / count * count * 0x1p-50;
      want.push_back(a.op == Op::sum        ? sum
                     : a.op == Op::mean     ? sum / count
                     : a.op == Op::max      ? high
                     : a.op == Op::min      ? low
                     : a.op == Op::squares  ? squares
                     : a.op == Op::norm     ? std::sqrt(squares)
                     : a.op == Op::variance ? variance
                                            : std::sqrt(variance));
      slack.push_back(0x1p-24 * std::fabs(want.back()) + (a.op == Op::deviation ? std::sqrt(noise) : noise));
    }
  poison(a.y);
  reduce_axis(ctx, a);
  check_close(a.y, want, slack);
}

}  // namespace

TEST_CASE("reduce_axis agrees with double for every op, axis, dtype and kept extent") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(601);
    for (Op op : kOps)
      for (const Shape& shape : {Shape{3, 17, 5}, Shape{1, 1, 1}, Shape{2, 40, 33}, Shape{4, 3, 600}})
        for (int axis : {0, 1, 2, -1}) {
          const bool keep = axis == 1;
          ReduceAxisArgs a;
          a.op = op, a.axis = axis;
          a.x = random(ctx, type, shape, r);
          Shape out = shape;
          out[axis] = 1;
          if (!keep) {
            std::vector<int64_t> dims;
            for (int i = 0; i < 3; ++i)
              if (i != (axis < 0 ? axis + 3 : axis)) dims.push_back(shape[i]);
            out = Shape(std::span<const int64_t>(dims));
          }
          for (DType to : {DType::f32, type}) {
            a.y = ctx.allocate(to, out);
            INFO("op " << static_cast<int>(op) << " axis " << axis << " of " << shape.str());
            run_and_check(ctx, a);
          }
        }
  });
}

TEST_CASE("reduce_axis keeps NaN, sums nothing to 0, and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  Random r(602);
  ReduceAxisArgs a;
  a.axis = 0;
  a.x = random(ctx, DType::f32, {5, 3}, r);
  put(a.x, 4, std::numeric_limits<double>::quiet_NaN());  // column 1
  for (Op op : kOps) {
    a.op = op;
    a.y = ctx.allocate(DType::f32, {3});
    fill(a.y, 7.0);
    reduce_axis(ctx, a);
    INFO("op " << static_cast<int>(op));
    CHECK(std::isnan(get(a.y, 1)));
    CHECK_FALSE(std::isnan(get(a.y, 0)));
  }
  a.op = Op::variance;
  CHECK(charged(ctx, [&] { reduce_axis(ctx, a); }) == Cost{0, 45, 0, 60, 12});
  ReduceAxisArgs empty;
  empty.axis = 1;
  empty.x = ctx.allocate(DType::f32, {2, 0, 3});
  empty.y = poisoned(ctx, DType::f32, {2, 3});
  reduce_axis(ctx, empty);
  for (double v : values(empty.y)) CHECK(v == 0.0);
  empty.op = Op::mean;
  CHECK_THROWS_WITH(reduce_axis(ctx, empty), ContainsSubstring("no elements along axis 1"));
  a.axis = 2;
  CHECK_THROWS_WITH(reduce_axis(ctx, a), ContainsSubstring("axis 2 is outside"));
  a.axis = 1;
  CHECK_THROWS_WITH(reduce_axis(ctx, a), ContainsSubstring("[3]"));
}
