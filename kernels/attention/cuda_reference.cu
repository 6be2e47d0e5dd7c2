// The device oracle: one warp a query row, double precision, every feature of the contract written the short
// way. Tests compare the fast kernels with it; calls that no fast kernel takes run on it. Also its
// mass pass, which walks the same pairs a second time. Not tuned.
#include "kernels/attention/cuda_params.cuh"

namespace attnbench::cuda_attention {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxDim = 512;  // of the contract
constexpr unsigned kAll = 0xffffffffu;

struct Row {
  int64_t b = 0, slot = 0;
  int h = 0, i = 0;  // head; token
  int64_t offset = 0, aligned = 0;
};

__device__ double warp_max(double x) {
  for (int w = 16; w > 0; w /= 2) x = fmax(x, __shfl_xor_sync(kAll, x, w));
  return x;
}
__device__ double warp_sum(double x) {
  for (int w = 16; w > 0; w /= 2) x += __shfl_xor_sync(kAll, x, w);
  return x;
}

/// Calls visit(slot, token, sees) for the row's keys, 32 at a time, by all lanes together.
template <class Visit>
__device__ void walk(const Params& p, const Row& row, int lane, Visit visit) {
  const auto look = [&](int64_t slot, bool there, bool with_rule) {
    const int j = there ? key_token(p, slot) : -1;
    const bool sees = j >= 0 && key_sees(p, row.b, row.h, row.i, j) &&
                      (!with_rule || rule_sees(p, row.offset, row.b, row.h, row.slot, row.i, slot, j));
    if (__any_sync(kAll, sees)) visit(slot, j, sees);
  };
  const int64_t block = row.slot / p.block_q;
  const auto each_entry = [&](const DeviceList& list, auto&& entry) {
    if (!list.count.data) return;
    const int64_t begin = list.begin.at(row.b, row.h, block);
    const int64_t end = min(list.size, begin + list.count.at(row.b, row.h, block));
    if (begin >= 0) entry(begin, end);
  };
  if (p.has_gather) {
    each_entry(p.gather, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += 32) {
        const int64_t slot = at + lane < end ? p.gather.index[(at + lane) * p.gather.step] : -1;
        look(slot, slot >= 0 && slot < p.m, true);
      }
    });
    return;
  }
  if (p.has_lists) {
    for (int which = 0; which < 2; ++which) {
      const DeviceList& list = which == 0 ? p.full : p.partial;
      each_entry(list, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t c = list.index[at * list.step];
          if (c < 0 || c >= p.blocks_k) continue;
          const int64_t last = min(p.m, (c + 1) * p.block_k);
          for (int64_t s = c * p.block_k; s < last; s += 32) look(s + lane, s + lane < last, which == 1);
        }
      });
    }
    return;
  }
  for (int64_t s = 0; s < p.m; s += 32) look(s + lane, s + lane < p.m, true);
}

template <class T>
__device__ double score(const Params& p, const Row& row, const double* q, int j) {
  const int64_t at = key_row(p, p.k, row.b, row.h / p.group, j);
  double s = 0;
  if (at >= 0) {
    const T* k = static_cast<const T*>(p.k.data) + at;
    for (int64_t c = 0; c < p.d; ++c) s += q[c] * static_cast<double>(to_float(k[c]));
  }
  const int64_t away = j - row.i - (row.aligned - p.n);
  if (p.relative_keys)
    if (const int64_t r = relative_row(p, p.relative_keys_rows, away); r >= 0) {
      const T* e = static_cast<const T*>(p.relative_keys) + row.h * p.relative_keys_h + r * p.relative_keys_x;
      for (int64_t c = 0; c < p.d; ++c) s += q[c] * static_cast<double>(to_float(e[c]));
    }
  s *= static_cast<double>(p.scale);
  if (p.soft_cap > 0) s = p.soft_cap * tanh(s / p.soft_cap);
  return s + additive_terms<double>(p, row.b, row.h, row.i, j, away);
}

/// The row a warp works on and its query in double; false for a slot whose token is not there.
template <class T>
__device__ bool open_row(const Params& p, int64_t index, int lane, Row& row, double* q) {
  row.slot = index % p.n;
  row.h = static_cast<int>(index / p.n % p.heads);
  row.b = index / p.n / p.heads;
  row.i = query_token(p, row.slot);
  if (row.i < 0) return false;
  row.offset = rule_offset(p, row.b), row.aligned = aligned_keys(p, row.b);
  __syncwarp();
  const T* from = static_cast<const T*>(p.q.data) + row.b * p.q.b + row.h * p.q.h + row.i * p.q.n;
  for (int64_t c = lane; c < p.d; c += 32) q[c] = static_cast<double>(to_float(from[c]));
  __syncwarp();
  return true;
}

