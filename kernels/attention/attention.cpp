// What every backend shares: argument checks, cost, dispatch.
#include "kernels/attention/attention.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>

#include "kernels/attention/geometry.hpp"
#include "kernels/attention/neighborhood.hpp"
#include "kernels/core/backend.hpp"

namespace attnbench {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw UsageError("attention: " + what); }

std::string describe(const Tensor& t) { return std::string(name(t.dtype())) + " " + t.shape().str(); }

void need_dtype(const char* what, const Tensor& t, DType dtype) {
  if (t.dtype() != dtype)
    refuse(std::string(what) + " must be " + std::string(name(dtype)) + ", not " + describe(t));
}

/// Checks rank and extents; an extent may be given as {-1} (free) or matched against two choices.
void need_shape(const char* what, const Tensor& t, std::initializer_list<std::initializer_list<int64_t>> axes,
                const char* wanted) {
  bool ok = t.rank() == static_cast<int>(axes.size());
  int a = 0;
  for (const auto& choices : axes) {
    if (!ok) break;
    bool hit = false;
    for (int64_t c : choices) hit |= c == t.dim(a);
    ok = hit;
    ++a;
  }
  if (!ok) refuse(std::string(what) + " must have shape " + wanted + ", not " + t.shape().str());
}

void need_last_contiguous(const char* what, const Tensor& t) {
  if (t.dim(-1) > 1 && t.stride(-1) != 1)
    refuse(std::string(what) + " needs a contiguous last axis; its strides are " + t.strides().str());
}

struct ByteRange {
  const char *begin, *end;
};
ByteRange extent(const Tensor& t) {
  const char* p = static_cast<const char*>(t.raw());
  int64_t low = 0, high = 0;
  for (int a = 0; a < t.rank(); ++a) {
    if (t.dim(a) == 0) return {p, p};
    const int64_t reach = (t.dim(a) - 1) * t.stride(a);
    (reach < 0 ? low : high) += reach;
  }
  const int64_t size = static_cast<int64_t>(size_of(t.dtype()));
  return {p + low * size, p + (high + 1) * size};
}

/// True when two views certainly share no element. Interleaved views of one buffer (slices of a qkv matrix)
/// overlap as ranges without sharing elements; they are let through when their strides agree and their
/// offset within the period leaves room.
bool disjoint(const Tensor& a, const Tensor& b) {
  const ByteRange x = extent(a), y = extent(b);
  if (x.begin == x.end || y.begin == y.end || x.end <= y.begin || y.end <= x.begin) return true;
  if (a.strides() == b.strides() && a.dtype() == b.dtype() && a.raw() != b.raw()) return true;
  return false;
}

void check_list(const char* what, const BlockList& l, const AttentionSizes& s) {
  const int64_t rows = (s.n + s.block_q - 1) / s.block_q;
  for (const Tensor* t : {&l.begin, &l.count, &l.index}) {
    if (!*t) refuse(std::string(what) + " list lacks one of begin, count, index");
    need_dtype(what, *t, DType::i32);
  }
  need_shape(what, l.begin, {{1, s.batch}, {1, s.kv_heads, s.heads}, {rows}},
             "[1 or B, 1 or Hkv or H, ceil(N / block_q)]");
  if (!(l.begin.shape() == l.count.shape()))
    refuse(std::string(what) + " list: begin " + l.begin.shape().str() + " and count " +
           l.count.shape().str() + " differ in shape");
  if (l.index.rank() != 1)
    refuse(std::string(what) + " list: index must have one axis, not " + l.index.shape().str());
}

