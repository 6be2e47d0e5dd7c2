// Decoding over gather lists: softmax attention of one query a head with the few hundred keys of its list.
//
// Such a step is one wait for scattered rows of memory after another, so everything is asked for at once: a
// cluster of blocks shares a list, 8 (16) lanes share a row of 64 (128) elements, and each such team starts
// the loads of all its rows of K and of V before it looks at the first. A team keeps its own maximum, sum and
// output; they meet in shared memory, then in that of the cluster's first block, so that one launch is all.
// The code is short on purpose: in a step whose caches are cold, instructions are waited for as well.
#include <algorithm>

#include "kernels/attention/gather.cuh"
#include "kernels/attention/rows.cuh"
#include "kernels/core/cluster.cuh"
#include "kernels/core/cuda_kernel.cuh"

namespace attnbench::cuda_attention {
namespace {

constexpr int kGatherThreads = 512;
/// Rows of K and of V that a team has under way: 64 registers of a thread.
constexpr int kRows = 8;
/// Entries of a list from which on another block of the cluster is worth its share of the last steps.
constexpr int64_t kFewEntries = 64;
/// Entries that a block of the cluster takes at most while multiprocessors are idle: the kernel that splits
/// keys over the whole card is faster then.
constexpr int64_t kMostEntries = 1024;

/// What the kernel reads of Params, which would fill many lines of the constant cache.
template <class T>
struct GatherCall {
  const T *q, *k, *v;
  T* o;
  int64_t q_b, q_h, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h;
  DeviceList list;
  int heads, group, keys, parts;
  float to_log2;
};

/// 2^(x - top), where a top of -inf stands for no score above it: 2^x then, which leaves NaN what it is.
__device__ __forceinline__ float weight_of(float x, float top) {
  return exp2_fast(top == -INFINITY ? x : x - top);
}

/// Maximum, sum and output of what some keys make of a row.
template <int D>
struct Partial {
  float top, sum;
  float o[D];
};
/// Column c of `count` partials together, with their maximum and sum.
template <int D>
__device__ __forceinline__ void merge(const Partial<D>* parts, int count, int c, float& top, float& sum,
                                      float& o) {
  top = -INFINITY, sum = o = 0.0f;
#pragma unroll 8
  for (int i = 0; i < count; ++i) top = fmaxf(top, parts[i].top);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    // Without any score above -inf no key has a share, and what has none is not added: it may be NaN.
    const float share = top == -INFINITY ? 1.0f : exp2_fast(parts[i].top - top);
    sum += share * parts[i].sum;
    if (share != 0.0f) o += share * parts[i].o[c];
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kGatherThreads, 1) gather_kernel(const __grid_constant__ GatherCall<T> p) {
  constexpr int kLanes = D / 8, kTeams = kGatherThreads / kLanes;
  __shared__ Partial<D> team_part[kTeams], block_part[cluster::kMostParts];
  const int thread = static_cast<int>(threadIdx.x), team = thread / kLanes, lane = thread % kLanes;
  const int unit = static_cast<int>(blockIdx.x) / p.parts, part = static_cast<int>(blockIdx.x) % p.parts;
  const int b = unit / p.heads, h = unit - b * p.heads, kv_head = h / p.group;
  // The first block must have begun before others write to it.
  if (p.parts > 1) cluster::arrive();

  int64_t begin = p.list.begin.at(b, h, 0);
  int64_t count = min(p.list.size - begin, static_cast<int64_t>(p.list.count.at(b, h, 0)));
  if (begin < 0) count = 0;
  const int64_t end = begin + count * (part + 1) / p.parts;
  begin += count > 0 ? count * part / p.parts : 0;
  const T* k = p.k + b * p.k_b + kv_head * p.k_h + 8 * lane;
  const T* v = p.v + b * p.v_b + kv_head * p.v_h + 8 * lane;
  float q[8], o[8] = {}, top = -INFINITY, sum = 0.0f;
  widen_pack<T>(*reinterpret_cast<const uint4*>(p.q + b * p.q_b + h * p.q_h + 8 * lane), q);

#pragma unroll 1
  for (int64_t base = begin; base < end; base += kRows * kTeams) {
    int key[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = base + i * kTeams + team;
      key[i] = at < end ? p.list.index[at * p.list.step] : -1;
    }
    uint4 key_row[kRows], value_row[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (key[i] >= p.keys) key[i] = -1;
      key_row[i] = value_row[i] = uint4{0, 0, 0, 0};
      if (key[i] >= 0) key_row[i] = *reinterpret_cast<const uint4*>(k + key[i] * p.k_n);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (key[i] >= 0) value_row[i] = *reinterpret_cast<const uint4*>(v + key[i] * p.v_n);

    float score[kRows], high = top;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float x[8], dot = 0.0f;
      widen_pack<T>(key_row[i], x);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot = fmaf(q[e], x[e], dot);
      // Teams of a warp have the same number of rows, here or not: all lanes take part.
      score[i] = warp_reduce<kLanes>(dot, Add{}) * p.to_log2;
      if (key[i] >= 0) high = fmaxf(high, score[i]);
    }
    const float share = top == -INFINITY ? 1.0f : exp2_fast(top - high);
    top = high, sum *= share;
#pragma unroll
    for (int e = 0; e < 8; ++e) o[e] *= share;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float weight = key[i] >= 0 ? weight_of(score[i], top) : 0.0f;
      float x[8];
      widen_pack<T>(value_row[i], x);
      sum += weight;
#pragma unroll
      for (int e = 0; e < 8; ++e) o[e] = fmaf(weight, x[e], o[e]);
    }
  }

