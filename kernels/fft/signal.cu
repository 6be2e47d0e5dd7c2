// 1-D transforms through cuFFT with lines packed by kernels of their own where they are padded or cropped,
// and what is built on them: complex pointwise work, Toeplitz attention, framing and overlap-add.
#include "kernels/fft/cufft_plans.cuh"
#include "kernels/fft/fft1.hpp"
#include "kernels/fft/stft.hpp"

namespace attnbench {
namespace {

using Kind = Fft1Args::Kind;
using Kind2 = Fft2Args::Kind;
constexpr int kThreads = 256;

Kind2 planar(Kind kind) {
  return kind == Kind::real_to_half      ? Kind2::real_to_half
         : kind == Kind::half_to_real    ? Kind2::half_to_real
         : kind == Kind::complex_forward ? Kind2::complex_forward
                                         : Kind2::complex_inverse;
}

/// i over `items` for all threads of the grid.
template <class F>
__device__ void grid_loop(int64_t items, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) f(i);
}

/// Packed lines of `to` floats from lines of `from` floats: zeros behind, or the first of them. With `middle`
/// >= 0 the imaginary parts at floats 1 and `middle` + 1 are cleared (a Hermitian line's bin 0 and, when
/// middle > 0, its last).
__global__ void __launch_bounds__(kThreads) pack_kernel(const float* x, DeviceRows lines, int64_t from,
                                                        float* y, int64_t to, Divisor by, int64_t middle) {
  grid_loop(lines.count * to, [&](int64_t i) {
    const int64_t line = by.of(i), j = i - line * to;
    float v = j < from ? x[lines.offset(line) + j] : 0.0f;
    if (middle >= 0 && (j == 1 || (middle > 0 && j == middle + 1))) v = 0.0f;
    y[i] = v;
  });
}

/// The first `to` floats of packed lines of `from` floats, scaled.
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const float* x, int64_t from, float* y, DeviceRows lines, int64_t to, Divisor by,
                  float scale) {
  grid_loop(lines.count * to, [&](int64_t i) {
    const int64_t line = by.of(i), j = i - line * to;
    y[lines.offset(line) + j] = x[line * from + j] * scale;
  });
}

struct ComplexWork {
  const float *a, *b;
  float* y;
  DeviceRows a_at, b_at, y_at;  // of single numbers
  int64_t count;
  float eps2, snap, power;
};

template <ComplexArgs::Op kOp>
__global__ void __launch_bounds__(kThreads) complex_kernel(ComplexWork w) {
  using Op = ComplexArgs::Op;
  grid_loop(w.count, [&](int64_t i) {
    const float* a = w.a + w.a_at.offset(i);
    float* y = w.y + w.y_at.offset(i);
    if constexpr (kOp == Op::magnitude) {
      const float r = hypotf(a[0], a[1]);
      y[0] = w.power == 1.0f ? r : powf(r, w.power);
    } else if constexpr (kOp == Op::angle) {
      const bool real = fabsf(a[1]) <= w.snap * hypotf(a[0], a[1]);
      y[0] = atan2f(real ? 0.0f : a[1], a[0] == 0.0f ? 0.0f : a[0]);
    } else {
      const float* b = w.b + w.b_at.offset(i);
      if constexpr (kOp == Op::polar) {
        float sine, cosine;
        sincosf(b[0], &sine, &cosine);
        const float r = w.power == 1.0f ? a[0] : powf(a[0], w.power);
        y[0] = r * cosine, y[1] = r * sine;
      } else {
        const float ar = a[0], ai = a[1], br = b[0], bi = kOp == Op::multiply ? b[1] : -b[1];
        const float re = ar * br - ai * bi, im = ar * bi + ai * br;
        if constexpr (kOp == Op::divide) {
          const float power = br * br + bi * bi + w.eps2;
          y[0] = power == 0.0f ? 0.0f : re / power;
          y[1] = power == 0.0f ? 0.0f : im / power;
        } else {
          y[0] = re, y[1] = im;
        }
      }
    }
  });
}

// ---- Toeplitz attention: a chunk of features at a time ----------------------------------------------------

