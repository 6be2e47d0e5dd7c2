// fft1, complex_pointwise, stft, istft and the Toeplitz products against their definitions in double.
#include <complex>
#include <numbers>

#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = Fft1Args::Kind;
using Complex = std::complex<double>;

namespace {

std::vector<Complex> transform(std::vector<Complex> x, int64_t n, int sign) {
  x.resize(static_cast<size_t>(n));
  std::vector<Complex> y(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k)
    for (int64_t j = 0; j < n; ++j)
      y[static_cast<size_t>(k)] +=
          x[static_cast<size_t>(j)] *
          std::polar(1.0,
                     sign * 2 * std::numbers::pi * static_cast<double>(j * k % n) / static_cast<double>(n));
  return y;
}

/// An f32 transform of n values up to `most`: log2 n roundings of values up to sqrt(n) most, doubled twice
/// for the sums inside a butterfly and for uneven luck.
double slack_of(int64_t n, double most) {
  return 24 * 0x1p-24 * (std::log2(static_cast<double>(n)) + 2) * std::sqrt(static_cast<double>(n)) * most;
}

std::vector<double> flat(const std::vector<Complex>& z, int64_t count, double scale) {
  std::vector<double> v;
  for (int64_t i = 0; i < count; ++i) {
    v.push_back(z[static_cast<size_t>(i)].real() * scale);
    v.push_back(z[static_cast<size_t>(i)].imag() * scale);
  }
  return v;
}

/// Row `b` of a rank-2 (real) or rank-3 (complex) tensor.
std::vector<Complex> line(const Tensor& t, int64_t b) {
  const std::vector<double> v = values(t.select(0, b));
  std::vector<Complex> z;
  if (t.rank() == 2)
    for (double x : v) z.emplace_back(x);
  else
    for (size_t i = 0; i < v.size(); i += 2) z.emplace_back(v[i], v[i + 1]);
  return z;
}

/// [batch, line...] with rows apart, off their alignment and poison between.
Tensor rows_apart(Context& ctx, const Shape& s) {
  int64_t step = 1;
  for (int i = 1; i < s.rank(); ++i) step *= s[i];
  const Tensor base = poisoned(ctx, DType::f32, {s[0] * (step + 3) + 1});
  return s.rank() == 2 ? base.strided(s, {step + 3, 1}, 1) : base.strided(s, {step + 3, 2, 1}, 1);
}

}  // namespace

TEST_CASE("fft1: every kind and length, padded and cropped, strided, against the definition") {
  Context ctx(cpu_backend(), 2);
  Random r(211);
  for (int64_t n : {1, 2, 3, 4, 5, 7, 12, 16, 31, 60, 97, 128, 200})
    for (int64_t less : {int64_t{0}, n / 3}) {
      const int64_t m = n - less, half = n / 2 + 1, batch = 3;
      const float scale = 0.75f;
      INFO("n " << n << ", m " << m);
      const Tensor real = randomize(rows_apart(ctx, {batch, m}), r),
                   spectrum = rows_apart(ctx, {batch, half, 2});
      const std::vector<double> before = values(real);
      fft1(ctx, {Kind::real_to_half, real, spectrum, n, scale});
      CHECK(values(real) == before);
      for (int64_t b = 0; b < batch; ++b)
        check_close(spectrum.select(0, b), flat(transform(line(real, b), n, -1), half, 0.75),
                    {slack_of(n, 1)});
      // Any half spectrum: what bin 0 and the middle bin have of imaginary parts counts as 0.
      const Tensor bins = randomize(rows_apart(ctx, {batch, half, 2}), r), back = rows_apart(ctx, {batch, m});
      const std::vector<double> bins_before = values(bins);
      fft1(ctx, {Kind::half_to_real, bins, back, n, scale});
      CHECK(values(bins) == bins_before);
      for (int64_t b = 0; b < batch; ++b) {
        std::vector<Complex> whole = line(bins, b);
        whole[0] = whole[0].real();
        if (n % 2 == 0) whole.back() = whole.back().real();
        for (int64_t k = half; k < n; ++k) whole.push_back(std::conj(whole[static_cast<size_t>(n - k)]));
        std::vector<double> want;
        const std::vector<Complex> y = transform(whole, n, 1);
        for (int64_t j = 0; j < m; ++j) want.push_back(0.75 * y[static_cast<size_t>(j)].real());
        check_close(back.select(0, b), want, {slack_of(n, 2)});
      }
      for (const Kind kind : {Kind::complex_forward, Kind::complex_inverse}) {
        const int sign = kind == Kind::complex_forward ? -1 : 1;
        const Tensor z = randomize(rows_apart(ctx, {batch, m, 2}), r), y = rows_apart(ctx, {batch, half, 2});
        fft1(ctx, {kind, z, y, n, scale});
        std::vector<double> in_place;
        for (int64_t b = 0; b < batch; ++b) {
          const std::vector<Complex> whole = transform(line(z, b), n, sign);
          check_close(y.select(0, b), flat(whole, half, 0.75), {slack_of(n, 2)});
          const std::vector<double> kept = flat(whole, m, 0.75);
          in_place.insert(in_place.end(), kept.begin(), kept.end());
        }
        fft1(ctx, {kind, z, z, n, scale});
        check_close(z, in_place, {slack_of(n, 2)});
      }
    }
}

