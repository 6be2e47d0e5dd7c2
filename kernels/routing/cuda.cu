// Gates (a thread a token: a few dozen scores) and packed queries (a block a head, ranks by ballots) on CUDA.
#include "kernels/core/cuda_kernel.cuh"
#include "kernels/routing/routing.hpp"

namespace attnbench {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Rows {
  const float* data = nullptr;
  int64_t step = 0;
};

/// As the CPU's order: larger first, NaN above everything, ties by index.
__device__ bool before(float a, int ia, float b, int ib) {
  const bool na = isnan(a), nb = isnan(b);
  if (na != nb) return na;
  if (!na && a != b) return a > b;
  return ia < ib;
}

__device__ float largest(const float* x, int n) {
  float most = -INFINITY;
  for (int i = 0; i < n; ++i)
    if (x[i] > most || isnan(x[i])) most = x[i];
  return most;
}

/// Scores are few and in cache; ranks are counted, so no memory of their own is needed whatever the heads.
__global__ void __launch_bounds__(kThreads)
    gates_kernel(Rows routed, Rows shared, Rows balance, float* gates, int64_t gates_step, int32_t* selected,
                 int64_t selected_step, int64_t rows, int hs, int e, int keep, int norm) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; r < rows; r += step) {
    float* g = gates + r * gates_step;
    const bool binary = norm == 2, renormalised = norm == 0;
    float a0 = 1, a1 = 1;
    if (balance.data && !binary) {
      const float* x = balance.data + r * balance.step;
      const float most = largest(x, 2), p0 = expf(x[0] - most), p1 = expf(x[1] - most);
      const float factor = renormalised ? 2.0f : 1.0f;
      a0 = factor * p0 / (p0 + p1), a1 = factor * p1 / (p0 + p1);
    }
    if (binary || !shared.data) {
      for (int i = 0; i < hs; ++i) g[i] = binary ? 1.0f : a0;
    } else {
      const float* x = shared.data + r * shared.step;
      const float most = largest(x, hs), factor = renormalised ? static_cast<float>(hs) : 1.0f;
      float sum = 0;
      for (int i = 0; i < hs; ++i) sum += expf(x[i] - most);
      for (int i = 0; i < hs; ++i) g[i] = a0 * (factor * expf(x[i] - most) / sum);
    }
    if (keep == 0) {
      for (int i = 0; i < e; ++i) g[hs + i] = 0;
    } else {
      const float* x = routed.data + r * routed.step;
      const float most = largest(x, e);
      float sum = 0, kept = 0;
      for (int i = 0; i < e; ++i) sum += expf(x[i] - most);
      for (int i = 0; i < e; ++i) {
        int rank = 0;
        for (int j = 0; j < e; ++j) rank += before(x[j], j, x[i], i);
        const float p = binary ? 1.0f : expf(x[i] - most) / sum;
        g[hs + i] = rank < keep ? p : 0.0f;
        if (rank < keep) kept += p;
      }
      if (!binary) {
        const float factor = renormalised ? static_cast<float>(keep) / fmaxf(kept, 0x1p-23f) : 1.0f;
        for (int i = 0; i < e; ++i)
          if (g[hs + i] != 0.0f) g[hs + i] = a1 * (factor * g[hs + i]);
      }
    }
    if (selected) {
      int32_t* s = selected + r * selected_step;
      for (int i = 0; i < hs + e; ++i) s[i] = g[i] != 0.0f;
    }
  }
}

struct Pack {
  const float* gates;
  int64_t gates_b, gates_n, gates_h, n;
  int heads;
  int32_t *index, *row_begin, *row_end, *count, *total;
  float* weight;
  int64_t keys, block_q, block_k, tiles, offset;
  bool causal;
};

__global__ void __launch_bounds__(kThreads) pack_kernel(Pack p) {
  __shared__ int64_t warp_sum[kWarps];
  const int64_t item = blockIdx.x;
  const float* gate = p.gates + item / p.heads * p.gates_b + item % p.heads * p.gates_h;
  int32_t *index = p.index + item * p.n, *begin = p.row_begin + item * p.n, *end = p.row_end + item * p.n;
  float* weight = p.weight + item * p.n;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t used = 0;  // the same in all threads
  for (int64_t base = 0; base < p.n; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    const float g = i < p.n ? gate[i * p.gates_n] : 0.0f;
    const bool on = g != 0.0f;  // NaN is on, as on the CPU
    const unsigned ballot = __ballot_sync(0xffffffffu, on);
    if (lane == 0) warp_sum[warp] = __popc(ballot);
    __syncthreads();
    int64_t at = used, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += warp_sum[w];
      all += warp_sum[w];
    }
    if (on) {
      at += __popc(ballot & ((1u << lane) - 1u));
      index[at] = static_cast<int32_t>(i);
      weight[at] = g;
      begin[at] = 0;
      const int64_t limit = i + p.offset + 1;
      end[at] = static_cast<int32_t>(p.causal ? (limit < 0 ? 0 : limit > p.keys ? p.keys : limit) : p.keys);
    }
    used += all;
    __syncthreads();  // warp_sum is written again, and `end` is read below
  }
  for (int64_t s = used + threadIdx.x; s < p.n; s += kThreads) {
    index[s] = -1;
    weight[s] = 0.0f;
    begin[s] = end[s] = 0;
  }
  for (int64_t t = threadIdx.x; t < p.tiles; t += kThreads) {
    const int64_t last = min((t + 1) * p.block_q, used) - 1;
    p.count[item * p.tiles + t] =
        last < t * p.block_q ? 0 : static_cast<int32_t>((end[last] + p.block_k - 1) / p.block_k);
  }
  if (p.total && threadIdx.x == 0) p.total[item] = static_cast<int32_t>(used);
}

