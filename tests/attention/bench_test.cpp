// Speed of CPU attention against this machine's own multiply-add peak and copy bandwidth, measured in the
// same run. Hidden from ordinary test runs: ./test.attention.bench "[.bench]" (ATTNBENCH_BENCH=pattern picks
// rows).
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "kernels/attention/attention.hpp"
#include "kernels/attention/cpu_kernel.hpp"
#include "kernels/core/backend.hpp"
#include "kernels/core/peak.hpp"
#include "tests/catch.hpp"

using namespace attnbench;

namespace {

struct Timing {
  double median = 0, low = 0, high = 0;  // seconds a call; quartiles
};
template <class F>
Timing time_calls(F&& call) {
  using clock = std::chrono::steady_clock;
  const auto seconds = [](clock::duration d) { return std::chrono::duration<double>(d).count(); };
  call();
  const auto once = clock::now();
  call();
  const int batch = std::max(1, static_cast<int>(2e-3 / std::max(1e-9, seconds(clock::now() - once))));
  std::vector<double> samples;
  const auto start = clock::now();
  while (samples.size() < 9 || (seconds(clock::now() - start) < 0.5 && samples.size() < 200)) {
    const auto t = clock::now();
    for (int i = 0; i < batch; ++i) call();
    samples.push_back(seconds(clock::now() - t) / batch);
  }
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples[samples.size() / 4], samples[samples.size() * 3 / 4]};
}

void random_fill(const Tensor& t, uint64_t seed) {
  std::mt19937_64 r(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < t.numel(); ++i) {
    if (t.dtype() == DType::f32) t.data<float>()[i] = normal(r);
    if (t.dtype() == DType::bf16) t.data<bf16>()[i] = bf16(normal(r));
    if (t.dtype() == DType::f16) t.data<f16>()[i] = f16(normal(r));
  }
}

struct Shapes {
  int64_t b = 1, h = 1, hkv = 1, n = 1, m = 1, d = 64;
  DType dtype = DType::f32;
};
AttentionArgs make(Context& ctx, const Shapes& s) {
  AttentionArgs a;
  a.q = ctx.allocate(s.dtype, {s.b, s.h, s.n, s.d});
  a.k = ctx.allocate(s.dtype, {s.b, s.hkv, s.m, s.d});
  a.v = ctx.allocate(s.dtype, {s.b, s.hkv, s.m, s.d});
  a.o = ctx.allocate(s.dtype, {s.b, s.h, s.n, s.d});
  random_fill(a.q, 1), random_fill(a.k, 2), random_fill(a.v, 3);
  a.scale = 1 / std::sqrt(static_cast<float>(s.d));
  return a;
}

struct Bench {
  double peak[3] = {}, bf16_peak[3] = {}, copy[3] = {};
  const char* only = std::getenv("ATTNBENCH_BENCH");
  bool wanted(const std::string& row) const { return !only || row.find(only) != std::string::npos; }

  void compute(const std::string& row, Context& ctx, const AttentionArgs& a, double flops, int threads) {
    const Timing t = time_calls([&] { attention(ctx, a); });
    const double top = a.q.dtype() == DType::bf16 ? bf16_peak[threads] : peak[threads];
    std::printf("%-44s %d  %10.1f us [%+.1f%% %+.1f%%]  %8.1f GFLOP/s  %5.1f%% of peak\n", row.c_str(),
                threads, t.median * 1e6, 100 * (t.low / t.median - 1), 100 * (t.high / t.median - 1),
                flops / t.median * 1e-9, 100 * flops / t.median / top);
    std::fflush(stdout);
  }
};

}  // namespace

