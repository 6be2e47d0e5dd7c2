// head_gates and pack_queries on the GPU against the CPU's operators.
#include <algorithm>

#include "kernels/routing/routing.hpp"
#include "tests/cuda_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

TEST_CASE("CUDA head_gates selects as the CPU and agrees in value") {
  Backend* gpu = open_device();
  if (!gpu) return;
  using Norm = HeadGatesArgs::Norm;
  Sides s(*gpu, 901);
  for (const Norm norm : {Norm::renormalised, Norm::plain, Norm::binary})
    for (const auto& [hs, e, keep] : std::vector<std::array<int64_t, 3>>{
             {2, 6, 3}, {1, 31, 8}, {0, 7, 7}, {4, 0, 0}, {3, 4, 0}, {0, 1, 1}}) {
      const int64_t rows = 1237, heads = hs + e;
      const Twin all = s.random(DType::f32, {rows, e + hs + 2}, -3, 3);
      const auto columns = [&](int64_t from, int64_t to) {
        return all.view([&](const Tensor& t) { return t.slice(1, from, to); });
      };
      const Twin gates = s.poisoned(DType::f32, {rows, heads}),
                 selected = s.poisoned(DType::i32, {rows, heads});
      HeadGatesArgs a;
      a.norm = norm, a.shared_heads = hs, a.keep = keep;
      const auto run = [&](Context& ctx, auto side) {
        if (e > 0) a.routed = side(columns(0, e));
        if (hs > 1) a.shared = side(columns(e, e + hs));
        a.balance = side(columns(e + hs, e + hs + 2));
        a.gates = side(gates), a.selected = side(selected);
        head_gates(ctx, a);
      };
      run(s.host, [](const Twin& t) { return t.host; });
      run(s.device, [](const Twin& t) { return t.device; });
      CHECK(same_bits(s.fetch(selected, true), selected.host_base));
      const Tensor got = s.fetch(gates);
      double worst = 0;
      for (int64_t i = 0; i < rows * heads; ++i)
        worst =
            std::max(worst, std::abs(get(got, i) - get(gates.host, i)) / (1 + std::abs(get(gates.host, i))));
      CHECK(worst < 32 * 0x1p-24 * static_cast<double>(heads));
    }
}

TEST_CASE("CUDA pack_queries equals the CPU bit for bit") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 902);
  for (const int64_t n : {1, 31, 256, 257, 3001})
    for (const bool causal : {false, true}) {
      const int64_t batch = 2, heads = 5, keys = causal ? n + 3 : 130;
      const Tensor base = random(s.host, DType::f32, {batch, n, heads}, s.r);
      for (int64_t i = 0; i < base.numel(); ++i)
        if (i % heads == 3 || s.r.integer(0, 2) == 0) put(base, i, 0);
      const Twin gates = s.upload(base);
      const Shape rows{batch, heads, n};
      const Twin index = s.poisoned(DType::i32, rows), weight = s.poisoned(DType::f32, rows),
                 begin = s.poisoned(DType::i32, rows), end = s.poisoned(DType::i32, rows),
                 count = s.poisoned(DType::i32, {batch, heads, (n + 63) / 64}),
                 total = s.poisoned(DType::i32, {batch, heads});
      const auto run = [&](Context& ctx, auto side) {
        PackQueriesArgs a;
        a.gates = side(gates), a.index = side(index), a.weight = side(weight), a.row_begin = side(begin),
        a.row_end = side(end), a.count = side(count), a.total = side(total);
        a.keys = keys, a.block_q = 64, a.block_k = 128, a.causal = causal, a.offset = 3;
        pack_queries(ctx, a);
      };
      run(s.host, [](const Twin& t) { return t.host; });
      run(s.device, [](const Twin& t) { return t.device; });
      for (const Twin* t : {&index, &weight, &begin, &end, &count, &total})
        CHECK(same_bits(s.fetch(*t, true), t->host_base));
    }
}

TEST_CASE("CUDA member_ranges equals the CPU bit for bit") {
  Backend* gpu = open_device();
  if (!gpu) return;
  Sides s(*gpu, 903);
  for (const bool causal : {false, true})
    for (const int64_t memory : {0, 3}) {
      const int64_t batch = 2, lists = 17, wq = 33, wk = 70, tokens = 200;
      const auto ascending = [&](int64_t w) {
        const Tensor t = s.host.allocate(DType::i32, {batch, lists, w});
        for (int64_t l = 0; l < batch * lists; ++l) {
          std::vector<int64_t> v;
          for (int64_t i = 0; i < w; ++i) v.push_back(s.r.integer(0, 230));
          std::sort(v.begin(), v.end());
          for (int64_t i = 0; i < w; ++i) put(t, l * w + i, static_cast<double>(v[static_cast<size_t>(i)]));
        }
        return s.upload(t);
      };
      const Twin q = ascending(wq), k = ascending(wk);
      const Twin begin = s.poisoned(DType::i32, {batch, lists, wq}),
                 end = s.poisoned(DType::i32, {batch, lists, wq}),
                 weight = s.poisoned(DType::f32, {batch, lists, wq}),
                 bias = s.poisoned(DType::f32, {batch, lists, wq, memory + wk});
      const auto run = [&](Context& ctx, auto side) {
        MemberRangesArgs a;
        a.index_q = side(q), a.index_k = side(k), a.row_begin = side(begin), a.row_end = side(end),
        a.weight = side(weight), a.bias = side(bias);
        a.tokens = tokens, a.memory = memory, a.causal = causal;
        member_ranges(ctx, a);
      };
      run(s.host, [](const Twin& t) { return t.host; });
      run(s.device, [](const Twin& t) { return t.device; });
      for (const Twin* t : {&begin, &end, &weight, &bias}) CHECK(same_bits(s.fetch(*t, true), t->host_base));
    }
}
