#include "kernels/core/peak.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#define ATTNBENCH_ISA isa_base
#include "kernels/core/backend.hpp"
#include "kernels/core/isa.hpp"
#include "kernels/core/peak_body.hpp"
#include "kernels/core/stream_copy.hpp"
#include "kernels/gemm/gemm.hpp"

namespace attnbench {

ATTNBENCH_EACH_ISA(int64_t fma_burst_f32(int64_t, double*))
ATTNBENCH_EACH_ISA(int64_t fma_burst_f64(int64_t, double*))
namespace isa_avx512bf16 {
int64_t bf16_burst(int64_t, double*);
}
namespace isa_amx {
int64_t bf16_burst(int64_t, double*);
}

namespace {

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

int team(int threads) {
  if (threads < 0)
    throw UsageError("the thread count must be 0 (all) or more, not " + std::to_string(threads));
#if defined(_OPENMP)
  return threads ? threads : omp_get_num_procs();
#else
  return 1;
#endif
}

using Burst = int64_t(int64_t, double*);

/// Work done by all threads between a common start and the last one's end.
double burst_rate(Burst* burst, int threads, int64_t rounds) {
  double begin = 0, end = 0, sink = 0;
  int64_t flops = 0;
#pragma omp parallel num_threads(threads) reduction(+ : flops, sink)
  {
    double local = 0;
#pragma omp barrier
#pragma omp single
    begin = seconds();  // the implied barrier starts all threads together
    flops += burst(rounds, &local);
    sink += local;
#pragma omp barrier
#pragma omp single
    end = seconds();
  }
  asm volatile("" ::"r"(&sink) : "memory");  // the sums are needed
  return static_cast<double>(flops) / (end - begin);
}

}  // namespace

double measure_fma_peak(DType dtype, int threads) {
  threads = team(threads);
  Burst* burst = nullptr;
  switch (dtype) {
    case DType::f32:
      burst = ATTNBENCH_BEST(fma_burst_f32);
      break;
    case DType::f64:
      burst = ATTNBENCH_BEST(fma_burst_f64);
      break;
    case DType::bf16:
      if (!has_avx512_bf16())
        throw Unsupported(
            "this CPU has no bf16 multiply-adds (AVX512-BF16); bf16 is computed at the f32 rate");
      burst = has_amx_bf16() ? isa_amx::bf16_burst : isa_avx512bf16::bf16_burst;
      break;
    default:
      throw Unsupported("the multiply-add peak is measured for f32, f64 and bf16, not " +
                        std::string(name(dtype)));
  }
  // One warm-up sizes the burst to 20 ms, which is long against the start and short against a time slice.
  int64_t rounds = 100000;
  double sink = 0;
  const double begin = seconds();
  burst(rounds, &sink);
  rounds = std::max<int64_t>(
      1000, static_cast<int64_t>(static_cast<double>(rounds) * 0.02 / std::max(seconds() - begin, 1e-6)));
  double best = 0;
  for (int i = 0; i < 8; ++i) best = std::max(best, burst_rate(burst, threads, rounds));
  return best;
}

double measure_gemm_rate(Context& ctx, DType dtype, int64_t n) {
  if (n <= 0)
    throw UsageError("the size of the measured product must be 1 or more, not " + std::to_string(n));
  GemmArgs args;
  args.a = ctx.allocate(dtype, {n, n});
  args.b = ctx.allocate(dtype, {n, n});
  args.c = ctx.allocate(dtype, {n, n});
  // Random numbers in [-1/2, 1/2): regular ones switch fewer transistors, which raises a power-limited clock.
  // The rows repeat after 61; what the product is does not matter.
  constexpr int64_t kRows = 61;
  std::vector<float> row(static_cast<size_t>(n));
  std::vector<char> stored(row.size() * size_of(dtype));
  uint32_t bits = 1;
  for (int64_t r = 0; r < std::min(n, kRows); ++r) {
    for (float& v : row) {
      bits = bits * 1664525u + 1013904223u;
      v = static_cast<float>(bits >> 8) * 0x1p-24f - 0.5f;
    }
    convert(row.data(), DType::f32, stored.data(), dtype, n);
    for (const Tensor& t : {args.a, args.b})
      for (int64_t i = r; i < n; i += kRows)
        ctx.backend().copy_bytes(static_cast<char*>(t.raw()) + static_cast<size_t>(i) * stored.size(),
                                 t.device(), stored.data(), DeviceKind::cpu, stored.size());
  }
  const double work = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  const std::unique_ptr<DeviceTimer> timer = ctx.backend().make_timer();
  double best = 0;
  const double begin = seconds();
  for (int i = 0; i < 3 || seconds() - begin < 0.3; ++i) {
    timer->start();
    gemm(ctx, args);
    timer->stop();
    best = std::max(best, work / timer->seconds());
  }
  return best;
}

double measure_copy_bandwidth(int threads, int64_t bytes) {
  threads = team(threads);
  if (bytes <= 0)
    throw UsageError("the size of the measured copy must be 1 byte or more, not " + std::to_string(bytes));
  Context ctx(cpu_backend(), threads);
  const Tensor src = ctx.allocate(DType::u8, {bytes}), dst = ctx.allocate(DType::u8, {bytes});
  char* const s = static_cast<char*>(src.raw());
  char* const d = static_cast<char*>(dst.raw());
  const int64_t part = ((bytes + threads - 1) / threads + 63) / 64 * 64;
  const auto pass = [&](bool first) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
      const int64_t begin = std::min(bytes, t * part), end = std::min(bytes, begin + part);
      if (first) {
        std::memset(s + begin, 1, static_cast<size_t>(end - begin));
        std::memset(d + begin, 2, static_cast<size_t>(end - begin));
        continue;
      }
      if (bytes >= kStreamFrom)
        stream_copy(d + begin, s + begin, end - begin);
      else
        std::memcpy(d + begin, s + begin, static_cast<size_t>(end - begin));
    }
  };
  pass(true);
  double best = 0;
  const double begin = seconds();
  for (int i = 0; i < 3 || seconds() - begin < 0.3; ++i) {
    const double t = seconds();
    pass(false);
    asm volatile("" ::"r"(d) : "memory");
    best = std::max(best, 2.0 * static_cast<double>(bytes) / (seconds() - t));
  }
  return best;
}

}  // namespace attnbench