TEST_CASE("fft1 takes any batch axes, charges 5 n log2 n and refuses misfits") {
  Context ctx(cpu_backend(), 2);
  Random r(212);
  const Tensor x = random(ctx, DType::f32, {2, 5, 3, 8}, r).transpose(1, 2);
  const Tensor y = poisoned(ctx, DType::f32, {2, 3, 5, 5, 2});
  const Cost cost = charged(ctx, [&] { fft1(ctx, {Kind::real_to_half, x, y, 8, 1.0f}); });
  CHECK(cost == Cost{30 * 60, 0, 0, 4 * 240, 4 * 300});
  check_close(y.select(0, 1).select(0, 2).select(0, 4),
              flat(transform(line(x.select(0, 1).select(0, 2), 4), 8, -1), 5, 1.0), {slack_of(8, 1)});
  CHECK(fft1_flops(Kind::complex_forward, 3, 32) == 3 * 800);
  CHECK(fft1_flops(Kind::half_to_real, 7, 1) == 0);
  CHECK_THROWS_WITH(fft1(ctx, {Kind::real_to_half, x, y, 7, 1.0f}), ContainsSubstring("'x'"));
  CHECK_THROWS_WITH(fft1(ctx, {Kind::real_to_half, x, y, 12, 1.0f}), ContainsSubstring("takes 7"));
  CHECK_THROWS_WITH(fft1(ctx, {Kind::real_to_half, x, y.slice(0, 0, 1), 8, 1.0f}),
                    ContainsSubstring("batch"));
  CHECK_THROWS_WITH(fft1(ctx, {Kind::complex_forward, x, x, 8, 1.0f}), ContainsSubstring("must be 2"));
  CHECK_THROWS_WITH(fft1(ctx, {Kind::real_to_half, x, y, 0, 1.0f}), ContainsSubstring("length is 0"));
  const Tensor none = ctx.allocate(DType::f32, {0, 8}), empty = ctx.allocate(DType::f32, {0, 5, 2});
  CHECK_NOTHROW(fft1(ctx, {Kind::real_to_half, none, empty, 8, 1.0f}));
}

TEST_CASE("fft1 does not depend on the number of threads") {
  Random r(213);
  Context one(cpu_backend(), 1), many(cpu_backend(), 3);
  const Tensor x = random(one, DType::f32, {700, 200}, r);
  const Tensor a = poisoned(one, DType::f32, {700, 101, 2}), b = poisoned(one, DType::f32, {700, 101, 2});
  fft1(one, {Kind::real_to_half, x, a, 200, 1.0f});
  fft1(many, {Kind::real_to_half, x, b, 200, 1.0f});
  CHECK(same_bits(a, b));
}

