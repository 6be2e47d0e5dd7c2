// Which attention calls the Hopper kernels take, and their tensor maps.
#include <algorithm>
#include <cstdlib>

#include "kernels/attention/rows.cuh"
#include "kernels/attention/sm90.cuh"
#include "kernels/core/tensor_map.cuh"

namespace attnbench::cuda_attention {
namespace {

/// Boxes of 64 x 64 elements of [B, H, rows, D].
bool make_map(CUtensorMap& map, const Tensor& t) {
  constexpr int kBox[] = {1, 1, 64, 64};
  return make_tensor_map(map, t, kBox);
}

bool rows_of_16_bytes(const Tensor& t) {
  bool ok = reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  for (int a = 0; a < 3; ++a) ok = ok && (t.dim(a) <= 1 || t.stride(a) % 8 == 0);
  return ok;
}

// Keys and values of a section stay in the half of the L2 cache that is near: 50 MB in all on H100 and H200.
constexpr int64_t kSectionBytes = int64_t{24} << 20;
// Below this share of the multiprocessors, splitting the keys (sm_80 kernel) beats whole rows.
constexpr double kFilled = 0.4;

// Weights of up to 2^8 are nothing to their types and sums.
constexpr float kSlack = 8.0f;

/// An undilated neighbourhood on one axis is a range of keys, in whatever tiles: they follow each other.
bool is_line(const DeviceRule& rule) { return rule.rank == 1 && rule.dilation[0] == 1; }

/// HopperPlan::tile_words of a neighbourhood.
int words_of_tile(const DeviceRule& rule) {
  if (rule.rank == 0 || rule.k_tile[0] == 0) return 0;
  int64_t tokens = 1, thresholds = 0;
  for (int a = 0; a < rule.rank; ++a) tokens *= rule.k_tile[a], thresholds += rule.k_tile[a] + 1;
  const bool fits = tokens % 64 == 0 && tokens / 32 * thresholds <= kTileTable;
  return fits ? static_cast<int>(tokens / 32) : 0;
}

}  // namespace

bool plan_hopper(const CudaBackend& backend, const AttentionArgs& a, const Params& p, HopperPlan& plan,
                 const char*& why) {
  const auto no = [&](const char* reason) { return why = reason, false; };
  if (backend.compute_capability() != 90) return no("the card is not a Hopper");
  if (a.q.dtype() == DType::f32) return no("f32 has no warpgroup product");
  const int64_t dim = std::max(p.d, p.e);
  if (dim > 256 || p.d % 8 != 0 || p.e % 8 != 0)
    return no("rows are not whole 16-byte pieces of up to 256 elements");
  if (p.relative_keys || p.relative_values) return no("embeddings of distances need products of their own");
  plan.terms = p.soft_cap > 0 || p.bias_type != BiasType::none || p.slope || p.relative ||
               p.row_entropy.data || !(p.scale > 0);
  if (p.table || p.has_gather || p.q_order || p.k_order) return no("rows are gathered");
  if (p.n < 64 || p.m < 1) return no("too few rows for a tile");
  if (p.n >= INT32_MAX / 2 || p.m >= INT32_MAX / 2) return no("more rows than 32 bits hold");
  if (a.split_keys > 1) return no("the keys are to be split");
  if (!rows_of_16_bytes(a.o) || !tensor_maps_available()) return no("rows of o are not aligned to 16 bytes");

  if (p.has_lists && p.block_k % 64 != 0) return no("key blocks are not multiples of 64");
  if (p.has_lists && p.block_q % 64 != 0) return no("query blocks are not multiples of 64");
  const bool small = p.has_lists && p.block_q % 128 != 0;
  if (small && dim > 128) return no("query blocks of 64 with rows over 128 elements");
  // Short rows leave the tensor cores waiting for exponentials: three consumers hide more of them than two.
  plan.groups = small ? 1 : dim <= 64 && !p.has_lists && !plan.terms && p.n > 128 ? 3 : 2;
  const int rows = 64 * plan.groups, keys = dim > 128 || small ? 64 : 128;
  const int64_t units = p.batch * p.heads, tiles = (p.n + rows - 1) / rows;
  if (units * tiles * 4 * plan.groups >= INT32_MAX) return no("more tiles than 32 bits hold");
  const char* forced = std::getenv("ATTNBENCH_CUDA_ATTENTION");
  if (!forced && static_cast<double>(units * tiles) < kFilled * backend.sm_count())
    return no("too few tiles to fill the card");
  plan.tiles = static_cast<int>(tiles), plan.total = static_cast<int>(units * tiles);

  const DeviceRule& rule = p.rule;
  const bool limits = p.row_begin.data || p.key_length || p.key_valid;
  const bool words = rule.segment_q || rule.bitmap || p.key_valid;
  plan.simple = !words && (rule.rank == 0 || is_line(rule));
  plan.monotone = plan.simple && rule.rank == 0 && !p.row_begin.data;
  plan.general = !plan.simple;
  plan.tile_words = words || is_line(rule) ? 0 : words_of_tile(rule);
  plan.pure = !limits && !rule.causal && !rule.band && p.m % (p.has_lists ? p.block_k : keys) == 0;
  plan.ranges = plan.general || rule.rank > 0 || limits || rule.causal || rule.band || p.m % keys != 0;
  // A last block that reaches behind the keys has halves that are there in part, or not at all.
  plan.mask_full = limits || p.m % p.block_k != 0;
  plan.to_log2 = plan.terms ? 1.0f : p.scale * kLog2e;
  plan.slack = p.row_max.data ? 0.0f : kSlack;
  const int64_t key_bytes = std::max<int64_t>(1, p.m * (p.d + p.e) * 2);
  // Tiles of equal work follow each other within a head; uneven ones are taken heaviest first over a section.
  const bool uneven = plan.ranges || p.has_lists;
  const int64_t section = uneven ? std::max<int64_t>(1, kSectionBytes / key_bytes) * p.group : 1;
  plan.section = static_cast<int>(std::min(section, std::max<int64_t>(1, units)));
  if (!make_map(plan.q, a.q) || !make_map(plan.k, a.k) || !make_map(plan.v, a.v) || !make_map(plan.o, a.o))
    return no("strides or alignment have no tensor map");
  return true;
}

std::string describe_hopper(const Params& p, const HopperPlan& plan) {
  const int64_t dim = std::max(p.d, p.e);
  return "sm90 " + std::to_string(64 * plan.groups) + "x" + (dim > 128 || plan.groups == 1 ? "64" : "128") +
         (plan.terms ? " terms" : "");
}

void launch_hopper(Context& ctx, const Params& p, HopperPlan& plan, DType dtype) {
  const auto launch = dtype == DType::bf16 ? launch_hopper_bf16 : launch_hopper_f16;
  if (!plan.ranges && !p.has_lists && !plan.terms) return launch(ctx, p, plan);
  // The ticket of the next tile, then the rows to run again: their number and room for all of them.
  Params with = p;
  with.repair_groups = plan.tiles * 4 * plan.groups;
  const Tensor memory = ctx.allocate(DType::i32, {2 + p.batch * p.heads * with.repair_groups});
  plan.next = memory.data<int32_t>(), with.repairs = plan.next + 1;
  CUDA_CHECK(cudaMemsetAsync(plan.next, 0, 2 * sizeof(int), stream_of(ctx)));
  launch(ctx, with, plan);
  launch_reference(ctx, with, dtype);
}

}  // namespace attnbench::cuda_attention
