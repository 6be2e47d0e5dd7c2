#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/spectral_response/peaks.hpp"
#include "kernels/spectral_response/spectral_response.hpp"

namespace attnbench {
namespace {

/// arg(re + i im), where a real bin's imaginary part is +0.
double angle(float re, float im, bool real) {
  if (real) return re < 0.0f ? std::numbers::pi : 0.0;
  return std::atan2(im, re);
}

/// Bins that one item of work takes: their accumulators stay in the first-level cache.
constexpr int64_t kBins = 32;

template <class Sum>
void statistics(Context& ctx, const TransferStatisticsArgs& args) {
  const int64_t batch = args.y.dim(0), ch = args.y.dim(1), frames = args.y.dim(2), f = args.y.dim(3),
                pairs = ch * (ch - 1) / 2, blocks = (f + kBins - 1) / kBins;
  const float* x0 = args.x.data<float>();
  const float* y0 = args.y.data<float>();
  float* h0 = args.h ? args.h.data<float>() : nullptr;
  const float eps2 = args.eps * args.eps;
  parallel_items(ctx.threads(), batch * blocks, [&](int64_t item) {
    const int64_t b = item / blocks, first = item % blocks * kBins, last = std::min(f, first + kBins);
    std::vector<Sum> magnitude(static_cast<size_t>(ch * kBins)), phase = magnitude, power = magnitude;
    std::vector<Sum> cross(static_cast<size_t>(2 * pairs * kBins));
    std::vector<float> g(static_cast<size_t>(2 * ch));
    for (int64_t t = 0; t < frames; ++t)
      for (int64_t k = first; k < last; ++k) {
        const auto slot = static_cast<size_t>(k - first);
        const bool real = k == 0 || (args.n_fft % 2 == 0 && k == args.n_fft / 2);
        const float* x = x0 + ((b * frames + t) * f + k) * 2;
        const float denominator = x[0] * x[0] + x[1] * x[1] + eps2;
        const double arg_x = args.phase_ratio ? 0.0 : angle(x[0], x[1], real);
        for (int64_t c = 0; c < ch; ++c) {
          const auto at = static_cast<size_t>(c * kBins) + slot;
          const float* y = y0 + (((b * ch + c) * frames + t) * f + k) * 2;
          float re = 0.0f, im = 0.0f;
          if (denominator != 0.0f) {
            re = (y[0] * x[0] + y[1] * x[1]) / denominator;
            im = (y[1] * x[0] - y[0] * x[1]) / denominator;
          }
          if (h0) {
            float* h = h0 + (((b * ch + c) * f + k) * frames + t) * 2;
            h[0] = re, h[1] = im;
          }
          magnitude[at] += static_cast<Sum>(std::hypot(re, im));
          phase[at] +=
              static_cast<Sum>(args.phase_ratio ? angle(re, im, real) : angle(y[0], y[1], real) - arg_x);
          if (args.from_response) re = y[0], im = y[1];
          power[at] +=
              static_cast<Sum>(re) * static_cast<Sum>(re) + static_cast<Sum>(im) * static_cast<Sum>(im);
          g[static_cast<size_t>(2 * c)] = re, g[static_cast<size_t>(2 * c + 1)] = im;
        }
        size_t pair = 0;
        for (int64_t c = 0; c < ch; ++c)
          for (int64_t d = c + 1; d < ch; ++d, ++pair) {
            const Sum a = g[static_cast<size_t>(2 * c)], ai = g[static_cast<size_t>(2 * c + 1)],
                      q = g[static_cast<size_t>(2 * d)], qi = g[static_cast<size_t>(2 * d + 1)];
            Sum* sum = &cross[2 * (pair * kBins + slot)];
            sum[0] += a * q + ai * qi;
            sum[1] += ai * q - a * qi;
          }
      }
    for (int64_t k = first; k < last; ++k) {
      const auto slot = static_cast<size_t>(k - first);
      for (int64_t c = 0; c < ch; ++c) {
        const auto at = static_cast<size_t>(c * kBins) + slot;
        args.r.data<float>()[(b * ch + c) * f + k] =
            static_cast<float>(magnitude[at] / static_cast<Sum>(frames));
        args.phi.data<float>()[(b * ch + c) * f + k] =
            static_cast<float>(phase[at] / static_cast<Sum>(frames));
      }
      int64_t pair = 0;
      for (int64_t c = 0; c < ch; ++c)
        for (int64_t d = c + 1; d < ch; ++d, ++pair) {
          const Sum* sum = &cross[2 * (static_cast<size_t>(pair * kBins) + slot)];
          const Sum csd = std::hypot(sum[0], sum[1]);
          const Sum norm = std::sqrt(power[static_cast<size_t>(c * kBins) + slot]) *
                           std::sqrt(power[static_cast<size_t>(d * kBins) + slot]);
          args.csd.data<float>()[(b * pairs + pair) * f + k] = static_cast<float>(csd);
          args.coef.data<float>()[(b * pairs + pair) * f + k] =
              norm == 0 ? 0.0f : static_cast<float>(csd / norm);
        }
    }
  });
}

}  // namespace

void CpuBackend::transfer_statistics(Context& ctx, const TransferStatisticsArgs& args) {
  args.f32_sums ? statistics<float>(ctx, args) : statistics<double>(ctx, args);
}

void CpuBackend::find_peaks(Context& ctx, const FindPeaksArgs& args) {
  const RowOffsets x(args.x, 1), index(args.index, 1);
  const RowOffsets width = args.width ? RowOffsets(args.width, 1) : RowOffsets();
  const int64_t n = args.x.dim(-1), room = n / 2 + 1;
  const Tensor found = ctx.allocate(DType::i32, {ctx.threads(), room}),
               kept = ctx.allocate(DType::u8, {ctx.threads(), room});
  parallel_items(ctx.threads(), x.count(), [&](int64_t i) {
    find_peaks_of_row({args.x.data<float>() + x.offset(i), n, args.index.data<int32_t>() + index.offset(i),
                       args.width ? args.width.data<float>() + width.offset(i) : nullptr, args.index.dim(-1),
                       args.log10, args.by_deviation, args.fraction, args.distance,
                       found.data<int32_t>() + thread_index() * room,
                       kept.data<uint8_t>() + thread_index() * room});
  });
}

void CpuBackend::histogram(Context&, const HistogramArgs& args) {
  const int64_t channels = args.index.dim(1), most = args.index.dim(2), bins = args.counts.dim(1);
  for (int64_t c = 0; c < channels; ++c)
    histogram_of_row({args.index.data<int32_t>() + c * most, args.index.dim(0), channels * most, most,
                      args.counts.data<int32_t>() + c * bins, args.edges.data<float>() + c * (bins + 1), bins,
                      args.scale});
}

}  // namespace attnbench
