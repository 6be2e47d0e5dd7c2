#include "methods/attention_rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "kernels/attention/neighborhood.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float element(const Tensor& t, int64_t offset) {
  switch (t.dtype()) {
    case DType::f32:
      return t.data<float>()[offset];
    case DType::bf16:
      return static_cast<float>(t.data<bf16>()[offset]);
    case DType::f16:
      return static_cast<float>(t.data<f16>()[offset]);
    default:
      throw Unsupported("attention rows are read from f32, bf16 and f16 tensors, not " +
                        std::string(name(t.dtype())));
  }
}

/// `count` elements from `offset` on, widened to f32.
void widen(const Tensor& t, int64_t offset, int64_t count, float* out) {
  const char* src = static_cast<const char*>(t.raw()) + offset * static_cast<int64_t>(size_of(t.dtype()));
  convert(src, t.dtype(), out, DType::f32, count);
}

/// Row of a [G, ...] tensor for one of `count` batches or heads: 0 when it is shared, the index itself when
/// there is one for each, the group otherwise (kv heads).
int64_t group_of(int64_t index, int64_t count, int64_t groups) { return index / (count / groups); }

/// A block mask on the host, with what is needed to walk the keys of one query.
class HostMask {
 public:
  HostMask(Context& ctx, const BlockMask* mask, bool paged, int64_t batch, int64_t heads, int64_t n,
           int64_t m)
      : batch_(batch), heads_(heads), n_(n), m_(m) {
    if (!mask) return;
    mask_ = *mask;
    for (BlockList* l : {&mask_.full, &mask_.partial, &mask_.gather}) {
      l->begin = on_host(ctx, l->begin);
      l->count = on_host(ctx, l->count);
      l->index = on_host(ctx, l->index);
    }
    for (Tensor* t : {&mask_.row_begin, &mask_.row_end, &mask_.key_length, &mask_.key_valid, &mask_.q_order,
                      &mask_.k_order, &mask_.rule.segment_q, &mask_.rule.segment_k, &mask_.rule.bitmap})
      *t = on_host(ctx, *t);
    q_slot_ = inverse(mask_.q_order);
    k_slot_ = inverse(mask_.k_order);
    ElementRule rule = mask_.rule;
    rule.bitmap = {};
    token_rules_.clear();
    for (int64_t b = 0; b < (paged ? batch : 1); ++b) {
      // Each sequence of a paged cache ends at its own length, and its last query stands there.
      if (mask_.rule.offset == ElementRule::kAlignEnds)
        rule.offset = (paged ? mask_.key_length.data<int32_t>()[b] : m) - n;
      token_rules_.push_back(rule);
    }
    lists_ = mask_.full || mask_.partial;
    const ElementRule& r = mask_.rule;
    const bool plain_grid =
        r.rank == 0 || (!r.causal && !r.band && !is_tiled(r.q_tile) && !is_tiled(r.k_tile));
    closed_form_ = !lists_ && !mask_.gather && !mask_.key_valid && plain_grid && !r.segment_q && !r.bitmap;
    by_blocks_ = lists_ && !mask_.gather && !mask_.k_order && !mask_.key_valid && r.rank == 0 &&
                 !r.segment_q && !r.bitmap;
  }

  /// True when every batch (head) sees the same keys.
  bool same_for_batches() const { return !mask_.key_length && !mask_.key_valid && groups(0) == 1; }
  bool same_for_heads() const { return groups(1) == 1; }

