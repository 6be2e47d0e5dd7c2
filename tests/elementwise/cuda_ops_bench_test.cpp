// How fast the GPU's operators are beside what the same card copies and multiplies in the same minute: one
// table, hidden behind [.bench]. Shortest of a few readings, no statistics: not the program's measuring code.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "kernels/elementwise/cast.hpp"
#include "kernels/elementwise/pointwise.hpp"
#include "kernels/elementwise/reduce.hpp"
#include "kernels/fft/fft.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/layout/layout.hpp"
#include "kernels/linear_attention/linear_attention.hpp"
#include "kernels/norm/norm.hpp"
#include "kernels/pool/pool.hpp"
#include "kernels/resample/resample.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/spectral_loss/spectral_loss.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

/// The slope of log y over log x, by least squares.
double exponent(const std::vector<double>& x, const std::vector<double>& y) {
  double mx = 0, my = 0, xy = 0, xx = 0;
  for (size_t i = 0; i < x.size(); ++i) mx += std::log(x[i]), my += std::log(y[i]);
  mx /= static_cast<double>(x.size()), my /= static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double dx = std::log(x[i]) - mx;
    xy += dx * (std::log(y[i]) - my), xx += dx * dx;
  }
  return xy / xx;
}

class Bench {
 public:
  explicit Bench(Backend& gpu) : ctx(gpu), host_(cpu_backend(), 2), r_(9), timer_(gpu.make_timer()) {}

  /// Ordinary numbers on the device: 4 Mi random ones, repeated. Zeros would flatter the clocks.
  Tensor filled(DType type, const Shape& shape, double low = -1, double high = 1) {
    const Tensor t = ctx.allocate(type, shape);
    const int64_t piece = std::min<int64_t>(t.numel(), int64_t{1} << 22);
    if (piece == 0) return t;
    const Tensor values = testing::random(host_, type, {piece}, r_, low, high);
    const Tensor flat = t.reshape({t.numel()});
    copy(ctx, values, flat.slice(0, 0, piece));
    for (int64_t at = piece; at < t.numel(); at += piece) {
      const int64_t n = std::min(piece, t.numel() - at);
      copy(ctx, flat.slice(0, 0, n), flat.slice(0, at, at + n));
    }
    return t;
  }
  Tensor empty(DType type, const Shape& shape) { return ctx.allocate(type, shape); }
  Tensor upload(const Tensor& t) {
    const Tensor there = ctx.allocate(t.dtype(), t.shape());
    copy(ctx, t, there);
    return there;
  }
  Context& host() { return host_; }

  /// The shortest of five readings of about 20 ms each, per call.
  double seconds(const std::function<void()>& f) {
    const auto reading = [&](int calls) {
      timer_->start();
      for (int i = 0; i < calls; ++i) f();
      timer_->stop();
      return timer_->seconds() / calls;
    };
    reading(1);
    const int calls = static_cast<int>(std::clamp(0.02 / reading(1), 1.0, 200.0));
    double best = 1e30;
    for (int i = 0; i < 5; ++i) best = std::min(best, reading(calls));
    return best;
  }
  /// One line: bytes that must move, their rate, and its share of the copy's.
  void memory(const std::string& what, std::initializer_list<Tensor> touched,
              const std::function<void()>& f) {
    int64_t bytes = 0;
    for (const Tensor& t : touched) bytes += t.nbytes();
    const double rate = static_cast<double>(bytes) / seconds(f);
    fmt::print("{:<44} {:>6} MiB {:>7.0f} GB/s {:>5.0f}%\n", what, bytes >> 20, rate * 1e-9,
               100 * rate / copy_rate);
  }

  Context ctx;
  double copy_rate = 1;

 private:
  Context host_;
  Random r_;
  std::unique_ptr<DeviceTimer> timer_;
};

