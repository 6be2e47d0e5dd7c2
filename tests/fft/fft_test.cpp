// fft2 against the definition of the transform in double, spectral_mask against shifted masks.
#include "kernels/fft/fft.hpp"

#include <complex>
#include <numbers>
#include <thread>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = Fft2Args::Kind;
using Complex = std::complex<double>;

namespace {

/// The double sum of the definition, separated into rows and columns to stay affordable.
std::vector<Complex> transform(const std::vector<Complex>& x, int64_t h, int64_t w, int sign) {
  const auto line = [sign](int64_t n, auto get, auto put) {
    std::vector<Complex> out(static_cast<size_t>(n));
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < n; ++j)
        out[static_cast<size_t>(k)] +=
            get(j) * std::polar(1.0, sign * 2 * std::numbers::pi * static_cast<double>(j * k % n) /
                                         static_cast<double>(n));
    for (int64_t k = 0; k < n; ++k) put(k, out[static_cast<size_t>(k)]);
  };
  std::vector<Complex> y = x;
  for (int64_t i = 0; i < h; ++i)
    line(
        w, [&](int64_t j) { return y[static_cast<size_t>(i * w + j)]; },
        [&](int64_t j, Complex v) { y[static_cast<size_t>(i * w + j)] = v; });
  for (int64_t j = 0; j < w; ++j)
    line(
        h, [&](int64_t i) { return y[static_cast<size_t>(i * w + j)]; },
        [&](int64_t i, Complex v) { y[static_cast<size_t>(i * w + j)] = v; });
  return y;
}

/// Runs all kinds on one grid. The error of an n-point transform grows like log n roundings of the 2-norm.
void run_and_check(Context& ctx, int64_t batch, int64_t h, int64_t w, Random& r, bool odd_batch_stride) {
  const int64_t half = w / 2 + 1, n = h * w;
  const float scale = 0.5f;
  const double norm = std::sqrt(static_cast<double>(n));
  const double slack = 6 * 0x1p-24 * (std::log2(static_cast<double>(n)) + 2) * norm * norm / std::sqrt(3.0) *
                       static_cast<double>(scale) / norm * 3;
  // A stride that is no multiple of 16 bytes makes the images' alignments differ.
  const auto images = [&](const Shape& shape) {
    Shape strided = shape, strides = shape;
    int64_t step = 1;
    for (int i = shape.rank() - 1; i > 0; --i) strides[i] = step, step *= shape[i];
    strides[0] = step + (odd_batch_stride ? 3 : 0);
    return poisoned(ctx, DType::f32, {strides[0] * std::max<int64_t>(batch, 1)}).strided(strided, strides);
  };
  const Tensor real = randomize(images({batch, h, w}), r);
  const Tensor spectrum = images({batch, h, half, 2});
  fft2(ctx, {Kind::real_to_half, real, spectrum, h, w, scale});
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<Complex> x;
    for (int64_t i = 0; i < n; ++i) x.emplace_back(get(real, b * real.stride(0) + i));
    const std::vector<Complex> y = transform(x, h, w, -1);
    std::vector<double> want;
    for (int64_t i = 0; i < h; ++i)
      for (int64_t j = 0; j < half; ++j)
        for (int part = 0; part < 2; ++part) {
          const Complex v = y[static_cast<size_t>(i * w + j)] * static_cast<double>(scale);
          want.push_back(part ? v.imag() : v.real());
        }
    check_close(spectrum.select(0, b), want, {slack});
  }
  const Tensor back = images({batch, h, w});
  fft2(ctx, {Kind::half_to_real, spectrum, back, h, w, 1.0f / (scale * static_cast<float>(n))});
  check_close(back, values(real), {slack / static_cast<double>(scale) / norm});
  const Tensor full = randomize(images({batch, h, w, 2}), r), out = images({batch, h, w, 2});
  for (int sign : {-1, 1}) {
    fft2(ctx, {sign < 0 ? Kind::complex_forward : Kind::complex_inverse, full, out, h, w, scale});
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<Complex> x;
      for (int64_t i = 0; i < n; ++i)
        x.emplace_back(get(full, b * full.stride(0) + 2 * i), get(full, b * full.stride(0) + 2 * i + 1));
      std::vector<double> want;
      for (const Complex& v : transform(x, h, w, sign)) {
        want.push_back(v.real() * static_cast<double>(scale));
        want.push_back(v.imag() * static_cast<double>(scale));
      }
      check_close(out.select(0, b), want, {1.5 * slack});
    }
  }
  // In place gives the same numbers up to rounding.
  const std::vector<double> want = values(out);
  fft2(ctx, {Kind::complex_inverse, full, full, h, w, scale});
  check_close(full, want, {2 * slack});
}

}  // namespace

