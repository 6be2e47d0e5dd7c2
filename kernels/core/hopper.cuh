// Hopper's own instructions for attention kernels: mbarriers, tensor-map copies, warpgroup products and
// register hand-over, one function each. sm_90a only: the functions trap in code for other cards. The PTX
// manual describes every operand; nothing of attention itself is here.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace attnbench::hopper {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define ATTNBENCH_SM90(...) __VA_ARGS__
#else
#define ATTNBENCH_SM90(...) __trap()
#endif

// --- mbarriers: 64-bit words of shared memory, addressed in the shared window ---

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  ATTNBENCH_SM90(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"));
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" ::"r"(barrier) : "memory");
}
/// One arrival, and `bytes` more that copies must bring before the phase ends.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  ATTNBENCH_SM90(asm volatile(
      "{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(barrier), "r"(bytes)
      : "memory"));
}
/// Waits for the end of the phase with this parity; a new barrier is in phase 0, so waiting for 1 passes.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  ATTNBENCH_SM90(
      asm volatile("{\n"
                   ".reg .pred done;\n"
                   "again:\n"
                   "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                   "@done bra over;\n"
                   "bra again;\n"
                   "over:\n"
                   "}" ::"r"(barrier),
                   "r"(parity)
                   : "memory"));
}

// --- named barriers of the thread block ---

__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- the copy engine ---

/// A box of a rank-4 tensor into shared memory; the barrier counts its bytes, out-of-range elements are zero.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0,
                                         int c1, int c2, int c3) {
  ATTNBENCH_SM90(asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory"));
}
/// The same for boxes that nobody reads again soon: the L2 cache drops them first.
__device__ __forceinline__ void copy_box_once(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0,
                                              int c1, int c2, int c3) {
  ATTNBENCH_SM90(asm volatile(
      "{\n.reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], policy;\n}" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory"));
}
/// A box from shared memory into a rank-4 tensor; elements outside are not written. Whoever issued it commits
/// and waits.
__device__ __forceinline__ void store_box(const CUtensorMap* map, uint32_t from, int c0, int c1, int c2,
                                          int c3) {
  ATTNBENCH_SM90(asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory"));
}
__device__ __forceinline__ void store_commit() {
  ATTNBENCH_SM90(asm volatile("cp.async.bulk.commit_group;" ::: "memory"));
}
/// At most Left of this thread's committed stores still have to read their shared memory.
template <int Left>
__device__ __forceinline__ void store_wait_read() {
  ATTNBENCH_SM90(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Left) : "memory"));
}
/// At most Left of them are unfinished.
template <int Left>
__device__ __forceinline__ void store_wait() {
  ATTNBENCH_SM90(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Left) : "memory"));
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  ATTNBENCH_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"));
}
/// Orders this thread's ordinary shared-memory accesses before later ones of tensor cores and copy engine.
__device__ __forceinline__ void fence_async_proxy() {
  ATTNBENCH_SM90(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}

// --- registers ---

template <int Count>
__device__ __forceinline__ void take_registers() {
  ATTNBENCH_SM90(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count)));
}
template <int Count>
__device__ __forceinline__ void give_registers() {
  ATTNBENCH_SM90(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count)));
}

// --- warpgroup products ---

/// Descriptor of an operand in 128-byte swizzled rows of 64 16-bit elements, base a multiple of 1024 bytes
/// but for steps along the row. `leading` is the distance of the next 64 columns (only read when the operand
/// is stored with its free axis contiguous), groups of eight rows are 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int leading) {
  return static_cast<uint64_t>(address >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
__device__ __forceinline__ void product_fence() {
  ATTNBENCH_SM90(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}
__device__ __forceinline__ void product_commit() {
  ATTNBENCH_SM90(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}
template <int Left>
__device__ __forceinline__ void product_wait() {
  ATTNBENCH_SM90(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory"));
}
/// The compiler may not move reads or writes of these registers across this point: products write them behind
/// its back between issue and wait.
template <int Count>
__device__ __forceinline__ void pin(float (&x)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int Count>
__device__ __forceinline__ void pin(uint32_t (&x)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

#define ATTNBENCH_R32                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ATTNBENCH_R64                                                                \
  ATTNBENCH_R32                                                                      \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ATTNBENCH_R128                                                                           \
  ATTNBENCH_R64                                                                                  \
  ", "                                                                                           \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define ATTNBENCH_C8(i)                                                                       \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define ATTNBENCH_C32(i) ATTNBENCH_C8(i), ATTNBENCH_C8(i + 8), ATTNBENCH_C8(i + 16), ATTNBENCH_C8(i + 24)
#define ATTNBENCH_C64(i) ATTNBENCH_C32(i), ATTNBENCH_C32(i + 32)
#define ATTNBENCH_C128(i) ATTNBENCH_C64(i), ATTNBENCH_C64(i + 64)

/// c (64 x N a warpgroup) = [c +] a b in steps of 16. `shared`: a and b rows in shared memory, both with the
/// summed axis contiguous; `registers`: a in registers, b stored with its free axis contiguous.
template <class T, int N>
struct Product;
#define ATTNBENCH_PRODUCT(T, type, N, half, a0, a1, a2, a3, a4, a5)                                      \
  template <>                                                                                            \
  struct Product<T, N> {                                                                                 \
    static __device__ __forceinline__ void shared(float (&c)[half], uint64_t a, uint64_t b, int add) {   \
      ATTNBENCH_SM90(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" a2 ", 0;\n"                       \
                                  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type        \
                                  " {" ATTNBENCH_R##half "}, %" a0 ", %" a1 ", p, 1, 1, 0, 0;\n}"        \
                                  : ATTNBENCH_C##half(0)                                                 \
                                  : "l"(a), "l"(b), "r"(add)));                                          \
    }                                                                                                    \
    static __device__ __forceinline__ void registers(float (&c)[half], const uint32_t* a, uint64_t b,    \
                                                     int add) {                                          \
      ATTNBENCH_SM90(asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" a5 ", 0;\n"                       \
                                  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type        \
                                  " {" ATTNBENCH_R##half "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" a4 \
                                                         ", p, 1, 1, 1;\n}"                              \
                                  : ATTNBENCH_C##half(0)                                                 \
                                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)));      \
    }                                                                                                    \
  };
#define ATTNBENCH_PRODUCTS(T, type)                                       \
  ATTNBENCH_PRODUCT(T, type, 64, 32, "32", "33", "34", "35", "36", "37")  \
  ATTNBENCH_PRODUCT(T, type, 128, 64, "64", "65", "66", "67", "68", "69") \
  ATTNBENCH_PRODUCT(T, type, 256, 128, "128", "129", "130", "131", "132", "133")
ATTNBENCH_PRODUCTS(__nv_bfloat16, "bf16")
ATTNBENCH_PRODUCTS(__half, "f16")

}  // namespace attnbench::hopper
