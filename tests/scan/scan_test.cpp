// The selective scan, recursive filters, extension, FIR and the analytic signal against their definitions in
// double.
#include "kernels/scan/scan.hpp"

#include <complex>
#include <numbers>

#include "kernels/fft/fft1.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

struct Scan {
  Tensor u, delta, a, b, c, skip, z, y;
};

/// The recurrence of the header, token by token.
std::vector<double> scanned(const Scan& t, bool reverse) {
  const int64_t length = t.u.dim(-2), d = t.u.dim(-1), s = t.b.dim(-1),
                sequences = t.u.numel() / (length * d);
  const std::vector<double> u = values(t.u), delta = values(t.delta), b = values(t.b), c = values(t.c),
                            a = values(t.a);
  const std::vector<double> skip = t.skip ? values(t.skip) : std::vector<double>(),
                            z = t.z ? values(t.z) : std::vector<double>();
  std::vector<double> y(u.size());
  for (int64_t q = 0; q < sequences; ++q)
    for (int64_t k = 0; k < d; ++k) {
      std::vector<double> h(static_cast<size_t>(s));
      for (int64_t step = 0; step < length; ++step) {
        const int64_t row = q * length + (reverse ? length - 1 - step : step);
        const auto at = static_cast<size_t>(row * d + k);
        double sum = t.skip ? skip[static_cast<size_t>(k)] * u[at] : 0;
        for (int64_t j = 0; j < s; ++j) {
          double& state = h[static_cast<size_t>(j)];
          state = std::exp(delta[at] * a[static_cast<size_t>(k * s + j)]) * state +
                  delta[at] * b[static_cast<size_t>(row * s + j)] * u[at];
          sum += c[static_cast<size_t>(row * s + j)] * state;
        }
        if (t.z) sum *= z[at] / (1 + std::exp(-z[at]));
        y[at] = sum;
      }
    }
  return y;
}

}  // namespace

TEST_CASE("selective scan: sizes, storage types, directions, strided sequences") {
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f16);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(311);
    for (const auto& [length, d, s] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {7, 5, 3}, {40, 33, 16}, {13, 64, 8}, {9, 100, 1}})
      for (bool reverse : {false, true})
        for (bool gated : {false, true}) {
          // Sequences along axis 1 of [2, L, 3, D]: the tokens of one are 3 D apart.
          const auto tokens = [&](int64_t width, double low, double high) {
            return random(ctx, type, {2, length, 3, width}, r, low, high).transpose(1, 2);
          };
          Scan t{tokens(d, -1, 1),
                 tokens(d, 0, 1),
                 random(ctx, DType::f32, {d, s}, r, -2, 0),
                 tokens(s, -1, 1),
                 tokens(s, -1, 1),
                 {},
                 {},
                 poisoned(ctx, type, {2, length, 3, d}).transpose(1, 2)};
          if (gated) t.skip = random(ctx, DType::f32, {d}, r), t.z = tokens(d, -3, 3);
          SelectiveScanArgs args{t.u, t.delta, t.a, t.b, t.c, t.skip, t.z, t.y, reverse};
          const Cost cost = charged(ctx, [&] { selective_scan(ctx, args); });
          CHECK(cost == selective_scan_cost(args));
          CHECK(cost.matmul == 6 * 6 * length * d * s);
          INFO("L " << length << ", D " << d << ", S " << s << (reverse ? ", reverse" : ""));
          // States are sums of at most L terms up to 1, with a rounding for each step; S of them are added.
          const double slack = 8 * 0x1p-24 * static_cast<double>(length + 4) * static_cast<double>(s + 2);
          check_close(t.y, scanned(t, reverse), {slack});
        }
  });
}