  Partial<D>& own = team_part[team];
  if (lane == 0) own.top = top, own.sum = sum;
#pragma unroll
  for (int e = 0; e < 8; ++e) own.o[8 * lane + e] = o[e];
  __syncthreads();
  float block_top = -INFINITY, block_sum = 0.0f, block_o = 0.0f;
  if (thread < D) merge<D>(team_part, kTeams, thread, block_top, block_sum, block_o);
  if (p.parts > 1) {
    cluster::wait();
    if (thread < D) cluster::store(&block_part[part].o[thread], block_o, 0);
    if (thread == 0)
      cluster::store(&block_part[part].top, block_top, 0), cluster::store(&block_part[part].sum, block_sum, 0);
    cluster::arrive();
    cluster::wait();
    if (part > 0) return;
    if (thread < D) merge<D>(block_part, p.parts, thread, block_top, block_sum, block_o);
  }
  if (thread >= D) return;
  // A row without keys, or with scores of -inf alone, is 0 whatever the values were.
  const bool empty = block_top == -INFINITY && block_sum == 0.0f;
  p.o[b * p.o_b + h * p.o_h + thread] = from_float<T>(empty ? 0.0f : block_o / block_sum);
}

template <class T, int D>
void launch_one(Context& ctx, const Params& p, const GatherPlan& plan) {
  GatherCall<T> c{};
  c.q = static_cast<const T*>(p.q.data), c.k = static_cast<const T*>(p.k.data);
  c.v = static_cast<const T*>(p.v.data), c.o = static_cast<T*>(p.o.data);
  c.q_b = p.q.b, c.q_h = p.q.h, c.k_b = p.k.b, c.k_h = p.k.h, c.k_n = p.k.n;
  c.v_b = p.v.b, c.v_h = p.v.h, c.v_n = p.v.n, c.o_b = p.o.b, c.o_h = p.o.h;
  c.list = p.gather;
  c.heads = static_cast<int>(p.heads), c.group = p.group, c.keys = static_cast<int>(p.m);
  c.parts = plan.parts, c.to_log2 = p.scale * kLog2e;
  cluster::launch(ctx, gather_kernel<T, D>, plan.units, plan.parts, kGatherThreads, 0, c);
}

}  // namespace

bool plan_gather(const CudaBackend& backend, const AttentionArgs& a, const Params& p, GatherPlan& plan,
                 const char*& why) {
  const auto no = [&](const char* reason) { return why = reason, false; };
  if (!p.has_gather || p.n != 1) return no("only single queries with gather lists are decoded this way");
  if (backend.compute_capability() < 90) return no("the card has no clusters");
  if (a.q.dtype() == DType::f32 || p.d != p.e || (p.d != 64 && p.d != 128))
    return no("rows are not 64 or 128 elements of 16 bits");
  if (!packable(a.q, 16) || !packable(a.k, 16) || !packable(a.v, 16)) return no("rows are not aligned to 16 bytes");
  if (p.soft_cap > 0 || p.bias_type != BiasType::none || p.slope || p.relative || p.relative_keys ||
      p.relative_values || p.sink || !(p.scale > 0))
    return no("scores need more than a factor");
  if (p.lse.data || p.row_max.data || p.row_entropy.data || p.row_sums.data)
    return no("outputs besides o are asked for");
  const DeviceRule& rule = p.rule;
  if (rule.band || rule.rank > 0 || rule.segment_q || rule.bitmap || (rule.causal && rule.offset < p.m - 1))
    return no("the rule hides keys from the query");
  if (p.row_begin.data || p.key_length || p.key_valid || p.q_order || p.k_order || p.table)
    return no("ranges, orders or pages decide about keys");
  if (p.group > 1 && p.gather.count.per_group % p.group == 0)
    return no("heads share lists, and keys with them");
  if (a.split_keys > 0) return no("the number of parts is given");
  const int64_t units = p.batch * p.heads, sms = backend.sm_count();
  const int64_t lists = std::max<int64_t>(1, a.mask->gather.count.numel()), entries = p.gather.size / lists;
  if (units > INT32_MAX / cluster::kMostParts || p.m > INT32_MAX || p.gather.size > INT32_MAX)
    return no("more rows than 32 bits hold");
  int64_t parts = 1;
  while (2 * parts <= cluster::kMostParts && 2 * parts * units <= sms && 2 * parts * kFewEntries <= entries)
    parts *= 2;
  if (parts * units < sms / 2 && entries > kMostEntries * parts) return no("long lists of few heads");
  plan.units = static_cast<int>(units), plan.parts = static_cast<int>(parts);
  return true;
}

void launch_gather(Context& ctx, const Params& p, const GatherPlan& plan, DType dtype) {
  if (dtype == DType::bf16)
    (p.d == 64 ? launch_one<__nv_bfloat16, 64> : launch_one<__nv_bfloat16, 128>)(ctx, p, plan);
  else
    (p.d == 64 ? launch_one<__half, 64> : launch_one<__half, 128>)(ctx, p, plan);
}

}  // namespace attnbench::cuda_attention
