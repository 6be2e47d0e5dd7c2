#include <algorithm>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/pyramid/channel.hpp"
#include "kernels/pyramid/pyramid.hpp"

namespace attnbench {
namespace {

/// i reflected into [0, n) about the edge samples; any distance.
int64_t mirrored(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

}  // namespace

void CpuBackend::pyramid_level(Context& ctx, const PyramidArgs& args) {
  const int64_t images = args.x.dim(0), h = args.x.dim(1), w = args.x.dim(2), to_h = args.y.dim(1),
                to_w = args.y.dim(2), taps = args.taps.dim(0), reach = taps / 2;
  const float* filter = args.taps.data<float>();
  // Along rows, [h][to_w]; then along columns.
  const Tensor rows = ctx.allocate(DType::f32, {images, h, to_w});
  float* middle = rows.data<float>();
  const int64_t grain = std::max<int64_t>(kParallelBytes / (8 * (w + to_w)), 1);
  parallel_range(ctx.threads(), images * h, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = args.x.data<float>() + r * w;
      for (int64_t j = 0; j < to_w; ++j) {
        float sum = 0.0f;
        for (int64_t k = 0; k < taps; ++k) {
          if (args.expand) {
            const int64_t at = mirrored(j + k - reach, to_w);
            if (at % 2 == 0) sum += filter[k] * x[at / 2];
          } else {
            sum += filter[k] * x[mirrored(2 * j + k - reach, w)];
          }
        }
        middle[r * to_w + j] = sum;
      }
    }
  });
  parallel_range(ctx.threads(), images * to_h, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t image = r / to_h, i = r % to_h;
      float* y = args.y.data<float>() + r * to_w;
      const float* minuend = args.subtract_from ? args.subtract_from.data<float>() + r * to_w : nullptr;
      for (int64_t j0 = 0; j0 < to_w; j0 += 64) {
        float sum[64] = {};
        const int64_t count = std::min<int64_t>(64, to_w - j0);
        for (int64_t k = 0; k < taps; ++k) {
          int64_t from = args.expand ? mirrored(i + k - reach, to_h) : mirrored(2 * i + k - reach, h);
          if (args.expand) {
            if (from % 2 != 0) continue;
            from /= 2;
          }
          const float* x = middle + (image * h + from) * to_w + j0;
          for (int64_t j = 0; j < count; ++j) sum[j] += filter[k] * x[j];
        }
        for (int64_t j = 0; j < count; ++j) y[j0 + j] = minuend ? minuend[j0 + j] - sum[j] : sum[j];
      }
    }
  });
}

void CpuBackend::repair_range(Context& ctx, const RepairRangeArgs& args) {
  const int64_t pixels = args.v.dim(1), stream = args.redraw.dim(1);
  parallel_items(ctx.threads(), args.v.dim(0), [&](int64_t b) {
    const float* v = args.v.data<float>() + b * args.v.stride(0);
    const float* s = args.s.data<float>() + b * args.s.stride(0);
    const float* redraw = args.redraw.data<float>() + b * args.redraw.stride(0);
    float* y = args.y.data<float>() + b * args.y.stride(0);
    const float sigma = args.sigma.data<float>()[b];
    if (sigma == 0.0f) {
      std::copy(v, v + pixels, y);
      return;
    }
    int64_t used = 0;
    for (int64_t i = 0; i < pixels; ++i)
      y[i] = needs_redraw(v[i], s[i], args.gap) ? redrawn_pixel(v[i], redraw, stream, sigma, &used)
                                                : moved_pixel(v[i], s[i], args.gap);
  });
}

void CpuBackend::channel_fit(Context& ctx, const ChannelFitArgs& args) {
  const int64_t levels = args.accuracy.dim(1), bands = args.accuracy.dim(2);
  parallel_items(ctx.threads(), args.accuracy.dim(0), [&](int64_t b) {
    channel_of_row(args.accuracy.data<float>() + b * levels * bands, levels, bands, args.pass,
                   args.lowest_center, args.threshold.data<int32_t>() + b * bands,
                   args.fit.data<double>() + b, args.fit.dim(1));
  });
}

}  // namespace attnbench