void memory_bound(Bench& b) {
  constexpr DType half = DType::bf16, full = DType::f32;
  constexpr int64_t n = int64_t{1} << 26;
  using Op = PointwiseArgs::Op;
  {
    const Tensor x = b.filled(half, {n}), z = b.filled(half, {n}), y = b.empty(half, {n});
    const auto pointwise_of = [&](Op op, const Tensor& second) {
      return [&b, x, second, y, op] { pointwise(b.ctx, {op, x, second, y}); };
    };
    b.memory("add bf16", {x, z, y}, pointwise_of(Op::add, z));
    b.memory("silu_mul bf16", {x, z, y}, pointwise_of(Op::silu_mul, z));
    b.memory("gelu bf16", {x, y}, pointwise_of(Op::gelu_erf, {}));
    const Tensor bias = b.filled(half, {768}), rows = x.slice(0, 0, n / 768 * 768).reshape({n / 768, 768}),
                 sums = y.slice(0, 0, n / 768 * 768).reshape({n / 768, 768});
    b.memory("add a row of 768 to each, bf16", {rows, sums}, [&] {
      pointwise(b.ctx, {Op::add, rows, bias, sums});
    });
    const Tensor wide = b.empty(full, {n});
    b.memory("cast bf16 to f32", {x, wide}, [&] { cast(b.ctx, {x, wide}); });
    b.memory("cast f32 to bf16", {x, wide}, [&] { cast(b.ctx, {wide, y}); });
    const Tensor one = b.empty(full, {1});
    b.memory("sum of all, f32", {wide}, [&] { reduce(b.ctx, {ReduceArgs::Op::sum, wide, {}, one, true}); });
    const Tensor row_sums = b.empty(half, {n / 768});
    b.memory("sums of rows of 768, bf16", {rows}, [&] {
      reduce(b.ctx, {ReduceArgs::Op::sum, rows, {}, row_sums, false});
    });
  }
  const auto norms = [&](const std::string& what, NormArgs::Kind kind, DType type, int64_t c) {
    NormArgs a;
    a.kind = kind;
    a.x = b.filled(type, {n / c, c}), a.y = b.empty(type, {n / c, c}), a.gain = b.filled(type, {c});
    b.memory(what, {a.x, a.y}, [&] { normalize(b.ctx, a); });
  };
  norms("layer_norm C 768 bf16", NormArgs::Kind::layer_norm, half, 768);
  norms("rms_norm C 4096 bf16", NormArgs::Kind::rms_norm, half, 4096);
  norms("rms_norm C 128 f32", NormArgs::Kind::rms_norm, full, 128);
  const auto soft = [&](const std::string& what, DType type, int64_t m) {
    const Tensor x = b.filled(type, {n / m, m}), y = b.empty(type, {n / m, m});
    b.memory(what, {x, y}, [&] { softmax(b.ctx, {x, y}); });
  };
  soft("softmax M 1024 f32", full, 1024);
  soft("softmax M 4096 bf16", half, 4096);
  soft("softmax M 32768 bf16", half, 32768);
  {
    const Tensor x = b.filled(half, {64, 56, 56, 384}), y = b.empty(half, {64, 28, 28, 384}),
                 few = b.empty(half, {64, 7, 7, 384});
    b.memory("avg_pool 2x2 C 384 bf16", {x, y}, [&] { avg_pool2d(b.ctx, {x, y}); });
    b.memory("avg_pool 8x8 C 384 bf16", {x, few}, [&] { avg_pool2d(b.ctx, {x, few}); });
  }
  {
    constexpr int64_t rows = 1 << 16;
    const Tensor order = b.host().allocate(DType::i32, {rows});
    for (int64_t i = 0; i < rows; ++i)
      order.data<int32_t>()[i] = static_cast<int32_t>(i * 40503 % rows);  // odd: a permutation
    const Tensor index = b.upload(order);
    for (int64_t c : {64, 384}) {
      const int64_t batch = n / rows / c;
      const Tensor x = b.filled(half, {batch, rows, c}), y = b.empty(half, {batch, rows, c});
      b.memory(fmt::format("gather_rows C {} bf16", c), {x, y}, [&] { gather_rows(b.ctx, {x, index, y}); });
    }
  }
  {
    const Tensor x = b.filled(half, {16, 4096, 16, 64}), y = b.empty(half, {16, 16, 4096, 64});
    b.memory("[B, N, H, D] to [B, H, N, D] bf16", {x, y}, [&] {
      transpose_copy(b.ctx, {x.permute({0, 2, 1, 3}), y});
    });
    for (DType type : {half, full}) {
      const Tensor u = b.filled(type, {64, 3136, 320}), v = b.empty(type, {64, 320, 3136});
      b.memory(fmt::format("[B, N, C] to [B, C, N] {}", name(type)), {u, v}, [&] {
        transpose_copy(b.ctx, {u.transpose(1, 2), v});
      });
    }
  }
  {
    const Tensor x = b.filled(full, {16, 4, 512, 512}), y = b.empty(full, {16, 4, 1024, 1024}),
                 small = b.empty(full, {16, 4, 256, 256});
    b.memory("bicubic x2 f32", {x, y}, [&] { resize_bicubic(b.ctx, {x, y}); });
    b.memory("bicubic /2 f32", {x, small}, [&] { resize_bicubic(b.ctx, {x, small}); });
  }
  {
    const Tensor image = b.filled(full, {16, 16, 512, 512}), spectrum = b.empty(full, {16, 16, 512, 257, 2});
    const Tensor mask = b.filled(full, {16, 512, 512}, 0, 1), map = b.empty(full, {16, 16, 512, 512}),
                 loss = b.empty(full, {1});
    Fft2Args forward;
    forward.x = image, forward.y = spectrum, forward.height = forward.width = 512;
    b.memory("fft2 512x512 real to half", {image, spectrum}, [&] { fft2(b.ctx, forward); });
    b.memory("spectral_mask f32", {spectrum, spectrum, mask}, [&] {
      spectral_mask(b.ctx, {spectrum, mask, 512});
    });
    fft2(b.ctx, forward);
    SpectralLossArgs l;
    l.spectrum = spectrum, l.mask = mask, l.map = map, l.loss = loss, l.width = 512;
    b.memory("spectral_loss with map", {spectrum, mask, map}, [&] { spectral_loss(b.ctx, l); });
    const Tensor points = b.filled(full, {256, 256, 256, 2});
    Fft2Args square;
    square.kind = Fft2Args::Kind::complex_forward;
    square.x = square.y = points, square.height = square.width = 256, square.scale = 1.0f / 256;
    b.memory("fft2 256x256 complex, scaled, in place", {points, points}, [&] { fft2(b.ctx, square); });
  }
  {
    LinearAttentionArgs a;
    a.form = LinearAttentionArgs::Form::recurrent;
    a.q = b.filled(half, {64, 32, 1, 128}), a.k = b.filled(half, {64, 32, 1, 128});
    a.v = b.filled(half, {64, 32, 1, 128}), a.o = b.empty(half, {64, 32, 1, 128});
    a.log_decay = b.filled(full, {32}, -0.1, -0.01);
    a.state_in = a.state_out = b.filled(full, {64, 32, 128, 128});
    b.memory("linear attention, decode D 128", {a.state_in, a.state_out},
             [&] { linear_attention(b.ctx, a); });
  }
}

