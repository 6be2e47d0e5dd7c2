#include "kernels/core/cpu_backend.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

namespace attnbench {

namespace {
// From 4 MiB on, blocks are aligned to a huge page and the kernel is asked to use one: TLB misses otherwise
// cost strided readers of K and V.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = size_t{4} << 20;
}  // namespace

void* CpuBackend::allocate_bytes(size_t bytes) {
  const size_t alignment = bytes >= kHugeFrom ? kHugePage : 64;
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes) != 0 || !p)
    throw OutOfMemory("the system has no " + std::to_string(bytes) + " bytes to give");
  if (bytes >= kHugeFrom) madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

void CpuBackend::free_bytes(void* p, size_t) noexcept { std::free(p); }

void CpuBackend::copy_bytes(void* dst, DeviceKind dst_device, const void* src, DeviceKind src_device,
                            size_t bytes) {
  if (dst_device != DeviceKind::cpu || src_device != DeviceKind::cpu)
    throw UsageError("the CPU backend copies host memory only");
  std::memcpy(dst, src, bytes);
}

std::string CpuBackend::description() const {
  std::ifstream f("/proc/cpuinfo");
  std::string line, model = "unknown CPU";
  while (std::getline(f, line))
    if (line.starts_with("model name")) {
      const size_t at = line.find(':');
      if (at != std::string::npos && at + 2 <= line.size()) model = line.substr(at + 2);
      break;
    }
#if defined(__x86_64__)
  model += __builtin_cpu_supports("avx512f") ? ", avx512"
           : __builtin_cpu_supports("avx2")  ? ", avx2"
                                             : ", sse2";
#endif
  return model;
}

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

}  // namespace attnbench