void check_mask(const BlockMask& mask, const AttentionSizes& s, const AttentionArgs& args) {
  if (mask.block_q < 1 || mask.block_k < 1)
    refuse("blocks hold one token or more, not " + std::to_string(mask.block_q) + " x " +
           std::to_string(mask.block_k));
  if (mask.gather && (mask.full || mask.partial)) refuse("a mask has gather lists or block lists, not both");
  if (mask.full) check_list("mask.full", mask.full, s);
  if (mask.partial) check_list("mask.partial", mask.partial, s);
  if (mask.gather) check_list("mask.gather", mask.gather, s);
  const ElementRule& r = mask.rule;
  if (r.rank < 0 || r.rank > 3) refuse("rule.rank must be 0 to 3, not " + std::to_string(r.rank));
  if (r.rank > 0) {
    for (int a = 0; a < r.rank; ++a) {
      const size_t i = static_cast<size_t>(a);
      if (r.grid[i] < 1 || r.window[i] < 1 || r.dilation[i] < 1 || r.stride[i] < 1 ||
          (r.window[i] * r.dilation[i] > r.grid[i] && !r.cut_axis[i]) || r.stride[i] > r.window[i])
        refuse("rule axis " + std::to_string(a) +
               " needs 1 <= window * dilation <= grid and 1 <= stride <= "
               "window; it has grid " +
               std::to_string(r.grid[i]) + ", window " + std::to_string(r.window[i]) + ", dilation " +
               std::to_string(r.dilation[i]) + ", stride " + std::to_string(r.stride[i]));
      if (r.q_tile[i] < 0 || r.k_tile[i] < 0 || (r.q_tile[i] > 0) != is_tiled(r.q_tile) ||
          (r.k_tile[i] > 0) != is_tiled(r.k_tile))
        refuse("rule axis " + std::to_string(a) + ": tiles are 1 or more on every axis, or 0 on every axis");
    }
    if (is_tiled(r.q_tile) || is_tiled(r.k_tile)) {
      if (r.causal || r.band)
        refuse("a neighbourhood whose tokens stand tile by tile has no causal or band part");
      if (mask.q_order || mask.k_order)
        refuse("a neighbourhood whose tokens stand tile by tile takes no order besides");
    }
    const int64_t queries = padded_tokens(r, r.q_tile), keys = padded_tokens(r, r.k_tile);
    if (queries != s.n || keys != s.m)
      refuse("the rule's grid has " + std::to_string(queries) + " queries and " + std::to_string(keys) +
             " keys, but N = " + std::to_string(s.n) + " and M = " + std::to_string(s.m));
  }
  if (r.band && (r.left < -1 || r.right < -1))
    refuse("rule.left and rule.right are -1 (open), 0 or more, not " + std::to_string(r.left) + " and " +
           std::to_string(r.right));
  if (r.sinks < 0) refuse("rule.sinks must be 0 or more, not " + std::to_string(r.sinks));
  if (static_cast<bool>(r.segment_q) != static_cast<bool>(r.segment_k))
    refuse("segments need both segment_q and segment_k");
  if (r.segment_q) {
    need_dtype("rule.segment_q", r.segment_q, DType::i32);
    need_dtype("rule.segment_k", r.segment_k, DType::i32);
    need_shape("rule.segment_q", r.segment_q, {{1, s.batch}, {s.n}}, "[1 or B, N]");
    need_shape("rule.segment_k", r.segment_k, {{1, s.batch}, {s.m}}, "[1 or B, M]");
  }
  if (r.bitmap) {
    need_dtype("rule.bitmap", r.bitmap, DType::u8);
    need_shape("rule.bitmap", r.bitmap, {{1, s.batch}, {1, s.heads}, {s.n}, {(s.m + 7) / 8}},
               "[1 or B, 1 or H, N, ceil(M / 8)]");
    need_last_contiguous("rule.bitmap", r.bitmap);
  }
  if (static_cast<bool>(mask.row_begin) != static_cast<bool>(mask.row_end))
    refuse("row ranges need both row_begin and row_end");
  for (const Tensor* t : {&mask.row_begin, &mask.row_end})
    if (*t) {
      need_dtype("mask.row_begin / row_end", *t, DType::i32);
      need_shape("mask.row_begin / row_end", *t, {{1, s.batch}, {1, s.kv_heads, s.heads}, {s.n}},
                 "[1 or B, 1 or Hkv or H, N]");
    }
  if (mask.key_length) {
    need_dtype("mask.key_length", mask.key_length, DType::i32);
    need_shape("mask.key_length", mask.key_length, {{s.batch}}, "[B]");
  }
  if (mask.key_valid) {
    need_dtype("mask.key_valid", mask.key_valid, DType::u8);
    need_shape("mask.key_valid", mask.key_valid, {{s.batch}, {s.m}}, "[B, M]");
  }
  if (mask.q_order) {
    need_dtype("mask.q_order", mask.q_order, DType::i32);
    need_shape("mask.q_order", mask.q_order, {{s.n}}, "[N]");
  }
  if (mask.k_order) {
    need_dtype("mask.k_order", mask.k_order, DType::i32);
    need_shape("mask.k_order", mask.k_order, {{s.m}}, "[M]");
  }
  (void)args;
}