double product_rate(Bench& b, DType type, int64_t batch, int64_t m, int64_t n, int64_t k) {
  GemmArgs g;
  const auto shape = [&](int64_t rows, int64_t columns) {
    return batch > 1 ? Shape{batch, rows, columns} : Shape{rows, columns};
  };
  g.a = b.filled(type, shape(m, k)), g.b = b.filled(type, shape(n, k)), g.c = b.empty(type, shape(m, n));
  g.b_transposed = true;
  const double flops = 2.0 * static_cast<double>(batch * m) * static_cast<double>(n * k);
  const double rate = flops / b.seconds([&] { gemm(b.ctx, g); });
  fmt::print("{:<44} {:>7.1f} TFLOP/s\n",
             fmt::format("gemm {} {}{} x {} x {}", name(type), batch > 1 ? fmt::format("{} of ", batch) : "",
                         m, n, k),
             rate * 1e-12);
  return rate;
}

/// Seconds of a forward pass; prints its rate over the tiles that ran.
double linear_time(Bench& b, DType type, LinearAttentionArgs::Form form, int64_t batch, int64_t heads,
                   int64_t length, int64_t d, int64_t block, double peak) {
  LinearAttentionArgs a;
  a.form = form, a.block_size = block;
  a.q = b.filled(type, {batch, heads, length, d}), a.k = b.filled(type, {batch, heads, length, d});
  a.v = b.filled(type, {batch, heads, length, d}), a.o = b.empty(type, {batch, heads, length, d});
  a.log_decay = b.filled(DType::f32, {heads}, -0.1, -0.001);
  const double s = b.seconds([&] { linear_attention(b.ctx, a); });
  // Tiles of 64 rows and keys at and below the diagonal of a block, and the two products with the state.
  const double width = static_cast<double>(d), tokens = static_cast<double>(batch * heads * length);
  const double flops = tokens * (2 * width * static_cast<double>(block + 64) + 4 * width * width);
  const double bytes = static_cast<double>(4 * a.q.nbytes());
  fmt::print("{:<44} {:>7.1f} TFLOP/s {:>4.0f}% of gemm {:>4.0f}% of copy {:>9.3f} ms\n",
             fmt::format("linear attention {} {} H {} N {} D {} Bk {}",
                         form == LinearAttentionArgs::Form::chunk ? "chunk" : "parallel", name(type),
                         batch * heads, length, d, block),
             flops / s * 1e-12, 100 * flops / s / peak, 100 * bytes / s / b.copy_rate, s * 1e3);
  b.ctx.release_cache();
  return s;
}

}  // namespace

