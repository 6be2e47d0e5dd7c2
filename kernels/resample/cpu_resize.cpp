// resize and sample_points on the CPU. An output row blends its source rows first, over whole rows, then
// neighbours within the row.
#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/resample/taps.hpp"

namespace attnbench {
namespace {

struct TapTable {
  int64_t taps;
  std::vector<int32_t> at;
  std::vector<float> weight;
  explicit TapTable(const TapAxis& axis) : taps(axis.count()) {
    at.resize(static_cast<size_t>(taps * axis.out));
    weight.resize(at.size());
    for (int64_t i = 0; i < axis.out; ++i)
      axis.fill(i, taps, axis.stretch(), at.data() + i * taps, weight.data() + i * taps);
  }
};

/// Two taps are blended as a + t (b - a), which keeps a constant exact.
void blend(const float* const* from, const float* weight, int64_t taps, float* to, int64_t n) {
  if (taps == 2) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[0][i] + weight[1] * (from[1][i] - from[0][i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i] = weight[0] * from[0][i];
  for (int64_t j = 1; j < taps; ++j)
    for (int64_t i = 0; i < n; ++i) to[i] += weight[j] * from[j][i];
}

}  // namespace

void CpuBackend::resize(Context& ctx, const ResampleArgs& args) {
  const TapAxis rows(args, 0), columns(args, 1);
  const TapTable v(rows), h(columns);
  const DType t = args.x.dtype();
  const auto size = static_cast<int64_t>(size_of(t));
  const bool wide = t == DType::f32, lerp = args.kind == ResampleArgs::Kind::bilinear && !args.antialias;
  const int64_t inner = args.channels_last ? args.x.dim(3) : 1;
  const int64_t planes = args.channels_last ? args.x.dim(0) : args.x.dim(0) * args.x.dim(1);
  const int64_t line = columns.in * inner, out_line = columns.out * inner;
  const auto* x = static_cast<const char*>(args.x.raw());
  auto* y = static_cast<char*>(args.y.raw());
  parallel_range(
      ctx.threads(), planes * rows.out,
      std::max<int64_t>(kParallelBytes / (4 * (v.taps * line + h.taps * out_line)), 1),
      [&](int64_t begin, int64_t end) {
        std::vector<float> widened(wide ? 0 : static_cast<size_t>(v.taps * line));
        std::vector<float> blended(static_cast<size_t>(line)), out(static_cast<size_t>(out_line));
        std::vector<const float*> from(static_cast<size_t>(std::max(v.taps, h.taps)));
        for (int64_t r = begin; r < end; ++r) {
          const int64_t plane = r / rows.out, row = r % rows.out;
          for (int64_t j = 0; j < v.taps; ++j) {
            const int64_t at = v.at[static_cast<size_t>(row * v.taps + j)];
            const char* source = x + (plane * rows.in + at) * line * size;
            if (wide) {
              from[static_cast<size_t>(j)] = reinterpret_cast<const float*>(source);
            } else {
              float* to = widened.data() + j * line;
              convert(source, t, to, DType::f32, line);
              from[static_cast<size_t>(j)] = to;
            }
          }
          blend(from.data(), v.weight.data() + row * v.taps, lerp ? 2 : v.taps, blended.data(), line);
          for (int64_t ox = 0; ox < columns.out; ++ox) {
            for (int64_t j = 0; j < h.taps; ++j)
              from[static_cast<size_t>(j)] =
                  blended.data() + h.at[static_cast<size_t>(ox * h.taps + j)] * inner;
            blend(from.data(), h.weight.data() + ox * h.taps, h.taps, out.data() + ox * inner, inner);
          }
          convert(out.data(), DType::f32, y + r * out_line * size, t, out_line);
        }
      });
}

namespace {

template <class T>
void sample(Context& ctx, const SamplePointsArgs& args) {
  const Tensor &x = args.x, &y = args.y;
  const int64_t groups = y.dim(1), points = y.dim(2), width = y.dim(3), height = x.dim(2), columns = x.dim(3);
  const int64_t group_step = x.dim(1) == 1 ? 0 : x.stride(1);
  const auto* at = args.points.data<float>();
  const int64_t bytes = std::max<int64_t>(5 * width * static_cast<int64_t>(sizeof(T)), 1);
  parallel_range(ctx.threads(), y.dim(0) * groups * points, std::max<int64_t>(kParallelBytes / bytes, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t b = i / (groups * points), g = i / points % groups, p = i % points;
                     const T* plane = static_cast<const T*>(x.raw()) + b * x.stride(0) + g * group_step;
                     T* to = static_cast<T*>(y.raw()) + b * y.stride(0) + g * y.stride(1) + p * y.stride(2);
                     float u = at[2 * i], v = at[2 * i + 1];
                     if (u != u || v != v) {
                       for (int64_t d = 0; d < width; ++d) to[d] = T(u + v);
                       continue;
                     }
                     // Beyond one position outside nothing changes; the bounds keep the integers small.
                     const float right = static_cast<float>(columns), bottom = static_cast<float>(height);
                     u = std::min(std::max(u, args.clamp ? 0.0f : -1.0f), args.clamp ? right - 1.0f : right);
                     v = std::min(std::max(v, args.clamp ? 0.0f : -1.0f),
                                  args.clamp ? bottom - 1.0f : bottom);
                     const float left = std::floor(u), top = std::floor(v), fu = u - left, fv = v - top;
                     const int64_t ix = static_cast<int64_t>(left), iy = static_cast<int64_t>(top);
                     const T* tap[4];
                     float weight[4];
                     for (int k = 0; k < 4; ++k) {
                       const int64_t cx = ix + k % 2, cy = iy + k / 2;
                       weight[k] = (k % 2 ? fu : 1.0f - fu) * (k / 2 ? fv : 1.0f - fv);
                       const bool inside = cx >= 0 && cx < columns && cy >= 0 && cy < height;
                       // A neighbour beyond the edge of a clamped point has weight 0.
                       tap[k] = inside ? plane + cy * x.stride(2) + cx * x.stride(3) : nullptr;
                     }
                     for (int64_t d = 0; d < width; ++d) {
                       float sum = 0.0f;
                       for (int k = 0; k < 4; ++k)
                         if (tap[k]) sum += weight[k] * static_cast<float>(tap[k][d]);
                       to[d] = T(sum);
                     }
                   }
                 });
}

}  // namespace

void CpuBackend::sample_points(Context& ctx, const SamplePointsArgs& args) {
  if (args.x.dtype() == DType::f32) return sample<float>(ctx, args);
  if (args.x.dtype() == DType::bf16) return sample<bf16>(ctx, args);
  sample<f16>(ctx, args);
}

}  // namespace attnbench
