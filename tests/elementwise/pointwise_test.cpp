// pointwise against the functions of the C library in double precision.
#include "kernels/elementwise/pointwise.hpp"

#include <algorithm>
#include <functional>
#include <numbers>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Op = PointwiseArgs::Op;

namespace {

struct Function {
  Op op;
  const char* name;
  bool binary, special;
  std::function<double(double a, double b, double alpha, double beta)> f;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// GPT-2's GELU is 0.5 a (1 + tanh(u)) = a sigmoid(2 u); this is 2 u.
double gelu_exponent(double a) { return std::sqrt(8 / std::numbers::pi) * (a + 0.044715 * a * a * a); }

const std::vector<Function>& functions() {
  static const std::vector<Function> all = {
      {Op::add, "add", true, false, [](double a, double b, double, double) { return a + b; }},
      {Op::sub, "sub", true, false, [](double a, double b, double, double) { return a - b; }},
      {Op::mul, "mul", true, false, [](double a, double b, double, double) { return a * b; }},
      {Op::affine, "affine", false, false, [](double a, double, double s, double t) { return s * a + t; }},
      {Op::clamp, "clamp", false, false,
       [](double a, double, double s, double t) { return std::isnan(a) ? a : std::min(std::max(a, s), t); }},
      {Op::relu, "relu", false, true,
       [](double a, double, double, double) { return std::isnan(a) ? a : std::max(a, 0.0); }},
      {Op::gelu_erf, "gelu_erf", false, true,
       [](double a, double, double, double) { return 0.5 * a * std::erfc(-a * std::sqrt(0.5)); }},
      {Op::gelu_tanh, "gelu_tanh", false, true,
       [](double a, double, double, double) { return a * sigmoid(gelu_exponent(a)); }},
      {Op::silu, "silu", false, true, [](double a, double, double, double) { return a * sigmoid(a); }},
      {Op::sigmoid, "sigmoid", false, true, [](double a, double, double, double) { return sigmoid(a); }},
      {Op::exp, "exp", false, true, [](double a, double, double, double) { return std::exp(a); }},
      {Op::cos, "cos", false, true, [](double a, double, double, double) { return std::cos(a); }},
      {Op::sin, "sin", false, true, [](double a, double, double, double) { return std::sin(a); }},
      {Op::silu_mul, "silu_mul", true, true,
       [](double a, double b, double, double) { return a * sigmoid(a) * b; }},
      {Op::sigmoid_mul, "sigmoid_mul", true, true,
       [](double a, double b, double, double) { return sigmoid(a) * b; }},
      {Op::gelu_mul, "gelu_mul", true, true,
       [](double a, double b, double, double) { return 0.5 * a * std::erfc(-a * std::sqrt(0.5)) * b; }},
      {Op::div, "div", true, true, [](double a, double b, double, double) { return a / b; }},
      {Op::max, "max", true, false,
       [](double a, double b, double, double) { return std::isnan(a + b) ? a + b : std::max(a, b); }},
      {Op::min, "min", true, false,
       [](double a, double b, double, double) { return std::isnan(a + b) ? a + b : std::min(a, b); }},
      {Op::prelu, "prelu", true, true, [](double a, double b, double, double) { return a < 0 ? a * b : a; }},
      {Op::abs, "abs", false, false, [](double a, double, double, double) { return std::fabs(a); }},
      {Op::square, "square", false, false, [](double a, double, double, double) { return a * a; }},
      {Op::sqrt, "sqrt", false, true, [](double a, double, double, double) { return std::sqrt(a); }},
      {Op::rsqrt, "rsqrt", false, true, [](double a, double, double, double) { return 1 / std::sqrt(a); }},
      {Op::log, "log", false, true, [](double a, double, double, double) { return std::log(a); }},
      {Op::tanh, "tanh", false, true, [](double a, double, double, double) { return std::tanh(a); }},
      {Op::softplus, "softplus", false, true,
       [](double a, double, double, double) {
         return std::max(a, 0.0) + std::log1p(std::exp(-std::fabs(a)));
       }},
      {Op::elu, "elu", false, true,
       [](double a, double, double s, double) { return a < 0 ? s * std::expm1(a) : a; }},
      {Op::leaky_relu, "leaky_relu", false, true,
       [](double a, double, double s, double) { return a < 0 ? s * a : a; }},
      {Op::pow, "pow", false, true, [](double a, double, double s, double) { return std::pow(a, s); }},
  };
  return all;
}

/// Four f32 roundings of the result; functions through erf and trigonometric polynomials have an absolute
/// error of about one f32 epsilon (times |a| for gelu), which relative bounds do not cover near their zeros.
double tolerance(const Function& f, double a, double want) {
  const double relative = 4 * 0x1p-23 * std::fabs(want);
  if (f.op == Op::gelu_tanh)  // the sigmoid's argument carries three roundings, which are absolute in it
    return relative + 3 * 0x1p-23 * std::fabs(gelu_exponent(a) * want) + 1e-37;
  if (f.op == Op::gelu_mul) return relative + 1.5e-7 * std::fabs(a) * 4 + 1e-37;  // |b| <= 4
  if (f.op == Op::log) return relative + 0x1p-24;  // its zero is at 1, where a itself is rounded
  if (f.op == Op::gelu_erf) return relative + 1.5e-7 * std::fabs(a) + 1e-37;
  if (f.op == Op::sin || f.op == Op::cos) return relative + 0x1p-23;
  if (f.op == Op::add || f.op == Op::sub || f.op == Op::mul || f.op == Op::affine)
    return 0x1p-23 * (std::fabs(want) + 4);
  return relative + 1e-37;
}

void run_and_check(Context& ctx, const Function& f, PointwiseArgs p) {
  p.op = f.op;
  const std::vector<double> a = values(p.a), b = p.b ? values(p.b) : std::vector<double>();
  if (p.y.raw() != p.a.raw() && (!p.b || p.y.raw() != p.b.raw())) poison(p.y);
  std::vector<double> want, slack;
  for (size_t i = 0; i < a.size(); ++i) {
    const double bi = b.empty() ? 0 : b[i % b.size()];
    want.push_back(f.f(a[i], bi, static_cast<double>(p.alpha), static_cast<double>(p.beta)));
    slack.push_back(tolerance(f, a[i], want.back()));
  }
  pointwise(ctx, p);
  INFO(f.name);
  check_close(p.y, want, slack);
}

}  // namespace

TEST_CASE("pointwise functions agree with the C library for every dtype, size and layout") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(31);
    for (const Function& f : functions())
      for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{16}, int64_t{33}, int64_t{100}}) {
        PointwiseArgs p;
        p.alpha = -0.5f, p.beta = 0.75f;
        p.a = random(ctx, type, {3, n}, r, -4, 4);
        if (f.binary) p.b = random(ctx, type, {3, n}, r);
        p.y = ctx.allocate(type, {3, n});
        run_and_check(ctx, f, p);
        if (f.binary) {
          p.b = random(ctx, type, {n}, r);  // one row for all
          run_and_check(ctx, f, p);
        }
        PointwiseArgs s = p;  // strided rows and a transposed outer axis
        s.a = randomize(padded(ctx, type, {2, 3, n}, 1, 2), r).transpose(0, 1);
        s.y = padded(ctx, type, {3, 2, n}, 2, 0);
        if (f.binary) s.b = randomize(padded(ctx, type, {3, 2, n}, 0, 3), r);
        run_and_check(ctx, f, s);
        p.y = p.a;  // in place
        run_and_check(ctx, f, p);
      }
  });
}