struct ToeplitzWork {
  const float *q, *k, *v, *spectrum;
  float *lines, *bins, *sums, *o;
  int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, o_batch, o_head,
      o_token;
  int64_t planes, heads, n, m, features, channels;  // channels: E + 1, the last is the denominator's
  int64_t q_width, k_height, k_width, height, width, half,
      kernel;  // kernel: floats between heads' spectra, or 0
  int64_t first, chunk;
};

/// lines[plane][feature of the chunk][channel][Lh][Lw] = k v (or k) on the grid of the keys, zeros elsewhere.
__global__ void __launch_bounds__(kThreads) toeplitz_fill(ToeplitzWork w) {
  const int64_t line = w.height * w.width, items = w.planes * w.chunk * w.channels * line;
  grid_loop(items, [&](int64_t i) {
    const int64_t row = divide(i, line), at = i - row * line;
    const int64_t y = divide(at, w.width), x = at - y * w.width;
    float value = 0.0f;
    if (y < w.k_height && x < w.k_width) {
      const int64_t pair = divide(row, w.channels), c = row - pair * w.channels;
      const int64_t plane = divide(pair, w.chunk), f = w.first + pair - plane * w.chunk;
      const int64_t b = divide(plane, w.heads), h = plane - b * w.heads, j = y * w.k_width + x;
      value = w.k[b * w.k_batch + h * w.k_head + j * w.k_token + f];
      if (c + 1 < w.channels) value *= w.v[b * w.v_batch + h * w.v_head + j * w.v_token + c];
    }
    w.lines[i] = value;
  });
}

/// bins *= the head's spectrum.
__global__ void __launch_bounds__(kThreads) toeplitz_multiply(ToeplitzWork w) {
  const int64_t bins = w.height * w.half, per_plane = w.chunk * w.channels * bins;
  grid_loop(w.planes * per_plane, [&](int64_t i) {
    const int64_t plane = divide(i, per_plane), at = i - plane * per_plane;
    const int64_t bin = at - divide(at, bins) * bins, h = plane - divide(plane, w.heads) * w.heads;
    const float2 s = *reinterpret_cast<const float2*>(w.spectrum + h * w.kernel + 2 * bin);
    float2* z = reinterpret_cast<float2*>(w.bins) + i;
    const float2 v = *z;
    *z = make_float2(v.x * s.x - v.y * s.y, v.x * s.y + v.y * s.x);
  });
}

/// sums[plane][channel][token] (+)= sum over the chunk's features, in their order, of q lines.
__global__ void __launch_bounds__(kThreads) toeplitz_accumulate(ToeplitzWork w) {
  const int64_t line = w.height * w.width, per_plane = w.channels * w.n;
  grid_loop(w.planes * per_plane, [&](int64_t i) {
    const int64_t plane = divide(i, per_plane), rest = i - plane * per_plane;
    const int64_t c = divide(rest, w.n), token = rest - c * w.n;
    const int64_t y = divide(token, w.q_width), x = token - y * w.q_width;
    const int64_t b = divide(plane, w.heads), h = plane - b * w.heads;
    const float* q = w.q + b * w.q_batch + h * w.q_head + token * w.q_token + w.first;
    const float* from = w.lines + (plane * w.chunk * w.channels + c) * line + y * w.width + x;
    float sum = w.first == 0 ? 0.0f : w.sums[i];
    for (int64_t f = 0; f < w.chunk; ++f) sum = fmaf(q[f], from[f * w.channels * line], sum);
    w.sums[i] = sum;
  });
}

__global__ void __launch_bounds__(kThreads) toeplitz_divide(ToeplitzWork w) {
  const int64_t e = w.channels - 1, per_plane = w.n * e;
  grid_loop(w.planes * per_plane, [&](int64_t i) {
    const int64_t plane = divide(i, per_plane), rest = i - plane * per_plane;
    const int64_t token = divide(rest, e), c = rest - token * e;
    const int64_t b = divide(plane, w.heads), h = plane - b * w.heads;
    const float* sums = w.sums + plane * w.channels * w.n;
    const float total = sums[e * w.n + token];
    w.o[b * w.o_batch + h * w.o_head + token * w.o_token + c] =
        sums[c * w.n + token] / (total > 0.0f || isnan(total) ? total : 1.0f);
  });
}

