// Clusters of thread blocks, which sm_90 has: their launch, their barrier, stores to each other's shared
// memory. The device code is empty on cards before it, where a cluster has one block.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/cuda_backend.cuh"

namespace attnbench::cluster {

/// Blocks of a cluster; 8 is what every card with clusters grants.
inline constexpr int kMostParts = 8;

/// Launches `kernel` on `blocks` clusters of `parts` blocks each; parts 1: without clusters.
template <class... Parameters, class... Arguments>
void launch(Context& ctx, void (*kernel)(Parameters...), int64_t blocks, int parts, int threads,
            size_t shared_bytes, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks * parts));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(ctx);
  cudaLaunchAttribute dimension{};
  dimension.id = cudaLaunchAttributeClusterDimension;
  dimension.val.clusterDim.x = static_cast<unsigned>(parts);
  dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
  config.attrs = &dimension;
  config.numAttrs = parts > 1 ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

/// The two halves of the barrier; what a block stored in another's shared memory before it arrived is there
/// for all that waited.
__device__ inline void arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ inline void wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/// *x = to in the shared memory of the cluster's block `part`.
__device__ inline void store(uint32_t* x, uint32_t to, int part) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.u32 [there], %2;\n}" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(x))),
      "r"(part), "r"(to)
      : "memory");
#endif
}
__device__ inline void store(float* x, float to, int part) {
  store(reinterpret_cast<uint32_t*>(x), __float_as_uint(to), part);
}

}  // namespace attnbench::cluster