  /// Calls f(key token) for every key that query token i sees, each once, in any order.
  template <class F>
  void for_each(int64_t b, int64_t h, int64_t i, F&& f) const {
    if (closed_form_) {
      Intervals intervals;
      clipped(b, h, i, intervals);
      for (const Interval& v : intervals)
        for (int64_t j = v.begin; j < v.end; ++j) f(j);
      return;
    }
    const int64_t q_slot = q_slot_.empty() ? i : q_slot_[static_cast<size_t>(i)];
    const int64_t block = q_slot / mask_.block_q;
    const auto visit = [&](int64_t slot, bool refine) {
      const int64_t j = mask_.k_order ? mask_.k_order.data<int32_t>()[slot] : slot;
      if (refine && !rule_sees(b, h, i, j, q_slot, slot)) return;
      if (in_range(b, h, i, j)) f(j);
    };
    if (mask_.gather) {
      walk(mask_.gather, b, h, block, [&](int64_t slot) { visit(slot, true); });
    } else if (lists_) {
      const auto slots = [&](int64_t key_block, bool refine) {
        const int64_t end = std::min((key_block + 1) * mask_.block_k, m_);
        for (int64_t s = key_block * mask_.block_k; s < end; ++s) visit(s, refine);
      };
      if (mask_.full) walk(mask_.full, b, h, block, [&](int64_t kb) { slots(kb, false); });
      if (mask_.partial) walk(mask_.partial, b, h, block, [&](int64_t kb) { slots(kb, true); });
    } else {
      for (int64_t s = 0; s < m_; ++s) visit(s, true);
    }
  }

  /// The same keys as sorted, disjoint, non-empty intervals. Lists of blocks are taken block by block where
  /// the rule is a band: a row of 40000 keys is some hundred of them.
  void intervals(int64_t b, int64_t h, int64_t i, Intervals& out) const {
    if (closed_form_) return clipped(b, h, i, out);
    out.clear();
    if (by_blocks_) {
      Intervals rule;
      band_intervals(token_rule(b), i, n_, m_, rule);
      const Interval range = row_range(b, h, i);
      const auto add = [&](int64_t key_block, Interval seen) {
        const int64_t first = key_block * mask_.block_k;
        seen = {std::max({seen.begin, range.begin, first}),
                std::min({seen.end, range.end, std::min(first + mask_.block_k, m_)})};
        if (seen.begin < seen.end) out.push_back(seen);
      };
      const int64_t block = (q_slot_.empty() ? i : q_slot_[static_cast<size_t>(i)]) / mask_.block_q;
      if (mask_.full) walk(mask_.full, b, h, block, [&](int64_t kb) { add(kb, {0, m_}); });
      if (mask_.partial)
        walk(mask_.partial, b, h, block, [&](int64_t kb) {
          for (const Interval& v : rule) add(kb, v);
        });
    } else {
      for_each(b, h, i, [&out](int64_t j) {
        if (!out.empty() && out.back().end == j)
          ++out.back().end;
        else
          out.push_back({j, j + 1});
      });
    }
    sort_and_join(out);
  }

  int64_t count(int64_t b, int64_t h, int64_t i) const {
    int64_t n = 0;
    if (closed_form_ || by_blocks_) {
      Intervals row;
      intervals(b, h, i, row);
      for (const Interval& v : row) n += v.end - v.begin;
    } else {
      for_each(b, h, i, [&n](int64_t) { ++n; });
    }
    return n;
  }

 private:
  static std::vector<int64_t> inverse(const Tensor& order) {
    std::vector<int64_t> slots;
    if (!order) return slots;
    slots.resize(static_cast<size_t>(order.numel()));
    for (int64_t s = 0; s < order.numel(); ++s) slots[static_cast<size_t>(order.data<int32_t>()[s])] = s;
    return slots;
  }

  /// The largest extent along axis 0 (batches) or 1 (heads) of everything that may differ by them.
  int64_t groups(int axis) const {
    int64_t g = 1;
    for (const Tensor* t : {&mask_.full.count, &mask_.partial.count, &mask_.gather.count, &mask_.row_begin,
                            &mask_.row_end, &mask_.rule.bitmap})
      if (*t) g = std::max(g, t->dim(axis));
    if (axis == 0)
      for (const Tensor* t : {&mask_.rule.segment_q, &mask_.rule.segment_k})
        if (*t) g = std::max(g, t->dim(0));
    return g;
  }

