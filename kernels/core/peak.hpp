// This machine's ceilings: multiply-add rate, product rate, copy bandwidth. Not benchmarks of methods: the
// percentages in results are taken of these.
#pragma once
#include <cstdint>

#include "kernels/core/context.hpp"

namespace attnbench {

/// Best multiply-add rate in FLOP/s of `threads` threads at once (2 FLOPs a multiply-add), with the widest
/// vectors the CPU has: f32 and f64 by FMA, bf16 by AMX tiles or vdpbf16ps. All operands stay in registers,
/// and there are more independent accumulator chains than latency x throughput needs (12 > 4 cycles x 2 a
/// cycle). Best of eight bursts of about 20 ms, all threads starting together. Throws Unsupported for other
/// dtypes and for bf16 without AVX512-BF16: such CPUs widen to f32 and are bound by its rate.
double measure_fma_peak(DType dtype, int threads);

/// Rate of gemm() on n x n x n products of `dtype`, in FLOP/s with the context's threads: best of several
/// runs within about 0.3 s. What a product can reach in practice, beside the ceiling above.
double measure_gemm_rate(Context& ctx, DType dtype, int64_t n);

/// Bandwidth in bytes/s of copying `bytes` bytes to another buffer, each thread its own part: read plus
/// written, so twice the bytes copied; the ownership reads that ordinary stores cause are not counted, and
/// long copies avoid them by non-temporal stores. Best of several passes within about 0.3 s.
double measure_copy_bandwidth(int threads, int64_t bytes);

}  // namespace attnbench
