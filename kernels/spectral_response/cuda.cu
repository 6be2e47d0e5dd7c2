// A thread per (batch, bin) runs over the frames; rows of the searches are small, a thread each.
#include <math_constants.h>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/spectral_response/peaks.hpp"
#include "kernels/spectral_response/spectral_response.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 128;

struct ResponseWork {
  const float *x, *y;
  float *r, *phi, *csd, *coef, *h;
  int64_t batch, channels, frames, bins, n_fft, pairs;
  float eps2;
  bool phase_ratio, from_response;
};

__device__ double angle_of(float re, float im, bool real) {
  if (real) return re < 0.0f ? 3.14159265358979323846 : 0.0;
  return atan2(static_cast<double>(im), static_cast<double>(re));
}

struct Cell {
  float re, im;
};
__device__ Cell transfer(const ResponseWork& w, const float* x, const float* y) {
  const float denominator = x[0] * x[0] + x[1] * x[1] + w.eps2;
  if (denominator == 0.0f) return {0.0f, 0.0f};
  return {(y[0] * x[0] + y[1] * x[1]) / denominator, (y[1] * x[0] - y[0] * x[1]) / denominator};
}

/// Items are (batch, channel or pair, bin): channels first, so that a channel's sums and a pair's are each
/// one thread's, in order of time. Cells of a pair are divided again: 11 operations for what would be 2 Ch
/// floats of state.
template <class Sum>
__global__ void __launch_bounds__(kThreads) response_kernel(ResponseWork w) {
  const int64_t rows = w.channels + w.pairs, items = w.batch * rows * w.bins;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const int64_t line = divide(i, w.bins), k = i - line * w.bins, b = divide(line, rows),
                  row = line - b * rows;
    const float* x = w.x + (b * w.frames * w.bins + k) * 2;
    const int64_t frame = 2 * w.bins;
    if (row < w.channels) {
      const bool real = k == 0 || (w.n_fft % 2 == 0 && k == w.n_fft / 2);
      const float* y = w.y + ((b * w.channels + row) * w.frames * w.bins + k) * 2;
      float* h = w.h ? w.h + ((b * w.channels + row) * w.bins + k) * w.frames * 2 : nullptr;
      Sum magnitude = 0, phase = 0;
      for (int64_t t = 0; t < w.frames; ++t, x += frame, y += frame) {
        const Cell c = transfer(w, x, y);
        if (h) h[2 * t] = c.re, h[2 * t + 1] = c.im;
        magnitude += static_cast<Sum>(hypotf(c.re, c.im));
        phase += static_cast<Sum>(w.phase_ratio ? angle_of(c.re, c.im, real)
                                                : angle_of(y[0], y[1], real) - angle_of(x[0], x[1], real));
      }
      w.r[(b * w.channels + row) * w.bins + k] = static_cast<float>(magnitude / static_cast<Sum>(w.frames));
      w.phi[(b * w.channels + row) * w.bins + k] = static_cast<float>(phase / static_cast<Sum>(w.frames));
      continue;
    }
    int64_t c = 0, left = row - w.channels;
    while (left >= w.channels - 1 - c) left -= w.channels - 1 - c, ++c;
    const int64_t d = c + 1 + left;
    const float* y = w.y + ((b * w.channels + c) * w.frames * w.bins + k) * 2;
    const float* z = w.y + ((b * w.channels + d) * w.frames * w.bins + k) * 2;
    Sum re = 0, im = 0, power_c = 0, power_d = 0;
    for (int64_t t = 0; t < w.frames; ++t, x += frame, y += frame, z += frame) {
      Cell p{y[0], y[1]}, q{z[0], z[1]};
      if (!w.from_response) p = transfer(w, x, y), q = transfer(w, x, z);
      const Sum pr = p.re, pi = p.im, qr = q.re, qi = q.im;
      re += pr * qr + pi * qi;
      im += pi * qr - pr * qi;
      power_c += pr * pr + pi * pi;
      power_d += qr * qr + qi * qi;
    }
    const Sum csd = sqrt(re * re + im * im), norm = sqrt(power_c) * sqrt(power_d);
    const int64_t at = (b * w.pairs + row - w.channels) * w.bins + k;
    w.csd[at] = static_cast<float>(csd);
    w.coef[at] = norm == 0 ? 0.0f : static_cast<float>(csd / norm);
  }
}