  static void sort_and_join(Intervals& v) {
    std::sort(v.begin(), v.end(), [](const Interval& x, const Interval& y) { return x.begin < y.begin; });
    size_t kept = 0;
    for (size_t k = 1; k < v.size(); ++k) {
      if (v[kept].end >= v[k].begin)
        v[kept].end = std::max(v[kept].end, v[k].end);
      else
        v[++kept] = v[k];
    }
    if (!v.empty()) v.resize(kept + 1);
  }

  template <class F>
  void walk(const BlockList& list, int64_t b, int64_t h, int64_t block, F&& f) const {
    const int64_t gb = group_of(b, batch_, list.count.dim(0)), gh = group_of(h, heads_, list.count.dim(1));
    const int64_t at = (gb * list.count.dim(1) + gh) * list.count.dim(2) + block;
    const int64_t begin = list.begin.data<int32_t>()[at], count = list.count.data<int32_t>()[at];
    for (int64_t e = begin; e < begin + count; ++e) f(list.index.data<int32_t>()[e]);
  }

  bool rule_sees(int64_t b, int64_t h, int64_t i, int64_t j, int64_t q_slot, int64_t k_slot) const {
    const ElementRule& rule = token_rule(b);
    if (rule.rank == 0 && !rule.segment_q) {
      if (!band_allows(rule, i, j)) return false;
    } else if (!rule_allows(rule, b, h, i, j, n_, m_)) {
      return false;
    }
    const Tensor& bits = mask_.rule.bitmap;
    if (!bits) return true;
    const int64_t row =
        (group_of(b, batch_, bits.dim(0)) * bits.dim(1) + group_of(h, heads_, bits.dim(1))) * n_;
    return bits.data<uint8_t>()[(row + q_slot) * bits.dim(3) + k_slot / 8] >> (k_slot % 8) & 1;
  }

  const ElementRule& token_rule(int64_t b) const {
    return token_rules_[token_rules_.size() > 1 ? static_cast<size_t>(b) : 0];
  }

  /// The causal and band parts of a rule whose offset is resolved.
  static bool band_allows(const ElementRule& rule, int64_t i, int64_t j) {
    const int64_t centre = i + rule.offset;
    if (rule.causal && j > centre) return false;
    if (!rule.band || j < rule.sinks) return true;
    return (rule.left < 0 || j >= centre - rule.left) && (rule.right < 0 || j <= centre + rule.right);
  }

  Interval row_range(int64_t b, int64_t h, int64_t i) const {
    Interval r{0, m_};
    const auto at = [&](const Tensor& t) {
      return t.data<
          int32_t>()[(group_of(b, batch_, t.dim(0)) * t.dim(1) + group_of(h, heads_, t.dim(1))) * n_ + i];
    };
    if (mask_.row_begin) r.begin = std::max<int64_t>(r.begin, at(mask_.row_begin));
    if (mask_.row_end) r.end = std::min<int64_t>(r.end, at(mask_.row_end));
    if (mask_.key_length) r.end = std::min<int64_t>(r.end, mask_.key_length.data<int32_t>()[b]);
    return r;
  }

  bool in_range(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const Interval r = row_range(b, h, i);
    return j >= r.begin && j < r.end &&
           (!mask_.key_valid || mask_.key_valid.data<uint8_t>()[b * m_ + j] != 0);
  }

  /// The rule's intervals cut to the row's range.
  void clipped(int64_t b, int64_t h, int64_t i, Intervals& out) const {
    if (token_rule(b).rank > 0)
      neighborhood_intervals(token_rule(b), i, out);
    else
      band_intervals(token_rule(b), i, n_, m_, out);
    const Interval r = row_range(b, h, i);
    for (Interval& v : out) v = {std::max(v.begin, r.begin), std::min(v.end, r.end)};
    std::erase_if(out, [](const Interval& v) { return v.begin >= v.end; });
  }