TEST_CASE("all transforms agree with the definition on powers of two, primes, odd sizes and lines") {
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(111);
    for (const auto& s :
         {Shape{1, 1, 1}, Shape{3, 4, 4}, Shape{2, 8, 6}, Shape{5, 7, 9}, Shape{1, 13, 16}, Shape{4, 1, 15},
          Shape{4, 15, 1}, Shape{2, 28, 28}, Shape{1, 31, 10}, Shape{1, 10, 37}, Shape{2, 22, 26},
          Shape{1, 39, 77}, Shape{1, 64, 33}, Shape{1, 128, 34}, Shape{1, 65, 100}, Shape{1, 56, 1}})
      for (bool odd : {false, true}) run_and_check(ctx, s[0], s[1], s[2], r, odd);
  });
}

TEST_CASE("large single grids, which are cut in rows and columns, agree with the batched path") {
  Context ctx(cpu_backend(), 2);
  Random r(112);
  run_and_check(ctx, 1, 150, 260, r, false);
  run_and_check(ctx, 2, 224, 224, r, true);
  run_and_check(ctx, 1, 131, 256, r, true);  // a prime height goes to FFTW
}

TEST_CASE("the forward real transform leaves its input alone") {
  Context ctx(cpu_backend(), 1);
  Random r(113);
  const Tensor x = random(ctx, DType::f32, {3, 20, 30}, r), y = poisoned(ctx, DType::f32, {3, 20, 16, 2});
  const std::vector<double> before = values(x);
  fft2(ctx, {Kind::real_to_half, x, y, 20, 30, 1.0f});
  CHECK(values(x) == before);
}

TEST_CASE("transforms do not depend on the thread count, and plans may be made from several threads") {
  Random r(114);
  Context one(cpu_backend(), 1);
  for (const auto& s : {Shape{1, 200, 210}, Shape{7, 24, 36}}) {
    const Tensor x = random(one, DType::f32, s, r);
    const Shape half{s[0], s[1], s[2] / 2 + 1, 2};
    const Tensor y = poisoned(one, DType::f32, half);
    fft2(one, {Kind::real_to_half, x, y, s[1], s[2], 0.1f});
    for (int threads : {2, 5}) {
      Context many(cpu_backend(), threads);
      const Tensor z = poisoned(one, DType::f32, half);
      fft2(many, {Kind::real_to_half, x, z, s[1], s[2], 0.1f});
      CHECK(same_bits(y, z));
    }
  }
  const Tensor x = random(one, DType::f32, {60, 60}, r);
  std::vector<Tensor> y;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) y.push_back(poisoned(one, DType::f32, {60, 31, 2}));
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      Context own(cpu_backend(), 1);
      fft2(own, {Kind::real_to_half, x, y[static_cast<size_t>(i)], 60, 60, 1.0f});
    });
  for (auto& t : threads) t.join();
  for (int i = 1; i < 4; ++i) CHECK(same_bits(y[0], y[static_cast<size_t>(i)]));
}