TEST_CASE("complex_pointwise: every operation with every broadcast") {
  using Op = ComplexArgs::Op;
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(214);
    for (const Shape& grid : {Shape{2, 3, 37}, Shape{1, 1, 1}, Shape{3, 1, 4099}})
      for (const Shape& other :
           {grid, Shape{grid[2]}, Shape{1, grid[1], 1}, Shape{grid[0], 1, grid[2]}, Shape{1}}) {
        const auto with_two = [](const Shape& s) {
          std::vector<int64_t> d(s.begin(), s.end());
          d.push_back(2);
          return Shape(std::span<const int64_t>(d.data(), d.size()));
        };
        const Tensor a = random(ctx, DType::f32, with_two(grid), r),
                     b = random(ctx, DType::f32, with_two(other), r),
                     y = poisoned(ctx, DType::f32, with_two(grid));
        // The number of b that belongs to number i of a.
        const auto of_b = [&](int64_t i) {
          const int64_t at[3] = {i / grid[2] / grid[1], i / grid[2] % grid[1], i % grid[2]};
          int64_t j = 0;
          for (int k = 0; k < other.rank(); ++k) {
            const int axis = k + 3 - other.rank();
            j = j * other[k] + (other[k] == 1 ? 0 : at[axis]);
          }
          return j;
        };
        const std::vector<double> va = values(a), vb = values(b);
        for (Op op : {Op::multiply, Op::multiply_conj, Op::divide, Op::polar}) {
          INFO("operation " << static_cast<int>(op) << " " << grid.str() << " " << other.str());
          ComplexArgs args;
          args.op = op, args.a = a, args.b = b, args.y = y;
          args.eps = op == Op::divide ? 0.25f : 0.0f;
          if (op == Op::polar)
            args.a = random(ctx, DType::f32, grid, r), args.b = random(ctx, DType::f32, other, r, -9, 9);
          poison(y);
          complex_pointwise(ctx, args);
          const std::vector<double> ra = values(args.a), rb = values(args.b);
          std::vector<double> want;
          for (int64_t i = 0; i < grid.numel(); ++i) {
            const auto j = static_cast<size_t>(of_b(i)), k = static_cast<size_t>(i);
            Complex z;
            if (op == Op::polar) {
              z = Complex(ra[k] * std::cos(rb[j]), ra[k] * std::sin(rb[j]));
            } else {
              const Complex p(va[2 * k], va[2 * k + 1]), q(vb[2 * j], vb[2 * j + 1]);
              z = op == Op::multiply        ? p * q
                  : op == Op::multiply_conj ? p * std::conj(q)
                                            : p * std::conj(q) / (std::norm(q) + 0.0625);
            }
            want.push_back(z.real());
            want.push_back(z.imag());
          }
          // Quotients reach 2; a few roundings each.
          check_close(y, want, {8 * 0x1p-24 * 2});
        }
        const Tensor real = poisoned(ctx, DType::f32, grid);
        std::vector<double> size, angle;
        for (int64_t i = 0; i < grid.numel(); ++i) {
          const Complex p(va[static_cast<size_t>(2 * i)], va[static_cast<size_t>(2 * i + 1)]);
          size.push_back(std::abs(p));
          angle.push_back(std::arg(p));
        }
        ComplexArgs args;
        args.a = a, args.y = real;
        args.op = Op::magnitude;
        complex_pointwise(ctx, args);
        check_close(real, size, {4 * 0x1p-24 * 1.5});
        args.op = Op::angle;
        poison(real);
        complex_pointwise(ctx, args);
        check_close(real, angle, {4 * 0x1p-24 * 4});
      }
  });
}

