// CudaBackend::attention: arguments become Params, one page chooses the kernel, and everything is enqueued on
// the backend's stream: no device memory is read on the host, so a call can be captured into a graph.
//
// Lists, lengths, orders and page tables stay on the device, where checking them would cost a round trip:
// entries that name no block, key, token or page are never followed. They are skipped, but by the sm_90
// kernels in lists of full blocks, whose steps have no mask to skip them by.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/attention/gather.cuh"
#include "kernels/attention/masses.cuh"
#include "kernels/attention/neighborhood.hpp"
#include "kernels/attention/sm80.cuh"
#include "kernels/attention/sm90.cuh"

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
    x.causal_axis[a] = r.causal_axis[i], x.cut_axis[a] = r.cut_axis[i];
    x.places[a] = static_cast<int>((r.grid[i] + r.dilation[i] - 1) / r.dilation[i]);
    x.q_tile[a] = static_cast<int>(r.q_tile[i]), x.k_tile[a] = static_cast<int>(r.k_tile[i]);
    if (is_tiled(r.q_tile)) x.q_tiles[a] = static_cast<int>(tiles_on_axis(r, r.q_tile, i));
    if (is_tiled(r.k_tile)) {
      x.k_tiles[a] = static_cast<int>(tiles_on_axis(r, r.k_tile, i));
      x.places[a] = x.k_tiles[a] * x.k_tile[a];
    }
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
  p.relative_origin = a.relative.origin, p.relative_clip = a.relative.clip;
  if (const Tensor& t = a.relative.keys) {
    p.relative_keys = t.raw(), p.relative_keys_rows = t.dim(1);
    p.relative_keys_h = step(t, 0), p.relative_keys_x = t.stride(1);
  }
  if (const Tensor& t = a.relative.values) {
    p.relative_values = t.raw(), p.relative_values_rows = t.dim(1);
    p.relative_values_h = step(t, 0), p.relative_values_x = t.stride(1);
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

namespace {

/// Rows that 16-byte copies can take: the base and every step but the last axis's are multiples of 16 bytes.
bool aligned(const Tensor& t) {
  const int64_t size = static_cast<int64_t>(size_of(t.dtype()));
  bool ok = reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  for (int a = 0; a < t.rank() - 1; ++a) ok = ok && (t.dim(a) <= 1 || t.stride(a) * size % 16 == 0);
  return ok;
}

}  // namespace

void plan_masks(const AttentionArgs& a, const Params& p, TensorPlan& x) {
  const DeviceRule& rule = p.rule;
  x.limits = rule.causal || rule.band || rule.rank > 0 || p.row_begin.data;
  // Ranges of tokens are ranges of slots only without an order of the keys.
  const bool ranges = rule.causal || rule.band || p.row_begin.data || p.key_length;
  x.general_rule =
      rule.rank > 0 || rule.segment_q || rule.bitmap || p.key_valid || p.has_gather || (p.k_order && ranges);
  x.general_full = p.key_valid || (p.k_order && (p.row_begin.data || p.key_length));
  x.columns = x.general_rule || x.general_full || p.k_order;
  x.q_aligned = aligned(a.q), x.k_aligned = aligned(a.k), x.v_aligned = aligned(a.v),
  x.o_aligned = aligned(a.o);
}

namespace {

/// Which kernels run a call, and why no faster ones.
enum class Route { reference, sm80 };
struct Choice {
  Route route = Route::reference;
  const char* why = "";
  TensorPlan plan;
  size_t shared_bytes = 0;
  int tile_keys = 64;
};

template <class T, int Dim, int MTiles, Distances X = Distances::none>
void size_tiles(Choice& c, const Params& p) {
  using C = Tile<T, Dim, MTiles, X>;
  c.tile_keys = C::kKeys;
  c.shared_bytes =
      c.plan.kind == Kind::lean ? shared_bytes<C, Kind::lean>(p) : shared_bytes<C, Kind::full>(p);
}
template <class T, int Dim>
void size_tiles(Choice& c, const Params& p) {
  if constexpr (Dim == 64 || Dim == 128)
    if (c.plan.distances != Distances::none) return size_tiles<T, Dim, 1, Distances::any>(c, p);
  if constexpr (long_tiles<T, Dim>())
    if (c.plan.rows == 128) return size_tiles<T, Dim, 2>(c, p);
  size_tiles<T, Dim, 1>(c, p);
}
template <class T>
void size_tiles(Choice& c, const Params& p) {
  const int64_t dim = std::max(p.d, p.e);
  dim <= 32 && c.plan.distances == Distances::none ? size_tiles<T, 32>(c, p)
  : dim <= 64                                      ? size_tiles<T, 64>(c, p)
  : dim <= 128                                     ? size_tiles<T, 128>(c, p)
                                                   : size_tiles<T, 256>(c, p);
}
void size_tiles(Choice& c, const Params& p, DType dtype) {
  dtype == DType::bf16  ? size_tiles<__nv_bfloat16>(c, p)
  : dtype == DType::f16 ? size_tiles<__half>(c, p)
                        : size_tiles<float>(c, p);
}

// Part of the L2 cache that one section's keys and values may take: H100 and H200 have 50 MB, of which a side
// of the chip sees half without crossing over.
constexpr int64_t kSectionBytes = int64_t{32} << 20;
// Keys are split when tiles fill less of the chip than this; a part has at least so many tiles of keys.
constexpr double kFilled = 0.8;
constexpr int64_t kPartTiles = 4, kMostParts = 256;

/// ATTNBENCH_CUDA_ATTENTION=reference, =sm80, =sm90 or =gather in the environment takes the choice away, for
/// tests and comparisons. A call that sm90 or gather does not take is Unsupported when that was asked for.
bool asked(const char* kernels) {
  const char* forced = std::getenv("ATTNBENCH_CUDA_ATTENTION");
  return !forced || std::strcmp(forced, kernels) == 0;
}
bool choose_hopper(const CudaBackend& backend, const AttentionArgs& a, const Params& p, HopperPlan& plan) {
  const char* why = "";
  if (a.kernel == AttentionKernel::mma_sync || !asked("sm90")) return false;
  if (plan_hopper(backend, a, p, plan, why)) return true;
  if (std::getenv("ATTNBENCH_CUDA_ATTENTION"))
    throw Unsupported(std::string("the sm_90 attention kernels do not take this call: ") + why);
  return false;
}
bool choose_gather(const CudaBackend& backend, const AttentionArgs& a, const Params& p, GatherPlan& plan) {
  const char* why = "";
  if (a.kernel == AttentionKernel::mma_sync || !asked("gather")) return false;
  if (plan_gather(backend, a, p, plan, why)) return true;
  if (std::getenv("ATTNBENCH_CUDA_ATTENTION"))
    throw Unsupported(std::string("the attention kernel of gather lists does not take this call: ") + why);
  return false;
}

Choice choose_tiles(const CudaBackend& backend, const AttentionArgs& a, const Params& p) {
  Choice c;
  TensorPlan& x = c.plan;
  if (a.kernel == AttentionKernel::fastest && !asked("sm80")) return c.why = "the reference was asked for", c;

  const DType dtype = a.q.dtype();
  const int64_t dim = std::max(p.d, p.e), sms = backend.sm_count();
  if (dim > 256) return c.why = "rows longer than 256 elements leave no room for tiles", c;
  const bool relative = p.relative_keys || p.relative_values;
  if (relative && dim > 128)
    return c.why = "rows longer than 128 elements leave no room for tiles of relative embeddings", c;
  if (relative && (p.q_order || p.k_order || p.has_gather))
    return c.why = "distances run along consecutive tokens, which orders and gather lists take apart", c;

  plan_masks(a, p, x);
  x.direct = x.k_aligned && x.v_aligned && !p.table && !p.k_order && !p.has_gather;
  // Scores that need more than a factor, and the sum of p log p, go through their own instances; beside
  // relative embeddings whatever is not lean does, as do embeddings of values, for fewer instances.
  const bool lean = x.direct && !x.columns;
  const bool terms = p.soft_cap > 0 || p.bias || p.slope || p.relative || p.row_entropy.data ||
                     !(p.scale > 0) || (relative && (!lean || p.relative_values));
  x.to_log2 = static_cast<float>(terms ? 1.4426950408889634 : p.scale * 1.4426950408889634);
  if (relative) x.distances = terms ? Distances::any : Distances::keys;
  x.tables_aligned =
      (!a.relative.keys || aligned(a.relative.keys)) && (!a.relative.values || aligned(a.relative.values));
  x.kind = terms ? Kind::terms : lean ? Kind::lean : Kind::full;

  // Few queries of many heads: the group's heads become rows of one tile, and read their keys once.
  const bool lists = p.has_lists || p.has_gather;
  bool shared_lists = true;
  for (const DeviceList* l : {&p.full, &p.partial, &p.gather})
    if (l->count.data) shared_lists = shared_lists && l->count.per_group % p.group == 0 && p.blocks_q == 1;
  // Distances run along the rows of one head.
  x.packed = p.group > 1 && p.n <= 32 && !relative && (!lists || shared_lists);
  const int64_t unit_rows = x.packed ? p.group * p.n : p.n;
  const int64_t units = p.batch * (x.packed ? p.kv_heads : p.heads);
  // 128 rows halve the traffic of keys through shared memory, where there are enough of them: registers and
  // shared memory hold them, query blocks have whole tiles of them, and all multiprocessors have work.
  const auto tiles_of = [&](int rows) {
    x.block_tiles = 0;
    if (!lists || x.packed) return (unit_rows + rows - 1) / rows;
    x.block_tiles = static_cast<int>((std::min<int64_t>(p.block_q, p.n) + rows - 1) / rows);
    return p.blocks_q * x.block_tiles;
  };
  const bool whole = !lists || x.packed || p.blocks_q == 1 || p.block_q % 128 == 0;
  const auto memory = static_cast<size_t>(backend.properties().sharedMemPerBlockOptin);
  x.rows = !terms && !relative && dim * static_cast<int64_t>(size_of(dtype)) <= 256 && whole &&
                   unit_rows > 64 && units * tiles_of(128) >= sms
               ? 128
               : 64;
  size_tiles(c, p, dtype);
  if (x.rows == 128 && c.shared_bytes > memory) x.rows = 64, size_tiles(c, p, dtype);
  if (c.shared_bytes > memory)
    return c.why = "a block of this card has too little shared memory for the tiles", c;
  const int64_t tiles = tiles_of(x.rows);

  const int64_t pieces = (p.block_k + c.tile_keys - 1) / c.tile_keys;
  const int64_t key_tiles = p.has_lists ? p.blocks_k * pieces : (p.m + c.tile_keys - 1) / c.tile_keys;
  int64_t parts = 1;
  if (a.split_keys > 0)
    parts = std::min(a.split_keys, key_tiles);
  else if (static_cast<double>(units * tiles) < kFilled * static_cast<double>(sms))
    parts = std::min({2 * sms / std::max<int64_t>(1, units * tiles), key_tiles / kPartTiles, kMostParts});
  parts = std::max<int64_t>(1, parts);
  // Lists over more than 2^31 tiles of keys, and grids beyond the hardware's limit.
  if (units * tiles * parts > INT32_MAX || key_tiles > INT32_MAX / 2)
    return c.why = "more blocks than a grid holds", c;
  x.units = static_cast<int>(units), x.tiles = static_cast<int>(tiles), x.parts = static_cast<int>(parts);
  const int64_t key_bytes = std::max<int64_t>(1, p.m * (p.d + p.e) * static_cast<int64_t>(size_of(dtype)));
  const int64_t section = std::max<int64_t>(1, kSectionBytes / key_bytes) * (x.packed ? 1 : p.group);
  x.section = static_cast<int>(std::min(section, std::max<int64_t>(1, units)));
  c.route = Route::sm80;
  return c;
}
/// Tiles for the masses, too, but where the reference was asked for.
bool choose_masses(const CudaBackend& backend, const AttentionArgs& a, const Params& p, MassPlan& plan,
                   const char*& why) {
  const char* forced = std::getenv("ATTNBENCH_CUDA_ATTENTION");
  if (forced && std::strcmp(forced, "reference") == 0) return why = "the reference was asked for", false;
  return plan_masses(backend, a, p, plan, why);
}
Choice choose_kernel(const CudaBackend& backend, const AttentionArgs& a, const Params& p) {
  const Choice c = choose_tiles(backend, a, p);
  if (c.route == Route::reference && a.kernel == AttentionKernel::mma_sync)
    throw Unsupported(std::string("the mma.sync attention kernel does not take this call: ") + c.why);
  return c;
}

void launch(Context& ctx, const Params& p, TensorPlan plan, DType dtype) {
  Tensor parts;
  if (plan.parts > 1) {
    const int64_t rows = static_cast<int64_t>(plan.units) * plan.tiles * plan.parts * plan.rows;
    parts = ctx.allocate(DType::f32, {rows, p.e + 4});
    plan.part_state = parts.data<float>();
    plan.part_o = plan.part_state + rows * 4;
  }
  const bool relative = plan.distances != Distances::none;
  if (dtype == DType::bf16)
    (relative ? launch_relative_bf16 : launch_tensor_bf16)(ctx, p, plan);
  else if (dtype == DType::f16)
    (relative ? launch_relative_f16 : launch_tensor_f16)(ctx, p, plan);
  else
    (relative ? launch_relative_f32 : launch_tensor_f32)(ctx, p, plan);
}

}  // namespace
}  // namespace cuda_attention