// ---- frames -----------------------------------------------------------------------------------------------

struct FrameWork {
  const float *x, *window;
  float* y;
  DeviceRows signals;
  int64_t n, frames, n_fft, hop, width, offset, window_offset, row;
  bool reflect;
};

__global__ void __launch_bounds__(kThreads) frame_kernel(FrameWork w) {
  grid_loop(w.signals.count * w.frames * w.n_fft, [&](int64_t i) {
    const int64_t row = divide(i, w.n_fft), j = i - row * w.n_fft, k = j - w.window_offset;
    float v = 0.0f;
    if (k >= 0 && k < w.width) {
      const int64_t signal = divide(row, w.frames), t = row - signal * w.frames;
      int64_t at = t * w.hop - w.offset + j;
      if (w.reflect) at = at < 0 ? -at : at >= w.n ? 2 * (w.n - 1) - at : at;
      if (at >= 0 && at < w.n) v = w.window[k] * w.x[w.signals.offset(signal) + at];
    }
    w.y[i] = v;
  });
}

/// A bin of a frame by the sum of its definition, in f64.
__global__ void __launch_bounds__(kThreads)
    wide_frame_kernel(FrameWork w, DeviceRows y_at, int64_t half, float scale) {
  grid_loop(w.signals.count * w.frames * half, [&](int64_t i) {
    const int64_t row = divide(i, half), k = i - row * half, signal = divide(row, w.frames),
                  t = row - signal * w.frames;
    const float* x = w.x + w.signals.offset(signal);
    double re = 0, im = 0;
    int64_t turn = (w.window_offset * k) % w.n_fft;  // of j k / n_fft, without the whole turns
    for (int64_t j = 0; j < w.width; ++j) {
      int64_t at = t * w.hop - w.offset + w.window_offset + j;
      if (w.reflect) at = at < 0 ? -at : at >= w.n ? 2 * (w.n - 1) - at : at;
      if (at >= 0 && at < w.n) {
        double sine, cosine;
        sincospi(-2.0 * static_cast<double>(turn) / static_cast<double>(w.n_fft), &sine, &cosine);
        const double v = static_cast<double>(x[at]) * static_cast<double>(w.window[j]);
        re += v * cosine, im += v * sine;
      }
      turn += k;
      if (turn >= w.n_fft) turn -= w.n_fft;
    }
    const bool real = k == 0 || 2 * k == w.n_fft;
    float* y = w.y + y_at.offset(row) + 2 * k;
    y[0] = static_cast<float>(re * static_cast<double>(scale));
    y[1] = real ? 0.0f : static_cast<float>(im * static_cast<double>(scale));
  });
}

/// A point gathers its frames in order of time, so sums do not depend on the launch.
__global__ void __launch_bounds__(kThreads) overlap_kernel(FrameWork w, const float* pieces, float scale) {
  grid_loop(w.signals.count * w.n, [&](int64_t i) {
    const int64_t signal = divide(i, w.n), j = i - signal * w.n, at = j + w.offset - w.window_offset;
    const int64_t last = at < 0 ? -1 : min(w.frames - 1, divide(at, w.hop));
    const int64_t first = at < w.width ? 0 : divide(at - w.width, w.hop) + 1;
    float sum = 0.0f, power = 0.0f;
    for (int64_t t = first; t <= last; ++t) {
      const int64_t k = at - t * w.hop;
      const float window = w.window[k];
      sum += pieces[(signal * w.frames + t) * w.n_fft + w.window_offset + k] * (scale * window);
      power += window * window;
    }
    w.y[w.signals.offset(signal) + j] = power < 1e-11f ? sum : sum / power;
  });
}

