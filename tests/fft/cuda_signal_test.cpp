// fft1, complex_pointwise, toeplitz_attention, stft and istft on the GPU against the CPU's operators.
#include "kernels/fft/fft.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;
using Kind = Fft1Args::Kind;

namespace {

/// Both err like log2(n) roundings in the 2-norm, each with its own twiddles.
double tolerance_of(int64_t points) { return 8 * (std::log2(static_cast<double>(points)) + 1) * 0x1p-24; }

}  // namespace

TEST_CASE("CUDA fft1 agrees with the CPU: kinds, lengths, padding, cropping, odd places, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 921);
  const Kind kind =
      GENERATE(Kind::real_to_half, Kind::half_to_real, Kind::complex_forward, Kind::complex_inverse);
  for (int64_t n : {1, 2, 3, 7, 16, 31, 60, 200, 1021, 4096})
    for (int64_t less : {int64_t{0}, n / 4})
      for (bool odd : {false, true}) {
        const int64_t m = n - less, half = n / 2 + 1;
        const auto lines = [&](bool real, bool spectrum) {
          return real ? Shape{2, 3, m} : Shape{2, 3, spectrum ? half : m, 2};
        };
        const Shape x_shape = lines(kind == Kind::real_to_half, kind == Kind::half_to_real),
                    y_shape = lines(kind == Kind::half_to_real, kind == Kind::real_to_half);
        const auto place = [&](const Shape& shape, bool output) {
          int64_t line = 1;
          for (int i = 2; i < shape.rank(); ++i) line *= shape[i];
          const Shape base = {6 * (line + 3) + 1};
          Shape strides = shape;
          strides[0] = 3 * (line + 3), strides[1] = line + 3, strides[2] = shape.rank() == 4 ? 2 : 1;
          if (shape.rank() == 4) strides[3] = 1;
          const Twin t = output ? s.poisoned(DType::f32, base) : s.random(DType::f32, base);
          return t.view([&](const Tensor& v) { return v.strided(shape, strides, odd ? 1 : 0); });
        };
        const Twin x = place(x_shape, false), y = place(y_shape, true);
        INFO("kind " << static_cast<int>(kind) << ", n " << n << ", m " << m);
        fft1(s.device, {kind, x.device, y.device, n, 0.7f});
        fft1(s.host, {kind, x.host, y.host, n, 0.7f});
        check_norm(s.fetch(y), values(y.host), tolerance_of(n));
        CHECK(same_bits(s.fetch(x, true), x.host_base));
      }
  const Twin z = s.random(DType::f32, {5, 48, 2});
  fft1(s.device, {Kind::complex_forward, z.device, z.device, 48, 2.0f});
  fft1(s.host, {Kind::complex_forward, z.host, z.host, 48, 2.0f});
  check_norm(s.fetch(z), values(z.host), tolerance_of(48));
  const Twin real = s.random(DType::f32, {9, 50}), to = s.poisoned(DType::f32, {9, 33, 2});
  s.check_graph([&] { fft1(s.device, {Kind::real_to_half, real.device, to.device, 64, 1.0f}); }, {to});
}

TEST_CASE("CUDA complex_pointwise agrees with the CPU") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Op = ComplexArgs::Op;
  Sides s(*gpu, 922);
  for (const Shape& other : {Shape{2, 3, 37, 2}, Shape{37, 2}, Shape{1, 3, 1, 2}, Shape{2, 1, 37, 2}})
    for (Op op : {Op::multiply, Op::multiply_conj, Op::divide}) {
      const Twin a = s.random(DType::f32, {2, 3, 37, 2}), b = s.random(DType::f32, other),
                 y = s.poisoned(DType::f32, {2, 3, 37, 2});
      ComplexArgs args;
      args.op = op, args.eps = 0.1f;
      args.a = a.device, args.b = b.device, args.y = y.device;
      complex_pointwise(s.device, args);
      args.a = a.host, args.b = b.host, args.y = y.host;
      complex_pointwise(s.host, args);
      INFO("operation " << static_cast<int>(op) << " " << other.str());
      check_norm(s.fetch(y), values(y.host), 8 * 0x1p-24);
    }
  const Twin a = s.random(DType::f32, {5, 41, 2}), r = s.random(DType::f32, {5, 41}, 0, 2),
             phase = s.random(DType::f32, {41}, -9, 9);
  put(a.host, 0, 0), put(a.host, 1, 0), put(a.host, 2, -1), put(a.host, 3, -0.0), put(a.host, 4, -1),
      put(a.host, 5, 1e-7);
  copy(s.device, a.host, a.device);
  const Twin real = s.poisoned(DType::f32, {5, 41}), polar = s.poisoned(DType::f32, {5, 41, 2});
  for (Op op : {Op::magnitude, Op::angle, Op::polar}) {
    ComplexArgs args;
    args.op = op, args.snap = 1e-6f;
    const bool made = op == Op::polar;
    args.a = made ? r.device : a.device, args.y = made ? polar.device : real.device;
    if (made) args.b = phase.device;
    complex_pointwise(s.device, args);
    args.a = made ? r.host : a.host, args.y = made ? polar.host : real.host;
    if (made) args.b = phase.host;
    complex_pointwise(s.host, args);
    INFO("operation " << static_cast<int>(op));
    const Twin& y = made ? polar : real;
    check_norm(s.fetch(y), values(y.host), 16 * 0x1p-24);
  }
}

