// Declares the CPU backend's overrides; each operator's folder defines its own in cpu.cpp.
#pragma once
#include "kernels/core/backend.hpp"

namespace attnbench {

class CpuBackend final : public Backend {
 public:
  DeviceKind device() const override { return DeviceKind::cpu; }
  std::string description() const override;
  void* allocate_bytes(size_t bytes) override;
  void free_bytes(void* p, size_t bytes) noexcept override;
  void copy_bytes(void* dst, DeviceKind, const void* src, DeviceKind, size_t bytes) override;
  void synchronize() override {}

#define X(op, Args) void op(Context&, const Args&) override;
  ATTNBENCH_OPERATORS(X)
#undef X
};

}  // namespace attnbench