int64_t elements_read(const Tensor& t) {
  return t ? t.numel() * static_cast<int64_t>(size_of(t.dtype())) : 0;
}

/// The view in host memory, with its strides: what counting pairs reads of a mask that lives on a device.
Tensor on_host(Context& ctx, const Tensor& t) {
  if (!t || t.device() == DeviceKind::cpu) return t;
  const ByteRange x = extent(t);
  const auto bytes = static_cast<size_t>(x.end - x.begin);
  const std::shared_ptr<char[]> memory(new char[bytes + 1]);
  if (bytes > 0) ctx.backend().copy_bytes(memory.get(), DeviceKind::cpu, x.begin, t.device(), bytes);
  const auto size = static_cast<int64_t>(size_of(t.dtype()));
  const Tensor all(DeviceKind::cpu, t.dtype(), {static_cast<int64_t>(bytes) / size}, memory);
  return all.strided(t.shape(), t.strides(), (static_cast<const char*>(t.raw()) - x.begin) / size);
}
BlockMask on_host(Context& ctx, const BlockMask& mask) {
  BlockMask m = mask;
  for (BlockList* l : {&m.full, &m.partial, &m.gather})
    for (Tensor* t : {&l->begin, &l->count, &l->index}) *t = on_host(ctx, *t);
  for (Tensor* t : {&m.rule.segment_q, &m.rule.segment_k, &m.rule.bitmap, &m.row_begin, &m.row_end,
                    &m.key_length, &m.key_valid, &m.q_order, &m.k_order})
    *t = on_host(ctx, *t);
  return m;
}

/// Sum over i in [0, n) of clamp(i + shift, 0, limit).
int64_t clamped_sum(int64_t n, int64_t shift, int64_t limit) {
  const int64_t from = std::min(std::max<int64_t>(0, -shift), n);  // first i that adds something
  const int64_t to = std::min(std::max(from, limit - shift), n);   // first i at the limit
  const int64_t growing = to - from;
  return growing * (from + shift) + growing * (growing - 1) / 2 + (n - to) * limit;
}

/// Attended or visited pairs that are charged; see attention.hpp. Reads the mask's tensors, on the host,
/// unless the pairs are static.
int64_t charged_pairs(const AttentionArgs& args, const AttentionSizes& s) {
  if (args.pages.table) {
    // Each sequence aligns its rule to its own length.
    int64_t pairs = 0;
    const Tensor& lengths = args.mask->key_length;
    if (lengths.device() != DeviceKind::cpu)
      refuse("the pairs of a paged call are counted from mask.key_length, which lives on another device");
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t length = lengths.data<int32_t>()[b * lengths.stride(0)];
      BlockMask one = *args.mask;
      if (one.key_valid) one.key_valid = one.key_valid.slice(0, b, b + 1);
      one.key_length = one.key_length.slice(0, b, b + 1);
      const auto pick = [&](Tensor& t) {
        if (t && t.dim(0) > 1) t = t.slice(0, b, b + 1);
      };
      for (BlockList* l : {&one.full, &one.partial, &one.gather}) pick(l->begin), pick(l->count);
      pick(one.row_begin), pick(one.row_end), pick(one.rule.bitmap), pick(one.rule.segment_q),
          pick(one.rule.segment_k);
      if (one.rule.offset == ElementRule::kAlignEnds) one.rule.offset = length - s.n;
      const bool listed = one.full || one.partial || one.gather;
      const PairCount c = count_pairs(one, 1, s.heads, s.n, s.m, !listed);
      pairs += listed ? c.visited : c.attended;
    }
    return pairs;
  }
  if (!args.mask) return s.batch * s.heads * s.n * s.m;
  const BlockMask& mask = *args.mask;
  const bool lists = mask.full || mask.partial || mask.gather;
  if (!lists && mask.rule.allows_all() && !mask.row_begin && !mask.key_length && !mask.key_valid)
    return s.batch * s.heads * s.n * s.m;
  const ElementRule& rule = mask.rule;
  // Ranges in closed form, so that a call on a device does not wait for the host to count its rows. A band
  // whose ends cross (negative reach) sees pairs that the difference of two sums does not count.
  if (pairs_are_static(args) && rule.rank == 0 && (!rule.band || (rule.left >= -1 && rule.right >= -1))) {
    const int64_t offset = rule.offset == ElementRule::kAlignEnds ? s.m - s.n : rule.offset;
    const bool left = rule.band && rule.left >= 0, right = rule.causal || (rule.band && rule.right >= 0);
    const int64_t reach = !rule.causal                   ? rule.right
                          : rule.band && rule.right >= 0 ? std::min<int64_t>(0, rule.right)
                                                         : 0;
    int64_t pairs = right ? clamped_sum(s.n, offset + reach + 1, s.m) : s.n * s.m;
    if (left) pairs -= clamped_sum(s.n, offset - rule.left, s.m);
    if (const int64_t sinks = rule.band ? std::min(rule.sinks, s.m) : 0; sinks > 0) {
      if (left) pairs += clamped_sum(s.n, offset - rule.left, sinks);
      if (right && !rule.causal) pairs += s.n * sinks - clamped_sum(s.n, offset + reach + 1, sinks);
    }
    return s.batch * s.heads * pairs;
  }
  if (pairs_are_static(args)) {
    // Orders move blocks, not attended pairs; they may live on a device.
    BlockMask plain = mask;
    plain.q_order = plain.k_order = Tensor();
    return count_pairs(plain, s.batch, s.heads, s.n, s.m).attended;
  }
  const PairCount c = count_pairs(mask, s.batch, s.heads, s.n, s.m, !lists);
  return lists ? c.visited : c.attended;
}