TEST_CASE("complex_pointwise at the edges: zeros, signed zeros, extremes, NaN, in place") {
  using Op = ComplexArgs::Op;
  Context ctx(cpu_backend(), 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto tensor = [&](const std::vector<float>& v) {
    const Tensor t = ctx.allocate(DType::f32, {static_cast<int64_t>(v.size()) / 2, 2});
    std::copy(v.begin(), v.end(), t.data<float>());
    return t;
  };
  each_isa([&] {
    const Tensor z = tensor({0, 0, -1, -0.0f, -1, 1e-7f, -0.0f, 0, 3e30f, 4e30f, 3e-30f, 4e-30f, nan, 1});
    const Tensor y = poisoned(ctx, DType::f32, {7});
    ComplexArgs args;
    args.a = z, args.y = y;
    args.op = Op::magnitude;
    complex_pointwise(ctx, args);
    check_close(y, {0, 1, 1, 0, 5e30, 5e-30, std::nan("")}, {0.0, 1e-7, 1e-7, 0.0, 1e24, 1e-36, 0});
    args.op = Op::angle;
    args.snap = 1e-6f;
    complex_pointwise(ctx, args);
    const double pi = std::numbers::pi;
    // -1 - 0i is real, so its angle is +pi; so is -1 + 1e-7 i within the snap.
    check_close(y, {0, pi, pi, 0, std::atan2(4, 3), std::atan2(4, 3), std::nan("")}, {1e-6});
    CHECK(get(y, 1) > 3);
    const Tensor a = tensor({1, 2, 3, 4}), b = tensor({0, 0, 0, 2});
    args = {};
    args.op = Op::divide;
    args.a = args.y = a, args.b = b;
    complex_pointwise(ctx, args);
    check_close(a, {0, 0, 2, -1.5}, {1e-6});
    args.b = a.slice(0, 0, 1);
    CHECK_THROWS_WITH(complex_pointwise(ctx, args), ContainsSubstring("overlap"));
    args.b = tensor({1, 1, 1, 1, 1, 1});
    CHECK_THROWS_WITH(complex_pointwise(ctx, args), ContainsSubstring("broadcast"));
    args.op = Op::magnitude;
    CHECK_THROWS_WITH(complex_pointwise(ctx, args), ContainsSubstring("no 'b'"));
  });
  {
    // Powers: |3 + 4i|^2, 0^0.3, and back again through polar.
    const Tensor z = tensor({3, 4, 0, 0, 0.5, 0}), r = poisoned(ctx, DType::f32, {3}),
                 back = poisoned(ctx, DType::f32, {3, 2});
    ComplexArgs args;
    args.op = Op::magnitude, args.a = z, args.y = r, args.power = 0.3f;
    const Cost cost = charged(ctx, [&] { complex_pointwise(ctx, args); });
    CHECK(cost.special == 6);
    check_close(r, {std::pow(5, 0.3), 0, std::pow(0.5, 0.3)}, {1e-6});
    const Tensor phase = poisoned(ctx, DType::f32, {3});
    args = {};
    args.op = Op::angle, args.a = z, args.y = phase;
    complex_pointwise(ctx, args);
    args = {};
    args.op = Op::polar, args.a = r, args.b = phase, args.y = back, args.power = 1 / 0.3f;
    complex_pointwise(ctx, args);
    check_close(back, {3, 4, 0, 0, 0.5, 0}, {1e-5});
    args.op = Op::multiply, args.a = args.b = z;
    args.y = poisoned(ctx, DType::f32, {3, 2});
    CHECK_THROWS_WITH(complex_pointwise(ctx, args), ContainsSubstring("power"));
  }
  const Tensor a = tensor({1, 2, 3, 4}), b = tensor({5, 6}), y = poisoned(ctx, DType::f32, {2, 2});
  ComplexArgs args;
  args.a = a, args.b = b, args.y = y;
  CHECK(charged(ctx, [&] { complex_pointwise(ctx, args); }) == Cost{0, 12, 0, 24, 16});
}

TEST_CASE("a Toeplitz product is the sum of its definition") {
  Context ctx(cpu_backend(), 2);
  Random r(215);
  for (const auto& [n, m] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {5, 1}, {16, 16}, {24, 24}, {37, 11}, {9, 40}})
    for (int64_t kernels : {1, 3}) {
      const Tensor c = random(ctx, DType::f32, {1, kernels, n + m - 1}, r, 0, 1),
                   x = random(ctx, DType::f32, {2, 3, m}, r), y = poisoned(ctx, DType::f32, {2, 3, n});
      toeplitz_product(ctx, {c.strided({kernels == 1 ? 1 : 1, kernels, n + m - 1}, c.strides()), x, y});
      std::vector<double> want;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t h = 0; h < 3; ++h)
          for (int64_t i = 0; i < n; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < m; ++j)
              sum +=
                  get(c, (kernels == 1 ? 0 : h) * (n + m - 1) + j - i + n - 1) * get(x, (b * 3 + h) * m + j);
            want.push_back(sum);
          }
      INFO("N " << n << ", M " << m);
      // Norms of kernel and line bound what a transform's rounding does.
      const int64_t length = toeplitz_length(n, m);
      check_close(y, want, {3 * slack_of(length, 1) * std::sqrt(static_cast<double>(std::max(n, m)) / 12)});
    }
  CHECK(toeplitz_length(24, 24) == 64);
  CHECK(toeplitz_length(16, 17) == 32);
  const Tensor c = random(ctx, DType::f32, {7}, r), x = random(ctx, DType::f32, {4}, r);
  CHECK_THROWS_WITH(toeplitz_product(ctx, {c, x, ctx.allocate(DType::f32, {5})}),
                    ContainsSubstring("N + M - 1 = 8"));
}

