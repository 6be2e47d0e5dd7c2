// Speed of CUDA attention, one line a shape. Hidden from ordinary test runs:
// ./test.attention.cuda_bench "[.bench]" (ATTNBENCH_BENCH=text picks rows).
// tests/peers/torch_cuda_attention.py times PyTorch on the same shapes, with the same names.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/attention.hpp"
#include "kernels/core/backend.hpp"
#include "tests/catch.hpp"
#include "tests/cuda_device.hpp"

using namespace attnbench;

namespace {

/// Normal numbers that repeat with a period that divides no row, on the device.
Tensor random_tensor(Context& gpu, DType dtype, const Shape& shape, uint64_t seed) {
  constexpr size_t kPeriod = 1000003;
  std::mt19937_64 r(seed);
  std::normal_distribution<float> normal;
  const size_t size = size_of(dtype);
  std::vector<char> some(kPeriod * size);
  for (size_t i = 0; i < kPeriod; ++i) {
    const float x = normal(r);
    const bf16 b(x);
    const f16 h(x);
    const void* from = dtype == DType::f32    ? static_cast<const void*>(&x)
                       : dtype == DType::bf16 ? static_cast<const void*>(&b)
                                              : static_cast<const void*>(&h);
    std::copy_n(static_cast<const char*>(from), size, some.data() + i * size);
  }
  Tensor t = gpu.allocate(dtype, shape);
  const auto bytes = static_cast<size_t>(t.nbytes());
  for (size_t at = 0; at < bytes; at += some.size())
    gpu.backend().copy_bytes(static_cast<char*>(t.raw()) + at, DeviceKind::cuda, some.data(), DeviceKind::cpu,
                             std::min(some.size(), bytes - at));
  return t;
}
Tensor ints(Context& gpu, const Shape& shape, const std::vector<int32_t>& v) {
  Tensor t = gpu.allocate(DType::i32, shape);
  gpu.backend().copy_bytes(t.raw(), DeviceKind::cuda, v.data(), DeviceKind::cpu, v.size() * sizeof(int32_t));
  return t;
}

struct Shapes {
  int64_t b = 1, h = 1, hkv = 1, n = 1, m = 1, d = 64;
  DType dtype = DType::bf16;
};
AttentionArgs make(Context& gpu, const Shapes& s) {
  AttentionArgs a;
  a.q = random_tensor(gpu, s.dtype, {s.b, s.h, s.n, s.d}, 1);
  a.k = random_tensor(gpu, s.dtype, {s.b, s.hkv, s.m, s.d}, 2);
  a.v = random_tensor(gpu, s.dtype, {s.b, s.hkv, s.m, s.d}, 3);
  a.o = gpu.allocate(s.dtype, {s.b, s.h, s.n, s.d});
  a.scale = 1 / std::sqrt(static_cast<float>(s.d));
  return a;
}

struct Bench {
  Context& gpu;
  const char* only = std::getenv("ATTNBENCH_BENCH");
  bool wanted(const std::string& row) const { return !only || row.find(only) != std::string::npos; }

  double seconds(const AttentionArgs& a) const {
    const auto timer = gpu.backend().make_timer();
    const auto sample = [&](int calls) {
      timer->start();
      for (int i = 0; i < calls; ++i) attention(gpu, a);
      timer->stop();
      return timer->seconds() / calls;
    };
    sample(2);
    const int calls = std::max(1, std::min(200, static_cast<int>(5e-3 / sample(2))));
    std::vector<double> samples;
    for (int i = 0; i < 15; ++i) samples.push_back(sample(calls));
    std::nth_element(samples.begin(), samples.begin() + 7, samples.end());
    return samples[7];
  }
  void line(const std::string& row, const AttentionArgs& a, double work, const char* unit) const {
    const double s = seconds(a);
    std::printf("%-46s %10.1f us %8.1f %s  %s\n", row.c_str(), s * 1e6, work / s, unit,
                gpu.backend().attention_plan(a).c_str());
    std::fflush(stdout);
  }
};

}  // namespace