/// Entries of the lists that are read: lists built on a device have room for more. The mask is on the host.
int64_t listed_entries(const BlockMask& mask) {
  int64_t entries = 0;
  for (const BlockList* l : {&mask.full, &mask.partial, &mask.gather}) {
    if (!*l) continue;
    const Tensor& count = l->count;
    for (int64_t b = 0; b < count.dim(0); ++b)
      for (int64_t h = 0; h < count.dim(1); ++h)
        for (int64_t r = 0; r < count.dim(2); ++r)
          entries += count.data<int32_t>()[b * count.stride(0) + h * count.stride(1) + r * count.stride(2)];
  }
  return entries;
}

Cost cost_of(const AttentionArgs& args, const AttentionSizes& s, int64_t pairs, int64_t entries) {
  Cost c;
  c.matmul = 2 * (s.d + s.e + (args.relative.keys ? s.d : 0) + (args.relative.values ? s.e : 0)) * pairs;
  c.special = pairs;
  c.elementwise = 4 * pairs;
  // A key that no pair visits is not read: of a long cache a decoding step may see little.
  const auto element = static_cast<int64_t>(size_of(args.k.dtype()));
  c.bytes_read = elements_read(args.q) + std::min(elements_read(args.k), pairs * s.d * element) +
                 std::min(elements_read(args.v), pairs * s.e * element) + elements_read(args.bias.slope) +
                 elements_read(args.bias.relative) + elements_read(args.sink_logit) +
                 elements_read(args.pages.table) + elements_read(args.relative.keys) +
                 elements_read(args.relative.values);
  // A broadcast bias is read once for each element it holds.
  if (args.bias.dense) {
    int64_t n = 1;
    for (int a = 0; a < 4; ++a)
      if (args.bias.dense.stride(a) != 0) n *= args.bias.dense.dim(a);
    c.bytes_read += n * static_cast<int64_t>(size_of(args.bias.dense.dtype()));
  }
  if (const BlockMask* m = args.mask) {
    for (const BlockList* l : {&m->full, &m->partial, &m->gather})
      c.bytes_read += elements_read(l->begin) + elements_read(l->count);
    c.bytes_read += entries * static_cast<int64_t>(sizeof(int32_t));
    for (const Tensor* t : {&m->rule.segment_q, &m->rule.segment_k, &m->rule.bitmap, &m->row_begin,
                            &m->row_end, &m->key_length, &m->key_valid, &m->q_order, &m->k_order})
      c.bytes_read += elements_read(*t);
  }
  c.bytes_written = elements_read(args.o) + elements_read(args.lse) + elements_read(args.row_max) +
                    elements_read(args.row_entropy) + elements_read(args.mass_per_key) +
                    elements_read(args.mass_per_block);
  return c;
}

}  // namespace

AttentionSizes attention_sizes(const AttentionArgs& args) {
  AttentionSizes s;
  s.batch = args.q.dim(0), s.heads = args.q.dim(1), s.n = args.q.dim(2), s.d = args.q.dim(3);
  s.kv_heads = args.k.dim(1), s.m = args.k.dim(2), s.e = args.v.dim(3);
  if (args.pages.table) s.m = args.pages.table.dim(1) * args.pages.page_size;
  if (args.mask) s.block_q = args.mask->block_q, s.block_k = args.mask->block_k;
  return s;
}

