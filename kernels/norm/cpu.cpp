#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"

#define ATTNBENCH_ISA isa_base
#include "kernels/norm/norm_body.hpp"

namespace attnbench {

void CpuBackend::normalize(Context& ctx, const NormArgs& args) {
  const auto run = ATTNBENCH_BEST(norm_row);
  const RowOffsets x(args.x, 1), y(args.y, 1);
  const auto size = static_cast<int64_t>(size_of(args.x.dtype()));
  const int64_t n = args.x.dim(-1);
  parallel_range(ctx.threads(), x.count(), std::max<int64_t>(kParallelBytes / (2 * n * size), 1),
                 [&](int64_t begin, int64_t end) {
                   NormRow w{args.kind,         args.x.dtype(), nullptr, args.gain.raw(),
                             args.offset.raw(), nullptr,        n,       args.eps};
                   for (int64_t r = begin; r < end; ++r) {
                     w.x = static_cast<const char*>(args.x.raw()) + x.offset(r) * size;
                     w.y = static_cast<char*>(args.y.raw()) + y.offset(r) * size;
                     run(w);
                   }
                 });
}

namespace {

/// Sums are cut in chunks of about this many elements whatever the thread count, so that their order is
/// fixed.
constexpr int64_t kChunk = int64_t{1} << 16;

std::vector<float> channel_values(const Tensor& t, int64_t channels, float without) {
  std::vector<float> v(static_cast<size_t>(channels), without);
  if (t) convert(t.raw(), t.dtype(), v.data(), DType::f32, channels);
  return v;
}

}  // namespace

void CpuBackend::group_norm(Context& ctx, const GroupNormArgs& args) {
  const DType t = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(t));
  const int64_t batch = args.x.dim(0), channels = args.x.dim(args.channels_last ? -1 : 1);
  const int64_t positions = args.x.numel() / (batch * channels), image = positions * channels;
  const auto* x = static_cast<const char*>(args.x.raw());
  auto* y = static_cast<char*>(args.y.raw());
  // Every image's channels become y = x scale + shift.
  const std::vector<float> gain = channel_values(args.gain, channels, 1.0f);
  const std::vector<float> offset = channel_values(args.offset, channels, 0.0f);
  const int64_t images = args.mean ? 1 : batch;
  std::vector<float> scale(static_cast<size_t>(images * channels)), shift(scale.size());
  const auto set = [&](int64_t b, int64_t c, double mean, double variance) {
    const auto at = static_cast<size_t>(b * channels + c), in = static_cast<size_t>(c);
    const double s = static_cast<double>(gain[in]) / std::sqrt(variance + static_cast<double>(args.eps));
    scale[at] = static_cast<float>(s);
    shift[at] = static_cast<float>(static_cast<double>(offset[in]) - mean * s);
  };
  if (args.mean) {
    const std::vector<float> mean = channel_values(args.mean, channels, 0.0f);
    const std::vector<float> variance = channel_values(args.variance, channels, 0.0f);
    for (int64_t c = 0; c < channels; ++c)
      set(0, c, static_cast<double>(mean[static_cast<size_t>(c)]),
          static_cast<double>(variance[static_cast<size_t>(c)]));
  } else {
    const auto one = ATTNBENCH_BEST(add_moments_one);
    const auto each = ATTNBENCH_BEST(add_moments);
    // Channel-first: an item is a chunk of a plane with one pair of sums; channel-last: a chunk of pixels
    // with a pair for each channel.
    const int64_t length = args.channels_last ? std::max<int64_t>(kChunk / channels, 1) : kChunk;
    const int64_t chunks = (positions + length - 1) / length;
    const int64_t width = args.channels_last ? channels : 1;
    const int64_t items = args.channels_last ? batch * chunks : batch * channels * chunks;
    std::vector<double> sums(static_cast<size_t>(2 * items * width));
    parallel_range(ctx.threads(), items,
                   std::max<int64_t>(kParallelBytes / (std::min(length, positions) * width * size), 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t outer = i / chunks, first = i % chunks * length;
                       const int64_t count = std::min(length, positions - first);
                       double* sum = sums.data() + 2 * i * width;
                       if (!args.channels_last)
                         one(t, x + (outer * positions + first) * size, count, sum, sum + 1);
                       else
                         for (int64_t p = 0; p < count; ++p)
                           each(t, x + (outer * image + (first + p) * channels) * size, channels, sum,
                                sum + width);
                     }
                   });
    const int64_t per_group = channels / args.groups;
    const auto count = static_cast<double>(per_group * positions);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t g = 0; g < args.groups; ++g) {
        double sum = 0, squares = 0;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c)
          for (int64_t k = 0; k < chunks; ++k) {
            const int64_t item = args.channels_last ? b * chunks + k : (b * channels + c) * chunks + k;
            const double* at = sums.data() + 2 * item * width + (args.channels_last ? c : 0);
            sum += at[0], squares += at[width];
          }
        const double mean = sum / count, variance = squares / count - mean * mean;
        // NaN passes; a rounding below 0 does not.
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c)
          set(b, c, mean, variance < 0 ? 0.0 : variance);
      }
  }
  const auto row = ATTNBENCH_BEST(norm_affine);
  const auto plane = ATTNBENCH_BEST(norm_affine_one);
  const int64_t rows = args.channels_last ? batch * positions : batch * channels;
  const int64_t n = args.channels_last ? channels : positions;
  parallel_range(ctx.threads(), rows, std::max<int64_t>(kParallelBytes / (2 * n * size), 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t r = begin; r < end; ++r) {
                     const int64_t b = args.mean ? 0 : (args.channels_last ? r / positions : r / channels);
                     const int64_t at = b * channels + (args.channels_last ? 0 : r % channels);
                     const char* from = x + r * n * size;
                     char* to = y + r * n * size;
                     if (args.channels_last)
                       row(t, from, to, scale.data() + at, shift.data() + at, n);
                     else
                       plane(t, from, to, scale[static_cast<size_t>(at)], shift[static_cast<size_t>(at)], n);
                   }
                 });
}

}  // namespace attnbench