  BlockMask mask_;
  std::vector<ElementRule> token_rules_{
      ElementRule{}};  ///< without bitmap, offsets resolved; one, or one a batch
  std::vector<int64_t> q_slot_, k_slot_;
  int64_t batch_, heads_, n_, m_;
  bool lists_ = false, closed_form_ = true, by_blocks_ = false;
};

/// Number of key tokens of a call: M, or the capacity of the page table.
int64_t keys_of(const AttentionArgs& a) {
  return a.pages.table ? a.pages.table.dim(1) * a.pages.page_size : a.k.dim(2);
}

}  // namespace

Tensor on_host(Context& ctx, const Tensor& t) {
  if (!t || t.device() == DeviceKind::cpu) return t;
  Tensor packed = t;
  if (!t.contiguous()) {
    packed = ctx.allocate(t.dtype(), t.shape());
    transpose_copy(ctx, {t, packed});
  }
  Context host(cpu_backend(), 1);
  Tensor copied = host.allocate(t.dtype(), t.shape());
  copy(ctx, packed, copied);
  return copied;
}

void band_intervals(const ElementRule& rule, int64_t i, int64_t queries, int64_t keys, Intervals& out) {
  const int64_t centre = i + (rule.offset == ElementRule::kAlignEnds ? keys - queries : rule.offset);
  int64_t begin = 0, end = keys, sinks = 0;
  if (rule.band) {
    if (rule.left >= 0) begin = std::max(begin, centre - rule.left);
    if (rule.right >= 0 && rule.right < keys + queries) end = std::min(end, centre + rule.right + 1);
    sinks = std::min(rule.sinks, keys);
  }
  if (rule.causal) {
    end = std::min(end, centre + 1);
    sinks = std::min(sinks, centre + 1);
  }
  out.clear();
  if (sinks > 0 && sinks < begin && begin < end) {
    out.push_back({0, sinks});
    out.push_back({begin, end});
  } else if (sinks > 0) {
    out.push_back({0, begin < end ? std::max(sinks, end) : sinks});
  } else if (begin < end) {
    out.push_back({begin, end});
  }
}

void neighborhood_intervals(const ElementRule& rule, int64_t i, Intervals& out) {
  const AxisExtents at = grid_coordinates(rule, i, {0, 0, 0});
  AxisWindow w[3] = {{0, 1, 1}, {0, 1, 1}, {0, 1, 1}};
  // Ranks below 3 have axes of one coordinate in front.
  const size_t missing = static_cast<size_t>(3 - rule.rank);
  AxisExtents grid{1, 1, 1};
  for (size_t a = 0; a < static_cast<size_t>(rule.rank); ++a)
    w[missing + a] = axis_window(rule, static_cast<int>(a), at[a]), grid[missing + a] = rule.grid[a];
  out.clear();
  for (int64_t x = w[0].first; x < w[0].end; x += w[0].step)
    for (int64_t y = w[1].first; y < w[1].end; y += w[1].step) {
      const int64_t row = (x * grid[1] + y) * grid[2];
      const int64_t run = w[2].step == 1 ? w[2].end - w[2].first : 1;
      for (int64_t z = w[2].first; z < w[2].end; z += std::max(run, w[2].step)) {
        if (!out.empty() && out.back().end == row + z)
          out.back().end += run;
        else
          out.push_back({row + z, row + z + run});
      }
    }
}

int64_t band_pair_count(const ElementRule& rule, int64_t queries, int64_t keys) {
  int64_t pairs = 0;
  Intervals row;
  for (int64_t i = 0; i < queries; ++i) {
    band_intervals(rule, i, queries, keys, row);
    for (const Interval& v : row) pairs += v.end - v.begin;
  }
  return pairs;
}