TEST_CASE("selective scan: no memory, all memory, in place, errors") {
  Context ctx(cpu_backend(), 2);
  Random r(312);
  const int64_t length = 11, d = 6, s = 2;
  Scan t{random(ctx, DType::f32, {length, d}, r),
         random(ctx, DType::f32, {length, d}, r, 0.5, 1),
         ctx.allocate(DType::f32, {d, s}),
         random(ctx, DType::f32, {length, s}, r),
         random(ctx, DType::f32, {length, s}, r),
         {},
         {},
         poisoned(ctx, DType::f32, {length, d})};
  fill(t.a, -1e30);  // exp(delta a) = 0
  SelectiveScanArgs args{t.u, t.delta, t.a, t.b, t.c, {}, {}, t.y, false};
  selective_scan(ctx, args);
  const std::vector<double> forward = values(t.y);
  args.reverse = true;
  selective_scan(ctx, args);
  CHECK(values(t.y) == forward);
  std::vector<double> want;
  for (int64_t i = 0; i < length; ++i)
    for (int64_t k = 0; k < d; ++k) {
      double dot = 0;
      for (int64_t j = 0; j < s; ++j) dot += get(t.b, i * s + j) * get(t.c, i * s + j);
      want.push_back(dot * get(t.delta, i * d + k) * get(t.u, i * d + k));
    }
  check_close(t.y, want, {16 * 0x1p-24});
  fill(t.a, 0);  // running sums
  args.reverse = false;
  selective_scan(ctx, args);
  check_close(t.y, scanned(t, false), {64 * 0x1p-24 * 4});
  const std::vector<double> apart = values(t.y);
  args.y = t.u;
  selective_scan(ctx, args);
  CHECK(values(t.u) == apart);
  args.b = random(ctx, DType::f32, {length - 1, s}, r);
  CHECK_THROWS_WITH(selective_scan(ctx, args), ContainsSubstring("'b'"));
  args.b = t.b;
  args.a = random(ctx, DType::f32, {s, d}, r);
  CHECK_THROWS_WITH(selective_scan(ctx, args), ContainsSubstring("'a'"));
}

TEST_CASE("selective scan: softplus of delta and bias, over its whole range") {
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(315);
    const int64_t length = 60, d = 37, s = 2;
    // a = 0, b = c = u = 1: y_t is the sum of s deltas so far, so one token shows softplus itself.
    for (bool biased : {false, true}) {
      const Tensor u = ctx.allocate(DType::f32, {length, 1, d}),
                   one = ctx.allocate(DType::f32, {length, 1, s}), a = ctx.allocate(DType::f32, {d, s}),
                   delta = random(ctx, DType::f32, {length, 1, d}, r, -30, 30),
                   bias = random(ctx, DType::f32, {d}, r, -3, 3),
                   y = poisoned(ctx, DType::f32, {length, 1, d});
      fill(u, 1), fill(one, 1), fill(a, 0);
      put(delta, 0, 0), put(delta, 1, 100), put(delta, 2, -100), put(delta, 3, 1e-8);
      SelectiveScanArgs args{u, delta, a, one, one, {}, {}, y, false, true};
      if (biased) args.bias = bias;
      const Cost cost = charged(ctx, [&] { selective_scan(ctx, args); });
      CHECK(cost == selective_scan_cost(args));
      std::vector<double> want, slack;
      for (int64_t i = 0; i < length * d; ++i) {
        const double x = get(delta, i) + (biased ? get(bias, i % d) : 0);
        want.push_back(2 * (std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)))));
        // The sum with the bias is rounded once; softplus itself keeps its relative accuracy.
        slack.push_back(want.back() * 8 * 0x1p-24 +
                        (biased ? 2 * 33 * 0x1p-24 * std::min(1.0, want.back()) : 0) + 1e-37);
      }
      check_close(y, want, slack);
    }
    SelectiveScanArgs wrong;
    wrong.u = wrong.delta = wrong.y = random(ctx, DType::f32, {2, 3}, r);
    wrong.a = random(ctx, DType::f32, {3, 1}, r), wrong.b = wrong.c = random(ctx, DType::f32, {2, 1}, r);
    wrong.bias = random(ctx, DType::f32, {3}, r);
    CHECK_THROWS_WITH(selective_scan(ctx, wrong), ContainsSubstring("softplus"));
  });
}

TEST_CASE("iir: sections one after the other, both directions, steady starts") {
  const DType type = GENERATE(DType::f64, DType::f32);
  Context ctx(cpu_backend(), 2);
  Random r(313);
  const std::vector<Biquad> sections = {
      {0.2, 0.3, -0.1, -0.5, 0.25}, {1.0, -0.4, 0, 0.3, 0}, {0.5, 0, 0.5, -0.9, 0.5}};
  for (int64_t n : {1, 2, 50})
    for (bool reverse : {false, true})
      for (bool steady : {false, true}) {
        const Tensor x = random(ctx, type, {3, n + 2}, r).slice(1, 1, n + 1),
                     y = poisoned(ctx, type, {3, n + 2}).slice(1, 1, n + 1);
        IirArgs args{x, y, sections, steady, reverse};
        const Cost cost = charged(ctx, [&] { iir(ctx, args); });
        CHECK(cost.matmul == 10 * 3 * 3 * n);
        std::vector<double> want;
        for (int64_t b = 0; b < 3; ++b) {
          std::vector<double> v = values(x.select(0, b));
          if (reverse) std::reverse(v.begin(), v.end());
          // A steady start is a long run of the first value.
          const int64_t before = steady ? 400 : 0;
          v.insert(v.begin(), static_cast<size_t>(before), v[0]);
          for (const Biquad& q : sections) {
            std::vector<double> out(v.size());
            for (size_t t = 0; t < v.size(); ++t)
              out[t] = q.b0 * v[t] + (t > 0 ? q.b1 * v[t - 1] - q.a1 * out[t - 1] : 0) +
                       (t > 1 ? q.b2 * v[t - 2] - q.a2 * out[t - 2] : 0);
            v = out;
          }
          v.erase(v.begin(), v.begin() + before);
          if (reverse) std::reverse(v.begin(), v.end());
          want.insert(want.end(), v.begin(), v.end());
        }
        check_close(y, want, {1e-13});
        args.y = x;
        iir(ctx, args);
        CHECK(same_bits(x, y));
      }
  const Tensor x = random(ctx, type, {4}, r);
  CHECK_THROWS_WITH(iir(ctx, {x, x, {}, false, false}), ContainsSubstring("0 sections"));
}