std::string CudaBackend::attention_plan(const AttentionArgs& args) {
  using namespace cuda_attention;
  const Params p = make_params(args);
  std::string text;
  if (HopperPlan hopper; choose_hopper(*this, args, p, hopper)) {
    text = describe_hopper(p, hopper);
  } else if (GatherPlan gather; choose_gather(*this, args, p, gather)) {
    text = "gather, " + std::to_string(gather.parts) + " parts";
  } else if (const Choice c = choose_kernel(*this, args, p); c.route == Route::reference) {
    text = std::string("reference: ") + c.why;
  } else {
    const TensorPlan& x = c.plan;
    const char* const kinds[] = {"lean", "full", "terms"};
    text = "sm80 " + std::to_string(x.rows) + "x" + std::to_string(c.tile_keys) + " " +
           kinds[static_cast<int>(x.kind)];
    if (x.distances != Distances::none) text += ", relative";
    if (x.packed) text += ", heads packed";
    if (x.parts > 1) text += ", " + std::to_string(x.parts) + " parts";
  }
  if (!args.mass_per_key && !args.mass_per_block) return text;
  MassPlan masses;
  const char* why = "";
  return text + "; masses " +
         (choose_masses(*this, args, p, masses, why) ? describe_masses(masses)
                                                     : std::string("by the reference: ") + why);
}