/// Whether cuFFT can read or write these lines where they are: one distance, apart, complex numbers in their
/// places.
bool usable(const Tensor& t, int inner, int64_t floats, bool real) {
  const DeviceRows rows(t, inner);
  return reinterpret_cast<uintptr_t>(t.raw()) % sizeof(float2) == 0 && rows.rank <= 1 &&
         (rows.rank == 0 || (rows.stride[0] >= floats && (real || rows.stride[0] % 2 == 0)));
}

int64_t distance_of(const Tensor& t, int inner, int64_t floats, bool real) {
  const DeviceRows rows(t, inner);
  return (rows.rank == 0 ? floats : rows.stride[0]) / (real ? 1 : 2);
}

}  // namespace

void CudaBackend::fft1(Context& ctx, const Fft1Args& args) {
  const int64_t n = args.length, half = n / 2 + 1;
  const bool real_x = args.kind == Kind::real_to_half, real_y = args.kind == Kind::half_to_real;
  const int inner_x = real_x ? 1 : 2, inner_y = real_y ? 1 : 2;
  const int64_t full_x = real_x ? n : 2 * (real_y ? half : n), full_y = real_y ? n : 2 * (real_x ? half : n);
  const int64_t given = real_x ? args.x.dim(-1) : 2 * args.x.dim(-2),
                wanted = real_y ? args.y.dim(-1) : 2 * args.y.dim(-2);
  const DeviceRows x_lines(args.x, inner_x), y_lines(args.y, inner_y);
  const int64_t lines = x_lines.count;
  // half_to_real always reads a copy: cuFFT overwrites its input and reads the imaginary parts that do not
  // count.
  const bool own_x = real_y || given < full_x || !usable(args.x, inner_x, full_x, real_x);
  const bool own_y = args.scale != 1.0f || wanted < full_y || !usable(args.y, inner_y, full_y, real_y);
  Tensor from, to;
  if (own_x) {
    from = ctx.allocate(DType::f32, {lines, full_x});
    const int64_t middle = !real_y ? -1 : n % 2 == 0 ? n : 0;
    pack_kernel<<<grid_for(ctx, lines * full_x, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const float*>(args.x.raw()), x_lines, given, static_cast<float*>(from.raw()), full_x,
        Divisor(full_x), middle);
    CUDA_CHECK_LAUNCH();
  }
  if (own_y) to = ctx.allocate(DType::f32, {lines, full_y});
  const CufftKey key{planar(args.kind),
                     1,
                     n,
                     lines,
                     own_x ? full_x / (real_x ? 1 : 2) : distance_of(args.x, inner_x, full_x, real_x),
                     own_y ? full_y / (real_y ? 1 : 2) : distance_of(args.y, inner_y, full_y, real_y)};
  execute_cufft(ctx, key, static_cast<float*>((own_x ? from : args.x).raw()),
                static_cast<float*>((own_y ? to : args.y).raw()));
  if (own_y) {
    unpack_kernel<<<grid_for(ctx, lines * wanted, kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const float*>(to.raw()), full_y, static_cast<float*>(args.y.raw()), y_lines, wanted,
        Divisor(wanted), args.scale);
    CUDA_CHECK_LAUNCH();
  }
}

void CudaBackend::complex_pointwise(Context& ctx, const ComplexArgs& args) {
  using Op = ComplexArgs::Op;
  const bool real_in = args.op == Op::polar, real_out = args.op == Op::magnitude || args.op == Op::angle;
  ComplexWork w{};
  w.a = static_cast<const float*>(args.a.raw());
  w.b = args.b ? static_cast<const float*>(args.b.raw()) : nullptr;
  w.y = static_cast<float*>(args.y.raw());
  w.a_at = DeviceRows(args.a, real_in ? 0 : 1);
  if (args.b) w.b_at = DeviceRows(args.b, real_in ? 0 : 1);
  w.y_at = DeviceRows(args.y, real_out ? 0 : 1);
  w.count = w.a_at.count;
  w.eps2 = args.eps * args.eps, w.snap = args.snap, w.power = args.power;
  const unsigned grid = grid_for(ctx, w.count, kThreads);
  const auto launch = [&](auto op) {
    complex_kernel<decltype(op)::value><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  };
  switch (args.op) {
    case Op::multiply:
      return launch(std::integral_constant<Op, Op::multiply>{});
    case Op::multiply_conj:
      return launch(std::integral_constant<Op, Op::multiply_conj>{});
    case Op::divide:
      return launch(std::integral_constant<Op, Op::divide>{});
    case Op::magnitude:
      return launch(std::integral_constant<Op, Op::magnitude>{});
    case Op::angle:
      return launch(std::integral_constant<Op, Op::angle>{});
    case Op::polar:
      return launch(std::integral_constant<Op, Op::polar>{});
  }
}