TEST_CASE("extend: every mode, by hand") {
  using Mode = ExtendArgs::Mode;
  const DType type = GENERATE(DType::f64, DType::f32);
  Context ctx(cpu_backend(), 1);
  const Tensor x = ctx.allocate(type, {1, 4});
  for (int64_t i = 0; i < 4; ++i) put(x, i, static_cast<double>(1 << i));
  const auto run = [&](Mode mode, int64_t before, int64_t after) {
    const Tensor y = poisoned(ctx, type, {1, before + 4 + after});
    extend(ctx, {mode, x, y, before, after});
    return values(y);
  };
  CHECK(run(Mode::zeros, 2, 1) == std::vector<double>{0, 0, 1, 2, 4, 8, 0});
  CHECK(run(Mode::reflect, 3, 2) == std::vector<double>{8, 4, 2, 1, 2, 4, 8, 4, 2});
  CHECK(run(Mode::odd, 2, 3) == std::vector<double>{-2, 0, 1, 2, 4, 8, 12, 14, 15});
  CHECK(run(Mode::edge, 1, 5) == std::vector<double>{1, 1, 2, 4, 8, 8, 8, 8, 8, 8});
  CHECK(run(Mode::odd, 0, 0) == std::vector<double>{1, 2, 4, 8});
  CHECK_THROWS_WITH(run(Mode::reflect, 4, 0), ContainsSubstring("by 4 points"));
}

TEST_CASE("fir is a convolution, backwards a correlation") {
  Context ctx(cpu_backend(), 2);
  Random r(314);
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {10, 3}, {3, 10}, {257, 31}})
    for (bool reverse : {false, true}) {
      const Tensor x = random(ctx, DType::f32, {2, n}, r), taps = random(ctx, DType::f32, {k}, r),
                   y = poisoned(ctx, DType::f32, {2, n});
      fir(ctx, {x, taps, y, reverse});
      std::vector<double> want;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t t = 0; t < n; ++t) {
          double sum = 0;
          for (int64_t j = 0; j < k; ++j) {
            const int64_t at = reverse ? t + j : t - j;
            if (at >= 0 && at < n) sum += get(taps, j) * get(x, b * n + at);
          }
          want.push_back(sum);
        }
      INFO("N " << n << ", K " << k);
      check_close(y, want,
                  {60 * 0x1p-24 * (std::log2(static_cast<double>(fir_length(n, k))) + 2) *
                   std::sqrt(static_cast<double>(std::min(n, k)))});
    }
}

TEST_CASE("the analytic signal of a cosine is a phasor; odd and even lengths") {
  Context ctx(cpu_backend(), 2);
  for (int64_t n : {1, 2, 3, 24, 75}) {
    const Tensor x = ctx.allocate(DType::f32, {2, n}), y = poisoned(ctx, DType::f32, {2, n, 2});
    std::vector<double> want;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = 0; t < n; ++t) {
        // A mean, one frequency and, for even n, the highest one, which has no imaginary part.
        const double phase = 2 * std::numbers::pi * static_cast<double>(t) / static_cast<double>(n) + 0.3;
        const bool wave = n > 2;
        const double top = n % 2 == 0 ? (t % 2 == 0 ? 0.25 : -0.25) : 0.0;
        put(x, b * n + t, 0.5 + static_cast<double>(b) + (wave ? std::cos(phase) : 0) + top);
        want.push_back(0.5 + static_cast<double>(b) + (wave ? std::cos(phase) : 0) + top);
        want.push_back(wave ? std::sin(phase) : 0);
      }
    const Cost cost = charged(ctx, [&] { analytic_signal(ctx, x, y); });
    CHECK(cost == analytic_signal_cost(2, n));
    INFO("n " << n);
    check_close(y, want, {40 * 0x1p-24 * (std::log2(static_cast<double>(n)) + 2)});
  }
}