TEST_CASE("Toeplitz attention: lines and grids, N != M, chunks, against the double sum") {
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(216);
    struct Case {
      int64_t qh, qw, kh, kw, features, channels;
      bool shared;
    };
    for (const Case& g :
         {Case{1, 1, 1, 1, 1, 1, true}, Case{1, 24, 1, 24, 5, 3, false}, Case{1, 9, 1, 20, 2, 4, true},
          Case{3, 5, 3, 5, 4, 2, false}, Case{4, 2, 2, 7, 3, 1, true}}) {
      const int64_t n = g.qh * g.qw, m = g.kh * g.kw, batch = 2, heads = 2;
      const int64_t lh = g.qh + g.kh - 1, lw = toeplitz_length(g.qw, g.kw), kernels = g.shared ? 1 : heads;
      const Tensor q = random(ctx, DType::f32, {batch, n, heads, g.features}, r, 0.1, 1).transpose(1, 2),
                   k = random(ctx, DType::f32, {batch, heads, m, g.features}, r, 0.1, 1),
                   v = random(ctx, DType::f32, {batch, heads, m, g.channels}, r),
                   o = poisoned(ctx, DType::f32, {batch, heads, n, g.channels});
      // c(dy, dx) for offsets key - query, laid out as circulant: c(-r) at r.
      const Tensor c = random(ctx, DType::f32, {kernels, 1, g.qh + g.kh - 1, g.qw + g.kw - 1}, r, 0.05, 1);
      const Tensor circulant = ctx.allocate(DType::f32, {kernels, lh, lw});
      fill(circulant, 0);
      for (int64_t h = 0; h < kernels; ++h)
        for (int64_t y = -(g.qh - 1); y < g.kh; ++y)
          for (int64_t x = -(g.qw - 1); x < g.kw; ++x)
            put(circulant, (h * lh + (lh - y) % lh) * lw + (lw - x) % lw,
                get(c, (h * (g.qh + g.kh - 1) + y + g.qh - 1) * (g.qw + g.kw - 1) + x + g.qw - 1));
      const Tensor spectrum = ctx.allocate(DType::f32, {kernels, lh, lw / 2 + 1, 2});
      fft2(ctx,
           {Fft2Args::Kind::real_to_half, circulant, spectrum, lh, lw, 1.0f / static_cast<float>(lh * lw)});
      ToeplitzAttentionArgs args;
      args.q = q, args.k = k, args.v = v, args.spectrum = spectrum, args.o = o;
      args.q_grid[0] = g.qh, args.q_grid[1] = g.qw, args.k_grid[0] = g.kh, args.k_grid[1] = g.kw;
      args.fft[0] = lh, args.fft[1] = lw, args.chunk = 2;
      const Cost cost = charged(ctx, [&] { toeplitz_attention(ctx, args); });
      CHECK(cost == toeplitz_attention_cost(args));
      CHECK(cost.matmul == batch * heads * 2 * g.features * (g.channels + 1) *
                               fft2_flops(Fft2Args::Kind::real_to_half, 1, lh, lw));
      std::vector<double> want;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t i = 0; i < n; ++i) {
            std::vector<double> sum(static_cast<size_t>(g.channels));
            double total = 0;
            for (int64_t j = 0; j < m; ++j) {
              double dot = 0;
              for (int64_t f = 0; f < g.features; ++f)
                dot += get(q, b * q.stride(0) + h * q.stride(1) + i * q.stride(2) + f) *
                       get(k, ((b * heads + h) * m + j) * g.features + f);
              const int64_t dy = j / g.kw - i / g.qw, dx = j % g.kw - i % g.qw;
              dot *= get(c, ((g.shared ? 0 : h) * (g.qh + g.kh - 1) + dy + g.qh - 1) * (g.qw + g.kw - 1) +
                                dx + g.qw - 1);
              total += dot;
              for (int64_t e = 0; e < g.channels; ++e)
                sum[static_cast<size_t>(e)] += dot * get(v, ((b * heads + h) * m + j) * g.channels + e);
            }
            for (double s : sum) want.push_back(s / total);
          }
      INFO("queries " << g.qh << " x " << g.qw << ", keys " << g.kh << " x " << g.kw);
      // Weights are positive and within a factor of 400 of each other; a mean of values up to 1.
      check_close(o, want, {64 * 0x1p-24 * (std::log2(static_cast<double>(lh * lw)) + 2)});
      args.fft[1] = g.qw + g.kw - 2;
      if (args.fft[1] > 0)
        CHECK_THROWS_WITH(toeplitz_attention(ctx, args), ContainsSubstring("wraps around"));
    }
  });
}

