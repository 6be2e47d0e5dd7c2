// Gates and packed queries against the formulas in double precision and plain loops.
#include "kernels/routing/routing.hpp"

#include <algorithm>

#include "tests/op_testing.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

std::vector<double> soft(const Tensor& t, int64_t r) {
  std::vector<double> p;
  double most = -INFINITY, sum = 0;
  for (int64_t i = 0; i < t.dim(1); ++i) most = std::max(most, get(t, r * t.stride(0) + i));
  for (int64_t i = 0; i < t.dim(1); ++i) p.push_back(std::exp(get(t, r * t.stride(0) + i) - most));
  for (const double x : p) sum += x;
  for (double& x : p) x /= sum;
  return p;
}

}  // namespace

TEST_CASE("gates are the formula's") {
  using Norm = HeadGatesArgs::Norm;
  Context ctx(cpu_backend(), 2);
  Random r(81);
  const Norm norm = GENERATE(Norm::renormalised, Norm::plain, Norm::binary);
  for (const auto& [hs, e, keep] : std::vector<std::array<int64_t, 3>>{
           {2, 6, 3}, {1, 5, 1}, {0, 7, 7}, {4, 0, 0}, {3, 4, 0}, {0, 1, 1}, {1, 0, 0}})
    for (const bool with_balance : {true, false}) {
      const int64_t rows = 301, heads = hs + e;
      HeadGatesArgs a;
      a.norm = norm;
      a.shared_heads = hs, a.keep = keep;
      // Scores as columns of one product, as methods have them.
      const Tensor all = random(ctx, DType::f32, {rows, e + hs + 2}, r, -3, 3);
      if (e > 0) a.routed = all.slice(1, 0, e);
      if (hs > 1) a.shared = all.slice(1, e, e + hs);
      if (with_balance) a.balance = all.slice(1, e + hs, e + hs + 2);
      if (e > 2) {  // ties: lower index
        for (int64_t i = 0; i < e; ++i) put(all, 5 * all.stride(0) + i, i < e / 2 ? 0.5 : 1.0);
      }
      a.gates = poisoned(ctx, DType::f32, {rows, heads});
      a.selected = poisoned(ctx, DType::i32, {rows, heads});
      head_gates(ctx, a);
      INFO("hs " << hs << ", e " << e << ", keep " << keep << ", balance " << with_balance);
      double worst = 0;
      int64_t wrong = 0;
      for (int64_t row = 0; row < rows; ++row) {
        std::vector<double> want(static_cast<size_t>(heads), 0);
        double a0 = 1, a1 = 1;
        if (with_balance && norm != Norm::binary) {
          const auto p = soft(a.balance, row);
          const double f = norm == Norm::renormalised ? 2 : 1;
          a0 = f * p[0], a1 = f * p[1];
        }
        for (int64_t i = 0; i < hs; ++i) {
          double u = 1;
          if (hs > 1 && norm != Norm::binary)
            u = soft(a.shared, row)[static_cast<size_t>(i)] *
                (norm == Norm::renormalised ? static_cast<double>(hs) : 1);
          want[static_cast<size_t>(i)] = norm == Norm::binary ? 1 : a0 * u;
        }
        if (keep > 0) {
          std::vector<int64_t> order;
          for (int64_t i = 0; i < e; ++i) order.push_back(i);
          std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
            return get(a.routed, row * a.routed.stride(0) + x) > get(a.routed, row * a.routed.stride(0) + y);
          });
          const auto p = soft(a.routed, row);
          double kept = 0;
          for (int64_t i = 0; i < keep; ++i) kept += p[static_cast<size_t>(order[static_cast<size_t>(i)])];
          for (int64_t i = 0; i < keep; ++i) {
            const auto at = static_cast<size_t>(order[static_cast<size_t>(i)]);
            want[static_cast<size_t>(hs) + at] = norm == Norm::binary ? 1
                                                 : norm == Norm::renormalised
                                                     ? a1 * static_cast<double>(keep) * p[at] / kept
                                                     : a1 * p[at];
          }
        }
        for (int64_t i = 0; i < heads; ++i) {
          const double got = get(a.gates, row * heads + i), w = want[static_cast<size_t>(i)];
          worst = std::max(worst, std::abs(got - w) / (1 + std::abs(w)));
          wrong += (got != 0) != (w != 0) || get(a.selected, row * heads + i) != (w != 0);
        }
      }
      // A few exponentials and quotients in f32.
      CHECK(worst < 32 * 0x1p-24 * static_cast<double>(heads));
      CHECK(wrong == 0);
    }
}