TEST_CASE("exp and the sigmoids are right over their whole range, and trigonometry over large angles") {
  Context ctx(cpu_backend(), 1);
  each_isa([&] {
    PointwiseArgs p;
    p.a = ctx.allocate(DType::f32, {20001});
    p.y = ctx.allocate(DType::f32, {20001});
    for (int64_t i = 0; i < 20001; ++i) put(p.a, i, -110.0 + 0.01 * static_cast<double>(i));
    for (const Function& f : functions()) {
      if (f.binary) continue;
      p.op = f.op;
      poison(p.y);
      pointwise(ctx, p);
      for (int64_t i = 0; i < 20001; ++i) {
        const double a = get(p.a, i);
        const double want = f.f(a, 0, static_cast<double>(p.alpha), static_cast<double>(p.beta));
        if (std::isnan(want)) {  // roots, logarithms and powers of negative numbers
          CHECK(std::isnan(get(p.y, i)));
          continue;
        }
        if (want == get(p.y, i)) continue;  // infinities too
        if (want > 3.4028236e38) {
          CHECK(std::isinf(get(p.y, i)));
          continue;
        }
        // Below the normal range floats are 2^-149 apart; sigmoid's e^-x overflows there, to a correct 0.
        const double floor = f.op == Op::exp ? 0x1p-148 : 0x1p-126 * (1 + std::fabs(a));
        INFO(f.name << "(" << a << ")");
        REQUIRE(std::fabs(get(p.y, i) - want) <= tolerance(f, a, want) + floor);
      }
    }
    for (Op op : {Op::sin, Op::cos}) {
      p.op = op;
      for (int64_t i = 0; i < 20001; ++i)
        put(p.a, i, (i % 2 ? -1 : 1) * std::pow(10.0, 12.0 * static_cast<double>(i) / 20000.0));
      pointwise(ctx, p);
      for (int64_t i = 0; i < 20001; ++i) {
        const double a = get(p.a, i);
        REQUIRE(std::fabs(get(p.y, i) - (op == Op::sin ? std::sin(a) : std::cos(a))) <= 0x1p-22);
      }
    }
  });
}

