// Gates and packed queries on the CPU: rows of gates and (batch, head) pairs are independent items.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/cpu_backend.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/rows.hpp"
#include "kernels/routing/routing.hpp"

namespace attnbench {

namespace {

/// exp(x - max x) over a row; returns the sum.
float exponentials(const float* x, int64_t n, float* out) {
  float most = -INFINITY;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > most || std::isnan(x[i])) most = x[i];
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += out[i] = std::exp(x[i] - most);
  return sum;
}

/// a before b: larger, NaN first, ties by index.
bool before(const float* x, int64_t a, int64_t b) {
  const bool na = std::isnan(x[a]), nb = std::isnan(x[b]);
  if (na != nb) return na;
  if (!na && x[a] != x[b]) return x[a] > x[b];
  return a < b;
}

}  // namespace

void CpuBackend::head_gates(Context& ctx, const HeadGatesArgs& args) {
  using Norm = HeadGatesArgs::Norm;
  const int64_t rows = args.gates.dim(0), heads = args.gates.dim(1), hs = args.shared_heads, e = heads - hs;
  const auto row_of = [](const Tensor& t, int64_t r) -> const float* {
    return t ? t.data<float>() + r * t.stride(0) : nullptr;
  };
  const int64_t grain = std::max<int64_t>(1, kParallelBytes / (32 * heads));
  parallel_range(ctx.threads(), rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> p(static_cast<size_t>(std::max<int64_t>(heads, 2)));
    std::vector<int64_t> order(static_cast<size_t>(e));
    for (int64_t r = begin; r < end; ++r) {
      float* g = args.gates.data<float>() + r * args.gates.stride(0);
      const float *routed = row_of(args.routed, r), *shared = row_of(args.shared, r),
                  *balance = row_of(args.balance, r);
      float a0 = 1, a1 = 1;
      if (balance && args.norm != Norm::binary) {
        const float sum = exponentials(balance, 2, p.data());
        const float factor = args.norm == Norm::renormalised ? 2.0f : 1.0f;
        a0 = factor * p[0] / sum, a1 = factor * p[1] / sum;
      }
      if (args.norm == Norm::binary || !shared) {
        std::fill(g, g + hs, args.norm == Norm::binary ? 1.0f : a0);
      } else {
        const float sum = exponentials(shared, hs, p.data());
        const float factor = args.norm == Norm::renormalised ? static_cast<float>(hs) : 1.0f;
        for (int64_t i = 0; i < hs; ++i) g[i] = a0 * (factor * p[static_cast<size_t>(i)] / sum);
      }
      std::fill(g + hs, g + heads, 0.0f);
      if (args.keep > 0) {
        for (int64_t i = 0; i < e; ++i) order[static_cast<size_t>(i)] = i;
        std::nth_element(order.begin(), order.begin() + (args.keep - 1), order.end(),
                         [routed](int64_t x, int64_t y) { return before(routed, x, y); });
        std::sort(order.begin(), order.begin() + args.keep);  // sums in order of heads
        if (args.norm == Norm::binary) {
          for (int64_t i = 0; i < args.keep; ++i) g[hs + order[static_cast<size_t>(i)]] = 1;
        } else {
          const float sum = exponentials(routed, e, p.data());
          float kept = 0;
          for (int64_t i = 0; i < args.keep; ++i)
            kept += p[static_cast<size_t>(order[static_cast<size_t>(i)])] / sum;
          const float factor = args.norm == Norm::renormalised
                                   ? static_cast<float>(args.keep) / std::max(kept, 0x1p-23f)
                                   : 1.0f;
          for (int64_t i = 0; i < args.keep; ++i) {
            const int64_t at = order[static_cast<size_t>(i)];
            g[hs + at] = a1 * (factor * (p[static_cast<size_t>(at)] / sum));
          }
        }
      }
      if (!args.selected) continue;
      int32_t* s = args.selected.data<int32_t>() + r * args.selected.stride(0);
      for (int64_t i = 0; i < heads; ++i) s[i] = g[i] != 0;
    }
  });
}

void CpuBackend::pack_queries(Context& ctx, const PackQueriesArgs& args) {
  const int64_t batch = args.gates.dim(0), n = args.gates.dim(1), heads = args.gates.dim(2);
  const int64_t tiles = args.count.dim(2);
  parallel_items(ctx.threads(), batch * heads, [&](int64_t item) {
    const float* gate =
        args.gates.data<float>() + item / heads * args.gates.stride(0) + item % heads * args.gates.stride(2);
    int32_t *index = args.index.data<int32_t>() + item * n,
            *begin = args.row_begin.data<int32_t>() + item * n,
            *end = args.row_end.data<int32_t>() + item * n;
    float* weight = args.weight.data<float>() + item * n;
    int64_t used = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float g = gate[i * args.gates.stride(1)];
      if (g == 0) continue;
      index[used] = static_cast<int32_t>(i);
      weight[used] = g;
      begin[used] = 0;
      end[used] = static_cast<int32_t>(args.causal ? std::clamp<int64_t>(i + args.offset + 1, 0, args.keys)
                                                   : args.keys);
      ++used;
    }
    std::fill(index + used, index + n, -1);
    std::fill(weight + used, weight + n, 0.0f);
    std::fill(begin + used, begin + n, 0);
    std::fill(end + used, end + n, 0);
    for (int64_t t = 0; t < tiles; ++t) {
      // Rows are in order, so the last one sees the most.
      const int64_t last = std::min((t + 1) * args.block_q, used) - 1;
      args.count.data<int32_t>()[item * tiles + t] =
          last < t * args.block_q ? 0 : static_cast<int32_t>((end[last] + args.block_k - 1) / args.block_k);
    }
    if (args.total) args.total.data<int32_t>()[item] = static_cast<int32_t>(used);
  });
}

void CpuBackend::member_ranges(Context& ctx, const MemberRangesArgs& args) {
  const int64_t lists = args.index_q.dim(0) * args.index_q.dim(1), wq = args.index_q.dim(2),
                wk = args.index_k.dim(2), columns = args.memory + wk;
  parallel_items(ctx.threads(), lists, [&](int64_t l) {
    const int32_t *q = args.index_q.data<int32_t>() + l * wq, *k = args.index_k.data<int32_t>() + l * wk;
    const int32_t* real = std::lower_bound(k, k + wk, args.tokens);
    for (int64_t i = 0; i < wq; ++i) {
      const int64_t seen = (args.causal ? std::min(std::upper_bound(k, k + wk, q[i]), real) : real) - k;
      const int64_t end = args.memory + seen;
      args.row_begin.data<int32_t>()[l * wq + i] = 0;
      args.row_end.data<int32_t>()[l * wq + i] = static_cast<int32_t>(end);
      args.weight.data<float>()[l * wq + i] = q[i] < args.tokens && end > 0 ? 1.0f : 0.0f;
      if (!args.bias) continue;
      float* row = args.bias.data<float>() + (l * wq + i) * columns;
      std::fill(row, row + end, 0.0f);
      std::fill(row + end, row + columns, -1e9f);
    }
  });
}

}  // namespace attnbench