void CudaBackend::attention(Context& ctx, const AttentionArgs& args) {
  using namespace cuda_attention;
  Params p = make_params(args);
  const bool masses = args.mass_per_key || args.mass_per_block;
  Tensor sums;
  if (masses) {
    sums = ctx.allocate(DType::f32, {p.batch, p.heads, p.n});
    p.row_sums = {sums.data<float>(), p.heads * p.n, p.n, 1};
  }
  if (p.batch * p.n > 0) {
    HopperPlan hopper;
    if (choose_hopper(*this, args, p, hopper))
      launch_hopper(ctx, p, hopper, args.q.dtype());
    else if (GatherPlan gather; choose_gather(*this, args, p, gather))
      launch_gather(ctx, p, gather, args.q.dtype());
    else if (const Choice choice = choose_kernel(*this, args, p); choice.route == Route::sm80)
      launch(ctx, p, choice.plan, args.q.dtype());
    else
      launch_reference(ctx, p, args.q.dtype());
  }
  if (!masses) return;
  MassPlan plan;
  const char* why = "";
  if (choose_masses(*this, args, p, plan, why))
    launch_masses(ctx, p, plan, args.q.dtype());
  else
    launch_reference_masses(ctx, p, args.q.dtype());
}

}  // namespace attnbench
