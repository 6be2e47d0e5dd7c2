// CudaBackend::attention: arguments become Params, one page chooses the kernel, and everything is enqueued on
// the backend's stream: no device memory is read on the host, so a call can be captured into a graph.
//
// Lists, lengths, orders and page tables stay on the device, where checking them would cost a round trip:
// entries that name no block, key, token or page are skipped, never followed.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/attention/cuda_params.cuh"

namespace attnbench {
namespace cuda_attention {
namespace {

int64_t step(const Tensor& t, int axis) { return t.dim(axis) == 1 ? 0 : t.stride(axis); }
View4 view(const Tensor& t) { return {t.raw(), t.stride(0), t.stride(1), t.stride(2)}; }
Grouped grouped(const Tensor& t, int64_t heads) {
  if (!t) return {};
  return {t.data<int32_t>(), step(t, 0), t.stride(1), t.stride(2), static_cast<int>(heads / t.dim(1))};
}
DeviceList list(const BlockList& l, int64_t heads) {
  if (!l) return {};
  return {grouped(l.begin, heads), grouped(l.count, heads), l.index.data<int32_t>(), l.index.stride(0),
          l.index.dim(0)};
}
Statistic statistic(const Tensor& t) {
  if (!t) return {};
  return {t.data<float>(), t.stride(0), t.stride(1), t.stride(2)};
}

DeviceRule rule_of(const ElementRule& r, bool paged, int64_t n, int64_t m) {
  DeviceRule x;
  x.causal = r.causal, x.band = r.band;
  x.left = r.left, x.right = r.right, x.sinks = r.sinks;
  x.offset_by_length = paged && r.offset == ElementRule::kAlignEnds;
  x.offset = r.offset == ElementRule::kAlignEnds ? m - n : r.offset;
  x.rank = r.rank;
  for (int a = 0; a < r.rank; ++a) {
    const size_t i = static_cast<size_t>(a);
    x.grid[a] = static_cast<int>(r.grid[i]), x.window[a] = static_cast<int>(r.window[i]);
    x.dilation[a] = static_cast<int>(r.dilation[i]), x.stride[a] = static_cast<int>(r.stride[i]);
    x.causal_axis[a] = r.causal_axis[i];
  }
  if (r.segment_q) {
    x.segment_q = r.segment_q.data<int32_t>(), x.segment_k = r.segment_k.data<int32_t>();
    x.segment_q_b = step(r.segment_q, 0), x.segment_q_x = r.segment_q.stride(1);
    x.segment_k_b = step(r.segment_k, 0), x.segment_k_x = r.segment_k.stride(1);
  }
  if (r.bitmap) {
    x.bitmap = r.bitmap.data<uint8_t>();
    x.bitmap_b = step(r.bitmap, 0), x.bitmap_h = step(r.bitmap, 1), x.bitmap_n = r.bitmap.stride(2);
  }
  return x;
}

}  // namespace

Params make_params(const AttentionArgs& a) {
  const AttentionSizes s = attention_sizes(a);
  Params p;
  p.batch = s.batch, p.heads = s.heads, p.kv_heads = s.kv_heads;
  p.n = s.n, p.m = s.m, p.d = s.d, p.e = s.e;
  p.group = static_cast<int>(s.heads / s.kv_heads);
  p.q = view(a.q), p.k = view(a.k), p.v = view(a.v), p.o = view(a.o);
  p.scale = a.scale, p.soft_cap = a.soft_cap;
  if (const Tensor& t = a.bias.dense) {
    p.bias = t.raw();
    p.bias_type = t.dtype() == DType::f32    ? BiasType::f32
                  : t.dtype() == DType::bf16 ? BiasType::bf16
                                             : BiasType::f16;
    p.bias_b = step(t, 0), p.bias_h = step(t, 1), p.bias_n = t.stride(2), p.bias_m = t.stride(3);
  }
  if (const Tensor& t = a.bias.slope) p.slope = t.data<float>(), p.slope_step = t.stride(0);
  if (const Tensor& t = a.bias.relative) {
    p.relative = t.data<float>();
    p.relative_h = step(t, 0), p.relative_step = t.stride(1), p.reach = (t.dim(1) - 1) / 2;
  }
  if (const Tensor& t = a.sink_logit) p.sink = t.data<float>(), p.sink_step = t.stride(0);
  if (a.pages.table) {
    p.table = a.pages.table.data<int32_t>();
    p.table_b = a.pages.table.stride(0), p.table_step = a.pages.table.stride(1);
    p.page_size = a.pages.page_size, p.pages = a.k.dim(0);
  }
  if (const BlockMask* m = a.mask) {
    p.has_lists = m->full || m->partial, p.has_gather = static_cast<bool>(m->gather);
    p.full = list(m->full, s.heads), p.partial = list(m->partial, s.heads),
    p.gather = list(m->gather, s.heads);
    p.rule = rule_of(m->rule, static_cast<bool>(a.pages.table), s.n, s.m);
    p.row_begin = grouped(m->row_begin, s.heads), p.row_end = grouped(m->row_end, s.heads);
    if (const Tensor& t = m->key_length) p.key_length = t.data<int32_t>(), p.key_length_step = t.stride(0);
    if (const Tensor& t = m->key_valid)
      p.key_valid = t.data<uint8_t>(), p.key_valid_b = t.stride(0), p.key_valid_m = t.stride(1);
    if (const Tensor& t = m->q_order) p.q_order = t.data<int32_t>(), p.q_order_step = t.stride(0);
    if (const Tensor& t = m->k_order) p.k_order = t.data<int32_t>(), p.k_order_step = t.stride(0);
  }
  // A block longer than the axis is the whole axis, and so fits 32 bits.
  p.blocks_q = (s.n + s.block_q - 1) / s.block_q, p.blocks_k = (s.m + s.block_k - 1) / s.block_k;
  p.block_q = static_cast<int>(std::min<int64_t>(s.block_q, INT32_MAX / 2));
  p.block_k = static_cast<int>(std::min<int64_t>(s.block_k, INT32_MAX / 2));
  p.lse = statistic(a.lse), p.row_max = statistic(a.row_max), p.row_entropy = statistic(a.row_entropy);
  p.mass_per_key = statistic(a.mass_per_key);
  if (const Tensor& t = a.mass_per_block) {
    p.mass_per_block = t.data<float>();
    p.block_mass_b = t.stride(0), p.block_mass_h = t.stride(1);
    p.block_mass_r = t.stride(2), p.block_mass_c = t.stride(3);
  }
  return p;
}

}  // namespace cuda_attention

void CudaBackend::attention(Context& ctx, const AttentionArgs& args) {
  using namespace cuda_attention;
  Params p = make_params(args);
  const bool masses = args.mass_per_key || args.mass_per_block;
  Tensor sums;
  if (masses) {
    sums = ctx.allocate(DType::f32, {p.batch, p.heads, p.n});
    p.row_sums = {sums.data<float>(), p.heads * p.n, p.n, 1};
  }
  launch_reference(ctx, p, args.q.dtype());
  if (masses) launch_masses(ctx, p, args.q.dtype());
}

}  // namespace attnbench