TEST_CASE("packed queries: rows in order, what they see, and the blocks of it") {
  Context ctx(cpu_backend(), 2);
  Random r(82);
  for (const int64_t n : {1, 5, 64, 65, 300})
    for (const bool causal : {false, true}) {
      const int64_t batch = 2, heads = 3, keys = causal ? n + 9 : 77, bq = 16, bk = 32;
      const Tensor gates = random(ctx, DType::f32, {batch, n, heads}, r);
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t h = 0; h < heads; ++h)
            if ((h == 1 && b == 1) || (h == 0 && (i * 7 + b) % 3 > 0)) put(gates, (b * n + i) * heads + h, 0);
      const int64_t tiles = (n + bq - 1) / bq;
      PackQueriesArgs a;
      a.gates = gates;
      a.index = poisoned(ctx, DType::i32, {batch, heads, n});
      a.weight = poisoned(ctx, DType::f32, {batch, heads, n});
      a.row_begin = poisoned(ctx, DType::i32, {batch, heads, n});
      a.row_end = poisoned(ctx, DType::i32, {batch, heads, n});
      a.count = poisoned(ctx, DType::i32, {batch, heads, tiles});
      a.total = poisoned(ctx, DType::i32, {batch, heads});
      a.keys = keys, a.block_q = bq, a.block_k = bk, a.causal = causal, a.offset = 9;
      pack_queries(ctx, a);
      int64_t wrong = 0;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t base = (b * heads + h) * n;
          std::vector<int64_t> on;
          for (int64_t i = 0; i < n; ++i)
            if (get(gates, (b * n + i) * heads + h) != 0) on.push_back(i);
          wrong += get(a.total, b * heads + h) != static_cast<double>(on.size());
          std::vector<int64_t> blocks(static_cast<size_t>(tiles), 0);
          for (int64_t s = 0; s < n; ++s) {
            const bool there = s < static_cast<int64_t>(on.size());
            const int64_t token = there ? on[static_cast<size_t>(s)] : -1;
            const int64_t end = !there ? 0 : causal ? std::min(keys, token + 10) : keys;
            wrong += get(a.index, base + s) != static_cast<double>(token);
            wrong += get(a.weight, base + s) != (there ? get(gates, (b * n + token) * heads + h) : 0);
            wrong += get(a.row_begin, base + s) != 0 || get(a.row_end, base + s) != static_cast<double>(end);
            int64_t& most = blocks[static_cast<size_t>(s / bq)];
            most = std::max(most, (end + bk - 1) / bk);
          }
          for (int64_t t = 0; t < tiles; ++t)
            wrong += get(a.count, (b * heads + h) * tiles + t) !=
                     static_cast<double>(blocks[static_cast<size_t>(t)]);
        }
      INFO("n " << n << ", causal " << causal);
      CHECK(wrong == 0);
    }
}

TEST_CASE("members see the real ones before them, and the memory") {
  Context ctx(cpu_backend(), 2);
  Random r(83);
  for (const bool causal : {false, true})
    for (const int64_t memory : {0, 2}) {
      const int64_t batch = 2, lists = 3, wq = 7, wk = 9, tokens = 20;
      const auto ascending = [&](int64_t w) {
        const Tensor t = ctx.allocate(DType::i32, {batch, lists, w});
        for (int64_t l = 0; l < batch * lists; ++l) {
          std::vector<double> v;
          for (int64_t i = 0; i < w; ++i) v.push_back(static_cast<double>(r.integer(0, 24)));
          std::sort(v.begin(), v.end());
          for (int64_t i = 0; i < w; ++i) put(t, l * w + i, v[static_cast<size_t>(i)]);
        }
        return t;
      };
      MemberRangesArgs a;
      a.index_q = ascending(wq), a.index_k = ascending(wk);
      a.row_begin = poisoned(ctx, DType::i32, {batch, lists, wq});
      a.row_end = poisoned(ctx, DType::i32, {batch, lists, wq});
      a.weight = poisoned(ctx, DType::f32, {batch, lists, wq});
      a.bias = poisoned(ctx, DType::f32, {batch, lists, wq, memory + wk});
      a.tokens = tokens, a.memory = memory, a.causal = causal;
      member_ranges(ctx, a);
      int64_t wrong = 0;
      for (int64_t l = 0; l < batch * lists; ++l)
        for (int64_t i = 0; i < wq; ++i) {
          const double q = get(a.index_q, l * wq + i);
          int64_t seen = memory;
          for (int64_t j = 0; j < wk; ++j) {
            const double k = get(a.index_k, l * wk + j);
            const bool sees = k < tokens && (!causal || k <= q);
            seen += sees;
            wrong += get(a.bias, (l * wq + i) * (memory + wk) + memory + j) != (sees ? 0.0 : -1e9);
          }
          for (int64_t j = 0; j < memory; ++j) wrong += get(a.bias, (l * wq + i) * (memory + wk) + j) != 0;
          wrong +=
              get(a.row_begin, l * wq + i) != 0 || get(a.row_end, l * wq + i) != static_cast<double>(seen);
          wrong += get(a.weight, l * wq + i) != (q < tokens && seen > 0 ? 1 : 0);
        }
      CHECK(wrong == 0);
    }
}

TEST_CASE("routing operators refuse what does not fit") {
  Context ctx(cpu_backend(), 1);
  HeadGatesArgs a;
  a.gates = ctx.allocate(DType::f32, {4, 6});
  a.shared_heads = 2, a.keep = 5;
  CHECK_THROWS_WITH(head_gates(ctx, a), ContainsSubstring("keep 5"));
  a.keep = 2;
  CHECK_THROWS_WITH(head_gates(ctx, a), ContainsSubstring("routed"));
  a.routed = ctx.allocate(DType::f32, {4, 3});
  CHECK_THROWS_AS(head_gates(ctx, a), UsageError);
  PackQueriesArgs p;
  p.gates = ctx.allocate(DType::f32, {1, 4, 2});
  CHECK_THROWS_WITH(pack_queries(ctx, p), ContainsSubstring("index"));
}
