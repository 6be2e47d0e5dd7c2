// The local linear operator against the paper's equations in double precision, its count and its refusals.
#include "kernels/local_linear/local_linear.hpp"

#include "tests/local_linear/local_linear_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

LocalLinearArgs make(Context& ctx, Random& r, DType type, const Shape& bhn, int64_t m, int64_t d, int64_t e) {
  LocalLinearArgs a;
  const Shape rows{bhn[0], bhn[1], bhn[2]};
  a.q = randomize(padded(ctx, type, {bhn[0], bhn[1], bhn[2], d}, 3, 2), r, -1.5, 1.5);
  a.k = randomize(padded(ctx, type, {bhn[0], bhn[1], m, d}, 1, 0), r, -1.5, 1.5);
  a.v = randomize(padded(ctx, type, {bhn[0], bhn[1], m, e}, 0, 5), r);
  a.o = padded(ctx, type, {bhn[0], bhn[1], bhn[2], e}, 2, 1);
  a.omega = poisoned(ctx, DType::f32, rows), a.coefficient = poisoned(ctx, DType::f32, rows);
  a.delta = poisoned(ctx, DType::f32, rows);
  a.rho = padded(ctx, DType::f32, {bhn[0], bhn[1], bhn[2], d}, 0, 3);
  a.scale = 1.0f / std::sqrt(static_cast<float>(d));
  a.block = d;
  return a;
}

void run_and_check(Context& ctx, const LocalLinearArgs& a) {
  local_linear(ctx, a);
  const LocalLinearExpected want = local_linear_expected(a);
  check_rows(a.o, want, 64);
  std::vector<double> bound;
  for (double x : want.omega) bound.push_back(x * 0x1p-18);
  check_close(a.omega, want.omega, bound);
}

}  // namespace

TEST_CASE("local_linear equals the paper's equations") {
  each_isa([] {
    Context ctx(cpu_backend(), 2);
    Random r(71);
    for (int round = 0; round < 60; ++round) {
      const DType type = std::array{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(round % 3)];
      const int64_t n = r.integer(1, 150), d = r.integer(1, 4) * r.integer(1, 9);
      const int64_t m = round % 2 ? n + r.integer(0, 150) : r.integer(1, 300);
      LocalLinearArgs a = make(ctx, r, type, {r.integer(1, 2), r.integer(1, 2), n}, m, d, r.integer(1, 40));
      a.causal = round % 2;
      a.jacobi = round % 4 > 1;
      a.iterations = r.integer(0, 3) ? r.integer(0, 40) : r.integer(0, 2);
      a.lambda = static_cast<float>(r.uniform(0.5, 4.0));
      a.absolute = round % 5 == 4;
      a.delta_eps = round % 7 == 6 ? 1e-3f : 0.0f;
      a.row_tile = r.integer(1, 100);
      a.block = round % 6 == 5 && d % 2 == 0 ? d / 2 : d;
      INFO("round " << round << ": N " << n << ", M " << m << ", D " << d << ", iterations " << a.iterations
                    << ", lambda " << a.lambda << (a.jacobi ? ", jacobi" : "")
                    << (a.causal ? ", causal" : ""));
      run_and_check(ctx, a);
    }
  });
}

TEST_CASE("local_linear: one key, one query, equal values, keys at the query") {
  each_isa([] {
    Context ctx(cpu_backend(), 2);
    Random r(72);
    for (const bool jacobi : {false, true}) {
      LocalLinearArgs one = make(ctx, r, DType::f32, {1, 2, 5}, 1, 8, 3);
      one.causal = false, one.jacobi = jacobi;
      run_and_check(ctx, one);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 0; i < 5; ++i)
          for (int64_t c = 0; c < 3; ++c)
            CHECK(std::abs(get(one.o, h * one.o.stride(1) + i * one.o.stride(2) + c) -
                           get(one.v, h * one.v.stride(1) + c)) < 1e-5);
      LocalLinearArgs same = make(ctx, r, DType::f32, {1, 1, 9}, 9, 4, 4);
      same.jacobi = jacobi;
      fill(same.q, 0.75), fill(same.k, 0.75);
      run_and_check(ctx, same);
      CHECK(get(same.delta, 8) == 1.0);  // mu = 0: no row moves
      LocalLinearArgs constant = make(ctx, r, DType::f32, {1, 1, 70}, 70, 16, 4);
      constant.jacobi = jacobi, constant.lambda = 0.1f;
      fill(constant.v, -2.5);
      run_and_check(ctx, constant);
    }
  });
}