bool pairs_are_static(const AttentionArgs& args) {
  if (args.pages.table) return false;
  if (!args.mask) return true;
  const BlockMask& m = *args.mask;
  return !m.full && !m.partial && !m.gather && !m.rule.segment_q && !m.rule.bitmap && !m.row_begin &&
         !m.key_length && !m.key_valid &&
         // Neighbourhoods combined with ranges are counted pair by pair.
         (m.rule.rank == 0 || (!m.rule.causal && !m.rule.band));
}

void check_attention(const AttentionArgs& args) {
  for (const auto& [what, t] :
       {std::pair<const char*, const Tensor&>{"q", args.q}, {"k", args.k}, {"v", args.v}, {"o", args.o}}) {
    if (!t) refuse(std::string(what) + " is missing");
    if (t.rank() != 4) refuse(std::string(what) + " needs four axes, not " + t.shape().str());
    if (t.dtype() != args.q.dtype())
      refuse(std::string(what) + " is " + std::string(name(t.dtype())) + ", but q is " +
             std::string(name(args.q.dtype())));
    if (t.device() != args.q.device()) refuse(std::string(what) + " and q live on different devices");
    need_last_contiguous(what, t);
  }
  const DType dtype = args.q.dtype();
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16)
    refuse("q, k, v, o are f32, bf16 or f16, not " + std::string(name(dtype)));
  const AttentionSizes s = attention_sizes(args);
  if (args.k.dim(3) != s.d)
    refuse("q has " + std::to_string(s.d) + " dims a head and k " + std::to_string(args.k.dim(3)));
  if (s.d < 1 || s.d > 512 || s.e < 1 || s.e > 512)
    refuse("head dims lie in 1..512; D = " + std::to_string(s.d) + ", E = " + std::to_string(s.e));
  if (s.heads < 1 || s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    refuse("the head count must be a multiple of the kv heads; H = " + std::to_string(s.heads) +
           ", Hkv = " + std::to_string(s.kv_heads));
  need_shape("o", args.o, {{s.batch}, {s.heads}, {s.n}, {s.e}}, "[B, H, N, E]");
  if (s.n > INT32_MAX / 2 || s.m > INT32_MAX / 2)
    refuse("N and M must stay below 2^30; N = " + std::to_string(s.n) + ", M = " + std::to_string(s.m));
  if (args.pages.table) {
    const Tensor& table = args.pages.table;
    if (args.pages.page_size < 1)
      refuse("page_size must be 1 or more, not " + std::to_string(args.pages.page_size));
    need_dtype("pages.table", table, DType::i32);
    if (table.rank() != 2 || table.dim(0) != s.batch)
      refuse("pages.table must have shape [B, max_pages], not " + table.shape().str());
    need_shape("k", args.k, {{args.k.dim(0)}, {s.kv_heads}, {args.pages.page_size}, {s.d}},
               "[pages, Hkv, page_size, D]");
    need_shape("v", args.v, {{args.k.dim(0)}, {s.kv_heads}, {args.pages.page_size}, {s.e}},
               "[pages, Hkv, page_size, E]");
    if (!args.mask || !args.mask->key_length) refuse("a paged cache needs mask.key_length");
  } else {
    need_shape("k", args.k, {{s.batch}, {s.kv_heads}, {s.m}, {s.d}}, "[B, Hkv, M, D]");
    need_shape("v", args.v, {{s.batch}, {s.kv_heads}, {s.m}, {s.e}}, "[B, Hkv, M, E]");
  }
  if (!std::isfinite(args.scale)) refuse("scale must be finite");
  if (!(args.soft_cap >= 0) || !std::isfinite(args.soft_cap))
    refuse("soft_cap must be 0 (off) or positive and finite");
  if (args.split_keys < 0)
    refuse("split_keys must be 0 (the engine chooses) or more, not " + std::to_string(args.split_keys));
  const ScoreBias& bias = args.bias;
  if (bias.dense) {
    if (bias.dense.dtype() != DType::f32 && bias.dense.dtype() != dtype)
      refuse("bias.dense is f32 or the problem's dtype, not " + describe(bias.dense));
    need_shape("bias.dense", bias.dense, {{1, s.batch}, {1, s.heads}, {s.n}, {s.m}},
               "[1 or B, 1 or H, N, M]");
  }
  if (bias.slope) {
    need_dtype("bias.slope", bias.slope, DType::f32);
    need_shape("bias.slope", bias.slope, {{s.heads}}, "[H]");
  }
  if (bias.relative) {
    need_dtype("bias.relative", bias.relative, DType::f32);
    if (bias.relative.rank() != 2 || (bias.relative.dim(0) != 1 && bias.relative.dim(0) != s.heads) ||
        bias.relative.dim(1) % 2 != 1)
      refuse("bias.relative must have shape [1 or H, 2 R + 1], not " + bias.relative.shape().str());
  }
  for (const auto& [what, t, width] :
       {std::tuple<const char*, const Tensor&, int64_t>{"relative.keys", args.relative.keys, s.d},
        {"relative.values", args.relative.values, s.e}})
    if (t) {
      need_dtype(what, t, dtype);
      if (t.rank() != 3 || (t.dim(0) != 1 && t.dim(0) != s.heads) || t.dim(1) < 1 || t.dim(2) != width)
        refuse(std::string(what) + " must have shape [1 or H, T, " + std::to_string(width) + "], not " +
               t.shape().str());
      if (t.device() != args.q.device()) refuse(std::string(what) + " and q live on different devices");
      need_last_contiguous(what, t);
    }
  if (std::abs(args.relative.origin) > INT32_MAX / 2)
    refuse("relative.origin must stay within 2^30, not " + std::to_string(args.relative.origin));
  if (args.sink_logit) {
    need_dtype("sink_logit", args.sink_logit, DType::f32);
    need_shape("sink_logit", args.sink_logit, {{s.heads}}, "[H]");
  }
  if (args.mask) check_mask(*args.mask, s, args);
  for (const auto& [what, t] : {std::pair<const char*, const Tensor&>{"lse", args.lse},
                                {"row_max", args.row_max},
                                {"row_entropy", args.row_entropy}})
    if (t) {
      need_dtype(what, t, DType::f32);
      need_shape(what, t, {{s.batch}, {s.heads}, {s.n}}, "[B, H, N]");
    }
  if (args.mass_per_key) {
    need_dtype("mass_per_key", args.mass_per_key, DType::f32);
    need_shape("mass_per_key", args.mass_per_key, {{s.batch}, {s.heads}, {s.m}}, "[B, H, M]");
  }
  if (args.mass_per_block) {
    need_dtype("mass_per_block", args.mass_per_block, DType::f32);
    need_shape(
        "mass_per_block", args.mass_per_block,
        {{s.batch}, {s.heads}, {(s.n + s.block_q - 1) / s.block_q}, {(s.m + s.block_k - 1) / s.block_k}},
        "[B, H, ceil(N / block_q), ceil(M / block_k)]");
  }
  if (!disjoint(args.o, args.q) || !disjoint(args.o, args.k) || !disjoint(args.o, args.v))
    refuse("o must not share memory with q, k or v");
}

