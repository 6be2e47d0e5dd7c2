// 1-D transforms through FFTW, a line at a time in buffers of each thread, and what is built on them.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <numbers>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/fftw_plans.hpp"
#include "kernels/fft/stft.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/fft/signal_body.hpp"

namespace attnbench {
namespace {

using Kind = Fft1Args::Kind;
using Kind2 = Fft2Args::Kind;

Kind2 planar(Kind kind) {
  return kind == Kind::real_to_half      ? Kind2::real_to_half
         : kind == Kind::half_to_real    ? Kind2::half_to_real
         : kind == Kind::complex_forward ? Kind2::complex_forward
                                         : Kind2::complex_inverse;
}

/// Floats of a buffer whose successor is aligned as well as it is: FFTW's vector code wants 64 bytes at most.
int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

void check_length(int64_t n, const char* op) {
  if (n > (int64_t{1} << 31) - 1)
    throw Unsupported(std::string(op) + ": a line of " + std::to_string(n) +
                      " points is longer than FFTW's 32-bit sizes count");
}

/// Lines that a thread takes at least: a fork must be worth their transforms.
int64_t lines_per_thread(int64_t n) { return std::max<int64_t>(kParallelBytes / (16 * n), 1); }

/// A complex transform of n points in f64, decimated by the prime factors of n; for lines that are few or
/// short.
class WideLine {
 public:
  explicit WideLine(int64_t n) : n_(n) {
    for (int64_t i = 0; i < n; ++i) {
      const double angle = -2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n);
      turn_.emplace_back(std::cos(angle), std::sin(angle));
    }
  }
  using Complex = std::complex<double>;
  /// y[k] = sum_j x[j] exp(-2 pi i j k / n); `work` holds n numbers.
  void transform(const Complex* x, Complex* y, Complex* work) const { part(x, 1, y, work, n_); }

 private:
  void part(const Complex* x, int64_t step, Complex* y, Complex* work, int64_t n) const {
    if (n == 1) {
      *y = *x;
      return;
    }
    int64_t radix = 2;
    while (n % radix != 0) radix = radix * radix > n ? n : radix + 1;
    const int64_t m = n / radix;
    for (int64_t r = 0; r < radix; ++r) part(x + r * step, step * radix, work + r * m, y + r * m, m);
    for (int64_t k = 0; k < m; ++k)
      for (int64_t q = 0; q < radix; ++q) {
        Complex sum = work[k];
        for (int64_t r = 1; r < radix; ++r) {
          const Complex w = turn_[static_cast<size_t>(r * (k + q * m) % n * (n_ / n))], v = work[r * m + k];
          sum +=
              Complex(w.real() * v.real() - w.imag() * v.imag(), w.real() * v.imag() + w.imag() * v.real());
        }
        y[k + q * m] = sum;
      }
  }
  int64_t n_;
  std::vector<Complex> turn_;
};

/// stft in f64: every frame whole, as short lines are what it is for.
void wide_stft(Context& ctx, const StftArgs& args) {
  using Complex = std::complex<double>;
  const int64_t n_fft = args.n_fft, half = n_fft / 2 + 1, width = args.window.dim(0), n = args.x.dim(-1),
                frames = args.y.dim(args.x.rank() - 1);
  const RowOffsets x_at(args.x, 1), y_at(args.y, 2);
  const WideLine line(n_fft);
  const float* window = args.window.data<float>();
  parallel_range(
      ctx.threads(), x_at.count() * frames, lines_per_thread(n_fft), [&](int64_t begin, int64_t end) {
        std::vector<Complex> frame(static_cast<size_t>(n_fft)), bins(frame.size()), work(frame.size());
        for (int64_t i = begin; i < end; ++i) {
          const float* x = args.x.data<float>() + x_at.offset(i / frames);
          std::fill(frame.begin(), frame.end(), Complex());
          for (int64_t j = 0; j < width; ++j) {
            int64_t at = i % frames * args.hop - args.offset + args.window_offset + j;
            if (args.border == SignalBorder::reflect) at = at < 0 ? -at : at >= n ? 2 * (n - 1) - at : at;
            if (at >= 0 && at < n)
              frame[static_cast<size_t>(args.window_offset + j)] =
                  static_cast<double>(x[at]) * static_cast<double>(window[j]);
          }
          line.transform(frame.data(), bins.data(), work.data());
          float* y = args.y.data<float>() + y_at.offset(i);
          for (int64_t k = 0; k < half; ++k) {
            const bool real = k == 0 || 2 * k == n_fft;
            y[2 * k] =
                static_cast<float>(bins[static_cast<size_t>(k)].real() * static_cast<double>(args.scale));
            y[2 * k + 1] = real ? 0.0f
                                : static_cast<float>(bins[static_cast<size_t>(k)].imag() *
                                                     static_cast<double>(args.scale));
          }
        }
      });
}

}  // namespace

