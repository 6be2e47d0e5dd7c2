// One attention call as plain data for device code, and the contract of block_mask.hpp as device functions.
// No kernels. Built on the host by make_params from AttentionArgs without reading device memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/geometry.hpp"
#include "kernels/core/cuda_backend.cuh"

namespace attnbench::cuda_attention {

/// A [B, H, rows, D] tensor with a contiguous last axis; strides in elements. Pages: b is the page, n a slot
/// of it.
struct View4 {
  void* data = nullptr;
  int64_t b = 0, h = 0, n = 0;
};
/// i32 [Gb, Gh, X]: broadcast axes have stride 0, `per_group` heads share an entry.
struct Grouped {
  const int32_t* data = nullptr;
  int64_t b = 0, h = 0, x = 0;
  int per_group = 1;
  __device__ int at(int64_t ib, int ih, int64_t ix) const {
    return data[ib * b + ih / per_group * h + ix * x];
  }
};
struct DeviceList {
  Grouped begin, count;
  const int32_t* index = nullptr;
  int64_t step = 1, size = 0;
};
/// f32 [B, H, X] output, or none.
struct Statistic {
  float* data = nullptr;
  int64_t b = 0, h = 0, x = 0;
  __device__ void put(int64_t ib, int64_t ih, int64_t ix, float value) const {
    if (data) data[ib * b + ih * h + ix * x] = value;
  }
};

struct DeviceRule {
  bool causal = false, band = false;
  bool offset_by_length = false;  ///< paged and aligned at the ends: offset is the sequence's length - N
  int64_t offset = 0;             ///< otherwise, resolved
  int64_t left = -1, right = -1, sinks = 0;
  int rank = 0;
  int grid[3] = {1, 1, 1}, window[3] = {1, 1, 1}, dilation[3] = {1, 1, 1}, stride[3] = {1, 1, 1};
  bool causal_axis[3] = {false, false, false}, cut_axis[3] = {false, false, false};
  int places[3] = {1, 1, 1};                         ///< of a dilation group, padding included: see axis_run
  int q_tile[3] = {0, 0, 0}, k_tile[3] = {0, 0, 0};  ///< 0: row-major
  int q_tiles[3] = {1, 1, 1}, k_tiles[3] = {1, 1, 1};  ///< on an axis, of one dilation group
  const int32_t *segment_q = nullptr, *segment_k = nullptr;
  int64_t segment_q_b = 0, segment_q_x = 0, segment_k_b = 0, segment_k_x = 0;
  const uint8_t* bitmap = nullptr;
  int64_t bitmap_b = 0, bitmap_h = 0, bitmap_n = 0;
};

enum class BiasType : int { none, f32, bf16, f16 };

struct Params {
  int64_t batch = 0, heads = 0, kv_heads = 0, n = 0, m = 0, d = 0, e = 0;
  int group = 1;  ///< heads a kv head
  View4 q, k, v, o;
  float scale = 1, soft_cap = 0;
  const void* bias = nullptr;  ///< dense
  BiasType bias_type = BiasType::none;
  int64_t bias_b = 0, bias_h = 0, bias_n = 0, bias_m = 0;
  const float *slope = nullptr, *relative = nullptr, *sink = nullptr;
  // Relative embeddings, in the problem's dtype.
  const void *relative_keys = nullptr, *relative_values = nullptr;
  int64_t relative_keys_h = 0, relative_keys_x = 0, relative_keys_rows = 0;
  int64_t relative_values_h = 0, relative_values_x = 0, relative_values_rows = 0;
  int64_t relative_origin = 0;
  bool relative_clip = false;
  int64_t slope_step = 0, relative_h = 0, relative_step = 0, reach = 0, sink_step = 0;

  bool has_lists = false, has_gather = false;
  int block_q = 64, block_k = 64;
  DeviceList full, partial, gather;
  DeviceRule rule;
  Grouped row_begin, row_end;
  const int32_t* key_length = nullptr;
  int64_t key_length_step = 0;
  const uint8_t* key_valid = nullptr;
  int64_t key_valid_b = 0, key_valid_m = 0;
  const int32_t *q_order = nullptr, *k_order = nullptr;
  int64_t q_order_step = 0, k_order_step = 0;

  const int32_t* table = nullptr;
  int64_t table_b = 0, table_step = 0, page_size = 1, pages = 0;

  Statistic lse, row_max, row_entropy, mass_per_key;
  float* mass_per_block = nullptr;
  int64_t block_mass_b = 0, block_mass_h = 0, block_mass_r = 0, block_mass_c = 0;
  int64_t blocks_q = 0, blocks_k = 0;
  Statistic row_sums;  ///< the lse again, for the mass pass; contiguous [B, H, N]