TEST_CASE(
    "CUDA toeplitz_attention agrees with the CPU: chunks, grids, strides, one kernel for all heads, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 923);
  for (const auto& [qh, qw, kh, kw] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 1, 1, 1},
                                       {1, 100, 1, 100},
                                       {1, 30, 1, 77},
                                       {5, 6, 5, 6},
                                       {3, 4, 2, 9}})
    for (int64_t kernels : {1, 3})
      for (int64_t chunk : {1, 3, 16}) {
        const int64_t n = qh * qw, m = kh * kw, lh = qh + kh - 1, lw = toeplitz_length(qw, kw), features = 7;
        const auto heads = [](const Tensor& t) { return t.transpose(1, 2); };
        const Twin q = s.random(DType::f32, {2, n, 3, features}, 0.1, 1).view(heads),
                   k = s.random(DType::f32, {2, m, 3, features}, 0.1, 1).view(heads),
                   v = s.random(DType::f32, {2, m, 3, 5}).view(heads),
                   o = s.poisoned(DType::f32, {2, n, 3, 5}).view(heads);
        const Tensor circulant = random(s.host, DType::f32, {kernels, lh, lw}, s.r, 0.1, 1);
        const Tensor bins = s.host.allocate(DType::f32, {kernels, lh, lw / 2 + 1, 2});
        fft2(s.host,
             {Fft2Args::Kind::real_to_half, circulant, bins, lh, lw, 1.0f / static_cast<float>(lh * lw)});
        const Twin spectrum = s.upload(bins);
        const auto args = [&](const auto& side) {
          ToeplitzAttentionArgs a;
          a.q = side(q), a.k = side(k), a.v = side(v), a.spectrum = side(spectrum), a.o = side(o);
          a.q_grid[0] = qh, a.q_grid[1] = qw, a.k_grid[0] = kh, a.k_grid[1] = kw;
          a.fft[0] = lh, a.fft[1] = lw, a.chunk = chunk;
          return a;
        };
        const auto there = args([](const Twin&t) { return t.device; }),
                   here = args([](const Twin&t) { return t.host; });
        toeplitz_attention(s.device, there);
        toeplitz_attention(s.host, here);
        INFO("N " << n << ", M " << m << ", chunk " << chunk);
        check_norm(s.fetch(o), values(o.host), 4 * tolerance_of(lh * lw));
        if (n == 100 && chunk == 3) s.check_graph([&] { toeplitz_attention(s.device, there); }, {o});
      }
}

TEST_CASE("CUDA stft and istft agree with the CPU: borders, short windows, odd frames, graphs") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 924);
  struct Case {
    int64_t n, n_fft, hop, width, offset, window_offset, frames;
    SignalBorder border;
  };
  for (const Case& g : {Case{100, 16, 8, 16, 0, 0, 11, SignalBorder::none},
                        Case{53, 20, 7, 12, 10, 4, 8, SignalBorder::reflect},
                        Case{40, 15, 5, 15, 7, 0, 9, SignalBorder::zeros},
                        Case{30, 64, 16, 24, 12, 0, 3, SignalBorder::zeros},
                        Case{9, 16, 1, 16, 8, 0, 10, SignalBorder::reflect},
                        Case{5000, 400, 100, 400, 200, 0, 51, SignalBorder::reflect}}) {
    const int64_t half = g.n_fft / 2 + 1;
    INFO("n " << g.n << ", n_fft " << g.n_fft);
    const Twin x = s.padded(DType::f32, {3, g.n}, 1, 2), window = s.random(DType::f32, {g.width}, 0.5, 1);
    const Twin y = s.poisoned(DType::f32, {3, g.frames + 2, half, 2}).view([&](const Tensor& t) {
      return t.slice(1, 1, g.frames + 1);
    });
    bool wide = false;
    const auto forward = [&](Context& ctx, const Tensor& from, const Tensor& w, const Tensor& to) {
      stft(ctx, {from, w, to, g.n_fft, g.hop, g.offset, g.window_offset, g.border, 0.5f, wide});
    };
    forward(s.device, x.device, window.device, y.device);
    forward(s.host, x.host, window.host, y.host);
    check_norm(s.fetch(y), values(y.host), tolerance_of(g.n_fft));
    wide = true;
    s.poison_device(y);
    forward(s.device, x.device, window.device, y.device);
    forward(s.host, x.host, window.host, y.host);
    check_norm(s.fetch(y), values(y.host), 0x1p-23);
    const Twin z = s.random(DType::f32, {3, g.frames, half, 2}),
               back = s.padded_output(DType::f32, {3, g.n}, 2, 1);
    const auto inverse = [&](Context& ctx, const Tensor& from, const Tensor& w, const Tensor& to) {
      istft(ctx, {from, w, to, g.n_fft, g.hop, g.offset, g.window_offset, 1.0f});
    };
    inverse(s.device, z.device, window.device, back.device);
    inverse(s.host, z.host, window.host, back.host);
    check_norm(s.fetch(back), values(back.host), 2 * tolerance_of(g.n_fft));
    s.check_graph([&] { inverse(s.device, z.device, window.device, back.device); }, {back});
  }
}