struct PeakWork {
  DeviceRows x_at, index_at, width_at;
  PeakRow row;  // pointers of the first row, workspaces of all rows
  int64_t rows, room;
};

__global__ void __launch_bounds__(kThreads) peak_kernel(PeakWork w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < w.rows; i += step) {
    PeakRow row = w.row;
    row.x += w.x_at.offset(i);
    row.index += w.index_at.offset(i);
    if (row.width) row.width += w.width_at.offset(i);
    row.found += i * w.room;
    row.kept += i * w.room;
    find_peaks_of_row(row);
  }
}

__global__ void __launch_bounds__(kThreads) histogram_kernel(HistogramRow first, int64_t channels) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < channels; c += step) {
    HistogramRow row = first;
    row.index += c * row.most;
    row.counts += c * row.bins;
    row.edges += c * (row.bins + 1);
    histogram_of_row(row);
  }
}

}  // namespace

void CudaBackend::transfer_statistics(Context& ctx, const TransferStatisticsArgs& args) {
  ResponseWork w{};
  w.x = static_cast<const float*>(args.x.raw()), w.y = static_cast<const float*>(args.y.raw());
  w.r = static_cast<float*>(args.r.raw()), w.phi = static_cast<float*>(args.phi.raw());
  w.csd = static_cast<float*>(args.csd.raw()), w.coef = static_cast<float*>(args.coef.raw());
  w.h = args.h ? static_cast<float*>(args.h.raw()) : nullptr;
  w.batch = args.y.dim(0), w.channels = args.y.dim(1), w.frames = args.y.dim(2), w.bins = args.y.dim(3);
  w.n_fft = args.n_fft, w.pairs = w.channels * (w.channels - 1) / 2;
  w.eps2 = args.eps * args.eps;
  w.phase_ratio = args.phase_ratio, w.from_response = args.from_response;
  const unsigned grid = grid_for(ctx, w.batch * (w.channels + w.pairs) * w.bins, kThreads);
  if (args.f32_sums)
    response_kernel<float><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  else
    response_kernel<double><<<grid, kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::find_peaks(Context& ctx, const FindPeaksArgs& args) {
  PeakWork w{};
  w.x_at = DeviceRows(args.x, 1), w.index_at = DeviceRows(args.index, 1);
  if (args.width) w.width_at = DeviceRows(args.width, 1);
  const int64_t n = args.x.dim(-1);
  w.rows = w.x_at.count, w.room = n / 2 + 1;
  const Tensor found = ctx.allocate(DType::i32, {w.rows, w.room}),
               kept = ctx.allocate(DType::u8, {w.rows, w.room});
  w.row = {static_cast<const float*>(args.x.raw()),
           n,
           static_cast<int32_t*>(args.index.raw()),
           args.width ? static_cast<float*>(args.width.raw()) : nullptr,
           args.index.dim(-1),
           args.log10,
           args.by_deviation,
           args.fraction,
           args.distance,
           static_cast<int32_t*>(found.raw()),
           static_cast<uint8_t*>(kept.raw())};
  peak_kernel<<<grid_for(ctx, w.rows, kThreads), kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::histogram(Context& ctx, const HistogramArgs& args) {
  const int64_t channels = args.index.dim(1), most = args.index.dim(2);
  const HistogramRow row{static_cast<const int32_t*>(args.index.raw()),
                         args.index.dim(0),
                         channels * most,
                         most,
                         static_cast<int32_t*>(args.counts.raw()),
                         static_cast<float*>(args.edges.raw()),
                         args.counts.dim(1),
                         args.scale};
  histogram_kernel<<<grid_for(ctx, channels, kThreads), kThreads, 0, stream_of(ctx)>>>(row, channels);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