  /// Only the reference kernel reads these: when set, it runs the listed rows alone. repairs[0] counts the
  /// entries behind it; entry e means 16 query slots of unit (batch times head) e / repair_groups from
  /// 16 * (e % repair_groups).
  int* repairs = nullptr;
  int repair_groups = 0;
};
Params make_params(const AttentionArgs& args);

// The kernels. Each enqueues on the stream and returns.
void launch_reference(Context& ctx, const Params& p, DType dtype);
/// Adds up mass_per_key and mass_per_block from p.row_sums, which a first pass has filled.
void launch_reference_masses(Context& ctx, const Params& p, DType dtype);

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

/// Valid keys of a sequence. Lengths live on the device and are not trusted: they are cut to [0, M].
__device__ inline int keys_of(const Params& p, int64_t b) {
  const int64_t m = p.m;
  if (!p.key_length) return static_cast<int>(m);
  const int64_t length = p.key_length[b * p.key_length_step];
  return static_cast<int>(length < 0 ? 0 : length < m ? length : m);
}
/// The M that rules and biases align to.
__device__ inline int64_t aligned_keys(const Params& p, int64_t b) { return p.table ? keys_of(p, b) : p.m; }
__device__ inline int64_t rule_offset(const Params& p, int64_t b) {
  return p.rule.offset_by_length ? keys_of(p, b) - p.n : p.rule.offset;
}
/// Token of a slot, or -1 when an order names what is not there.
__device__ inline int query_token(const Params& p, int64_t slot) {
  if (!p.q_order) return static_cast<int>(slot);
  const int t = p.q_order[slot * p.q_order_step];
  return t >= 0 && t < p.n ? t : -1;
}
__device__ inline int key_token(const Params& p, int64_t slot) {
  if (!p.k_order) return static_cast<int>(slot);
  const int t = p.k_order[slot * p.k_order_step];
  return t >= 0 && t < p.m ? t : -1;
}
/// Element offset of key token j's row in k or v; -1 when the page table names no page.
__device__ inline int64_t key_row(const Params& p, const View4& v, int64_t b, int64_t kv_head, int64_t j) {
  if (!p.table) return b * v.b + kv_head * v.h + j * v.n;
  const int64_t page = p.table[b * p.table_b + j / p.page_size * p.table_step];
  if (page < 0 || page >= p.pages) return -1;
  return page * v.b + kv_head * v.h + j % p.page_size * v.n;
}

/// Coordinates of a token (see ElementRule::q_tile); beyond the grid on some axis when it is padding.
__device__ inline void coordinates(const DeviceRule& r, int token, const int (&tile)[3],
                                   const int (&tiles)[3], int (&x)[3]) {
  if (tile[0] == 0) {
#pragma unroll
    for (int a = 2; a >= 0; --a)
      if (a < r.rank) x[a] = token % r.grid[a], token /= r.grid[a];
    return;
  }
#pragma unroll
  for (int a = 2; a >= 0; --a)
    if (a < r.rank) x[a] = token % tile[a], token /= tile[a];
#pragma unroll
  for (int a = 2; a >= 0; --a)
    if (a < r.rank) x[a] += token % tiles[a] * tile[a], token /= tiles[a];
#pragma unroll
  for (int a = 2; a >= 0; --a)
    if (a < r.rank && r.dilation[a] > 1)
      x[a] = x[a] * r.dilation[a] + token % r.dilation[a], token /= r.dilation[a];
}

/// One axis of the neighbourhood around coordinate x, in dilation-group order: coordinate y stands at place
/// (y mod d) * places + y / d, where the window is one run, [low, low + length).
struct AxisRun {
  int low, length;
};
__device__ inline int axis_place(const DeviceRule& r, int a, int y) {
  const int d = r.dilation[a];
  return d == 1 ? y : y % d * r.places[a] + y / d;
}
__device__ inline AxisRun axis_run(const DeviceRule& r, int a, int x) {
  const int w = r.window[a], d = r.dilation[a], s = r.stride[a];
  // Divisions by what is mostly one are worth a branch that all threads take alike.
  const int g = d == 1 ? 0 : x % d, at = d == 1 ? x : x / d;
  const int size = d == 1 ? r.grid[a] : (r.grid[a] - g + d - 1) / d;  // of the dilation group
  const int first = s == 1 ? at : at / s * s;
  int begin, end;
  if (r.causal_axis[a]) {
    const int leader = min(first + s - 1, size - 1);
    begin = max(leader - w + 1, 0), end = at + 1;
  } else {
    const int leader = min(first + s / 2, size - 1);
    begin = leader - w / 2;
    if (!r.cut_axis[a]) begin = min(begin, max(size - w, 0));
    end = min((r.cut_axis[a] ? begin : max(begin, 0)) + w, size), begin = max(begin, 0);
  }
  return {g * r.places[a] + begin, max(end - begin, 0)};
}
/// Coordinates [first, end) of axis a that hold the window of x, dilated or not.
__device__ inline void axis_hull(const DeviceRule& r, int a, int x, int& first, int& end) {
  const int d = r.dilation[a], g = x % d;
  const AxisRun run = axis_run(r, a, x);
  const int begin = run.low - g * r.places[a];
  first = begin * d + g;
  end = run.length > 0 ? (begin + run.length - 1) * d + g + 1 : first;
}

__device__ inline int64_t segment_of_query(const Params& p, int64_t b, int64_t i) {
  return p.rule.segment_q[b * p.rule.segment_q_b + i * p.rule.segment_q_x];
}
__device__ inline int64_t segment_of_key(const Params& p, int64_t b, int64_t j) {
  return p.rule.segment_k[b * p.rule.segment_k_b + j * p.rule.segment_k_x];
}

/// The rule alone: query token i in slot si, key token j in slot sj (bitmaps speak of slots).
__device__ inline bool rule_sees(const Params& p, int64_t offset, int64_t b, int h, int64_t si, int64_t i,
                                 int64_t sj, int64_t j) {
  const DeviceRule& r = p.rule;
  const int64_t centre = i + offset;
  if (r.causal && j > centre) return false;
  if (r.band && !(j < r.sinks) &&
      ((r.left >= 0 && j < centre - r.left) || (r.right >= 0 && j > centre + r.right)))
    return false;
  if (r.rank > 0) {
    int x[3], y[3];
    coordinates(r, static_cast<int>(i), r.q_tile, r.q_tiles, x);
    coordinates(r, static_cast<int>(j), r.k_tile, r.k_tiles, y);
    for (int a = 0; a < r.rank; ++a) {
      if (x[a] >= r.grid[a]) return false;
      const AxisRun run = axis_run(r, a, x[a]);
      const int place = axis_place(r, a, y[a]) - run.low;
      if (place < 0 || place >= run.length) return false;
    }
  }
  if (r.segment_q && segment_of_query(p, b, i) != segment_of_key(p, b, j)) return false;
  if (r.bitmap) {
    const uint8_t byte = r.bitmap[b * r.bitmap_b + h * r.bitmap_h + si * r.bitmap_n + (sj >> 3)];
    if (!((byte >> (sj & 7)) & 1)) return false;
  }
  return true;
}
/// Ranges and key padding.
__device__ inline bool key_sees(const Params& p, int64_t b, int h, int64_t i, int64_t j) {
  if (p.row_begin.data && (j < p.row_begin.at(b, h, i) || j >= p.row_end.at(b, h, i))) return false;
  if (p.key_valid && !p.key_valid[b * p.key_valid_b + j * p.key_valid_m]) return false;
  return j < keys_of(p, b);
}

/// Row of a table of relative embeddings for a key `away` from the query, or -1: nothing there.
__device__ inline int64_t relative_row(const Params& p, int64_t rows, int64_t away) {
  const int64_t r = p.relative_origin + away;
  if (r >= 0 && r < rows) return r;
  return !p.relative_clip ? -1 : r < 0 ? 0 : rows - 1;
}

__device__ inline float dense_bias(const Params& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t at = b * p.bias_b + h * p.bias_h + i * p.bias_n + j * p.bias_m;
  if (p.bias_type == BiasType::f32) return static_cast<const float*>(p.bias)[at];
  if (p.bias_type == BiasType::bf16) return to_float(static_cast<const __nv_bfloat16*>(p.bias)[at]);
  return to_float(static_cast<const __half*>(p.bias)[at]);
}
/// Everything that is added to a scaled and capped score; `away` is j - i - (aligned M - N).
template <class Real>
__device__ inline Real additive_terms(const Params& p, int64_t b, int h, int64_t i, int64_t j, int64_t away) {
  Real s = 0;
  if (p.bias_type != BiasType::none) s += dense_bias(p, b, h, i, j);
  if (p.slope) s -= static_cast<Real>(p.slope[h * p.slope_step]) * static_cast<Real>(away < 0 ? -away : away);
  if (p.relative) {
    const int64_t c = away < -p.reach ? -p.reach : away > p.reach ? p.reach : away;
    s += p.relative[h * p.relative_h + (c + p.reach) * p.relative_step];
  }
  return s;
}

}  // namespace attnbench::cuda_attention
