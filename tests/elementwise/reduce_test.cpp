// reduce against long-double sums.
#include "kernels/elementwise/reduce.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Op = ReduceArgs::Op;

TEST_CASE("reductions agree with long double, over everything and over rows") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16, DType::f64);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(41);
    for (Op op : {Op::sum, Op::mean, Op::max})
      for (const auto& shape : {Shape{1}, Shape{3, 17}, Shape{2, 5, 64}, Shape{2, 40000}, Shape{70001}})
        for (bool all : {true, false}) {
          ReduceArgs a;
          a.op = op;
          a.all = all;
          a.x = random(ctx, type, shape, r);
          if (op == Op::sum && shape[0] > 1) a.weight = random(ctx, type, shape, r);
          const int64_t n = all ? a.x.numel() : shape[-1], rows = a.x.numel() / n;
          a.y = all ? poisoned(ctx, DType::f64, {1})
                    : poisoned(ctx, DType::f64,
                               Shape(std::span<const int64_t>(shape.begin(), shape.rank() - 1)));
          reduce(ctx, a);
          std::vector<double> want;
          for (int64_t i = 0; i < rows; ++i) {
            long double s = op == Op::max ? -2.0L : 0.0L;
            for (int64_t j = 0; j < n; ++j) {
              const double x = get(a.x, i * n + j);
              if (op == Op::max)
                s = std::max<long double>(s, x);
              else
                s += static_cast<long double>(a.weight ? x * get(a.weight, i * n + j) : x);
            }
            want.push_back(static_cast<double>(op == Op::mean ? s / n : s));
          }
          check_close(a.y, want, {static_cast<double>(n) * 0x1p-52});
        }
  });
}

TEST_CASE("sums are accumulated in f64: a small term survives beside a large one") {
  Context ctx(cpu_backend(), 2);
  ReduceArgs a;
  a.x = ctx.allocate(DType::f32, {100000});
  fill(a.x, 1.0);
  put(a.x, 0, 0x1p40);
  a.y = poisoned(ctx, DType::f64, {});
  reduce(ctx, a);
  CHECK(get(a.y, 0) == 0x1p40 + 99999);
}

TEST_CASE("NaN propagates from any place") {
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    for (DType type : {DType::f32, DType::bf16, DType::f64})
      for (Op op : {Op::sum, Op::mean, Op::max})
        for (int64_t place : {0, 1, 15, 16, 99, 40000, 50002}) {
          ReduceArgs a;
          a.op = op;
          a.x = ctx.allocate(type, {50003});
          fill(a.x, 1.0);
          put(a.x, place, std::numeric_limits<double>::quiet_NaN());
          a.y = ctx.allocate(type, {1});
          fill(a.y, 0.0);
          reduce(ctx, a);
          CHECK(std::isnan(get(a.y, 0)));
        }
  });
}

TEST_CASE("the result has the same bits for every thread count") {
  Random r(42);
  Context one(cpu_backend(), 1);
  for (Op op : {Op::sum, Op::mean, Op::max})
    for (bool all : {true, false}) {
      ReduceArgs a;
      a.op = op;
      a.all = all;
      a.x = random(one, DType::f32, {3, 100003}, r);
      a.y = poisoned(one, DType::f64, all ? Shape{1} : Shape{3});
      reduce(one, a);
      for (int threads : {2, 3, 7}) {
        Context many(cpu_backend(), threads);
        ReduceArgs b = a;
        b.y = poisoned(one, DType::f64, a.y.shape());
        reduce(many, b);
        CHECK(same_bits(a.y, b.y));
      }
    }
}

TEST_CASE("reduce charges its formula and refuses what does not fit") {
  Context ctx(cpu_backend(), 1);
  Random r(43);
  ReduceArgs a;
  a.x = random(ctx, DType::bf16, {5, 7}, r);
  a.y = ctx.allocate(DType::f32, {1});
  CHECK(charged(ctx, [&] { reduce(ctx, a); }) == Cost{0, 35, 0, 70, 4});
  a.weight = random(ctx, DType::bf16, {5, 7}, r);
  CHECK(charged(ctx, [&] { reduce(ctx, a); }) == Cost{0, 70, 0, 140, 4});
  a.op = Op::mean;
  CHECK_THROWS_WITH(reduce(ctx, a), ContainsSubstring("sums only"));
  a.weight = {};
  a.all = false;
  CHECK_THROWS_WITH(reduce(ctx, a), ContainsSubstring("[5]"));
  a.all = true;
  a.x = ctx.allocate(DType::f32, {0});
  CHECK_THROWS_WITH(reduce(ctx, a), ContainsSubstring("no elements"));
  a.op = Op::sum;
  poison(a.y);
  reduce(ctx, a);
  CHECK(get(a.y, 0) == 0.0);
  a.x = random(ctx, DType::f32, {4, 4}, r).transpose(0, 1);
  CHECK_THROWS_AS(reduce(ctx, a), UsageError);
}
