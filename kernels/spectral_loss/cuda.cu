// The spectrum loss on CUDA: a warp per row of a plane, sums in f64 over fixed groups of rows.
#include <algorithm>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/spectral_loss/spectral_loss.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
/// Rows that a block sums, whatever the card, so that the order of additions is fixed.
constexpr int64_t kGroupRows = 4 * kWarps;

struct LossWork {
  const float2* spectrum;
  const float *mask, *most;
  float *map, *loss;
  double *sums, *weights;  // one of each per group of rows
  int64_t rows, groups, channels, height, width, half;
  float gamma, focal_gamma;
  bool focal, focal_log, batch_max;
};

__device__ float power_of(float x, float exponent) {
  if (exponent == 1.0f) return x;
  if (exponent == 2.0f) return x * x;
  return powf(x, exponent);
}

/// The unnormalised focal weight of one frequency.
__device__ float focal_weight(const LossWork& w, float2 z) {
  const float power = z.x * z.x + z.y * z.y;
  const float weight = w.focal_gamma == 2.0f ? power : power_of(sqrtf(power), w.focal_gamma);
  return w.focal_log ? log1pf(weight) : weight;
}

/// l of one frequency; `most` is the largest focal weight of its plane (or of the batch).
__device__ float loss_term(const LossWork& w, float2 z, float most) {
  const float d = sqrtf(z.x * z.x + z.y * z.y + 1e-12f);
  const float l = power_of(d, w.gamma);
  if (!w.focal) return l;
  const float weight = focal_weight(w, z) / most;
  return isnan(weight) ? 0.0f * l : (weight < 0.0f ? 0.0f : weight > 1.0f ? 1.0f : weight) * l;
}

/// Largest focal weight of every plane, or of all of them in most[0]. Weights are not negative, so their bits
/// order as they do, with NaN above infinity: the maximum is atomic, and the same in any order.
__global__ void __launch_bounds__(kThreads) focal_max_kernel(LossWork w, unsigned* most, int64_t parts) {
  const int64_t n = w.height * w.half, planes = w.rows / w.height;
  for (int64_t item = blockIdx.x; item < planes * parts; item += gridDim.x) {
    const int64_t plane = divide(item, parts), part = item - plane * parts;
    const int64_t end = (part + 1) * n / parts;
    float m = 0.0f;
    for (int64_t i = part * n / parts + threadIdx.x; i < end; i += kThreads)
      m = max_or_nan(m, focal_weight(w, w.spectrum[plane * n + i]));
    m = block_reduce<kThreads>(m, Max{});
    if (threadIdx.x == 0)
      atomicMax(most + (w.batch_max ? 0 : plane), isnan(m) ? 0x7fffffffu : __float_as_uint(m));
  }
}

__global__ void __launch_bounds__(kThreads) loss_rows_kernel(LossWork w) {
  const int64_t cy = w.height / 2, cx = w.width / 2;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (int64_t group = blockIdx.x; group < w.groups; group += gridDim.x) {
    double sum = 0.0, weight = 0.0;
    const int64_t end = min((group + 1) * kGroupRows, w.rows);
    for (int64_t r = group * kGroupRows + warp; r < end; r += kWarps) {
      const int64_t plane = divide(r, w.height), y = r - plane * w.height;
      const int64_t ky = y >= cy ? y - cy : y - cy + w.height;
      const float most = w.focal ? w.most[w.batch_max ? 0 : plane] : 0.0f;
      // Columns right of the centre are kx = 0 .. of this row; those left of it mirror kx = cx .. 1 of row
      // -ky, because |X(-k)| = |X(k)| for a real signal.
      const float2* direct = w.spectrum + (plane * w.height + ky) * w.half;
      const float2* mirror = w.spectrum + (plane * w.height + (ky == 0 ? 0 : w.height - ky)) * w.half;
      const int64_t image = divide(plane, w.channels);
      const float* keep = w.mask ? w.mask + (image * w.height + y) * w.width : nullptr;
      // The channels share the mask: the first one counts it.
      const bool counts = keep && plane == image * w.channels;
      for (int64_t x0 = lane; x0 < w.width; x0 += 32 * kBatch) {
        float2 z[kBatch];
        float open[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int64_t x = x0 + 32 * j;
          if (x >= w.width) break;
          z[j] = x >= cx ? direct[x - cx] : mirror[cx - x];
          open[j] = keep ? 1.0f - keep[x] : 1.0f;
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int64_t x = x0 + 32 * j;
          if (x >= w.width) break;
          const float l = loss_term(w, z[j], most);
          if (w.map) w.map[r * w.width + x] = l;
          sum += static_cast<double>(keep ? open[j] * l : l);
          if (counts) weight += static_cast<double>(open[j]);
        }
      }
    }
    sum = block_reduce<kThreads>(sum, Add{});
    weight = block_reduce<kThreads>(weight, Add{});
    if (threadIdx.x == 0) w.sums[group] = sum, w.weights[group] = weight;
  }
}

__global__ void __launch_bounds__(kThreads) loss_total_kernel(LossWork w) {
  double sum = 0.0, weight = 0.0;
  for (int64_t i = threadIdx.x; i < w.groups; i += kThreads) sum += w.sums[i], weight += w.weights[i];
  sum = block_reduce<kThreads>(sum, Add{});
  weight = block_reduce<kThreads>(weight, Add{});
  if (threadIdx.x == 0) {
    weight = w.mask ? weight * static_cast<double>(w.channels) : static_cast<double>(w.rows * w.width);
    w.loss[0] = weight == 0.0 ? 0.0f : static_cast<float>(sum / weight);
  }
}

}  // namespace

void CudaBackend::spectral_loss(Context& ctx, const SpectralLossArgs& args) {
  LossWork w{};
  w.spectrum = reinterpret_cast<const float2*>(args.spectrum.raw());
  if (reinterpret_cast<uintptr_t>(w.spectrum) % sizeof(float2) != 0)
    throw Unsupported("spectral_loss: the spectrum must start at a multiple of 8 bytes on CUDA");
  w.mask = args.mask ? args.mask.data<float>() : nullptr;
  w.map = args.map ? args.map.data<float>() : nullptr;
  w.loss = args.loss.data<float>();
  const int64_t planes = args.spectrum.dim(0) * args.spectrum.dim(1);
  w.channels = args.spectrum.dim(1), w.height = args.spectrum.dim(2);
  w.width = args.width, w.half = args.spectrum.dim(3);
  w.rows = planes * w.height, w.groups = (w.rows + kGroupRows - 1) / kGroupRows;
  w.gamma = args.gamma, w.focal_gamma = args.focal_gamma;
  w.focal = args.focal, w.focal_log = args.focal_log, w.batch_max = args.focal_batch_max;
  Tensor most, sums;
  if (w.groups > 0) {
    sums = ctx.allocate(DType::f64, {2, w.groups});
    w.sums = sums.data<double>(), w.weights = w.sums + w.groups;
    if (w.focal) {
      most = ctx.allocate(DType::f32, {planes});
      w.most = most.data<float>();
      CUDA_CHECK(cudaMemsetAsync(most.raw(), 0, static_cast<size_t>(most.nbytes()), stream_of(ctx)));
      // About 16 Ki frequencies per block.
      const int64_t parts = std::max<int64_t>(w.height * w.half >> 14, 1);
      focal_max_kernel<<<grid_for(ctx, planes * parts, 1), kThreads, 0, stream_of(ctx)>>>(
          w, static_cast<unsigned*>(most.raw()), parts);
      CUDA_CHECK_LAUNCH();
    }
    loss_rows_kernel<<<grid_for(ctx, w.groups, 1), kThreads, 0, stream_of(ctx)>>>(w);
    CUDA_CHECK_LAUNCH();
  }
  loss_total_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(w);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