TEST_CASE("NaN stays NaN through every function, and infinities behave") {
  Context ctx(cpu_backend(), 1);
  const double inf = std::numeric_limits<double>::infinity();
  each_isa([&] {
    for (DType type : {DType::f32, DType::bf16, DType::f16})
      for (const Function& f : functions()) {
        PointwiseArgs p;
        p.op = f.op;
        p.a = ctx.allocate(type, {37});
        p.y = ctx.allocate(type, {37});
        fill(p.a, std::numeric_limits<double>::quiet_NaN());
        if (f.binary) {
          p.b = ctx.allocate(type, {37});
          fill(p.b, 1.0);
        }
        fill(p.y, 0.0);
        pointwise(ctx, p);
        INFO(f.name);
        for (double y : values(p.y)) REQUIRE(std::isnan(y));
        if (f.binary) {
          fill(p.a, f.op == Op::prelu ? -1.0 : 1.0);  // prelu reads its slope below 0 only
          fill(p.b, std::numeric_limits<double>::quiet_NaN());
          fill(p.y, 0.0);
          pointwise(ctx, p);
          for (double y : values(p.y)) REQUIRE(std::isnan(y));
        }
      }
    PointwiseArgs p;
    p.a = ctx.allocate(DType::f32, {2});
    p.y = ctx.allocate(DType::f32, {2});
    put(p.a, 0, inf);
    put(p.a, 1, -inf);
    const auto gives = [&](Op op, double plus, double minus) {
      p.op = op;
      pointwise(ctx, p);
      CHECK(get(p.y, 0) == plus);
      CHECK(get(p.y, 1) == minus);
    };
    gives(Op::exp, inf, 0);
    gives(Op::sigmoid, 1, 0);
    gives(Op::relu, inf, 0);
    gives(Op::tanh, 1, -1);
    gives(Op::softplus, inf, 0);
    p.alpha = 2;
    gives(Op::elu, inf, -2);
    gives(Op::leaky_relu, inf, -inf);
    gives(Op::abs, inf, inf);
    p.op = Op::log;
    pointwise(ctx, p);
    CHECK(get(p.y, 0) == inf);
    CHECK(std::isnan(get(p.y, 1)));
    put(p.a, 0, 0.0);
    put(p.a, 1, 1e-42);  // subnormal
    pointwise(ctx, p);
    CHECK(get(p.y, 0) == -inf);
    CHECK(std::fabs(get(p.y, 1) - std::log(get(p.a, 1))) < 1e-5);
    put(p.a, 0, inf);
    put(p.a, 1, -inf);
    p.op = Op::sin;
    pointwise(ctx, p);
    CHECK(std::isnan(get(p.y, 0)));
  });
}