PairSet rule_pairs(const ElementRule& rule, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                   std::vector<int64_t> grid) {
  PairSet set;
  set.batch = batch;
  set.heads = heads;
  set.queries = queries;
  set.tokens = keys;
  set.grid = std::move(grid);
  set.same_for_all_batches = (!rule.segment_q || rule.segment_q.dim(0) == 1) &&
                             (!rule.segment_k || rule.segment_k.dim(0) == 1) &&
                             (!rule.bitmap || rule.bitmap.dim(0) == 1);
  set.same_for_all_heads = !rule.bitmap || rule.bitmap.dim(1) == 1;
  if (rule.rank == 0 && !rule.segment_q && !rule.bitmap) {
    set.row = [rule, queries, keys](int64_t, int64_t, int64_t i, Intervals& out) {
      band_intervals(rule, i, queries, keys, out);
    };
    return set;
  }
  if (rule.rank > 0 && !rule.causal && !rule.band && !rule.segment_q && !rule.bitmap &&
      !is_tiled(rule.q_tile) && !is_tiled(rule.k_tile)) {
    set.row = [rule](int64_t, int64_t, int64_t i, Intervals& out) { neighborhood_intervals(rule, i, out); };
    return set;
  }
  set.row = [rule, queries, keys](int64_t b, int64_t h, int64_t i, Intervals& out) {
    out.clear();
    for (int64_t j = 0; j < keys; ++j) {
      if (!rule_allows(rule, b, h, i, j, queries, keys)) continue;
      if (!out.empty() && out.back().end == j)
        ++out.back().end;
      else
        out.push_back({j, j + 1});
    }
  };
  return set;
}

Tensor split_heads(const Tensor& x, int64_t heads) {
  const int64_t d = x.dim(2) / heads;
  return x.strided({x.dim(0), heads, x.dim(1), d}, {x.stride(0), d, x.stride(1), 1});
}

PairSet attention_pairs(Context& ctx, const AttentionArgs& args) {
  PairSet set;
  set.batch = args.q.dim(0), set.heads = args.q.dim(1);
  set.queries = args.q.dim(2), set.tokens = keys_of(args);
  const auto mask = std::make_shared<const HostMask>(ctx, args.mask, static_cast<bool>(args.pages.table),
                                                     set.batch, set.heads, set.queries, set.tokens);
  set.same_for_all_batches = mask->same_for_batches(), set.same_for_all_heads = mask->same_for_heads();
  set.row = [mask](int64_t b, int64_t h, int64_t i, Intervals& out) { mask->intervals(b, h, i, out); };
  return set;
}

struct AttentionRows::State {
  State(Context& context, const AttentionArgs& a)
      : ctx(context),
        args(a),
        mask(context, a.mask, static_cast<bool>(a.pages.table), a.q.dim(0), a.q.dim(1), a.q.dim(2),
             keys_of(a)),
        page_table(on_host(context, a.pages.table)),
        slopes(on_host(context, a.bias.slope)),
        sinks(on_host(context, a.sink_logit)) {
    if (page_table) lengths = on_host(ctx, args.mask->key_length);
  }

  /// f32 keys [M, D] of a key head, where they are not the ones at hand.
  void widen_keys(int64_t b, int64_t kv_head) {
    if (b == batch_of_keys && kv_head == head_of_keys) return;
    const int64_t m = keys_of(args), d = args.q.dim(3);
    const Tensor k =
        on_host(ctx, page_table ? args.k.select(1, kv_head) : args.k.select(0, b).select(0, kv_head));
    // Unused entries of a page table leave their keys as they are, which is nothing of another sequence.
    if (page_table) keys.clear();
    keys.resize(static_cast<size_t>(m * d));
    batch_of_keys = head_of_keys = -1;
#pragma omp parallel for num_threads(ctx.threads()) schedule(static) if (m * d > 1 << 16)
    for (int64_t j = 0; j < m; ++j) {
      int64_t at = j * k.stride(0);
      if (page_table) {
        const int64_t page = page_table.data<int32_t>()[b * page_table.dim(1) + j / args.pages.page_size];
        // Unused entries of a page table may hold anything; the mask's key_length hides their keys.
        if (page < 0 || page >= k.dim(0)) continue;
        at = page * k.stride(0) + j % args.pages.page_size * k.stride(1);
      }
      widen(k, at, d, keys.data() + j * d);
    }
    batch_of_keys = b, head_of_keys = kv_head;
  }