TEST_CASE("the fitted exponent of the bench is the power law's") {
  std::vector<double> x, linear, square;
  for (double n = 4096; n <= 262144; n *= 2)
    x.push_back(n), linear.push_back(3e-9 * n), square.push_back(n * n);
  CHECK(std::fabs(exponent(x, linear) - 1) < 1e-12);
  CHECK(std::fabs(exponent(x, square) - 2) < 1e-12);
  square.back() *= 2;
  CHECK(exponent(x, square) > 2.01);
}

TEST_CASE("bench: operators on the GPU beside copies and products of the same run", "[.bench]") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Bench b(*gpu);
  b.copy_rate = gpu->measure_peak(DevicePeak::copy, DType::f32, int64_t{256} << 20);
  fmt::print("{}: copy of 256 MiB {:.0f} GB/s\n", gpu->description(), b.copy_rate * 1e-9);
  memory_bound(b);
  b.ctx.release_cache();
  const double peak = product_rate(b, DType::bf16, 1, 8192, 8192, 8192);
  product_rate(b, DType::bf16, 1, 4096, 4096, 4096);
  product_rate(b, DType::bf16, 1, 16384, 2304, 768);
  product_rate(b, DType::bf16, 64, 1024, 1024, 64);
  product_rate(b, DType::f16, 1, 8192, 8192, 8192);
  product_rate(b, DType::f32, 1, 8192, 8192, 8192);
  b.ctx.release_cache();
  using Form = LinearAttentionArgs::Form;
  std::vector<double> lengths, times;
  for (int64_t n = 4096; n <= 262144; n *= 2) {
    lengths.push_back(static_cast<double>(n));
    times.push_back(linear_time(b, DType::bf16, Form::chunk, 4, 32, n, 128, 64, peak));
  }
  fmt::print("time of linear attention over N = 4K .. 256K: exponent {:.3f}\n", exponent(lengths, times));
  for (int64_t block : {128, 256}) linear_time(b, DType::bf16, Form::chunk, 4, 32, 32768, 128, block, peak);
  linear_time(b, DType::f16, Form::chunk, 4, 32, 32768, 128, 64, peak);
  linear_time(b, DType::bf16, Form::chunk, 4, 64, 32768, 64, 64, peak);
  linear_time(b, DType::bf16, Form::chunk, 1, 16, 65536, 128, 64, peak);
  linear_time(b, DType::bf16, Form::parallel, 4, 32, 32768, 128, 256, peak);
  linear_time(b, DType::f32, Form::chunk, 4, 32, 4096, 128, 64, peak);
}
