#include <memory>

#include "kernels/core/cuda_backend.cuh"

namespace attnbench {

void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  const std::string text = std::string(call) + " failed at " + file + ":" + std::to_string(line) + ": " +
                           cudaGetErrorName(status) + ", " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the next call must not report it again
    throw OutOfMemory(text);
  }
  throw Error(text);
}

CudaBackend::CudaBackend(int device) : device_(device) {
  CUDA_CHECK(cudaSetDevice(device));
  CUDA_CHECK(cudaGetDeviceProperties(&properties_, device));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

std::string CudaBackend::description() const {
  return std::string(properties_.name) + ", sm_" + std::to_string(compute_capability());
}

void* CudaBackend::allocate_bytes(size_t bytes) {
  void* p = nullptr;
  CUDA_CHECK(cudaMalloc(&p, bytes));
  return p;
}

void CudaBackend::free_bytes(void* p, size_t) noexcept { cudaFree(p); }

void CudaBackend::copy_bytes(void* dst, DeviceKind dst_device, const void* src, DeviceKind src_device,
                             size_t bytes) {
  const bool to_host = dst_device == DeviceKind::cpu, from_host = src_device == DeviceKind::cpu;
  const cudaMemcpyKind kind = to_host ? (from_host ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost)
                                      : (from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice);
  CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, kind, stream_));
  // Host memory may be gone when the caller returns; copies within the device stay in stream order (and
  // capturable).
  if (to_host || from_host) CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaBackend::synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

// Weak fall-backs: an operator without a .cu file reports `unsupported`.
#define X(op, Args) \
  __attribute__((weak)) void CudaBackend::op(Context&, const Args&) { not_implemented(#op); }
ATTNBENCH_OPERATORS(X)
#undef X

}  // namespace attnbench

extern "C" __attribute__((visibility("default"))) attnbench::Backend* attnbench_cuda_backend(
    const char** why) {
  static std::string reason;
  static std::unique_ptr<attnbench::CudaBackend> backend;
  try {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
      reason = std::string("no usable CUDA driver: ") + cudaGetErrorString(status);
    } else if (count == 0) {
      reason = "the CUDA driver sees no device";
    } else {
      if (!backend) backend = std::make_unique<attnbench::CudaBackend>(0);
      if (backend->compute_capability() >= 80) return backend.get();
      reason = backend->description() + " is older than sm_80, the oldest card the kernels are built for";
    }
  } catch (const std::exception& e) {
    reason = e.what();
  }
  *why = reason.c_str();
  return nullptr;
}