void CpuBackend::fft1(Context& ctx, const Fft1Args& args) {
  const int64_t n = args.length, half = n / 2 + 1;
  check_length(n, "fft1");
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const RowOffsets x_at(args.x, real_x ? 1 : 2), y_at(args.y, real_y ? 1 : 2);
  const int64_t full_x = real_x ? n : 2 * (real_y ? half : n), full_y = real_y ? n : 2 * (real_x ? half : n);
  const int64_t given = real_x ? args.x.dim(-1) : 2 * args.x.dim(-2),
                wanted = real_y ? args.y.dim(-1) : 2 * args.y.dim(-2);
  const int64_t floats = rounded(full_x) + rounded(full_y);
  const Tensor scratch = ctx.allocate(DType::f32, {ctx.threads(), floats});
  float* buffers = scratch.data<float>();
  const fftwf_plan plan =
      fftw_plan({planar(args.kind), 1, n, true, false}, buffers, buffers + rounded(full_x));
  const float* x = args.x.data<float>();
  float* y = args.y.data<float>();
  const bool in_place = x == y;
  parallel_range(ctx.threads(), x_at.count(), lines_per_thread(n), [&](int64_t begin, int64_t end) {
    float* own = buffers + thread_index() * floats;
    for (int64_t i = begin; i < end; ++i) {
      // FFTW's new-array functions do not change what a const pointer names, except for half_to_real.
      float* from = const_cast<float*>(x) + x_at.offset(i);
      float* to = y + y_at.offset(i);
      if (real_y || in_place || given < full_x || fftwf_alignment_of(from) != 0) {
        std::memcpy(own, from, static_cast<size_t>(given) * sizeof(float));
        std::memset(own + given, 0, static_cast<size_t>(full_x - given) * sizeof(float));
        if (real_y) {
          own[1] = 0.0f;
          if (n % 2 == 0) own[n + 1] = 0.0f;
        }
        from = own;
      }
      float* out = wanted < full_y || fftwf_alignment_of(to) != 0 ? own + rounded(full_x) : to;
      execute_fftw(planar(args.kind), plan, from, out);
      const float s = args.scale;
      if (s != 1.0f || out != to)
        for (int64_t j = 0; j < wanted; ++j) to[j] = out[j] * s;
    }
  });
}