TEST_CASE("local_linear stopped on the way keeps delta above 0") {
  // Few keys, a small ridge and six steps: 1 - mu.rho alone would round to nothing in some of these rows.
  each_isa([] {
    Context ctx(cpu_backend(), 2);
    Random r(76);
    for (const bool jacobi : {false, true}) {
      LocalLinearArgs a = make(ctx, r, DType::f32, {1, 4, 150}, 150, 64, 8);
      a.jacobi = jacobi, a.iterations = 6, a.lambda = 0.05f;
      run_and_check(ctx, a);
      for (double x : values(a.delta)) CHECK(x > 0);
      for (double x : values(a.o)) CHECK(std::abs(x) < 50);
    }
  });
}

TEST_CASE("local_linear does not depend on threads and tiles, and rests where it has converged") {
  Context one(cpu_backend(), 1), two(cpu_backend(), 2);
  Random r(73);
  LocalLinearArgs a = make(one, r, DType::f32, {1, 2, 130}, 130, 12, 12);
  local_linear(one, a);
  const std::vector<double> first = values(a.o);
  a.row_tile = 17;
  poison(a.o);
  local_linear(two, a);
  CHECK(values(a.o) == first);
  // Converged long before: more iterations change no bit.
  a.iterations = 60;
  local_linear(two, a);
  CHECK(values(a.o) == first);
}

TEST_CASE("local_linear charges its formula") {
  Context ctx(cpu_backend(), 1);
  Random r(74);
  LocalLinearArgs a = make(ctx, r, DType::f32, {1, 2, 3}, 5, 4, 6);
  a.iterations = 7;
  // 3 + 4 + 5 visible pairs a head: scores and kbar, seven iterations, output.
  CHECK(charged(ctx, [&] { local_linear(ctx, a); }).matmul ==
        2 * 12 * (2 * 4 + 2 * 4 + 7 * 4 * 4 + 2 * 4 + 2 * 6));
  a.causal = false, a.jacobi = true;
  CHECK(charged(ctx, [&] { local_linear(ctx, a); }).matmul ==
        2 * 15 * (3 * 2 * 4 + 7 * 4 * 4 + 2 * 4 + 2 * 6));
}

TEST_CASE("local_linear refuses what has no answer") {
  Context ctx(cpu_backend(), 1);
  Random r(75);
  const LocalLinearArgs good = make(ctx, r, DType::f32, {1, 1, 4}, 4, 6, 3);
  const auto refuses = [&](const auto& change, const char* why) {
    LocalLinearArgs a = good;
    change(a);
    CHECK_THROWS_WITH(local_linear(ctx, a), ContainsSubstring(why));
  };
  refuses([](LocalLinearArgs& a) { a.k = a.k.slice(2, 0, 3), a.v = a.v.slice(2, 0, 3); },
          "sees none of 3 keys");
  refuses([](LocalLinearArgs& a) { a.lambda = 0; }, "above 0");
  refuses([](LocalLinearArgs& a) { a.block = 4; }, "do not divide 6");
  refuses([](LocalLinearArgs& a) { a.iterations = -1; }, "-1 iterations");
  refuses([](LocalLinearArgs& a) { a.delta = a.omega; }, "local_linear");
}
