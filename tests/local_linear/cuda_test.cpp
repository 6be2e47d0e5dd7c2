// Local linear attention on the GPU against the paper's equations in double precision: ragged shapes, padded
// rows, blocks of channels, wide heads, cut keys, rows that see one key.
#include <array>
#include <cmath>

#include "tests/cuda_check.hpp"
#include "tests/local_linear/local_linear_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

struct Case {
  Twin q, k, v, o, omega, rho, coefficient, delta;
  LocalLinearArgs options;

  LocalLinearArgs on(bool device) const {
    const auto side = [&](const Twin& t) { return device ? t.device : t.host; };
    LocalLinearArgs a = options;
    a.q = side(q), a.k = side(k), a.v = side(v), a.o = side(o);
    a.omega = side(omega), a.rho = side(rho), a.coefficient = side(coefficient), a.delta = side(delta);
    return a;
  }
};

Case make(Sides& s, DType type, const Shape& bhn, int64_t m, int64_t d, int64_t e, int64_t pad = 0) {
  Case c;
  const int64_t b = bhn[0], h = bhn[1], n = bhn[2];
  c.q = s.padded(type, {b, h, n, d}, pad, 0, -1.5, 1.5);
  c.k = s.padded(type, {b, h, m, d}, 0, pad, -1.5, 1.5);
  c.v = s.padded(type, {b, h, m, e}, pad, pad);
  c.o = s.padded_output(type, {b, h, n, e}, pad, 1);
  c.rho = s.padded_output(DType::f32, {b, h, n, d}, pad, pad);
  c.omega = s.poisoned(DType::f32, {b, h, n}), c.coefficient = s.poisoned(DType::f32, {b, h, n});
  c.delta = s.poisoned(DType::f32, {b, h, n});
  c.options.scale = 1.0f / std::sqrt(static_cast<float>(d));
  c.options.block = d;
  return c;
}

/// What a product on tensor cores leaves out of operands of this type, or of their sums: cuda_sweep.cuh.
double unit_of(DType type) { return type == DType::f32 ? 0x1p-23 : 0x1p-17; }

void run_and_check(Sides& s, const Case& c) {
  const DType type = c.q.host.dtype();
  local_linear(s.device, c.on(true));
  const LocalLinearExpected want = local_linear_expected(c.on(false), unit_of(type));
  check_rows(s.fetch(c.o), want, 64, unit_of(type));
  std::vector<double> bound;
  for (double x : want.omega) bound.push_back(x * 0x1p-16);
  check_close(s.fetch(c.omega), want.omega, bound);
  for (const Twin* t : {&c.rho, &c.coefficient, &c.delta})
    for (double x : values(s.fetch(*t))) REQUIRE(std::isfinite(x));
  // Nothing outside of the outputs' rows is written.
  const Tensor whole = s.fetch(c.o, true);
  const int64_t before = c.o.device.raw() == c.o.device_base.raw() ? 0 : whole.dim(-1) - c.o.host.dim(-1) - 1;
  for (double x : values(whole.slice(-1, 0, before))) REQUIRE(std::isnan(x));
  for (double x : values(whole.slice(-1, before + c.o.host.dim(-1), whole.dim(-1)))) REQUIRE(std::isnan(x));
}

}  // namespace

TEST_CASE("CUDA: local_linear equals the paper's equations for ragged shapes") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 2001);
  for (int round = 0; round < 40; ++round) {
    const bool causal = round % 2;
    const int64_t n = s.r.integer(1, round % 8 == 0 ? 300 : 130), d = s.r.integer(1, 4) * s.r.integer(1, 34);
    const int64_t m = causal ? n + (round % 3 ? 0 : s.r.integer(0, 200)) : s.r.integer(1, 300);
    Case c = make(s, type, {s.r.integer(1, 2), s.r.integer(1, 2), n}, m, d,
                  s.r.integer(1, 2) * s.r.integer(1, 80), s.r.integer(0, 3));
    c.options.causal = causal;
    c.options.jacobi = round % 4 > 1;
    c.options.iterations = s.r.integer(0, 3) ? s.r.integer(0, 20) : s.r.integer(0, 2);
    c.options.lambda = static_cast<float>(s.r.uniform(0.5, 10.0));
    c.options.absolute = round % 5 == 4;
    c.options.delta_eps = round % 7 == 6 ? 1e-3f : 0.0f;
    c.options.block = round % 6 == 5 && d % 2 == 0 ? d / 2 : d;
    INFO("round " << round << ": N " << n << ", M " << m << ", D " << d << ", iterations "
                  << c.options.iterations << ", lambda " << c.options.lambda
                  << (c.options.jacobi ? ", jacobi" : "") << (causal ? ", causal" : ""));
    run_and_check(s, c);
  }
}

TEST_CASE("CUDA: local_linear at the widths of its kernels") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  const bool jacobi = GENERATE(false, true);
  Sides s(*gpu, 2002);
  for (const int64_t d : {64, 128, 32, 96, 192})
    for (const auto& [n, m] :
         {std::array<int64_t, 2>{1, 1}, {1, 700}, {64, 64}, {65, 65}, {150, 150}, {3, 130}}) {
      if (d == 192 && n > 64) continue;
      Case c = make(s, type, {1, 2, n}, m, d, d);
      c.options.jacobi = jacobi, c.options.iterations = 6, c.options.lambda = 10.0f;
      INFO("N " << n << ", M " << m << ", D " << d << (jacobi ? ", jacobi" : ""));
      run_and_check(s, c);
    }
}

TEST_CASE("CUDA: local_linear of one key, of keys at the query, and stopped on the way") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 2003);
  for (const bool jacobi : {false, true}) {
    Case one = make(s, type, {1, 2, 5}, 1, 8, 3);
    one.options.causal = false, one.options.jacobi = jacobi;
    run_and_check(s, one);
    Case same = make(s, type, {1, 1, 70}, 70, 4, 4);
    fill(same.q.host, 0.75), fill(same.k.host, 0.75);
    copy(s.device, same.q.host_base, same.q.device_base),
        copy(s.device, same.k.host_base, same.k.device_base);
    same.options.jacobi = jacobi;
    run_and_check(s, same);
    // Few keys, a small ridge and six steps: rows near the drop of their residual.
    Case hard = make(s, type, {1, 2, 150}, 150, 64, 64);
    hard.options.jacobi = jacobi, hard.options.iterations = 6, hard.options.lambda = 0.05f;
    run_and_check(s, hard);
  }
}

TEST_CASE("CUDA: local_linear is captured and repeats its bits") {
  Backend* gpu = open_device();
  if (!gpu) return;
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Sides s(*gpu, 2004);
  Case c = make(s, type, {1, 2, 333}, 333, 64, 64);
  c.options.jacobi = true;
  s.check_graph([&] { local_linear(s.device, c.on(true)); }, {c.o, c.omega, c.rho, c.coefficient, c.delta});
  // Converged long before: more iterations change no bit.
  const Tensor first = s.fetch(c.o);
  c.options.iterations = 40;
  local_linear(s.device, c.on(true));
  CHECK(same_bits(first, s.fetch(c.o)));
}

TEST_CASE("CUDA: local_linear refuses heads that no kernel takes") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 2005);
  const Case c = make(s, DType::f32, {1, 1, 2}, 2, 1025, 1);
  CHECK_THROWS_AS(local_linear(s.device, c.on(true)), Unsupported);
}
