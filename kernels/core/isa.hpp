// Run-time choice between bodies compiled for several instruction sets. Not a SIMD library: see simd.hpp.
//
// A body is a header compiled once per instruction set: each compiling file defines ATTNBENCH_ISA (isa_base,
// isa_avx2 or isa_avx512), which names the namespace, and the build gives *_avx2.cpp and *_avx512.cpp their
// flags. Such files must define nothing outside that namespace and call no inline function of other headers:
// the linker keeps one copy of an inline function, and it could be the one this machine cannot execute.
#pragma once
#include <cstdint>

namespace attnbench {

enum class Isa : uint8_t { base, avx2, avx512 };

/// The widest set that this processor and system support (avx2 includes FMA and F16C; avx512 is F, BW, VL,
/// DQ), or less when limit_isa() asks for less.
Isa best_isa();
/// For tests: caps what best_isa() answers.
void limit_isa(Isa widest);
/// Whether the processor has vdpbf16ps.
bool has_avx512_bf16();
/// Whether the processor has AMX's bf16 tile products and the system lets this process use them (Linux asks
/// for a request, once, and answers for all threads). Implies has_avx512_bf16().
bool has_amx_bf16();
/// For tests and comparisons: has_amx_bf16() answers no while hidden.
void hide_amx(bool hidden);

template <class T>
T* for_isa(T* base, T* avx2, T* avx512) {
  switch (best_isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    case Isa::base:
      break;
  }
  return base;
}

}  // namespace attnbench

/// Declares one function of a body for every instruction set.
#define ATTNBENCH_EACH_ISA(...) \
  namespace isa_base {          \
  __VA_ARGS__;                  \
  }                             \
  namespace isa_avx2 {          \
  __VA_ARGS__;                  \
  }                             \
  namespace isa_avx512 {        \
  __VA_ARGS__;                  \
  }
/// The body of `function` for this machine.
#define ATTNBENCH_BEST(function) \
  ::attnbench::for_isa(isa_base::function, isa_avx2::function, isa_avx512::function)