TEST_CASE("speed of CUDA attention", "[.bench]") {
  Backend* backend = testing::open_device();
  if (!backend) return;
  Context gpu(*backend);
  const Bench bench{gpu};
  std::printf("%s\n", backend->description().c_str());
  // 16K tokens of 2048 channels.
  for (DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (int64_t d : {64, 128, 256})
      for (int64_t n : {1024, 4096, 16384})
        for (bool causal : {false, true}) {
          if (dtype != DType::bf16 && n != 4096) continue;
          if (d == 256 && n != 4096) continue;
          const std::string row = "dense " + std::string(name(dtype)) + " D=" + std::to_string(d) +
                                  " N=" + std::to_string(n) + (causal ? " causal" : "");
          if (!bench.wanted(row)) continue;
          const int64_t b = 16384 / n, h = 2048 / d;
          AttentionArgs a = make(gpu, {b, h, h, n, n, d, dtype});
          BlockMask mask;
          mask.rule.causal = causal;
          if (causal) a.mask = &mask;
          const double pairs = causal ? 0.5 * static_cast<double>(n) * static_cast<double>(n + 1)
                                      : static_cast<double>(n) * static_cast<double>(n);
          bench.line(row, a, 4e-12 * static_cast<double>(b * h * d) * pairs, "TFLOP/s");
        }

  // The mass pass multiplies q and k once more: 3 products instead of 2.
  for (DType dtype : {DType::bf16, DType::f32})
    for (int64_t d : {64, 128})
      for (int64_t n : {4096, 16384})
        for (bool causal : {false, true}) {
          const std::string row = "masses " + std::string(name(dtype)) + " D=" + std::to_string(d) +
                                  " N=" + std::to_string(n) + (causal ? " causal" : "");
          if (!bench.wanted(row)) continue;
          AttentionArgs a = make(gpu, {1, 32, 32, n, n, d, dtype});
          a.mass_per_key = gpu.allocate(DType::f32, {1, 32, n});
          BlockMask mask;
          mask.rule.causal = causal;
          if (causal) a.mask = &mask;
          const double pairs = causal ? 0.5 * static_cast<double>(n) * static_cast<double>(n + 1)
                                      : static_cast<double>(n) * static_cast<double>(n);
          bench.line(row, a, 6e-12 * static_cast<double>(32 * d) * pairs, "TFLOP/s");
        }

  for (int64_t d : {64, 128})
    for (const char* form : {"", " lists"}) {
      const std::string row = "window 1024 causal D=" + std::to_string(d) + " N=16384" + form;
      if (!bench.wanted(row)) continue;
      const int64_t n = 16384, w = 1024, h = 2048 / d;
      AttentionArgs a = make(gpu, {1, h, h, n, n, d, DType::bf16});
      BlockMask mask;
      mask.rule.causal = mask.rule.band = true, mask.rule.left = w - 1;
      if (*form) mask = make_block_mask(gpu, mask.rule, n, n, 128, 128);
      a.mask = &mask;
      const double pairs = static_cast<double>(w * n - w * (w - 1) / 2);
      bench.line(row, a, 4e-12 * static_cast<double>(h * d) * pairs, "TFLOP/s");
    }

  // Blocks in no order that a cache would like: a tenth of all, and 64 of them for every 64 tokens of a long
  // video.
  struct Random {
    std::string row;
    int64_t block, n, h, d, take;
  };
  std::vector<Random> lists;
  for (int64_t block : {64, 128})
    for (int64_t d : {64, 128})
      lists.push_back(
          {"random blocks 90% block " + std::to_string(block) + " D=" + std::to_string(d) + " N=16384", block,
           16384, 2048 / d, d, 16384 / block / 10});
  lists.push_back({"top 64 blocks of 64 D=128 N=109632", 64, 109632, 7, 128, 64});
  for (const Random& x : lists) {
    if (!bench.wanted(x.row)) continue;
    const int64_t rows = x.n / x.block;
    AttentionArgs a = make(gpu, {1, x.h, x.h, x.n, x.n, x.d, DType::bf16});
    std::mt19937_64 r(7);
    std::vector<int32_t> begin, count, index, all(static_cast<size_t>(rows));
    for (size_t j = 0; j < all.size(); ++j) all[j] = static_cast<int32_t>(j);
    for (int64_t i = 0; i < x.h * rows; ++i) {
      for (int64_t j = 0; j < x.take; ++j)  // the first of a shuffled deck
        std::swap(all[static_cast<size_t>(j)],
                  all[static_cast<size_t>(j) + r() % static_cast<uint64_t>(rows - j)]);
      begin.push_back(static_cast<int32_t>(index.size())), count.push_back(static_cast<int32_t>(x.take));
      index.insert(index.end(), all.begin(), all.begin() + x.take);
      std::sort(index.end() - x.take, index.end());
    }
    BlockMask mask;
    mask.block_q = mask.block_k = x.block;
    mask.full = {ints(gpu, {1, x.h, rows}, begin), ints(gpu, {1, x.h, rows}, count),
                 ints(gpu, {static_cast<int64_t>(index.size())}, index)};
    a.mask = &mask;
    bench.line(x.row, a, 4e-12 * static_cast<double>(x.h * x.d * rows * x.take * x.block * x.block),
               "TFLOP/s");
  }

  for (int64_t group : {1, 8})
    for (int64_t b : {1, 16})
      for (int64_t page : {0, 64}) {
        const int64_t m = 131072 / b, hkv = 8, d = 128;
        const std::string row = "decode M=" + std::to_string(m) + " B=" + std::to_string(b) +
                                " Hkv=8 D=128 group " + std::to_string(group) +
                                (page ? " pages of " + std::to_string(page) : "");
        if (!bench.wanted(row)) continue;
        AttentionArgs a = make(gpu, {b, hkv * group, hkv, 1, m, d, DType::bf16});
        BlockMask mask;
        if (page) {
          std::mt19937_64 r(9);
          std::vector<int32_t> table(static_cast<size_t>(b * m / page));
          for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
          std::shuffle(table.begin(), table.end(), r);
          const Shape pages{b * m / page, hkv, page, d};
          a.k = random_tensor(gpu, DType::bf16, pages, 2), a.v = random_tensor(gpu, DType::bf16, pages, 3);
          a.pages = {ints(gpu, {b, m / page}, table), page};
          mask.key_length =
              ints(gpu, {b}, std::vector<int32_t>(static_cast<size_t>(b), static_cast<int32_t>(m)));
          a.mask = &mask;
        }
        bench.line(row, a, 1e-9 * static_cast<double>(a.k.nbytes() + a.v.nbytes()), "GB/s   ");
      }
}