template <class T>
__global__ void __launch_bounds__(kWarps * 32) reference_kernel(const __grid_constant__ Params p) {
  __shared__ double queries[kWarps][kMaxDim];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double* q = queries[warp];
  const int64_t rows = p.repairs ? int64_t{16} * p.repairs[0] : p.batch * p.heads * p.n;
  const double inf = static_cast<double>(INFINITY);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + warp; at < rows;
       at += static_cast<int64_t>(gridDim.x) * kWarps) {
    int64_t index = at;
    if (p.repairs) {
      const int entry = p.repairs[1 + at / 16];
      const int64_t slot = int64_t{16} * (entry % p.repair_groups) + at % 16;
      if (slot >= p.n) continue;
      index = entry / p.repair_groups * p.n + slot;
    }
    Row row;
    if (!open_row<T>(p, index, lane, row, q)) continue;
    double top = -inf, sum = 0, logs = 0;  // logs: sum of w ln w, w relative to exp(top)
    bool nan = false;
    double o[kMaxDim / 32];
#pragma unroll
    for (int c = 0; c < kMaxDim / 32; ++c) o[c] = 0;
    walk(p, row, lane, [&](int64_t, int j, bool sees) {
      const double s = sees ? score<T>(p, row, q, j) : -inf;
      nan = nan || __any_sync(kAll, isnan(s));
      const double next = fmax(top, warp_max(s));  // fmax passes over NaN
      if (next == -inf && !nan) return;
      const double base = next == -inf ? 0.0 : next;
      const double share = exp(top - base);
      const double w = sees ? exp(s - base) : 0.0;
      logs = share * (logs + (sum > 0 ? (top - base) * sum : 0.0));
      logs += warp_sum(w > 0 ? w * (s - base) : isnan(w) ? w : 0.0);
      sum = sum * share + warp_sum(w);
#pragma unroll
      for (int c = 0; c < kMaxDim / 32; ++c) o[c] *= share;
      for (int k = 0; k < 32; ++k) {
        if (!__shfl_sync(kAll, static_cast<int>(sees), k)) continue;
        const double wk = __shfl_sync(kAll, w, k);
        const int key = __shfl_sync(kAll, j, k);
        if (p.relative_values)
          if (const int64_t r = relative_row(p, p.relative_values_rows, key - row.i - (row.aligned - p.n));
              r >= 0) {
            const T* f = static_cast<const T*>(p.relative_values) + row.h * p.relative_values_h +
                         r * p.relative_values_x;
#pragma unroll
            for (int c = 0; c < kMaxDim / 32; ++c)
              if (c * 32 + lane < p.e) o[c] += wk * static_cast<double>(to_float(f[c * 32 + lane]));
          }
        const int64_t at = key_row(p, p.v, row.b, row.h / p.group, key);
        if (at < 0) continue;
        const T* v = static_cast<const T*>(p.v.data) + at;
#pragma unroll
        for (int c = 0; c < kMaxDim / 32; ++c)
          if (c * 32 + lane < p.e) o[c] += wk * static_cast<double>(to_float(v[c * 32 + lane]));
      }
      top = next;
    });
    const bool empty = top == -inf && !nan;
    if (p.sink && !empty) {
      const double sink = static_cast<double>(p.sink[row.h * p.sink_step]);
      const double high = fmax(top, sink), share = exp(top - high), extra = exp(sink - high);
      logs =
          share * (logs + (share > 0 ? (top - high) * sum : 0.0)) + (extra > 0 ? extra * (sink - high) : 0.0);
      sum = sum * share + extra;
#pragma unroll
      for (int c = 0; c < kMaxDim / 32; ++c) o[c] *= share;
      if (lane == 0) p.row_max.put(row.b, row.h, row.i, static_cast<float>(nan ? sum : top));
      top = high;
    } else if (lane == 0) {
      p.row_max.put(row.b, row.h, row.i, static_cast<float>(nan ? sum : top));
    }
    T* out = static_cast<T*>(p.o.data) + row.b * p.o.b + row.h * p.o.h + row.i * p.o.n;
#pragma unroll
    for (int c = 0; c < kMaxDim / 32; ++c)
      if (c * 32 + lane < p.e)
        out[c * 32 + lane] = from_float<T>(empty ? 0.0f : static_cast<float>(o[c] / sum));
    if (lane == 0) {
      // top of a row of NaN scores alone is still -inf: its weights were taken relative to 0.
      const double lse = empty ? -inf : nan ? sum : top + log(sum);
      p.lse.put(row.b, row.h, row.i, static_cast<float>(lse));
      p.row_sums.put(row.b, row.h, row.i, static_cast<float>(lse));
      p.row_entropy.put(row.b, row.h, row.i, static_cast<float>(empty ? 0.0 : log(sum) - logs / sum));
    }
  }
}