void CudaBackend::toeplitz_attention(Context& ctx, const ToeplitzAttentionArgs& args) {
  ToeplitzWork w{};
  w.q = static_cast<const float*>(args.q.raw());
  w.k = static_cast<const float*>(args.k.raw());
  w.v = static_cast<const float*>(args.v.raw());
  w.o = static_cast<float*>(args.o.raw());
  w.q_batch = args.q.stride(0), w.q_head = args.q.stride(1), w.q_token = args.q.stride(2);
  w.k_batch = args.k.stride(0), w.k_head = args.k.stride(1), w.k_token = args.k.stride(2);
  w.v_batch = args.v.stride(0), w.v_head = args.v.stride(1), w.v_token = args.v.stride(2);
  w.o_batch = args.o.stride(0), w.o_head = args.o.stride(1), w.o_token = args.o.stride(2);
  w.heads = args.q.dim(1), w.planes = args.q.dim(0) * w.heads;
  w.n = args.q.dim(2), w.m = args.k.dim(2), w.features = args.q.dim(3), w.channels = args.v.dim(3) + 1;
  w.q_width = args.q_grid[1], w.k_height = args.k_grid[0], w.k_width = args.k_grid[1];
  w.height = args.fft[0], w.width = args.fft[1], w.half = w.width / 2 + 1;
  // Kernels are read as float2.
  Tensor spectrum = args.spectrum;
  if (reinterpret_cast<uintptr_t>(spectrum.raw()) % sizeof(float2) != 0 ||
      (spectrum.dim(0) > 1 && spectrum.stride(0) % 2 != 0)) {
    spectrum = ctx.allocate(DType::f32, args.spectrum.shape());
    const int64_t kernel = 2 * w.height * w.half;
    pack_kernel<<<grid_for(ctx, spectrum.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const float*>(args.spectrum.raw()), DeviceRows(args.spectrum, 3), kernel,
        static_cast<float*>(spectrum.raw()), kernel, Divisor(kernel), -1);
    CUDA_CHECK_LAUNCH();
  }
  w.spectrum = static_cast<const float*>(spectrum.raw());
  w.kernel = spectrum.dim(0) == 1 ? 0 : spectrum.stride(0);
  const int64_t line = w.height * w.width, bins = w.height * w.half;
  const int64_t chunk = args.chunk < w.features ? args.chunk : w.features;
  const int64_t rows = w.planes * chunk * w.channels;
  const Tensor sums = ctx.allocate(DType::f32, {w.planes, w.channels, w.n});
  w.sums = static_cast<float*>(sums.raw());
  if (w.features == 0)
    CUDA_CHECK(cudaMemsetAsync(w.sums, 0, static_cast<size_t>(sums.nbytes()), stream_of(ctx)));
  const Tensor lines = ctx.allocate(DType::f32, {rows, line}),
               spectra = ctx.allocate(DType::f32, {rows, bins, 2});
  w.lines = static_cast<float*>(lines.raw());
  w.bins = static_cast<float*>(spectra.raw());
  for (w.first = 0; w.first < w.features; w.first += chunk) {
    w.chunk = chunk < w.features - w.first ? chunk : w.features - w.first;
    const int64_t now = w.planes * w.chunk * w.channels;
    toeplitz_fill<<<grid_for(ctx, now * line, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
    execute_cufft(ctx, {Kind2::real_to_half, w.height, w.width, now, line, bins}, w.lines, w.bins);
    toeplitz_multiply<<<grid_for(ctx, now * bins, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
    execute_cufft(ctx, {Kind2::half_to_real, w.height, w.width, now, bins, line}, w.bins, w.lines);
    toeplitz_accumulate<<<grid_for(ctx, w.planes * w.channels * w.n, kThreads), kThreads, 0,
                          stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  }
  toeplitz_divide<<<grid_for(ctx, w.planes * w.n * (w.channels - 1), kThreads), kThreads, 0,
                    stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::stft(Context& ctx, const StftArgs& args) {
  FrameWork w{};
  w.x = static_cast<const float*>(args.x.raw());
  w.window = static_cast<const float*>(args.window.raw());
  w.signals = DeviceRows(args.x, 1);
  w.n = args.x.dim(-1), w.frames = args.y.dim(args.x.rank() - 1), w.n_fft = args.n_fft, w.hop = args.hop;
  w.width = args.window.dim(0), w.offset = args.offset, w.window_offset = args.window_offset;
  w.reflect = args.border == SignalBorder::reflect;
  if (args.f64) {
    const int64_t half = args.n_fft / 2 + 1;
    w.y = static_cast<float*>(args.y.raw());
    wide_frame_kernel<<<grid_for(ctx, w.signals.count * w.frames * half, kThreads), kThreads, 0,
                        stream_of(ctx)>>>(w, DeviceRows(args.y, 2), half, args.scale);
    CUDA_CHECK_LAUNCH();
    return;
  }
  const Tensor frames = ctx.allocate(DType::f32, {w.signals.count * w.frames, w.n_fft});
  w.y = static_cast<float*>(frames.raw());
  frame_kernel<<<grid_for(ctx, frames.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
  // The same lines under one batch axis, or under y's own.
  const int64_t half = args.n_fft / 2 + 1;
  if (args.y.contiguous()) {
    fft1(ctx, {Kind::real_to_half, frames, args.y.reshape({frames.dim(0), half, 2}), args.n_fft, args.scale});
    return;
  }
  const Tensor packed = ctx.allocate(DType::f32, {frames.dim(0), half, 2});
  fft1(ctx, {Kind::real_to_half, frames, packed, args.n_fft, args.scale});
  unpack_kernel<<<grid_for(ctx, packed.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
      static_cast<const float*>(packed.raw()), 2 * half, static_cast<float*>(args.y.raw()),
      DeviceRows(args.y, 2), 2 * half, Divisor(2 * half), 1.0f);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::istft(Context& ctx, const IstftArgs& args) {
  FrameWork w{};
  w.window = static_cast<const float*>(args.window.raw());
  w.y = static_cast<float*>(args.y.raw());
  w.signals = DeviceRows(args.y, 1);
  w.n = args.y.dim(-1), w.frames = args.x.dim(args.y.rank() - 1), w.n_fft = args.n_fft, w.hop = args.hop;
  w.width = args.window.dim(0), w.offset = args.offset, w.window_offset = args.window_offset;
  const int64_t half = args.n_fft / 2 + 1, rows = w.signals.count * w.frames;
  const Tensor bins = ctx.allocate(DType::f32, {rows, 2 * half}),
               pieces = ctx.allocate(DType::f32, {rows, w.n_fft});
  if (rows > 0) {
    pack_kernel<<<grid_for(ctx, bins.numel(), kThreads), kThreads, 0, stream_of(ctx)>>>(
        static_cast<const float*>(args.x.raw()), DeviceRows(args.x, 2), 2 * half,
        static_cast<float*>(bins.raw()), 2 * half, Divisor(2 * half), w.n_fft % 2 == 0 ? w.n_fft : 0);
    CUDA_CHECK_LAUNCH();
    execute_cufft(ctx, {Kind2::half_to_real, 1, w.n_fft, rows, half, w.n_fft},
                  static_cast<float*>(bins.raw()), static_cast<float*>(pieces.raw()));
  }
  overlap_kernel<<<grid_for(ctx, w.signals.count * w.n, kThreads), kThreads, 0, stream_of(ctx)>>>(
      w, static_cast<const float*>(pieces.raw()), args.scale / static_cast<float>(w.n_fft));
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