/// First place of k[0, n) that is not below x.
__device__ int64_t lower_bound(const int32_t* k, int64_t n, int64_t x) {
  int64_t low = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (k[low + half] < x)
      low += half + 1, n -= half + 1;
    else
      n = half;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    member_kernel(const int32_t* index_q, const int32_t* index_k, int32_t* row_begin, int32_t* row_end,
                  float* weight, int64_t rows, int64_t wq, int64_t wk, int64_t tokens, int64_t memory,
                  bool causal) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; r < rows; r += step) {
    const int32_t* k = index_k + r / wq * wk;
    const int64_t q = index_q[r];
    // Causal: below q + 1, and real.
    const int64_t limit = causal && q + 1 < tokens ? q + 1 : tokens;
    const int64_t end = memory + lower_bound(k, wk, limit);
    row_begin[r] = 0;
    row_end[r] = static_cast<int32_t>(end);
    weight[r] = q < tokens && end > 0 ? 1.0f : 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads)
    bias_kernel(const int32_t* row_end, float* bias, int64_t items, int64_t columns) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step)
    bias[i] = i % columns < row_end[i / columns] ? 0.0f : -1e9f;
}

}  // namespace

void CudaBackend::member_ranges(Context& ctx, const MemberRangesArgs& args) {
  const int64_t wq = args.index_q.dim(2), wk = args.index_k.dim(2), rows = args.index_q.numel();
  member_kernel<<<grid_for(ctx, rows, kThreads), kThreads, 0, stream()>>>(
      args.index_q.data<int32_t>(), args.index_k.data<int32_t>(), args.row_begin.data<int32_t>(),
      args.row_end.data<int32_t>(), args.weight.data<float>(), rows, wq, wk, args.tokens, args.memory,
      args.causal);
  CUDA_CHECK_LAUNCH();
  if (!args.bias || args.bias.numel() == 0) return;
  bias_kernel<<<grid_for(ctx, args.bias.numel(), kThreads), kThreads, 0, stream()>>>(
      args.row_end.data<int32_t>(), args.bias.data<float>(), args.bias.numel(), args.memory + wk);
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::head_gates(Context& ctx, const HeadGatesArgs& args) {
  const int64_t rows = args.gates.dim(0), heads = args.gates.dim(1);
  const auto rows_of = [](const Tensor& t) { return t ? Rows{t.data<float>(), t.stride(0)} : Rows{}; };
  gates_kernel<<<grid_for(ctx, rows, kThreads), kThreads, 0, stream()>>>(
      rows_of(args.routed), rows_of(args.shared), rows_of(args.balance), args.gates.data<float>(),
      args.gates.stride(0), args.selected ? args.selected.data<int32_t>() : nullptr,
      args.selected ? args.selected.stride(0) : 0, rows, static_cast<int>(args.shared_heads),
      static_cast<int>(heads - args.shared_heads), static_cast<int>(args.keep), static_cast<int>(args.norm));
  CUDA_CHECK_LAUNCH();
}

void CudaBackend::pack_queries(Context&, const PackQueriesArgs& args) {
  Pack p{};
  p.gates = args.gates.data<float>();
  p.gates_b = args.gates.stride(0), p.gates_n = args.gates.stride(1), p.gates_h = args.gates.stride(2);
  p.n = args.gates.dim(1), p.heads = static_cast<int>(args.gates.dim(2));
  p.index = args.index.data<int32_t>(), p.weight = args.weight.data<float>();
  p.row_begin = args.row_begin.data<int32_t>(), p.row_end = args.row_end.data<int32_t>();
  p.count = args.count.data<int32_t>(), p.total = args.total ? args.total.data<int32_t>() : nullptr;
  p.keys = args.keys, p.block_q = args.block_q, p.block_k = args.block_k, p.tiles = args.count.dim(2);
  p.offset = args.offset, p.causal = args.causal;
  const int64_t items = args.gates.dim(0) * args.gates.dim(2);
  if (items > INT32_MAX) throw UsageError("pack_queries: more than 2^31 - 1 batch elements times heads");
  pack_kernel<<<static_cast<unsigned>(items), kThreads, 0, stream()>>>(p);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench
