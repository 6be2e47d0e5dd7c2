#include "kernels/core/isa.hpp"

#include <algorithm>
#include <atomic>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attnbench {
namespace {

/// Tiles are 8 KiB of state a thread, which Linux saves only for processes that asked for it.
bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx2 && avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::base;
#else
  return Isa::base;
#endif
}

std::atomic<Isa> limit{Isa::avx512};
std::atomic<bool> amx_hidden{false};

}  // namespace

Isa best_isa() {
  static const Isa detected = detect();
  return std::min(detected, limit.load(std::memory_order_relaxed));
}

void limit_isa(Isa widest) { limit = widest; }

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return best_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void hide_amx(bool hidden) { amx_hidden = hidden; }

bool has_amx_bf16() {
#if defined(__x86_64__)
  if (!has_avx512_bf16() || amx_hidden) return false;
  static const bool usable =
      __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && request_tiles();
  return usable;
#else
  return false;
#endif
}

}  // namespace attnbench