TEST_CASE("speed", "[.bench]") {
  Bench bench;
  std::printf("kernels: %s\n", cpu_attention::kernels().name);
  for (int t : {1, 2}) {
    bench.peak[t] = measure_fma_peak(DType::f32, t);
    bench.bf16_peak[t] = measure_fma_peak(DType::bf16, t);
    bench.copy[t] = measure_copy_bandwidth(t, int64_t{256} << 20);
    std::printf("%d thread(s): f32 %.1f, bf16 %.1f GFLOP/s, copy %.1f GB/s\n", t, bench.peak[t] * 1e-9,
                bench.bf16_peak[t] * 1e-9, bench.copy[t] * 1e-9);
  }
  for (int threads : {1, 2}) {
    Context ctx(cpu_backend(), threads);
    for (DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (int64_t d : {64, 128})
        for (int64_t n : {1024, 2048, 4096})
          for (bool causal : {false, true}) {
            if (dtype == DType::f16 && n != 2048) continue;
            const std::string row = "dense " + std::string(name(dtype)) + " D=" + std::to_string(d) +
                                    " N=" + std::to_string(n) + (causal ? " causal" : "");
            if (!bench.wanted(row)) continue;
            const int64_t h = std::max<int64_t>(1, 4096 / n);
            AttentionArgs a = make(ctx, {1, h, h, n, n, d, dtype});
            BlockMask mask;
            mask.rule.causal = causal;
            a.mask = &mask;
            const double pairs = causal ? 0.5 * static_cast<double>(n) * static_cast<double>(n + 1)
                                        : static_cast<double>(n) * static_cast<double>(n);
            bench.compute(row, ctx, a, 4.0 * static_cast<double>(h * d) * pairs, threads);
          }
    for (int64_t block : {64, 128})
      for (int64_t d : {64, 128}) {
        const std::string row = "sparse 90% block " + std::to_string(block) + " D=" + std::to_string(d);
        if (!bench.wanted(row)) continue;
        const int64_t n = 8192, rows = n / block, take = std::max<int64_t>(1, rows / 10);
        AttentionArgs a = make(ctx, {1, 2, 2, n, n, d});
        BlockMask mask;
        mask.block_q = mask.block_k = block;
        std::mt19937_64 r(7);
        mask.full.begin = ctx.allocate(DType::i32, {1, 1, rows}),
        mask.full.count = ctx.allocate(DType::i32, {1, 1, rows});
        mask.full.index = ctx.allocate(DType::i32, {rows * take});
        for (int64_t i = 0; i < rows; ++i) {
          std::vector<int32_t> all(static_cast<size_t>(rows));
          for (size_t j = 0; j < all.size(); ++j) all[j] = static_cast<int32_t>(j);
          std::shuffle(all.begin(), all.end(), r);
          mask.full.begin.data<int32_t>()[i] = static_cast<int32_t>(i * take);
          mask.full.count.data<int32_t>()[i] = static_cast<int32_t>(take);
          std::copy(all.begin(), all.begin() + take, mask.full.index.data<int32_t>() + i * take);
        }
        a.mask = &mask;
        bench.compute(row, ctx, a, 4.0 * static_cast<double>(2 * d * rows * take * block * block), threads);
      }
    for (bool lists : {false, true})
      for (int64_t window : {256, 1024}) {
        const std::string row =
            "window " + std::to_string(window) + (lists ? " lists" : "") + " D=64 (visited blocks)";
        if (!bench.wanted(row)) continue;
        const int64_t n = 8192;
        AttentionArgs a = make(ctx, {1, 2, 2, n, n, 64});
        ElementRule rule;
        rule.causal = rule.band = true;
        rule.left = window - 1;
        BlockMask mask = make_block_mask(ctx, rule, n, n, 64, 64);
        const double visited = static_cast<double>(count_pairs(mask, 1, 2, n, n).visited);
        if (!lists) mask.full = mask.partial = BlockList{};
        a.mask = &mask;
        bench.compute(row, ctx, a, 4.0 * 64 * visited, threads);
      }
    for (DType dtype : {DType::f32, DType::bf16})
      for (int64_t group : {1, 4, 8}) {
        const std::string row =
            "decode " + std::string(name(dtype)) + " M=131072 D=128 group " + std::to_string(group);
        if (!bench.wanted(row)) continue;
        AttentionArgs a = make(ctx, {1, 2 * group, 2, 1, 131072, 128, dtype});
        const Timing t = time_calls([&] { attention(ctx, a); });
        const double bytes = static_cast<double>(a.k.nbytes() + a.v.nbytes());
        std::printf("%-44s %d  %10.1f us [%+.1f%% %+.1f%%]  %8.1f GB/s  %5.1f%% of copy\n", row.c_str(),
                    threads, t.median * 1e6, 100 * (t.low / t.median - 1), 100 * (t.high / t.median - 1),
                    bytes / t.median * 1e-9, 100 * bytes / t.median / bench.copy[threads]);
      }
    if (bench.wanted("overhead")) {
      AttentionArgs a = make(ctx, {1, 1, 1, 64, 64, 64});
      bench.compute("overhead N=64 D=64", ctx, a, 4.0 * 64 * 64 * 64, threads);
      AttentionArgs one = make(ctx, {1, 1, 1, 1, 1, 64});
      bench.compute("overhead N=1 M=1 D=64", ctx, one, 4.0 * 64, threads);
    }
    // Twice: from memory (a layer's activations), and small enough for a core's L2.
    for (const auto& [n, total] : std::vector<std::pair<int64_t, int64_t>>{{4, 6272},
                                                                           {9, 6272},
                                                                           {16, 6272},
                                                                           {25, 6272},
                                                                           {49, 6272},
                                                                           {64, 6272},
                                                                           {196, 6272},
                                                                           {4, 64},
                                                                           {9, 64},
                                                                           {16, 64},
                                                                           {49, 64},
                                                                           {64, 64}}) {
      const std::string row =
          "windows of " + std::to_string(n) + ", qkv slices" + (total < 100 ? " in L2" : "");
      if (!bench.wanted(row)) continue;
      // One [tokens, 3, H, D] matrix; windows are runs of n tokens.
      const int64_t h = 12, d = 64, tokens = total / n * n, b = tokens / n;
      Tensor qkv = ctx.allocate(DType::f32, {tokens, 3, h, d});
      random_fill(qkv, 5);
      AttentionArgs a;
      const Shape shape{b, h, n, d}, strides{n * 3 * h * d, d, 3 * h * d, 1};
      a.q = qkv.strided(shape, strides), a.k = qkv.strided(shape, strides, h * d),
      a.v = qkv.strided(shape, strides, 2 * h * d);
      Tensor o = ctx.allocate(DType::f32, {b, n, h, d});
      a.o = o.strided(shape, {n * h * d, d, h * d, 1});
      a.scale = 0.125f;
      const Timing t = time_calls([&] { attention(ctx, a); });
      const double flops = 4.0 * static_cast<double>(b * h * n * n * d);
      std::printf(
          "%-44s %d  %10.1f us [%+.1f%% %+.1f%%]  %8.1f GFLOP/s  %5.1f%% of peak  %.0f ns a window and "
          "head\n",
          row.c_str(), threads, t.median * 1e6, 100 * (t.low / t.median - 1), 100 * (t.high / t.median - 1),
          flops / t.median * 1e-9, 100 * flops / t.median / bench.peak[threads],
          t.median * 1e9 * threads / static_cast<double>(b * h));
    }
  }
}