Cost attention_cost(const AttentionArgs& args) {
  check_attention(args);
  const AttentionSizes s = attention_sizes(args);
  return cost_of(args, s, charged_pairs(args, s), args.mask ? listed_entries(*args.mask) : 0);
}

namespace {
void check_and_charge(Context& ctx, const AttentionArgs& args) {
  check_attention(args);
  const AttentionSizes s = attention_sizes(args);
  // Pairs that depend on data are counted in the accounting pass only, from copies where they live on a
  // device.
  int64_t pairs = 0, entries = 0;
  if (pairs_are_static(args)) {
    pairs = charged_pairs(args, s);
  } else if (ctx.cost().exact()) {
    const BlockMask mask = on_host(ctx, *args.mask);
    AttentionArgs counted = args;
    counted.mask = &mask;
    pairs = charged_pairs(counted, s);
    entries = listed_entries(mask);
  }
  ctx.cost().charge(cost_of(args, s, pairs, entries));
}
}  // namespace

void attention(Context& ctx, const AttentionArgs& args) {
  if (args.kernel == AttentionKernel::mma_sync && ctx.device() != DeviceKind::cuda)
    throw Unsupported("the mma.sync attention kernel runs on CUDA devices, and this device is the CPU");
  check_and_charge(ctx, args);
  ctx.backend().attention(ctx, args);
}

void library_attention(Context& ctx, const AttentionArgs& args) {
  check_and_charge(ctx, args);
  ctx.backend().library_attention(ctx, args);
}

}  // namespace attnbench