void CpuBackend::complex_pointwise(Context& ctx, const ComplexArgs& args) {
  using Op = ComplexArgs::Op;
  const bool real_in = args.op == Op::polar, real_out = args.op == Op::magnitude || args.op == Op::angle;
  const int in = real_in ? 1 : 2, out = real_out ? 1 : 2;
  const RowOffsets a_at(args.a, in), y_at(args.y, out);
  const RowOffsets b_at = args.b ? RowOffsets(args.b, in) : RowOffsets();
  const int64_t n = args.a.dim(real_in ? -1 : -2);
  const int64_t b_step = args.b ? args.b.stride(real_in ? -1 : -2) : 0;  // 0: one number for the row
  const float* a0 = args.a.data<float>();
  const float* b0 = args.b ? args.b.data<float>() : nullptr;
  float* y0 = args.y.data<float>();
  const auto product = ATTNBENCH_BEST(complex_product);
  const auto magnitude = ATTNBENCH_BEST(complex_magnitude);
  const float eps2 = args.eps * args.eps, snap = args.snap;
  const auto row = [&](const float* a, const float* b, float* y, int64_t count) {
    switch (args.op) {
      case Op::multiply:
      case Op::multiply_conj: {
        const bool conjugate = args.op == Op::multiply_conj;
        if (b_step != 0 || count == 1) return product(a, b, y, count, conjugate);
        for (int64_t i = 0; i < count; ++i) {
          const float re = a[2 * i], im = a[2 * i + 1], wi = conjugate ? -b[1] : b[1];
          y[2 * i] = re * b[0] - im * wi;
          y[2 * i + 1] = re * wi + im * b[0];
        }
        return;
      }
      case Op::divide:
        for (int64_t i = 0; i < count; ++i) {
          const float* w = b + i * b_step;
          const float power = w[0] * w[0] + w[1] * w[1] + eps2;
          const float re = a[2 * i], im = a[2 * i + 1];
          y[2 * i] = power == 0.0f ? 0.0f : (re * w[0] + im * w[1]) / power;
          y[2 * i + 1] = power == 0.0f ? 0.0f : (im * w[0] - re * w[1]) / power;
        }
        return;
      case Op::magnitude:
        magnitude(a, y, count);
        if (args.power != 1.0f)
          for (int64_t i = 0; i < count; ++i) y[i] = std::pow(y[i], args.power);
        return;
      case Op::angle:
        for (int64_t i = 0; i < count; ++i) {
          const float re = a[2 * i], im = a[2 * i + 1];
          const bool real = std::fabs(im) <= snap * std::hypot(re, im);
          y[i] = std::atan2(real ? 0.0f : im, re == 0.0f ? 0.0f : re);
        }
        return;
      case Op::polar:
        for (int64_t i = 0; i < count; ++i) {
          const float r = args.power == 1.0f ? a[i] : std::pow(a[i], args.power), phase = b[i * b_step];
          y[2 * i] = r * std::cos(phase);
          y[2 * i + 1] = r * std::sin(phase);
        }
        return;
    }
  };
  // Rows are cut as well, so that one long row has work for every thread.
  constexpr int64_t kPiece = 4096;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  parallel_range(ctx.threads(), a_at.count() * pieces,
                 std::max<int64_t>(kParallelBytes / (16 * std::min(n, kPiece)), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t r = i / pieces, at = i % pieces * kPiece;
                     row(a0 + a_at.offset(r) + at * in, b0 ? b0 + b_at.offset(r) + at * b_step : nullptr,
                         y0 + y_at.offset(r) + at * out, std::min(kPiece, n - at));
                   }
                 });
}