TEST_CASE("a denominator that is not positive counts as 1") {
  Context ctx(cpu_backend(), 1);
  const Tensor one = ctx.allocate(DType::f32, {1, 1, 1, 1}), k = ctx.allocate(DType::f32, {1, 1, 1, 1}),
               v = ctx.allocate(DType::f32, {1, 1, 1, 1}), o = poisoned(ctx, DType::f32, {1, 1, 1, 1}),
               spectrum = ctx.allocate(DType::f32, {1, 1, 1, 2});
  fill(one, 1), fill(v, 3), fill(spectrum, 1), put(spectrum, 1, 0);
  ToeplitzAttentionArgs args;
  args.q = one, args.k = k, args.v = v, args.spectrum = spectrum, args.o = o;
  args.q_grid[1] = args.k_grid[1] = args.fft[1] = 1;
  fill(k, -2);
  toeplitz_attention(ctx, args);
  CHECK(get(o, 0) == -6);
  fill(k, 2);
  toeplitz_attention(ctx, args);
  CHECK(get(o, 0) == 3);
}

TEST_CASE("stft: offsets, windows shorter than frames, every border, against the definition") {
  Context ctx(cpu_backend(), 2);
  Random r(217);
  struct Case {
    int64_t n, n_fft, hop, width, offset, window_offset, frames;
    SignalBorder border;
  };
  for (const Case& g :
       {Case{100, 16, 8, 16, 0, 0, 11, SignalBorder::none},
        Case{53, 20, 7, 12, 10, 4, 8, SignalBorder::reflect},
        Case{40, 15, 5, 15, 7, 0, 9, SignalBorder::zeros},
        Case{30, 64, 16, 24, 12, 0, 3, SignalBorder::zeros},
        Case{9, 16, 1, 16, 8, 0, 10, SignalBorder::reflect}, Case{1, 4, 2, 4, 2, 0, 2, SignalBorder::zeros},
        Case{200, 200, 100, 200, 0, 0, 1, SignalBorder::none}}) {
    const int64_t half = g.n_fft / 2 + 1;
    const Tensor x = randomize(rows_apart(ctx, {3, g.n}), r),
                 window = random(ctx, DType::f32, {g.width}, r, 0.1, 1);
    const Tensor y = poisoned(ctx, DType::f32, {3, g.frames, half, 2});
    StftArgs args{x, window, y, g.n_fft, g.hop, g.offset, g.window_offset, g.border, 0.5f};
    const Cost cost = charged(ctx, [&] { stft(ctx, args); });
    CHECK(cost == stft_cost(3, g.n, g.frames, g.n_fft, g.width));
    INFO("n " << g.n << ", n_fft " << g.n_fft);
    for (int64_t b = 0; b < 3; ++b)
      for (int64_t t = 0; t < g.frames; ++t) {
        std::vector<Complex> frame(static_cast<size_t>(g.n_fft));
        for (int64_t i = 0; i < g.width; ++i) {
          int64_t at = t * g.hop - g.offset + g.window_offset + i;
          double v = 0;
          if (g.border == SignalBorder::reflect) at = at < 0 ? -at : at >= g.n ? 2 * (g.n - 1) - at : at;
          if (at >= 0 && at < g.n) v = get(x, b * x.stride(0) + at);
          frame[static_cast<size_t>(g.window_offset + i)] = v * get(window, i);
        }
        check_close(y.select(0, b).select(0, t), flat(transform(frame, g.n_fft, -1), half, 0.5),
                    {slack_of(g.n_fft, 1)});
      }
    // In f64: the same, within one rounding to storage.
    args.f64 = true;
    poison(y);
    stft(ctx, args);
    for (int64_t b = 0; b < 3; ++b)
      for (int64_t t = 0; t < g.frames; ++t) {
        std::vector<Complex> frame(static_cast<size_t>(g.n_fft));
        for (int64_t i = 0; i < g.width; ++i) {
          int64_t at = t * g.hop - g.offset + g.window_offset + i;
          double v = 0;
          if (g.border == SignalBorder::reflect) at = at < 0 ? -at : at >= g.n ? 2 * (g.n - 1) - at : at;
          if (at >= 0 && at < g.n) v = get(x, b * x.stride(0) + at);
          frame[static_cast<size_t>(g.window_offset + i)] = v * get(window, i);
        }
        check_close(y.select(0, b).select(0, t), flat(transform(frame, g.n_fft, -1), half, 0.5),
                    {1e-13 * static_cast<double>(g.n_fft)});
      }
    StftArgs beyond = args;
    beyond.border = SignalBorder::none;
    beyond.offset = -g.n;
    CHECK_THROWS_WITH(stft(ctx, beyond), ContainsSubstring("behind a signal"));
  }
}