TEST_CASE("operands of extent 1 are repeated along any axis") {
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(34);
    const DType type = DType::f32;
    const Shape full{3, 5, 4, 35};
    for (const Shape& sa : {full, Shape{3, 1, 4, 35}, Shape{1, 5, 1, 1}, Shape{1, 1, 1, 1}})
      for (const Shape& sb : {full, Shape{1, 5, 1, 1}, Shape{3, 5, 4, 1}, Shape{1, 1, 4, 35},
                              Shape{3, 1, 1, 1}, Shape{1, 1, 1, 1}}) {
        PointwiseArgs p;
        p.op = Op::sub;
        p.a = random(ctx, type, sa, r);
        p.b = randomize(padded(ctx, type, sb, 1, 2), r);
        p.y = padded(ctx, type, full, 3, 1);
        poison(p.y);
        pointwise(ctx, p);
        std::vector<double> want;
        const auto at = [](const Tensor& t, std::initializer_list<int64_t> index) {
          int64_t offset = 0;
          int axis = 0;
          for (int64_t i : index) {
            if (t.dim(axis) > 1) offset += i * t.stride(axis);
            ++axis;
          }
          return get(t, offset);
        };
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 5; ++j)
            for (int64_t k = 0; k < 4; ++k)
              for (int64_t l = 0; l < 35; ++l) want.push_back(at(p.a, {i, j, k, l}) - at(p.b, {i, j, k, l}));
        INFO(sa.str() << " - " << sb.str());
        check_close(p.y, want, {0x1p-23});
      }
    // Columns of a transposed tensor, whose rows have one element.
    const Tensor column = random(ctx, type, {7, 9}, r).slice(1, 2, 3);
    const Tensor gain = random(ctx, type, {1, 1}, r);
    const Tensor y = poisoned(ctx, type, {7, 3}).slice(1, 1, 2);
    pointwise(ctx, {Op::mul, column, gain, y});
    std::vector<double> want;
    for (double v : values(column)) want.push_back(v * get(gain, 0));
    check_close(y, want, {0x1p-23});
  });
}

TEST_CASE("pointwise charges one operation an element, and does not depend on the thread count") {
  Random r(32);
  Context one(cpu_backend(), 1), three(cpu_backend(), 3);
  for (const Function& f : functions()) {
    PointwiseArgs p;
    p.op = f.op;
    p.a = random(one, DType::bf16, {41, 3001}, r);
    if (f.binary) p.b = random(one, DType::bf16, {3001}, r);
    p.y = poisoned(one, DType::bf16, {41, 3001});
    const int64_t n = 41 * 3001;
    const Cost cost = charged(one, [&] { pointwise(one, p); });
    CHECK(cost == Cost{0, f.special ? 0 : n, f.special ? n : 0, 2 * n + (f.binary ? 2 * 3001 : 0), 2 * n});
    PointwiseArgs q = p;
    q.y = poisoned(one, DType::bf16, {41, 3001});
    pointwise(three, q);
    CHECK(same_bits(p.y, q.y));
  }
}

TEST_CASE("pointwise refuses what does not fit") {
  Context ctx(cpu_backend(), 1);
  Random r(33);
  PointwiseArgs good;
  good.a = random(ctx, DType::f32, {4, 6}, r);
  good.b = random(ctx, DType::f32, {6}, r);
  good.y = ctx.allocate(DType::f32, {4, 6});
  REQUIRE_NOTHROW(pointwise(ctx, good));
  const auto refuses = [&](const std::string& word, auto change) {
    PointwiseArgs p = good;
    change(p);
    CHECK_THROWS_AS(pointwise(ctx, p), UsageError);
    CHECK_THROWS_WITH(pointwise(ctx, p), ContainsSubstring(word));
  };
  refuses("'b' is missing", [](auto& p) { p.b = {}; });
  refuses("one argument", [](auto& p) { p.op = Op::exp; });
  refuses("[4]", [&](auto& p) { p.b = random(ctx, DType::f32, {4}, r); });
  refuses("f64", [&](auto& p) { p.a = random(ctx, DType::f64, {4, 6}, r); });
  refuses("differ", [&](auto& p) { p.y = ctx.allocate(DType::bf16, {4, 6}); });
  refuses("stride", [&](auto& p) { p.a = random(ctx, DType::f32, {6, 4}, r).transpose(0, 1); });
  refuses("overlap without being the same", [&](auto& p) {
    const Tensor line = random(ctx, DType::f32, {5, 6}, r);
    p.a = line.slice(0, 0, 4);
    p.y = line.slice(0, 1, 5);
  });
  PointwiseArgs empty;
  empty.a = ctx.allocate(DType::f32, {3, 0});
  empty.b = ctx.allocate(DType::f32, {0});
  empty.y = ctx.allocate(DType::f32, {3, 0});
  CHECK_NOTHROW(pointwise(ctx, empty));
}