void CpuBackend::toeplitz_attention(Context& ctx, const ToeplitzAttentionArgs& args) {
  const int64_t batch = args.q.dim(0), heads = args.q.dim(1), n = args.q.dim(2), f = args.q.dim(3),
                m = args.k.dim(2), e = args.v.dim(3);
  const int64_t lh = args.fft[0], lw = args.fft[1], half = lw / 2 + 1, line = lh * lw, bins = lh * half;
  check_length(line, "toeplitz_attention");
  const int64_t planes = batch * heads;
  // Features and channels as rows, so that every loop below runs along tokens.
  const Tensor qt = ctx.allocate(DType::f32, {planes, f, n}), kt = ctx.allocate(DType::f32, {planes, f, m}),
               vt = ctx.allocate(DType::f32, {planes, e, m}),
               ot = ctx.allocate(DType::f32, {planes, e + 1, n});
  const auto transpose = [&](const Tensor& from, const Tensor& to) {
    const int64_t rows = from.dim(2), columns = from.dim(3);
    parallel_items(ctx.threads(), planes, [&](int64_t p) {
      const float* x = from.data<float>() + p / heads * from.stride(0) + p % heads * from.stride(1);
      float* y = to.data<float>() + p * rows * columns;
      for (int64_t c0 = 0; c0 < columns; c0 += 16)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = c0; c < std::min(columns, c0 + 16); ++c)
            y[c * rows + r] = x[r * from.stride(2) + c];
    });
  };
  transpose(args.q, qt);
  transpose(args.k, kt);
  transpose(args.v, vt);
  const int64_t floats = rounded(line) + rounded(2 * bins);
  const Tensor scratch = ctx.allocate(DType::f32, {ctx.threads(), floats});
  float* buffers = scratch.data<float>();
  const fftwf_plan forward = fftw_plan({Kind2::real_to_half, lh, lw, true, false}, buffers,
                                       buffers + rounded(line)),
                   inverse = fftw_plan({Kind2::half_to_real, lh, lw, true, false}, buffers + rounded(line),
                                       buffers);
  const auto multiply = ATTNBENCH_BEST(real_product);
  const auto accumulate = ATTNBENCH_BEST(add_product);
  const auto product = ATTNBENCH_BEST(complex_product);
  // A channel of one head, or its denominator (the last), sums over the features in their order: no sum
  // depends on the number of threads.
  parallel_items(ctx.threads(), planes * (e + 1), [&](int64_t item) {
    const int64_t p = item / (e + 1), c = item % (e + 1), h = p % heads;
    float* tokens = buffers + thread_index() * floats;
    float* bin = tokens + rounded(line);
    const float* kernel =
        args.spectrum.data<float>() + (args.spectrum.dim(0) == 1 ? 0 : h * args.spectrum.stride(0));
    float* sum = ot.data<float>() + item * n;
    std::fill(sum, sum + n, 0.0f);
    for (int64_t a = 0; a < f; ++a) {
      const float* k = kt.data<float>() + (p * f + a) * m;
      const float* q = qt.data<float>() + (p * f + a) * n;
      const int64_t kw = args.k_grid[1], qw = args.q_grid[1];
      std::memset(tokens, 0, static_cast<size_t>(line) * sizeof(float));
      for (int64_t r = 0; r < args.k_grid[0]; ++r) {
        if (c < e)
          multiply(k + r * kw, vt.data<float>() + (p * e + c) * m + r * kw, tokens + r * lw, kw);
        else
          std::memcpy(tokens + r * lw, k + r * kw, static_cast<size_t>(kw) * sizeof(float));
      }
      execute_fftw(Kind2::real_to_half, forward, tokens, bin);
      product(bin, kernel, bin, bins, false);
      execute_fftw(Kind2::half_to_real, inverse, bin, tokens);
      for (int64_t r = 0; r < args.q_grid[0]; ++r) accumulate(q + r * qw, tokens + r * lw, sum + r * qw, qw);
    }
  });
  parallel_items(ctx.threads(), planes, [&](int64_t p) {
    const float* sums = ot.data<float>() + p * (e + 1) * n;
    float* o = args.o.data<float>() + p / heads * args.o.stride(0) + p % heads * args.o.stride(1);
    for (int64_t i = 0; i < n; ++i) {
      const float sum = sums[e * n + i], d = sum > 0.0f || sum != sum ? sum : 1.0f;
      for (int64_t c = 0; c < e; ++c) o[i * args.o.stride(2) + c] = sums[c * n + i] / d;
    }
  });
}

