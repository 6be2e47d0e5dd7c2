#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/resample/resample.hpp"

namespace attnbench {
namespace {

struct Taps {
  int64_t at[4];
  float weight[4];
};

/// Keys' cubic with a = -0.75 around source = (i + 0.5) * in / out - 0.5, positions clamped to the edge.
std::vector<Taps> taps_of(int64_t in, int64_t out) {
  constexpr double a = -0.75;
  const auto near = [](double t) { return ((a + 2) * t - (a + 3)) * t * t + 1; };       // |t| <= 1
  const auto far = [](double t) { return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a; };  // 1 < |t| < 2
  std::vector<Taps> taps(static_cast<size_t>(out));
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  for (int64_t i = 0; i < out; ++i) {
    const double source = (static_cast<double>(i) + 0.5) * scale - 0.5;
    const double floor = std::floor(source), t = source - floor;
    Taps& tap = taps[static_cast<size_t>(i)];
    for (int64_t j = 0; j < 4; ++j)
      tap.at[j] = std::clamp<int64_t>(static_cast<int64_t>(floor) - 1 + j, 0, in - 1);
    tap.weight[0] = static_cast<float>(far(t + 1));
    tap.weight[1] = static_cast<float>(near(t));
    tap.weight[2] = static_cast<float>(near(1 - t));
    tap.weight[3] = static_cast<float>(far(2 - t));
  }
  return taps;
}

}  // namespace

void CpuBackend::resize_bicubic(Context& ctx, const ResizeArgs& args) {
  const DType t = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(t));
  const int64_t height = args.x.dim(2), width = args.x.dim(3), ho = args.y.dim(2), wo = args.y.dim(3);
  const std::vector<Taps> rows = taps_of(height, ho), columns = taps_of(width, wo);
  const char* x = static_cast<const char*>(args.x.raw());
  char* y = static_cast<char*>(args.y.raw());
  const int64_t planes = args.x.dim(0) * args.x.dim(1);
  const bool wide = t == DType::f32;
  parallel_range(ctx.threads(), planes * ho, std::max<int64_t>(kParallelBytes / (4 * (4 * width + wo)), 1),
                 [&](int64_t begin, int64_t end) {
                   // The four source rows are blended first, over whole rows; then each output takes four
                   // neighbours.
                   std::vector<float> blended(static_cast<size_t>(width)), out(static_cast<size_t>(wo));
                   std::vector<float> widened(wide ? 0 : static_cast<size_t>(4 * width));
                   for (int64_t r = begin; r < end; ++r) {
                     const Taps& tap = rows[static_cast<size_t>(r % ho)];
                     const float* source[4];
                     for (int j = 0; j < 4; ++j) {
                       const char* row = x + (r / ho * height + tap.at[j]) * width * size;
                       if (wide) {
                         source[j] = reinterpret_cast<const float*>(row);
                       } else {
                         convert(row, t, widened.data() + j * width, DType::f32, width);
                         source[j] = widened.data() + j * width;
                       }
                     }
                     for (int64_t c = 0; c < width; ++c)
                       blended[static_cast<size_t>(c)] =
                           tap.weight[0] * source[0][c] + tap.weight[1] * source[1][c] +
                           tap.weight[2] * source[2][c] + tap.weight[3] * source[3][c];
                     for (int64_t c = 0; c < wo; ++c) {
                       const Taps& k = columns[static_cast<size_t>(c)];
                       float s = 0;
                       for (int j = 0; j < 4; ++j) s += k.weight[j] * blended[static_cast<size_t>(k.at[j])];
                       if (args.clamp01) s = s < 0.0f ? 0.0f : (s > 1.0f ? 1.0f : s);  // NaN passes
                       out[static_cast<size_t>(c)] = s;
                     }
                     convert(out.data(), DType::f32, y + r * wo * size, t, wo);
                   }
                 });
}

}  // namespace attnbench