/// Adds the probabilities of every row to the masses of its keys and blocks, in double, so that the order of
/// the additions shows only below the rounding of the stored f32.
template <class T>
__global__ void __launch_bounds__(kWarps * 32)
    mass_kernel(const __grid_constant__ Params p, double* key_mass, double* block_mass) {
  __shared__ double queries[kWarps][kMaxDim];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double* q = queries[warp];
  const int64_t rows = p.batch * p.heads * p.n;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp; index < rows;
       index += static_cast<int64_t>(gridDim.x) * kWarps) {
    Row row;
    if (!open_row<T>(p, index, lane, row, q)) continue;
    const int64_t head = row.b * p.heads + row.h;
    const float lse = p.row_sums.data[head * p.n + row.i];
    if (lse == -INFINITY) continue;
    walk(p, row, lane, [&](int64_t slot, int j, bool sees) {
      const double w = sees ? exp(score<T>(p, row, q, j) - static_cast<double>(lse)) : 0.0;
      if (key_mass && sees) atomicAdd(&key_mass[head * p.m + j], w);
      if (!block_mass) return;
      double* at = block_mass + (head * p.blocks_q + row.slot / p.block_q) * p.blocks_k;
      // One atomic where the keys lie in one block, as they mostly do.
      const int first = __ffs(static_cast<int>(__ballot_sync(kAll, sees))) - 1;
      const int64_t block = slot / p.block_k, common = __shfl_sync(kAll, block, first);
      const double all = warp_sum(w);
      if (__all_sync(kAll, !sees || block == common)) {
        if (lane == first) atomicAdd(&at[block], all);
      } else if (sees) {
        atomicAdd(&at[block], w);
      }
    });
  }
}

__global__ void store_masses(const __grid_constant__ Params p, const double* key_mass,
                             const double* block_mass) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  if (key_mass)
    for (int64_t x = first; x < p.batch * p.heads * p.m; x += step)
      p.mass_per_key.put(x / p.m / p.heads, x / p.m % p.heads, x % p.m, static_cast<float>(key_mass[x]));
  if (block_mass)
    for (int64_t x = first; x < p.batch * p.heads * p.blocks_q * p.blocks_k; x += step) {
      const int64_t c = x % p.blocks_k, r = x / p.blocks_k % p.blocks_q, bh = x / p.blocks_k / p.blocks_q;
      p.mass_per_block[bh / p.heads * p.block_mass_b + bh % p.heads * p.block_mass_h + r * p.block_mass_r +
                       c * p.block_mass_c] = static_cast<float>(block_mass[x]);
    }
}

}  // namespace

void launch_reference(Context& ctx, const Params& p, DType dtype) {
  const int64_t rows = p.batch * p.heads * p.n;
  if (rows == 0) return;
  // Repairs are rare: a small grid looks whether there are any.
  const unsigned grid =
      p.repairs ? static_cast<unsigned>(cuda_of(ctx).sm_count()) : grid_for(ctx, rows, kWarps);
  const cudaStream_t stream = stream_of(ctx);
  if (dtype == DType::f32)
    reference_kernel<float><<<grid, kWarps * 32, 0, stream>>>(p);
  else if (dtype == DType::bf16)
    reference_kernel<__nv_bfloat16><<<grid, kWarps * 32, 0, stream>>>(p);
  else
    reference_kernel<__half><<<grid, kWarps * 32, 0, stream>>>(p);
  CUDA_CHECK_LAUNCH();
}

void launch_reference_masses(Context& ctx, const Params& p, DType dtype) {
  const int64_t keys = p.mass_per_key.data ? p.batch * p.heads * p.m : 0;
  const int64_t blocks = p.mass_per_block ? p.batch * p.heads * p.blocks_q * p.blocks_k : 0;
  if (keys + blocks == 0) return;
  const cudaStream_t stream = stream_of(ctx);
  const Tensor memory = ctx.allocate(DType::f64, {keys + blocks});
  CUDA_CHECK(cudaMemsetAsync(memory.raw(), 0, static_cast<size_t>(memory.nbytes()), stream));
  double* key_mass = keys > 0 ? memory.data<double>() : nullptr;
  double* block_mass = blocks > 0 ? memory.data<double>() + keys : nullptr;
  const int64_t rows = p.batch * p.heads * p.n;
  if (rows > 0) {
    const unsigned grid = grid_for(ctx, rows, kWarps);
    if (dtype == DType::f32)
      mass_kernel<float><<<grid, kWarps * 32, 0, stream>>>(p, key_mass, block_mass);
    else if (dtype == DType::bf16)
      mass_kernel<__nv_bfloat16><<<grid, kWarps * 32, 0, stream>>>(p, key_mass, block_mass);
    else
      mass_kernel<__half><<<grid, kWarps * 32, 0, stream>>>(p, key_mass, block_mass);
    CUDA_CHECK_LAUNCH();
  }
  store_masses<<<grid_for(ctx, std::max(keys, blocks), 256), 256, 0, stream>>>(p, key_mass, block_mass);
  CUDA_CHECK_LAUNCH();
}

}  // namespace attnbench::cuda_attention
