// solve_spd on CUDA: a warp a system, its factor in shared memory in double.
#include <algorithm>
#include <cmath>

#include "kernels/core/cuda_kernel.cuh"
#include "kernels/solve/solve.hpp"

namespace attnbench {
namespace {

constexpr int kWarp = 32;

__device__ inline double warp_sum(double x) {
  for (int i = kWarp / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

/// One warp a block. Row i of the factor starts at i * (n + 1): a column's entries lie on different banks.
__global__ void __launch_bounds__(kWarp)
    solve_kernel(const float* a, const float* b, float* x, int64_t systems, int n, float ridge) {
  extern __shared__ double memory[];
  const int row = n + 1, lane = static_cast<int>(threadIdx.x);
  double* l = memory;
  double* y = memory + n * row;
  for (int64_t s = blockIdx.x; s < systems; s += gridDim.x) {
    const float* from = a + s * n * n;
    bool definite = true;
    for (int j = 0; j < n; ++j) {
      double part = 0;
      for (int k = lane; k < j; k += kWarp) part += l[j * row + k] * l[j * row + k];
      const double pivot = static_cast<double>(from[j * n + j]) + static_cast<double>(ridge) - warp_sum(part);
      definite = definite && pivot > 0;  // the same for all lanes: the sum is
      const double root = sqrt(pivot), inverse = 1.0 / root;
      for (int i = j + 1 + lane; i < n; i += kWarp) {
        double t = static_cast<double>(from[i * n + j]);
        for (int k = 0; k < j; ++k) t -= l[i * row + k] * l[j * row + k];
        l[i * row + j] = t * inverse;
      }
      if (lane == 0) l[j * row + j] = root;
      __syncwarp();
    }
    for (int i = 0; i < n; ++i) {
      double part = 0;
      for (int k = lane; k < i; k += kWarp) part += l[i * row + k] * y[k];
      part = warp_sum(part);
      if (lane == 0) y[i] = (static_cast<double>(b[s * n + i]) - part) / l[i * row + i];
      __syncwarp();
    }
    for (int i = n - 1; i >= 0; --i) {
      double part = 0;
      for (int k = i + 1 + lane; k < n; k += kWarp) part += l[k * row + i] * y[k];
      part = warp_sum(part);
      if (lane == 0) y[i] = (y[i] - part) / l[i * row + i];
      __syncwarp();
    }
    for (int i = lane; i < n; i += kWarp) x[s * n + i] = definite ? static_cast<float>(y[i]) : NAN;
    __syncwarp();  // the next system overwrites what this one reads
  }
}

}  // namespace

void CudaBackend::solve_spd(Context& ctx, const SolveSpdArgs& args) {
  const int n = static_cast<int>(args.a.dim(-1));
  const int64_t systems = args.b.numel() / n;
  const int bytes = static_cast<int>(sizeof(double)) * (n * (n + 1) + n);
  if (bytes > (48 << 10))
    CUDA_CHECK(cudaFuncSetAttribute(solve_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(systems, INT32_MAX));
  solve_kernel<<<grid, kWarp, static_cast<size_t>(bytes), stream_of(ctx)>>>(
      args.a.data<float>(), args.b.data<float>(), args.x.data<float>(), systems, n, args.ridge);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