  Context& ctx;
  AttentionArgs args;
  HostMask mask;
  Tensor page_table, slopes, sinks, lengths;
  std::vector<float> keys;
  int64_t batch_of_keys = -1, head_of_keys = -1;
};

AttentionRows::AttentionRows(Context& ctx, const AttentionArgs& args)
    : state_(std::make_unique<State>(ctx, args)) {}
AttentionRows::~AttentionRows() = default;

void AttentionRows::read(int64_t b, int64_t h, int64_t q_begin, int64_t q_end, std::vector<float>& out) {
  Context& ctx = state_->ctx;
  const AttentionArgs& args = state_->args;
  const HostMask& mask = state_->mask;
  const Tensor &slopes = state_->slopes, &sinks = state_->sinks;
  const int64_t heads = args.q.dim(1), n = args.q.dim(2), d = args.q.dim(3), m = keys_of(args);
  state_->widen_keys(b, h / (heads / args.k.dim(1)));
  const std::vector<float>& keys = state_->keys;
  const Tensor q = on_host(ctx, args.q.select(0, b).select(0, h).slice(0, q_begin, q_end));

  const auto own = [](const Tensor& t, int axis, int64_t index) {
    return t.dim(axis) == 1 ? t.select(axis, 0) : t.select(axis, index);
  };
  Tensor dense, relative;
  if (args.bias.dense) dense = on_host(ctx, own(own(args.bias.dense, 0, b), 0, h).slice(0, q_begin, q_end));
  if (args.bias.relative) relative = on_host(ctx, own(args.bias.relative, 0, h));
  const float slope = slopes ? slopes.data<float>()[h * slopes.stride(0)] : 0.0f;
  const float sink = sinks ? sinks.data<float>()[h * sinks.stride(0)] : -kInfinity;
  // Biases measure from the sequence's own end.
  const int64_t length = state_->lengths ? state_->lengths.data<int32_t>()[b] : m, offset = length - n;
  Tensor embedding;
  if (args.relative.keys) embedding = on_host(ctx, own(args.relative.keys, 0, h));
  const int64_t reach = relative ? (relative.dim(0) - 1) / 2 : 0;

  out.assign(static_cast<size_t>((q_end - q_begin) * m), 0.0f);
#pragma omp parallel num_threads(ctx.threads())
  {
    std::vector<float> query(static_cast<size_t>(d)), apart(static_cast<size_t>(embedding ? d : 0));
    std::vector<int64_t> seen;
#pragma omp for schedule(dynamic)
    for (int64_t i = q_begin; i < q_end; ++i) {
      float* row = out.data() + (i - q_begin) * m;
      widen(q, (i - q_begin) * q.stride(0), d, query.data());
      seen.clear();
      float most = sink;
      mask.for_each(b, h, i, [&](int64_t j) {
        float s = 0.0f;
        const float* key = keys.data() + j * d;
#pragma omp simd reduction(+ : s)
        for (int64_t c = 0; c < d; ++c) s += query[static_cast<size_t>(c)] * key[c];
        const int64_t distance = j - i - offset;
        if (embedding) {
          const int64_t last = embedding.dim(0) - 1, at = args.relative.origin + distance;
          if (args.relative.clip || (at >= 0 && at <= last)) {
            widen(embedding, std::clamp<int64_t>(at, 0, last) * embedding.stride(0), d, apart.data());
            for (size_t c = 0; c < apart.size(); ++c) s += query[c] * apart[c];
          }
        }
        s *= args.scale;
        if (args.soft_cap > 0.0f) s = args.soft_cap * std::tanh(s / args.soft_cap);
        if (dense) s += element(dense, (i - q_begin) * dense.stride(0) + j * dense.stride(1));
        if (slopes) s -= slope * static_cast<float>(std::abs(distance));
        if (relative) s += relative.data<float>()[std::clamp(distance, -reach, reach) + reach];
        row[j] = s;
        seen.push_back(j);
        if (s > most || std::isnan(s)) most = s;
      });
      // A row that sees nothing, or only -inf, stays 0.
      double sum = most == -kInfinity ? 0.0 : std::exp(static_cast<double>(sink - most));
      for (int64_t j : seen) {
        row[j] = most == -kInfinity ? 0.0f : std::exp(row[j] - most);
        sum += static_cast<double>(row[j]);
      }
      if (sum == 0.0) continue;
      const float inverse = static_cast<float>(1.0 / sum);
      for (int64_t j : seen) row[j] *= inverse;
    }
  }
}