void CpuBackend::stft(Context& ctx, const StftArgs& args) {
  if (args.f64) return wide_stft(ctx, args);
  const int64_t n_fft = args.n_fft, half = n_fft / 2 + 1, width = args.window.dim(0), n = args.x.dim(-1);
  check_length(n_fft, "stft");
  const int outer = args.x.rank() - 1;
  const int64_t frames = args.y.dim(outer);
  const RowOffsets x_at(args.x, 1), y_at(args.y, 2);
  const int64_t floats = rounded(n_fft) + rounded(2 * half);
  const Tensor scratch = ctx.allocate(DType::f32, {ctx.threads(), floats});
  float* buffers = scratch.data<float>();
  const fftwf_plan plan =
      fftw_plan({Kind2::real_to_half, 1, n_fft, true, false}, buffers, buffers + rounded(n_fft));
  const float* window = args.window.data<float>();
  const auto multiply = ATTNBENCH_BEST(real_product);
  parallel_range(ctx.threads(), x_at.count() * frames, lines_per_thread(n_fft),
                 [&](int64_t begin, int64_t end) {
                   float* frame = buffers + thread_index() * floats;
                   float* bin = frame + rounded(n_fft);
                   for (int64_t i = begin; i < end; ++i) {
                     const float* x = args.x.data<float>() + x_at.offset(i / frames);
                     const int64_t start = i % frames * args.hop - args.offset + args.window_offset;
                     std::memset(frame, 0, static_cast<size_t>(n_fft) * sizeof(float));
                     float* to = frame + args.window_offset;
                     const int64_t first = std::clamp<int64_t>(-start, 0, width),
                                   last = std::clamp<int64_t>(n - start, first, width);
                     multiply(x + start + first, window + first, to + first, last - first);
                     if (args.border == SignalBorder::reflect) {
                       for (int64_t j = 0; j < first; ++j) to[j] = window[j] * x[-(start + j)];
                       for (int64_t j = last; j < width; ++j)
                         to[j] = window[j] * x[2 * (n - 1) - (start + j)];
                     }
                     execute_fftw(Kind2::real_to_half, plan, frame, bin);
                     float* y = args.y.data<float>() + y_at.offset(i);
                     for (int64_t j = 0; j < 2 * half; ++j) y[j] = bin[j] * args.scale;
                   }
                 });
}

void CpuBackend::istft(Context& ctx, const IstftArgs& args) {
  const int64_t n_fft = args.n_fft, half = n_fft / 2 + 1, width = args.window.dim(0), n = args.y.dim(-1);
  check_length(n_fft, "istft");
  const int outer = args.y.rank() - 1;
  const int64_t frames = args.x.dim(outer);
  const RowOffsets x_at(args.x, 2), y_at(args.y, 1);
  const int64_t row = rounded(n_fft);
  const Tensor scratch = ctx.allocate(DType::f32, {ctx.threads(), rounded(2 * half)});
  const Tensor pieces = ctx.allocate(DType::f32, {x_at.count() + 1, row});
  float* buffers = scratch.data<float>();
  const fftwf_plan plan =
      fftw_plan({Kind2::half_to_real, 1, n_fft, true, false}, buffers, pieces.data<float>());
  const float scale = args.scale / static_cast<float>(n_fft);
  const float* window = args.window.data<float>();
  parallel_range(ctx.threads(), x_at.count(), lines_per_thread(n_fft), [&](int64_t begin, int64_t end) {
    float* bin = buffers + thread_index() * rounded(2 * half);
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(bin, args.x.data<float>() + x_at.offset(i), static_cast<size_t>(2 * half) * sizeof(float));
      bin[1] = 0.0f;
      if (n_fft % 2 == 0) bin[n_fft + 1] = 0.0f;
      float* piece = pieces.data<float>() + i * row;
      execute_fftw(Kind2::half_to_real, plan, bin, piece);
      for (int64_t j = 0; j < width; ++j) piece[args.window_offset + j] *= scale * window[j];
    }
  });
  const int64_t shift =
      args.offset - args.window_offset;  // point j lies at j + shift - t hop of frame t's window
  const int64_t signals = y_at.count();
  constexpr int64_t kPiece = 4096;
  const int64_t parts = (n + kPiece - 1) / kPiece;
  parallel_items(ctx.threads(), signals * parts, [&](int64_t item) {
    const int64_t signal = item / parts, begin = item % parts * kPiece, end = std::min(n, begin + kPiece);
    float* y = args.y.data<float>() + y_at.offset(signal);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t at = j + shift;
      const int64_t last = at < 0 ? -1 : std::min(frames - 1, at / args.hop);
      const int64_t first = at < width ? 0 : (at - width) / args.hop + 1;
      float sum = 0.0f, power = 0.0f;
      for (int64_t t = first; t <= last; ++t) {
        const int64_t i = at - t * args.hop;
        sum += pieces.data<float>()[(signal * frames + t) * row + args.window_offset + i];
        power += window[i] * window[i];
      }
      y[j] = power < 1e-11f ? sum : sum / power;
    }
  });
}

}  // namespace attnbench