TEST_CASE("istft adds windowed frames and divides by their power; it undoes stft") {
  Context ctx(cpu_backend(), 2);
  Random r(218);
  struct Case {
    int64_t n, n_fft, hop, width, offset, window_offset, frames;
  };
  for (const Case& g : {Case{100, 16, 4, 16, 8, 0, 26}, Case{5000, 20, 7, 12, 10, 4, 716},
                        Case{40, 15, 5, 15, 0, 0, 3}, Case{7, 8, 3, 5, -2, 1, 2}}) {
    const int64_t half = g.n_fft / 2 + 1;
    const Tensor x = random(ctx, DType::f32, {2, g.frames, half, 2}, r),
                 window = random(ctx, DType::f32, {g.width}, r, 0.5, 1);
    const Tensor y = rows_apart(ctx, {2, g.n});
    const Cost cost = charged(ctx, [&] {
      istft(ctx, {x, window, y, g.n_fft, g.hop, g.offset, g.window_offset, 2.0f});
    });
    CHECK(cost == istft_cost(2, g.n, g.frames, g.n_fft, g.width));
    INFO("n " << g.n);
    for (int64_t b = 0; b < 2; ++b) {
      std::vector<double> sum(static_cast<size_t>(g.n)), power(static_cast<size_t>(g.n));
      for (int64_t t = 0; t < g.frames; ++t) {
        std::vector<Complex> whole = line(x.select(0, b), t);
        whole[0] = whole[0].real();
        if (g.n_fft % 2 == 0) whole.back() = whole.back().real();
        for (int64_t k = half; k < g.n_fft; ++k)
          whole.push_back(std::conj(whole[static_cast<size_t>(g.n_fft - k)]));
        const std::vector<Complex> frame = transform(whole, g.n_fft, 1);
        for (int64_t i = 0; i < g.width; ++i) {
          const int64_t j = t * g.hop - g.offset + g.window_offset + i;
          if (j < 0 || j >= g.n) continue;
          const double w = get(window, i);
          sum[static_cast<size_t>(j)] +=
              2 * w * frame[static_cast<size_t>(g.window_offset + i)].real() / static_cast<double>(g.n_fft);
          power[static_cast<size_t>(j)] += w * w;
        }
      }
      for (size_t j = 0; j < sum.size(); ++j)
        if (power[j] > 0) sum[j] /= power[j];
      check_close(y.select(0, b), sum, {slack_of(g.n_fft, 4)});
    }
  }
  // A centred pair with a Hann window gives the signal back, ends included.
  const int64_t n = 333, n_fft = 32, hop = 8, frames = 1 + n / hop;
  const Tensor signal = random(ctx, DType::f32, {2, n}, r), hann = ctx.allocate(DType::f32, {n_fft});
  for (int64_t i = 0; i < n_fft; ++i)
    put(hann, i,
        0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n_fft)));
  const Tensor spectrum = poisoned(ctx, DType::f32, {2, frames, n_fft / 2 + 1, 2}),
               back = poisoned(ctx, DType::f32, {2, n});
  stft(ctx, {signal, hann, spectrum, n_fft, hop, n_fft / 2, 0, SignalBorder::reflect, 1.0f});
  istft(ctx, {spectrum, hann, back, n_fft, hop, n_fft / 2, 0, 1.0f});
  check_close(back, values(signal), {1e-6});
}
