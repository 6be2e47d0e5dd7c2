// The CUDA backend: declares its overrides (each operator's folder defines its own in a .cu file) and the few
// helpers that all of them share. Nothing here is visible outside the module.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <string>

#include "kernels/core/backend.hpp"

namespace attnbench {

/// Throws OutOfMemory for cudaErrorMemoryAllocation, Error otherwise, with the call and its place.
void check_cuda(cudaError_t status, const char* call, const char* file, int line);
#define CUDA_CHECK(call) ::attnbench::check_cuda((call), #call, __FILE__, __LINE__)
/// After a kernel launch: configuration errors show up here, execution errors at the next synchronising call.
#define CUDA_CHECK_LAUNCH() CUDA_CHECK(cudaGetLastError())

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;
  DeviceKind device() const override { return DeviceKind::cuda; }
  std::string description() const override;
  void* allocate_bytes(size_t bytes) override;
  void free_bytes(void* p, size_t bytes) noexcept override;
  void copy_bytes(void* dst, DeviceKind dst_device, const void* src, DeviceKind src_device,
                  size_t bytes) override;
  void synchronize() override;

  std::unique_ptr<DeviceTimer> make_timer() override;
  void flush_cache() override;
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override;
  DeviceMemory memory_info() override;
  DeviceFacts facts() override;
  DeviceState read_state() override;
  double measure_peak(DevicePeak what, DType dtype, int64_t bytes) override;
  std::string attention_plan(const AttentionArgs& args) override;

#define X(op, Args) void op(Context&, const Args&) override;
  ATTNBENCH_OPERATORS(X)
#undef X

  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }
  int sm_count() const { return properties_.multiProcessorCount; }
  int compute_capability() const { return properties_.major * 10 + properties_.minor; }

 private:
  int device_ = 0;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  void* flush_buffer_ = nullptr;  ///< allocated when it is first needed
};

/// The backend of a context that runs inside this module.
inline CudaBackend& cuda_of(Context& ctx) { return static_cast<CudaBackend&>(ctx.backend()); }
inline cudaStream_t stream_of(Context& ctx) { return cuda_of(ctx).stream(); }

/// Grid sizes stay within 2^31 - 1 while element counts do not: kernels loop with 64-bit indices over a grid
/// of at most `per_sm` blocks per multiprocessor.
inline unsigned grid_for(Context& ctx, int64_t items, int threads, int per_sm = 16) {
  const int64_t want = (items + threads - 1) / threads;
  const int64_t most = static_cast<int64_t>(cuda_of(ctx).sm_count()) * per_sm;
  return static_cast<unsigned>(want < 1 ? 1 : want < most ? want : most);
}

}  // namespace attnbench