bool attention_rows(Context& ctx, const AttentionArgs& args, int64_t b, int64_t h, int64_t q_begin,
                    int64_t q_end, std::vector<float>& out) {
  AttentionRows(ctx, args).read(b, h, q_begin, q_end, out);
  return true;
}

RowStats attention_row_stats(Context& ctx, const AttentionArgs& args, const KeyCount& known) {
  const int64_t batch = args.q.dim(0), heads = args.q.dim(1), n = args.q.dim(2), m = keys_of(args);
  const Shape rows{batch, heads, n};
  AttentionArgs a = args;
  a.o = ctx.allocate(args.o.dtype(), args.o.shape());
  a.mass_per_key = a.mass_per_block = {};
  a.lse = ctx.allocate(DType::f32, rows);
  a.row_max = ctx.allocate(DType::f32, rows);
  a.row_entropy = ctx.allocate(DType::f32, rows);
  attention(ctx, a);

  RowStats stats;
  stats.entropy = a.row_entropy;

  const HostMask mask(ctx, args.mask, static_cast<bool>(args.pages.table), batch, heads, n, m);
  const Tensor dense = on_host(ctx, args.bias.dense);
  const bool each_batch = known || !mask.same_for_batches() || (dense && dense.dim(0) > 1);
  const bool each_head = known || !mask.same_for_heads() || (dense && dense.dim(1) > 1);
  std::vector<float> visible(static_cast<size_t>(rows.numel())), probability(visible.size());
#pragma omp parallel for collapse(3) schedule(static) num_threads(ctx.threads())
  for (int64_t b = 0; b < (each_batch ? batch : 1); ++b)
    for (int64_t h = 0; h < (each_head ? heads : 1); ++h)
      for (int64_t i = 0; i < n; ++i) {
        int64_t count = 0;
        if (known) {
          count = known(b, h, i);
        } else if (dense) {
          const int64_t at = (dense.dim(0) > 1 ? b * dense.stride(0) : 0) +
                             (dense.dim(1) > 1 ? h * dense.stride(1) : 0) + i * dense.stride(2);
          mask.for_each(b, h, i,
                        [&](int64_t j) { count += element(dense, at + j * dense.stride(3)) != -kInfinity; });
        } else {
          count = mask.count(b, h, i);
        }
        visible[static_cast<size_t>((b * heads + h) * n + i)] = static_cast<float>(count);
      }
  const Tensor lse = on_host(ctx, a.lse), row_max = on_host(ctx, a.row_max);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>((b * heads + h) * n + i);
        visible[at] =
            visible[static_cast<size_t>(((each_batch ? b : 0) * heads + (each_head ? h : 0)) * n + i)];
        const float l = lse.data<float>()[at], top = row_max.data<float>()[at];
        probability[at] = l == -kInfinity ? 0.0f : std::exp(top - l);
      }
  stats.visible_keys = upload(ctx, rows, visible);
  stats.row_max_probability = upload(ctx, rows, probability);
  return stats;
}

}  // namespace attnbench