TEST_CASE("fft2 charges 5 n log2 n and refuses misfits") {
  Context ctx(cpu_backend(), 1);
  Random r(115);
  CHECK(fft2_flops(Kind::complex_forward, 3, 4, 8) == 3 * 5 * 32 * 5);
  CHECK(fft2_flops(Kind::real_to_half, 1, 4, 8) == 400);
  CHECK(fft2_flops(Kind::half_to_real, 2, 3, 5) == 2 * std::llround(2.5 * 15 * std::log2(15.0)));
  CHECK(fft2_flops(Kind::complex_forward, 3, 1, 1) == 0);
  const Tensor x = random(ctx, DType::f32, {2, 6, 8}, r), y = ctx.allocate(DType::f32, {2, 6, 5, 2});
  const Cost cost = charged(ctx, [&] { fft2(ctx, {Kind::real_to_half, x, y, 6, 8, 1.0f}); });
  CHECK(cost == Cost{fft2_flops(Kind::real_to_half, 2, 6, 8), 0, 0, 4 * 96, 4 * 120});
  CHECK_THROWS_WITH(fft2(ctx, {Kind::real_to_half, x, y, 6, 9, 1.0f}), ContainsSubstring("[2, 6, 9]"));
  CHECK_THROWS_WITH(fft2(ctx, {Kind::complex_forward, x, y, 6, 5, 1.0f}), ContainsSubstring("'x'"));
  CHECK_THROWS_WITH(fft2(ctx, {Kind::half_to_real, y, x.slice(0, 0, 1), 6, 8, 1.0f}),
                    ContainsSubstring("'y'"));
  CHECK_THROWS_WITH(fft2(ctx, {Kind::real_to_half, x, y, -6, 8, 1.0f}), ContainsSubstring("-6 x 8"));
  const Tensor none = ctx.allocate(DType::f32, {0, 6, 8}), empty = ctx.allocate(DType::f32, {0, 6, 5, 2});
  CHECK_NOTHROW(fft2(ctx, {Kind::real_to_half, none, empty, 6, 8, 1.0f}));
}

TEST_CASE("a spectral mask multiplies the frequencies it is centred on") {
  const DType type = GENERATE(DType::f32, DType::u8);
  Context ctx(cpu_backend(), 2);
  each_isa([&] {
    Random r(116);
    for (const auto& s : {Shape{1, 1, 1, 1}, Shape{2, 3, 6, 8}, Shape{2, 2, 7, 5}, Shape{1, 4, 9, 70}}) {
      const int64_t h = s[2], w = s[3], half = w / 2 + 1;
      const Tensor spectrum = random(ctx, DType::f32, {s[0], s[1], h, half, 2}, r);
      const Tensor mask = ctx.allocate(type, {s[0], h, w});
      each(mask, [&](int64_t o) {
        put(mask, o, type == DType::u8 ? static_cast<double>(r.integer(0, 1)) : r.uniform());
      });
      std::vector<double> want;
      for (int64_t b = 0; b < s[0]; ++b)
        for (int64_t c = 0; c < s[1]; ++c)
          for (int64_t u = 0; u < h; ++u)
            for (int64_t v = 0; v < half; ++v) {
              const double m = get(mask, (b * h + (u + h / 2) % h) * w + (v + w / 2) % w);
              const int64_t at = (((b * s[1] + c) * h + u) * half + v) * 2;
              want.push_back(get(spectrum, at) * m);
              want.push_back(get(spectrum, at + 1) * m);
            }
      const Cost cost = charged(ctx, [&] { spectral_mask(ctx, {spectrum, mask, w}); });
      CHECK(cost.elementwise == spectrum.numel());
      CHECK(cost.bytes() == 2 * spectrum.nbytes() + mask.nbytes());
      check_close(spectrum, want, {0.0});
    }
  });
}

TEST_CASE("a mask shared by the batch is a stride of 0; misfits are refused") {
  Context ctx(cpu_backend(), 1);
  Random r(117);
  const Tensor spectrum = random(ctx, DType::f32, {3, 2, 4, 3, 2}, r);
  const Tensor copy = random(ctx, DType::f32, {3, 2, 4, 3, 2}, r);
  attnbench::copy(ctx, spectrum, copy);
  const Tensor mask = random(ctx, DType::f32, {4, 4}, r);
  const Tensor shared = mask.strided({3, 4, 4}, {0, 4, 1}), own = ctx.allocate(DType::f32, {3, 4, 4});
  attnbench::copy(ctx, shared, own);
  spectral_mask(ctx, {spectrum, shared, 4});
  spectral_mask(ctx, {copy, own, 4});
  CHECK(same_bits(spectrum, copy));
  CHECK_THROWS_WITH(spectral_mask(ctx, {spectrum, own, 6}), ContainsSubstring("[3, 2, 4, 4, 2]"));
  CHECK_THROWS_WITH(spectral_mask(ctx, {spectrum, random(ctx, DType::bf16, {3, 4, 4}, r), 4}),
                    ContainsSubstring("bf16"));
}
